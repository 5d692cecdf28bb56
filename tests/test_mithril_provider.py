"""The Mithril provider on a stand-in for its cloud, which really boots a machine for each instance."""

from __future__ import annotations

import fcntl
import json
import math
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flow.chores import attend
from flow.client import Flow
from flow.errors import QuotaExceededError, ValidationError
from flow.plan import Plan
from flow.providers.mithril.api import Api, NotKnownError
from flow.providers.ssh.places import Places
from flow.providers.startup import LASTING, READY, ROOT
from flow.record import Submission
from flow.status import Outcome, TaskStatus, Want
from flow.task import Task
from flow.task_volumes import make_volumes, store_of
from tests.support.commands import flow, started
from tests.support.containers import IMAGE
from tests.support.mithril_cloud import Cloud
from tests.support.mithril_cloud.faults import (
    NO_MEMBER,
    QUOTA,
    Fault,
    refusal,
    reset,
    rewritten,
    taken_then,
    taken_then_reset,
)
from tests.support.processes import wait_until
from tests.support.story import files_with


@pytest.fixture
def client(at_mithril: Flow) -> Flow:
    return at_mithril


def _run(client: Flow, command: str, **fields: Any) -> Task:
    return client.run(command, upload_code=False, **fields)


def test_a_preempted_task_goes_on_when_it_has_a_machine_again(client: Flow, cloud: Cloud) -> None:
    task = _run(
        client,
        "trap 'echo saved; exit 0' TERM; echo run $FLOW_ATTEMPT $FLOW_RESUME; cat $FLOW_OUTPUT/kept;"
        "echo kept > $FLOW_OUTPUT/kept; while [ $FLOW_ATTEMPT = 1 ]; do sleep 0.05; done",
    )
    assert wait_until(lambda: task.refresh().status == "running", seconds=60)
    assert wait_until(lambda: task.shell('test -s "$FLOW_OUTPUT/kept"') == 0, seconds=60)
    bid = cloud.bid(task.task_id)
    with started("logs", "-f", str(task)) as (follower, first):
        assert first == "run 1\n" and follower.stderr
        cloud.preempt(task.task_id)
        assert wait_until(lambda: task.refresh().status == "preempted", seconds=60)
        assert b"note: preempted: its machine is being taken back\n" in iter(follower.stderr.readline, b"")
        log = f"/home/ubuntu/.flow-host/tasks/{task}/1/0/stdout.log"
        assert wait_until(lambda: cloud.host(task.task_id).run(f"grep saved {log}", check=False).returncode == 0)
        cloud.advance(600)
        assert cloud.await_bid(task.task_id, "Open")
        assert b"note: preempted: its bid of $1.88/h waits for a machine\n" in iter(follower.stderr.readline, b"")
        lane = cloud.lane(bid.instance_type, bid.region)
        assert lane
        lane.price_cents = 125
        cloud.advance(1)
        assert task.wait(timeout=90) == "completed"
        assert [(str(one.status), one.reason) for one in task.attempts] == [
            ("preempted", "its machine was taken back"),
            ("completed", ""),
        ]
        lines = [line for line in task.logs().splitlines() if "No such file" not in line and line != "Terminated"]
        assert lines == ["run 1", "saved", "run 2 1", "kept"]
        assert follower.communicate(timeout=60)[1].splitlines()[-1] == b"note: attempt 2: it runs again"


