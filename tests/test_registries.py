"""Images of private registries: the login asked of AWS, and a real registry that lets in nobody without it."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flow.client import Flow
from flow.errors import AuthenticationError, FlowError, ProviderError, ValidationError
from flow.node import runner
from flow.plan import Plan
from flow.registries import registry_login, wants_login
from flow.secret_files import secret_files
from tests.support.aws import Aws
from tests.support.containers import IMAGE
from tests.support.processes import processes_of, wait_until
from tests.support.pythons import old_pythons
from tests.support.registries import HOST, TOKEN, Registry, proxied, registry

OLD_PYTHON = old_pythons()[0]
LOGIN = {"registry": HOST, "username": "AWS", "password": TOKEN}
KEYS = {"AWS_ACCESS_KEY_ID": "one", "AWS_SECRET_ACCESS_KEY": "two"}


def plan(image: str = f"{HOST}/team/app:1", **fields: Any) -> Plan:
    return Plan("task-06f3k2m9q7xw1d", "train", "local", ("true",), image=image, **fields)


@pytest.mark.parametrize(
    ("image", "wanted"),
    [
        (f"{HOST}/app", True),
        (f"{HOST}/team/app@sha256:{'0' * 64}", True),
        ("123456789.dkr.ecr.us-east-1.amazonaws.com/my-ml-image:latest", True),
        ("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com/app:1", True),
        ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn/app:1", True),
        ("public.ecr.aws/docker/library/python:3.12", False),
        (f"example.com/{HOST}/app", False),
        (f"{HOST}.example.com/app", False),
        ("python:3.12", False),
        (HOST, False),
    ],
)
def test_only_amazons_private_registries_are_asked_for(image: str, wanted: bool) -> None:
    assert wants_login(image) is wanted
    if not wanted:
        assert registry_login(image, {}, {}) is None


@pytest.fixture
def aws_url(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an AWS that every client finds, with credentials."""
    for name, value in aws.access.items():
        monkeypatch.setenv(name, value)
    return aws.url


def test_the_login_is_the_token_that_aws_gives(aws_url: str) -> None:
    assert registry_login(f"{HOST}/app", KEYS, os.environ) == LOGIN
    assert (
        registry_login(f"{HOST}/app", {**KEYS, "AWS_ENDPOINT_URL_ECR": aws_url}, {"AWS_ENDPOINT_URL": "http://no"})
        == LOGIN
    )
    assert secret_files(plan(), os.environ) == {"registry.json": json.dumps(LOGIN).encode()}
    assert secret_files(plan("python:3.12"), {}) == secret_files(Plan("t", "t", "local", ("true",)), {}) == {}


def test_the_tasks_credentials_come_first_then_the_shells_then_the_files(aws: Aws) -> None:
    shell = {"AWS_ENDPOINT_URL": aws.url}
    allowed = aws.ask_for_signatures("ecr:GetAuthorizationToken")
    good = {name: allowed[name] for name in KEYS}
    assert registry_login(f"{HOST}/app", good, {**KEYS, **shell})
    assert registry_login(f"{HOST}/app", {}, {**good, **shell})
    with pytest.raises(AuthenticationError, match=r"no login to the registry of .*app") as refused:
        registry_login(f"{HOST}/app", KEYS, {**good, **shell})
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in str(refused.value)
    own = Path.home() / ".aws"
    own.mkdir()
    for profile in ("default", "work"):
        with (own / "credentials").open("a") as file:
            file.write(f"[{profile}]\n" + "".join(f"{name.lower()} = {good[name]}\n" for name in good))
    assert registry_login(f"{HOST}/app", {"AWS_PROFILE": "work"}, {**KEYS, **shell})
    assert registry_login(f"{HOST}/app", {}, shell)


