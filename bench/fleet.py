"""Many machines that are reached by ssh: a task on 16 of them started, and the state of 100 of them shown."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support.fleet import Fleet

import flow
from bench.figures import Figure, in_turns, median
from bench.floors import run_quietly
from bench.machines import bare, connected, machines
from bench.place import wait_until
from bench.startup import flow_words

NODES, HOSTS = 16, 100


def measure_gang(*, quick: bool) -> list[Figure]:
    """From the call of `flow.run` until the command of the last node runs."""
    names = [f"gpu{number}" for number in range(NODES)]
    with machines(*names) as fleet:
        ours = [_start_ms(fleet, NODES) for _ in range(3 if quick else 9)][1:]
        alone = [_start_ms(fleet, 1) for _ in range(3 if quick else 9)][1:]
        spent = in_turns(len(ours), anew=_all_at_once(bare(fleet), names), kept=_all_at_once(connected(fleet), names))
    what = f"task on {NODES} machines, until all run"
    return [
        Figure(what, median(ours), "ms", median(spent["anew"]), f"{NODES} ssh"),
        Figure(what, median(ours), "ms", median(spent["kept"]), f"{NODES} ssh, connected"),
        Figure("task on 1 of them", median(alone), "ms"),
    ]


def _start_ms(fleet: Fleet, nodes: int) -> float:
    begin = time.time()
    task = flow.run("date +%s.%N >~/began; exec sleep 3600", num_instances=nodes, upload_code=False)
    began: list[Path] = []

    def all_run() -> bool:
        began[:] = [file for file in files if file.exists() and file.read_text()]
        return len(began) == nodes

    files = [host.folder / "root/root/began" for host in fleet.hosts.values()]
    wait_until(all_run)
    spent = max(float(file.read_text()) for file in began) - begin
    task.cancel()
    task.wait(60)
    for file in began:
        file.unlink()
    return spent * 1000


def measure_hosts(*, quick: bool) -> list[Figure]:
    """`flow status` while each of the machines runs a task."""
    names = [f"h{number}" for number in range(HOSTS)]
    with machines(*names) as fleet:
        flow.run("sleep 3600", array=f"1-{HOSTS}", upload_code=False)
        status = run_quietly([*flow_words(), "status"])
        status()
        spent = in_turns(
            3 if quick else 7,
            ours=status,
            anew=_all_at_once(bare(fleet), names),
            kept=_all_at_once(connected(fleet), names),
        )
    what = f"flow status, tasks on {HOSTS} machines"
    return [
        Figure(what, median(spent["ours"]), "ms", median(spent["anew"]), f"{HOSTS} ssh"),
        Figure(what, median(spent["ours"]), "ms", median(spent["kept"]), f"{HOSTS} ssh, connected"),
    ]


def _all_at_once(ssh: Sequence[str], names: Sequence[str]) -> Callable[[], None]:
    """`ssh NAME true`, all started before any is waited for."""

    def once() -> None:
        running = [subprocess.Popen([*ssh, name, "true"], stderr=subprocess.DEVNULL) for name in names]
        codes = [one.wait() for one in running]
        if any(codes):
            raise AssertionError("a machine does not answer")

    return once
