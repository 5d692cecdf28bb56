"""A machine at Mithril is gone for good: its task runs again on a new bid, as its retries say, and never on two."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flow
from flow.client import Flow
from flow.machines import Allocation, Machines
from flow.plan import Elements, Plan
from flow.providers.losses import Losses
from flow.record import Records, Submission
from flow.settings import flow_home
from flow.status import Outcome, TaskStatus
from flow.task import Task
from tests.support.commands import flow as told_by
from tests.support.commands import started
from tests.support.doom import Doom
from tests.support.mithril_cloud import Cloud
from tests.support.mithril_cloud.faults import Answer, Fault, answer, reset, taken_then_reset
from tests.support.processes import no_attendant, wait_until
from tests.support.story import DOOM

AGAIN = "echo up; [ $FLOW_ATTEMPT = 1 ] && sleep 1000; echo again $FLOW_ATTEMPT $FLOW_RESUME"
_SECONDS = 180.0


@pytest.fixture
def client(at_mithril: Flow, monkeypatch: pytest.MonkeyPatch) -> Flow:
    monkeypatch.setenv("FLOW_MITHRIL_LOST_AFTER_MINUTES", "0.03")
    return Flow()


def running(client: Flow, command: str = AGAIN, **fields: Any) -> Task:
    task = client.run(command, upload_code=False, grace_seconds=0.5, **fields)
    assert wait_until(lambda: "up" in task.logs(), seconds=_SECONDS, every=0.1), (task.refresh().status, task.reason)
    return task.refresh()


def attempts(task: Task) -> list[tuple[int, str]]:
    return [(one.number, str(one.status)) for one in task.attempts]


def bids(cloud: Cloud, task: Task) -> list[tuple[str, bool]]:
    """Those of a task, oldest first: the attempt that each was for, and whether it lives."""
    found = [one for one in cloud.spot.bids.values() if one.name == task.task_id]
    marks = [str(one.launch.startup_script).splitlines()[1].split()[3] for one in found]
    return list(zip(marks, [one.is_live for one in found], strict=True))


def is_given_back(client: Flow, cloud: Cloud) -> bool:
    return wait_until(lambda: client.held() == [], seconds=60) and cloud.billed() == []


def test_a_machine_that_dies_is_followed_by_one_on_a_new_bid(client: Flow, cloud: Cloud) -> None:
    task = running(client, retries=1)
    cloud.crash(task.task_id)
    assert task.wait(timeout=_SECONDS) == "completed", task.reason  # nobody but the attendant saw to it
    assert attempts(task) == [(1, "lost"), (2, "completed")]
    assert task.attempts[0].reason == "its machine has failed, says Mithril"
    assert task.logs() == "up\nagain 2 1\n"
    assert is_given_back(client, cloud)
    assert bids(cloud, task) == [("1", False), ("2", False)]
    first, second = (one for one in cloud.spot.bids.values() if one.name == task.task_id)
    assert first.deactivated is not None and first.deactivated <= second.created


def test_a_machine_that_has_failed_is_told_before_it_is_given_up(at_mithril: Flow, cloud: Cloud) -> None:
    task = running(at_mithril)
    with started("logs", "-f", str(task)) as (follower, first):
        assert first == "up\n" and follower.stderr
        cloud.crash(task.task_id)
        failed = r"its machine has failed, says Mithril, since \d\d:\d\d:\d\d"
        lines = (line.decode() for line in iter(follower.stderr.readline, b""))
        assert any(re.fullmatch(rf"note: running: {failed}\n", line) for line in lines)
        assert re.search(rf"^{task}  .*  running  .*  {failed}$", told_by("status").stdout, re.MULTILINE)
        assert re.search(rf"`{task}` is out of reach: {failed}$", told_by("logs", task.task_id).stderr, re.MULTILINE)
        at_mithril.cancel(task)
        follower.communicate(timeout=120)


def test_without_retries_it_is_lost_and_costs_nothing_more(client: Flow, cloud: Cloud) -> None:
    dead, ended = running(client), running(client)
    cloud.crash(dead.task_id)
    cloud.end_bid(ended.task_id)
    assert (ended.wait(timeout=_SECONDS), ended.reason) == ("lost", "its bid was ended")
    assert (dead.wait(timeout=_SECONDS), dead.reason) == ("lost", "its machine has failed, says Mithril")
    assert is_given_back(client, cloud)
    assert bids(cloud, dead) == bids(cloud, ended) == [("1", False)]


def test_a_bid_that_the_cloud_ends_is_followed_by_another_with_the_volumes(client: Flow, cloud: Cloud) -> None:
    volumes = [{"name": "kept", "size_gb": 1, "mount_path": "/data"}]
    command = "echo up; [ -e /data/here ] && echo found && exit; touch /data/here; sync; sleep 1000"
    task = running(client, command, volumes=volumes, retries=2)
    assert wait_until(lambda: task.shell("test -e /data/here") == 0, seconds=30)
    cloud.end_bid(task.task_id)
    assert task.wait(timeout=_SECONDS) == "completed", task.reason
    assert task.logs() == "up\nfound\n"
    assert attempts(task) == [(1, "lost"), (2, "completed")]
    assert [one.name for one in client.volumes()] == ["kept"]


def test_a_preempted_machine_that_never_comes_back_is_no_retry(client: Flow, cloud: Cloud) -> None:
    task = running(client)
    lane = cloud.lane(cloud.bid(task.task_id).instance_type, "us-central1-b")
    cloud.preempt(task.task_id)
    assert wait_until(lambda: task.refresh().status == "preempted", seconds=30)
    cloud.end_bid(task.task_id)
    lane.price_cents = 125
    assert task.wait(timeout=_SECONDS) == "completed", task.reason
    assert attempts(task) == [(1, "preempted"), (2, "completed")]
    assert task.attempts[0].reason == "its machine was taken back"


def test_preemptions_and_losses_are_counted_apart(client: Flow, cloud: Cloud) -> None:
    """Preempted and back on its disk, then lost, then failing: with two retries that is one try left."""
    task = running(client, "echo up; [ $FLOW_ATTEMPT -lt 3 ] && sleep 1000; exit 3", retries=2)
    lane = cloud.lane(cloud.bid(task.task_id).instance_type, "us-central1-b")
    cloud.preempt(task.task_id)
    assert wait_until(lambda: task.refresh().status == "preempted", seconds=30)
    cloud.advance(600)
    assert cloud.await_bid(task.task_id, "Open")
    lane.price_cents = 125
    cloud.advance(1)
    assert wait_until(lambda: task.refresh().outcome.attempt == 2 and task.status == "running", seconds=_SECONDS)
    cloud.end_bid(task.task_id)
    assert (task.wait(timeout=_SECONDS), task.exit_code) == ("failed", 3)
    assert attempts(task) == [(1, "preempted"), (2, "lost"), (3, "failed"), (4, "failed")]


def test_an_attempt_that_nobody_saw_leaves_its_number_to_the_next_machine(client: Flow, cloud: Cloud) -> None:
    """Preempted and back with no client there, then lost: the cloud does not tell that it was back."""
    task = running(client, f"echo x >>~/ran; {AGAIN}; [ $(wc -l <~/ran) = 1 ] || sleep 1000", retries=1)
    lane = cloud.lane(cloud.bid(task.task_id).instance_type, "us-central1-b")
    with no_attendant(client.home):
        cloud.preempt(task.task_id)
        cloud.await_bid(task.task_id, "Preempting")
        cloud.advance(600)
        cloud.await_bid(task.task_id, "Open")
        lane.price_cents = 125
        cloud.await_bid(task.task_id, "Allocated")
        host = cloud.host(task.task_id)
        assert wait_until(lambda: host.run("cat /home/ubuntu/ran").stdout == "x\nx\n", seconds=_SECONDS, every=0.2)
        cloud.end_bid(task.task_id)
    assert task.wait(timeout=_SECONDS) == "completed", task.reason
    assert attempts(task) == [(1, "lost"), (2, "completed")]
    assert [one[0] for one in bids(cloud, task)] == ["1", "2"]


def test_a_machine_that_never_boots_is_tried_once_more(client: Flow, cloud: Cloud) -> None:
    cloud.clock.ahead_seconds = -4000.0  # so that it is long ago
    cloud.spot.boot_seconds = math.inf
    task = client.run("echo up", upload_code=False, retries=1)
    assert wait_until(lambda: len(bids(cloud, task)) == 2, seconds=_SECONDS)
    cloud.clock.ahead_seconds = 0.0
    cloud.spot.boot_seconds = 0.0
    assert task.wait(timeout=_SECONDS) in ("completed", "lost")  # it may have given up the second, too
    assert attempts(task)[0] == (1, "lost")
    assert is_given_back(client, cloud)
    assert len(bids(cloud, task)) == 2


def test_a_machine_out_of_reach_is_given_up_only_for_another(client: Flow, cloud: Cloud) -> None:
    stays, moves = running(client), running(client, retries=1)
    hosts = [cloud.host(one.task_id) for one in (stays, moves)]
    for host in hosts:
        host.cut()
    assert moves.wait(timeout=_SECONDS) == "completed", moves.reason
    assert attempts(moves) == [(1, "lost"), (2, "completed")]
    assert moves.attempts[0].reason == "its machine was out of reach for 0.03 minutes"
    assert stays.refresh().status == "running"
    hosts[0].heal()
    client.cancel(stays)
    assert stays.wait(timeout=_SECONDS) == "cancelled"
    assert is_given_back(client, cloud)


def test_all_machines_of_a_task_are_replaced_when_one_dies(client: Flow, cloud: Cloud) -> None:
    command = "echo up; [ $FLOW_ATTEMPT = 1 ] && sleep 1000; echo rank $FLOW_NODE_RANK of $FLOW_NUM_NODES"
    task = running(client, command, num_instances=2, retries=1)
    cloud.crash(task.task_id, 1)
    assert task.wait(timeout=_SECONDS) == "completed", task.reason
    assert sorted(task.logs().splitlines()) == ["rank 0 of 2", "rank 1 of 2", "up", "up"]
    assert is_given_back(client, cloud)
    assert bids(cloud, task) == [("1", False), ("2", False)]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_cancel_while_it_moves_ends_it(client: Flow, cloud: Cloud, moment: str) -> None:
    task = running(client, retries=3)
    if moment == "before":
        client.records.set_intent(task.task_id, client.records.intent(task.task_id).want.CANCEL)
    else:
        cloud.lane(cloud.bid(task.task_id).instance_type, "us-central1-b").price_cents = 10_000
    cloud.end_bid(task.task_id)
    if moment == "after":
        assert wait_until(lambda: len(bids(cloud, task)) == 2, seconds=_SECONDS)
        task.cancel()
    assert task.wait(timeout=_SECONDS) == "cancelled"
    assert is_given_back(client, cloud)
    assert not any(lives for _, lives in bids(cloud, task))


@pytest.mark.parametrize("fault", [taken_then_reset(), reset()])
def test_the_answer_to_the_new_bid_may_be_lost(client: Flow, cloud: Cloud, fault: Any) -> None:
    task = running(client, retries=1)
    cloud.faults.play(fault, "POST /v2/spot/bids")
    cloud.end_bid(task.task_id)
    assert task.wait(timeout=_SECONDS) == "completed", task.reason
    assert is_given_back(client, cloud)
    assert Counter(bids(cloud, task)) == {("1", False): 1, ("2", False): 1}


@pytest.mark.parametrize("line", [3000, 6000, 9000, 12000])
def test_who_is_killed_over_it_is_followed_by_another(client: Flow, cloud: Cloud, line: int) -> None:
    task = running(client, retries=1)
    attendant = int((client.home / "attend.lock").read_text())
    os.kill(attendant, signal.SIGSTOP)  # so that nobody else does it first
    cloud.end_bid(task.task_id)
    os.kill(attendant, signal.SIGKILL)
    subprocess.run([sys.executable, DOOM, "client", str(line), "status"], capture_output=True, check=False)
    again = Flow()
    assert wait_until(lambda: [again.tasks(), again.get_task(task.task_id)][1].status == "completed", seconds=_SECONDS)
    assert attempts(again.get_task(task.task_id)) == [(1, "lost"), (2, "completed")]
    assert is_given_back(client, cloud)
    assert Counter(bids(cloud, task)) == {("1", False): 1, ("2", False): 1}


@pytest.mark.parametrize("is_told", [True, False])
def test_who_looks_while_another_notes_the_loss_does_not_end_the_task(
    client: Flow, cloud: Cloud, is_told: bool
) -> None:
    """The attempt before the last, which is tried again, is not taken for the last, which nobody may try again."""
    cloud.machines.pretended, cloud.spot.boot_seconds = True, math.inf
    task = client.run("sleep 1000", upload_code=False, retries=1)
    with no_attendant(client.home):
        assert wait_until(lambda: task.refresh().status == "starting")
        losses = Losses(client.home)
        losses.note_seen(task.task_id, 1)
        lost = Allocation(task.task_id, 1, Machines.LOST, reason="its bid was ended")
        (bid,) = cloud.spot.bids.values()

        def note(right: Answer | None) -> Answer:
            assert right
            losses.note(task.plan, lost, [bid.fid])
            losses.note_seen(task.task_id, 2)
            return right if is_told else answer(200, {"data": []})

        cloud.end_bid(task.task_id)
        cloud.faults.play(Fault(note, done_before=True), "GET /v2/spot/bids")
        assert Flow().get_task(task.task_id).status == "preempted"
    task.cancel()
    assert task.wait(timeout=_SECONDS) == "cancelled"


def tried(client: Flow, array: Task, index: int) -> list[tuple[int, str]]:
    return attempts(client.get_task(f"{array}_{index}"))


def test_of_an_array_what_has_ended_stays_and_the_rest_runs_again(client: Flow, cloud: Cloud) -> None:
    command = "echo $FLOW_ARRAY_INDEX.$FLOW_ATTEMPT; [ $FLOW_ARRAY_INDEX.$FLOW_ATTEMPT != 2.1 ] || sleep 1000"
    array = client.run(command, array="1-3", retries=1, gpu="a100", upload_code=False, grace_seconds=0.5)
    assert wait_until(lambda: array.logs() == "1.1\n2.1\n", seconds=_SECONDS, every=0.2), array.refresh().reason
    assert wait_until(lambda: client.records.final(f"{array}_1") is not None, seconds=30)
    cloud.end_bid(array.task_id)
    assert array.wait(timeout=_SECONDS) == "completed", array.reason
    again = [(1, "lost"), (2, "completed")]  # nobody knows that the third had not begun
    assert [tried(client, array, n) for n in (1, 2, 3)] == [[(1, "completed")], again, again]
    assert array.logs() == "1.1\n2.2\n3.2\n"
    assert [one[0] for one in bids(cloud, array)] == ["1", "2"]
    assert is_given_back(client, cloud)


def dies_noting_a_loss(act: Callable[[], object]) -> None:
    """In a client that dies where it has all but written it down."""
    if (child := os.fork()) == 0:
        os.environ["DEATHS"] = os.devnull
        Doom("client", Path(str(flow.__file__)).parent, 0, "add").begin()
        act()
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def allocation(client: Flow, task: Task) -> Allocation:
    (one,) = client.provider("mithril").allocations([task.task_id])
    return one


def test_what_ended_before_a_loss_was_on_record_does_not_run_again(tmp_path: Path) -> None:
    records, losses = Records(tmp_path), Losses(tmp_path)
    plan = Plan("task-1", "sweep", "mithril", ("true",), retries=1, elements=Elements((1, 2, 3)))
    records.add(Submission(plan.task_id, plan, {}, time.time(), "ada"))
    lost = Allocation(plan.task_id, 1, Machines.LOST, reason="its machine has failed")
    dies_noting_a_loss(lambda: losses.note(plan, lost, ["bid-1"]))
    records.set_final("task-1_1", Outcome(TaskStatus.COMPLETED, exit_code=0, attempt=1))
    losses.note(plan, lost, ["bid-1"])
    assert losses.elements(plan) == [2, 3]
    records.set_final("task-1_2", Outcome(TaskStatus.COMPLETED, exit_code=0, attempt=2))
    assert losses.elements(plan) == [2, 3]  # those its machines were rented for: each keeps its own


def note_collected(client: Flow, unit: str, **end: Any) -> None:
    """As a client leaves it that dies between collecting what has ended and noting its end."""
    folder = client.records.folder(unit, 1, 0)
    folder.mkdir(parents=True)
    (folder / "stdout.log").write_text("collected\n")
    report = {"v": 1, "phase": "ended", "cause": "exit", "code": 0, "started": 1.0, "ended": 2.0, **end}
    (folder / "status.json").write_text(json.dumps(report))


@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize("is_silent", [False, True])
def test_a_task_that_was_collected_is_told_by_its_record_whatever_becomes_of_its_machine(
    client: Flow, cloud: Cloud, retries: int, is_silent: bool
) -> None:
    task = running(client, retries=retries)
    with no_attendant(client.home):  # who would give the machine back
        note_collected(client, task.task_id)
        if is_silent:
            cloud.host(task.task_id).cut()
        else:
            cloud.end_bid(task.task_id)
    assert (task.wait(timeout=_SECONDS), attempts(task)) == ("completed", [(1, "completed")]), task.reason
    assert is_given_back(client, cloud)
    assert [one[0] for one in bids(cloud, task)] == ["1"]
    assert not is_silent or list(flow_home().glob("ssh/silent/inst_*")) == []


@pytest.mark.parametrize("retries", [0, 1])
def test_of_an_array_what_was_collected_does_not_run_again_nor_is_it_lost(
    client: Flow, cloud: Cloud, retries: int
) -> None:
    which = "$FLOW_ARRAY_INDEX.$FLOW_ATTEMPT"
    command = f"echo {which}; [ $FLOW_ATTEMPT = 2 ] || sleep 1000"
    array = client.run(command, array="1-2%2", retries=retries, gpu="a100", upload_code=False, grace_seconds=0.5)
    assert wait_until(lambda: sorted(array.logs().split()) == ["1.1", "2.1"], seconds=_SECONDS, every=0.2)
    with no_attendant(client.home):
        note_collected(client, f"{array}_1", code=3)
        cloud.end_bid(array.task_id)
    assert array.wait(timeout=_SECONDS) == ("failed" if retries else "lost"), array.reason
    assert tried(client, array, 1) == [(1, "failed")]
    assert tried(client, array, 2) == ([(1, "lost"), (2, "completed")] if retries else [(1, "lost")])
    assert is_given_back(client, cloud)


def test_a_loss_that_was_all_but_noted_is_noted_though_the_machine_is_back(client: Flow, cloud: Cloud) -> None:
    task = running(client, retries=1)
    with no_attendant(client.home):
        cloud.host(task.task_id).cut()
        assert wait_until(lambda: allocation(client, task).machines is Machines.LOST, seconds=_SECONDS, every=0.2)
        dies_noting_a_loss(lambda: Flow().get_task(task.task_id).allocate(2))
        cloud.host(task.task_id).heal()
    assert task.wait(timeout=_SECONDS) == "completed", task.reason
    assert attempts(task) == [(1, "lost"), (2, "completed")]
    assert task.attempts[0].reason == "its machine was out of reach for 0.03 minutes"


def test_a_task_that_was_collected_while_its_loss_was_found_does_not_move(client: Flow) -> None:
    plan = Plan("task-1", "once", "mithril", ("true",), retries=1)
    client.records.add(Submission(plan.task_id, plan, {}, time.time(), "ada"))
    client.records.mark_allocated(plan.task_id)
    losses = Losses(client.home)
    losses.note_seen(plan.task_id, 1)
    note_collected(client, plan.task_id)
    losses.note(plan, Allocation(plan.task_id, 1, Machines.LOST, reason="its bid was ended"), ["bid-1"])
    end = client.records.final(plan.task_id)
    assert (losses.last(plan.task_id), end and end.state) == (None, "completed")


def test_an_element_without_a_try_left_is_lost_and_spares_the_others(client: Flow, cloud: Cloud) -> None:
    which = "$FLOW_ARRAY_INDEX.$FLOW_ATTEMPT"
    command = f"echo {which}; case {which} in 1.1) exit 3;; 1.2|2.1) sleep 1000;; esac"
    array = client.run(command, array="1-3%2", retries=1, gpu="a100", upload_code=False, grace_seconds=0.5)
    assert wait_until(lambda: {"1.2", "2.1"} <= set(array.logs().split()), seconds=_SECONDS, every=0.2)
    assert wait_until(lambda: client.get_task(f"{array}_1").outcome.attempt == 2, seconds=30)
    cloud.crash(array.task_id, 1)
    assert (array.wait(timeout=_SECONDS), array.reason.partition(":")[0]) == ("lost", "1 of 3 lost")
    assert tried(client, array, 1) == [(1, "lost"), (2, "lost")]
    assert [tried(client, array, n)[-1] for n in (2, 3)] == [(3, "completed"), (3, "completed")]
    assert [one.quantity for one in cloud.spot.bids.values() if one.name == array.task_id] == [2, 2]
    assert is_given_back(client, cloud)
