"""The end of a task at Mithril: who collects it, who ends its bid, and what becomes of it with nobody there."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import Any

import pytest

from flow.chores import attend
from flow.client import Flow
from flow.errors import ProviderError, ValidationError
from flow.plan import Plan
from flow.providers.copied import fetch
from flow.providers.startup import ROOT
from flow.status import Want
from flow.task import Task
from tests.support.aws import Aws
from tests.support.commands import flow
from tests.support.mithril_cloud import Cloud
from tests.support.mithril_cloud.faults import NO_MEMBER, QUOTA, Fault, refusal
from tests.support.mithril_cloud.records import ApiKey, Bid
from tests.support.processes import no_attendant, wait_until
from tests.support.story import DOOM, files_with

WAIT = "until [ -e /tmp/go ]; do sleep 0.05; done"
SECRET = "wJalr-a-secret-that-nobody-may-see"


@pytest.fixture
def client(at_mithril: Flow) -> Flow:
    return at_mithril


@pytest.fixture
def bucket(cloud_aws: Aws, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Machines copy records to `s3://bucket/some/path`, after two seconds; a boto3 client of S3."""
    for name, value in {**cloud_aws.access, "AWS_SECRET_ACCESS_KEY": SECRET}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FLOW_RECORDS", "s3://bucket/some/path")
    monkeypatch.setenv("FLOW_MITHRIL_GRACE_MINUTES", "0.03")
    return cloud_aws.bucket("bucket", {})


def _run(client: Flow, command: str, **fields: Any) -> Task:
    task = client.run(command, upload_code=False, **fields)
    assert wait_until(lambda: task.refresh().status == "running", seconds=60), (task.status, task.reason)
    return task


def _die(where: str, *words: str) -> None:
    """A `flow` command that is killed where it first comes there."""
    command = [sys.executable, str(DOOM), "client", where, *words]
    died = subprocess.run(command, env={**os.environ, "DEATHS": os.devnull}, capture_output=True, timeout=90)
    assert died.returncode == -signal.SIGKILL, died


def _own_keys(cloud: Cloud, task: Task) -> list[ApiKey]:
    """Those that were made for the task's machines."""
    return [one for one in cloud.api_keys.values() if one.name.startswith(f"flow-{task}-")]


def _own_secrets(cloud: Cloud, task: Task) -> set[str]:
    return {one.secret for one in _own_keys(cloud, task)}


def _who_deleted(cloud: Cloud, bid: Bid) -> list[str]:
    """The keys by which that was asked for."""
    asked = [one for one in cloud.requests if one.line == f"DELETE /v2/spot/bids/{bid.fid}"]
    return [one.headers["Authorization"].removeprefix("Bearer ") for one in asked]


def _limit(cloud: Cloud, task: Task) -> int:
    """What its bid was made with, in cents."""
    return int(str(cloud.bid(task.task_id).launch.startup_script).splitlines()[1].split()[-1])


def _go(cloud: Cloud, task: Task) -> None:
    """Let its commands end."""
    for rank in range(task.plan.nodes):
        cloud.host(task.task_id, rank).run("touch /tmp/go")


@pytest.fixture
def away(client: Flow, monkeypatch: pytest.MonkeyPatch) -> Flow:
    """A client in the same home whose machines wait for two seconds to have their tasks collected."""
    monkeypatch.setenv("FLOW_MITHRIL_GRACE_MINUTES", "0.03")
    return Flow()


def test_what_ends_while_no_client_is_there_is_paused_and_then_collected(away: Flow, cloud: Cloud) -> None:
    task = _run(away, f"echo worked; {WAIT}")
    with no_attendant(away.home):
        _go(cloud, task)
        cloud.await_bid(task.task_id, "Paused")
        assert cloud.billed() == []
        told = "completed, and not collected yet; its machine goes on for that at $1.25/h"
        assert away.tasks(refresh=True)[0].reason == told
    task = Flow().get_task(task.task_id)
    assert task.wait(timeout=90) == "completed"
    assert (task.logs(), task.exit_code) == ("worked\n", 0)
    assert wait_until(lambda: away.held() == [], seconds=60)
    assert cloud.bid(task.task_id).status == "Terminated"
    assert cloud.bid(task.task_id).limit_cents == _limit(cloud, task)  # or another pause would be told as this one