@pytest.mark.parametrize(
    ("env", "kind", "said"),
    [
        ({}, ValidationError, "Unable to locate credentials"),
        ({"AWS_ACCESS_KEY_ID": "one"}, ValidationError, "has no AWS_SECRET_ACCESS_KEY"),
        ({"AWS_PROFILE": "nobody"}, ValidationError, "nobody"),
        ({**KEYS, "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, ProviderError, "Could not connect"),
        ({**KEYS, "AWS_ENDPOINT_URL": "nonsense"}, ProviderError, "nonsense"),
    ],
)
def test_what_keeps_from_a_login_is_said_before_anything_is_submitted(
    env: dict[str, str], kind: type[FlowError], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("boto3")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(kind, match=said) as failed:
        registry_login(f"{HOST}/app", env, {})
    assert type(failed.value) is kind
    assert failed.value.suggestions


def test_without_boto3_the_extra_is_named() -> None:
    code = "import sys; sys.modules['boto3'] = None; from flow.registries import *; registry_login(sys.argv[1], {}, {})"
    run = subprocess.run([sys.executable, "-c", code, f"{HOST}/app"], capture_output=True, text=True)
    assert "ValidationError" in run.stderr
    assert "boto3" in run.stderr
    assert run.returncode == 1


# -- on the machine


@pytest.fixture(scope="module")
def private(podman_variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry(tmp_path_factory.mktemp("registry"), TOKEN) as one:
        one.put(IMAGE, "team/app:1", TOKEN, os.environ | podman_variables)
        yield one


class Run:
    """A runner at work on a task whose image is in the registry."""

    def __init__(self, folder: Path, environment: dict[str, str], login: dict[str, str], **task: Any) -> None:
        self.folder, self.environment = folder, environment
        whole = {"task_id": "task-06f3k2m9q7xw1d", "image": f"{HOST}/team/app:1", "engine": "podman", "env": {}}
        whole |= {"argv": ["echo", "hello"], "clean_env": True, "needs": ["inbox/registry.json"], **task}
        (folder / "inbox").mkdir(parents=True, exist_ok=True)
        (folder / "task.json").write_text(json.dumps(whole))
        (folder / "inbox/registry.json").write_text(json.dumps(login))
        command = [OLD_PYTHON, runner.__file__, "run", str(folder)]
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)

    def wait(self) -> tuple[int, str, str]:
        assert self.process.wait(60) == 0
        status = json.loads((self.folder / "status.json").read_text())
        assert status["phase"] == "ended"
        return status["code"], status["cause"], status["reason"]

    def until_it_pulls(self) -> None:
        assert wait_until(lambda: bool(clients(self.folder)), seconds=30)


def clients(folder: Path) -> list[str]:
    return [one.command for one in processes_of(folder / "inbox") if " pull " in f" {one.command} "]


@pytest.fixture
def run(tmp_path: Path, private: Registry, podman_variables: dict[str, str]) -> Iterator[Any]:
    environment = os.environ | podman_variables | private.variables
    started: list[Run] = []

    def start(login: dict[str, str] = LOGIN, variables: dict[str, str] | None = None, **task: Any) -> Run:
        started.append(Run(tmp_path / "0", environment | (variables or {}), login, **task))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
    subprocess.run(["podman", "rmi", "--force", f"{HOST}/team/app:1"], env=environment, capture_output=True)


def test_with_the_login_the_image_is_pulled_and_the_login_is_gone_after_it(run: Any) -> None:
    one = run()
    seen = watch_for(TOKEN, while_runs=one.process)
    assert one.wait() == (0, "exit", "")
    assert (one.folder / "stdout.log").read_text() == "hello\n"
    assert seen() == []
    assert files_with(TOKEN, one.folder) == []
    assert list((one.folder / "inbox").iterdir()) == []


@pytest.fixture
def found(
    private: Registry, podman_variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, containers: str
) -> Iterator[str]:
    """An image of the registry, which podman finds wherever it is started from here."""
    for name, value in private.variables.items():
        monkeypatch.setenv(name, value)
    yield f"{HOST}/team/app:1"
    subprocess.run(["podman", "rmi", "--force", f"{HOST}/team/app:1"], capture_output=True)


def test_a_private_image_runs_on_two_nodes_with_the_credentials_of_the_shell(aws_url: str, found: str) -> None:
    task = Flow().run("echo hello", image=found, num_instances=2, upload_code=False)
    assert task.wait(60) == "completed", (task.reason, task.logs())
    assert sorted(task.logs().split()) == ["hello", "hello"]
    record = Path(os.environ["FLOW_HOME"]) / "record"
    assert wait_until(lambda: files_with(TOKEN, record) == [])
    assert files_with("test-secret", record) == []


def test_a_retry_is_brought_the_login_again_and_leaves_none(aws_url: str, found: str) -> None:
    task = Flow().run("test $FLOW_ATTEMPT = 2", image=found, retries=1, upload_code=False)
    assert task.wait(60) == "completed", (task.reason, task.logs())
    assert wait_until(lambda: files_with(TOKEN, Path(os.environ["FLOW_HOME"])) == [])


def test_without_credentials_nothing_is_submitted(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ValidationError, match="Unable to locate credentials"):
        Flow().run("true", image=found)
    assert Flow().tasks() == []


def test_without_it_the_pull_fails_with_the_registrys_reason_before_the_command(run: Any) -> None:
    one = run(LOGIN | {"password": "wrong"})
    code, cause, reason = one.wait()
    assert (code, cause) == (126, "start")
    assert "unauthorized" in reason
    assert f"{HOST}/team/app" in reason
    assert not (one.folder / "stdout.log").exists()
    assert list((one.folder / "inbox").iterdir()) == []


def test_an_image_that_is_here_is_not_asked_for_again(run: Any) -> None:
    one = run()
    assert one.wait() == (0, "exit", "")
    for name in ("status.json", "log.idx", "container.id"):
        (one.folder / name).unlink()
    assert run(LOGIN | {"password": "wrong"}, attempt=2).wait() == (0, "exit", "")


@pytest.fixture
def stalled() -> Iterator[dict[str, str]]:
    """The variables with which podman asks a registry that never answers."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(64)
        yield proxied(deaf.getsockname()[1])


def test_a_pull_that_hangs_is_ended_by_a_cancel_and_by_no_time_limit(run: Any, stalled: dict[str, str]) -> None:
    one = run(variables=stalled, limit_seconds=0.001)
    one.until_it_pulls()
    one.process.terminate()
    assert one.wait() == (143, "cancel", "cancelled")
    assert clients(one.folder) == []
    assert list((one.folder / "inbox").iterdir()) == []


def test_a_killed_runner_takes_its_pull_along_and_the_next_one_pulls_again(run: Any, stalled: dict[str, str]) -> None:
    one = run(variables=stalled)
    one.until_it_pulls()
    one.process.kill()
    one.process.wait()
    assert wait_until(lambda: clients(one.folder) == [])
    assert (one.folder / "inbox/login/config.json").stat().st_mode & 0o777 == 0o600
    assert run().wait() == (0, "exit", "")
    assert files_with(TOKEN, one.folder) == []


def test_a_task_that_ends_before_its_pull_leaves_no_login(run: Any) -> None:
    one = run(code={"manifest": "nowhere", "blobs": "nowhere"})
    assert one.wait()[1:] == (
        "start",
        "cannot unpack the code: " + f"`{one.folder}/nowhere`: no such file or directory",
    )
    assert list((one.folder / "inbox").iterdir()) == []


def test_a_login_that_is_none_is_said(run: Any) -> None:
    one = run({"registry": HOST})
    assert one.wait() == (126, "start", f"cannot pull `{HOST}/team/app:1`: 'username'")


def watch_for(word: str, *, while_runs: subprocess.Popen[bytes]) -> Any:
    """Look at all command lines and environments until the process ends; call it for those that held the word."""
    found: list[str] = []
    words = [word.encode(), base64.b64encode(f"AWS:{word}".encode())]

    def look() -> None:
        while while_runs.poll() is None:
            for entry in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    try:
                        data = (entry / name).read_bytes()
                    except OSError:
                        continue
                    found.extend(f"{entry}/{name}" for one in words if one in data)

    thread = threading.Thread(target=look)
    thread.start()

    def seen() -> list[str]:
        thread.join(60)
        return found

    return seen


def files_with(word: str, folder: Path) -> list[Path]:
    words = [word.encode(), base64.b64encode(f"AWS:{word}".encode())]
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if any(one in path.read_bytes() for one in words)]
