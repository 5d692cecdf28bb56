"""Slurm's commands of ours on a real cluster: they speak of its jobs by its numbers, and end what they are told to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flow import client
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


def test_a_job_is_shown_as_slurm_shows_it(slurm: Cluster, scripts: Path) -> None:
    """While it waits, while it runs, and after its end."""
    numbers = [
        out("sbatch", "--parsable", *words, "long.sh").strip()
        for words in (["-a", "1-4%1"], ["-H", "-p", "low"], ["-N9"], ["-b", "now+1hour"], ["-N2"])
    ]
    shown = ("-h", "-j", ",".join(numbers), "-o", "%i|%P|%j|%t|%D|%R|%N|%B", "-S", "i")
    assert wait_until(lambda: "R" in out("squeue", "-h", "-j", numbers[4], "-o", "%t"), seconds=30)
    assert wait_until(lambda: out("squeue", *shown) == slurm.run("squeue", *shown).stdout, seconds=30), out("squeue")
    assert "(Partition" in out("squeue", "-j", numbers[2])  # …NodeLimit or …Config, as Slurm finds first
    out("scancel", "--me")
    assert wait_until(lambda: out("squeue") == HEADER), out("squeue")
    done = out("sbatch", "--parsable", "-W", "ranks.sh", code=4).strip()
    assert sorted((scripts / f"slurm-{done}.out").read_text().splitlines()) == ["0: node1", "1: node2"]
    assert out("logs", done) == (scripts / f"slurm-{done}.out").read_text()
    asked = ("-j", done, "-X", "-n", "-P", "-o", "JobID,JobName,Partition,AllocCPUS,State,ExitCode,NodeList")
    assert out("sacct", *asked) == f"{done}|ranks|gpu|2|FAILED|4:0|node[1-2]\n"
    assert wait_until(lambda: slurm.run("sacct", *asked).stdout == out("sacct", *asked), seconds=30)
    told = dict(word.partition("=")[::2] for word in out("scontrol", "-o", "show", "job", done).split())
    assert (told["NodeList"], told["BatchHost"]) == ("node[1-2]", "node1")
    assert told["StdOut"] == str(scripts / f"slurm-{done}.out")


def test_our_commands_may_come_before_slurms_on_path(
    slurm: Cluster, scripts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked of the cluster itself, Slurm answers; a job's own `srun` is Slurm's."""
    words = (
        ["sinfo", "-o", "%P %D %G %N"],
        ["sinfo", "-R"],
        ["scontrol", "show", "partition", "low"],
        ["scontrol", "ping"],
    )
    theirs = [slurm.run(*one).stdout for one in words]
    assert [out(*one) for one in words] == theirs
    monkeypatch.setenv("PATH", f"{scripts / 'bin'}:{os.environ['PATH']}")
    assert out("slurm", "install-commands", "bin").count("\n") == 7
    assert [slurm.run(*one).stdout for one in words] == theirs
    done = slurm.run("sbatch", "--parsable", "--wait", "ranks.sh", check=False).stdout.strip()
    assert slurm.run("sacct", "-j", done, "-X", "-n", "-P", "-o", "State,ExitCode").stdout == "FAILED|4:0\n"
    assert sorted((scripts / f"slurm-{done}.out").read_text().splitlines()) == ["0: node1", "1: node2"]
    running = slurm.run("sbatch", "--parsable", "long.sh").stdout.strip()
    assert wait_until(lambda: slurm.run("squeue", "-h", "-j", running, "-o", "%t").stdout == "R\n", seconds=30)
    assert out("ssh", running, "hostname") == "node1\n"


def test_a_command_follows_its_job_and_python_finds_it(slurm: Cluster, scripts: Path) -> None:
    assert flow("run", "--watch", "ranks.sh").returncode == 4
    ended = flow("srun", "-N2", "-l", "sh", "-c", "hostname; exit $SLURM_PROCID")
    assert sorted(ended.stdout.splitlines()) == ["0: node1", "1: node2"]
    said = [
        line for line in ended.stderr.splitlines() if not line.startswith("srun: job ")
    ]  # it may wait for its nodes
    assert (ended.returncode, said) == (1, ["srun: error: node2: task 1: Exited with exit code 1"])
    refused = flow("sbatch", "-p", "nosuch", "long.sh")
    assert refused.returncode == 1
    assert refused.stderr.startswith("sbatch: error: invalid partition specified: nosuch (Batch job submission failed")
    (scripts / "result.sh").write_text('#!/bin/sh\necho "[$SLURM_JOB_ID]" | tee "$FLOW_OUTPUT/result.json"\n')
    task = client.Flow().run("result.sh")
    assert (task.wait(timeout=60), task.result(), task.logs()) == ("completed", [task.number], f"[{task.number}]\n")
    assert [path.name for path in task.outputs().iterdir()] == ["result.json"]
    assert client.Flow().get_task(str(task.number)).task_id == task.task_id