def test_what_completed_stays_so_while_its_machine_costs_more_than_it_may(away: Flow, cloud: Cloud) -> None:
    task = _run(away, f"echo worked; {WAIT}")
    bid = cloud.bid(task.task_id)
    lane = cloud.lane(bid.instance_type, bid.region)
    waits = "completed, and not collected yet; waits for a machine (limit $1.88, price $2.00)"
    with no_attendant(away.home):
        _go(cloud, task)
        cloud.await_bid(task.task_id, "Paused")
        lane.price_cents, price = 200, lane.price_cents
        assert wait_until(lambda: lane.clearing_cents == 200)
        (away.home / "mithril" / "availability.json").unlink()  # which tells the price of a moment ago
        assert (task.refresh().status, task.reason) == ("paused", waits)
        with pytest.raises(ProviderError, match="is paused: completed, and not collected yet"):
            task.logs()
    task = Flow().get_task(task.task_id)
    cloud.await_bid(task.task_id, "Open")
    assert (task.refresh().status, task.reason) == ("paused", waits)
    lane.price_cents = price
    assert (task.wait(timeout=90), task.logs()) == ("completed", "worked\n")


def test_a_cancel_does_not_throw_away_what_has_completed(away: Flow, cloud: Cloud) -> None:
    task = _run(away, f"echo worked; {WAIT}")
    with no_attendant(away.home):
        _go(cloud, task)
        cloud.await_bid(task.task_id, "Paused")
        words = [sys.executable, "-m", "flow", "cancel", task.task_id, "--yes"]
        cancel = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        told = (
            "completed, and not collected yet; its machine goes on for that at $1.25/h: it is collected, not cancelled"
        )
        assert cancel.stderr
        assert f"note: `{task.task_id}` {told}\n" in iter(cancel.stderr.readline, "")
    assert (cancel.communicate(timeout=90)[0], cancel.returncode) == (f"{task.task_id}  completed\n", 0)
    assert task.refresh().logs() == "worked\n"
    assert cloud.bid(task.task_id).status == "Terminated"


def test_a_cancel_that_comes_as_the_task_completes_leaves_its_machine_until_it_was_collected(
    client: Flow, cloud: Cloud
) -> None:
    task = _run(client, f"echo worked; {WAIT}")
    with no_attendant(client.home):
        _go(cloud, task)
        ended = f"/home/ubuntu/.flow-host/tasks/{task}/ended"
        assert wait_until(lambda: cloud.host(task.task_id).run(f"test -e {ended}", check=False).returncode == 0)
        client.records.set_intent(task.task_id, Want.CANCEL)
        client.provider().release(task.task_id)
        assert cloud.bid(task.task_id).status == "Allocated"
    assert (task.wait(timeout=60), task.logs()) == ("completed", "worked\n")
    assert wait_until(lambda: client.held() == [], seconds=60)


