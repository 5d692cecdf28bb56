"""Processes that outlive the one that starts them, which lets go of those that end before it."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO

_started: list[int] = []  # what this process started, until it was seen to have ended


def start_python(
    words: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str],
    stdin: IO[str] | None = None,
    pass_fds: Collection[int] = (),
) -> None:
    """Start this Python with these words, away from this process and its terminal. Raises OSError.

    log: what it says is written to its end.
    """
    import subprocess  # a scheduler takes what it imports into every runner

    with log.open("ab") as said:
        process = subprocess.Popen(
            [sys.executable, *words],
            stdin=stdin or subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            cwd="/",
            env=env,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    process.returncode = 0  # it outlives us: Python is not to warn that nobody waits for it
    reap()
    _started.append(process.pid)


def reap() -> None:
    """Let go of what this process started and what has ended."""
    for pid in list(_started):
        try:
            has_ended = os.waitpid(pid, os.WNOHANG)[0] != 0
        except ChildProcessError:  # of the process that forked us, or the program reaps all its children
            has_ended = True
        if has_ended:
            _started.remove(pid)
