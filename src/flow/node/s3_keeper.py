"""Keeps one mount of S3: starts the program that makes it, and ends that when no task has used it for a while.

`python3 s3_keeper.py FOLDER`, by s3.py, which says the rest on stdin, so that no credential is on a command line, and
reads one line from stdout: nothing where it is mounted, else why not. It is a process of its own because the mount is
shared and outlives the task that asked first. Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any


def _beside(name: str) -> Any:
    return importlib.import_module(f"{__package__}.{name}" if __package__ else name)


fuse, folders, programs = map(_beside, ("fuse", "s3_folders", "s3_programs"))
end_with_parent = _beside("processes").end_with_parent
START_SECONDS = 30
END_SECONDS = 2  # what the program has to end after it was unmounted
STEP_SECONDS = 0.2
MOST_LOG_BYTES = 1 << 20


def main(folder: str) -> None:
    """Mount, say so, wait until nobody wants it, unmount."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    os.chdir("/")
    asked = json.load(sys.stdin)
    alive = fuse.locked(os.path.join(folder, "keeper"))
    try:
        _keep(folder, asked)
    except (OSError, RuntimeError) as error:
        _say(str(error))
    finally:
        folders.remove_old(os.path.dirname(folder))
        os.close(alive)


def _keep(folder: str, asked: dict[str, Any]) -> None:
    at, log = os.path.join(folder, "fs"), os.path.join(folder, "log")
    os.makedirs(at, mode=0o700, exist_ok=True)
    fuse.unmount(at)  # what a killed keeper left
    # Its program, on its way out, would take away what is newly mounted.
    own = fuse.soon(lambda: fuse.locked(os.path.join(folder, "program")), lambda: None, START_SECONDS)
    if own is None:
        raise RuntimeError("the program of an earlier mount does not end")
    objects, in_use = _cache_of(folder, asked["tool"], asked["place"])
    program = _start(asked, at, objects, log, keep_open=(own, in_use))
    os.close(own)
    os.close(in_use)
    try:
        fuse.soon(lambda: program.poll() is not None or fuse.is_readable_mount(at), lambda: None, START_SECONDS)
        if fuse.is_readable_mount(at):
            os.close(fuse.START_LOCK)  # s3.py's own, so that no one else starts it though s3.py be killed
            _say("")
            _wait_for_the_last_user(folder, program, log, asked["linger_seconds"])
        else:
            _say(f"{asked['tool']} did not mount it: {_last_line(log)}")
    finally:
        fuse.unmount(at)
        _end(program)
        folders.touch(objects)


def _cache_of(folder: str, tool: str, place: list[str]) -> tuple[str, int]:
    """The folder in which a program keeps these objects from task to task, and its lock, which goes to the program.

    One program at a time has it: what comes with other credentials meanwhile has one of its own.
    """
    cache = os.path.dirname(folder)
    for what in ([place[:3]], [place[:3], folder]):
        objects = folders.folder_of(cache, "objects", tool, *what)
        lock = fuse.soon(lambda at=objects: fuse.locked(os.path.join(at, "lock")), lambda: None, 0.5)
        if lock is not None:
            folders.touch(objects)
            return objects, lock
    raise RuntimeError("an earlier program still has its cache")


def _start(
    asked: dict[str, Any], at: str, objects: str, log: str, keep_open: tuple[int, int]
) -> subprocess.Popen[bytes]:
    space = os.statvfs(objects)
    free_megabytes = space.f_bavail * space.f_frsize >> 20
    place = _beside("s3_place").Place(*asked["place"])
    argv, env = programs.COMMANDS[asked["tool"]](place, asked["access"], os.path.join(objects, "data"), free_megabytes)
    argv = [*argv, at]
    if fuse.may_show_others():
        argv += ["-o", "allow_other"] if asked["tool"] == "s3fs" else ["--allow-other"]
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    return subprocess.Popen(
        argv, env={**os.environ, **env}, cwd="/", stdin=subprocess.DEVNULL, stdout=fd, stderr=fd,
        pass_fds=keep_open, preexec_fn=end_with_parent,  # noqa: PLW1509  # there are no threads here
    )  # fmt: skip


def _wait_for_the_last_user(folder: str, program: subprocess.Popen[bytes], log: str, linger_seconds: float) -> None:
    """Until nobody has used it for so long, or the program died; from then on nobody can begin to use it."""
    idle_since = time.monotonic()
    while program.poll() is None:
        if fuse.is_locked(os.path.join(folder, "users")):
            idle_since = time.monotonic()
        elif time.monotonic() - idle_since >= linger_seconds and _is_wanted_by_nobody(folder):
            return
        with contextlib.suppress(OSError):
            if os.stat(log).st_size > MOST_LOG_BYTES:
                os.truncate(log, 0)
        time.sleep(STEP_SECONDS)


def _is_wanted_by_nobody(folder: str) -> bool:
    """Whether that is so; the lock on its start is then held until this process is gone."""
    start = fuse.locked(os.path.join(folder, "lock"))
    if start is None:
        return False
    if fuse.is_locked(os.path.join(folder, "users")):
        os.close(start)
        return False
    return True


def _end(program: subprocess.Popen[bytes]) -> None:
    """It ends by itself once it is unmounted, unless another namespace has the mount still."""
    for number in (0, signal.SIGTERM, signal.SIGKILL):
        program.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(END_SECONDS)
            return


def _last_line(log: str) -> str:
    with open(log, encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for line in file if line.strip()]
    return lines[-1][:300] if lines else f"nothing was there after {START_SECONDS} s"


def _say(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
    os._exit(0)  # at once: the next task may be waiting
