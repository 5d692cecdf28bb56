"""What `flow` says of prices and of what costs money at Mithril, and ends of it, against the stand-in for its cloud."""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flow.attend import LOCK, start_attendant
from flow.client import Flow
from flow.errors import ValidationError
from flow.node.remains import is_locked
from flow.providers.mithril.api import Api
from flow.status import Outcome, TaskStatus
from flow.task import Task
from tests.support.commands import flow
from tests.support.mithril_cloud import Cloud
from tests.support.mithril_cloud.faults import broken, refusal, slow
from tests.support.processes import attendant_of, end_attendant, no_attendant, processes_of, wait_until

REGION = "us-central1-b"


@pytest.fixture
def client(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flow]:
    monkeypatch.setenv("FLOW_PROVIDER", "mithril")
    monkeypatch.setenv("FLOW_MITHRIL_API_URL", cloud.url)
    monkeypatch.setenv("MITHRIL_API_KEY", cloud.key)
    made = Flow()
    yield made
    for file in made.home.glob("mithril/held/*"):
        file.unlink(missing_ok=True)  # the cloud is emptied as a whole
    assert wait_until(lambda: [end_attendant(made.home), processes_of(tmp_path)][1] == [])


@pytest.fixture
def pretended(cloud: Cloud) -> Cloud:
    """Its instances are only said to boot."""
    cloud.machines.pretended, cloud.spot.boot_seconds = True, math.inf
    return cloud


def make_bid(cloud: Cloud, name: str, **more: Any) -> None:
    """By hand, as the web console would."""
    api = Api(cloud.key, cloud.url)
    key = api.create("/v2/ssh-keys", {"project": cloud.project, "name": name, "public_key": "ssh-ed25519 AAAA"})
    launch = {"volumes": [], "ssh_keys": [key["fid"]], "startup_script": more.pop("script", "#!/bin/bash\ntrue\n")}
    fields = {"region": REGION, "instance_type": "it_MsIRhxj3ccyVWGfP", "limit_price": "$2.00", **more}
    body = {"project": cloud.project, "name": name, "instance_quantity": 1, "launch_specification": launch, **fields}
    api.create("/v2/spot/bids", body)


def make_volume(cloud: Cloud, name: str) -> str:
    fields = {"project": cloud.project, "name": name, "disk_interface": "Block", "region": REGION, "size_gb": 1}
    return str(Api(cloud.key, cloud.url).create("/v2/volumes", fields)["fid"])


def test_offers_are_found_by_gpu_name_and_id_and_say_how_old_they_are(client: Flow, pretended: Cloud) -> None:
    first = flow("offers", "a100:8")
    assert [line.split() for line in first.stdout.splitlines()] == [
        ["TYPE", "GPU", "CPUS", "MEMORY", "$/H", "FREE", "WHERE"],
        ["a100-80gb.sxm.8x", "8xa100", "96", "768", "GB", "10.00", "4", "mithril/us-central1-b"],
        ["a100-80gb.sxm.8x", "8xa100", "96", "768", "GB", "10.40", "2", "mithril/us-central5-a"],
    ]
    assert first.stderr == ""
    named = [flow("offers", name, "--json").stdout for name in ("a100-80gb.sxm.8x", "it_J7OyNf9idfImLIFo", "8xa100")]
    assert [len(json.loads(one)["offers"]) for one in named] == [2, 2, 2]
    (there,) = json.loads(flow("offers", "8xa100", "--region", "us-central5-a", "--json").stdout)["offers"]
    assert (there["region"], there["price_per_hour"], there["available"]) == ("us-central5-a", 10.4, 2)
    wrong = flow("offers", "--region", "us-central5-b")
    assert (wrong.returncode, "did you mean `us-central5-a`?" in wrong.stderr) == (2, True)
    asked = pretended.count("GET /v2/spot/availability")
    assert asked == 1, "prices are kept for half a minute"
    kept = client.home / "mithril" / "availability.json"
    known = json.loads(kept.read_text())
    kept.write_text(json.dumps({**known, "seen": time.time() - 20}))
    assert re.fullmatch(r"note: these prices are 2\ds old\n", flow("offers").stderr)


