"""Brings a task's workspace to a newer state of the project: only what changed there since the last upload is touched.

`sync.py FOLDER` (of the task). Reads a line of JSON, `{"manifest": …, "was": {name: digest or null}}`: the project now,
and where it was different when the task was submitted. Says which contents it lacks, takes them one after the other,
and says what it did. `synced.json` tells the next upload of this one, which may ask instead for
`{"base": …, "changed": {name: entry or null}, "dirs": …}`, how the project differs from what that file of this digest
holds: where it is another one, null is said and the whole line awaited. `syncing.json`, there while it writes and after
it was cut off, says what it touches. Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
import sys
from typing import IO, Any, Mapping

STATE = "synced.json"
BEGUN = "syncing.json"
NEW = ".flow-upload"  # the end of a file's name until it is whole


def sync(folder: str, given: IO[bytes], out: IO[bytes]) -> None:
    """See above. Raises OSError, and EOFError where what is given ends early."""
    asked = _asked(folder, given, out)
    manifest, was = asked["manifest"], asked["was"]
    now = {name: [mode, digest, size] for name, mode, digest, size in manifest["files"]}
    links = dict(manifest["links"])
    state = os.open(os.path.join(folder, STATE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(state, fcntl.LOCK_EX)
    os.chdir(os.path.join(folder, "workspace"))
    known = os.pread(state, os.fstat(state).st_size, 0)
    if known:
        was_there = json.loads(known)
    else:  # nothing was uploaded since the task was submitted
        was_there = {name: entry for name, entry in {**now, **links}.items() if name not in was}
        was_there.update((name, entry) for name, entry in was.items() if entry is not None)
    begun = _begun(os.path.join(folder, BEGUN))
    before = {**{name: [entry] for name, entry in was_there.items()}, **begun}  # what uploads may have put there
    changed = [name for name in now if name in begun or before.get(name) != [now[name]]]
    lacked = [name for name in changed if not _holds(name, *now[name][1:])]
    relinked = [name for name, target in links.items() if name in begun or before.get(name) != [target]]
    gone = [name for name in before if name not in now and name not in links]
    touched = {name: before.get(name, []) for name in gone}
    touched.update((name, [*before.get(name, []), {**now, **links}[name]]) for name in (*changed, *relinked))
    if touched:
        _write(os.path.join(folder, BEGUN), json.dumps({**begun, **touched}))
    _say(out, lacked)
    kept = [name for name in gone if not _remove(name, before[name])]  # first: a file may become a folder
    for name in lacked:
        _take(name, now[name][2], given)
    updated = set(lacked)
    for name in changed:
        if stat.S_IMODE(os.stat(name).st_mode) != now[name][0]:
            os.chmod(name, now[name][0])
            updated.add(name)
    for name in relinked:
        _link(name, links[name])
    for name in manifest["dirs"]:
        os.makedirs(name, exist_ok=True)
    content = json.dumps({**now, **links}).encode()
    os.ftruncate(state, os.pwrite(state, content, 0))
    if touched:
        os.unlink(os.path.join(folder, BEGUN))
    _say(out, {"updated": sorted([*updated, *relinked]), "removed": sorted({*gone} - {*kept}), "kept": sorted(kept)})


def digest_of(entries: Mapping[str, Any]) -> str:
    """That of `synced.json` where these were brought there last."""
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def _asked(folder: str, given: IO[bytes], out: IO[bytes]) -> dict[str, Any]:
    """What is asked, whole."""
    asked: dict[str, Any] = json.loads(given.readline())
    if "base" not in asked:
        return asked
    try:
        with open(os.path.join(folder, STATE), "rb") as file:
            known = file.read()
    except FileNotFoundError:
        known = b""
    if hashlib.sha256(known).hexdigest() != asked["base"]:
        _say(out, None)
        whole: dict[str, Any] = json.loads(given.readline())
        return whole
    entries = {**json.loads(known), **asked["changed"]}
    there = sorted((name, entry) for name, entry in entries.items() if entry is not None)
    files = [(name, *entry) for name, entry in there if not isinstance(entry, str)]
    links = [one for one in there if isinstance(one[1], str)]
    return {"manifest": {"files": files, "links": links, "dirs": asked["dirs"]}, "was": {}}


def _begun(path: str) -> dict[str, list[Any]]:
    """Each name that an upload may have touched before it was cut off, and what it may be by now."""
    try:
        with open(path, encoding="utf-8") as file:
            return dict(json.load(file))
    except FileNotFoundError:
        return {}


def _write(path: str, text: str) -> None:
    """A file with that content, whole."""
    with open(path + NEW, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(path + NEW, path)


def _holds(name: str, digest: str, size: int) -> bool:
    """Whether a file there has that content."""
    with contextlib.suppress(OSError):
        if os.path.islink(name) or os.path.getsize(name) != size:
            return False
        sha = hashlib.sha256()
        with open(name, "rb") as file:
            for data in iter(lambda: file.read(1 << 20), b""):
                sha.update(data)
        return sha.hexdigest() == digest
    return False


def _take(name: str, size: int, given: IO[bytes]) -> None:
    """The next `size` bytes become that file, whole."""
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    try:
        with open(name + NEW, "wb") as file:
            while size:
                data = given.read(min(size, 1 << 20))
                if not data:
                    raise EOFError("the upload was cut off")
                size -= len(data)
                file.write(data)
        os.replace(name + NEW, name)
    except (OSError, EOFError):
        _forget(name + NEW)
        raise


def _link(name: str, target: str) -> None:
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    _forget(name + NEW)
    os.symlink(target, name + NEW)
    os.replace(name + NEW, name)


def _forget(name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name)


def _remove(name: str, entries: list[Any]) -> bool:
    """Remove what an upload put there, with the folders that this leaves empty; False where it was changed since."""
    if not os.path.lexists(name):
        return True
    as_it_was = any(_is(name, entry) for entry in entries)
    if as_it_was:
        os.unlink(name)
        with contextlib.suppress(OSError):
            os.removedirs(os.path.dirname(name))
    return as_it_was


def _is(name: str, entry: Any) -> bool:
    if isinstance(entry, str):
        return os.path.islink(name) and os.readlink(name) == entry
    return _holds(name, *entry[1:])


def _say(out: IO[bytes], value: Any) -> None:
    out.write(json.dumps(value).encode() + b"\n")
    out.flush()


if __name__ == "__main__":
    try:
        sync(sys.argv[1], sys.stdin.buffer, sys.stdout.buffer)
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}")
    except EOFError as error:
        sys.exit(str(error))
