"""What waits, is held, and hears signals on a real Slurm cluster, asked for in our words and in Slurm's."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from flow.client import Flow
from flow.errors import ValidationError
from flow.status import HELD
from flow.task import Task
from tests.support.commands import flow
from tests.support.processes import wait_until
from tests.support.slurm import Cluster

LATER = {"begin": "now+1hour", "upload_code": False}
HEARS = "trap 'echo heard' USR2; echo up; while [ ! -e end ]; do sleep 0.1; done"


@pytest.fixture
def client(slurm: Cluster, project: Path, monkeypatch: pytest.MonkeyPatch) -> Flow:
    """A client on the login node; `flow` has the cluster as its provider too."""
    monkeypatch.setenv("FLOW_SLURM_FOLDER", str(project.parent / "shared"))
    monkeypatch.setenv("FLOW_PROVIDER", "slurm")
    return Flow()


def submit(*words: str) -> str:
    """The number of what `flow sbatch` submitted."""
    ended = flow("sbatch", "--parsable", *words)
    assert ended.returncode == 0, ended
    return ended.stdout.strip()


def state(slurm: Cluster, number: str) -> str:
    """`PENDING JobHeldUser`, as Slurm has it."""
    return slurm.run("squeue", "-h", "-t", "all", "-r", "-j", number, "-o", "%T %r").stdout.strip()


def test_a_sweep_of_a_thousand_is_one_sbatch(client: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, wrapper = tmp_path / "calls", tmp_path / "bin" / "sbatch"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\necho "$*" >> {calls}\nexec {shutil.which("sbatch")} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    sweep = client.run("true", array="0-999%8", **LATER)
    assert "--array=0-999%8" in calls.read_text() and calls.read_text().count("\n") == 1
    assert sweep.refresh().elements == {"pending": 1000}
    sweep.cancel()
    assert sweep.wait(timeout=60) == "cancelled"


def test_what_is_submitted_held_has_its_number_and_waits_to_be_let_go(client: Flow, slurm: Cluster) -> None:
    number = submit("--hold", "--wrap", "echo ran")
    assert state(slurm, number) == "PENDING JobHeldUser"
    after = submit("--dependency=afterok:" + number, "--wrap", "true")
    assert client.get_task(number).reason == HELD
    assert client.get_task(after).reason == f"waits for {client.get_task(number)} to be completed"
    assert flow("scontrol", "release", number).returncode == 0
    assert [client.get_task(one).wait(timeout=60) for one in (number, after)] == ["completed", "completed"]


def test_scontrol_holds_and_releases_elements(client: Flow, slurm: Cluster) -> None:
    number = submit("--array=1-3", "--begin=now+1hour", "--wrap", "true")
    assert flow("scontrol", "hold", f"{number}_2").returncode == 0
    assert [state(slurm, f"{number}_{one}").endswith("JobHeldUser") for one in (1, 2)] == [False, True]
    assert flow("scontrol", "hold", number).returncode == 0
    assert state(slurm, f"{number}_3") == "PENDING JobHeldUser"
    assert flow("scontrol", "release", number).returncode == 0
    assert wait_until(lambda: state(slurm, f"{number}_3") == "PENDING BeginTime", seconds=60)
    client.get_task(number).cancel()


def test_requeuehold_waits_to_be_let_go(client: Flow, slurm: Cluster) -> None:
    number = submit("--requeue", "--wrap", "while [ -z $SLURM_RESTART_COUNT ]; do sleep 0.1; done; echo again")
    task = client.get_task(number)
    assert wait_until(lambda: task.refresh().status == "running", seconds=60)
    assert flow("scontrol", "requeuehold", number).returncode == 0
    assert wait_until(lambda: state(slurm, number) == "PENDING JobHeldUser", seconds=60), state(slurm, number)
    assert (str(task.refresh().status), task.reason) == ("preempted", HELD)
    assert flow("scontrol", "release", number).returncode == 0
    assert task.wait(timeout=90) == "completed"
    assert [str(one.status) for one in task.attempts] == ["preempted", "completed"]


def test_a_signal_reaches_the_command_on_every_node(client: Flow, project: Path) -> None:
    task = client.run(HEARS, num_instances=2, working_dir=str(project), upload_code=False)
    assert wait_until(lambda: task.refresh().status == "running" and task.logs() == "up\nup\n", seconds=60)
    for count, to in enumerate(("command", "all"), 1):
        task.send_signal(signal.SIGUSR2, to=to)
        assert wait_until(lambda count=count: task.logs().count("heard") == 2 * count, seconds=30), task.logs()
    (project / "end").touch()
    assert task.wait(timeout=60) == "completed"


def test_scancel_signals_the_steps_of_a_script_or_the_script(client: Flow, project: Path) -> None:
    script = (
        f"#!/bin/sh\ntrap 'echo script' USR2\nsrun sh -c \"{HEARS}\" &\nwhile [ ! -e end ]; do wait; done; exit 0\n"
    )
    (project / "job.sh").write_text(script)
    task = client.get_task(submit("job.sh"))
    for words, line in (((), "heard"), (("--batch",), "script")):
        assert wait_until(lambda: "up\n" in task.logs(), seconds=60), task.logs()
        assert flow("scancel", "-s", "USR2", *words, str(task.number)).returncode == 0
        assert wait_until(lambda line=line: line in task.logs(), seconds=30), task.logs()
        assert ("script" in task.logs()) == (line == "script")
    task.send_signal(signal.SIGUSR2, to="command")
    assert wait_until(lambda: task.logs().count("script") == 2, seconds=60), task.logs()
    (project / "end").touch()
    assert task.wait(timeout=60) == "completed"


def test_any_of_several_and_a_delay_are_slurms_own_too(client: Flow, slurm: Cluster) -> None:
    first, second = client.run("true", **LATER), client.run("true", array="1-3", **LATER)
    task = client.run("true", upload_code=False, depends_on=[f"{first}:ended", f"{second}_2"], depends_on_any=True)
    other = client.run("true", upload_code=False, depends_on=[f"{first}:started_or_ended+2", second], singleton=True)
    assert _asked(slurm, task) == f"afterany:{first.number}(unfulfilled)?afterok:{second.number}_2(unfulfilled)"
    parts = [f"after:{first.number}+2(unfulfilled)", f"afterok:{second.number}_*(unfulfilled)"]
    assert _asked(slurm, other).startswith(",".join(parts))
    assert task.refresh().reason == f"waits for {first} to be ended or {second}_2 to be completed"
    for one in (first, second, task, other):
        one.cancel()


def test_a_delay_is_waited_for_though_the_other_task_has_ended(client: Flow, slurm: Cluster) -> None:
    first = client.run("true", upload_code=False)
    assert first.wait(timeout=60) == "completed"
    task = client.run("true", upload_code=False, depends_on=f"{first}:started_or_ended+2")
    assert _asked(slurm, task) == f"after:{first.number}+2(unfulfilled)"
    task.cancel()


def _asked(slurm: Cluster, task: Task) -> str:
    return slurm.run("squeue", "-h", "-j", str(task.number), "-O", "Dependency:|").stdout.strip().removesuffix("|")


def test_what_slurm_has_forgotten_is_not_taken_for_completed(client: Flow, project: Path, slurm: Cluster) -> None:
    first = client.run("true", **LATER)
    slurm.run("scancel", str(first.number))
    folder = project.parent / "shared" / "tasks" / first.task_id
    (folder / "number").write_text("1")  # a number of which it knows nothing
    after = {one: client.run("true", upload_code=False, depends_on=f"{first}:{one}") for one in ("completed", "ended")}
    assert {one: str(task.wait(timeout=60)) for one, task in after.items()} == {
        "completed": "cancelled",
        "ended": "completed",
    }


def test_an_array_that_is_cancelled_in_slurm_is_cancelled(client: Flow, slurm: Cluster) -> None:
    task = client.run("true", array="1-3", name="whole", **LATER)
    slurm.run("scancel", "--name=whole")
    assert task.wait(timeout=60) == "cancelled"
    assert task.elements == {"cancelled": 3}


def test_a_task_of_another_provider_is_not_waited_for(client: Flow) -> None:
    other = client.run("true", provider="local", upload_code=False)
    with pytest.raises(ValidationError, match=f"`{other}` is a task at local, and slurm waits only for its own"):
        client.run("true", depends_on=other, upload_code=False)
    assert other.wait(timeout=60) == "completed"
