"""The processes that tests leave: found by the temporary folder in their environment, ended by their ids."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from flow.node.remains import is_locked


@dataclass(frozen=True, slots=True)
class Found:
    """A process whose environment names a folder of the tests."""

    pid: int
    command: str
    home: str

    def __str__(self) -> str:
        return f"{self.pid} `{self.command}` (HOME {self.home})"


def processes_of(root: Path) -> list[Found]:
    """Every living process whose environment names `root`, but this one. Empty where there is no /proc."""
    pids = sorted(int(entry.name) for entry in Path("/proc").glob("[0-9]*"))
    found = (_look_at(pid, root) for pid in pids if pid != os.getpid())
    return [one for one in found if one]


def end_scheduler(flow_home: Path, root: Path) -> None:
    """End the scheduler that works in `flow_home`, whose pid is in its lock file; nothing if there is none."""
    folder = flow_home / "local"
    wait_until(lambda: not is_locked(folder / "start.lock"))  # it has no pid there yet
    try:
        pid = int((flow_home / "local" / "scheduler.lock").read_text())
    except (OSError, ValueError):
        return
    if _look_at(pid, root):  # else the number belongs to another process by now
        end([pid])


def end(pids: list[int]) -> None:
    """SIGTERM, and SIGKILL to those that are still there five seconds later."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
        if wait_until(lambda: not any(is_alive(pid) for pid in pids), seconds=5):
            return


def attendant_of(flow_home: Path) -> int:
    """The process that sees to tasks, once there is one."""
    lock = flow_home / "attend.lock"
    assert wait_until(lambda: lock.exists() and lock.read_text() != "", seconds=30)
    return int(lock.read_text())


def end_attendant(flow_home: Path) -> None:
    """End the attendant of a home, if there is one."""
    lock = flow_home / "attend.lock"
    wait_until(lambda: not is_locked(flow_home / "attend.start"))  # it has not begun
    if is_locked(lock) and wait_until(lambda: lock.read_text() != ""):  # it holds the lock before it says who it is
        end([int(lock.read_text())])


@contextmanager
def no_attendant(flow_home: Path) -> Iterator[None]:
    """End the one that there is, and who takes its place; no other comes meanwhile."""
    attendant_of(flow_home)
    with (flow_home / "attend.lock").open("a+") as lock:

        def kill() -> None:
            with suppress(ValueError, ProcessLookupError):  # it is about to say its number
                if _look_at(pid := int((flow_home / "attend.lock").read_text()), flow_home):
                    os.kill(pid, signal.SIGKILL)

        assert wait_until(lambda: takes_place(lock, kill))
        yield


def takes_place(lock: IO[str], kill: Callable[[], object]) -> bool:
    """Whether nobody holds the lock but us; who does is killed."""
    with suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    kill()
    return False


def wait_until(claim: Callable[[], bool], *, seconds: float = 30, every: float = 0.01) -> bool:
    """Whether `claim` came true before the time was out; asked a hundred times a second, or as seldom as told."""
    deadline = time.monotonic() + seconds
    while not claim():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


def is_alive(pid: int) -> bool:
    """Whether the process is there and not merely waiting to be reaped."""
    return _state(pid) not in ("", "Z")


def is_asleep(pid: int) -> bool:
    """Whether its first thread waits for something, as to be typed to."""
    return _state(pid) == "S"


def _state(pid: int) -> str:
    """As `ps` writes it; "" where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _look_at(pid: int, root: Path) -> Found | None:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:  # ended meanwhile, or another user's
        return None
    if not any(os.fsencode(root) in one for one in variables):
        return None
    home = next((one[5:] for one in variables if one.startswith(b"HOME=")), b"?")
    return Found(pid, b" ".join(words).decode(errors="replace").strip()[:200], os.fsdecode(home))


def free_port() -> int:
    """A port of this machine that nobody has, below those that the system gives to whoever asks for any."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port


def leaders_of(folder: Path) -> list[int]:
    """The processes that lead a session, of those whose `FLOW_OUTPUT` lies in this task folder."""
    mark = b"FLOW_OUTPUT=" + os.fsencode(folder / "output")
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0") and os.getsid(int(entry.name)) == int(entry.name):
                found.append(int(entry.name))
        except (OSError, ProcessLookupError):
            continue
    return found
