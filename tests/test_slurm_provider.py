"""Tasks as jobs of a real Slurm cluster."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flow.client import Flow
from flow.errors import ValidationError
from flow.task import Task
from tests.support.contract import ProviderContract
from tests.support.processes import wait_until
from tests.support.slurm import Cluster
from tests.support.sshd import Sshd, sshd


@pytest.fixture
def client(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flow:
    """A client on the login node."""
    monkeypatch.setenv("FLOW_SLURM_FOLDER", str(tmp_path / "shared"))
    return Flow("slurm")


class TestContract(ProviderContract):
    """On the login node of a real cluster."""


@pytest.fixture
def login_node(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    """The login node as another machine, which ssh reaches; without it there are no commands of Slurm here."""
    with sshd(tmp_path / "sshd", slurm.environment()) as server:
        monkeypatch.setenv("FLOW_SLURM_LOGIN", server.name)
        monkeypatch.setenv("FLOW_SLURM_SSH_CONFIG", str(server.config))
        monkeypatch.setenv("FLOW_SLURM_FOLDER", str(tmp_path / "shared"))
        monkeypatch.delenv("SLURM_CONF")
        yield server


class TestContractFromAfar(ProviderContract):
    """Through ssh to the login node."""

    @pytest.fixture
    def client(self, login_node: Sshd) -> Flow:
        return Flow("slurm")


def submitted(client: Flow, command: str, **fields: Any) -> Task:
    return client.run(command, upload_code=False, **fields)


def test_a_sweep_is_one_job_array_whose_elements_are_tasks(client: Flow, slurm: Cluster) -> None:
    task = submitted(
        client, 'echo "$FLOW_ARRAY_INDEX of $SLURM_ARRAY_JOB_ID"; [ $FLOW_ARRAY_INDEX != 7 ]', array="1-3,7%2"
    )
    assert task.wait(timeout=60) == "failed"
    assert (task.reason, task.elements) == ("1 of 4 failed: exit 1", {"completed": 3, "failed": 1})
    assert sorted(task.logs().splitlines()) == [f"{index} of {task.number}" for index in (1, 2, 3, 7)]
    assert client.get_task(f"{task.number}_7").task_id == f"{task.task_id}_7"
    words = ("squeue", "-h", "-t", "all", "-r", "-j", str(task.number), "-o", "%i")
    assert sorted(slurm.run(*words).stdout.split()) == [f"{task.number}_{index}" for index in (1, 2, 3, 7)]


def test_one_element_is_cancelled_and_the_others_go_on(client: Flow) -> None:
    task = submitted(client, "[ $FLOW_ARRAY_INDEX = 1 ] && sleep 1000; echo ran", array="0-2")
    element = client.get_task(f"{task.task_id}_1")
    assert wait_until(lambda: element.refresh().status == "running", seconds=30)
    element.cancel()
    assert element.wait(timeout=30) == "cancelled"
    assert task.wait(timeout=30) == "cancelled"
    assert task.elements == {"completed": 2, "cancelled": 1}


def test_dependencies_are_slurms_own(client: Flow, slurm: Cluster, tmp_path: Path) -> None:
    first = submitted(client, "until [ -e go ]; do sleep 0.1; done; exit 3", working_dir=str(tmp_path))
    after = {state: submitted(client, "true", depends_on=[f"{first}:{state}"]) for state in ("failed", "ended")}
    never = submitted(client, "true", depends_on=[first.task_id])
    shown = slurm.run("squeue", "-h", "-j", str(never.number), "-O", "Dependency:60").stdout
    assert shown.strip() == f"afterok:{first.number}(unfulfilled)"
    (tmp_path / "go").touch()
    assert {task.wait(timeout=60) for task in after.values()} == {"completed"}
    assert never.wait(timeout=60) == "cancelled"
    late = submitted(client, "true", depends_on=[first.task_id])  # Slurm may have forgotten it by then
    assert (late.refresh().status, late.number) == ("cancelled", None)
    assert late.reason == f"waited for {first} to be completed, which cannot be any more"


def test_gpus_are_offered_and_given(client: Flow) -> None:
    assert [(one.instance_type, one.region, one.available) for one in client.offers() if one.cpus == 16][:4] == [
        ("cpu", None, 3), ("cpu", "low", 3), ("a100", None, 3), ("a100", "low", 3),
    ]  # fmt: skip
    task = submitted(client, "echo $CUDA_VISIBLE_DEVICES; nproc", gpu="a100:2", num_instances=2, cpus=2)
    assert task.wait(timeout=60) == "completed"
    assert task.instance_type == "2xa100"
    given = [line.text for line in task.lines()]
    assert given.count(b"0,1") == 2
    with pytest.raises(ValidationError, match="no instance type `h100` at slurm"):
        submitted(client, "true", gpu="h100")


def test_a_shell_reaches_each_node(client: Flow) -> None:
    task = submitted(client, "sleep 1000", num_instances=2)
    assert wait_until(lambda: task.refresh().status == "running", seconds=30)
    found = [task.shell("hostname; echo $FLOW_NODE_RANK", node=node, capture=True).stdout for node in (0, 1)]
    assert found == [f"{one.instance_id}\n{one.rank}\n" for one in task.get_instances()]
    task.cancel()
    assert task.wait(timeout=30) == "cancelled"


def test_what_a_task_left_outlives_the_clusters_folder_and_is_pruned_there(client: Flow, tmp_path: Path) -> None:
    task = submitted(client, 'echo out; echo "[1]" > $FLOW_OUTPUT/result.json')
    assert task.wait(timeout=30) == "completed"
    kept = tmp_path / "shared" / "tasks" / task.task_id
    assert kept.is_dir()
    assert client.prune(keep=0).task_ids == (task.task_id,)
    assert not kept.exists()
    other = submitted(client, 'echo out; echo "[1]" > $FLOW_OUTPUT/result.json')
    assert other.wait(timeout=30) == "completed"
    shutil.rmtree(tmp_path / "shared")
    again = client.get_task(other.task_id)
    assert (again.status, again.logs(), again.result()) == ("completed", "out\n", [1])


def test_who_died_before_the_number_was_written_finds_the_job_again(client: Flow, tmp_path: Path) -> None:
    task = submitted(client, "echo once", begin="now+1hour")
    (tmp_path / "shared" / "tasks" / task.task_id / "number").unlink()
    assert client.provider().allocate(task.plan) == task.number


def test_a_batch_script_is_slurms_own(client: Flow, slurm: Cluster, project: Path) -> None:
    script = '#!/bin/sh\necho "$SLURM_JOB_ID $SLURM_JOB_NUM_NODES $PWD"; echo err >&2; srun -l hostname; exit 4\n'
    options = ["--nodes=2", "--ntasks=2", "--job-name=mine", "--time=5"]
    task = client.run(batch={"script": script, "file": "job.sh", "options": options}, num_instances=2, name="mine")
    assert (task.wait(timeout=60), task.exit_code) == ("failed", 4)
    whole = (project / f"slurm-{task.number}.out").read_text().splitlines()
    assert whole[:2] == [f"{task.number} 2 {project}", "err"]
    assert sorted(whole[2:]) == ["0: node1", "1: node2"]
    assert task.logs().splitlines()[0] == whole[0]
    words = ("sacct", "-X", "-n", "-P", "-j", str(task.number), "-o", "JobName,State,ExitCode")
    assert wait_until(lambda: slurm.run(*words).stdout == "mine|FAILED|4:0\n"), slurm.run(*words).stdout


def test_a_signal_for_a_batch_script_reaches_it(client: Flow, slurm: Cluster, project: Path) -> None:
    script = "#!/bin/sh\ntrap 'echo got it; exit 0' USR1\necho up\nwhile :; do sleep 0.1; done\n"
    task = client.run(batch={"script": script})
    assert wait_until(lambda: task.refresh().status == "running" and task.logs() == "up\n", seconds=30)
    slurm.run("scancel", "--batch", "--signal=USR1", str(task.number))
    assert (task.wait(timeout=30), task.logs()) == ("completed", "up\ngot it\n")
