"""How long it takes to read a Slurm script: its options, their values, the fields of the task."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench.figures import Figure, in_turns, median
from flow.slurm.script import read_slurm_script

_OPTIONS = (
    "--job-name=train", "--nodes=2-4", "--ntasks=8", "--ntasks-per-node=4", "--cpus-per-task=2", "--mem-per-cpu=2G",
    "--time=1-12:00:00", "--gpus-per-node=a100:4", "--array=0-99:4%8", "--dependency=afterok:1:2,afterany:3",
    "--output=logs/%x-%A_%a.out", "--error='logs/%x-%A_%a.err'", "--export=ALL,RATE=0.1", "--signal=B:USR1@90",
    "--partition=gpu --account=lab --qos=high", "--mail-type=END,FAIL --requeue  # and so on",
)  # fmt: skip


def measure(*, quick: bool) -> list[Figure]:
    """A script of twenty options and 300 lines."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "job.sh")
        lines = ["#!/bin/bash", *(f"#SBATCH {one}" for one in _OPTIONS), "", *(f"echo {n}" for n in range(280))]
        script.write_text("\n".join(lines))
        spent = in_turns(
            100 if quick else 1000,
            file=lambda: script.read_text().splitlines(),
            script=lambda: read_slurm_script(script, {}),
        )
    floor = median(spent["file"])
    return [Figure("read a Slurm script of 20 options", median(spent["script"]), "ms", floor, "its lines", aim=1)]
