"""How many tasks a second this machine gets through, a process each, and whether a long queue changes that."""

from __future__ import annotations

import os
import time
from pathlib import Path

import flow
from bench.figures import Figure
from bench.floors import fork_exec_ms
from bench.place import own_home

TASKS = 1_000
QUEUED = 100_000


def measure(*, quick: bool) -> list[Figure]:
    """An array of trivial tasks, alone; then the same with `QUEUED` others there that may run and come after it."""
    with own_home() as home:
        flow.run("true", upload_code=False).wait(60)
        rate, cpu = max(_run(home) for _ in range(1 if quick else 3))
        figures = [
            _figure(f"{TASKS:,} trivial tasks", rate),
            Figure("  processor time of one of them", cpu, "ms", fork_exec_ms(), "fork+exec"),
        ]
        if not quick:
            others = flow.run("true", array=f"1-{QUEUED}", upload_code=False, priority=-100)
            figures.append(_figure(f"{TASKS:,} trivial tasks before {QUEUED:,} queued", max(_run(home), _run(home))[0]))
            others.cancel()
    return figures


def _figure(what: str, rate: float) -> Figure:
    return Figure(what, rate, "tasks/s", 1000 / fork_exec_ms(), "fork+exec", aim=250, key="throughput")


def _run(home: Path) -> tuple[float, float]:
    """Tasks a second, from the submission to the end of the last one as its user sees it; milliseconds of CPU each."""
    scheduler = int((home / "local" / "scheduler.lock").read_text())
    before, begin = _cpu_seconds(scheduler), time.perf_counter()
    task = flow.run("true", array=f"1-{TASKS}", upload_code=False)
    status = task.wait(600)
    spent = time.perf_counter() - begin
    if status != "completed":
        raise AssertionError(f"{status}: {task.reason}")
    return TASKS / spent, (_cpu_seconds(scheduler) - before) * 1000 / TASKS


def _cpu_seconds(pid: int) -> float:
    """What a process, its children that ended, and the runners below it have used; from /proc, so 0 but on Linux."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") + sum(_cpu_seconds(int(child)) for child in children)
