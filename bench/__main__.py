"""`python -m bench [NAME …] [--quick] [--peers] [--package] [--slurm] [--docker] [--fleet] [--mithril]`: one table.

All of it takes some minutes and a quiet machine; --quick is for seeing that it works. Figures are medians where nothing
else is said; a ratio is to the floor that was measured beside it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping

from bench import (
    boot_size,
    bundle,
    functions,
    logs,
    mounts,
    package,
    s3,
    slurm_words,
    startup,
    status,
    submit,
    throughput,
)
from bench.figures import Figure
from bench.peers import measure_peers
from bench.place import remove_homes
from bench.table import table

MEASURES: dict[str, Callable[..., list[Figure]]] = {
    "startup": startup.measure,
    "submit": submit.measure_submit,
    "result": submit.measure_result,
    "array": submit.measure_array,
    "remote": functions.measure_remote,
    "warm": functions.measure_warm,
    "throughput": throughput.measure,
    "status": status.measure,
    "replay": logs.measure_replay,
    "follow": logs.measure_follow,
    "bundle": bundle.measure,
    "boot": boot_size.measure,
    "mounts": mounts.measure,
    "s3": s3.measure,
    "script": slurm_words.measure,
}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"only these: {', '.join(MEASURES)}, or what an option adds"
    )
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing with 100,000 tasks")
    parser.add_argument(
        "--peers", action="store_true", help="also submitit (installed in .venv-bench), and Ray if here"
    )
    parser.add_argument("--package", action="store_true", help="also install the package, to see what that takes")
    parser.add_argument("--slurm", action="store_true", help="also a Slurm cluster on this machine, as root")
    parser.add_argument("--docker", action="store_true", help="also start images on machines, as root: 1 minute, 6 GB")
    parser.add_argument("--fleet", action="store_true", help="also machines that are reached by ssh, as root")
    parser.add_argument("--mithril", action="store_true", help="also the stand-in for the Mithril cloud, as root")
    asked = parser.parse_args()
    known = {**MEASURES, **_asked_for(asked)}
    unknown = set(asked.names) - set(known)
    if unknown:
        parser.error(f"no measure {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    chosen = {name: known[name] for name in asked.names or known}
    try:
        print(_measured(chosen, quick=asked.quick, with_peers=asked.peers))
    finally:
        remove_homes()


def _asked_for(asked: argparse.Namespace) -> dict[str, Callable[..., list[Figure]]]:
    """Those that need more than Python, which options ask for; most need what the tests need."""
    found: dict[str, Callable[..., list[Figure]]] = {}
    if asked.package:
        found["package"] = package.measure
    if asked.slurm:
        from bench import slurm

        found["slurm"] = slurm.measure
    if asked.docker:
        from bench import docker_cache

        found["docker"] = docker_cache.measure
    if asked.fleet:
        from bench import dev, fleet, logs_afar, sync

        found.update(dev=dev.measure, sync=sync.measure, logs=logs_afar.measure)
        found.update(gang=fleet.measure_gang, hosts=fleet.measure_hosts)
    if asked.mithril:
        from bench import mithril

        found["mithril"] = mithril.measure
    return found


def _measured(chosen: Mapping[str, Callable[..., list[Figure]]], *, quick: bool, with_peers: bool) -> str:
    figures: list[Figure] = []
    for name, measure in chosen.items():
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        figures += measure(quick=quick)
    return table(figures, measure_peers() if with_peers else {})


if __name__ == "__main__":
    main()
