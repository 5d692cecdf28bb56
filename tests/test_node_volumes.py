"""Volumes of a machine that is the task's own: real block devices, and a real Docker that keeps its images on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from flow.node import runner
from tests.support.components import require
from tests.support.containers import IMAGE, image_archive
from tests.support.machines import Machine, disk
from tests.support.processes import wait_until
from tests.support.pythons import old_pythons
from tests.support.registries import HOST, registry

OLD_PYTHON = old_pythons()[0]
DOCKER = "/var/lib/docker"
MOUNT = "import sys; from flow.node.volumes import *; mount_device(sys.argv[1], sys.argv[2])"


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Callable[..., Machine]]:
    """Starts one machine after the other; all are ended."""
    started: list[Machine] = []

    def boot(variables: dict[str, str] | None = None) -> Machine:
        started.append(Machine(tmp_path / f"machine{len(started)}", variables))
        return started[-1]

    yield boot
    for one in started:
        one.end()


@pytest.fixture
def new_disk(tmp_path: Path) -> Iterator[Callable[[], str]]:
    with ExitStack() as disks:
        yield lambda: disks.enter_context(disk(tmp_path / "disk"))


def mount(machine: Machine, device: str, target: str = "/mnt/data") -> str:
    """Why it was not, or ""."""
    done = machine.run(sys.executable, "-c", MOUNT, device, target, check=False)
    if done.returncode:
        kind, _, reason = done.stderr.splitlines()[-1].partition(": ")
        assert kind == "flow.node.mount_points.CannotMount", done.stderr
        return reason
    return ""


def test_a_blank_device_is_formatted_once_and_keeps_what_is_in_it(boot: Any, new_disk: Any) -> None:
    device, one, target = new_disk(), boot(), "/mnt/my data"
    assert mount(one, device, target) == ""
    one.run("sh", "-c", f"echo kept > '{target}/file'")
    assert mount(one, device, target) == "", "the boot script runs again"
    assert one.run("grep", "-c", device, "/proc/mounts").stdout == "1\n"
    one.run("sync")
    one.end()
    another = boot()
    assert mount(another, device, target) == ""
    assert another.run("cat", f"{target}/file").stdout == "kept\n"


def swap(device: str) -> None:
    subprocess.run(["mkswap", "-q", device], check=True, capture_output=True)


def partitions(device: str) -> None:
    table = b"\0" * 446 + b"\0\x01\x01\0\x83\x10\x20\x30" + b"\x01\0\0\0\0\x10\0\0" + b"\0" * 48 + b"\x55\xaa"
    Path(device).write_bytes(table)


def data(device: str) -> None:
    Path(device).write_bytes(b"somebody's database without a name" * 100)


@pytest.mark.parametrize(("fill", "what"), [(swap, "`swap`"), (partitions, "`dos` partition table"), (data, "data")])
def test_a_device_that_holds_anything_else_is_left_as_it_is(boot: Any, new_disk: Any, fill: Any, what: str) -> None:
    device = new_disk()
    fill(device)
    before = Path(device).read_bytes()
    reason = mount(boot(), device)
    assert reason.startswith(f"`{device}` holds ")
    assert what in reason
    assert Path(device).read_bytes() == before


def test_what_cannot_be_mounted_is_said(boot: Any, new_disk: Any, tmp_path: Path) -> None:
    device, one, another = new_disk(), boot(), boot()
    assert mount(one, "/dev/no-such") == "there is no device `/dev/no-such`: No such file or directory"
    assert mount(one, str(tmp_path / "disk")) == f"`{tmp_path}/disk` is not a block device"
    assert mount(one, device) == ""
    assert mount(one, device, "/mnt/other") == f"`{device}` is mounted already, at `/mnt/data`"
    assert mount(another, device) == f"`{device}` cannot be used: Device or resource busy"


def test_a_damaged_file_system_is_told_of_in_the_words_of_mount(boot: Any, new_disk: Any) -> None:
    device = new_disk()
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    with Path(device).open("r+b") as content:
        content.seek(2048)  # the descriptors of its groups
        content.write(b"\xff" * 65536)
    assert mount(boot(), device).startswith(f"`mount -t ext4 {device} /mnt/data`: ")


def run_task(machine: Machine, folder: Path, **task: Any) -> tuple[int, str, str, str]:
    """What a runner on the machine made of a task: code, cause, reason, output."""
    (folder / "inbox").mkdir(parents=True)
    whole = {"task_id": "task-06f3k2m9q7xw1d", "argv": ["echo", "hello"], "env": {}, "clean_env": True, **task}
    (folder / "task.json").write_text(json.dumps(whole))
    for name in task.get("needs", ()):
        login = {"registry": HOST, "username": "AWS", "password": "open sesame"}
        (folder / name).write_text(json.dumps(login))
    machine.run(OLD_PYTHON, runner.__file__, "run", folder)
    status = json.loads((folder / "status.json").read_text())
    out = folder / "stdout.log"
    return status["code"], status["cause"], status["reason"], out.read_text() if out.exists() else ""


def test_a_task_sees_its_device_and_is_told_what_is_wrong_with_it(boot: Any, new_disk: Any, tmp_path: Path) -> None:
    device, machine = new_disk(), boot()
    mounts = [{"kind": "device", "source": device, "target": "/mnt/data"}]
    argv = ["sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $! >/mnt/left; stat -f -c %T /mnt/data"]
    assert run_task(machine, tmp_path / "0", argv=argv, mounts=mounts) == (0, "exit", "", "ext2/ext3\n")
    assert machine.run("sh", "-c", "kill -0 $(cat /mnt/left)", check=False).returncode == 1, "what it left is ended"
    reason = f"`{device}` is mounted already, at `/mnt/data`"
    mounts[0]["target"] = "/mnt/other"
    assert run_task(machine, tmp_path / "1", mounts=mounts) == (126, "start", reason, "")


# -- Docker


def test_the_second_machine_has_the_images_that_the_first_one_pulled(
    boot: Any, new_disk: Any, tmp_path: Path, podman_variables: dict[str, str]
) -> None:
    device = new_disk()
    (tmp_path / "registry").mkdir()
    task = {"engine": "docker", "mounts": [{"kind": "device", "source": device, "target": DOCKER}]}
    with registry(tmp_path / "registry", "open sesame") as private:
        task["image"] = private.put(IMAGE, "team/app:1", "open sesame", os.environ | podman_variables)
        one = boot(private.variables)
        one.start_docker()
        choose_a_context_and_a_store_of_logins()
        first = run_task(one, tmp_path / "0", needs=["inbox/registry.json"], **task)
        assert first == (0, "exit", "", "hello\n")
        assert (Path.home() / ".docker/config.json").read_text().count("none-such") == 1
        one.run("sync")
        one.end()
    another = boot()
    another.start_docker()
    assert another.run("docker", "images", "--quiet").stdout == ""
    assert run_task(another, tmp_path / "1", **task) == (0, "exit", "", "hello\n")


def choose_a_context_and_a_store_of_logins() -> None:
    """A docker configuration such as users have."""
    subprocess.run(
        ["docker", "context", "create", "mine", "--docker", "host=unix:///var/run/docker.sock"],
        check=True,
        capture_output=True,
    )
    (Path.home() / ".docker/config.json").write_text('{"currentContext": "mine", "credsStore": "none-such"}')


def daemon(machine: Machine) -> list[str]:
    """Its pid, and the words that it was started with."""
    tell = "p=$(cat /run/docker.pid); echo $p; tr '\\0' ' ' </proc/$p/cmdline"
    return machine.run("sh", "-c", tell).stdout.split("\n")


def start_bare(machine: Machine, *options: str) -> list[str]:
    machine.run("sh", "-c", 'setsid --fork dockerd "$@" >/dev/null 2>&1', "sh", *machine.options, *options)
    assert wait_until(lambda: machine.run("docker", "version", check=False).returncode == 0, seconds=60)
    return daemon(machine)


def test_a_daemon_without_an_init_system_is_started_again_with_its_own_words(
    boot: Any, new_disk: Any, tmp_path: Path
) -> None:
    require("dockerd", "images are kept on a volume, by a real Docker")
    device, machine = new_disk(), boot()
    pid, words = start_bare(machine, "--label=mine=1")
    mounts = [{"kind": "device", "source": device, "target": DOCKER}]
    assert run_task(machine, tmp_path / "0", mounts=mounts) == (0, "exit", "", "hello\n")
    again = daemon(machine)
    assert again[1] == words
    assert again[0] != pid
    assert machine.run("docker", "info", "--format", "{{.Labels}} {{.Driver}}").stdout == "[mine=1] overlay2\n"
    assert mount(machine, device, DOCKER) == ""
    assert daemon(machine) == again, "what is mounted needs no other start"


def test_where_the_volume_cannot_be_used_docker_runs_on(boot: Any, new_disk: Any) -> None:
    device, machine = new_disk(), boot()
    machine.start_docker()
    swap(device)
    assert "holds `swap`" in mount(machine, device, DOCKER)
    machine.run("docker", "version")


def test_a_docker_that_runs_containers_is_not_stopped(boot: Any, new_disk: Any, tmp_path: Path) -> None:
    device, machine = new_disk(), boot()
    machine.start_docker()
    (tmp_path / "image").write_bytes(image_archive())
    machine.run("docker", "import", tmp_path / "image", "busybox:1")
    machine.run("docker", "run", "--detach", "--network", "host", "--name", "mine", "busybox:1", "sleep", "1000")
    assert mount(machine, device, DOCKER) == f"Docker runs containers (1): its folder `{DOCKER}` stays as it is"
    assert machine.run("docker", "ps", "--format", "{{.Names}}").stdout == "mine\n"
