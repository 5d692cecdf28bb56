"""What goes wrong on a cluster, on a real one: nodes die, jobs are requeued, preempted, held, refused, forgotten."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from flow.client import Flow
from flow.errors import ProviderError, QuotaExceededError, StorageError, ValidationError
from flow.status import TaskStatus
from flow.task import Task
from tests.support.processes import wait_until
from tests.support.slurm import Cluster


@pytest.fixture
def client(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flow:
    """A client on the login node."""
    monkeypatch.setenv("FLOW_SLURM_FOLDER", str(tmp_path / "shared"))
    monkeypatch.chdir(tmp_path)
    return Flow("slurm")


def submitted(client: Flow, command: str, **fields: object) -> Task:
    return client.run(command, upload_code=False, **fields)  # type: ignore[arg-type]


def told_of(task: Task) -> str:
    """All that there is to find out why a test failed."""
    folder = f"$FLOW_SLURM_FOLDER/tasks/{task.task_id}"
    script = f"scontrol show job {task.number}; sinfo -N; ls -R {folder}; head {folder}/*/*/status.json {folder}/*.out"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
    return f"{task.status} {task.reason}\n{done.stdout}"


def running(client: Flow, command: str, **fields: object) -> Task:
    task = submitted(client, "echo up; " + command, **fields)

    def is_up() -> bool:
        return task.refresh().status is TaskStatus.RUNNING and task.logs().startswith("up")

    assert wait_until(is_up, seconds=30), told_of(task)
    return task


AGAIN = "[ $FLOW_ATTEMPT = 1 ] && sleep 1000; echo again"  # runs until it is started a second time


def check_ran_again(task: Task, *first: str) -> None:
    assert task.wait(timeout=60) == "completed", told_of(task)
    assert [(str(one.status), one.reason) for one in task.attempts] == [first, ("completed", "")]
    assert [(one.attempt, one.text) for one in task.lines()] == [(1, b"up"), (2, b"up"), (2, b"again")]


def test_a_requeued_job_is_preempted_and_then_a_new_attempt_that_is_no_retry(client: Flow, slurm: Cluster) -> None:
    task = running(client, AGAIN)
    slurm.run("scontrol", "requeue", str(task.number))
    assert wait_until(lambda: task.refresh().status is TaskStatus.PREEMPTED, seconds=30), task.status
    check_ran_again(task, "preempted", "requeued: Slurm runs it again")


def test_a_preempted_task_runs_again(client: Flow, slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOW_SLURM_PARTITION", "low")
    assert wait_until(
        lambda: slurm.run("sinfo", "-h", "-p", "low", "-t", "idle", "-o", "%D").stdout == "3\n", seconds=60
    ), slurm.run("sinfo", "-N", "-o", "%N %T %E %C").stdout + slurm.run("squeue", "-a", "-t", "all").stdout
    task = running(Flow("slurm"), AGAIN, cpus=16, num_instances=3)
    monkeypatch.setenv("FLOW_SLURM_PARTITION", "gpu")
    more_important = running(Flow("slurm"), "sleep 1000", cpus=16)
    assert wait_until(lambda: task.refresh().status is TaskStatus.PREEMPTED, seconds=30), task.status
    more_important.cancel()
    assert more_important.wait(timeout=30) == "cancelled"
    assert task.wait(timeout=60) == "completed"
    assert [str(one.status) for one in task.attempts] == ["preempted", "completed"]
    assert task.attempts[0].reason.startswith("preempted: Slurm runs it again")


def test_a_task_whose_node_dies_runs_again_on_another(client: Flow, slurm: Cluster) -> None:
    task = running(client, AGAIN)
    (machine,) = task.get_instances()
    number = int(machine.instance_id.removeprefix("node"))
    slurm.kill_node(number)
    try:
        assert wait_until(lambda: task.refresh().status is TaskStatus.PREEMPTED, seconds=60), task.status
        check_ran_again(task, "lost", "its node failed: Slurm runs it again")
    finally:
        slurm.start_node(number)


def test_a_controller_that_restarts_is_waited_for(client: Flow, slurm: Cluster, tmp_path: Path) -> None:
    task = running(client, "until [ -e go ]; do sleep 0.1; done; echo done", working_dir=str(tmp_path))
    slurm.stop_controller()
    with pytest.raises(ProviderError, match="Unable to contact slurm controller"):
        task.refresh()
    (tmp_path / "go").touch()
    slurm.start_controller()
    assert task.wait(timeout=60) == "completed"
    assert task.logs() == "up\ndone\n"


def test_a_held_job_says_so_and_how_it_starts(client: Flow, slurm: Cluster) -> None:
    task = submitted(client, "echo ran", begin="now+1hour")
    slurm.run("scontrol", "uhold", str(task.number))
    assert wait_until(lambda: task.refresh().reason != "begins later", seconds=60)
    assert (task.status, task.reason) == ("pending", "held: `flow resume` lets it start")
    slurm.run("scontrol", "release", str(task.number))
    slurm.run("scontrol", "update", f"jobid={task.number}", "starttime=now")
    assert task.wait(timeout=60) == "completed"


def test_a_drained_node_is_told_as_the_reason(client: Flow, slurm: Cluster) -> None:
    for number in (1, 2, 3):
        slurm.drain(number)
    try:
        task = submitted(client, "echo ran")
        assert wait_until(lambda: "DRAINED" in task.refresh().reason, seconds=60), task.reason
        assert task.status == "pending"
        assert all(one.available == 0 for one in client.offers())
    finally:
        for number in (1, 2, 3):
            slurm.resume(number)
    assert task.wait(timeout=60) == "completed"


def test_who_cancels_in_slurm_cancels_the_task(client: Flow, slurm: Cluster) -> None:
    task, waiting = running(client, "sleep 1000"), submitted(client, "true", begin="now+1hour")
    slurm.run("scancel", str(task.number), str(waiting.number))
    assert task.wait(timeout=30) == waiting.wait(timeout=30) == "cancelled"
    assert waiting.reason == "cancelled in Slurm"


def test_a_cancelled_task_is_cancelled_in_slurm_too(client: Flow, slurm: Cluster) -> None:
    saves = "trap 'sleep 3; echo saved; exit 0' TERM"  # over KillWait
    task = running(client, f"{saves}; echo ready; while :; do sleep 0.1; done")
    assert wait_until(lambda: "ready" in task.logs()), told_of(task)
    task.cancel()
    assert task.wait(timeout=30) == "cancelled"
    assert task.logs().endswith("\nsaved\n")
    words = ("squeue", "-h", "-t", "all", "-j", str(task.number), "-o", "%T")
    assert wait_until(lambda: slurm.run(*words).stdout == "CANCELLED\n")


def test_a_refusal_of_sbatch_is_final_and_in_its_own_words(client: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOW_SLURM_PARTITION", "nowhere")
    words = (
        "sbatch: invalid partition specified: nowhere .Batch job submission failed: Invalid partition name specified."
    )
    with pytest.raises(ValidationError, match=words):
        submitted(Flow("slurm"), "true")
    (task,) = client.tasks()
    assert (task.status, task.attempts) == ("failed", [])
    assert "Invalid partition name" in task.reason
    assert client.notes == []  # it is not asked for again


def test_what_a_site_and_a_shell_add_does_not_hide_the_job(client: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOW_SLURM_SBATCH_OPTIONS", "--comment='a grant' --mail-type=NONE")
    monkeypatch.setenv("SBATCH_ARRAY_INX", "1-3")
    monkeypatch.setenv("SBATCH_WAIT", "1")
    task = submitted(Flow("slurm"), "echo once", options={"sbatch_options": "--nice=1 --wait-all-nodes=1"})
    assert (task.wait(timeout=60), task.logs()) == ("completed", "once\n")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("-a1-3", "slurm.sbatch_options: `-a1-3` would change what the job is"),
        ("--exclusive --quiet", "slurm.sbatch_options: `--quiet` would change what the job is"),
        ("--comment='x", "slurm.sbatch_options: `--comment='x` cannot be read: No closing quotation"),
        ("--nonsense", "unrecognized option '--nonsense'"),
    ],
)
def test_options_that_sbatch_or_we_cannot_use_are_named(
    client: Flow, monkeypatch: pytest.MonkeyPatch, given: str, message: str
) -> None:
    monkeypatch.setenv("FLOW_SLURM_SBATCH_OPTIONS", given)
    with pytest.raises(ValidationError, match=re.escape(message)):
        submitted(Flow("slurm"), "true")


@pytest.mark.parametrize(
    ("said", "kind", "message"),
    [
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates "
         "accounting/QOS policy (job submit limit, user's size and/or time limits)", QuotaExceededError,
         "sbatch: QOSMaxSubmitJobPerUserLimit (Batch job submission failed: Job violates accounting/QOS policy (job "
         "submit limit, user's size and/or time limits))"),
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
         ProviderError, "sbatch: Batch job submission failed: Unable to contact slurm controller (connect failure)"),
        ("sbatch: error: Batch job submission failed: I/O error writing script/environment to file",
         ProviderError, "sbatch: Batch job submission failed: I/O error writing script/environment to file"),
        ("sbatch: error: Batch job submission failed: Requested node configuration is not available",
         ValidationError, "sbatch: Batch job submission failed: Requested node configuration is not available"),
    ],
)  # fmt: skip
def test_what_passes_is_told_from_what_is_final(said: str, kind: type, message: str) -> None:
    from flow.providers.slurm.cluster import refusal

    error = refusal("sbatch", said)
    assert (type(error), error.message) == (kind, message)
    assert error.suggestions


def test_a_machine_without_slurm_is_no_login_node(client: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as here, pytest.raises(ProviderError, match="there is no `sbatch` on this") as caught:
        here.setenv("PATH", "/nowhere")
        submitted(Flow("slurm"), "true")
    assert any("slurm.login" in one for one in caught.value.suggestions)


def test_a_login_node_out_of_reach_is_named_and_the_task_goes_on_later(
    client: Flow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text("Host gone\n HostName 127.0.0.1\n Port 1\n")
    monkeypatch.setenv("FLOW_SLURM_SSH_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("FLOW_SLURM_LOGIN", "gone")
    with pytest.raises(ProviderError, match=r"`gone` cannot be reached: .*Connection refused"):
        submitted(Flow("slurm"), "echo ran")
    monkeypatch.delenv("FLOW_SLURM_LOGIN")
    (task,) = Flow("slurm").tasks()
    assert task.wait(timeout=30) == "completed"


def test_no_folder_is_refused_before_anything_is_recorded(client: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOW_SLURM_FOLDER")
    with pytest.raises(ValidationError, match="no folder for its tasks") as caught:
        submitted(Flow("slurm"), "true")
    assert "slurm.folder" in caught.value.suggestions[0]
    assert client.records.rows() == []


def test_a_full_folder_is_named(client: Flow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        monkeypatch.setenv("FLOW_SLURM_FOLDER", str(small))
        with pytest.raises(StorageError, match=r"cannot write to `slurm.folder`.*no space left on"):
            submitted(Flow("slurm"), "echo ran")
    finally:
        subprocess.run(["umount", small], check=True)
    (task,) = Flow("slurm").tasks()  # it was acknowledged, and there is room now
    assert task.wait(timeout=30) == "completed"


def test_a_job_whose_batch_step_is_killed_is_lost_not_completed(client: Flow, slurm: Cluster) -> None:
    task = running(client, "sleep 1000")
    (step,) = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if f"slurm_job.py\0{client.settings.get('slurm.folder')}/tasks/{task.task_id}".encode() in _read(path)
    ]
    os.kill(step, signal.SIGKILL)
    assert task.wait(timeout=30) == "lost"
    assert task.reason == f"job {task.number} ended as FAILED and left no report"
    assert task.logs() == "up\n"


def test_a_job_that_slurm_and_its_accounting_forgot_is_lost(client: Flow, tmp_path: Path) -> None:
    task = running(client, "sleep 1000")
    number = tmp_path / "shared" / "tasks" / task.task_id / "number"
    number.write_text("3999999")
    assert task.refresh().status == "lost"
    assert task.reason == "job 3999999 is gone from Slurm and left no report"
    assert client.get_task(task.task_id).status == "lost"


def test_a_task_whose_folder_is_not_there_is_told_of_by_slurm_and_can_be_ended(
    client: Flow, slurm: Cluster, tmp_path: Path
) -> None:
    task, other = running(client, "sleep 1000"), running(client, "sleep 1000")
    folder = tmp_path / "shared"
    folder.rename(tmp_path / "away")
    assert task.refresh().status == "starting"
    task.cancel()
    words = ("squeue", "-h", "-t", "all", "-j", str(task.number), "-o", "%T")
    assert wait_until(lambda: slurm.run(*words).stdout == "CANCELLED\n", seconds=30)
    shutil.rmtree(folder)  # with what the job still wrote
    (tmp_path / "away").rename(folder)
    assert (task.wait(timeout=30), other.refresh().status) == ("cancelled", "running")
    other.cancel()


def test_another_cluster(client: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It neither ends a task nor forgets it. (This name is short, as sockets are made in a folder of that name.)"""
    task = running(client, "sleep 1000")
    with Cluster(Path(tempfile.mkdtemp(prefix="sl")), nodes=1) as another, monkeypatch.context() as there:
        there.setenv("SLURM_CONF", another.environment()["SLURM_CONF"])
        there.setenv("FLOW_SLURM_FOLDER", str(tmp_path / "other"))
        seen = Flow("slurm").get_task(task.task_id)
        told = f"job {task.number} is not known here: is `slurm.folder` mounted, and this the cluster"
        assert seen.status == "starting" and seen.reason.startswith(told), seen.reason
        with pytest.raises(ProviderError, match=f"`{task}` is job {task.number}, which is not known here"):
            seen.cancel()
    task.cancel()
    assert task.wait(timeout=30) == "cancelled"


