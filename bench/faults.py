"""Many stories of what fails, and the verdict on them: `python -m bench.faults [--on local|ssh|mithril] [--count N]`.

local: processes are killed. ssh: hosts and links of a fleet fail, too; then clients race for its last GPUs. mithril:
clients are killed while the API of the stand-in cloud fails.
Exits with 1 where the promise was broken; the seed of each violation tells much the same story again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import faults, mithril_faults, ssh_faults
from tests.support.aws import aws_server
from tests.support.fleet import Fleet
from tests.support.mithril_cloud import serve
from tests.support.story import Verdict

COUNTS = {"local": 300, "ssh": 100, "mithril": 200}


def main() -> int:
    """Tell the stories one after the other, then run the races; a line for each violation, then the verdicts."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=__doc__)
    parser.add_argument("--on", choices=COUNTS, default="local", help="where tasks run")
    parser.add_argument("--count", type=int, help=f"how many stories; {COUNTS}")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--races", type=int, default=1000, help="how many races; of ssh only")
    given = parser.parse_args()
    count = COUNTS[given.on] if given.count is None else given.count
    with tempfile.TemporaryDirectory(prefix="flow-faults-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        if given.on == "local":
            return tell(count, given.first_seed, folder, faults.run_story)
        if given.on == "mithril":
            with on_mithril(folder) as run_story:
                return tell(count, given.first_seed, folder, run_story)
        with Fleet(folder / "fleet") as fleet:
            fleet.boot_all("gpu1", "gpu2", "gpu3", "gpu4", gpus=4)
            is_broken = tell(count, given.first_seed, folder, lambda *one: ssh_faults.run_story(*one, fleet))
            return is_broken | run_races(given.races, folder, fleet)


def tell(count: int, first: int, folder: Path, run_story: Callable[[int, Path], Verdict]) -> int:
    """Tell so many, and what became of all: `300 stories, 2300 tasks, 900 faults (run 300, …): 0 violations`."""
    kinds, tasks, violations = Counter[str](), 0, 0
    for seed in range(first, first + count):
        verdict = run_story(seed, folder / "story")
        shutil.rmtree(folder / "story", ignore_errors=True)
        kinds.update(one.partition(":")[0] for one in verdict.kills)
        tasks += verdict.tasks
        violations += len(verdict.violations)
        for violation in verdict.violations:
            print(f"seed {seed}: {violation}  {verdict.kills}", flush=True)
    each = ", ".join(f"{what} {number}" for what, number in sorted(kinds.items()))
    print(f"{count} stories, {tasks} tasks, {kinds.total()} faults ({each}): {violations} violations", flush=True)
    return int(violations > 0)


@contextmanager
def on_mithril(folder: Path) -> Iterator[Callable[[int, Path], Verdict]]:
    """Each story has a cloud that is as new."""
    with serve(folder / "cloud") as cloud, aws_server(folder, host=cloud.gateway) as aws:

        def run_story(seed: int, story: Path) -> Verdict:
            verdict = mithril_faults.run_story(seed, story, cloud, aws)
            cloud.reset()
            aws.reset()
            return verdict

        yield run_story


def run_races(count: int, folder: Path, fleet: Fleet) -> int:
    """Three clients for the last GPUs, so often."""
    found = ssh_faults.race(count, fleet, folder / "race") if count else []
    print("\n".join([*found, f"{count} races of three clients for the last GPUs: {len(found)} violations"]))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
