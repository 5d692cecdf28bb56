"""Processes that die by SIGKILL at a chosen line of Flow's own code: every crash point can be reached, and again.

Run as a program:
- `doom.py client N WORDS…` is the command line `flow WORDS…`, dead before its N-th line; `NAME:N`: counted from where
  it first comes to the function of that name.
- `doom.py attendant N` sees to the tasks of FLOW_HOME, dead before its N-th line, or at `NAME:N`.
- `doom.py scheduler HOME FOLDER PLAN` serves a queue. PLAN is JSON: {"scheduler": N, "runners": [N, …], "cpus": C},
  null where one is to live, runners in the order in which they are forked.
Lines are counted in the functions of `flow`, not while it is loaded. Each death is told beforehand: who and where, a
line in the file that DEATHS names.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any


class Doom:
    """Counts lines of this process from now on, and kills it before the one at which it is to die."""

    def __init__(self, who: str, root: Path, line: int | None, function: str = "") -> None:
        self.who = who
        self.root = f"{root}{os.sep}"
        self.left = line
        self.awaited = function

    def begin(self) -> None:
        """Count from here; without a line to die at, nothing is watched."""
        sys.settrace(None if self.left is None else self._call)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if code.co_name == "<module>" or not code.co_filename.startswith(self.root):
            return None
        if code.co_name == self.awaited:
            self.awaited = ""
        return self._line

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and self.left is not None and not self.awaited:
            self.left -= 1
            if self.left < 0:
                self._die(f"{frame.f_code.co_filename.removeprefix(self.root)}:{frame.f_lineno}")
        return self._line

    def _die(self, where: str) -> None:
        deaths = os.open(os.environ["DEATHS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(deaths, f"{self.who} {where}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)


def client(where: str, words: list[str]) -> None:
    """A `flow` command that dies."""
    from flow.cli import main

    _doom("run", where).begin()
    sys.argv[:] = ["flow", *words]
    main()


def attendant(where: str) -> None:
    """An attendant that dies."""
    from flow.attendant import main

    _doom("attendant", where).begin()
    main()


def _doom(who: str, where: str) -> Doom:
    import flow

    function, _, line = where.rpartition(":")
    return Doom(who, Path(flow.__file__).parent, int(line), function)


def scheduler(home: Path, folder: Path, plan: dict[str, Any]) -> None:
    """A scheduler that dies, and whose runners do; each is forked with its own count."""
    import flow
    from flow.durable import take_lock
    from flow.providers.local import scheduler as module

    starting = take_lock(folder / "start.lock", wait_seconds=5)
    if starting is None:
        return
    root = Path(flow.__file__).parent
    runners = iter(plan["runners"])
    upcoming: list[int | None] = [None]

    def before_fork() -> None:
        upcoming[0] = next(runners, None)

    def in_child() -> None:
        nonlocal runners
        runners = iter(())  # what a runner forks is not doomed, it is to notice
        Doom("runner", root, upcoming[0]).begin()

    os.register_at_fork(before=before_fork, after_in_child=in_child)
    Doom("scheduler", root, plan["scheduler"]).begin()
    module.run(home, folder, starting, cpus=plan["cpus"])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
    if sys.argv[1] == "client":
        client(sys.argv[2], sys.argv[3:])
    elif sys.argv[1] == "attendant":
        attendant(sys.argv[2])
    else:
        scheduler(Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4]))
