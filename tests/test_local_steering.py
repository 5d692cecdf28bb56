"""Dependencies, holds and requeues of the local provider, where something comes between: a kill, a rebuilt queue."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from flow.client import Flow
from flow.errors import ValidationError
from flow.machines import Report
from flow.node.remains import is_locked
from flow.plan import Dependency, Elements, Plan
from flow.providers.local.queue import Queue
from flow.providers.local.waiting import Waiting
from flow.status import HELD, Want
from flow.task import Task
from tests.support.processes import wait_until
from tests.test_local_faults import kill_scheduler, lose_queue, run, until_running

COMPLETED = Report("ended", code=0, cause="exit", started=1.0, ended=2.0)
# A script that asks for it at once, whatever becomes of it then.
REQUEUES_ITSELF = (
    'echo run $FLOW_ATTEMPT; [ $FLOW_ATTEMPT = 3 ] || { echo requeue >> "$FLOW_OUTPUT/../asked"; exit 7; }'
)


@pytest.fixture
def client() -> Flow:
    return Flow(provider="local")


def until_told(task: Task, reason: str) -> None:
    assert wait_until(lambda: task.refresh().reason == reason, seconds=60), (task.status, task.reason)


# -- dependencies


def test_a_delay_begins_when_what_was_waited_for_happened(client: Flow) -> None:
    first = run(client, "true")
    first.wait(timeout=60)
    second = run(client, "true", depends_on=f"{first}:started+0.01")
    third = run(client, "true", depends_on=f"{first}:ended+60")
    assert second.wait(timeout=60) == "completed"
    assert first.started_at and second.started_at
    assert (second.started_at - first.started_at).total_seconds() >= 0.6
    assert wait_until(lambda: third.refresh().reason.startswith("begins "), seconds=60), third.reason
    third.cancel()
    assert third.wait(timeout=60) == "cancelled"


def test_a_delay_that_may_be_overtaken_is_not_waited_for(client: Flow) -> None:
    first = run(client, "true")
    first.wait(timeout=60)
    later = run(client, "true", begin="now+1hour")
    either = run(client, "true", depends_on=[f"{first}:ended+60", f"{later}:ended"], depends_on_any=True)
    until_told(either, f"waits for {first} to be ended for 60 minutes or {later} to be ended")
    later.cancel()
    assert either.wait(timeout=60) == "completed"


def test_what_is_known_by_its_record_only_is_waited_for_by_it(client: Flow) -> None:
    held = run(client, hold=True)
    failed, ended = (run(client, depends_on=f"{held}:{state}") for state in ("failed", "ended"))
    started = run(client, depends_on=f"{held}:started")
    held.cancel()
    assert [task.wait(timeout=60) for task in (failed, ended, started)] == ["completed", "completed", "cancelled"]


def test_the_limit_of_an_array_is_for_what_runs_not_for_what_waits(client: Flow, tmp_path: Path) -> None:
    """Its first two elements wait for theirs; the third need not wait for them."""
    command = f"[ $FLOW_ARRAY_INDEX = 3 ] || while [ ! -e {tmp_path}/go ]; do sleep 0.02; done"
    upstream = run(client, command, array="1-3", cpus=0.1)
    each = run(client, array="1-3%2", depends_on=f"{upstream}:corresponding")
    assert client.get_task(f"{each}_3").wait(timeout=60) == "completed"
    first = client.get_task(f"{each}_1")
    assert (str(first.status), first.reason) == ("pending", f"waits for {upstream} to be completed")
    (tmp_path / "go").touch()
    assert each.wait(timeout=60) == "completed"


@pytest.mark.parametrize("state", ["completed", "corresponding"])
def test_twice_the_elements_are_twice_the_work(tmp_path: Path, state: str) -> None:
    """Counted in steps of SQLite's machine, by the thousand."""
    small, large = (_steps(tmp_path / str(count), count, state) for count in (500, 2000))
    assert large < 6 * small


