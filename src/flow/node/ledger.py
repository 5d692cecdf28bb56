"""Which steps of a task run now and what each has for itself: a file for each, locked for as long as the step lives.

Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import fcntl
import json
import os
from typing import Any, Callable, TextIO


def enter(folder: str, choose: Callable[[list[dict[str, Any]]], Any]) -> tuple[int, int, Any] | None:
    """The next step's number, the descriptor that keeps what it has, and that; None where `choose` found no room.

    `choose` is given what the living steps have, and returns what this one takes.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    with _locked(folder):
        taken = choose(_living(folder))
        if taken is None:
            return None
        number = _next_number(os.path.join(folder, "next"))
        path = os.path.join(folder, f"{number}.step")
        held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(held, fcntl.LOCK_EX)
        os.write(held, json.dumps({"pid": os.getpid(), **taken}).encode())
        return number, held, taken


def pids(folder: str) -> list[int]:
    """The `srun` of each living step."""
    if not os.path.isdir(folder):
        return []
    with _locked(folder):
        return [step["pid"] for step in _living(folder)]


def _locked(folder: str) -> TextIO:
    """A file whose closing ends the lock on the others."""
    lock = open(os.path.join(folder, "lock"), "a", encoding="utf-8")  # noqa: SIM115
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _living(folder: str) -> list[dict[str, Any]]:
    steps = []
    for name in os.listdir(folder):
        if not name.endswith(".step"):
            continue
        path = os.path.join(folder, name)
        with open(path, encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                steps.append(json.load(file))
            else:  # whoever held it is dead
                os.unlink(path)
    return steps


def _next_number(path: str) -> int:
    with open(path, "a+", encoding="utf-8") as file:
        file.seek(0)
        number = int(file.read() or 0)
        file.seek(0)
        file.truncate()
        file.write(str(number + 1))
    return number