def test_a_machine_that_may_not_tell_how_its_task_ended_is_paused_all_the_same(away: Flow, cloud: Cloud) -> None:
    task = _run(away, f"echo worked; {WAIT}")
    bid = cloud.bid(task.task_id)
    lane = cloud.lane(bid.instance_type, bid.region)
    lane.minimum_cents, least = bid.limit_cents + 10, lane.minimum_cents
    with no_attendant(away.home):
        _go(cloud, task)
        cloud.await_bid(task.task_id, "Paused")
    assert task.refresh().status == "paused"
    lane.minimum_cents = least
    done = subprocess.run(["mithril", "bids", "update", task.task_id, "--no-paused"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert task.wait(timeout=90) == "completed"
    assert (task.logs(), task.exit_code) == ("worked\n", 0)
    assert wait_until(lambda: away.held() == [], seconds=60)


@pytest.mark.parametrize("refused", [None, QUOTA, refusal(400, "Bid is still being paused")])
def test_a_machine_that_may_not_go_on_keeps_what_its_task_left(
    away: Flow, cloud: Cloud, monkeypatch: pytest.MonkeyPatch, refused: Fault | None
) -> None:
    """For now, or not with the limit that its bid was made with, as the least that is taken has risen."""
    task = _run(away, f"echo worked; {WAIT}")
    with no_attendant(away.home):
        _go(cloud, task)
        bid = cloud.await_bid(task.task_id, "Paused")
        if refused:
            cloud.faults.play(refused, "PATCH /v2/spot/bids", times=2)
        else:
            lane = cloud.lane(bid.instance_type, bid.region)
            monkeypatch.setattr(lane, "minimum_cents", _limit(cloud, task) + 10)
    task = Flow().get_task(task.task_id)
    assert (task.wait(timeout=90), task.logs()) == ("completed", "worked\n"), task.reason
    assert wait_until(lambda: away.held() == [], seconds=60)


def test_a_machine_for_which_no_key_is_made_is_told_how_to_end_later(client: Flow, cloud: Cloud) -> None:
    cloud.faults.play(refusal(400, "Too many API keys"), "POST /v2/api-keys", times=2)
    task = client.run("echo worked", upload_code=False)
    assert (task.wait(timeout=90), task.logs()) == ("completed", "worked\n"), task.reason


def test_a_volume_that_is_being_added_comes_before_the_task_goes_on(away: Flow, cloud: Cloud) -> None:
    """Who was about to add it died, and the task ended meanwhile."""
    task = _run(away, f"echo worked; {WAIT}")
    volume = away.create_volume(name="data", size_gb=1)
    with no_attendant(away.home):
        note = f"{cloud.bid(task.task_id).fid} {volume.volume_id}"
        (away.home / "record" / task.task_id / "adding").write_text(note)
        _go(cloud, task)
        cloud.await_bid(task.task_id, "Paused")
    task = Flow().get_task(task.task_id)
    assert (task.wait(timeout=90), task.logs()) == ("completed", "worked\n")
    bid = cloud.bid(task.task_id)
    assert (bid.launch.volumes, bid.limit_cents) == ([volume.volume_id], _limit(cloud, task))


def test_a_task_that_was_lost_is_not_told_as_completed(away: Flow, cloud: Cloud) -> None:
    task = _run(away, "sleep 1000")
    with no_attendant(away.home):
        folder = f"/home/ubuntu/.flow-host/tasks/{task}/1/0"
        read = f"import json; print(json.load(open('{folder}/status.json'))['runner_pid'])"
        cloud.host(task.task_id).run(f'kill -9 $(python3 -c "{read}")')
        cloud.await_bid(task.task_id, "Paused")
        assert away.tasks(refresh=True)[0].reason.startswith("has ended, and was not collected yet")
    assert Flow().get_task(task.task_id).wait(timeout=90) == "lost"


def test_a_machine_whose_key_is_refused_stays_until_its_task_was_collected(away: Flow, cloud: Cloud) -> None:
    task = _run(away, f"echo worked; {WAIT}")
    bid = cloud.bid(task.task_id)
    with no_attendant(away.home):
        (key,) = _own_keys(cloud, task)
        key.deactivated = cloud.clock.now()
        _go(cloud, task)
        assert wait_until(lambda: cloud.count(f"PATCH /v2/spot/bids/{bid.fid}") > 0, seconds=90)
    task = Flow().get_task(task.task_id)
    assert (task.wait(timeout=90), task.logs()) == ("completed", "worked\n")
    assert wait_until(lambda: away.held() == [], seconds=60)
    assert cloud.billed() == []


def test_a_machine_ends_its_bid_once_its_task_was_collected_though_the_client_dies(client: Flow, cloud: Cloud) -> None:
    task = _run(client, f"echo worked; {WAIT}", num_instances=2)
    with no_attendant(client.home):
        _go(cloud, task)
        _die("_give_back:0", "wait", task.task_id)
        bid = cloud.await_bid(task.task_id, "Terminated")
        assert _own_secrets(cloud, task).issuperset(_who_deleted(cloud, bid))
    task = Flow().get_task(task.task_id)
    assert (task.status, task.logs()) == ("completed", "worked\nworked\n")


def test_a_machine_that_is_kept_is_entered_and_ended_only_by_name(client: Flow, cloud: Cloud) -> None:
    task = client.run("echo left >note", upload_code=False, name="mine", keep=True)
    assert task.wait(timeout=90) == "completed"
    assert wait_until(lambda: client.held() == [], seconds=30)
    bid = cloud.bid(task.task_id)
    ended = f"`{task}` is completed; its machine costs $1.25/h until `flow orphans {task} --yes`"
    entered = flow("ssh", "mine", "--", "cat note; hostname; exit 3")
    name = cloud.host(task.task_id).run("hostname").stdout
    assert (entered.returncode, entered.stdout, entered.stderr) == (3, f"left\n{name}", f"note: {ended}\n")
    assert task.shell(["echo", "two  words"], capture=True).stdout == "two  words\n"
    forwarded = flow("forward", "mine", "8000")
    assert f"hint: its machine was kept: `flow ssh {task}` opens a shell on it\n" in forwarded.stderr
    spared = flow("orphans", "--yes")
    told = f"hint: each of these is ended only when it is named: `flow orphans {task}`\n"
    assert (spared.stderr, bid.status) == (told, "Allocated")
    given_back = flow("orphans", "mine", "--yes")
    assert (given_back.stderr, bid.status) == (f"note: `{bid.fid}` ({task}) is gone\n", "Terminated")
    entered = flow("ssh", "mine")
    assert entered.stderr == (
        f"error: `{task}` is completed, and the machine that it kept is gone\n\n"
        f"hint: see its output with `flow logs {task}`\n"
    )


def test_what_is_kept_is_told_by_all_that_see_the_end_and_by_cp_and_its_record_stays(
    client: Flow, cloud: Cloud
) -> None:
    ran = flow("run", "--keep", "--watch", "--no-upload-code", "--name", "mine", "echo left >note")
    (task,) = client.tasks()
    bid = cloud.bid(task.task_id)
    ended = f"note: `{task}` is completed; its machine costs $1.25/h until `flow orphans {task} --yes`\n"
    way_in = f"hint: its machine was kept: `flow ssh {task}` opens a shell on it\n"
    assert (ran.returncode, ran.stderr.endswith(ended + way_in)) == (0, True), ran.stderr
    cancelled = flow("cancel", "mine")
    assert (cancelled.returncode, cancelled.stdout, cancelled.stderr) == (0, f"{task}  completed\n", ended)
    assert (flow("wait", "mine").stderr, flow("logs", "mine", "-f").stderr) == (ended, ended)
    copied = flow("cp", "mine:note", ".")
    assert copied.stderr == (
        f"error: `{task}` has no `note`\n\n"
        f"hint: its machine was kept, and may have it: look there with `flow ssh {task} -- ls -l`\n"
        f"hint: it has ended: what it left in `$FLOW_OUTPUT` is `{task}:output`\n"
    )
    assert wait_until(lambda: client.held() == [], seconds=30)
    pruned = flow("prune", "--keep", "0", "--yes")
    assert (pruned.stdout, pruned.stderr, bid.status) == ("", "freed 0 B\n", "Allocated")
    cloud.faults.play(NO_MEMBER, "GET /v2/spot/bids", times=9)
    pruned = flow("prune", "--keep", "0", "--yes")
    unknown = "note: tasks with `--keep` stay, as what they cost is not known: "
    assert (pruned.stdout, pruned.stderr.startswith(unknown)) == ("", True), pruned.stderr
    cloud.faults.clear()
    assert flow("orphans", "mine", "--yes").returncode == 0
    assert (flow("cancel", "mine").stderr, bid.status) == ("", "Terminated")
    assert client.prune(keep=0).task_ids == (task.task_id,)


def test_the_machine_of_an_array_that_is_kept_is_entered_by_its_elements(client: Flow, cloud: Cloud) -> None:
    array = client.run("echo $FLOW_ARRAY_INDEX >note", upload_code=False, array="1-2", keep=True)
    assert array.wait(timeout=90) == "completed"
    refused = flow("ssh", array.task_id)
    assert refused.stderr.endswith(f"hint: its machine was kept: `flow ssh {array}_1` opens a shell on it\n")
    entered = flow("ssh", f"{array}_2", "--", "cat", "note")
    told = f"note: `{array}_2` is completed; its machine costs $1.25/h until `flow orphans {array} --yes`\n"
    assert (entered.stdout, entered.stderr) == ("2\n", told)
    assert flow("orphans", array.task_id, "--yes").returncode == 0
    assert wait_until(lambda: cloud.billed() == [], seconds=30)


@pytest.mark.parametrize(
    ("fields", "hours"), [({"max_run_time_hours": 2}, 74), ({}, 364 * 24), ({"max_run_time_hours": 9e4}, 364 * 24)]
)
def test_the_key_of_a_machine_expires_by_itself(
    client: Flow, cloud: Cloud, fields: dict[str, Any], hours: float
) -> None:
    task = _run(client, "sleep 1000", **fields)
    (key,) = _own_keys(cloud, task)
    assert (key.expires - cloud.clock.now()) / 3600 == pytest.approx(hours, abs=0.1)


# Records that machines copy to S3.


def _ends_with_nobody_there(client: Flow, cloud: Cloud, task: Task) -> Bid:
    with no_attendant(client.home):
        _go(cloud, task)
        return cloud.await_bid(task.task_id, "Terminated")


def test_a_machine_copies_the_record_ends_its_bid_and_the_next_command_has_it_all(
    bucket: Any, client: Flow, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = f"echo worked; echo but >&2; echo '{{\"loss\": 1}}' >$FLOW_OUTPUT/result.json; {WAIT}; exit 3"
    task = _run(client, command, env={"SOME_TOKEN": "a-token"})
    keys = {SECRET, cloud.key, *_own_secrets(cloud, task)}
    bid = _ends_with_nobody_there(client, cloud, task)
    assert (cloud.billed(), {*_who_deleted(cloud, bid)} <= keys - {cloud.key}) == ([], True)
    (found,) = bucket.list_objects_v2(Bucket="bucket")["Contents"]
    assert found["Key"] == f"some/path/{task}/1/0.tar.gz"
    content = bucket.get_object(Bucket="bucket", Key=found["Key"])["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(content)) as copied:
        names = copied.getnames()
        texts = [file.read() for one in copied if (file := copied.extractfile(one))]
    assert f"{task}/1/0/status.json" in names and f"{task}/1/0/output/result.json" in names
    assert not [one for one in texts for secret in (*keys, "a-token") if secret.encode() in one]

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):  # it is known what it was made with
        monkeypatch.delenv(name)
    away = Flow()
    task = away.get_task(task.task_id)
    assert (task.status, task.exit_code, task.result()) == ("failed", 3, {"loss": 1})
    assert sorted(task.logs().splitlines()) == ["but", "worked"]
    assert wait_until(lambda: away.held() == [], seconds=60)
    assert [one.name for one in cloud.api_keys.values() if not one.deactivated] == ["laptop"]
    assert list(client.home.glob("mithril/copied/*")) == []
    assert [path for key in keys for path in files_with(key, client.home)] == []
    assert [place for key in keys for place in cloud.leaks(key)] == []


def test_the_records_of_several_machines_and_of_an_array_are_copied(bucket: Any, client: Flow, cloud: Cloud) -> None:
    pair = _run(client, f"echo node $FLOW_NODE_RANK; {WAIT}", num_instances=2)
    array = _run(client, f"echo element $FLOW_ARRAY_INDEX; {WAIT}; [ $FLOW_ARRAY_INDEX != 2 ]", array="1-3")
    for task in (pair, array):
        _ends_with_nobody_there(client, cloud, task)
    away = Flow()
    task = away.get_task(pair.task_id)
    assert (task.status, sorted(task.logs().splitlines())) == ("completed", ["node 0", "node 1"])
    assert away.get_task(array.task_id).status == "failed"
    ends = [(str(one.status), one.logs()) for one in (away.get_task(f"{array}_{n}") for n in (1, 2, 3))]
    assert ends == [("completed", "element 1\n"), ("failed", "element 2\n"), ("completed", "element 3\n")]
    assert wait_until(lambda: away.held() == [], seconds=60)


def test_where_nothing_can_be_copied_the_machine_is_paused_and_collected(
    bucket: Any, client: Flow, cloud: Cloud
) -> None:
    task = _run(client, f"echo worked; {WAIT}")
    bucket.delete_bucket(Bucket="bucket")
    with no_attendant(client.home):
        _go(cloud, task)
        cloud.await_bid(task.task_id, "Paused")
    task = Flow().get_task(task.task_id)
    assert (task.wait(timeout=90), task.logs()) == ("completed", "worked\n")


def test_what_may_not_be_read_does_not_keep_the_rest_from_being_copied(bucket: Any, client: Flow, cloud: Cloud) -> None:
    make = "for n in $(seq 1500); do at=$FLOW_OUTPUT/a-file-with-a-name-that-is-not-short-$n; : >$at; chmod 0 $at; done"
    task = _run(client, f"{make}; mkdir -m 0 $FLOW_OUTPUT/shut; echo worked; {WAIT}")
    assert wait_until(lambda: task.logs() == "worked\n", seconds=60)
    _ends_with_nobody_there(client, cloud, task)
    task = Flow().get_task(task.task_id)
    assert (task.wait(timeout=90), task.logs()) == ("completed", "worked\n")


def test_a_copy_that_stands_still_is_given_up(bucket: Any, client: Flow, cloud: Cloud) -> None:
    task = _run(client, f"echo worked; {WAIT}")
    host = cloud.host(task.task_id)
    host.run("printf '#!/bin/sh\\n[ $1 = -cz ] && exec sleep 1000\\nexec /usr/bin/tar \"$@\"' >/usr/local/bin/tar")
    host.run("chmod +x /usr/local/bin/tar")
    host.run("sed -i 's/^STILL_SECONDS = .*/STILL_SECONDS = 3/' /home/ubuntu/.flow-host/node/*/record_copy.py")
    with no_attendant(client.home):
        _go(cloud, task)
        cloud.await_bid(task.task_id, "Paused")
    task = Flow().get_task(task.task_id)
    assert (task.wait(timeout=90), task.logs()) == ("completed", "worked\n")


def test_a_record_that_cannot_be_read_is_not_lost(bucket: Any, client: Flow, cloud: Cloud, cloud_aws: Aws) -> None:
    task = _run(client, f"echo worked; {WAIT}")
    _ends_with_nobody_there(client, cloud, task)
    cloud_aws.ask_for_signatures("s3:*")
    task = Flow().get_task(task.task_id)
    assert task.status == "running"
    assert task.reason.startswith("its record in `s3://bucket/some/path` cannot be read: "), task.reason
    cloud_aws.take_any_signature()
    assert (task.wait(timeout=90), task.logs()) == ("completed", "worked\n")


@contextmanager
def _s3_that_answers(last: bytes) -> Iterator[str]:
    """Where each object is said to be there, and to be read gets this answer."""

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            line = self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            found = b"200 OK\r\nContent-Length: 19\r\n\r\n"
            listing = b"<ListBucketResult/>" if b"list-type" in line else b""
            self.wfile.write(b"HTTP/1.1 " + (found + listing if listing or line.startswith(b"HEAD") else last))

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\nonly some of it", "it was cut off: IncompleteRead"),
        (b"404 Not Found\r\nContent-Length: 0\r\n\r\n", "`task-1/1/0.tar.gz` was taken away just now"),
    ],
)
def test_a_record_that_goes_or_breaks_off_while_it_is_read_is_asked_for_again(
    tmp_path: Path, answer: bytes, told: str
) -> None:
    plan = Plan("task-1", "train", "mithril", ("true",), records="bucket/path")
    with _s3_that_answers(answer) as url:
        environ = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET}
        with pytest.raises(ProviderError) as failed:
            fetch(plan, ["task-1/1/0.tar.gz"], tmp_path / "record", tmp_path / "copied" / "task-1", environ)
    assert failed.value.message.startswith(f"its record in `s3://bucket/path` cannot be read: {told}")
    assert list((tmp_path / "copied").iterdir()) == []


