"""From the call until the task is acknowledged, and until its result is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import flow
from bench.figures import Figure, median, milliseconds, p99
from bench.floors import durable_file_ms, fork_exec_ms, sqlite_commit_ms, sqlite_rows_per_second
from bench.place import end_scheduler, own_home, wait_until

ELEMENTS = 20_000


def measure_submit(*, quick: bool) -> list[Figure]:
    """`flow.run` of a small project that has not changed, behind a task that holds the only CPU."""
    with own_home(FLOW_LOCAL_CPUS="1") as home, machine_held():
        for _ in range(5):
            flow.run("true")
        spent = [milliseconds(lambda: flow.run("true")) for _ in range(50 if quick else 300)]
        commit, file = sqlite_commit_ms(home), durable_file_ms(home)
    return [
        Figure("submit acknowledged, p50", median(spent), "ms", commit, "SQLite commit", aim=3, key="submit"),
        Figure("submit acknowledged, p99", p99(spent), "ms", file, "durable file", aim=15),
    ]


def measure_array(*, quick: bool) -> list[Figure]:
    """One array of many elements, acknowledged; and one that waits for it, element for element."""
    alone, after = [], []
    with own_home(FLOW_LOCAL_CPUS="1") as home, machine_held():
        for _ in range(2 if quick else 5):
            alone.append(milliseconds(_array))
            after.append(milliseconds(lambda: _array(depends_on="@last:corresponding")))
        floor = sqlite_rows_per_second(home, ELEMENTS)
    rates = [ELEMENTS * 1000 / median(spent) for spent in (alone, after)]
    names = (f"array of {ELEMENTS:,} acknowledged", "  one that waits for it, element for element")
    return [
        Figure(name, rate, "tasks/s", floor, "SQLite rows", aim=20_000) for name, rate in zip(names, rates, strict=True)
    ]


def _array(**fields: Any) -> None:
    flow.run("true", array=f"1-{ELEMENTS}", upload_code=False, **fields)


def measure_result(*, quick: bool) -> list[Figure]:
    """`flow.run("true").wait()`, with the scheduler there and without."""
    with own_home() as home:
        cold = []
        for _ in range(2 if quick else 5):
            end_scheduler(home)
            cold.append(milliseconds(_one))
        _one()
        warm = [milliseconds(_one) for _ in range(30 if quick else 200)]
        floor = fork_exec_ms()
    return [
        Figure("submit to result, p50", median(warm), "ms", floor, "fork+exec", aim=40, key="result"),
        Figure("submit to result, p99", p99(warm), "ms", floor, "fork+exec", aim=120),
        Figure("submit to result, no scheduler yet", median(cold), "ms", floor, "fork+exec"),
    ]


def _one() -> None:
    status = flow.run("true").wait(60)
    if status != "completed":
        raise AssertionError(status)


@contextmanager
def machine_held() -> Iterator[None]:
    """A task holds the only CPU, so that what is submitted stays queued. `own_home` ends it."""
    holder = flow.run("sleep 3600", upload_code=False, priority=100)
    wait_until(lambda: holder.refresh().status == "running")
    yield
