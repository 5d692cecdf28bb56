"""The local provider: the contract, and what is its own."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flow as flow_module
from flow.client import Flow
from flow.errors import ValidationError
from flow.node.inventory import Card, card_kind, parse_nvidia_smi, visible_cards
from flow.providers.local.queue import Queue
from flow.status import TaskStatus, Want
from flow.task import Task
from tests.support.contract import ProviderContract
from tests.support.processes import is_alive, wait_until

Submit = Callable[..., Task]


@pytest.fixture
def client() -> Flow:
    return Flow(provider="local")


@pytest.fixture
def submit(client: Flow) -> Submit:
    def run(command: str | list[str], **fields: Any) -> Task:
        return client.run(client.load(None, **{"command": command, "upload_code": False, **fields}))

    return run


def scheduler_pid(client: Flow) -> int:
    return int((client.home / "local" / "scheduler.lock").read_text())


def runner_pid(task: Task) -> int:
    assert task.folder
    return int((task.folder / "runner.lock").read_text())


def until(task: Task, *statuses: str, seconds: float = 30) -> Task:
    assert wait_until(lambda: str(task.refresh().status) in statuses, seconds=seconds), (task.status, task.reason)
    return task


def fake_cards(folder: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """An `nvidia-smi` first on PATH that tells of these cards."""
    lines = "\n".join(f"{index}, {name}, 81920" for index, name in enumerate(names))
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\ncat <<'E'\n{lines}\nE\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


class TestLocal(ProviderContract):
    """The contract, unchanged."""


def test_tasks_survive_the_death_of_the_scheduler(client: Flow, submit: Submit, tmp_path: Path) -> None:
    running = until(submit(f"until [ -e {tmp_path}/go ]; do sleep 0.02; done; echo done"), "running")
    queued = [submit(f"echo {n}") for n in range(6)]
    os.kill(scheduler_pid(client), signal.SIGKILL)
    (tmp_path / "go").touch()
    assert [task.wait(timeout=30) for task in [running, *queued]] == ["completed"] * 7
    assert running.logs() == "done\n"
    assert len(running.attempts) == 1


def test_a_killed_runner_is_a_lost_task_and_its_processes_are_ended(submit: Submit, tmp_path: Path) -> None:
    task = until(submit(f"(setsid sleep 1000 & echo $! > {tmp_path}/pid); sleep 1000"), "running")
    assert wait_until(lambda: (tmp_path / "pid").exists() and bool((tmp_path / "pid").read_text()))
    os.kill(runner_pid(task), signal.SIGKILL)
    assert task.wait(timeout=30) == "lost"
    assert task.reason == "its runner died without a report"
    left = int((tmp_path / "pid").read_text())
    assert wait_until(lambda: not is_alive(left))


def test_a_lost_attempt_runs_again_when_retries_say_so(submit: Submit) -> None:
    task = submit("echo $FLOW_ATTEMPT; [ $FLOW_ATTEMPT = 2 ] || sleep 1000", retries=1)
    assert next(iter(task.logs(follow=True))) == "1"
    os.kill(runner_pid(task), signal.SIGKILL)
    assert task.wait(timeout=30) == "completed"
    assert [str(attempt.status) for attempt in task.attempts] == ["lost", "completed"]
    assert task.logs() == "1\n2\n"


def test_higher_priority_starts_first_and_equals_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOW_LOCAL_CPUS", "1")
    client = Flow()
    ran = client.home / "order"
    first = client.run(f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done", upload_code=False)
    until(first, "running")
    tasks = [
        client.run(f"echo {name} >> {ran}", priority=priority, upload_code=False)
        for name, priority in (("low", -1), ("one", 0), ("two", 0), ("high", 5))
    ]
    assert [task.refresh().reason for task in tasks] == [f"queued: {n} ahead" for n in (3, 1, 2, 0)]
    (tmp_path / "go").touch()
    for task in tasks:
        task.wait(timeout=30)
    assert ran.read_text().split() == ["high", "one", "two", "low"]


def test_an_array_is_one_task_of_many(client: Flow, submit: Submit, tmp_path: Path) -> None:
    command = f"echo $FLOW_ARRAY_INDEX $SLURM_ARRAY_TASK_ID > {tmp_path}/$FLOW_ARRAY_INDEX; [ $FLOW_ARRAY_INDEX != 5 ]"
    task = submit(command, array="1-5:2,20")
    assert task.wait(timeout=30) == "failed"
    assert task.elements == {"completed": 3, "failed": 1}
    assert task.reason == "1 of 4 failed: exit 1"
    assert {int(one.name): one.read_text() for one in tmp_path.glob("[0-9]*")} == {
        n: f"{n} {n}\n" for n in (1, 3, 5, 20)
    }
    element = client.get_task(f"{task.task_id}_5")
    assert (element.status, element.exit_code) == ("failed", 1)
    assert [one.task_id for one in client.tasks()] == [task.task_id]


def test_an_array_runs_only_as_many_as_it_may(submit: Submit, tmp_path: Path) -> None:
    command = f"mkdir {tmp_path}/only-one && sleep 0.05 && rmdir {tmp_path}/only-one"
    assert submit(command, array="1-6%1", cpus=0.1).wait(timeout=30) == "completed"


def test_cancelling_an_element_lets_the_others_go_on(client: Flow, submit: Submit) -> None:
    task = submit("[ $FLOW_ARRAY_INDEX = 2 ] || sleep 1000", array="1-2%1")
    first = client.get_task(f"{task.task_id}_1")
    until(first, "running")
    first.cancel()
    assert task.wait(timeout=30) == "cancelled"
    assert task.elements == {"cancelled": 1, "completed": 1}


@pytest.mark.parametrize(
    ("upstream", "state", "status"),
    [
        ("true", "completed", "completed"),
        ("false", "completed", "cancelled"),
        ("false", "failed", "completed"),
        ("true", "failed", "cancelled"),
        ("false", "ended", "completed"),
    ],
)
def test_a_task_waits_for_another(submit: Submit, tmp_path: Path, upstream: str, state: str, status: str) -> None:
    first = submit(f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; {upstream}")
    second = submit("true", depends_on=[f"{first.task_id}:{state}"])
    assert second.refresh().reason == f"waits for {first.task_id} to be {state}"
    (tmp_path / "go").touch()
    assert second.wait(timeout=30) == status
    if status == "cancelled":
        assert second.reason == f"waited for {first.task_id} to be {state}, which cannot be any more"
    late = submit("true", depends_on=[f"{first.task_id}:{state}"])
    assert late.wait(timeout=30) == status


def test_a_task_waits_for_the_start_of_another(submit: Submit) -> None:
    first = submit("sleep 1000", cpus=0.1)
    assert submit("true", depends_on=[f"{first.task_id}:started"], cpus=0.1).wait(timeout=30) == "completed"
    first.cancel()
    first.wait(timeout=30)


def test_a_task_begins_when_it_is_told(submit: Submit) -> None:
    begin = round(time.time() + 1.5)
    task, later = submit("true", begin=str(begin)), submit("true", begin="now+1hour")
    assert later.refresh().reason.startswith("begins ")
    assert task.wait(timeout=30) == "completed"
    assert task.started_at and task.started_at.timestamp() >= begin
    later.cancel()


def test_a_held_task_starts_when_it_is_let(client: Flow, submit: Submit) -> None:
    task = submit("true", hold=True)
    assert client.get_task(task.task_id).reason == "held: `flow resume` lets it start"
    assert client.provider().allocations([task.task_id]) == []
    client.get_task(task.task_id).resume()
    assert task.wait(timeout=30) == "completed"
    cancelled = submit("true", hold=True)
    cancelled.cancel()
    assert cancelled.refresh().status == "cancelled"


def test_a_signal_comes_before_the_time_limit(submit: Submit) -> None:
    command = "trap 'echo warned; exit 0' USR1; echo up; while :; do sleep 0.02; done"
    task = submit(command, max_run_time_hours=60 / 3600, signal="USR1@57")
    assert task.wait(timeout=30) == "completed"
    # the signal goes to the whole group, and the shell says on stderr which child it ended
    assert [line.text for line in task.lines(stream="stdout")] == [b"up", b"warned"]


def test_the_time_limit_counts_all_attempts(submit: Submit) -> None:
    task = submit("sleep 0.5; exit 1", max_run_time_hours=3 / 3600, retries=9)
    assert task.wait(timeout=30) == "timed_out"
    assert (2 <= len(task.attempts) <= 6, task.reason) == (True, "time limit 0.000833333 h reached")


def test_gpus_are_given_out_and_seen_by_nobody_else(
    submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cards(tmp_path, monkeypatch, "NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB")
    show = 'echo "[$CUDA_VISIBLE_DEVICES]"; touch up; while [ ! -e go ]; do sleep 0.02; done'
    none = submit('echo "[$CUDA_VISIBLE_DEVICES]"', cpus=0.1)
    assert none.wait(timeout=30) == "completed"
    assert none.logs() == "[]\n"
    two, one, last = (submit(show, gpu=gpu, cpus=0.1) for gpu in ("a100:2", "a100", "a100:2"))
    for task in (two, one):
        until(task, "running")
    assert (two.plan.notes, two.instance_type, two.plan.gpus) == ((), "2xa100", 2)
    assert last.refresh().reason == "queued: 0 ahead"
    for task in (two, one, last):
        assert wait_until(
            lambda task=task: bool(task.folder and (task.folder / "workspace" / "up").exists()), seconds=20
        )
        (task.folder / "workspace" / "go").touch()
        assert task.wait(timeout=30) == "completed"
    assert [task.logs() for task in (two, one, last)] == ["[0,1]\n", "[2]\n", "[0,1]\n"]


def test_each_node_of_a_task_sees_its_own_gpus(submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cards(tmp_path, monkeypatch, *["NVIDIA A100-SXM4-80GB"] * 4)
    task = submit('echo "$FLOW_NODE_RANK [$CUDA_VISIBLE_DEVICES]"', gpu="a100:2", num_instances=2, cpus=0.1)
    assert task.wait(timeout=30) == "completed"
    assert sorted(line.text for line in task.lines(stream="stdout")) == [b"0 [0,1]", b"1 [2,3]"]


def test_a_machine_that_is_not_here_is_emulated_or_refused(submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    task = submit("true", instance_type="8xh100")
    assert (task.instance_type, task.plan.gpus) == ("8xh100", 0)
    assert task.plan.notes == ("this machine has no `8xh100`: emulated with no GPU (`local.strict` refuses this)",)
    assert task.wait(timeout=30) == "completed"
    monkeypatch.setenv("FLOW_LOCAL_STRICT", "true")
    with pytest.raises(ValidationError, match="no instance type `8xh100` at local"):
        Flow().run("true", instance_type="8xh100", upload_code=False)


def test_ports_are_endpoints_while_it_runs(submit: Submit) -> None:
    task = until(submit("sleep 1000", ports=[8888, 6006]), "running")
    assert task.endpoints == {"8888": "http://127.0.0.1:8888", "6006": "http://127.0.0.1:6006"}
    task.cancel()
    task.wait(timeout=30)
    assert task.endpoints == {}


def test_output_and_error_go_to_files_of_the_submitter_too(
    submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task = submit("echo out; echo err >&2", name="train", output="%x-%j.out", error="err-%a.txt", array=[4])
    assert task.wait(timeout=30) == "completed"
    assert (tmp_path / f"train-{task.task_id}_4.out").read_text() == "out\n"
    assert (tmp_path / "err-4.txt").read_text() == "err\n"


def test_the_submitting_shell_lends_its_path_and_nothing_more(submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTUAL_ENV", "/some/venv")
    monkeypatch.setenv("MY_SETTING", "1")
    task = submit("echo [$VIRTUAL_ENV] [$MY_SETTING] [$HOME]")
    task.wait(timeout=30)
    assert task.logs() == f"[/some/venv] [] [{os.environ['HOME']}]\n"


def test_an_edit_after_submission_does_not_change_a_queued_task(
    client: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "say.sh").write_text("echo before\n")
    monkeypatch.chdir(tmp_path)
    task = client.run("sh say.sh", hold=True)
    (tmp_path / "say.sh").write_text("echo after\n")
    task.resume()
    task.wait(timeout=30)
    assert task.logs() == "before\n"


def test_a_damaged_queue_is_rebuilt_from_the_records(client: Flow, submit: Submit, tmp_path: Path) -> None:
    done, failed = submit("echo kept"), submit("exit 3")
    assert (done.wait(timeout=30), failed.wait(timeout=30)) == ("completed", "failed")
    wait = f"until [ -e {tmp_path}/go ]; do sleep 0.02; done"
    running = until(submit(f"{wait}; echo survived", cpus=0.1), "running")
    held = submit("true", hold=True)
    for name in ("local.db", "local.db-wal"):
        (client.home / "local" / name).write_bytes(b"garbage" * 1000)
    fresh = Flow()
    states = {task.task_id: str(task.status) for task in fresh.tasks()}
    assert states == {
        held.task_id: "pending",
        running.task_id: "running",
        failed.task_id: "failed",
        done.task_id: "completed",
    }
    (tmp_path / "go").touch()
    assert running.wait(timeout=30) == "completed"
    assert running.logs() == "survived\n"
    new = fresh.run("echo new", upload_code=False)
    assert new.wait(timeout=30) == "completed"
    assert list((client.home / "local").glob("local.db.damaged-*"))


def test_an_image_runs_in_a_container(client: Flow, submit: Submit, containers: str, tmp_path: Path) -> None:
    command = 'pwd; id -u; echo "$SECRET_KEY"; echo 1 > $FLOW_OUTPUT/kept; ls /; exit 5'
    task = submit(command, image=containers, env={"SECRET_KEY": "a b\n'c'"})
    assert task.wait(timeout=60) == "failed", task.reason
    assert task.exit_code == 5
    assert task.logs().splitlines()[:4] == ["/workspace", "0", "a b", "'c'"]
    kept = task.outputs("kept")
    assert kept and kept.read_text() == "1\n"


def test_cancelling_ends_the_container(submit: Submit, containers: str) -> None:
    task = until(submit("echo up; sleep 1000", image=containers, grace_seconds=2), "running")
    assert next(iter(task.logs(follow=True))) == "up"
    task.cancel()
    assert task.wait(timeout=60) == "cancelled"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 2080 Ti", "rtx2080ti"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA L40S", "l40s"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("Tesla T4", "t4"),
        ("???", "gpu"),
    ],
)
def test_the_kind_of_a_card_is_read_from_its_name(name: str, kind: str) -> None:
    assert card_kind(name) == kind


def test_nvidia_smi_is_read_and_what_is_no_card_passed_over() -> None:
    text = "0, NVIDIA H200, 143771\n1, Tesla T4, [N/A]\nNo devices were found\n"
    cards = (Card(0, "h200", 140.4), Card(1, "t4", 0.0))
    assert parse_nvidia_smi(text) == cards
    assert visible_cards(cards, {"CUDA_VISIBLE_DEVICES": "1"}) == cards[1:]
    assert visible_cards(cards, {"CUDA_VISIBLE_DEVICES": ""}) == ()
    assert visible_cards(cards, {}) == cards


def test_ten_thousand_queued_tasks_are_held_and_can_be_ended(client: Flow, submit: Submit) -> None:
    task = submit("sleep 1000", array="1-10000")
    assert wait_until(lambda: task.refresh().status is TaskStatus.RUNNING, seconds=30)
    assert "ended" in task.reason
    task.cancel()
    assert task.wait(timeout=60) == "cancelled"
    assert task.elements == {"cancelled": 10000}


def test_a_list_is_a_command_too(client: Flow) -> None:
    task = client.run(["printf", "%s", "a b"], upload_code=False)
    assert task.wait(timeout=30) == "completed"
    assert task.logs() == "a b\n"


def test_a_command_that_removes_its_own_folder_ran_once(submit: Submit, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    task = submit(f'echo ran >> {ran}; rm -rf "$(dirname "$FLOW_OUTPUT")"; exit 4')
    assert (task.wait(timeout=30), task.exit_code) == ("failed", 4)
    assert ran.read_text() == "ran\n"


def test_a_status_that_was_removed_is_a_loss_not_another_start(submit: Submit, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    task = submit(f'echo ran >> {ran}; rm "$(dirname "$FLOW_OUTPUT")/status.json"; kill -9 $PPID; sleep 1000')
    assert task.wait(timeout=30) == "lost"
    assert ran.read_text() == "ran\n"


def test_an_array_goes_on_when_elements_that_held_its_places_are_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOW_LOCAL_CPUS", "1")
    client = Flow()
    blocker = until(client.run(f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done", upload_code=False), "running")
    task = client.run("true", array="1-4%1", upload_code=False)
    elements = [f"{task.task_id}_{index}" for index in (1, 2)]
    for element in elements:
        client.records.set_intent(element, Want.CANCEL)
    with contextlib.closing(Queue(client.home / "local" / "local.db")) as queue, queue.transaction():
        for element in elements:  # in one, so that the scheduler sees both at once
            queue.note_want(element, Want.CANCEL)
    client.provider().release(elements[0])
    (tmp_path / "go").touch()
    assert blocker.wait(timeout=30) == "completed"
    assert task.wait(timeout=30) == "cancelled"
    assert task.elements == {"cancelled": 2, "completed": 2}


def test_a_task_that_starts_a_scheduler_does_not_take_it_along(
    client: Flow, submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler is killed, and the next one is started by a command: below that one's runner."""
    flow = f"{sys.executable} -m flow"
    source = str(Path(flow_module.__file__).parents[1])
    env = {"FLOW_HOME": os.environ["FLOW_HOME"], "PYTHONPATH": source}
    wait = f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done"
    outer = until(submit(f"{wait}; {flow} run --no-upload-code --name inner 'sleep 2; echo done'", env=env), "running")
    os.kill(scheduler_pid(client), signal.SIGKILL)
    (tmp_path / "go").touch()
    assert outer.wait(timeout=60) == "completed", outer.logs()
    inner = client.get_task("inner")
    assert inner.wait(timeout=60) == "completed"
    assert inner.logs() == "done\n"


def test_what_needs_no_gpu_passes_a_long_queue_of_what_does(
    submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cards(tmp_path, monkeypatch, "NVIDIA A100-SXM4-80GB")
    blocked = submit("sleep 1000", gpu="a100", cpus=0.001, array="1-200")
    assert submit("true", cpus=0.1).wait(timeout=30) == "completed"
    blocked.cancel()
    assert blocked.wait(timeout=30) == "cancelled"
