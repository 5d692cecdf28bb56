"""What a volume costs: at the start of a task, and given to one that runs."""

from __future__ import annotations

import sys
import time
from subprocess import run

import flow
from bench.figures import Figure, median, milliseconds
from bench.place import own_home


def measure(*, quick: bool) -> list[Figure]:
    """A volume for a running task, against a Python that does nothing; a task with one against a task without."""
    rounds = 3 if quick else 15
    with own_home():
        floor = median([milliseconds(lambda: run([sys.executable, "-c", "pass"], check=True)) for _ in range(rounds)])
        return [
            Figure("volume given to a running task, p50", _given(rounds), "ms", floor, "bare Python"),
            Figure("task with a volume, submit to result, p50", _started(rounds, {"/mnt/bench": "bench"}), "ms",
                   _started(rounds, None), "task without"),
        ]  # fmt: skip


def _given(rounds: int) -> float:
    names = [f"late-{number}" for number in range(rounds)]
    for name in names:
        flow.create_volume(1, name)
    task = flow.run("sleep 1000", upload_code=False)
    while task.refresh().status != "running":
        time.sleep(0.01)
    try:
        return median([milliseconds(lambda name=name: flow.mount_volume(name, task)) for name in names])  # type: ignore[misc]
    finally:
        task.cancel()
        task.wait(60)


def _started(rounds: int, volumes: dict[str, str] | None) -> float:
    client = flow.Flow()
    if volumes:
        client.create_volume(1, *volumes.values())
    return median(
        [milliseconds(lambda: client.run("true", upload_code=False, volumes=volumes).wait(60)) for _ in range(rounds)]
    )
