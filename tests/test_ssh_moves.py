"""A host is gone for good: what ran there runs again on another one, as its retries say, and never counts twice."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest

from flow.attend import start_attendant
from flow.client import Flow
from flow.errors import FlowError, ProviderError
from flow.machines import Machines
from flow.task import Task
from tests.support.fleet import Fleet, Host
from tests.support.processes import end_attendant, wait_until
from tests.support.story import DOOM

_SECONDS = 60.0
_LOST = "was out of reach for 0.05 minutes"


@pytest.fixture
def client(fleet: Fleet, quick_ssh: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flow]:
    monkeypatch.setenv("FLOW_SSH_HOSTS", ",".join(fleet.hosts))
    monkeypatch.setenv("FLOW_SSH_SSH_CONFIG", str(fleet.config))
    monkeypatch.setenv("FLOW_SSH_LOST_AFTER_MINUTES", "0.05")
    with tempfile.TemporaryDirectory(prefix="fl-", dir="/tmp") as sockets:
        monkeypatch.setenv("XDG_RUNTIME_DIR", sockets)
        made = Flow("ssh")
        yield made
        for host in fleet.hosts.values():
            host.heal()
        end_attendant(made.home)


AGAIN = "echo up; [ $FLOW_ATTEMPT = 1 ] && sleep 1000; echo again"  # runs until it is started a second time


def running(client: Flow, command: str, **fields: object) -> Task:
    task = client.run(command, upload_code=False, **fields)  # type: ignore[arg-type]
    assert wait_until(lambda: "up" in task.logs(), seconds=_SECONDS, every=0.1), f"{task.refresh().status}"
    return task.refresh()


def host_of(task: Task, fleet: Fleet, node: int = 0) -> Host:
    return fleet.hosts[task.get_instances()[node].instance_id]


def attempts(task: Task) -> list[tuple[int, str]]:
    return [(one.number, str(one.status)) for one in task.attempts]


def processes_on(host: Host) -> str:
    """The processes of tasks that are on it."""
    return host.run("grep -lsa FLOW_TASK_ID= /proc/[0-9]*/environ", check=False).stdout


def moves(client: Flow, task: Task) -> list[Path]:
    return sorted((client.home / "record" / task.task_id).glob("moves/*.json"))


def is_quiet(client: Flow, fleet: Fleet) -> bool:
    """No process of a task is left anywhere once some client has asked each host."""

    def is_so() -> bool:
        Flow("ssh").offers()  # again, as one that was cut off may take a moment to answer
        return not any(processes_on(host) for host in fleet.hosts.values())

    return wait_until(is_so, seconds=_SECONDS, every=0.2)


def test_a_task_runs_again_elsewhere_and_what_comes_back_does_not_count(client: Flow, fleet: Fleet) -> None:
    script = "echo up; trap '' TERM; [ $FLOW_ATTEMPT = 1 ] && until [ -e /tmp/go ]; do sleep 0.1; done; echo $HOSTNAME"
    task = running(client, script, retries=1, grace_seconds=0.5, gpu="a100:1")
    gone = host_of(task, fleet)
    gone.cut()
    assert task.wait(timeout=_SECONDS) == "completed", task.reason  # nobody but the attendant saw to it
    assert attempts(task) == [(1, "lost"), (2, "completed")]
    assert task.attempts[0].reason == f"{gone.name} {_LOST}"
    assert processes_on(gone)
    gone.run("touch /tmp/go")  # its own end comes too late
    gone.heal()
    assert is_quiet(client, fleet)
    again = Flow("ssh").get_task(task.task_id)
    assert (again.status, attempts(again)) == ("completed", [(1, "lost"), (2, "completed")])
    assert [line.attempt for line in again.lines()] == [2, 2]
    assert not list((client.home / "record").glob("*/final-contradicted*"))
    client.prune(keep=0)
    assert not any(host.run("ls /root/.flow-host/tasks", check=False).stdout for host in fleet.hosts.values())


def test_a_host_comes_back_while_the_next_attempt_runs(client: Flow, fleet: Fleet) -> None:
    task = running(client, "echo up; sleep 1000", retries=2)
    gone = host_of(task, fleet)
    gone.cut()
    followed: list[str] = []
    follower = Thread(target=lambda: followed.extend(Flow("ssh").get_task(task.task_id).logs(follow=True)))
    follower.start()
    assert wait_until(lambda: "attempt 1 was lost" in task.refresh().reason and "up" in task.logs(), seconds=_SECONDS)
    assert wait_until(lambda: task.refresh().status == "running", seconds=_SECONDS)
    assert task.reason == f"attempt 1 was lost: {gone.name} {_LOST}"
    now = host_of(task, fleet)
    assert now is not gone
    gone.heal()  # no command asks it: the attendant does
    assert wait_until(lambda: not processes_on(gone), seconds=_SECONDS)
    assert task.refresh().status == "running"
    task.cancel()
    assert task.wait(timeout=_SECONDS) == "cancelled"
    follower.join(_SECONDS)
    assert followed in (["up", "up"], ["up"])  # the first may have been lost with its host
    assert is_quiet(client, fleet)


def test_all_nodes_of_a_task_move_when_one_is_lost(client: Flow, fleet: Fleet) -> None:
    gang = running(client, AGAIN, num_instances=3, retries=1, gpu="a100:4")
    assert wait_until(lambda: gang.logs() == "up\n" * 3, seconds=_SECONDS)
    gone = host_of(gang, fleet, 1)
    gone.cut()
    assert gang.wait(timeout=_SECONDS) == "completed", gang.reason
    assert attempts(gang) == [(1, "lost"), (2, "completed")]
    assert gang.logs() == "up\nagain\n" * 3 or sorted(gang.logs().split()) == ["again"] * 3 + ["up"] * 3
    gone.heal()
    assert is_quiet(client, fleet)
    assert Flow("ssh").get_task(gang.task_id).status == "completed"


def test_of_an_array_what_was_on_the_lost_host_moves(client: Flow, fleet: Fleet) -> None:
    command = "echo $FLOW_ARRAY_INDEX.$FLOW_ATTEMPT; until [ -e /tmp/go ]; do sleep 0.1; done"
    array = client.run(command, array="1-8", retries=1, cpus=2, upload_code=False)
    assert wait_until(lambda: len(array.logs().split()) == 4, seconds=_SECONDS, every=0.2)  # one on each
    gone = fleet.hosts["gpu2"]
    there = {int(name) for name in gone.run("ls /root/.flow-host/tasks | grep -o '_[0-9]*$' | tr -d _").stdout.split()}
    gone.cut()
    assert wait_until(lambda: len(moves(client, array)) == 2, seconds=_SECONDS, every=0.2)
    for host in fleet.hosts.values():
        host.run("touch /tmp/go")
    assert array.wait(timeout=_SECONDS) == "completed", array.reason
    tried = {n: attempts(client.get_task(f"{array}_{n}")) for n in range(1, 9)}
    assert {n for n in tried if len(tried[n]) == 2} >= there
    assert all(found in ([(1, "completed")], [(1, "lost"), (2, "completed")]) for found in tried.values()), tried
    gone.heal()
    assert is_quiet(client, fleet)
    assert Flow("ssh").get_task(array.task_id).status == "completed"


def test_an_element_that_was_seen_to_have_ended_does_not_go_with_its_host(client: Flow, fleet: Fleet) -> None:
    command = "echo $FLOW_ARRAY_INDEX.$FLOW_ATTEMPT; until [ -e /tmp/go$FLOW_ARRAY_INDEX ]; do sleep 0.1; done"
    array = client.run(command, array="1-2", retries=1, region="gpu2", upload_code=False)
    assert wait_until(lambda: len(array.logs().split()) == 2, seconds=_SECONDS, every=0.2)
    gone = fleet.hosts["gpu2"]
    gone.run("touch /tmp/go1")
    done = Flow("ssh").get_task(f"{array}_1")
    assert wait_until(lambda: array.refresh().elements == {"completed": 1, "running": 1}, seconds=_SECONDS)
    assert (done.outputs(), done.logs()) == (client.home / "record" / str(done) / "1" / "0" / "output", "1.1\n")
    gone.cut()
    assert wait_until(lambda: array.refresh().elements == {"completed": 1, "lost": 1}, seconds=_SECONDS, every=0.2)
    again = Flow("ssh").get_task(str(done))
    assert (again.status, again.exit_code, again.logs()) == ("completed", 0, "1.1\n")


def test_what_no_other_host_can_take_is_lost(client: Flow, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOW_SSH_HOSTS", "gpu1,gpu2")
    client = Flow("ssh")
    there = running(client, AGAIN, region="gpu1", retries=3)
    both = running(client, AGAIN, num_instances=2, retries=3, gpu="a100:1")
    fleet.hosts["gpu1"].cut()
    for task in (there, both):
        assert (task.wait(timeout=_SECONDS), task.reason) == ("lost", f"gpu1 {_LOST}")
    assert not moves(client, there) and not moves(client, both)


def test_retries_are_counted_over_all_hosts(client: Flow, fleet: Fleet) -> None:
    task = running(client, "echo up; [ $FLOW_ATTEMPT = 1 ] && sleep 1000; exit 3", retries=2)
    host_of(task, fleet).cut()
    assert (task.wait(timeout=_SECONDS), task.exit_code) == ("failed", 3)
    assert attempts(task) == [(1, "lost"), (2, "failed"), (3, "failed")]


def test_a_second_host_is_lost_too(client: Flow, fleet: Fleet) -> None:
    task = running(client, "echo up; [ $FLOW_ATTEMPT -le 2 ] && sleep 1000; echo third", retries=2)
    first = host_of(task, fleet)
    first.cut()
    assert wait_until(lambda: task.refresh().outcome.attempt == 2 and "up" in task.logs(), seconds=_SECONDS)
    second = host_of(task, fleet)
    second.cut()
    assert task.wait(timeout=_SECONDS) == "completed"
    assert attempts(task) == [(1, "lost"), (2, "lost"), (3, "completed")]
    first.heal()
    second.heal()
    assert is_quiet(client, fleet)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_cancel_while_it_moves(client: Flow, fleet: Fleet, moment: str) -> None:
    task = running(client, "echo up; sleep 1000", retries=3)
    gone = host_of(task, fleet)
    gone.cut()
    if moment == "after":
        moved = wait_until(lambda: task.refresh().outcome.attempt == 2, seconds=_SECONDS)
        assert moved, (task.outcome, attempts(task), moves(client, task))
        task.cancel()
    else:
        client.records.set_intent(task.task_id, client.records.intent(task.task_id).want.CANCEL)
    assert task.wait(timeout=_SECONDS) == "cancelled"
    gone.heal()
    assert is_quiet(client, fleet)
    assert Flow("ssh").get_task(task.task_id).status == "cancelled"


def test_what_is_held_moves_once_it_is_let_go(client: Flow, fleet: Fleet) -> None:
    task = running(client, AGAIN, retries=1)
    task.hold()
    host_of(task, fleet).cut()
    assert wait_until(lambda: str(task.refresh().status) == "preempted", seconds=_SECONDS)
    client.records.set_intent(task.task_id, client.records.intent(task.task_id).want.RUN)
    assert task.wait(timeout=_SECONDS) == "completed"


def test_of_all_who_see_the_loss_one_moves_it(client: Flow, fleet: Fleet) -> None:
    task = running(client, AGAIN, retries=3)
    end_attendant(client.home)
    host_of(task, fleet).cut()
    looks = [Flow("ssh") for _ in range(6)]
    assert wait_until(lambda: is_lost(looks[0], task), seconds=_SECONDS)
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda one: one.provider().allocate(task.plan, 2), looks))
    assert len(moves(client, task)) == 1
    assert task.wait(timeout=_SECONDS) == "completed"
    assert attempts(task) == [(1, "lost"), (2, "completed")]


def is_lost(client: Flow, task: Task, state: Machines = Machines.LOST) -> bool:
    end_attendant(client.home)  # one that was on its way would move it
    return client.provider().allocations([task.task_id])[0].machines is state


def test_a_host_that_is_back_before_anything_moved_goes_on(client: Flow, fleet: Fleet) -> None:
    task = running(client, "echo up; until [ -e /tmp/go ]; do sleep 0.1; done", retries=1)
    end_attendant(client.home)
    gone = host_of(task, fleet)
    gone.cut()
    assert wait_until(lambda: is_lost(client, task), seconds=_SECONDS)
    gone.heal()
    Flow("ssh").provider().allocate(task.plan, 2)  # which has not just heard that it is away
    assert task.refresh().status == "running" and not moves(client, task)
    gone.run("touch /tmp/go")
    assert task.wait(timeout=_SECONDS) == "completed"
    assert attempts(task) == [(1, "completed")]


@pytest.mark.parametrize("retries", [0, 1])
def test_a_host_of_several_is_back_before_its_loss_is_on_record(client: Flow, fleet: Fleet, retries: int) -> None:
    gang = running(client, "echo up; until [ -e /tmp/go ]; do sleep 0.1; done", num_instances=3, retries=retries)
    end_attendant(client.home)
    gone = host_of(gang, fleet, node=1)
    gone.cut()
    seen = Machines.LOST if retries else Machines.GONE
    assert wait_until(lambda: is_lost(Flow("ssh"), gang, seen), seconds=_SECONDS, every=0.2)
    gone.heal()
    for host in fleet.hosts.values():
        host.run("touch /tmp/go")
    end = "completed" if retries else "lost"
    assert gang.wait(timeout=_SECONDS) == end, gang.reason
    assert attempts(gang)[-1] == (1, end)
    assert is_quiet(client, fleet)


@pytest.mark.parametrize("seed", range(10))
def test_an_attendant_that_dies_anywhere_is_followed_by_another(
    client: Flow, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    monkeypatch.setenv("DEATHS", str(tmp_path / "deaths"))
    nodes = chance.choice((1, 1, 2))
    task = running(client, f"echo $FLOW_ATTEMPT $FLOW_NODE_RANK >> ~/ledger; {AGAIN}", retries=4, num_instances=nodes)
    end_attendant(client.home)
    gone = host_of(task, fleet, chance.randrange(nodes))
    gone.cut()
    assert wait_until(lambda: is_lost(Flow("ssh"), task), seconds=_SECONDS)
    for _ in range(3):
        line = int(10 ** chance.uniform(2.5, 4))
        words = [sys.executable, str(DOOM), "attendant", str(line)]
        with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            if not wait_until(lambda process=process: process.poll() is not None, seconds=8):
                process.kill()
    if moves(client, task) and chance.random() < 0.5:
        gone.heal()
    if chance.random() < 0.4:
        with suppress(FlowError):  # a host that is away
            task.cancel()
        end = task.wait(timeout=_SECONDS)
        assert end == "cancelled" or attempts(task)[-1] == (2, "completed"), task.reason  # that was the faster one
        gone.heal()
        assert is_quiet(client, fleet)
        assert Flow("ssh").get_task(task.task_id).status == end
        return
    start_attendant(client.home)
    assert task.wait(timeout=_SECONDS) == "completed", task.reason
    assert attempts(task) == [(1, "lost"), (2, "completed")], (tmp_path / "deaths").read_text()
    gone.heal()
    assert is_quiet(client, fleet)
    lines = [
        line for host in fleet.hosts.values() for line in host.run("cat ~/ledger", check=False).stdout.splitlines()
    ]
    assert sorted(lines) == sorted(f"{attempt} {rank}" for attempt in (1, 2) for rank in range(nodes))
    loss = json.loads((client.home / "record" / task.task_id / "1" / "0" / "status.json").read_text())
    assert (loss["cause"], loss["reason"]) == ("lost", f"{gone.name} {_LOST}")


def test_an_end_that_comes_while_its_loss_is_put_on_record_counts_for_nothing(client: Flow, fleet: Fleet) -> None:
    task = running(client, "echo up; until [ -e /tmp/go ]; do sleep 0.1; done; echo $FLOW_ATTEMPT >> ~/ends", retries=1)
    end_attendant(client.home)
    gone = host_of(task, fleet)
    gone.cut()
    assert wait_until(lambda: is_lost(Flow("ssh"), task), seconds=_SECONDS)
    lost = {"v": 1, "phase": "ended", "cause": "lost", "reason": "silent", "ended": 1.0, "given_up": True}
    folder = client.home / "record" / task.task_id / "1" / "0"
    folder.mkdir(parents=True)
    (folder / "status.json").write_text(json.dumps(lost))  # by a client that dies before it decides on another host
    for host in fleet.hosts.values():
        host.run("touch /tmp/go")
    gone.heal()
    assert wait_until(lambda: gone.run("cat ~/ends", check=False).stdout == "1\n", seconds=_SECONDS)
    again = Flow("ssh").get_task(task.task_id)
    assert again.wait(timeout=_SECONDS) == "completed"
    assert attempts(again) == [(1, "lost"), (2, "completed")]
    assert not list((client.home / "record").glob("*/final-contradicted*"))


def _brought(client: Flow, task: Task, rank: int) -> None:
    """As by another client that was killed before it said how the task ended."""
    folder = client.home / "record" / task.task_id / "1" / str(rank)
    folder.mkdir(parents=True)
    end = {"v": 1, "phase": "ended", "cause": "exit", "code": 0, "started": 1.0, "ended": 2.0}
    (folder / "status.json").write_text(json.dumps(end))


@pytest.mark.parametrize("retries", [0, 1])
def test_what_has_ended_and_is_here_is_not_lost_any_more(client: Flow, fleet: Fleet, retries: int) -> None:
    task = running(client, "echo up; until [ -e /tmp/go ]; do sleep 0.1; done", retries=retries)
    end_attendant(client.home)
    provider, gone = client.provider(), host_of(task, fleet)
    gone.cut()
    assert wait_until(lambda: is_lost(Flow("ssh"), task, Machines.LOST if retries else Machines.GONE), seconds=_SECONDS)
    _brought(client, task, 0)
    with suppress(FlowError):  # it is silent
        provider.allocate(task.plan, 2)
    assert not moves(client, task)
    assert task.wait(timeout=_SECONDS) == "completed"
    assert attempts(task) == [(1, "completed")]
    gone.heal()
    gone.run("touch /tmp/go")
    assert is_quiet(client, fleet)


def test_nodes_that_were_brought_in_part_run_again(client: Flow, fleet: Fleet) -> None:
    run = "echo up; until [ -e /tmp/go ]; do sleep 0.1; done"
    task = running(client, run, retries=1, num_instances=2)
    end_attendant(client.home)
    _brought(client, task, 0)
    gone = host_of(task, fleet, 1)
    gone.cut()
    for host in fleet.hosts.values():
        if host is not gone:
            host.run("touch /tmp/go")
    start_attendant(client.home)
    assert task.wait(timeout=_SECONDS) == "completed", task.reason
    assert attempts(task) == [(1, "lost"), (2, "completed")]
    gone.heal()
    assert is_quiet(client, fleet)


def test_a_task_whose_host_has_left_the_fleet_has_not_failed(
    client: Flow, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = running(client, "echo up; until [ -e /tmp/go ]; do sleep 0.1; done", num_instances=2)
    end_attendant(client.home)
    left = host_of(task, fleet, 1).name
    with monkeypatch.context() as there:
        there.setenv("FLOW_SSH_HOSTS", ",".join(name for name in fleet.hosts if name != left))
        seen = Flow("ssh").get_task(task.task_id)
        with pytest.raises(ProviderError, match=f"no host `{left}`"):
            seen.allocate()
        assert not seen.refresh().status.is_final
    for host in fleet.hosts.values():
        host.run("touch /tmp/go")
    assert task.wait(timeout=_SECONDS) == "completed", task.reason
