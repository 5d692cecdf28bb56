"""Output of a task on a machine that is reached by ssh: followed line by line and read whole, beside ssh alone."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence

from tests.support.fleet import Fleet

import flow
from bench.figures import Figure, in_turns, median
from bench.floors import run_quietly
from bench.logs import TICK, WRITE
from bench.machines import connected, machines
from bench.place import wait_until
from bench.startup import flow_words
from flow.task import Task

_OVER_A_ROUND_TRIP_MS = 100
_FAR_MS = 100  # there and back


def measure(*, quick: bool) -> list[Figure]:
    """The clock of the machine is that of this one."""
    count, lines = (150, 100_000) if quick else (300, 1_000_000)
    with machines("box") as fleet:
        figures = _followed(fleet, count, "")
        fleet.hosts["box"].slow(_FAR_MS)
        figures += _followed(fleet, count, f", {_FAR_MS} ms away")
        fleet.hosts["box"].slow(0)
        return [*figures, _read(fleet, lines, rounds=3 if quick else 7)]


def _followed(fleet: Fleet, count: int, where: str) -> list[Figure]:
    """From line to screen, each of the two with a task of its own, one after the other."""
    task = _running(TICK, count)
    ours = _latencies([*flow_words(), "logs", "-f", task.task_id], count)
    task = _running(TICK, count)
    its = _latencies([*connected(fleet), "box", f"tail -n +1 -f {_file(task)}"], count)
    trip = median(in_turns(5, trip=run_quietly([*connected(fleet), "box", "true"]))["trip"])
    aim = trip + _OVER_A_ROUND_TRIP_MS
    return [Figure(f"line written to `flow logs -f`{where}", ours, "ms", its, "ssh tail -f", aim)]


def _latencies(argv: Sequence[str], count: int) -> float:
    """The median in milliseconds, of lines that were not written while the command started."""
    spent = []
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as command:
        for line in command.stdout or ():
            spent.append((time.time_ns() - int(line)) / 1e6)
            if len(spent) == count:
                command.terminate()
    return median(spent[count // 2 :])


def _read(fleet: Fleet, lines: int, *, rounds: int) -> Figure:
    """All that a task has written so far, which still runs."""
    task = _running(WRITE + "\nsys.stdout.flush()\nimport time; time.sleep(3600)", lines)
    cat = [*connected(fleet), "box", f"cat {_file(task)}"]
    logs = [*flow_words(), "logs", task.task_id]
    wait_until(lambda: _output(cat).count(b"\n") == lines)
    written = _output(cat)
    if _output(logs) != written:
        raise AssertionError("`flow logs` gives something else than was written")
    spent = in_turns(rounds, cat=run_quietly(cat), logs=run_quietly(logs))
    task.cancel()
    rate, floor = (len(written) / 1000 / median(spent[name]) for name in ("logs", "cat"))
    return Figure(f"flow logs, {lines:,} lines of a machine", rate, "MB/s", floor, "ssh cat")


def _output(argv: Sequence[str]) -> bytes:
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout


def _running(code: str, lines: int) -> Task:
    task = flow.run(["python3", "-c", code.replace("LINES", str(lines))])
    wait_until(lambda: task.refresh().status == "running")
    return task


def _file(task: Task) -> str:
    return f".flow-host/tasks/{task}/1/0/stdout.log"
