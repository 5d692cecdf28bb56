"""The store of uploaded contents: one file for each SHA-256, whole and on disk before its name exists."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType

from flow.durable import sync_path, unlink_quietly, unlock, writing
from flow.errors import StorageError

_CHUNK_BYTES = 1 << 20
_SYNC_EACH = 32  # from so many new files on, one sync of the file system is cheaper than one of each
_LOCK_SECONDS = 30.0


class SourceChangedError(Exception):
    """A file was written to, replaced or removed while it was read."""


def blob_path(store: Path, digest: str) -> Path:
    """Where the content with this SHA-256 (64 hex digits) lies."""
    return store / "blobs" / digest[:2] / digest


def manifest_path(store: Path, bundle_id: str) -> Path:
    """Where the list of a bundle's files lies."""
    return store / "manifests" / f"{bundle_id}.json"


@contextlib.contextmanager
def store_lock(store: Path, *, shared: bool = True) -> Iterator[None]:
    """Held shared from before a bundle is made until the task that names it is recorded; exclusive to remove any.

    Shared locks nest. Raises StorageError when the store cannot be written, or an exclusive lock takes over 30 s.
    """
    with writing(store):
        store.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(store / "store.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if shared:
            _sweep_if_alone(handle, store)
            fcntl.flock(handle, fcntl.LOCK_SH)
        else:
            _lock_alone(handle, store)
        yield
    finally:
        unlock(handle)


def collect_garbage(store: Path, keep_ids: Collection[str], *, dry_run: bool = False) -> int:
    """Remove the manifests not in `keep_ids`, contents that no kept one names, and what a crash left; bytes freed.

    The caller holds `store_lock(store, shared=False)`. Contents stay when a kept manifest cannot be read.
    """
    freed = 0
    kept = [manifest_path(store, bundle_id) for bundle_id in keep_ids]
    for manifest in _entries(store / "manifests"):
        # first: a bundle whose manifest is gone is made anew, whatever happens to its contents
        if manifest.stem not in keep_ids:
            freed += _remove(manifest, dry_run=dry_run)
    try:
        named = {digest for manifest in kept if manifest.exists() for digest in _digests(manifest)}
    except (OSError, ValueError, LookupError, TypeError):
        return freed
    for folder in _entries(store / "blobs"):
        freed += sum(_remove(blob, dry_run=dry_run) for blob in _entries(folder) if blob.name not in named)
    return freed + sum(_remove(left, dry_run=dry_run) for left in _entries(store / "incoming"))


class Incoming:
    """New contents on their way into the store: `add` them, then `commit`; what was not committed is removed.

    As a context manager. Every method raises StorageError when the store cannot take more.
    """

    def __init__(self, store: Path) -> None:
        self.new_files = 0  # contents that the store did not have
        self.new_bytes = 0
        self._store = store
        self._blobs = f"{store}/blobs"
        self._folder = f"{store}/incoming"
        self._name = os.urandom(8).hex()  # a process id says nothing where containers share a home
        self._files = 0  # written so far
        self._waiting: dict[str, str] = {}  # digest -> file that holds its content

    def __enter__(self) -> Incoming:
        with writing(self._store):
            for folder in (self._folder, self._blobs):
                Path(folder).mkdir(mode=0o700, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for temporary in self._waiting.values():
            unlink_quietly(temporary)

    def add(self, path: str) -> tuple[str, os.stat_result]:
        """The SHA-256 of the regular file `path`, its content now held for the store, and its stat as it was read.

        Raises SourceChangedError when it did not hold still, OSError when it cannot be read.
        """
        try:
            source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ELOOP:  # it became a link
                raise SourceChangedError(path) from error
            raise
        try:
            before = os.fstat(source)
            if not stat.S_ISREG(before.st_mode):
                raise SourceChangedError(path)
            first = os.read(source, _CHUNK_BYTES)
            digest = self.add_content(first) if len(first) < _CHUNK_BYTES else self._hold_large(first, source)
            after = os.fstat(source)
        finally:
            os.close(source)
        if (before.st_size, before.st_mtime_ns, before.st_ctime_ns) != (
            after.st_size,
            after.st_mtime_ns,
            after.st_ctime_ns,
        ):
            raise SourceChangedError(path)
        return digest, before

    def add_content(self, content: bytes) -> str:
        """The SHA-256 of this content, which is now held for the store."""
        digest = hashlib.sha256(content).hexdigest()
        if not self.has(digest):
            self._keep(digest, self._write(iter((content,))), len(content))
        return digest

    def has(self, digest: str) -> bool:
        """Whether the store holds this content, or will after `commit`."""
        return digest in self._waiting or os.path.exists(f"{self._blobs}/{digest[:2]}/{digest}")  # noqa: PTH110

    def commit(self) -> None:
        """Give every content added its name; they are on disk when this returns."""
        moves = [(held, f"{self._blobs}/{digest[:2]}", digest) for digest, held in self._waiting.items()]
        folders = {folder for _, folder, _ in moves}
        with writing(self._store):
            _sync([held for held, _, _ in moves])
            for folder in folders:
                os.makedirs(folder, mode=0o700, exist_ok=True)  # noqa: PTH103  # ten thousand Paths are slow to make
            for held, folder, digest in moves:
                os.rename(held, f"{folder}/{digest}")  # noqa: PTH104
            self._waiting.clear()
            if moves:
                _sync([*folders, self._blobs, str(self._store)])

    def _hold_large(self, first: bytes, source: int) -> str:
        """Hashed and written in one reading, in constant memory."""
        sha = hashlib.sha256()
        written = self._write(_hashed(sha, first, source))
        digest = sha.hexdigest()
        if self.has(digest):
            unlink_quietly(written)
        else:
            self._keep(digest, written, os.path.getsize(written))  # noqa: PTH202
        return digest

    def _keep(self, digest: str, temporary: str, size: int) -> None:
        self._waiting[digest] = temporary
        self.new_files += 1
        self.new_bytes += size

    def _write(self, chunks: Iterator[bytes]) -> str:
        """A new temporary file of these chunks; none is left when they cannot be read or written."""
        self._files += 1
        temporary = f"{self._folder}/{self._name}-{self._files}"
        with writing(self._store):
            target = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            for chunk in chunks:
                with writing(self._store):
                    _write_all(target, chunk)
        except BaseException:
            unlink_quietly(temporary)
            raise
        finally:
            os.close(target)
        return temporary


def _sync(paths: list[str]) -> None:
    if len(paths) < _SYNC_EACH:
        for path in paths:
            sync_path(path)
        return
    handle = os.open(paths[0], os.O_RDONLY | os.O_CLOEXEC)
    try:
        _sync_file_system(handle)
    finally:
        os.close(handle)


def _sync_file_system(handle: int) -> None:
    import ctypes

    try:
        syncfs = ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError):  # not Linux
        os.sync()
        return
    if syncfs(handle) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _hashed(sha: hashlib._Hash, first: bytes, source: int) -> Iterator[bytes]:
    chunk = first
    while chunk:
        sha.update(chunk)
        yield chunk
        chunk = os.read(source, _CHUNK_BYTES)


def _write_all(target: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(target, view) :]


def _sweep_if_alone(handle: int, store: Path) -> None:
    """Where nobody else is at work, remove what those left who were killed."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return
    for left in _entries(store / "incoming"):
        unlink_quietly(str(left))


def _lock_alone(handle: int, store: Path) -> None:
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StorageError(
                    f"`{store}` is in use by a task being submitted", suggestions=["try again in a moment"]
                ) from None
            time.sleep(0.02)


def _digests(manifest: Path) -> list[str]:
    return [digest for _, _, digest, _ in json.loads(manifest.read_bytes())["files"]]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def _remove(path: Path, *, dry_run: bool) -> int:
    size = path.lstat().st_size
    if not dry_run:
        path.unlink()
    return size