def test_pricing_shows_what_is_paid_and_was(client: Flow, pretended: Cloud) -> None:
    pretended.lane("it_J7OyNf9idfImLIFo", REGION).past[:] = [(0.0, 500), (time.time() - 43200, 1000)]
    shown = flow("pricing", "8xa100", "--region", REGION)
    header, row = shown.stdout.splitlines()
    assert header.split() == ["TYPE", "REGION", "$/H", "LEAST", "FREE", "LOW", "HISTORY", "HIGH"]
    assert row.split() == ["a100-80gb.sxm.8x", REGION, "10.00", "2.00", "4", "5.00", f"{'▁' * 12}{'█' * 12}", "10.00"]
    assert shown.stderr == "note: LOW, HISTORY and HIGH go back to 1d ago\n"
    prices = json.loads(flow("pricing", "h100", "--json").stdout)["prices"]
    assert [(one["region"], one["price_per_hour"]) for one in prices] == [
        ("us-central1-b", 16.0),
        ("us-central5-a", 16.8),
        ("eu-central1-a", 17.2),
    ]
    assert {len(one["history"]) for one in prices} == {96}
    local = flow("pricing", "a100", "--provider", "local")
    assert (local.returncode, "local has no market" in local.stderr) == (2, True)


@pytest.mark.parametrize("command", ["offers", "pricing"])
def test_what_is_not_sold_is_told_with_what_is(client: Flow, pretended: Cloud, command: str) -> None:
    none = flow(command, "3xa100")
    assert (none.returncode, none.stdout) == (0, f"No {'prices' if command == 'pricing' else command} found\n")
    assert none.stderr == "hint: there is `a100`, `2xa100`, `4xa100`, `8xa100`\n"
    unknown = flow(command, "foo")
    assert (unknown.returncode, "error: unknown GPU `foo`" in unknown.stderr) == (2, True)


def test_a_task_may_run_elsewhere_than_the_settings_say(
    client: Flow, pretended: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOW_MITHRIL_REGION", REGION)
    assert client.plan(client.load("true", gpu="8xa100", region="us-central5-a")).region == "us-central5-a"
    client = Flow()
    assert client.plan(client.load("true", gpu="8xh100")).region == REGION
    refused = flow("run", "--dry-run", "--gpu", "h200", "true")
    assert f"is not to be had in `{REGION}`" in refused.stderr
    assert "`--region` names another for this task" in refused.stderr


def test_a_task_runs_where_its_volume_is(client: Flow, pretended: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    client.create_volume(1, "here", region=REGION)
    client.create_volume(1, "there", region="us-central5-a")
    fields: dict[str, Any] = {"gpu": "a100", "upload_code": False, "mounts": {"/data": "volume://there"}}
    monkeypatch.setenv("FLOW_MITHRIL_REGION", REGION)
    task = Flow().run("true", **fields)
    assert pretended.bid(task.task_id).region == "us-central5-a"
    assert "runs in us-central5-a, where the volume `there` is" in task.plan.notes
    with pytest.raises(ValidationError, match=f"`there` is in us-central5-a, and the task is to run in {REGION}"):
        client.plan(client.load("true", **fields, region=REGION))
    both = {"/a": "volume://here", "/b": "volume://there"}
    with pytest.raises(ValidationError, match=f"`there` is in us-central5-a, and `here` in {REGION}"):
        client.plan(client.load("true", gpu="a100", mounts=both))
    with pytest.raises(ValidationError) as refused:
        client.plan(client.load("true", **{**fields, "gpu": "b200"}))
    assert "the volume `there` is there" in refused.value.suggestions
    assert flow("cancel", task.task_id).stdout == f"{task}  cancelled\n"


def test_what_never_ran_has_no_price(client: Flow, pretended: Cloud) -> None:
    task = client.run("true", upload_code=False)
    assert " 1.25 " in flow("status").stdout
    task.cancel()
    assert wait_until(lambda: task.refresh().status == "cancelled", seconds=30)
    assert "1.25" not in flow("status").stdout


def test_no_task_is_refused_by_a_price_that_has_fallen(client: Flow, pretended: Cloud) -> None:
    lane = pretended.lane("it_MsIRhxj3ccyVWGfP", REGION)
    lane.price_cents, price = 400, lane.price_cents
    assert wait_until(lambda: lane.clearing_cents == 400)
    fields: dict[str, Any] = {"gpu": "a100", "region": REGION, "max_price_per_hour": 2}
    with pytest.raises(ValidationError, match="costs"):
        client.plan(client.load("true", **fields))
    lane.price_cents = price
    assert wait_until(lambda: lane.clearing_cents == price)
    assert client.plan(client.load("true", **fields)).price_per_hour == 1.25


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        ("run --gpu a10", "no instance type `a10` at mithril", "did you mean `a100`?"),
        ("run -i 8xh1000", "no instance type `8xh1000` at mithril", "did you mean `8xh100`?"),
        ("run -i 3xa100", "no instance type `3xa100` at mithril", "there is `a100`, `2xa100`, `4xa100`, `8xa100`"),
        (
            "run --gpu 8xa100 --region us-centrl1-b",
            "no region `us-centrl1-b` at mithril",
            "did you mean `us-central1-b`?\nhint: there is `eu-central1-a`, `us-central1-b`, `us-central5-a`",
        ),
        (
            "volume create data --size-gb 1 --region us-central1-c",
            "Block storage is not available in this region",
            "block volumes can be made in eu-central1-a, us-central1-b",
        ),
    ],
)
def test_what_is_not_there_is_told_with_what_is(
    client: Flow, pretended: Cloud, words: str, error: str, hint: str
) -> None:
    refused = flow(*words.split(), *(["true"] if words.startswith("run") else []))
    assert refused.stderr.startswith(f"error: {error}")
    assert f"hint: {hint}" in refused.stderr
    assert (refused.returncode, client.tasks()) == (2, [])


