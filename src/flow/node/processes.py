"""The processes of a command: started in a session of their own, ended whole. Standard library, Python 3.8 and up."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from typing import Any

try:
    import ctypes

    PRCTL: Any = ctypes.CDLL(None).prctl
except (ImportError, OSError, AttributeError):  # not on Linux: orphans are then found by their process group only
    PRCTL = None
SET_DEATH_SIGNAL, SET_SUBREAPER = 1, 36  # of prctl(2)
# By Python, by the runner, and by a shell's `&` that a scheduler was begun from; exec resets the others.
IGNORED = [signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT]


class CannotStart(Exception):  # noqa: N818  # what is wrong is the command
    """The command was not executed: the code that a shell would give, and why."""


def adopt_orphans(wanted: bool) -> None:
    """Whether processes become our children when their parents end; where the system can do that."""
    if PRCTL:
        PRCTL(SET_SUBREAPER, int(wanted), 0, 0, 0)


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """In a child, before it is executed: the signal comes when its parent is killed; where the system can do that."""
    if PRCTL:
        PRCTL(SET_DEATH_SIGNAL, int(number), 0, 0, 0)


class Processes:
    """The command and all that it starts. Takes every child of this process for one of them."""

    def __init__(self) -> None:
        self.pid = 0  # of the command, and of its group; 0: not started
        self.wait_status: int | None = None  # the command's end, as the kernel tells it
        self.childless = False
        self.others: dict[int, int | None] = {}  # children that are no part of the command, and how they ended
        self.told: set[int] = set()  # those that were sent SIGTERM: a second one would hurry them
        adopt_orphans(True)

    def start(self, argv: list[str], env: dict[str, str], cwd: str, *, lock: int) -> tuple[int, int]:
        """Execute the command in a session of its own; it inherits `lock`. Its stdout and stderr, to be read.

        Raises CannotStart. Spawned, not forked: copying a page table is what most of a short task's time would go to.
        """
        out, err = os.pipe(), os.pipe()
        os.set_inheritable(lock, True)
        files = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
        files += [(os.POSIX_SPAWN_DUP2, out[1], 1), (os.POSIX_SPAWN_DUP2, err[1], 2)]  # type: ignore[list-item]
        choice: dict[str, Any] = {"file_actions": files, "setsigmask": [], "setsigdef": IGNORED}
        where, what = "cd", cwd
        self.childless = False  # others may have come and gone
        try:
            os.chdir(cwd)
            where, what = "run", argv[0]
            program = _find_program(what, env.get("PATH", os.defpath))
            self.pid = spawn(program, argv, env, **choice)
        except (OSError, ValueError) as error:
            os.close(out[0])
            os.close(err[0])
            raise _cannot_start(where, what, error) from None
        finally:
            os.chdir("/")
            for fd in (out[1], err[1], lock):
                os.close(fd)
        return out[0], err[0]

    def reap(self) -> None:
        """Take in every process that ended."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self.pid:
                    self.wait_status = status
                elif pid in self.others:
                    self.others[pid] = status
        self.childless = True

    def has_leftovers(self) -> bool:
        """Whether some are left, the command having ended."""
        if PRCTL:
            return not self.childless and bool(descendants())
        return _signal_group(self.pid, 0)

    def terminate(self) -> None:
        """SIGTERM to each that was not sent it, and to none that is started from now on."""
        below = descendants()
        has_group = bool(self.pid) and (self.wait_status is None or not below)
        if has_group:  # all at once, so that no shell sees its child's end before its own
            _signal_group(self.pid, signal.SIGTERM)
        for pid in below.keys() - self.told:
            if not has_group or below[pid] != self.pid:
                send(pid, signal.SIGTERM)
        self.told.update(below)

    def kill(self) -> None:
        """SIGKILL to all, and to those that were started meanwhile."""
        if self.pid and (self.wait_status is None or not PRCTL):
            _signal_group(self.pid, signal.SIGKILL)
        killed: set[int] = set()
        for _ in range(50):
            fresh = descendants().keys() - killed
            for pid in fresh:
                send(pid, signal.SIGKILL)
            killed |= fresh
            if not fresh:
                return

    def send(self, number: int) -> None:
        """Send a signal to the command's group."""
        _signal_group(self.pid, number)

    def clean_up(self, code: int, *, was_stopped: bool) -> str:
        """Nothing is left to do, and a command that was not executed has said so itself."""
        return ""


def _cannot_start(where: str, what: str, error: Exception) -> CannotStart:
    missing = getattr(error, "errno", 0) in (errno.ENOENT, errno.ENOTDIR)
    text = getattr(error, "strerror", str(error))
    if missing:
        text = {"cd": "no such folder", "run": "command not found" if "/" not in what else text}[where]
    return CannotStart(127 if missing and where == "run" else 126, f"`{what}`: {text}")


def spawn(program: str, argv: list[str], env: dict[str, str], **choice: Any) -> int:
    """As os.posix_spawn, in a session of its own."""
    try:
        return os.posix_spawn(program, argv, env, setsid=True, **choice)
    except NotImplementedError:  # macOS: a group of its own must do
        return os.posix_spawn(program, argv, env, setpgroup=0, **choice)


def _find_program(name: str, path: str) -> str:
    """The file that a shell would execute; raises OSError as execvp does."""
    if "/" in name:
        return name
    found = [os.path.join(folder or ".", name) for folder in path.split(":")] if name else []
    found = [file for file in found if os.path.isfile(file)]
    for file in found:
        if os.access(file, os.X_OK):
            return file
    number = errno.EACCES if found else errno.ENOENT
    raise OSError(number, os.strerror(number))


def has_variable(pid: int, beginning: bytes) -> bool:
    """Whether a process was started with a variable that begins so."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return any(one.startswith(beginning) for one in file.read().split(b"\0"))
    except OSError:
        return False


def send(pid: int, number: int) -> None:
    """Send a signal to a process, if it is still there."""
    with contextlib.suppress(OSError):
        os.kill(pid, number)


def _signal_group(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except OSError:
        return False
    return True


def descendants() -> dict[int, int]:
    """The process group of every process below this one, parents first; empty where there is no /proc.

    A scheduler of the local provider that the task happened to start is no part of it, nor is what runs below that.
    """
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
        found += [child for child in children.get(pid, []) if not has_variable(child, b"FLOW_SCHEDULER=")]
    return {pid: groups[pid] for pid in found[1:]}
