"""The folder in which mounts and copies of S3 lie on this machine: their locks, and how long what was read is kept.

Each folder in it belongs to one mount, to one program's cache, or to one copy, and holds files that are only for
locking: `lock` (who starts, ends or fills it), `users` (every task that uses it shares this one), and `keeper` and
`program` (those of a mount are alive). Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import time

fuse = importlib.import_module(f"{__package__}.fuse" if __package__ else "fuse")
LOCKS = ("lock", "users", "keeper", "program")
KEPT_SECONDS = 7 * 86400  # how long what no task used is kept


def folder_of(cache: str, kind: str, *what: object) -> str:
    """The folder, made where there is none, of a `kind` ("mount", "objects", "copy") of just this."""
    name = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:20]
    path = os.path.join(cache, f"{kind}-{name}")
    os.makedirs(path, mode=0o700, exist_ok=True)
    return path


def remove_old(cache: str) -> None:
    """Remove what no task has used for a week."""
    for name in os.listdir(cache):
        folder = os.path.join(cache, name)
        with contextlib.suppress(OSError):
            if time.time() - os.stat(os.path.join(folder, "lock")).st_mtime > KEPT_SECONDS:
                _remove(folder)


def _remove(folder: str) -> None:
    held = [fuse.locked(os.path.join(folder, name)) for name in LOCKS]
    if None not in held:
        fuse.unmount(os.path.join(folder, "fs"))  # there is no program behind it
        if not fuse.is_mounted(os.path.join(folder, "fs")):
            shutil.rmtree(folder, ignore_errors=True)
    for fd in held:
        if fd is not None:
            os.close(fd)


def touch(folder: str) -> None:
    """It is in use: the week begins now."""
    os.utime(os.path.join(folder, "lock"))
