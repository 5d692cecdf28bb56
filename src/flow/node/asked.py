"""What is asked of a running rank: lines in its folder's `asked`, and SIGUSR1 to its runner, which reads them.

`requeue` stops the rank, for its task to run again, and so does `preempted`, which nobody may refuse; `signal NUMBER
command|steps|all` passes a signal on. A signal that
comes to a runner of another folder by mistake finds nothing there. Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flow.node.runner import Rank

REQUEUE = "requeue"
_WHY = {REQUEUE: "requeued", "preempted": "its machine was taken back"}
FILE = "asked"


def ask(folder: str, line: str) -> None:
    """Leave a line in a task folder; its runner is then to be sent SIGUSR1. From inside a task, too."""
    fd = os.open(os.path.join(folder, FILE), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, line.encode() + b"\n")
    finally:
        os.close(fd)


def asked(folder: str) -> list[str]:
    """The lines that were left in a task folder so far."""
    try:
        with open(os.path.join(folder, FILE), encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []


def why_requeued(lines: list[str]) -> str:
    """The reason where some line asks for the task to run again; else ""."""
    return next((_WHY[line] for line in lines if line in _WHY), "")


def hear(rank: Rank) -> None:
    """Do what was asked since the last time."""
    lines = asked(rank.folder)
    fresh, rank.heard = lines[rank.heard :], len(lines)
    for line in fresh:
        words = line.split()
        if line in _WHY and (line != REQUEUE or rank.task.get("may_requeue", True)):
            rank.stop(REQUEUE, _WHY[line])
            is_asked = line == REQUEUE and (rank.stopped is None or rank.stopped[0] != "cancel")
            if is_asked:  # also after its end, or that of its time
                rank.stopped = (REQUEUE, _WHY[line])
        elif len(words) == 3 and words[0] == "signal" and words[1].isdigit() and int(words[1]) < signal.NSIG:
            pass_on(rank, int(words[1]), words[2])


def pass_on(rank: Rank, number: int, to: str) -> None:
    """Send a signal to the command's group, to the command alone, or to the steps that it started."""
    found = rank.beside("processes")
    if not rank.processes.pid or rank.processes.wait_status is not None:
        return
    if to == "all" or rank.command is not rank.processes:  # a container's engine tells the command only
        rank.command.send(number)
    elif to == "command":
        found.send(rank.processes.pid, number)
    else:
        for pid in found.descendants():
            if found.has_variable(pid, b"SLURM_STEP_ID="):
                found.send(pid, number)
