"""Files that survive a crash: private, whole, on disk when the call returns; and what to say when they cannot be."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flow.errors import StorageError

if TYPE_CHECKING:
    import sqlite3

_COUNT = itertools.count()
_LEFT_SECONDS = 3600.0  # after which nobody is writing any more
_MANY = 8  # files at once
_LEAST_BYTES = 65536  # free on the disk, for SQLite to open a file
_TEMPORARY = re.compile(r"\..+\.\d+-[0-9a-f]+-\d+")
_PARENTS: list[sqlite3.Connection] = []


class NoRoomError(StorageError):
    """The disk that holds Flow's folder is full, or the user's share of it."""


@contextlib.contextmanager
def writing(store: Path) -> Iterator[None]:
    """Turns an OSError into a StorageError that names the store and says what to do."""
    try:
        yield
    except OSError as error:
        raise storage_error(store, error) from error


def why(error: Exception) -> str:
    """The reason in a few words, without the path."""
    return ((isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__).lower()


def storage_error(store: Path, error: OSError) -> StorageError:
    """What stands in the way of writing to Flow's folder."""
    kind: type[StorageError]
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        kind, suggestion = NoRoomError, "make room there: `flow prune` removes what old tasks left"
    else:
        kind, suggestion = StorageError, "point FLOW_HOME at a folder that you can write to"
    return kind(f"cannot write to Flow's folder `{store}`: {why(error)}", suggestions=[suggestion])


def is_full(folder: Path) -> bool:
    """Whether the disk that `folder` lies on has no room to work in."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize < _LEAST_BYTES


def boot_id() -> str:
    """Another one after each start of the machine; "" where there is none to be had."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether a database's content is broken, not merely locked, full or forbidden. An I/O error may be that too."""
    text = str(error).lower()
    is_corrupt = type(error).__name__ == "DatabaseError"  # not one of its narrower kinds, as "locked" is
    kinds = ("no such", "unsupported file", "could not decode", "disk i/o")
    return is_corrupt or "malformed" in text or text.startswith(kinds)


def leave_to_parent(connection: sqlite3.Connection) -> None:
    """Keep a connection that was opened before a fork as it is: a child must neither use nor close it.

    Its locks are fcntl locks, which are the parent's alone: SQLite would count on what the child does not hold.
    """
    _PARENTS.append(connection)


def write_durably(path: Path, content: bytes) -> None:
    """Replace `path` whole: after a crash it holds the old content or the new. 0600. Raises OSError."""
    temporary = _write_beside(path, content)
    try:
        temporary.replace(path)
    except BaseException:
        unlink_quietly(str(temporary))
        raise
    sync_path(str(path.parent))


def write_all_durably(contents: Mapping[Path, bytes]) -> None:
    """`write_durably` for each: many of them side by side, as it is the disk that is waited for."""
    if len(contents) < _MANY:
        for path, content in contents.items():
            write_durably(path, content)
        return
    from concurrent.futures import ThreadPoolExecutor  # for few it is not worth its import

    with ThreadPoolExecutor(_MANY) as pool:
        list(pool.map(write_durably, contents, contents.values()))


def create_durably(path: Path, content: bytes) -> None:
    """Write a file that must not exist yet: FileExistsError when it does, and it is as it was. 0600. Raises OSError."""
    temporary = _write_beside(path, content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        temporary.replace(path)
    finally:
        unlink_quietly(str(temporary))
    sync_path(str(path.parent))


def remove_left(home: Path, folders: str) -> None:
    """Remove what writers that were killed have left in these folders of `home`, a glob, beside what they wrote."""
    for path in home.glob(f"{folders}.*.*-*-*"):
        with contextlib.suppress(OSError):
            if _TEMPORARY.fullmatch(path.name) and time.time() - path.lstat().st_mtime > _LEFT_SECONDS:
                path.unlink()


def sync_path(path: str) -> None:
    """Wait until the file or the folder's list of names is on disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Lock:
    """Held by one thread of one process at a time, freed when that ends; enter it again freely. Raises OSError.

    `note` is a line that outlives the holder: it tells the next one that the last died at its work.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begin()

    def _begin(self) -> None:
        import threading  # the scheduler, which needs no Lock, would do its work again at each fork

        self._threads = threading.RLock()
        self._depth = 0
        self._handle = -1
        self._process = os.getpid()

    def __enter__(self) -> Lock:
        if self._process != os.getpid():  # forked, maybe while a thread held it that is not here
            if self._handle >= 0:
                os.close(self._handle)
            self._begin()
        self._threads.acquire()
        try:
            if self._depth == 0:
                self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(self._handle, fcntl.LOCK_EX)
            self._depth += 1
        except BaseException:
            self._close()
            self._threads.release()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._close()
        self._threads.release()

    @property
    def is_noted(self) -> bool:
        """Whether there is a note: of a holder at work, or of one that died."""
        try:
            return self._path.stat().st_size > 0
        except OSError:
            return False

    @property
    def note(self) -> str:
        """What the last holder left, "" as a rule."""
        return os.pread(self._handle, 4096, 0).decode(errors="replace")

    @note.setter
    def note(self, text: str) -> None:
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, text.encode(), 0)

    def _close(self) -> None:
        if self._depth == 0 and self._handle >= 0:
            unlock(self._handle)
            self._handle = -1


def take_lock(path: Path, *, wait_seconds: float = 0.0, note_pid: bool = True) -> int | None:
    """The descriptor of the lock file, locked and with our pid written in it, or None where another holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return None
            time.sleep(0.01)
        else:
            os.ftruncate(descriptor, 0)
            if note_pid:
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            return descriptor


def unlock(handle: int) -> None:
    """Let go of a `flock` and close: now, though a process that was forked meanwhile has the descriptor too."""
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)


def _write_beside(path: Path, content: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{time.monotonic_ns():x}-{next(_COUNT)}")
    try:
        with open(temporary, "xb", opener=private) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        unlink_quietly(str(temporary))
        raise
    return temporary


def private(path: str, flags: int) -> int:
    """The opener of files that only this user may read."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def unlink_quietly(path: str) -> None:
    """Remove a file of ours, whatever stands in the way."""
    with contextlib.suppress(OSError):
        os.unlink(path)  # noqa: PTH108