def test_a_name_of_a_volume_that_is_taken_wrong_or_misspelt_is_told(client: Flow, pretended: Cloud) -> None:
    make_volume(pretended, "data0")
    create = ("volume", "create", "--size-gb", "1", "--region", "us-central5-a")
    assert flow(*create, "data0").stderr == f"error: there is a volume `data0` already, in {REGION}\n"
    wrong = (
        "error: `Data_0` cannot be the name of a volume\n\nhint: write small letters, digits and `-`, a letter first\n"
    )
    assert flow(*create, "Data_0").stderr == wrong
    planned = flow("run", "true", "--mount", "/data=volume://daat0", "--dry-run")
    assert "note: did you mean `data0`?\nnote: makes the volume `daat0` of 100 GB" in planned.stderr
    two = flow("run", "true", "-i", "a100", "-N", "2", "-m", "2")
    assert "error: 2 of `a100-80gb.sxm.1x` cost $2.50/h: `max_price_per_hour` is `2`" in two.stderr


@pytest.mark.parametrize(
    ("status", "detail", "told"),
    [
        (400, "Quota exceeded for a100-80gb.sxm.1x", ["0 of 64 instances of that type are in use"]),
        (400, "Limit price below minimum", ["the bid was $1.88/h for each machine; it costs $1.25/h there now"]),
        (400, "no ssh keys", ["`flow init` chooses an SSH key"]),
    ],
)
def test_what_the_cloud_refuses_is_told_with_what_is_known_of_it(
    client: Flow, pretended: Cloud, status: int, detail: str, told: list[str]
) -> None:
    pretended.faults.play(refusal(status, detail), "POST /v2/spot/bids")
    refused = flow("run", "--gpu", "a100", "true")
    assert refused.stderr.startswith(f"error: {detail} (request ")
    assert [one for one in told if f"hint: {one}" not in refused.stderr] == []
    assert client.held() == []


