"""Stories of a fleet that fails, and races for its GPUs: `python -m bench.ssh_faults [--count 100] [--races 1000]`.

Exits with 1 where the promise was broken; the seed of each violation tells much the same story again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.support.fleet import Fleet
from tests.support.ssh_faults import race, run_story


def main() -> int:
    """Tell the stories one after the other, then run the races; a line for each violation, then the verdicts."""
    parser = argparse.ArgumentParser(prog="python -m bench.ssh_faults", description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="how many stories")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--races", type=int, default=1000, help="how many races")
    given = parser.parse_args()
    violations, faults, tasks = [], Counter[str](), 0
    with tempfile.TemporaryDirectory(prefix="flow-faults-") as folder, Fleet(Path(folder) / "fleet") as fleet:
        fleet.boot_all("gpu1", "gpu2", "gpu3", "gpu4", gpus=4)
        for seed in range(given.first_seed, given.first_seed + given.count):
            verdict = run_story(seed, fleet, Path(folder) / f"story-{seed}")
            faults.update(verdict.kills)
            tasks += verdict.tasks
            for violation in verdict.violations:
                violations.append(violation)
                print(f"seed {seed}: {violation}", flush=True)
        each = ", ".join(f"{what} {count}" for what, count in sorted(faults.items()))
        print(f"{given.count} stories, {tasks} tasks, {faults.total()} faults ({each}): {len(violations)} violations")
        found = race(given.races, fleet, Path(folder) / "race") if given.races else []
    print("\n".join([*found, f"{given.races} races of three clients for the last GPUs: {len(found)} violations"]))
    return int(bool(violations or found))


if __name__ == "__main__":
    sys.exit(main())
