"""One scheduler at a time: a lock that it holds, a FIFO that wakes it, and how it is started and ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from flow.detached import reap, start_python
from flow.durable import take_lock, unlock
from flow.node.remains import is_locked, unmarked

_START_SECONDS = 5.0  # for the scheduler that another process starts, until it listens


def wake_scheduler(folder: Path, home: Path, limits: Mapping[str, float | None]) -> None:
    """Tell the scheduler that the queue changed; start one where none listens. Raises OSError.

    A scheduler that is about to leave closes the FIFO before it looks at the queue a last time: whoever could write
    is seen, and whoever could not starts the next one. One that is being started is waited for, as it may die before
    it listens.
    """
    deadline = time.monotonic() + _START_SECONDS
    while not _poke(folder / "wake") and not start_scheduler(folder, home, limits):
        if time.monotonic() > deadline:
            return  # it still holds `start.lock`, and looks at the queue once it listens
        time.sleep(0.005)


def start_scheduler(folder: Path, home: Path, limits: Mapping[str, float | None]) -> bool:
    """Start a scheduler process, detached from this one and its terminal; False where one is being started.

    The one that is being started holds `start.lock` until it listens. `limits`: "cpus" and "gpus" to give out. Started
    by a task, it does not carry that one's mark, by which its processes are found when they are to end.
    """
    starting = take_lock(folder / "start.lock")
    if starting is None:
        return False
    program = str(Path(__file__).with_name("start.py"))
    try:
        start_python(
            ["-I", "-S", program, str(home), str(folder), str(starting), json.dumps(dict(limits))],
            log=folder / "scheduler.log",
            env={**unmarked(os.environ), "FLOW_SCHEDULER": str(folder)},  # see node/processes.py
            pass_fds=[starting],
        )
    except BaseException:
        unlock(starting)
        raise
    os.close(starting)  # it is the scheduler's now
    return True


def end_scheduler(folder: Path, *, wait_seconds: float) -> bool:
    """End the scheduler of `folder`, if there is one, or one that is being started; whether none is left.

    What runs goes on without it.
    """
    locks = (folder / "start.lock", folder / "scheduler.lock")
    deadline = time.monotonic() + wait_seconds
    while any(map(is_locked, locks)) and time.monotonic() < deadline:
        if is_locked(locks[1]):  # by the process whose number is in it, once that is written
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(locks[1].read_text()), signal.SIGTERM)
        time.sleep(0.01)
    reap()
    return not any(map(is_locked, locks))


def open_fifo(path: Path) -> int:
    """The reading end of the FIFO, made where missing. Opened for both so that it never reads as ended."""
    try:
        os.mkfifo(path, 0o600)
    except FileExistsError:
        pass
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


def _poke(path: Path) -> bool:
    """Write a byte to the FIFO; False when nobody reads it."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # ENXIO: no reader; ENOENT: never made
        return False
    try:
        os.write(descriptor, b"!")
    except BlockingIOError:
        pass  # the pipe is full of wakes already
    except BrokenPipeError:
        return False
    finally:
        os.close(descriptor)
    return True
