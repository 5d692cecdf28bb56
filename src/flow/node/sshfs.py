"""A folder of another host, mounted here by sshfs for as long as a task runs. Standard library, Python 3.8 and up.

A source is "WAY,WAY:/folder": each way is a host as `ssh` of this machine takes it, maybe with a port behind it. A
keeper, a process of its own, has sshfs as its child, and unmounts when the task has ended, however it did. The mount
lies beside the folder of tasks, never within: whoever removes a task must not come upon what the volume holds.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, Callable


def _beside(name: str) -> Any:
    return importlib.import_module(f"{__package__}.{name}" if __package__ else name)


fuse, remains = _beside("fuse"), _beside("remains")
CannotMount = _beside("mount_points").CannotMount
START_SECONDS = 30
BUSY_SECONDS = 90  # how long one that is just being started or ended by others is waited for
END_SECONDS = 2  # what sshfs has to end after it was unmounted
STEP_SECONDS = 0.2
# A host has its own way into the other: nobody answers a question, and what a client lent (its agent) is soon gone.
SSH = ("BatchMode=yes", "StrictHostKeyChecking=accept-new", "ConnectTimeout=10")
# What another host wrote is seen at once: sshfs itself keeps listings for 20 s. A cut of a minute is survived.
MOUNT = (*SSH, "ServerAliveInterval=15", "ServerAliveCountMax=4", "reconnect", "idmap=user", "dir_cache=no")
NO_WORDS = ("Warning: Permanently added", "read: Connection reset", "remote host has disconnected")


def attach(source: str, folder: str, check: Callable[[], None] = lambda: None) -> str:
    """Where the source is seen on this machine: itself, if it is here, else a mount for the task of `folder`.

    Attached again by the same task, it is the same. `check` is called while this waits, and may raise to give up.
    Raises CannotMount.
    """
    ways, path = _parts(source)
    if os.path.isdir(path):  # its name is random: nowhere else is one of that name
        return path
    failure = hindrance()
    try:
        failure = failure or _mounted(_place(folder, path), folder, source, check)
    except OSError as error:
        failure = f"{error.filename}: {error.strerror}"
    if failure:
        raise CannotMount(f"the volume is on another host, `{ways[-1]}`: {failure}")
    return os.path.join(_place(folder, path), "fs")


def hindrance() -> str:
    """Why nothing could be mounted by sshfs, on this machine and for this user; "" where it could."""
    if not shutil.which("sshfs"):
        return "`sshfs` is not here: install it, or run the task on that host"
    return str(fuse.hindrance())


def why_out_of_reach(source: str) -> str:
    """Why the source cannot be had on this machine, before anything is mounted; "" where it can."""
    ways, path = _parts(source)
    failure = "" if os.path.isdir(path) else hindrance()
    if failure or os.path.isdir(path):
        return failure
    said = []
    for way in ways:
        host, options = _host_and_options(way, SSH)
        test = ["ssh", *(word for one in options for word in ("-o", one)), "--", host, f"test -d {shlex.quote(path)}"]
        try:
            done = subprocess.run(
                test,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=_environment(),
                timeout=START_SECONDS,
                check=False,
            )
            words = _words(done.stderr) or f"there is no folder `{path}`"
        except subprocess.TimeoutExpired:
            words = f"no answer within {START_SECONDS} s"
        else:
            if done.returncode == 0:
                return ""
        said.append(f"`ssh {way}`: {words}")
    return "; ".join(said)


def _parts(source: str) -> tuple[list[str], str]:
    ways, _, path = source.partition(":/")
    return ways.split(","), "/" + path


def _host_and_options(way: str, options: tuple[str, ...]) -> tuple[str, list[str]]:
    host, _, port = way.rpartition(":")
    return (host, [*options, f"Port={port}"]) if host and port.isdigit() else (way, list(options))


def _place(folder: str, path: str) -> str:
    """The folder of this task's mount; `folder` is TASKS/TASK/ATTEMPT/RANK."""
    at, *words = folder.rsplit("/", 3)
    name = "-".join([*words, os.path.basename(os.path.dirname(path))])
    return os.path.join(os.path.dirname(os.path.abspath(at)), "mounts", name)


def _mounted(place: str, folder: str, source: str, check: Callable[[], None]) -> str:
    """Have it mounted in `place`/fs: why it could not be, or ""."""
    start = fuse.soon(lambda: fuse.locked(os.path.join(place, "start")), check, BUSY_SECONDS)
    if start is None:
        return "it has been about to be mounted for too long"
    try:
        is_kept = fuse.is_locked(os.path.join(place, "keeper"))
        if is_kept and fuse.is_readable_mount(os.path.join(place, "fs")):
            return ""
        answer, its_stdout = os.pipe()
        null = os.open(os.devnull, os.O_RDONLY)
        try:
            fuse.spawn_keeper([*_program(), "keep", place, folder, source], folder, [null, its_stdout])
        finally:
            os.close(its_stdout)
            os.close(null)
        with open(answer, "rb") as said:
            while not select.select([said], [], [], 0.05)[0]:
                check()
            line = said.readline()
        return line.decode().strip() if line else "the process that would keep the mount died"
    finally:
        os.close(start)


