"""Tasks with an image, in a real podman: the words of the command, its environment, its files, its end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flow.node import runner, tail
from tests.support.batch_tasks import BatchTask
from tests.support.components import require
from tests.support.containers import IMAGE, import_python_image, podman
from tests.support.processes import leaders_of, wait_until


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with podman(tmp_path_factory.mktemp("podman")) as variables:
        yield variables


class Run:
    """A runner at work on a task with an image."""

    def __init__(self, folder: Path, task: dict[str, Any], variables: dict[str, str]) -> None:
        self.folder, self.environment = folder, {**os.environ, **variables}
        folder.mkdir()
        whole = {"task_id": f"task-{folder.name}", "image": IMAGE, "engine": "podman", "env": {}, "clean_env": True}
        (folder / "task.json").write_text(json.dumps({**whole, **task}))
        command = [sys.executable, runner.__file__, "run", str(folder)]
        self.process = subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL)

    def wait(self) -> tuple[int, str, str]:
        assert self.process.wait(60) == 0
        status = self.status()
        assert status["phase"] == "ended"
        return status["code"], status["cause"], status["reason"]

    def status(self) -> dict[str, Any]:
        path = self.folder / "status.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"phase": ""}
        return found

    def out(self) -> str:
        path = self.folder / "stdout.log"
        return path.read_text() if path.exists() else ""

    def until(self, text: str) -> None:
        assert wait_until(lambda: text in self.out(), seconds=30), (self.folder / "stderr.log").read_text()

    def containers(self) -> str:
        listing = ["podman", "ps", "--all", "--format", "{{.Names}}"]
        return subprocess.run(listing, env=self.environment, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def run(tmp_path: Path, engine: dict[str, str]) -> Iterator[Any]:
    started: list[Run] = []

    def start(*argv: str, **task: Any) -> Run:
        started.append(Run(tmp_path / f"t{len(started)}", {"argv": argv, **task}, engine))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.terminate()
            one.process.terminate()
            one.process.wait(60)
        assert f"task-{one.folder.name}" not in one.containers()


def test_the_command_runs_in_the_image_on_the_tasks_files(run: Any) -> None:
    one = run("sh", "-c", 'pwd; echo "$1"; echo 7 > $FLOW_OUTPUT/result.json; exit 3', "sh", 'it\'s "$HOME"', cwd="")
    assert one.wait() == (3, "exit", "exit 3")
    assert one.out() == '/workspace\nit\'s "$HOME"\n'
    assert (one.folder / "output/result.json").read_text() == "7\n"


def test_only_the_users_variables_and_ours_are_in_the_container(run: Any) -> None:
    mine = {"QUOTES": 'it\'s "$x"', "LINES": "a\nb", "PATH": "/bin:/mine", "API_TOKEN": "hush"}
    shell = {"VIRTUAL_ENV": "/nowhere", "LANG": "xx"}
    script = 'echo "$QUOTES|$LINES|$PATH|$API_TOKEN|${VIRTUAL_ENV-unset}|${LANG-unset}|$FLOW_WORKSPACE|$FLOW_TASK_ID"'
    waits = "until [ -e $FLOW_OUTPUT/go ]; do sleep 0.1; done"
    one = run("sh", "-c", f"{script}; {waits}", env={**shell, **mine}, user_env=list(mine))
    one.until("task-t0")
    clients = leaders_of(one.folder)
    assert clients
    assert not any(b"hush" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in clients)
    (one.folder / "output/go").touch()
    assert one.wait() == (0, "exit", "")
    assert one.out() == 'it\'s "$x"|a\nb|/bin:/mine|hush|unset|unset|/workspace|task-t0\n'


def test_a_command_that_the_image_lacks_fails(run: Any) -> None:
    one = run("no-such-command")
    code, _, _ = one.wait()
    assert code in (1, 127)  # as the engine's init, or the engine, has it
    assert (one.folder / "stderr.log").read_text() != ""


def test_an_image_that_cannot_be_had_says_why(run: Any) -> None:
    code, cause, reason = run("true", image="localhost/flow-test/nowhere:1").wait()
    assert (code, cause) == (125, "start")
    assert "localhost/flow-test/nowhere:1" in reason


def test_a_cancel_reaches_the_command_and_all_it_started(run: Any) -> None:
    child = "trap 'echo child; exit' TERM; echo set; while :; do sleep 0.1; done"
    script = f"sh -c \"{child}\" & trap 'echo saved; wait; exit 4' TERM; "
    one = run("sh", "-c", script + "echo up; while :; do sleep 0.1; done")
    for each in ("up", "set"):
        one.until(each)
    one.process.terminate()
    assert one.wait() == (4, "cancel", "cancelled")
    assert sorted(one.out().split()) == ["child", "saved", "set", "up"]


# It hears late, and wrongly, what became of a command in a container that has just ended.
SLOW_ENGINE = """\
#!/bin/sh
case $1 in
  run) '{0}' "$@"; code=$?; sleep 2; exit $code ;;
  exec) '{0}' "$@"; sleep 1; exit 137 ;;
  *) exec '{0}' "$@" ;;
