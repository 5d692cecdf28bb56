"""The processes of a command: started in a session of their own, ended whole. Standard library, Python 3.8 and up."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from typing import Any

try:
    import ctypes

    PRCTL: Any = ctypes.CDLL(None).prctl
except (ImportError, OSError, AttributeError):  # not on Linux: orphans are then found by their process group only
    PRCTL = None
SET_DEATH_SIGNAL, SET_SUBREAPER = 1, 36  # of prctl(2)
SIGNALS = [int(number) for number in signal.valid_signals()]  # once: they take longer than a fork


def adopt_orphans(wanted: bool) -> None:
    """Whether processes become our children when their parents end; where the system can do that."""
    if PRCTL:
        PRCTL(SET_SUBREAPER, int(wanted), 0, 0, 0)


class Processes:
    """The command and all that it starts. Takes every child of this process for one of them."""

    def __init__(self) -> None:
        self.pid = 0  # of the command, and of its group; 0: not started
        self.wait_status: int | None = None  # the command's end, as the kernel tells it
        self.childless = False
        self.told: set[int] = set()  # those that were sent SIGTERM: a second one would hurry them
        adopt_orphans(True)

    def start(self, argv: list[str], env: dict[str, str], cwd: str, *, lock: int) -> list[int]:
        """Fork the command; it inherits `lock`, which is closed here, and is executed once it has its word.

        Returns descriptors: its stdout, its stderr, what went wrong before it was executed (JSON), where the word goes.
        """
        out, err, fault, gate = (os.pipe() for _ in range(4))
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self.pid = os.fork()
        if self.pid == 0:
            os.close(gate[1])  # or it would wait for ever where the runner dies before it says the word
            _become(argv, env, cwd, [gate[0], out[1], err[1], fault[1], lock])
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        for fd in (out[1], err[1], fault[1], gate[0], lock):
            os.close(fd)
        return [out[0], err[0], fault[0], gate[1]]

    def reap(self) -> None:
        """Take in every process that ended."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self.pid:
                    self.wait_status = status
        self.childless = True

    def has_leftovers(self) -> bool:
        """Whether some are left, the command having ended."""
        return not self.childless or (not PRCTL and _signal_group(self.pid, 0))

    def terminate(self) -> None:
        """SIGTERM to each that was not sent it, and to none that is started from now on."""
        below = _descendants()
        has_group = bool(self.pid) and (self.wait_status is None or not below)
        if has_group:  # all at once, so that no shell sees its child's end before its own
            _signal_group(self.pid, signal.SIGTERM)
        for pid in below.keys() - self.told:
            if not has_group or below[pid] != self.pid:
                _signal(pid, signal.SIGTERM)
        self.told.update(below)

    def kill(self) -> None:
        """SIGKILL to all, and to those that were started meanwhile."""
        if self.pid and (self.wait_status is None or not PRCTL):
            _signal_group(self.pid, signal.SIGKILL)
        killed: set[int] = set()
        for _ in range(50):
            fresh = _descendants().keys() - killed
            for pid in fresh:
                _signal(pid, signal.SIGKILL)
            killed |= fresh
            if not fresh:
                return

    def send(self, number: int) -> None:
        """Send a signal to the command's group."""
        _signal_group(self.pid, number)

    def clean_up(self, code: int, *, was_stopped: bool) -> str:
        """Nothing is left to do, and a command that was not executed has said so itself."""
        return ""


def _become(argv: list[str], env: dict[str, str], cwd: str, fds: list[int]) -> None:
    """Turn the forked child into the command. Never returns; what went wrong is said on the fault descriptor."""
    gate, out, err, fault, held = fds
    where, what = "cd", cwd
    try:
        os.setsid()
        if PRCTL:
            PRCTL(SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_DFL, None):
                signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.set_inheritable(held, True)
        os.chdir(cwd)
        where, what = "run", argv[0]
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        if os.read(gate, 1):  # nothing to read: the runner is dead
            os.execvpe(what, argv, env)
    except BaseException as error:
        facts = [where, what, getattr(error, "errno", 0), getattr(error, "strerror", None) or str(error)]
        os.write(fault, json.dumps(facts).encode())
    finally:
        os._exit(127)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, number)


def _signal_group(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except OSError:
        return False
    return True


def _descendants() -> dict[int, int]:
    """The process group of every process below this one, parents first; empty where there is no /proc."""
    groups: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                    parent, group = map(int, file.read().rpartition(b")")[2].split()[1:3])
                    children.setdefault(parent, []).append(int(name))
                    groups[int(name)] = group
    found = [os.getpid()]
    for pid in found:
        found += children.get(pid, [])
    return {pid: groups[pid] for pid in found[1:]}
