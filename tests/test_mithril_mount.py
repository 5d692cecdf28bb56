"""A volume more for a task that runs at Mithril, by way of a pause, and what becomes of it when that is cut short."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
from threading import Event

import pytest

from flow.attend import start_attendant
from flow.client import Flow
from flow.errors import ValidationError
from flow.orphans import orphans
from flow.task import Task
from tests.support.commands import flow
from tests.support.mithril_cloud import Cloud
from tests.support.mithril_cloud.faults import Answer, Fault, slow
from tests.support.processes import wait_until
from tests.support.story import DOOM

REGION = "us-central1-b"
AGAIN = "[ $FLOW_ATTEMPT = 1 ] && sleep 1000; touch /mnt/more/here && echo has it"


@pytest.fixture
def client(at_mithril: Flow) -> Flow:
    return at_mithril


@pytest.fixture
def task(client: Flow) -> Task:
    """One that runs until it is stopped, and then wants the volume `more`."""
    client.create_volume(1, "more")
    task = client.run(AGAIN, upload_code=False, volumes=[{"mount_path": "/data", "size_gb": 1}], grace_seconds=0.5)
    assert wait_until(lambda: task.refresh().status == "running", seconds=60)
    return task


def ends_with_it(client: Flow, task: Task) -> None:
    assert task.wait(timeout=90) == "completed", task.reason
    assert task.logs().splitlines()[-1] == "has it"
    assert [str(one.status) for one in task.attempts] == ["preempted", "completed"]
    assert not (client.home / "record" / task.task_id / "adding").exists()


def test_a_task_is_stopped_for_it_and_runs_again(client: Flow, task: Task) -> None:
    assert client.mount_volume("more", task) == "/mnt/more"
    ends_with_it(client, task)
    assert wait_until(lambda: client.held() == [], seconds=60)
    assert {one.name: one.whose for one in orphans(client)}["more"] == f"`{task}` had it"


@pytest.mark.parametrize("moment", ["the notice", "the pause", "the volume"])
def test_who_is_killed_over_it_is_followed_by_another(client: Flow, cloud: Cloud, task: Task, moment: str) -> None:
    host = cloud.host(task.task_id)
    bid = f"PATCH /v2/spot/bids/{cloud.bid(task.task_id).fid}"
    skipped = {"the notice": 0, "the pause": 0, "the volume": 1}[moment]
    is_killed = Event()

    def late(_: Answer | None) -> Answer:
        is_killed.wait(60)  # else what is looked for goes with the pause
        return Answer(503)

    cloud.faults.play(Fault(late) if moment == "the notice" else slow(3), bid, skip=skipped)
    mount = subprocess.Popen([sys.executable, "-m", "flow", "mount", "--yes", "more", task.task_id])
    if moment == "the notice":
        assert wait_until(lambda: host.run("test -e /run/flow/notice", check=False).returncode == 0, seconds=60)
    else:
        assert wait_until(lambda: cloud.count(bid) > skipped, seconds=60)
    mount.kill()
    mount.wait()
    is_killed.set()
    ends_with_it(client, task)


def test_a_task_whose_code_is_not_there_yet_gets_none_and_is_not_disturbed(client: Flow) -> None:
    client.create_volume(1, "more")
    client.home.mkdir(parents=True, exist_ok=True)
    with (client.home / "attend.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # nobody delivers meanwhile
        task = client.run("echo delivered", upload_code=False)
        assert wait_until(lambda: task.refresh().reason == "its code is on the way", seconds=60)
        with pytest.raises(ValidationError, match="does not run now"):
            client.mount_volume("more", task)
    start_attendant(client.home)
    assert (task.wait(timeout=90), task.logs()) == ("completed", "delivered\n"), task.reason
    assert [str(one.status) for one in task.attempts] == ["completed"]


def test_what_is_refused_is_not_asked_first_and_leaves_no_word_of_it(client: Flow, cloud: Cloud, task: Task) -> None:
    client.create_volume(1, "far", region="us-central5-a")
    refused = flow("mount", "far", task.task_id)
    told = f"error: the volume `far` is in us-central5-a, and the task is to run in {REGION}\n"
    assert (refused.returncode, refused.stderr.startswith(told)) == (2, True), refused.stderr
    asked = flow("mount", "more", task.task_id)  # with nobody there to ask
    assert (asked.returncode, "is stopped for it" in asked.stderr) == (3, True)
    task.cancel()
    assert task.wait(timeout=60) == "cancelled"
    ended = flow("mount", "more", task.task_id)
    assert (ended.returncode, ended.stderr) == (
        2,
        f"error: `{task}` is cancelled, not running\n\nhint: see its output with `flow logs {task}`\n",
    )
    whose = {one.name: one.whose for one in orphans(client)}
    assert (whose["far"], whose["more"]) == ("nobody's: no task here has had it",) * 2
    assert client.records.mounted(task.task_id) == []


def dies_before_anything_stops(task: Task) -> None:
    command = [sys.executable, str(DOOM), "client", "_tell_of:0", "mount", "--yes", "more", task.task_id]
    died = subprocess.run(command, env={**os.environ, "DEATHS": os.devnull}, capture_output=True, timeout=90)
    assert died.returncode == -signal.SIGKILL, died


def test_what_a_client_that_died_was_about_to_add_comes_with_the_next(client: Flow, cloud: Cloud, task: Task) -> None:
    dies_before_anything_stops(task)
    notes = [client.home / "record" / task.task_id / name for name in ("adding", "known_hosts")]
    assert [stat.S_IMODE(note.stat().st_mode) for note in notes] == [0o600, 0o600]
    other = client.create_volume(1, "other")
    assert client.mount_volume("other", task) == "/mnt/other"
    ends_with_it(client, task)
    assert other.volume_id in cloud.bid(task.task_id).launch.volumes


def test_nothing_of_it_stays_behind_when_the_task_is_cancelled(client: Flow, task: Task) -> None:
    dies_before_anything_stops(task)
    task.cancel()
    assert task.wait(timeout=60) == "cancelled"
    assert wait_until(lambda: client.held() == [], seconds=60)
    assert not (client.home / "record" / task.task_id / "adding").exists()