esac
"""


def test_a_slow_engine_is_not_ended_in_place_of_its_container(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "bin" / "podman"
    slow.parent.mkdir()
    slow.write_text(SLOW_ENGINE.format(shutil.which("podman")))
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    one = run("sh", "-c", "trap 'exit 4' TERM; echo up; while :; do sleep 0.1; done")
    one.until("up")
    one.process.terminate()
    assert one.wait() == (4, "cancel", "cancelled")


def test_a_command_without_a_handler_is_ended_by_a_cancel(run: Any) -> None:
    require("catatonit", "without an init, the first process of a container passes over signals")
    one = run("sh", "-c", "echo up; exec sleep 60", grace_seconds=1000)
    one.until("up")
    one.process.terminate()
    assert one.wait() == (143, "cancel", "cancelled")


def test_who_ignores_the_stop_is_killed_after_the_grace_time(run: Any) -> None:
    one = run("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done", limit_seconds=9, grace_seconds=0.5)
    code, cause, reason = one.wait()
    assert (code, cause, reason) == (137, "timeout", "time limit 0.0025 h reached")
    assert one.out() == "up\n"


def test_a_warning_signal_reaches_the_command(run: Any) -> None:
    script = "trap 'echo warned; exit 5' USR1; echo up; while :; do sleep 0.1; done"
    one = run("sh", "-c", script, limit_seconds=60, signal={"number": 10, "before_seconds": 52})
    assert one.wait() == (5, "exit", "exit 5")


def test_a_shell_can_be_had_in_the_container(run: Any) -> None:
    one = run("sh", "-c", "echo up; while :; do sleep 0.1; done", grace_seconds=0.2)
    one.until("up")
    enter = [
        sys.executable,
        tail.__file__,
        "enter",
        str(one.folder),
        "--",
        "sh",
        "-c",
        "pwd; echo $FLOW_TASK_ID; exit 6",
    ]
    done = subprocess.run(enter, env=one.environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (6, "/workspace\ntask-t0\n")


def test_a_batch_script_starts_steps_in_the_containers_of_its_nodes(
    engine: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in engine.items():
        monkeypatch.setenv(name, value)
    image = import_python_image({**os.environ, **engine})
    script = "#!/bin/sh\nsrun -l sh -c 'echo $SLURM_JOB_ID $SLURM_PROCID'; scontrol show hostnames\n"
    with BatchTask(tmp_path / "task", script, nodes=2, image=image, engine="podman", cwd="", env={}) as task:
        assert task.wait() == [0, 0], task.err()
        assert sorted(task.out().splitlines()) == ["0: 7 0", "127.0.0.1", "127.0.0.2", "1: 7 1"]