def _steps(folder: Path, count: int, state: str) -> int:
    """What it takes to run an array of `count` elements and one that waits for it."""
    folder.mkdir()
    queue, steps = Queue(folder / "local.db"), [0]

    def count_step() -> int:
        steps[0] += 1
        return 0

    queue.db.set_progress_handler(count_step, 1000)
    with contextlib.closing(queue):
        elements = Elements(tuple(range(count)), 20)
        for task_id, after in (("task-a", ()), ("task-b", (Dependency("task-a", state),))):
            queue.add(Plan(task_id, "x", "local", ("true",), elements=elements, after=after))
        waiting = Waiting(folder, queue)
        for _ in _rounds(queue, waiting):
            pass
        assert not queue.has_work()
    return steps[0]


def _rounds(queue: Queue, waiting: Waiting) -> Iterator[None]:
    """As the scheduler does: sixteen at a time, each of which completes."""
    while queue.has_work():
        with queue.transaction():
            assert waiting.release() == []
            for row in queue.next_queued(16):
                started = queue.start(row, [])
                waiting.note_start(started)
                queue.end(started, {0: COMPLETED}, reason="", now=3.0)
                waiting.note_end(started)
        yield


def test_the_same_key_is_the_same_singleton_whatever_has_its_name_by_then(client: Flow) -> None:
    first = run(client, "true", name="one", singleton=True, idempotency_key="k")
    assert run(client, "true", name="one", singleton=True, idempotency_key="k") == first
    assert first.wait(timeout=60) == "completed"


# -- holds


def test_a_place_of_an_array_goes_to_the_next_while_an_element_is_held(client: Flow) -> None:
    before = run(client, hold=True)
    array = run(client, "echo ran", array="1-3%1", depends_on=f"{before}:ended")
    first = client.get_task(f"{array}_1")
    first.hold()
    before.resume()
    assert [client.get_task(f"{array}_{n}").wait(timeout=60) for n in (2, 3)] == ["completed", "completed"]
    assert (str(first.refresh().status), first.reason) == ("pending", HELD)
    first.resume()
    assert array.wait(timeout=60) == "completed"


def test_a_hold_that_comes_before_the_provider_has_the_task_holds(client: Flow) -> None:
    task = run(client, begin="now+1hour")
    plan = task.plan
    held = run(client, hold=True)
    held.hold()
    assert held.refresh().reason == HELD
    assert client.provider().allocations([held.task_id]) == []
    lose_queue(client)
    task.hold()
    assert client.provider().allocate(plan) is None
    assert task.refresh().reason == HELD


def test_nobody_stays_up_for_what_is_held(client: Flow) -> None:
    task = run(client, begin="now+1hour")
    task.hold()
    kill_scheduler(client)
    assert task.refresh().reason == HELD
    assert not is_locked(client.home / "local" / "scheduler.lock")
    task.cancel()
    assert task.wait(timeout=60) == "cancelled"


def test_a_resume_that_was_cut_short_is_asked_again(client: Flow) -> None:
    """Its client wrote down that the task is to run, and died before it told the queue."""
    before = until_running(run(client, "sleep 1000"))  # a scheduler that has just begun would see to it
    task = run(client, "true", depends_on=f"{before}:ended", cpus=0.1)
    task.hold()
    before.cancel()
    client.records.set_intent(task.task_id, Want.RUN)
    assert task.refresh().is_held
    task.resume()
    assert task.wait(timeout=60) == "completed"


def test_a_rebuilt_queue_knows_what_is_held_and_what_was_requeued(client: Flow) -> None:
    held, array = run(client, begin="now+1hour"), run(client, begin="now+1hour", array="1-2")
    runs = until_running(run(client, "sleep 1000", retries=1, max_run_time_hours=1))
    held.hold()
    client.get_task(f"{array}_2").hold()
    runs.requeue(hold=True)
    until_told(runs, HELD)
    lose_queue(client)
    for task in (held, client.get_task(f"{array}_2"), runs):
        assert (str(task.refresh().status), task.reason) == ("pending", HELD)
    assert client.get_task(f"{array}_1").reason != HELD
    runs.resume()
    until_running(runs)
    assert [str(one.status) for one in runs.attempts] == ["preempted", "running"]
    client.cancel(held, array, runs)
    assert [task.wait(timeout=60) for task in (held, array, runs)] == ["cancelled"] * 3


def test_what_runs_goes_on_when_it_is_held_and_waits_when_it_is_requeued(client: Flow) -> None:
    task = until_running(run(client, "while [ $FLOW_ATTEMPT = 1 ]; do sleep 0.02; done"))
    task.hold()
    assert (str(task.refresh().status), task.is_held) == ("running", True)
    task.requeue()
    until_told(task, HELD)
    task.resume()
    assert task.wait(timeout=60) == "completed"


