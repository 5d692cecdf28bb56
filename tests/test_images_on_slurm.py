"""Tasks with an image on a real Slurm cluster: in podman, in a stand-in for apptainer, and where there is neither."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flow.client import Flow
from flow.node import apptainer
from flow.task import Task
from tests.support.apptainer import TOLD, stand_in
from tests.support.containers import IMAGE, image_archive, podman
from tests.support.processes import wait_until
from tests.support.slurm import Cluster

NASTY = {
    "QUOTES": 'it\'s "$x" `id` $(id) \\',
    "LINES": "a\nb\n",
    "COMMAS": "a,b=c;d",
    "ACCENT": "é☃",
    "HOME": "/home/of mine",
    "API_TOKEN": "hush-hush",
    "EMPTY": "",
}
ENGINES = ("apptainer", "singularity", "podman", "docker")


def as_variable(data: bytes) -> str:
    """Any bytes that a variable can hold, as Python has them."""
    return os.fsdecode(data.replace(b"\0", b""))


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all programs on PATH, but for those that run images."""
    folder = tmp_path_factory.mktemp("programs")
    for place in map(Path, reversed(os.environ["PATH"].split(":"))):
        for program in place.iterdir() if place.is_dir() else ():
            if program.name not in ENGINES:
                (folder / program.name).unlink(missing_ok=True)
                (folder / program.name).symlink_to(program)
    return folder


