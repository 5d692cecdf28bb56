"""What a process does to become a task of a step, and the terminals for it. Standard library, Python 3.8 and up."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import signal
import struct
import termios
from typing import Any


def _beside(name: str) -> Any:
    return importlib.import_module(f"{__package__}.{name}" if __package__ else name)


processes = _beside("processes")


def become(streams: list[int], env: dict[str, str], argv: list[str], cwd: str, is_interactive: bool) -> None:
    """In a child: execute the task; never returns."""
    try:
        os.setsid()
        processes.end_with_parent(signal.SIGKILL)
        for number in range(1, signal.NSIG):
            if number not in (signal.SIGKILL, signal.SIGSTOP):
                with contextlib.suppress(OSError, ValueError):  # not all are ours to set
                    signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        for fd, stream in enumerate(streams):
            os.dup2(stream, fd)
        if is_interactive:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        try:
            os.chdir(cwd)
        except OSError as error:
            text = f"slurmstepd: error: couldn't chdir to `{cwd}': {error.strerror}: going to /tmp instead\n"
            os.write(2, text.encode())
            os.chdir("/tmp")
        env["SLURM_TASK_PID"] = str(os.getpid())
        argv = [_program(argv[0], env.get("PATH", os.defpath)), *argv[1:]]
        os.execve(argv[0], argv, env)
    except OSError as error:
        os.write(2, f"slurmstepd: error: execve(): {argv[0]}: {error.strerror}\n".encode())
        os._exit(error.errno or 1)
    finally:
        os._exit(1)


def _program(name: str, path: str) -> str:
    """The file that is executed; the name itself, which may be here, where there is none on the path."""
    if "/" in name:
        return os.path.join(os.getcwd(), name)
    if name:
        for folder in path.split(":"):
            file = os.path.join(folder or ".", name)
            if os.path.isfile(file) and os.access(file, os.X_OK):
                return file
    return name


def set_size(terminal: int, size: list[int]) -> None:
    """Lines and columns."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))


def raw_terminal() -> tuple[int, int]:
    """Our side and theirs of a terminal that changes nothing of what is written to it."""
    ours, theirs = os.openpty()
    attributes = termios.tcgetattr(theirs)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    return ours, theirs
