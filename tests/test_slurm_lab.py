"""The Slurm that other tests are held against: it is real, stands what they do to it, and goes when they go."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import processes_of, wait_until
from tests.support.slurm import Cluster, require_slurm

pytestmark = pytest.mark.usefixtures("project")


def test_a_step_runs_on_three_machines_and_is_accounted_for(slurm: Cluster) -> None:
    script = "#!/bin/sh\nsrun -l sh -c 'echo $(hostname) $SLURM_NODEID $CUDA_VISIBLE_DEVICES'\nexit 3\n"
    sent = slurm.run("sbatch", "--parsable", "-W", "-N3", "--gpus-per-node=2", "-oout", stdin=script, check=False)
    assert sorted(Path("out").read_text().splitlines()) == ["0: node1 0 0,1", "1: node2 1 0,1", "2: node3 2 0,1"]
    assert sent.returncode == 3
    words = ("sacct", "-nXP", "-j", sent.stdout.strip(), "-o", "State,ExitCode")
    assert wait_until(lambda: slurm.run(*words).stdout == "FAILED|3:0\n")


def test_a_job_is_queued_again_when_it_is_preempted_or_its_machine_dies(slurm: Cluster) -> None:
    def begin(*words: str) -> str:
        number = slurm.run("sbatch", "--parsable", *words, "--wrap=sleep 60").stdout.strip()
        assert wait_until(lambda: told(number) == "RUNNING")
        return number

    def told(number: str) -> str:
        return slurm.run("squeue", "-h", "-j", number, "-o", "%T").stdout.strip()

    low = begin("-plow", "-wnode1", "--exclusive")
    on_three = begin("-pgpu", "-wnode3")
    begin("-pgpu", "-wnode1", "--exclusive")
    assert told(low) == "PENDING"
    slurm.kill_node(3)
    slurm.run("scontrol", "update", "nodename=node3", "state=down", "reason=dead")  # else seen in ten seconds
    assert wait_until(lambda: told(on_three) == "PENDING")
    slurm.restart_controller()
    assert told(on_three) == "PENDING"
    slurm.start_node(3)
    assert wait_until(lambda: told(on_three) == "RUNNING")


def test_nothing_stays_when_its_process_is_killed(tmp_path: Path) -> None:
    require_slurm()
    program = (
        "import sys; from pathlib import Path; from tests.support.slurm import Cluster\n"
        "slurm = Cluster(Path(sys.argv[1])).__enter__()\n"
        "slurm.run('sbatch', '--wrap=sleep 60', '-o/dev/null')\n"
        "print(slurm.run('squeue', '-h', '-o%T').stdout, flush=True); sys.stdin.read()"
    )
    argv, project = [sys.executable, "-c", program, tmp_path], Path(__file__).parents[1]
    with subprocess.Popen(argv, cwd=project, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as its:
        assert its.stdout and its.stdout.readline() in (b"RUNNING\n", b"PENDING\n")
        assert processes_of(tmp_path / "slurm.conf")
        its.kill()
    assert wait_until(lambda: not processes_of(tmp_path / "slurm.conf"))
