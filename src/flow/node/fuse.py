"""Programs that mount by FUSE, for a user who is root or not: what hinders them, their keepers and locks, and an end.

Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import shutil
import signal
import subprocess
import time
from typing import Any, Callable

mounted = importlib.import_module(f"{__package__}.mount_points" if __package__ else "mount_points").mounted
EXCLUSIVE, SHARED = fcntl.LOCK_EX, fcntl.LOCK_SH
START_LOCK = 3  # the descriptor that a keeper may be given beside its stdin and stdout
UNMOUNTS = (["umount", "-l"], ["fusermount3", "-uz"], ["fusermount", "-uz"])  # the first is root's
# What the keeper and its program see of this environment; PATH is completed with where the system's own programs are.
KEPT_VARIABLES = ("HOME", "TMPDIR", "http_proxy", "https_proxy", "no_proxy", "HTTPS_PROXY", "NO_PROXY")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def hindrance() -> str:
    """Why no program could mount anything, on this machine and for this user; "" where it could."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "this user has no /dev/fuse here, without which nothing can be mounted: load the kernel module `fuse`"
    if os.geteuid() != 0 and not (shutil.which("fusermount3") or shutil.which("fusermount")):
        return "`fusermount3` is not here, without which only root can mount: install `fuse3`"
    return ""


def may_show_others() -> bool:
    """Whether users besides this one can be shown the mount: who runs a container, and whom it runs as.

    Nobody can reach it otherwise, since the folder above it is this user's alone. Source: mount.fuse(8).
    """
    if os.geteuid() == 0:
        return True
    try:
        with open("/etc/fuse.conf", encoding="utf-8") as file:
            return any(line.strip() == "user_allow_other" for line in file)
    except OSError:
        return False


def spawn_keeper(argv: list[str], mark: str, fds: list[int]) -> None:
    """Start it in a session of its own, with `fds` as 0, 1 and 3, and nothing else of this process.

    mark: by which who looks at processes sees whose it is.
    """
    env = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    env["PATH"] = os.environ.get("PATH", "") + ":" + SYSTEM_PATH
    env["FLOW_SCHEDULER"] = mark  # so that it is not taken for something that the task left behind
    files: list[Any] = [(os.POSIX_SPAWN_DUP2, fd, its) for fd, its in zip(fds, (0, 1, START_LOCK))]
    files.append((os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0))
    signals: Any = {"setsigmask": [], "setsigdef": [signal.SIGHUP, signal.SIGCHLD, signal.SIGTERM, signal.SIGINT]}
    os.posix_spawn(argv[0], argv, env, file_actions=files, setsid=True, **signals)


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
