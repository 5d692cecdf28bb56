"""Many stories of killed processes: `python -m bench.faults [--count 300] [--first-seed 0]`, and the verdict on them.

Exits with 1 where the promise was broken; the seed of each violation tells its story again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.support.faults import Verdict, run_story

VICTIMS = ("scheduler", "runner", "run", "follower")


def main() -> int:
    """Tell the stories one after the other; a line for each violation, then the verdict."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="how many stories")
    parser.add_argument("--first-seed", type=int, default=0)
    given = parser.parse_args()
    verdicts = []
    for seed in range(given.first_seed, given.first_seed + given.count):
        with tempfile.TemporaryDirectory(prefix="flow-faults-", ignore_cleanup_errors=True) as folder:
            verdict = run_story(seed, Path(folder).resolve() / "story")
        verdicts.append(verdict)
        for violation in verdict.violations:
            print(f"seed {seed}: {violation}", flush=True)
    print(summary(verdicts))
    return int(any(verdict.violations for verdict in verdicts))


def summary(verdicts: list[Verdict]) -> str:
    """`300 stories, 2300 tasks, 900 kills (scheduler 300, …): 0 violations`."""
    kills = Counter(kill for verdict in verdicts for kill in verdict.kills)
    each = ", ".join(f"{victim} {kills[victim]}" for victim in VICTIMS)
    tasks = sum(verdict.tasks for verdict in verdicts)
    wrong = sum(len(verdict.violations) for verdict in verdicts)
    return f"{len(verdicts)} stories, {tasks} tasks, {kills.total()} kills ({each}): {wrong} violations"


if __name__ == "__main__":
    sys.exit(main())
