"""A queue that is damaged or gone: moved aside and built again, while nobody works with it."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Collection
from pathlib import Path

from flow.durable import is_damage, take_lock, unlock, writing
from flow.errors import StorageError
from flow.providers.local.queue import Queue, suspect_path
from flow.providers.local.restore import fill, recorded, records, was_given

_PATIENCE_SECONDS = 60.0  # for another process that mends, or a scheduler that ends
_GLANCE_SECONDS = 1.0  # for one that only looks whether the lock is held, or a scheduler about to leave


def needs_mending(home: Path, folder: Path) -> bool:
    """Whether the queue was found damaged, or there was one and its file is gone or empty."""
    path = folder / "local.db"
    if suspect_path(path).exists():
        return True
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size:
            return False
    had_one = any(True for _ in folder.glob("local.db.damaged-*"))
    return had_one or any(was_given(home, folder, record) for record in records(home))


def lacks(home: Path, folder: Path, bases: Collection[str]) -> bool:
    """Whether one of these tasks, which the queue does not hold, was given to it once."""
    found = (home / "record" / base for base in bases)
    return any(was_given(home, folder, record) and recorded(record) is not None for record in found)


def mend_queue(home: Path, folder: Path) -> None:
    """Make `folder`/local.db hold every task that has a record; the old file is kept aside where it is damaged.

    Raises StorageError where it cannot, sqlite3.DatabaseError where the disk is full or the file locked.
    """
    with writing(home):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mending = take_lock(folder / "mend.lock", wait_seconds=_PATIENCE_SECONDS)
    if mending is None:
        raise StorageError(f"the local queue `{folder / 'local.db'}` is damaged, and is being mended: try again later")
    try:
        with writing(home):
            scheduling = _end_scheduler(folder)  # nobody works with it meanwhile; running tasks go on
            try:
                if _is_whole(folder / "local.db"):
                    fill(home, folder, folder / "local.db")
                else:
                    _replace(home, folder)
                suspect_path(folder / "local.db").unlink(missing_ok=True)
            finally:
                unlock(scheduling)
    finally:
        unlock(mending)


def _end_scheduler(folder: Path) -> int:
    """The scheduler's lock, taken once the one that works with the damaged file has ended."""
    lock = take_lock(folder / "scheduler.lock", wait_seconds=_GLANCE_SECONDS)
    if lock is not None:
        return lock
    with contextlib.suppress(OSError, ValueError):
        pid = int((folder / "scheduler.lock").read_text())
        if _is_scheduler(pid, folder):  # else the number is of one before it
            os.kill(pid, signal.SIGTERM)
    lock = take_lock(folder / "scheduler.lock", wait_seconds=_PATIENCE_SECONDS)
    if lock is None:
        raise StorageError(
            f"the local queue `{folder / 'local.db'}` is damaged, and its scheduler does not end",
            suggestions=[f"end the process whose number is in `{folder / 'scheduler.lock'}`, and try again"],
        )
    return lock


def _is_scheduler(pid: int, folder: Path) -> bool:
    """Whether a process was started as the scheduler of `folder`. Raises OSError."""
    if Path("/proc/self/cmdline").exists():
        text = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" "))
    else:  # macOS
        import subprocess

        asked = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
        text = os.fsdecode(subprocess.run(asked, capture_output=True, check=False).stdout)
    return "start.py " in text and f" {folder} " in text


def _is_whole(path: Path) -> bool:
    """Whether everything in it can be read. Raises sqlite3.DatabaseError where it is only locked, or the disk full."""
    try:
        if not path.stat().st_size:
            return False
        with contextlib.closing(Queue(path)) as queue:
            queue.check()
    except FileNotFoundError:
        return False
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        return False
    return True


def _replace(home: Path, folder: Path) -> None:
    """Built beside the old one and put in its place whole: whoever dies at this leaves something to mend."""
    path, new = folder / "local.db", folder / "local.db.new"
    for end in ("", "-wal", "-shm"):
        Path(f"{new}{end}").unlink(missing_ok=True)
    fill(home, folder, new)
    aside = f"{path}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
    was_there = path.exists()
    for end in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{end}").rename(f"{aside}{end}")
    new.rename(path)
    fill(home, folder, path)  # who was given to the old one after its record was looked for
    what = f"damaged: rebuilt, the old one is `{aside}`" if was_there else "missing: made anew from the records"
    print(f"note: the local queue was {what}", file=sys.stderr)  # noqa: T201