def test_who_waits_for_a_machine_is_told_where_there_is_one(
    client: Flow, pretended: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = pretended.lane("a100-80gb.sxm.8x", REGION)
    lane.capacity = 0
    shown = flow("run", "--dry-run", "--gpu", "8xa100", "--region", REGION, "true")
    assert f"{REGION} has 0 of them free now: waits until it has 1; us-central5-a would do" in shown.stderr
    monkeypatch.setenv("MITHRIL_PROJECT", "proj_of_others")
    refused = flow("run", "--gpu", "8xa100", "true")
    told = "error: no project `proj_of_others` is yours\n\nhint: the projects are my-project\n"
    assert (refused.stderr, refused.returncode) == (told, 2)
    monkeypatch.delenv("MITHRIL_PROJECT")
    assert (client.held(), client.tasks(limit=None)[0].status) == ([], "failed")


@pytest.mark.parametrize("name", ["FCP_PROJECT", "FLOW_MITHRIL_SSH_KEY"])
def test_what_a_wrong_setting_refuses_does_not_run_later(
    client: Flow, pretended: Cloud, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "nope")
    refused = flow("run", "--gpu", "a100", "true")
    assert (refused.returncode, "`nope`" in refused.stderr, "goes on" in refused.stderr) == (2, True, False)
    monkeypatch.delenv(name)
    assert [one.status for one in Flow().tasks()] == ["failed"]
    assert (client.held(), pretended.spot.bids) == ([], {})


def test_status_tells_what_every_bid_costs(client: Flow, pretended: Cloud) -> None:
    assert flow("status").stderr == ""
    make_bid(pretended, "notebook")
    assert wait_until(lambda: pretended.bid("notebook").status == "Allocated")
    shown = flow("status")
    assert shown.stderr.splitlines() == [
        "note: 1 bid at $1.25/h in all",
        "note: `notebook` costs $1.25/h: made by hand, or by another program",
        "hint: `flow orphans` lists them, and ends them by name",
    ]
    (bid,) = json.loads(flow("status", "--json").stdout)["rented"]["bids"]
    assert (bid["name"], bid["price_per_hour"]) == ("notebook", 1.25)
    pretended.faults.play(broken(500), "GET /v2/spot/bids", times=100)
    failed = flow("status")
    assert (failed.returncode, failed.stdout) == (0, "No tasks found\n")
    assert "note: what is rented, and what it costs, is not known" in failed.stderr


def test_what_is_rented_is_listed_however_many_unfinished_tasks_are_newer(client: Flow, pretended: Cloud) -> None:
    rented = client.run("true", upload_code=False)
    newer = client.run("true", provider="local", upload_code=False)
    assert newer.wait(60) == "completed"
    assert client.newest_tasks(1, unfinished=0) == [newer, rented]


def test_what_is_being_given_back_is_no_false_alarm(client: Flow, pretended: Cloud) -> None:
    task = client.run("true", upload_code=False)
    pretended.faults.play(broken(500), "DELETE /v2/spot/bids", times=1000)
    outcome = client.records.set_final(task.task_id, Outcome(TaskStatus.COMPLETED))
    client.records.note_outcomes({task.task_id: outcome})
    assert flow("status").stderr == "note: 1 bid at $1.25/h in all\n"
    assert orphans("--json") == []
    pretended.faults.clear()
    assert wait_until(lambda: client.held() == [], seconds=30)
    assert pretended.bid(task.task_id).status == "Terminated"


def test_orphans_are_told_apart_and_only_our_own_are_ended_unasked(client: Flow, pretended: Cloud) -> None:
    client = Flow()
    home_id = client.provider("mithril").home_id  # type: ignore[attr-defined]
    make_bid(pretended, "notebook")
    make_bid(pretended, "task-0000000000aaaa", script=f"#!/bin/bash\n# flow task-0000000000aaaa 1 hash {home_id} 200\n")
    make_bid(pretended, "task-0000000000bbbb", script="#!/bin/bash\n# flow task-0000000000bbbb 1 hash 0123 200\n")
    data = make_volume(pretended, "data")
    listed = {one["name"]: (one["whose"], one["is_ours"]) for one in orphans("--json")}
    assert listed == {
        "notebook": ("made by hand, or by another program", False),
        "task-0000000000aaaa": ("its task is not on record any more", True),
        "task-0000000000bbbb": ("of another Flow home: 0123", False),
        "data": ("nobody's: no task here has had it", False),
    }
    assert "hint: `flow orphans --yes` ends what tasks of this home have left" in flow("orphans").stderr
    ended = flow("orphans", "--yes")
    assert (ended.returncode, ended.stderr.count("is gone")) == (0, 1)
    assert sorted(one["name"] for one in orphans("--json")) == ["data", "notebook", "task-0000000000bbbb"]
    assert flow("orphans", data, "notebook").returncode == 3, "there is nobody to ask"
    assert flow("orphans", data, "notebook", "--yes").returncode == 0
    assert [one["name"] for one in orphans("--json")] == ["task-0000000000bbbb"]
    unknown = flow("orphans", "nothing", "--yes")
    assert "no orphan `nothing`" in unknown.stderr
    assert {one.name for one in pretended.spot.bids.values() if one.is_live} == {"task-0000000000bbbb"}


def orphans(*words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(flow("orphans", *words).stdout)["orphans"]
    return found


def test_what_a_task_waits_for_or_has_is_no_orphan(client: Flow, pretended: Cloud) -> None:
    fields: dict[str, Any] = {"upload_code": False, "region": REGION}
    task = client.run("true", volumes=[{"mount_path": "/data", "name": "kept", "size_gb": 1}], **fields)
    gone = client.run("true", volumes=[{"mount_path": "/x", "size_gb": 1, "ephemeral": True}], **fields)
    assert orphans("--json") == []
    assert flow("status").stderr.splitlines()[0] == "note: 2 bids at $2.50/h in all"
    ended = flow("cancel", task.task_id, gone.task_id)
    assert ended.stdout.splitlines() == [f"{task}  cancelled", f"{gone}  cancelled"]
    assert {one.status for one in pretended.spot.bids.values()} == {"Terminated"}
    assert client.held() == []
    left = {one["name"]: one["is_ours"] for one in orphans("--json")}
    assert left.get("kept", False) is False, "data is ended only when it is named"
    assert len(left) <= 1


def cancels_in_vain(cloud: Cloud, task: Task) -> subprocess.Popen[str]:
    """A `flow cancel` that has told that the cloud does not end the task's bid."""
    cloud.faults.play(broken(500), "DELETE /v2/spot/bids", times=1000)  # the attendant asks, too
    words = [sys.executable, "-m", "flow", "cancel", task.task_id]
    cancel = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert cancel.stderr
    told = r"note: \S+ answered 500: an HTML page .*; it is asked again until it is done\n"
    assert any(re.fullmatch(told, line) for line in iter(cancel.stderr.readline, ""))
    return cancel


def test_cancel_waits_until_the_bid_is_gone(client: Flow, pretended: Cloud) -> None:
    task = client.run("true", upload_code=False)
    cancel = cancels_in_vain(pretended, task)
    pretended.faults.clear()
    output, said = cancel.communicate(timeout=60)
    assert output == f"{task}  cancelled\n", said
    assert "note: nothing of it is rented any more" in said
    assert pretended.bid(task.task_id).status == "Terminated"


def test_a_volume_of_a_client_that_died_before_there_was_a_task_goes(
    client: Flow, pretended: Cloud, tmp_path: Path
) -> None:
    pid = os.fork()
    if pid == 0:
        records = client.records
        records.add = lambda *_, **__: os._exit(9)  # type: ignore[method-assign]
        client.run("true", upload_code=False, volumes=[{"mount_path": "/x", "size_gb": 1, "ephemeral": True}])
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    (volume,) = pretended.spot.volumes.values()
    (held,) = (client.home / "mithril" / "held").iterdir()
    flow("status")
    assert volume.deleted is None, "it may still be on its way"
    os.utime(held, (0, 0))
    flow("status")
    assert wait_until(lambda: volume.deleted is not None, seconds=30)
    assert wait_until(lambda: client.held() == [], seconds=30)


def test_a_submission_that_is_interrupted_is_left_to_the_attendant(client: Flow, pretended: Cloud) -> None:
    pretended.faults.play(broken(500), "POST /v2/spot/bids", times=1000)
    run = subprocess.Popen([sys.executable, "-m", "flow", "run", "true", "--no-upload-code"], stderr=subprocess.PIPE)
    assert wait_until(lambda: bool(client.held()), seconds=30)
    run.send_signal(signal.SIGINT)
    said = run.communicate(timeout=30)[1].decode()
    (task,) = client.tasks()
    assert (run.returncode, f"note: `{task}` goes on\n" in said) == (130, True), said
    pretended.faults.clear()
    assert wait_until(lambda: task.task_id in [one.name for one in pretended.spot.bids.values()], seconds=60)


def test_cancel_that_is_interrupted_leaves_the_rest_to_the_attendant(client: Flow, pretended: Cloud) -> None:
    task = client.run("true", upload_code=False)
    cancel = cancels_in_vain(pretended, task)
    cancel.send_signal(signal.SIGINT)
    assert "will end without this command" in cancel.communicate(timeout=30)[1]
    assert cancel.returncode == 130
    pretended.faults.clear()
    assert wait_until(lambda: pretended.bid(task.task_id).status == "Terminated", seconds=30)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_cancel_that_was_told_to_go_on_does_so_though_nobody_was_asked_yet(
    client: Flow, pretended: Cloud, number: signal.Signals
) -> None:
    task = client.run("sleep 1000", upload_code=False)
    pretended.faults.play(slow(10), times=1000)
    words = [sys.executable, "-m", "flow", "cancel", task.task_id]
    cancel = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert cancel.stderr and cancel.stderr.readline() == f"ending `{task}` (sleep)\n"
    cancel.send_signal(number)
    said = cancel.communicate(timeout=60)[1]
    assert ("will end without this command" in said) == (number is signal.SIGINT), said
    pretended.faults.clear()
    assert wait_until(lambda: pretended.bid(task.task_id).status == "Terminated", seconds=60)


def test_what_cannot_be_read_of_what_a_task_left_keeps_no_end_from_it(client: Flow, cloud: Cloud) -> None:
    command = "cd $FLOW_OUTPUT; echo kept > kept; echo x > closed; chmod 000 closed"
    task = client.run(command, upload_code=False)
    assert task.wait(timeout=90) == "completed"
    assert re.fullmatch(r"not copied: .*/1/0/output/closed: .*Permission denied", task.reason)
    kept = task.outputs("kept")
    assert kept and kept.read_text() == "kept\n"
    assert wait_until(lambda: client.held() == [], seconds=60) and cloud.billed() == []


def test_a_cancel_is_on_record_where_nobody_can_be_asked(
    client: Flow, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = client.run("sleep 1000", upload_code=False, name="one")
    with monkeypatch.context() as away, no_attendant(client.home):
        away.setenv("MITHRIL_API_KEY", "of somebody else")
        ended = flow("cancel", "one")
    assert ended.returncode != 0 and client.records.intent(task.task_id).want == "cancel", ended.stderr
    assert f"\n\nhint: it is on record: `{task}` ends when a `flow` command" in ended.stderr
    assert task.wait(timeout=90) == "cancelled"
    assert wait_until(lambda: client.held() == [], seconds=60) and cloud.billed() == []


def test_no_second_attendant_is_started_while_one_begins(client: Flow, pretended: Cloud) -> None:
    """Which is not kept from it by who asks whether there is one, and has the lock for a moment."""

    def attendants() -> list[int]:
        return [one.pid for one in processes_of(client.home) if one.command.endswith("-m flow.attendant")]

    client.home.mkdir()
    with (client.home / LOCK).open("w") as asked:
        fcntl.flock(asked, fcntl.LOCK_SH)
        task = client.run("true", upload_code=False)
        for _ in range(5):  # each look sees that none is at work yet
            task.refresh()
        (first,) = attendants()
        assert not wait_until(lambda: attendants() != [first], seconds=0.5)
    assert attendant_of(client.home) == first


def test_an_attendant_whose_key_is_refused_makes_room_for_another(
    client: Flow, pretended: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nobody with the right key would come, for as long as it is there."""
    task, lock = client.run("true", upload_code=False), client.home / LOCK
    with no_attendant(client.home):
        lock.write_text("")
    with monkeypatch.context() as away:
        away.setenv("MITHRIL_API_KEY", "of somebody else")
        start_attendant(client.home)
        refused = attendant_of(client.home)
    assert wait_until(lambda: not is_locked(lock), seconds=30)
    lock.write_text("")
    assert task.refresh().status == "starting"
    assert attendant_of(client.home) != refused and is_locked(lock)


def test_a_task_that_is_recorded_says_so_first_where_it_cannot_be_given(
    client: Flow, pretended: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it is asked for twice."""
    client.offers()  # so that its price is known
    client.home.mkdir(exist_ok=True)
    with (client.home / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # no attendant gives it
        with monkeypatch.context() as away:
            away.setenv("MITHRIL_API_KEY", "of somebody else")
            ended = flow("run", "--gpu", "a100", "true")
        (task,) = client.tasks(refresh=False)
        task.cancel()
    hints = ended.stderr.split("\n\n")[1].splitlines()
    assert hints == [
        f"hint: it is recorded as `{task}` and goes on with the next `flow` command: do not repeat it",
        f"hint: or end it: `flow cancel {task}`",
    ]