def test_what_a_task_waits_for_on_its_machine_is_told(client: Flow, cloud: Cloud) -> None:
    client.home.mkdir(parents=True, exist_ok=True)
    with (client.home / "attend.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # nobody delivers meanwhile
        task = _run(client, "true")
        assert wait_until(lambda: task.refresh().reason == "its code is on the way", seconds=60), task.reason
        host = cloud.host(task.task_id)
        host.run(f"systemctl stop flow-guard; rm {READY}")
        assert (task.refresh().status, task.reason) == ("starting", "its machine gets ready")
        host.run(f"touch {READY}")
        client.provider().allocate(task.plan)
        assert (task.refresh().status, task.reason) == ("starting", "its command starts")
        host.run(f"rm {READY}")
        assert (task.refresh().status, task.reason) == ("starting", "its machine gets ready")
        host.run("systemctl start flow-guard")
    assert task.wait(timeout=60) == "completed"


def test_nothing_is_left_that_costs_and_no_key_is_anywhere(client: Flow, cloud: Cloud) -> None:
    tasks = [_run(client, "echo done"), _run(client, "sleep 1000"), _run(client, "true", max_price_per_hour=2)]
    assert wait_until(lambda: tasks[1].refresh().status == "running", seconds=60)
    machine_keys = [one.secret for one in cloud.api_keys.values() if one.secret != cloud.key]
    client.cancel(tasks[1])
    assert [task.wait(timeout=90) for task in tasks] == ["completed", "cancelled", "completed"]
    assert wait_until(lambda: client.held() == [], seconds=60)
    assert cloud.billed() == []
    assert {one.status for one in cloud.spot.bids.values()} == {"Terminated"}
    assert [one.name for one in cloud.api_keys.values() if not one.deactivated] == ["laptop"]
    assert machine_keys
    for key in (cloud.key, *machine_keys):
        assert cloud.leaks(key) == []
        assert files_with(key, client.home) == []


def test_what_was_collected_is_read_without_the_cloud(
    client: Flow, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = _run(client, "echo done")
    assert task.wait(timeout=90) == "completed"
    assert wait_until(lambda: client.held() == [], seconds=60)
    with monkeypatch.context() as away:
        away.setenv("MITHRIL_API_KEY", "of somebody else")
        read = flow("logs", task.task_id)
    assert (read.returncode, read.stdout) == (0, "done\n"), read.stderr


def test_a_bid_is_made_once_whatever_becomes_of_the_answer(client: Flow, cloud: Cloud) -> None:
    for fault in (taken_then_reset(), taken_then(504), reset()):
        cloud.faults.play(fault, "POST /v2/spot/bids")
        task = _run(client, "echo once")
        assert task.wait(timeout=90) == "completed"
        assert [one.name for one in cloud.spot.bids.values()].count(task.task_id) == 1


def test_a_bid_that_another_client_made_and_ended_meanwhile_is_not_made_again(client: Flow, cloud: Cloud) -> None:
    """The first still looks for its own, whose answer it never had."""
    client.home.mkdir(exist_ok=True)
    cloud.faults.play(reset(), "POST /v2/spot/bids")
    with ThreadPoolExecutor(1) as pool, (client.home / "attend.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # this process is the attendant
        asked = pool.submit(_run, client, "sleep 1000")
        assert wait_until(lambda: cloud.faults.played)
        (task,) = Flow().tasks(refresh=False)
        task.allocate()
        task.cancel()
        assert wait_until(lambda: [attend(Flow(), {}), cloud.bid(task.task_id).status][1] == "Terminated")
        asked.result()
        assert wait_until(lambda: [attend(client, {}), client.held()][1] == [], seconds=60)
    assert [one.name for one in cloud.spot.bids.values()] == [task.task_id]


@pytest.mark.parametrize("refused", [QUOTA, NO_MEMBER])
def test_a_bid_that_comes_late_is_waited_for_though_another_is_refused(
    client: Flow, cloud: Cloud, refused: Fault
) -> None:
    """As by the quota that the first has taken."""
    cloud.faults.play(taken_then_reset(), "POST /v2/spot/bids")
    cloud.faults.play(refused, "POST /v2/spot/bids")
    cloud.faults.play(rewritten(r'"data": *\[.*\]', '"data":[]'), "GET /v2/spot/bids.*name=", times=12)
    with pytest.raises(NotKnownError, match="does not show: "):
        _run(client, "echo once")
    (task,) = client.tasks()
    assert (task.wait(timeout=90), task.logs()) == ("completed", "once\n"), task.reason
    assert [one.name for one in cloud.spot.bids.values()] == [task.task_id]


def test_what_cannot_be_had_is_refused_with_what_can(client: Flow) -> None:
    with pytest.raises(ValidationError, match=r"`h100-80gb.sxm.8x` costs \$") as refused:
        _run(client, "true", gpu="h100", max_price_per_hour=1)
    assert "wait for the price to fall: `--wait-for-price`" in refused.value.suggestions
    waits = client.load("true", gpu="h100", max_price_per_hour=1, wait_for_price=True, upload_code=False)
    assert client.plan(waits).price_per_hour == 1, "more is never paid"
    with pytest.raises(ValidationError, match="no region `mars-central1-a` at mithril"):
        _run(client, "true", gpu="a100", region="mars-central1-a")
    with pytest.raises(ValidationError, match="no instance type `8xt4` at mithril"):
        _run(client, "true", gpu="8xt4")
    assert client.tasks() == []


@pytest.mark.parametrize("named", ["~/.ssh/id_ed25518", "id_ed25518"])
def test_a_key_that_is_not_there_is_not_made(
    client: Flow, cloud: Cloud, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    (Path.home() / ".ssh").mkdir()
    (Path.home() / ".ssh/id_ed25519.pub").write_text("ssh-ed25519 AAAA me\n")
    monkeypatch.setenv("FLOW_MITHRIL_SSH_KEY", named)
    with pytest.raises(ValidationError, match=r"no SSH key `.*id_ed25518`") as refused:
        _run(Flow(), "true")
    assert refused.value.suggestions[0] == f"did you mean `{Path.home()}/.ssh/id_ed25519`?"
    assert cloud.spot.ssh_keys == {} and cloud.spot.bids == {}
    assert len(list((Path.home() / ".ssh").iterdir())) == 1


def test_other_keys_of_the_project_may_log_in_too(client: Flow, cloud: Cloud) -> None:
    body = {"project": cloud.project, "name": "bob", "public_key": "ssh-ed25519 AAAA bob", "required": False}
    bob = Api(cloud.key, cloud.url).create("/v2/ssh-keys", body)["fid"]
    task = _run(client, "true", ssh_keys=["bob"])
    assert cloud.bid(task.task_id).launch.ssh_keys[1:] == [bob]
    with pytest.raises(ValidationError, match=r"no SSH key `bo`, which `ssh_keys` names") as refused:
        _run(client, "true", ssh_keys=["bo"])
    assert refused.value.suggestions[0] == "did you mean `bob`?"
    assert [one.name for one in cloud.spot.bids.values()] == [task.task_id]
    task.cancel()


def test_a_machine_that_never_boots_is_given_back(client: Flow, cloud: Cloud) -> None:
    cloud.clock.ahead_seconds = -4000.0  # so that it is long ago
    cloud.spot.boot_seconds = math.inf
    task = _run(client, "true")
    assert task.wait(timeout=90) == "lost"
    assert task.reason == "its machine did not boot within 60 minutes"
    assert wait_until(lambda: cloud.bid(task.task_id).status == "Terminated", seconds=60)


def test_what_was_made_for_a_bid_that_is_refused_goes(client: Flow, cloud: Cloud) -> None:
    cloud.faults.play(refusal(400, "Quota exceeded for a100-80gb.sxm.1x"), "POST /v2/spot/bids")
    with pytest.raises(QuotaExceededError, match="Quota exceeded for a100"):
        _run(client, "true", volumes=[{"name": "scratch", "size_gb": 10, "mount_path": "/scratch"}])
    assert [one.status for one in client.tasks()] == ["failed"]
    assert client.volumes() == [] and client.held() == []


def test_what_a_machine_does_not_have_is_a_failure_and_no_endless_bill(client: Flow, cloud: Cloud) -> None:
    cloud.machines.lacks_gpus = True
    task = _run(client, "true", gpu="8xa100")
    assert task.wait(timeout=90) == "failed"
    assert re.fullmatch(r"the machine has \d+ CPUs, .* GB and 0 GPUs: 1 CPU, 8 GPUs are asked for", task.reason)
    assert wait_until(lambda: client.held() == [], seconds=60)


def test_a_volume_that_holds_something_else_is_left_as_it_is(client: Flow, cloud: Cloud) -> None:
    made = client.create_volume(name="data", size_gb=1)
    backing = cloud.spot.volumes[made.volume_id].backing
    with backing.open("r+b") as file:
        file.write(b"precious")
    for image in (None, IMAGE):
        cloud.give_docker()
        task = _run(client, "true", image=image, volumes=[{"mount_path": "/data", "name": "data"}])
        assert task.wait(timeout=90) == "failed"
        assert "holds data and no file system: it is left as it is" in task.reason
    assert backing.read_bytes()[:8] == b"precious"


def test_a_task_whose_profile_was_removed_is_shown_with_what_to_do(
    client: Flow, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = client.home / "config.yaml"
    file.parent.mkdir(exist_ok=True)
    profile = f"profiles: {{work: {{provider: fcp, api_key: {cloud.key}}}}}\n"
    file.write_text(profile)
    monkeypatch.setenv("FLOW_PROFILE", "work")
    task, array = _run(Flow(), "sleep 1000"), _run(Flow(), "sleep 1000", array="1-2", name="sweep")
    assert task.provider == "mithril@work"
    monkeypatch.delenv("FLOW_PROFILE")
    file.write_text("")
    ended = flow("status")
    assert ended.returncode == 0 and f"{task.task_id}  sleep" in ended.stdout, ended.stdout
    assert ended.stdout.count("not known: no profile `work` in the settings") == 2
    assert json.loads(flow("status", "--json").stdout)["tasks"][0]["name"] == "sweep"
    assert "make it with `flow --profile work init`" in ended.stderr
    assert flow("cancel", task.task_id, "--yes").returncode == 2
    file.write_text(profile)
    client = Flow()
    client.cancel(task, array)
    assert [client.get_task(one.task_id).wait(timeout=90) for one in (task, array)] == ["cancelled"] * 2
    assert wait_until(lambda: client.held() == [], seconds=60)


def test_a_volume_that_may_hold_data_stays(client: Flow, cloud: Cloud) -> None:
    """Its client was killed when the task ran, and before that was on record."""
    task = _run(
        client, "echo data > /data/file; sleep 1000", volumes=[{"name": "kept", "size_gb": 1, "mount_path": "/data"}]
    )
    assert wait_until(lambda: task.refresh().status == "running", seconds=60)
    assert (client.home / "record" / task.task_id / "allocated").exists()
    (client.home / "record" / task.task_id / "allocated").unlink()
    client.cancel(task)
    assert task.wait(timeout=90) == "cancelled"
    assert wait_until(lambda: client.held() == [], seconds=60)
    assert [one.name for one in client.volumes()] == ["kept"]


def test_a_volume_that_was_there_before_stays_where_a_task_is_refused(client: Flow, cloud: Cloud) -> None:
    """Another client made it between the plan and the making."""
    volumes = [
        {"name": "shared", "size_gb": 1, "mount_path": "/data"},
        {"name": "own", "size_gb": 1, "mount_path": "/own"},
    ]
    plan = client.plan(client.load("true", upload_code=False, volumes=volumes))
    client.create_volume(1, "shared")
    plan = make_volumes(plan, store_of(client.provider()))
    client.records.add(Submission(plan.task_id, plan, {}, time.time(), "ada"))
    cloud.faults.play(refusal(400, "Quota exceeded for a100-80gb.sxm.1x"), "POST /v2/spot/bids")
    with pytest.raises(QuotaExceededError):
        client.task_of(plan.task_id).allocate()
    assert [one.name for one in client.volumes()] == ["shared"]


def test_a_machine_whose_first_boot_was_cut_off_is_made_ready(
    client: Flow, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cloud runs a startup script at the first boot only; a preemption may come in the middle of it."""
    monkeypatch.setattr("flow.providers.rented._CUT_SECONDS", 0.5)
    client.home.mkdir(exist_ok=True)
    with (client.home / "attend.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # this process is the attendant
        task = _run(client, "echo made it")
        bid = cloud.await_bid(task.task_id, "Allocated")
        host = cloud.host(task.task_id)
        assert wait_until(lambda: host.run(f"test -e {READY}", check=False).returncode == 0, seconds=30)
        host.run(f"systemctl stop flow-guard; rm -r {LASTING} {ROOT}/guard.py")
        cloud.preempt(task.task_id)
        cloud.advance(600)
        assert cloud.await_bid(task.task_id, "Open")
        cloud.lane(bid.instance_type, bid.region).price_cents = 125
        assert wait_until(lambda: not attend(client, {}) or task.refresh().status.is_final, seconds=60)
    assert (task.refresh().status, task.logs()) == ("completed", "made it\n")


def test_a_machine_that_cannot_be_made_ready_pauses_in_the_end(client: Flow, cloud: Cloud) -> None:
    client.home.mkdir(exist_ok=True)
    with (client.home / "attend.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # this process is the attendant
        task = _run(client, "true")
        cloud.await_bid(task.task_id, "Allocated")
        host = cloud.host(task.task_id)
        assert wait_until(lambda: host.run(f"test -e {READY}", check=False).returncode == 0, seconds=30)
        broken = """s/"volumes": \\[\\]/"volumes": [{}]/; s/"deliver_seconds": [0-9.]*/"deliver_seconds": 3/"""
        host.run(f"systemctl stop flow-guard; sed -i '{broken}' {ROOT}/machine.json; rm {READY}")
        told = f"test -e {ROOT}/bill.json"  # else it can only switch itself off
        assert wait_until(lambda: attend(client, {}) and host.run(told, check=False).returncode == 0)
        host.run("systemctl start flow-guard")
        cloud.await_bid(task.task_id, "Paused")  # with nobody there who has it go on
        task.cancel()
        assert wait_until(lambda: [attend(client, {}), client.held()][1] == [], seconds=60)


def test_a_fleet_that_cannot_be_asked_keeps_nothing_from_being_given_back(
    client: Flow, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOW_SSH_HOSTS", "gpu1 as /")
    monkeypatch.setenv("FLOW_SSH_LOST_AFTER_MINUTES", "0")
    client = Flow()
    elsewhere = Plan("task-1", "elsewhere", "ssh", ("true",), retries=1)
    client.records.add(Submission(elsewhere.task_id, elsewhere, {}, time.time(), "ada"))
    client.records.mark_allocated(elsewhere.task_id)
    Places(client.home / "record" / elsewhere.task_id).place({"gpu1": [0]})
    with (client.home / "attend.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # this process is the attendant
        task = _run(client, "sleep 1000")
        client.records.set_intent(task.task_id, Want.CANCEL)
        assert wait_until(lambda: [attend(client, {}), client.held()][1] == [], seconds=60)
    assert cloud.billed() == []
    client.records.set_final(elsewhere.task_id, Outcome(TaskStatus.CANCELLED))
