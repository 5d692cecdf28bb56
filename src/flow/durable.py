"""Files that survive a crash: private, whole, on disk when the call returns; and what to say when they cannot be."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

from flow.errors import StorageError


@contextlib.contextmanager
def writing(store: Path) -> Iterator[None]:
    """Turns an OSError into a StorageError that names the store and says what to do."""
    try:
        yield
    except OSError as error:
        raise storage_error(store, error) from error


def storage_error(store: Path, error: OSError) -> StorageError:
    """What stands in the way of writing to Flow's folder."""
    reason = (error.strerror or str(error)).lower()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        suggestions = ["make room there: `flow prune` removes what old tasks left"]
    else:
        suggestions = ["point FLOW_HOME at a folder that you can write to"]
    return StorageError(f"cannot write to Flow's folder `{store}`: {reason}", suggestions=suggestions)


def write_durably(path: Path, content: bytes) -> None:
    """Replace `path` whole: after a crash it holds the old content or the new. 0600. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{time.monotonic_ns():x}")
    try:
        with open(temporary, "xb", opener=_private) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        unlink_quietly(str(temporary))
        raise
    sync_path(str(path.parent))


def sync_path(path: str) -> None:
    """Wait until the file or the folder's list of names is on disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def unlink_quietly(path: str) -> None:
    """Remove a file of ours, whatever stands in the way."""
    with contextlib.suppress(OSError):
        os.unlink(path)  # noqa: PTH108
