"""A project of 10,000 files brought to a machine over a connection that is kept, beside rsync over the same."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.fleet import Fleet

from bench.bundle import BYTES, make_project
from bench.figures import Figure, in_turns, median, milliseconds
from bench.floors import run_quietly
from bench.machines import connected, machines
from bench.place import wait_until
from bench.startup import flow_words
from flow.dev import DevMachine

_OVER_A_ROUND_TRIP_MS = 60  # where nothing changed
_FAR_MS = 100  # there and back


def measure(*, quick: bool) -> list[Figure]:
    """All of it new, one file changed, and nothing, as `flow dev` does it before each command."""
    with machines("box") as fleet:
        task = DevMachine().start()
        wait_until(lambda: task.refresh().status == "running")
        paths = make_project(Path.cwd())
        cold = in_turns(1, ours=_sync, rsync=_rsync(fleet, "cold"))
        rounds = 2 if quick else 5
        for number in range(1, rounds):
            _change(paths)
            for name, act in {"ours": _sync_into(f"cold{number}"), "rsync": _rsync(fleet, f"cold{number}")}.items():
                cold[name].append(milliseconds(act))
        figures = [_figure("cold", cold, "rsync")]
        _settle()
        upload = run_quietly([*flow_words(), "upload-code", task.task_id])
        acts = {"ours": _sync, "command": upload, "rsync": _rsync(fleet, "cold"), "trip": _trip(fleet)}
        figures += _again(acts, paths[0], "", rounds=3 * rounds)
        _settle()
        fleet.hosts["box"].slow(_FAR_MS)
        figures += _again(acts, paths[0], f", {_FAR_MS} ms away", rounds=rounds)
    return figures


def _again(acts: dict[str, Callable[[], object]], one: Path, where: str, *, rounds: int) -> list[Figure]:
    unchanged = in_turns(rounds, **acts)
    changed: dict[str, list[float]] = {name: [] for name in acts}
    for _ in range(rounds):
        for name, act in acts.items():
            _change([one])
            changed[name].append(milliseconds(act))
    trip = median(unchanged["trip"])
    return [
        _figure(f"one changed{where}", changed, "rsync"),
        _figure(f"unchanged{where}", unchanged, "rsync"),
        _figure(f"unchanged{where}", unchanged, "trip", aim=trip + _OVER_A_ROUND_TRIP_MS),
        _figure(f"unchanged{where}, `flow upload-code`", {**unchanged, "ours": unchanged["command"]}, "rsync"),
    ]


def _figure(what: str, spent: dict[str, list[float]], floor: str, *, aim: float | None = None) -> Figure:
    names = {"rsync": "rsync", "trip": "ssh true"}
    ours = median(spent["ours"])
    return Figure(f"sync of 10,000 files, {what}", ours, "ms", median(spent[floor]), names[floor], aim)


def _sync() -> None:
    _sync_into("")()


def _sync_into(environment: str) -> Callable[[], None]:
    """A client that knows nothing yet finds the machine and brings the project into that workspace."""

    def once() -> None:
        machine = DevMachine(environment=environment)
        machine.read_ahead()
        machine.start()
        machine.sync()

    return once


def _rsync(fleet: Fleet, folder: str) -> Callable[[], None]:
    ssh = shlex.join(connected(fleet))
    return run_quietly(["rsync", "-a", "--delete", "-e", ssh, "./", f"box:/root/{folder}/"])


def _trip(fleet: Fleet) -> Callable[[], None]:
    return run_quietly([*connected(fleet), "box", "true"])


def _change(paths: list[Path]) -> None:
    for path in paths:
        path.write_bytes(os.urandom(BYTES))


def _settle() -> None:
    """What was written a moment ago is read once more before it is trusted."""
    time.sleep(2)
    _sync()
