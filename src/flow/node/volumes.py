"""Block devices as the volumes of a machine that is the task's own, Docker's images on one of them if that is asked.

Root, on Linux. Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import stat
import subprocess
import time
from typing import Any, Callable, Iterator

DOCKER = "/var/lib/docker"
DOCKER_PID = "/var/run/docker.pid"
FILE_SYSTEMS = ("ext4", "xfs", "btrfs")
BLANK_BYTES = 1 << 20  # looked at, from either end, before a device counts as blank
CALL_SECONDS = 300  # for mkfs on the largest of volumes, and for a daemon to leave
START_SECONDS = 60  # for Docker to answer


def _beside(name: str) -> Any:
    return importlib.import_module(f"{__package__}.{name}" if __package__ else name)


mount_points, processes = _beside("mount_points"), _beside("processes")
CannotMount = mount_points.CannotMount


def mount_device(device: str, target: str) -> None:
    """Mount a block device at `target`; one that is there already is left alone.

    A blank one is formatted (ext4); one that holds anything never is. A Docker that runs is stopped while its folder
    is mounted, and answers again when this returns. Raises CannotMount.
    """
    at = os.path.realpath(target)
    if not _is_mounted(device, at):
        with _docker_stopped() if target == DOCKER else contextlib.nullcontext():
            _mount(device, at)


def _is_mounted(device: str, target: str) -> bool:
    """Whether it is, and what is seen there. Raises CannotMount where it is no device, or mounted elsewhere."""
    try:
        found = os.stat(device)
    except OSError as error:
        raise CannotMount(f"there is no device `{device}`: {error.strerror}") from None
    if not stat.S_ISBLK(found.st_mode):
        raise CannotMount(f"`{device}` is not a block device")
    number = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    seen = {one.path: one for one in mount_points.mounted()}
    at = [path for path, one in seen.items() if one.number == number or one.source == os.path.realpath(device)]
    if target in at:
        return True
    if at:
        raise CannotMount(f"`{device}` is mounted already, at `{at[0]}`")
    return False


def _mount(device: str, target: str) -> None:
    kind = _file_system(device)
    if not kind:
        _call("mkfs.ext4", "-q", device)
    os.makedirs(target, exist_ok=True)
    _call("mount", "-t", kind or "ext4", device, target)


def _file_system(device: str) -> str:
    """What is on it; "" for nothing at all. Raises CannotMount where that is no file system of ours."""
    blank = _is_blank(device)
    asked = _run("blkid", "-p", "-o", "export", device)
    if asked.returncode == 2 and blank:  # nothing that it knows
        return ""
    told = dict(line.partition("=")[::2] for line in asked.stdout.splitlines())
    kind = told.get("TYPE", "")
    if kind in FILE_SYSTEMS:
        return str(kind)
    what = f"`{kind}`" if kind else f"a `{told['PTTYPE']}` partition table" if "PTTYPE" in told else "data"
    raise CannotMount(f"`{device}` holds {what} and no file system of {', '.join(FILE_SYSTEMS)}: it is left as it is")


def _is_blank(device: str) -> bool:
    """Whether there are only zeros at both ends. Raises CannotMount for a device in use, in whatever namespace."""
    try:
        fd = os.open(device, os.O_RDONLY | os.O_EXCL)
    except OSError as error:
        raise CannotMount(f"`{device}` cannot be used: {error.strerror}") from None
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
        ends = [os.pread(fd, BLANK_BYTES, at) for at in (0, max(0, size - BLANK_BYTES))]
    finally:
        os.close(fd)
    return not any(any(end) for end in ends)


@contextlib.contextmanager
def _docker_stopped() -> Iterator[None]:
    """If Docker runs, it does not meanwhile, and does again after, however that went."""
    start = _stop_docker()
    try:
        yield
    finally:
        if start:
            processes.adopt_orphans(False)  # a daemon is no part of the task, and does not end with it
            start()
            processes.adopt_orphans(True)
            _await(lambda: _run("docker", "version").returncode == 0, START_SECONDS, "Docker does not answer")


def _stop_docker() -> Callable[[], Any] | None:
    """Stop the daemon by the way in which it was started; what starts it again. None where none runs."""
    containers = _run("docker", "ps", "--quiet").stdout
    if containers:
        raise CannotMount(f"Docker runs containers ({len(containers.split())}): its folder `{DOCKER}` stays as it is")
    if os.path.isdir("/run/systemd/system") and _run("systemctl", "cat", "docker.service").returncode == 0:
        _run("systemctl", "stop", "docker.socket")  # it would start the service again; some have none
        _call("systemctl", "stop", "docker.service")
        return lambda: _call("systemctl", "start", "docker.service")  # even if not up yet: its start may be due
    if _run("service", "docker", "status").returncode == 0:
        _call("service", "docker", "stop")
        return lambda: _call("service", "docker", "start")
    return _stop_bare_daemon()


def _stop_bare_daemon() -> Callable[[], Any] | None:
    """End a daemon that no init system started."""
    try:
        with open(DOCKER_PID, encoding="ascii") as file:
            pid = int(file.read())
        argv = _words(pid, "cmdline")
        env = dict(one.partition("=")[::2] for one in _words(pid, "environ"))
        if os.path.basename(argv[0]) != "dockerd":
            return None
        cwd = os.readlink(f"/proc/{pid}/cwd")
        os.kill(pid, signal.SIGTERM)
    except (OSError, ValueError, IndexError):  # left behind by one that is gone
        return None
    _await(lambda: not _words(pid, "cmdline"), CALL_SECONDS, "Docker does not end")
    # forked once more: whoever takes in orphans has it
    null = subprocess.DEVNULL
    fork = ["setsid", "--fork", *argv]
    return lambda: subprocess.run(fork, env=env, cwd=cwd, check=True, stdin=null, stdout=null, stderr=null)


def _words(pid: int, name: str) -> list[str]:
    """A process's command line or environment; nothing of one that has ended."""
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return [os.fsdecode(word) for word in file.read().split(b"\0")[:-1]]
    except OSError:
        return []


def _await(claim: Callable[[], bool], seconds: float, otherwise: str) -> None:
    deadline = time.monotonic() + seconds
    while not claim():
        if time.monotonic() > deadline:
            raise CannotMount(f"{otherwise}, {seconds:g} s after it was told to")
        time.sleep(0.1)


def _call(*argv: str) -> None:
    done = _run(*argv)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit {done.returncode}").splitlines()
        raise CannotMount(f"`{' '.join(argv)}`: {said[-1].strip()}")


def _run(*argv: str) -> subprocess.CompletedProcess[str]:
    """The program's end and words; code 127 where there is none such, 124 where it took too long."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    pipe = subprocess.PIPE
    try:
        return subprocess.run(
            argv, env={**os.environ, "PATH": path}, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe,
            encoding="utf-8", errors="replace", timeout=CALL_SECONDS, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        return subprocess.CompletedProcess(argv, 127, "", "no such program on this machine")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(argv, 124, "", f"not done after {CALL_SECONDS} s")