@pytest.fixture
def client(slurm: Cluster, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flow:
    """A client on the login node of a cluster where no program runs images."""
    monkeypatch.setenv("FLOW_SLURM_FOLDER", str(tmp_path / "shared"))
    monkeypatch.setenv("PATH", str(programs))
    return Flow("slurm")


@pytest.fixture
def apptainer_client(client: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flow:
    """Where the stand-in is."""
    monkeypatch.setenv("PATH", str(stand_in(tmp_path / "apptainer", IMAGE, image_archive())), prepend=":")
    return client


def in_image(client: Flow, command: str | list[str], **fields: Any) -> Task:
    return client.run(command, **{"image": IMAGE, "upload_code": False, **fields})


def folder_of(task: Task, tmp_path: Path) -> Path:
    """What its first attempt left, on its first node."""
    return tmp_path / "shared" / "tasks" / task.task_id / "1/0"


def command_lines() -> list[bytes]:
    """Of all processes on this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes())
    return found


def test_apptainer_runs_the_command_on_the_tasks_files(apptainer_client: Flow, project: Path, tmp_path: Path) -> None:
    (project / "data.txt").write_text("mine\n")
    script = (
        "pwd; cat data.txt; : > /tmp/x; : > ~/x; ls -a ~; (: > /bin/x) 2>/dev/null || echo read-only; "
        'echo "[1, 2]" > $FLOW_OUTPUT/result.json; echo err >&2; exit 3'
    )
    task = in_image(apptainer_client, script, upload_code=True)
    assert (task.wait(timeout=60), task.exit_code, task.reason) == ("failed", 3, "exit 3")
    assert [line.text for line in task.lines(stream="stdout")] == [
        b"/workspace", b"mine", b".", b"..", b"x", b"read-only",
    ]  # fmt: skip
    assert (task.logs(stderr=True), task.result()) == ("err\n", [1, 2])
    assert not (folder_of(task, tmp_path) / "inside").exists()


def test_values_arrive_in_apptainer_as_they_are_and_on_no_command_line(apptainer_client: Flow, tmp_path: Path) -> None:
    script = f"""printf '%s|' {" ".join(f'"${name}"' for name in NASTY)}; echo "${{SLURM_JOB_ID-none}}"; """
    task = in_image(apptainer_client, script + 'until [ -e "$FLOW_OUTPUT/go" ]; do sleep 0.1; done', env=NASTY)
    assert wait_until(lambda: "none" in task.logs(), seconds=60), task.logs()
    words = command_lines()
    assert any(b"--contain" in one for one in words)
    assert not any(NASTY["API_TOKEN"].encode() in one for one in words)
    (folder_of(task, tmp_path) / "output/go").touch()
    assert task.wait(timeout=60) == "completed"
    assert task.logs() == "".join(f"{value}|" for value in NASTY.values()) + "none\n"


def test_a_cancel_tells_each_process_in_apptainer_once(apptainer_client: Flow) -> None:
    child = "trap 'echo child' TERM; echo up; while [ ! -e /tmp/end ]; do sleep 0.1; done"
    script = (
        "trap 'echo parent; : > /tmp/told' TERM; sh -c \"$CHILD\" & until [ -e /tmp/told ]; do sleep 0.1; done; "
        "for _ in 1 2 3 4 5; do sleep 0.5; done; : > /tmp/end; wait; exit 4"
    )
    task = in_image(apptainer_client, script, env={"CHILD": child})
    assert wait_until(lambda: "up" in task.logs(), seconds=60), task.logs()
    task.cancel()
    assert (task.wait(timeout=60), task.exit_code) == ("cancelled", 4)
    said = task.logs().split()
    assert (said.count("child"), said.count("parent")) == (1, 1)
    assert TOLD not in task.logs()


def test_what_ignores_a_cancel_in_apptainer_is_killed_with_all_it_started(
    apptainer_client: Flow, slurm: Cluster
) -> None:
    script = "trap '' TERM; sleep 1000.5 & echo up; while :; do sleep 0.1; done"
    task = in_image(apptainer_client, script, grace_seconds=0.5)
    assert wait_until(lambda: "up" in task.logs(), seconds=60), task.logs()
    task.cancel()
    assert task.wait(timeout=60) == "cancelled"
    assert wait_until(lambda: slurm.run("squeue", "-h").stdout == "", seconds=30)
    assert not any(b"1000.5" in one for one in command_lines())


def test_a_shell_enters_the_image(apptainer_client: Flow, tmp_path: Path) -> None:
    script = 'echo $$ > /tmp/id; echo up; until [ -e "$FLOW_OUTPUT/go" ]; do sleep 0.1; done'
    task = in_image(apptainer_client, script, env={"QUOTES": NASTY["QUOTES"]})
    assert wait_until(lambda: "up" in task.logs(), seconds=60), task.logs()
    done = task.shell(
        ["sh", "-c", 'pwd; echo "$QUOTES"; cat /tmp/id; ls /; : > "$FLOW_OUTPUT/go"; exit 6'], capture=True
    )
    assert done.returncode == 6, done.stderr
    there, quotes, pid, *folders = done.stdout.splitlines()
    assert (there, quotes, pid.isdigit()) == ("/workspace", NASTY["QUOTES"], True)
    assert {"bin", "workspace"} <= set(folders)
    assert "work" not in folders
    assert task.wait(timeout=60) == "completed"


def test_two_nodes_each_run_the_image(apptainer_client: Flow) -> None:
    task = in_image(apptainer_client, "pwd; echo $FLOW_NODE_RANK", num_instances=2)
    assert task.wait(timeout=60) == "completed", task.reason
    assert sorted(task.logs().split()) == ["/workspace", "/workspace", "0", "1"]


def test_an_image_that_apptainer_cannot_have_says_why(apptainer_client: Flow) -> None:
    task = in_image(apptainer_client, "true", image="nowhere/at-all:1")
    assert (task.wait(timeout=60), task.exit_code) == ("failed", 255)
    assert task.reason == "Unable to handle docker://nowhere/at-all:1 uri: no such image"


def test_podman_runs_the_image_where_it_is_all_there_is(
    client: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/podman").symlink_to("/usr/bin/podman")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    with podman(tmp_path / "podman") as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        task = in_image(client, 'pwd; echo "$QUOTES"; echo 7 > $FLOW_OUTPUT/result.json; exit 3', env=NASTY)
        assert (task.wait(timeout=60), task.exit_code) == ("failed", 3), task.reason
        assert (task.logs(), task.result()) == (f"/workspace\n{NASTY['QUOTES']}\n", 7)


def test_where_no_program_runs_images_the_error_names_them(client: Flow) -> None:
    task = in_image(client, "true")
    assert (task.wait(timeout=60), task.exit_code) == ("failed", 126)
    assert re.fullmatch(
        "`image` needs apptainer, singularity, podman or docker on node[1-3], and none is there: "
        "load its module, or run without `image`",
        task.reason,
    )


@pytest.mark.parametrize(
    ("image", "taken"),
    [
        ("pytorch/pytorch:2.4.0", "docker://pytorch/pytorch:2.4.0"),
        ("docker://alpine", "docker://alpine"),
        ("library://user/collection/name:1", "library://user/collection/name:1"),
        ("oras://ghcr.io/user/name:1", "oras://ghcr.io/user/name:1"),
        ("/images/torch.sif", "/images/torch.sif"),
        ("/images/folder", "/images/folder"),
        ("images/torch.sif", "/code/images/torch.sif"),
        ("./folder", "/code/./folder"),
        ("~/torch.sif", "/home/me/torch.sif"),
    ],
)
def test_what_an_image_is_for_apptainer(image: str, taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert apptainer.source(image, "/code") == taken


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])) | st.binary().map(as_variable))
def test_any_value_comes_out_of_the_file_as_it_was(value: str) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(os.fsencode(apptainer.exports({"VALUE": value, "not a name": value, "UID": "1"})))
        file.flush()
        for shell in ("dash", "bash", "busybox"):
            words = [shell, *(["sh"] if shell == "busybox" else []), "-c", apptainer.BEGIN, file.name, "env", "-0"]
            done = subprocess.run(words, capture_output=True, env={"PATH": os.environ["PATH"]}, check=True)
            assert b"VALUE=" + os.fsencode(value) in done.stdout.split(b"\0")


@pytest.mark.parametrize(
    ("engine", "words"),
    [("docker", '--gpus "device=0,1"'), ("podman", "--device nvidia.com/gpu=0 --device nvidia.com/gpu=1")],
)
def test_a_container_is_given_the_gpus_that_slurm_gives(
    client: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, words: str
) -> None:
    program = tmp_path / "told" / engine  # no GPU is here that a real one could show
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$*"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    task = in_image(Flow("slurm"), "true", gpu="a100:2", num_instances=2)
    assert task.wait(timeout=60) == "completed", task.reason
    assert [words in line for line in task.logs().splitlines()] == [True, True]
    plain = in_image(Flow("slurm"), "true")
    assert plain.wait(timeout=60) == "completed", plain.reason
    assert not any(word in plain.logs() for word in ("--gpus", "--device"))
