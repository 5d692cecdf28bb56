"""A bundle's manifest and blobs -> the task's own copy of its code. Standard library, Python 3.8 and up."""

from __future__ import annotations

import contextlib
import os
from typing import Any, Callable


def unpack(manifest: dict[str, Any], blobs: str, into: str, check: Callable[[], None]) -> None:
    """Copy into the folder `into` what the manifest names; `check` is called now and then, and may raise.

    Raises OSError, or ValueError for a blob or a manifest that is damaged or would leave the folder.
    """
    made = {into}
    for number, (name, mode, digest, size) in enumerate(manifest["files"]):
        if number % 256 == 0:
            check()
        path = _inside(into, name)
        _make_parent(path, made)
        _copy(os.path.join(blobs, digest[:2], digest), path, mode, size)
    for name in manifest.get("dirs", []):
        os.makedirs(_inside(into, name), exist_ok=True)
    for name, target in manifest.get("links", []):  # last, so that nothing is ever written through one
        path = _inside(into, name)
        _make_parent(path, made)
        if os.path.islink(path):  # by a runner that died before it started the command
            os.unlink(path)
        os.symlink(target, path)


def _inside(folder: str, name: str) -> str:
    if not name or name.startswith("/") or ".." in name.split("/"):
        raise ValueError(f"`{name}` leaves the workspace")
    return f"{folder}/{name}"


def _make_parent(path: str, made: set[str]) -> None:
    parent = os.path.dirname(path)
    if parent not in made:
        os.makedirs(parent, exist_ok=True)
        made.add(parent)


def _copy(source: str, path: str, mode: int, size: int) -> None:
    """An own copy, shared with the source only where the file system does that for us."""
    fd = os.open(source, os.O_RDONLY)
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        left = size
        with contextlib.suppress(AttributeError, OSError):
            while left > 65536:
                copied = os.copy_file_range(fd, out, left)
                left -= copied
                if not copied:
                    break
        while left > 0:
            data = os.read(fd, min(left, 1 << 20))
            if not data:
                raise ValueError(f"`{source}` is shorter than the {size} bytes it should have")
            left -= os.write(out, data)
        os.fchmod(out, mode & 0o777)
    finally:
        os.close(fd)
        os.close(out)
