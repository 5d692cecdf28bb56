"""A project of 10,000 files, taken for the first time and taken again."""

from __future__ import annotations

import os
from pathlib import Path

from bench.figures import Figure, in_turns, median, milliseconds
from bench.floors import sha256_all, stat_all
from bench.place import own_home
from flow.blobs import store_lock
from flow.bundle import Bundle, make_bundle

FILES, FOLDERS, BYTES = 10_000, 100, 4_096


def measure(*, quick: bool) -> list[Figure]:
    """All of it read and stored; then nothing changed."""
    with own_home() as home:
        paths = [str(path) for path in make_project(Path.cwd())]
        home.mkdir()
        cold = milliseconds(lambda: take(home))
        while take(home).new_files or milliseconds(lambda: take(home)) > cold:
            pass
        take(home)  # what was written a moment ago is read once more before it is trusted
        spent = in_turns(5 if quick else 15, stat=stat_all(paths), sums=sha256_all(paths), unchanged=lambda: take(home))
    return [
        Figure("bundle of 10,000 files, cold", cold, "ms", median(spent["sums"]), "SHA-256"),
        Figure(
            "bundle of 10,000 files, unchanged", median(spent["unchanged"]), "ms", median(spent["stat"]), "stat", 60
        ),
    ]


def make_project(root: Path) -> list[Path]:
    """Files of random bytes, 4 kB each, in folders of 100."""
    paths = []
    for folder in range(FOLDERS):
        (root / f"part{folder}").mkdir()
        for number in range(FILES // FOLDERS):
            path = root / f"part{folder}" / f"data{number}.bin"
            path.write_bytes(os.urandom(BYTES))
            paths.append(path)
    return paths


def take(home: Path) -> Bundle:
    """As `flow run` does it."""
    with store_lock(home, shared=True):
        return make_bundle(Path.cwd(), home)