def test_a_task_that_waits_does_not_start_before_the_others_where_its_records_cannot_be_read(
    bucket: Any, client: Flow, cloud: Cloud, cloud_aws: Aws
) -> None:
    client = Flow()
    first = client.run("sleep 1000", upload_code=False)
    second = client.run("true", depends_on=[first.task_id], upload_code=False)
    cloud_aws.ask_for_signatures("s3:*")
    for _ in range(3):
        assert attend(client, {})
    assert [one.name for one in cloud.spot.bids.values()] == [first.task_id]
    assert (second.refresh().status, second.reason) == ("pending", f"waits for {first} to be completed")


def test_a_record_that_is_damaged_does_not_keep_others_from_being_collected(client: Flow, cloud: Cloud) -> None:
    damaged, other = _run(client, "sleep 1000"), _run(client, f"echo worked; {WAIT}")
    record = client.home / "record" / damaged.task_id / "record.json"
    whole = record.read_bytes()
    record.write_text("{")
    _go(cloud, other)
    assert wait_until(lambda: client.records.final(other.task_id) is not None, seconds=60)  # by the attendant alone
    record.write_bytes(whole)
    assert client.get_task(damaged.task_id).status == "running"
    assert client.get_task(other.task_id).logs() == "worked\n"


def test_who_is_there_collects_before_anything_is_copied(
    bucket: Any, client: Flow, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLOW_MITHRIL_GRACE_MINUTES")
    task = _run(Flow(), f"echo worked; {WAIT}")
    patient = f"sed -i 's/^CLIENT_SECONDS = .*/CLIENT_SECONDS = 60/' {ROOT}/guard.py"  # with who is slow
    cloud.host(task.task_id).run(f"{patient}; systemctl restart flow-guard")
    _go(cloud, task)
    assert (task.wait(timeout=90), task.logs()) == ("completed", "worked\n")
    assert "Contents" not in bucket.list_objects_v2(Bucket="bucket")


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ("bucket/path", "`records` is `bucket/path`"),
        ("volume://data", "`records` is `volume://data`"),
        ("s3://", "`records` is `s3://`"),
        ("s3://nothing/path", "`records` cannot be written to `s3://nothing/path`: there is no bucket `nothing`"),
    ],
)
def test_a_place_where_nothing_can_be_copied_to_is_told_before_anything_is_submitted(
    bucket: Any, client: Flow, monkeypatch: pytest.MonkeyPatch, records: str, told: str
) -> None:
    monkeypatch.setenv("FLOW_RECORDS", records)
    away = Flow()
    with pytest.raises(ValidationError) as refused:
        away.run("true", upload_code=False)
    assert refused.value.message.startswith(told)
    assert away.tasks() == []
    assert away.run("true", provider="local", upload_code=False).wait(timeout=30) == "completed"


def test_who_may_not_write_there_is_told_so(
    bucket: Any, client: Flow, cloud_aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cloud_aws.ask_for_signatures("s3:List*", "s3:Get*").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=r"who has these credentials may not write to `s3://bucket/some/path/`"):
        Flow().run("true", upload_code=False)
