"""Removes from a machine what pruned tasks left there, then code that none of its tasks uses. `sweep.py TASKS`.

The names of their folders in that one come on standard input, a line each; code lies beside it. Standard library,
Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import time
from typing import Iterable

KEPT_SECONDS = 86400.0  # since code was last asked for: who submits finds out first what is there
_BLOB = re.compile(r"[0-9a-f]{64}(\.\d+)?")  # with the number of who did not get it whole
_MANIFEST = re.compile(r"[0-9a-f]{64}\.json(\.\d+)?")


def forget(tasks: str, names: Iterable[str]) -> None:
    """Remove task folders; that of an array with the last of its elements."""
    bases = set()
    for name in names:
        if re.fullmatch(r"[\w+-]+", name):
            bases.add(name.partition("_")[0])
            shutil.rmtree(os.path.join(tasks, name), ignore_errors=True)
    left = {name.partition("_")[0] for name in os.listdir(tasks) if "_" in name}
    for base in bases - left:
        shutil.rmtree(os.path.join(tasks, base), ignore_errors=True)


def forget_unstarted(tasks: str) -> None:
    """Remove what ended before it had a turn on this host, long ago: it left nothing that a client would look for."""
    queue = os.path.join(os.path.dirname(tasks), "queue")
    if not os.path.isdir(queue):
        return
    folders = os.listdir(tasks)
    begun = [name for name in folders if any(one.isdigit() for one in os.listdir(os.path.join(tasks, name)))]
    kept = {*os.listdir(queue), *(name.partition("_")[0] for name in begun)}
    for base in {name.partition("_")[0] for name in folders} - kept:
        with contextlib.suppress(FileNotFoundError):
            if _is_old(os.path.join(tasks, base, "meta.json")):
                forget(tasks, [name for name in folders if name.partition("_")[0] == base])


def sweep(tasks: str) -> None:
    """Remove old code. Raises OSError or ValueError, with nothing removed, where it is not known what is used."""
    root = os.path.dirname(tasks)
    manifests, used = os.path.join(root, "manifests"), set(_used_manifests(tasks))
    there = set(os.listdir(manifests))
    old = {name for name in there - used if _MANIFEST.fullmatch(name) and _is_old(os.path.join(manifests, name))}
    blobs: set[str] = set()
    for name in there - old:
        with open(os.path.join(manifests, name), encoding="utf-8") as file:
            blobs.update(digest for _, _, digest, _ in json.load(file)["files"])
    for name in old:
        _remove_old(os.path.join(manifests, name))
    for folder, _, names in os.walk(os.path.join(root, "blobs")):
        for name in names:
            if name not in blobs and _BLOB.fullmatch(name):
                _remove_old(os.path.join(folder, name))


def _used_manifests(tasks: str) -> Iterable[str]:
    for name in os.listdir(tasks):
        with contextlib.suppress(FileNotFoundError), open(
            os.path.join(tasks, name, "job.json"), encoding="utf-8"
        ) as file:
            code = json.load(file).get("code")
            if code:
                yield os.path.basename(code["manifest"])


def _is_old(path: str) -> bool:
    return time.time() - os.stat(path).st_mtime > KEPT_SECONDS


def _remove_old(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if _is_old(path):
            os.unlink(path)


if __name__ == "__main__":
    forget(sys.argv[1], sys.stdin.read().split())
    with contextlib.suppress(OSError, ValueError, LookupError):  # there may be no code
        forget_unstarted(sys.argv[1])
        sweep(sys.argv[1])