def test_a_runner_that_is_killed_is_a_lost_attempt_that_counts(client: Flow) -> None:
    task = running(client, "[ $FLOW_ATTEMPT = 2 ] && exit 0; sleep 1000", retries=1)
    report = f"{client.settings.get('slurm.folder')}/tasks/{task.task_id}/1/0"
    (runner,) = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if f"run\0{report}".encode() in _read(path)
    ]
    os.kill(runner, signal.SIGKILL)
    assert task.wait(timeout=30) == "completed"
    assert [one.reason for one in task.attempts] == ["its runner died without a report", ""]


@pytest.mark.timeout(300)  # Slurm is slow to notice
def test_a_rank_that_dies_without_a_word_ends_the_others_and_its_task_is_lost(client: Flow, slurm: Cluster) -> None:
    task = met(client)
    _kill(f"run\0{client.settings.get('slurm.folder')}/tasks/{task.task_id}/1/1", f"slurmstepd: [{task.number}.0]")
    assert task.wait(timeout=200) == "lost", told_of(task)
    assert task.reason == "its runner died without a report (node 1)"


def test_a_task_that_hangs_for_a_rank_that_died_is_cancelled(client: Flow) -> None:
    task = met(client)
    folder = f"{client.settings.get('slurm.folder')}/tasks/{task.task_id}/1"
    _kill(f"run\0{folder}/1", f"slurmstepd: [{task.number}.0]")
    status = Path(folder, "0", "status.json")
    assert wait_until(lambda: '"ended"' in status.read_text(), seconds=60)
    task.cancel()
    assert task.wait(timeout=30) == "cancelled", told_of(task)


def met(client: Flow) -> Task:
    """Two ranks that have found each other: before that each waits for the other, whatever becomes of it."""
    task = running(client, "sleep 1; echo met; sleep 1000", num_instances=2)
    assert wait_until(lambda: task.logs().split().count("met") == 2, seconds=30), told_of(task)
    return task


def _kill(*commands: str) -> None:
    """Those whose command lines have one of these in them; all at once, so that none can tell of another."""
    found = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if any(one.encode() in _read(path) for one in commands)
    ]
    for pid in found:
        os.kill(pid, signal.SIGSTOP)
    for pid in found:
        os.kill(pid, signal.SIGKILL)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
