"""The folder in which mounts and copies of S3 lie on this machine: their locks, and how long what was read is kept.

Each folder in it belongs to one mount, to one program's cache, or to one copy, and holds files that are only for
locking: `lock` (who starts, ends or fills it), `users` (every task that uses it shares this one), and `keeper` and
`program` (those of a mount are alive). Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import time
from typing import Any, Callable

mounted = importlib.import_module(f"{__package__}.mount_points" if __package__ else "mount_points").mounted
LOCKS = ("lock", "users", "keeper", "program")
KEPT_SECONDS = 7 * 86400  # how long what no task used is kept
EXCLUSIVE, SHARED = fcntl.LOCK_EX, fcntl.LOCK_SH
UNMOUNTS = (["umount", "-l"], ["fusermount3", "-uz"], ["fusermount", "-uz"])  # the first is root's


def folder_of(cache: str, kind: str, *what: object) -> str:
    """The folder, made where there is none, of a `kind` ("mount", "objects", "copy") of just this."""
    name = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:20]
    path = os.path.join(cache, f"{kind}-{name}")
    os.makedirs(path, mode=0o700, exist_ok=True)
    return path


def locked(path: str, how: int = EXCLUSIVE, *, wait: bool = False) -> int | None:
    """A descriptor that holds the lock, or None where another one does."""
    while True:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, how if wait else how | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:  # else it was removed between the two
                return fd
        except BlockingIOError:
            os.close(fd)
            return None
        os.close(fd)


def is_locked(path: str) -> bool:
    """Whether someone holds the lock."""
    fd = locked(path)
    if fd is not None:
        os.close(fd)
    return fd is None


def soon(ask: Callable[[], Any], check: Callable[[], None], seconds: float) -> Any:
    """What `ask` says once that is true, or last said. `check` is called between, and may raise to give up."""
    deadline = time.monotonic() + seconds
    while True:
        answer = ask()
        if answer or time.monotonic() > deadline:
            return answer
        check()
        time.sleep(0.01)


def is_mounted(path: str) -> bool:
    """Whether something is mounted there, dead or alive: a dead mount cannot even be looked at."""
    return any(one.path == path for one in mounted())


def is_readable_mount(path: str) -> bool:
    """Whether a mount is there whose program answers; what `stat` tells, the kernel may still know from before."""
    try:
        os.statvfs(path)
        return os.stat(path).st_dev != os.stat(os.path.dirname(path)).st_dev
    except OSError:
        return False


def unmount(path: str) -> None:
    """Take away what is mounted there, though files in it be open."""
    for argv in UNMOUNTS * 2:  # twice: one may lie on another
        if not is_mounted(path):
            return
        with contextlib.suppress(OSError):
            subprocess.run([*argv, path], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def remove_old(cache: str) -> None:
    """Remove what no task has used for a week."""
    for name in os.listdir(cache):
        folder = os.path.join(cache, name)
        with contextlib.suppress(OSError):
            if time.time() - os.stat(os.path.join(folder, "lock")).st_mtime > KEPT_SECONDS:
                _remove(folder)


def _remove(folder: str) -> None:
    held = [locked(os.path.join(folder, name)) for name in LOCKS]
    if None not in held:
        unmount(os.path.join(folder, "fs"))  # there is no program behind it
        if not is_mounted(os.path.join(folder, "fs")):
            shutil.rmtree(folder, ignore_errors=True)
    for fd in held:
        if fd is not None:
            os.close(fd)


def touch(folder: str) -> None:
    """It is in use: the week begins now."""
    os.utime(os.path.join(folder, "lock"))
