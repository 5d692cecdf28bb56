"""Slurm's commands of ours on a real cluster: they speak of its jobs by its numbers, and end what they are told to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import flow
from tests.support.processes import wait_until
from tests.support.slurm import Cluster

HEADER = "             JOBID PARTITION     NAME     USER ST       TIME  NODES NODELIST(REASON)\n"


@pytest.fixture(autouse=True)
def scripts(slurm: Cluster, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with batch scripts, which the test is in, on the login node of the default provider."""
    for name, value in {"FLOW_PROVIDER": "slurm", "FLOW_SLURM_FOLDER": str(tmp_path / "f"), "USER": "root"}.items():
        monkeypatch.setenv(name, value)
    (project / "long.sh").write_text("#!/bin/sh\nwhile [ ! -e stop ]; do sleep 0.2; done\n")
    (project / "ranks.sh").write_text("#!/bin/sh\n#SBATCH -N2 -n2 -J ranks\nsrun -l hostname\nexit 4\n")
    return project


def out(*words: str, code: int = 0) -> str:
    """What a command prints that ends as it should."""
    ended = flow(*words)
    assert (ended.returncode, ended.stderr) == (code, ""), ended
    return ended.stdout


def states(number: str) -> dict[str, str]:
    """The state of each job of an array."""
    lines = out("squeue", "-h", "-r", "-t", "all", "-j", number, "-o", "%i %t").splitlines()
    return dict(line.split() for line in lines)  # type: ignore[misc]


def test_elements_that_wait_are_cancelled_and_others_not(slurm: Cluster) -> None:
    number = out("sbatch", "--parsable", "--array=1-6%1", "long.sh").strip()
    assert wait_until(lambda: states(number)[f"{number}_1"] == "R", seconds=30)
    out("scancel", f"{number}_3", f"{number}_[5-6]")
    left = {f"{number}_1": "R", f"{number}_2": "PD", f"{number}_4": "PD"}
    assert wait_until(lambda: {k: v for k, v in states(number).items() if v != "CA"} == left), states(number)
    shown = slurm.run("squeue", "-h", "-r", "-j", number, "-o", "%i %t").stdout.splitlines()
    assert dict(line.split() for line in shown) == left  # type: ignore[misc]
    assert out("ssh", f"{number}_1", "hostname") == "node1\n"