def _program() -> list[str]:
    """What runs this; where it came along with others in one program, that program, which is a word of its own."""
    if "__file__" in globals():
        return [sys.executable, os.path.abspath(__file__)]
    with open("/proc/self/cmdline", "rb") as file:
        return [sys.executable, *map(os.fsdecode, file.read().split(b"\0")[1:3])]


# -- the keeper


def keep(place: str, folder: str, source: str) -> None:
    """Mount, say so by one line (nothing, or why not), wait until the task has ended, unmount."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    os.chdir("/")
    at, own, program = os.path.join(place, "fs"), None, None
    try:
        own = fuse.soon(lambda: fuse.locked(os.path.join(place, "keeper")), lambda: None, BUSY_SECONDS)
        if own is None:
            return _say("an earlier mount does not go away")
        fuse.unmount(at)  # what a killed keeper left
        os.makedirs(at, mode=0o700, exist_ok=True)
        program, failure = _start(source, at)
        _say(failure)
        while program and program.poll() is None and remains.is_alive(folder):
            time.sleep(STEP_SECONDS)
            _said(program)  # nobody wants it, and it must not wait for a reader
    except OSError as error:
        _say(str(error))
    finally:
        fuse.unmount(at)
        _end(program)
        if own is not None:
            os.close(own)
        mounts = os.path.dirname(place)
        for name in os.listdir(mounts):
            _remove(os.path.join(mounts, name))


def _start(source: str, at: str) -> tuple[subprocess.Popen[bytes] | None, str]:
    """sshfs, which has mounted it by the first way that leads there; or none, and why."""
    ways, path = _parts(source)
    said = []
    for way in ways:
        host, options = _host_and_options(way, MOUNT)
        options += ["allow_other"] if fuse.may_show_others() else []
        program = subprocess.Popen(
            ["sshfs", "-f", "-o", ",".join(options), f"{host}:{path}", at], cwd="/", env=_environment(),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            preexec_fn=_beside("processes").end_with_parent,  # noqa: PLW1509  # there are no threads here
        )  # fmt: skip
        fuse.soon(lambda: program.poll() is not None or fuse.is_readable_mount(at), lambda: None, START_SECONDS)  # noqa: B023
        if fuse.is_readable_mount(at):
            return program, ""
        fuse.unmount(at)
        _end(program)
        said.append(f"`sshfs {way}`: {_words(_said(program)) or f'nothing was there after {START_SECONDS} s'}")
    return None, "; ".join(said)


def _environment() -> dict[str, str]:
    """What ssh needs; no agent, which may be the client's."""
    return {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}


def _said(program: subprocess.Popen[bytes]) -> bytes:
    """What it has to say by now."""
    assert program.stderr
    os.set_blocking(program.stderr.fileno(), False)
    with contextlib.suppress(BlockingIOError):
        return os.read(program.stderr.fileno(), 1 << 16)
    return b""


def _words(said: bytes) -> str:
    """The last that ssh or sshfs said of its own accord."""
    lines = [line.strip() for line in said.decode(errors="replace").splitlines()]
    return ([line for line in lines if line and not line.startswith(NO_WORDS)] or [""])[-1][:300]


def _end(program: subprocess.Popen[bytes] | None) -> None:
    """It ends by itself once it is unmounted, unless another namespace has the mount still."""
    for number in (0, signal.SIGTERM, signal.SIGKILL) if program else ():
        assert program
        program.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(END_SECONDS)
            return


def _remove(place: str) -> None:
    """The folder of a mount that nobody keeps, nor is about to; only what is empty, as a mount may be there still."""
    held = [fuse.locked(os.path.join(place, name)) for name in ("start", "keeper")]
    with contextlib.suppress(OSError):
        if None not in held:
            fuse.unmount(os.path.join(place, "fs"))
            if "fs" in os.listdir(place):
                os.rmdir(os.path.join(place, "fs"))
            for name in ("keeper", "start"):
                os.unlink(os.path.join(place, name))
            os.rmdir(place)
    for fd in held:
        if fd is not None:
            os.close(fd)


def _say(line: str) -> None:
    """The last that is said: then nobody listens any more."""
    with contextlib.suppress(OSError):
        os.write(1, line.encode() + b"\n")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


if __name__ == "__main__":
    keep(*sys.argv[2:])
