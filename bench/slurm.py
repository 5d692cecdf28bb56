"""The Slurm provider on a real cluster of this machine, beside Slurm's own commands. Needs what the tests need."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.support.slurm import Cluster
from tests.support.sshd import Sshd, sshd

from bench.figures import Figure, in_turns, median
from bench.floors import run_quietly
from bench.place import own_home
from bench.startup import flow_words
from flow.channel import ssh
from flow.client import Flow

JOBS = 10_000  # that wait while they are listed
ELEMENTS = 1000
_LATER = "now+1hour"
_SBATCH = ("sbatch", "--parsable", "--begin=" + _LATER)


def measure(*, quick: bool) -> list[Figure]:
    """Submitting on the login node and from afar, an array, and the list of what waits."""
    rounds = 10 if quick else 60
    with tempfile.TemporaryDirectory(prefix="flow-bench-") as name:
        folder = Path(name)
        with Cluster(folder / "slurm", elements=JOBS + 1) as slurm, own_home(**_settings(folder, slurm)):
            Path("job.sh").write_text("#!/bin/sh\ntrue\n")
            here, sbatch = _submitted(rounds)
            array = _submitted_array(rounds // 5)
            with sshd(folder / "sshd", slurm.environment()) as server, _from_afar(server):
                afar = _submitted_from_afar(rounds, server, sbatch)
            listed = _listed(1000 if quick else JOBS, rounds=5 if quick else 15)
    return [here, array, afar, *listed]


def _settings(folder: Path, slurm: Cluster) -> dict[str, str]:
    return {"FLOW_PROVIDER": "slurm", "FLOW_SLURM_FOLDER": str(folder / "shared"), **slurm.environment()}


@contextmanager
def _from_afar(server: Sshd) -> Iterator[None]:
    os.environ.update(FLOW_SLURM_LOGIN=server.name, FLOW_SLURM_SSH_CONFIG=str(server.config))
    yield
    del os.environ["FLOW_SLURM_LOGIN"], os.environ["FLOW_SLURM_SSH_CONFIG"]


def _submitted(rounds: int) -> tuple[Figure, float]:
    """`client.run` of a small project that has not changed; and what sbatch alone takes."""
    client = Flow()
    client.run("true", begin=_LATER)
    spent = in_turns(rounds, bare=run_quietly([*_SBATCH, "job.sh"]), ours=lambda: client.run("true", begin=_LATER))
    bare = median(spent["bare"])
    return Figure("submit to Slurm acknowledged, p50", median(spent["ours"]), "ms", bare, "sbatch", 1.5 * bare), bare


def _submitted_array(rounds: int) -> Figure:
    client = Flow()
    array = f"0-{ELEMENTS - 1}"
    spent = in_turns(
        rounds,
        bare=run_quietly([*_SBATCH, "--array=" + array, "job.sh"]),
        ours=lambda: client.run("true", begin=_LATER, array=array),
    )
    bare = median(spent["bare"])
    floor = (bare, "sbatch --array", 1.5 * bare)
    return Figure(f"  an array of {ELEMENTS:,}", median(spent["ours"]), "ms", *floor)


def _submitted_from_afar(rounds: int, server: Sshd, sbatch: float) -> Figure:
    """The same through ssh, whose connection is kept."""
    client, channel = Flow(), ssh(server.name, config=str(server.config))
    client.run("true", begin=_LATER)
    spent = in_turns(
        rounds,
        trip=partial(channel.run, "true"),
        bare=partial(channel.run, shlex.join([*_SBATCH, "--wrap=true"])),
        ours=lambda: client.run("true", begin=_LATER),
    )
    bare, aim = median(spent["bare"]), 1.5 * sbatch + median(spent["trip"])
    return Figure("  from afar", median(spent["ours"]), "ms", bare, "ssh sbatch", aim)


def _listed(jobs: int, *, rounds: int) -> list[Figure]:
    """What the lists take where `jobs` of ours wait."""
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run(["scancel", "--user=" + user], check=True)
    Flow().run("true", begin=_LATER, array=f"1-{jobs}")
    commands = {
        "flow squeue -r": [*flow_words(), "squeue", "-r"],
        "flow squeue": [*flow_words(), "squeue"],
        "flow status": [*flow_words(), "status"],
    }
    acts = {name: run_quietly(words) for name, words in commands.items()}
    spent = in_turns(rounds, bare=run_quietly(["squeue", "-r"]), **acts)
    floor = (median(spent["bare"]), "squeue -r")
    return [Figure(f"{name}, {jobs:,} wait in Slurm", median(spent[name]), "ms", *floor) for name in commands]
