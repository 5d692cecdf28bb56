"""What the machine itself takes: the least that anything of the kind must cost."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

from bench.figures import median, milliseconds


def bare_python() -> None:
    """Start an interpreter and end it."""
    subprocess.run([sys.executable, "-c", "pass"], check=True)


@cache
def fork_exec_ms(rounds: int = 200) -> float:
    """Start `true` and wait for it; no shell, no pipe."""
    true = shutil.which("true") or "/bin/true"

    def once() -> None:
        os.waitpid(os.posix_spawn(true, ["true"], {}), 0)

    return median([milliseconds(once) for _ in range(rounds)])


def sqlite_commit_ms(folder: Path, rounds: int = 200) -> float:
    """One row, one commit that survives a power cut."""
    db = sqlite3.connect(folder / "floor.db", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE one (id INTEGER PRIMARY KEY, text TEXT)")
    samples = [milliseconds(lambda: db.execute("INSERT INTO one (text) VALUES ('x')")) for _ in range(rounds)]
    db.close()
    return median(samples)


def sqlite_rows_per_second(folder: Path, rows: int) -> float:
    """Rows with one index, in one durable commit."""
    db = sqlite3.connect(folder / "floor-rows.db", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE one (id INTEGER PRIMARY KEY, name TEXT UNIQUE, state TEXT)")

    def once() -> None:
        db.execute("BEGIN")
        db.executemany("INSERT INTO one (name, state) VALUES (?, 'queued')", ((f"x_{i}",) for i in range(rows)))
        db.execute("COMMIT")

    spent = milliseconds(once)
    db.close()
    return rows * 1000 / spent


def durable_file_ms(folder: Path, rounds: int = 100) -> float:
    """A small file and its name, both on disk: two fsyncs."""

    def once() -> None:
        handle = os.open(folder / "floor-file", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(handle, b"x" * 500)
        os.fsync(handle)
        os.close(handle)
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)

    return median([milliseconds(once) for _ in range(rounds)])


def stat_all(paths: Iterable[str]) -> Callable[[], None]:
    """Look at each file's status."""
    names = list(paths)

    def once() -> None:
        for name in names:
            os.stat(name)  # noqa: PTH116  # the floor is the call itself

    return once


def sha256_all(paths: Iterable[str]) -> Callable[[], None]:
    """Read each file and sum it."""
    names = list(paths)

    def once() -> None:
        for name in names:
            with open(name, "rb") as file:  # noqa: PTH123  # as above
                hashlib.sha256(file.read()).hexdigest()

    return once


def run_quietly(words: Sequence[str]) -> Callable[[], None]:
    """Run a command, its output thrown away."""

    def once() -> None:
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)

    return once