# -- requeues and signals


def test_a_task_requeues_itself_and_no_retry_is_spent_on_it(client: Flow) -> None:
    task = run(client, REQUEUES_ITSELF)
    assert task.wait(timeout=60) == "completed"
    assert [str(one.status) for one in task.attempts] == ["preempted", "preempted", "completed"]
    assert task.logs() == "run 1\nrun 2\nrun 3\n"
    fixed = run(client, REQUEUES_ITSELF, requeue=False)
    assert (fixed.wait(timeout=60), fixed.exit_code, len(fixed.attempts)) == ("failed", 7, 1)


def test_each_run_of_a_requeued_task_has_its_whole_time(client: Flow) -> None:
    command = (
        "trap 'echo requeue >> \"$FLOW_OUTPUT/../asked\"; exit 1' USR1; [ $FLOW_ATTEMPT = 3 ] || sleep 1000 & wait"
    )
    task = run(client, command, signal="USR1@57", max_run_time_hours=60 / 3600)
    assert (task.wait(timeout=60), len(task.attempts)) == ("completed", 3)


def test_all_nodes_of_a_requeued_task_begin_anew(client: Flow) -> None:
    command = (
        "[ $FLOW_ATTEMPT = 2 ] || { [ $FLOW_NODE_RANK = 1 ] && echo requeue >> $FLOW_OUTPUT/../asked || sleep 1000; }"
    )
    task = run(client, command, num_instances=2)
    assert (task.wait(timeout=60), [str(one.status) for one in task.attempts]) == (
        "completed",
        ["preempted", "completed"],
    )


def test_a_cancel_comes_before_a_requeue(client: Flow) -> None:
    task = run(client, "trap '' TERM; while :; do sleep 0.05; done", grace_seconds=0.5)
    until_running(task)
    task.requeue()
    task.cancel()
    assert task.wait(timeout=60) == "cancelled"


def test_an_acknowledged_requeue_survives_the_runner(client: Flow) -> None:
    """Its runner is killed while it waits for the command to end: that is no loss."""
    task = run(client, "trap '' TERM; echo up; while [ $FLOW_ATTEMPT = 1 ]; do sleep 0.05; done")
    assert next(iter(task.logs(follow=True))) == "up"
    task.requeue()
    kill_scheduler(client)
    folder = task.folder
    assert folder
    os.kill(int((folder / "runner.lock").read_text()), signal.SIGKILL)
    assert task.wait(timeout=30) == "completed"
    assert [str(one.status) for one in task.attempts] == ["preempted", "completed"]


def test_what_does_not_run_is_neither_requeued_nor_signalled(client: Flow) -> None:
    task = run(client, begin="now+1hour")
    with pytest.raises(ValidationError, match="is pending: only what runs is requeued"):
        task.requeue()
    with pytest.raises(ValidationError, match="is pending: only what runs hears a signal"):
        task.send_signal(signal.SIGUSR1)
    task.cancel()
    with pytest.raises(ValidationError, match="cancelled"):
        task.hold()


@pytest.mark.parametrize(("to", "heard"), [("command", "shell"), ("steps", "step"), ("all", "shell step")])
def test_a_signal_is_for_the_command_its_steps_or_all(client: Flow, to: str, heard: str, tmp_path: Path) -> None:
    linger = "until [ -e $HEARD.go ]; do sleep 0.02; done"
    step = f"SLURM_STEP_ID=0 sh -c 'trap \"echo step >> $HEARD\" USR1; touch $HEARD; {linger}'"
    command = f"trap 'echo shell >> $HEARD' USR1; {step} & {linger}; wait"
    told = tmp_path / "heard"
    task = until_running(run(client, command, env={"HEARD": str(told)}))
    assert wait_until(told.exists, seconds=60)
    task.send_signal(signal.SIGUSR1, to=to)
    assert wait_until(lambda: sorted(told.read_text().split()) == heard.split(), seconds=60), told.read_text()
    Path(f"{told}.go").touch()
    assert task.wait(timeout=60) == "completed"
    assert sorted(told.read_text().split()) == heard.split()
