"""From Enter to the first line of `flow dev -c`, beside bare ssh and `docker run`, on a machine of a fleet: as root."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

from tests.support.containers import IMAGE

from bench.figures import Figure, median
from bench.machines import bare, connected, machines

_AIM_MS = 300  # over what is bare
_FLOW = (sys.executable, "-m", "flow", "dev", "-c", "echo first")


def measure(*, quick: bool) -> list[Figure]:
    """On one machine with a Docker of its own, the code being as it was."""
    with machines("box") as fleet:
        fleet.hosts["box"].start_docker()
        _first_line(_FLOW)  # starts it
        ssh, shared = (*bare(fleet), "box"), (*connected(fleet), "box")
        in_docker = f"docker run --rm -i {IMAGE} echo first"
        image = (*_FLOW, "--image", IMAGE)
        return [
            _figure("dev -c", _FLOW, (*ssh, "echo first"), "ssh", quick=quick),
            _figure("dev -c", _FLOW, (*shared, "echo first"), "ssh, connected", quick=quick),
            _figure("dev -c --image", image, (*ssh, in_docker), "ssh docker run", quick=quick),
            _figure("dev -c --image", image, (*shared, in_docker), "the same, connected", quick=quick),
        ]


def _figure(what: str, ours: Sequence[str], bare: Sequence[str], bare_name: str, *, quick: bool) -> Figure:
    """One after the other, so that both see the same machine."""
    samples = [(_first_line(ours), _first_line(bare)) for _ in range(4 if quick else 21)][1:]
    mine, its = (median(column) for column in zip(*samples, strict=True))
    return Figure(what, mine, "ms", floor=its, floor_name=bare_name, aim=its + _AIM_MS)


def _first_line(argv: Sequence[str]) -> float:
    """Milliseconds to it."""
    begin = time.perf_counter()
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout and process.stdout.readline() == b"first\n"
        return (time.perf_counter() - begin) * 1000
