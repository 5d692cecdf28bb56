"""Stories of killed clients on the stand-in Mithril cloud: `python -m bench.mithril_faults [--count 200]`.

Exits with 1 where the promise was broken; the seed of each violation tells much the same story again.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.support.aws import aws_server
from tests.support.mithril_cloud import serve
from tests.support.mithril_faults import run_story


def main() -> int:
    """Tell the stories one after the other; a line for each violation, then the verdict."""
    parser = argparse.ArgumentParser(prog="python -m bench.mithril_faults", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="how many stories")
    parser.add_argument("--first-seed", type=int, default=0)
    given = parser.parse_args()
    violations, faults, tasks = [], Counter[str](), 0
    with (
        tempfile.TemporaryDirectory(prefix="flow-faults-") as folder,
        serve(Path(folder) / "cloud") as cloud,
        aws_server(Path(folder), host=cloud.gateway) as aws,
    ):
        for seed in range(given.first_seed, given.first_seed + given.count):
            verdict = run_story(seed, cloud, aws, Path(folder) / f"story-{seed}")
            cloud.reset()
            aws.reset()
            faults.update(re.split(" |:", one)[0] for one in verdict.kills)
            tasks += verdict.tasks
            for violation in verdict.violations:
                violations.append(violation)
                print(f"seed {seed}: {violation}  {verdict.kills}", flush=True)
    each = ", ".join(f"{what} {count}" for what, count in sorted(faults.items()))
    print(f"{given.count} stories, {tasks} tasks, {faults.total()} faults ({each}): {len(violations)} violations")
    return int(bool(violations))


if __name__ == "__main__":
    sys.exit(main())
