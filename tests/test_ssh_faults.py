"""What goes wrong on a fleet of real machines: links are cut, hosts reboot or are gone for good, keepers are killed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Timer

import pytest

from flow.attend import start_attendant
from flow.cli import follow
from flow.client import Flow
from flow.errors import FlowError, ProviderError, StorageError
from flow.providers.ssh.fleet import Fleet as SshFleet
from flow.remote import Remote
from flow.task import Task
from tests.support.commands import flow
from tests.support.fleet import Fleet, Host
from tests.support.processes import end_attendant, wait_until
from tests.support.ssh_faults import race, run_story

_SECONDS = 60.0


@pytest.fixture
def client(fleet: Fleet, quick_ssh: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flow]:
    monkeypatch.setenv("FLOW_SSH_HOSTS", ",".join(fleet.hosts))
    monkeypatch.setenv("FLOW_SSH_SSH_CONFIG", str(fleet.config))
    with tempfile.TemporaryDirectory(prefix="fl-", dir="/tmp") as sockets:
        monkeypatch.setenv("XDG_RUNTIME_DIR", sockets)
        made = Flow("ssh")
        yield made
        for host in fleet.hosts.values():
            host.heal()
        end_attendant(made.home)


def submitted(client: Flow, command: str, on: str | None = None, **fields: object) -> Task:
    return client.run(command, upload_code=False, region=on, **fields)  # type: ignore[arg-type]


def becomes(task: Task, *states: str) -> None:
    assert wait_until(lambda: str(task.refresh().status) in states, seconds=_SECONDS, every=0.1), (
        f"{task.status} {task.reason}, not {states}"
    )


def running(client: Flow, command: str, on: str | None = None, **fields: object) -> Task:
    task = submitted(client, f"echo up; {command}", on, **fields)
    assert wait_until(lambda: "up" in task.logs(), seconds=_SECONDS, every=0.1), f"{task.refresh().status}"
    becomes(task, "running")
    return task


def kill_keeper(host: Host) -> None:
    host.run("kill -9 $(pgrep -o -f '[h]ost_keeper')")


def said_by_keeper(host: Host) -> str:
    return host.run("cat /root/.flow-host/keeper.log").stdout


def processes_on(host: Host) -> str:
    """The processes of tasks that are on it."""
    return host.run("grep -lsa FLOW_TASK_ID= /proc/[0-9]*/environ", check=False).stdout


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(20))
def test_the_promise_holds_whatever_fails(fleet: Fleet, tmp_path: Path, seed: int) -> None:
    verdict = run_story(seed, tmp_path / "story", fleet)
    assert verdict.violations == (), f"seed {seed}, {verdict.kills}"


def test_clients_race_for_the_last_gpu(fleet: Fleet, tmp_path: Path) -> None:
    assert race(20, fleet, tmp_path / "race") == []


def test_what_ended_may_be_ended_again(client: Flow, fleet: Fleet) -> None:
    task = submitted(client, "true", "gpu1")
    assert task.wait(timeout=_SECONDS) == "completed"
    client.provider().release(task.task_id)
    again = submitted(client, "true", "gpu1")
    assert again.wait(timeout=_SECONDS) == "completed"
    assert said_by_keeper(fleet.hosts["gpu1"]) == ""


def test_a_keeper_that_is_killed_is_followed_by_another(client: Flow, fleet: Fleet) -> None:
    host = fleet.hosts["gpu1"]
    first = running(client, "until [ -e /tmp/go ]; do sleep 0.05; done", "gpu1", gpu="a100:4")
    second = submitted(client, "echo second", "gpu1", gpu="a100:1")
    kill_keeper(host)
    becomes(first, "running")
    assert second.refresh().status == "pending"
    host.run("touch /tmp/go")
    assert [task.wait(timeout=_SECONDS) for task in (first, second)] == ["completed", "completed"]
    assert [len(task.attempts) for task in (first, second)] == [1, 1]


def test_a_keeper_is_killed_while_a_node_waits_for_the_others(client: Flow, fleet: Fleet) -> None:
    names = list(fleet.hosts)
    blocker = running(client, "sleep 1000", "gpu2", gpu="a100:4")
    gang = submitted(client, "echo met", num_instances=4, gpu="a100:1")
    waits = lambda: "gpu2" in gang.refresh().reason and processes_waiting(fleet.hosts["gpu1"])  # noqa: E731
    assert wait_until(waits, seconds=_SECONDS), gang.reason
    for name in names:
        kill_keeper(fleet.hosts[name])
    other = submitted(client, "true", "gpu1")
    assert other.wait(timeout=_SECONDS) == "completed"
    blocker.cancel()
    assert gang.wait(timeout=_SECONDS) == "completed"
    assert gang.logs() == "met\n" * 4


def processes_waiting(host: Host) -> bool:
    return '"waiting"' in host.run("cat /root/.flow-host/tasks/*/1/*/status.json", check=False).stdout


AGAIN = "[ $FLOW_ATTEMPT = 1 ] && sleep 1000; echo again"  # runs until it is started a second time


def attempts(task: Task) -> list[str]:
    return [str(one.status) for one in task.attempts]


def test_a_host_is_rebooted(client: Flow, fleet: Fleet) -> None:
    host = fleet.hosts["gpu1"]
    ended = submitted(client, "echo ended; exit 3", "gpu1")
    assert ended.wait(timeout=_SECONDS) == "failed"
    unseen = submitted(client, "echo unseen; exit 4", "gpu1")
    assert wait_until((host_folder(host, unseen) / "ended").exists, seconds=_SECONDS)
    lost, again = running(client, "sleep 1000", "gpu1"), running(client, AGAIN, "gpu1", retries=1)
    waiting = submitted(client, "echo waited", "gpu1", cpus=2)
    assert waiting.refresh().status == "pending"
    host.reboot()
    tasks = {task.task_id: task for task in client.tasks()}  # what waits starts by the next command
    assert again.wait(timeout=_SECONDS) == waiting.wait(timeout=_SECONDS) == "completed"
    assert (lost.wait(timeout=_SECONDS), lost.reason) == ("lost", "its runner died without a report")
    assert (unseen.wait(timeout=_SECONDS), unseen.exit_code, unseen.logs()) == ("failed", 4, "unseen\n")
    assert (tasks[ended.task_id].status, tasks[ended.task_id].exit_code) == ("failed", 3)
    assert [attempts(task) for task in (lost, again, waiting)] == [["lost"], ["lost", "completed"], ["completed"]]
    assert again.logs() == "up\nup\nagain\n"


def test_a_loss_is_noted_though_there_is_no_room_with_the_last_sign_of_life_as_its_end(
    client: Flow, fleet: Fleet
) -> None:
    host = fleet.hosts["gpu1"]
    lost = running(client, "sleep 1000", "gpu1", gpu="a100:1")
    again = running(client, "sleep 1000", "gpu1", gpu="a100:1", retries=1)
    wide = submitted(client, "sleep 1000", "gpu1", gpu="a100:4", priority=100)  # has all of them next
    for task in (lost, again):  # it ran for an hour, and nobody has seen it alive for another
        folder = host_folder(host, task) / "1" / "0"
        facts = json.loads((folder / "status.json").read_text())
        (folder / "status.json").write_text(json.dumps({**facts, "started": time.time() - 7200}))
        for path in folder.iterdir():
            os.utime(path, (time.time() - 3600,) * 2)
    host.reboot()
    assert lost.wait(timeout=_SECONDS) == "lost"
    becomes(again, "preempted")
    becomes(wide, "running")
    assert (again.refresh().status, again.reason) == ("preempted", "waits for its turn on gpu1, after 1 other")
    assert lost.run_seconds and round(lost.run_seconds / 100) == 36
    client.cancel(again, wide)
    assert [task.wait(timeout=_SECONDS).is_final for task in (again, wide)] == [True, True]


def test_what_any_look_has_seen_running_does_not_wait_again_when_its_host_is_away(
    client: Flow, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOW_PROVIDER", "ssh")
    host = fleet.hosts["gpu1"]
    one, other = (submitted(client, "sleep 1000", "gpu1") for _ in range(2))
    array = submitted(client, "sleep 1000", "gpu1", array="3-4")
    assert wait_until(lambda: len(processes_on(host).split()) == 2, seconds=_SECONDS)
    assert flow("info", str(one)).returncode == flow("ssh", str(other), "--", "true").returncode == 0
    other.cancel()
    assert other.wait(timeout=_SECONDS) == "cancelled"
    assert wait_until(lambda: flow("info", f"{array}_3").stdout.count("running") > 0, seconds=_SECONDS)
    host.cut()
    assert [str(task.status) for task in Flow("ssh").tasks()] == ["running", "cancelled", "running"]
    host.heal()
    client.cancel(one, array)


def host_folder(host: Host, task: Task) -> Path:
    return host.folder / "root" / host.home.lstrip("/") / ".flow-host" / "tasks" / task.task_id


def test_a_link_is_cut_while_tasks_run_and_end(client: Flow, fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    host = fleet.hosts["gpu1"]
    task = running(client, "until [ -e /tmp/go ]; do sleep 0.05; done; echo over; exit 5", "gpu1")
    waiting = submitted(client, "true", "gpu1", cpus=2)
    assert waiting.refresh().status == "pending"
    host.cut()
    assert "cannot be reached" in client.get_task(task.task_id).refresh().reason
    assert [str(one.refresh().status) for one in (task, waiting)] == ["running", "pending"]  # as last seen
    tell = follow.interruptions(task)
    tell()
    reason = task.reason
    (client.home / "ssh/silent/gpu1").write_text(str(time.time() - 61))  # as where another client has reached it
    assert task.refresh().reason != reason
    tell()
    told = capsys.readouterr().err
    assert re.fullmatch(r"note: running: `gpu1` cannot be reached: .*, since \d\d:\d\d:\d\d\n", told), told
    host.run("touch /tmp/go")
    assert wait_until((host_folder(host, waiting) / "ended").exists, seconds=_SECONDS)
    host.heal()
    assert (task.wait(timeout=_SECONDS), task.exit_code, task.logs()) == ("failed", 5, "up\nover\n")
    assert waiting.wait(timeout=_SECONDS) == "completed"


def test_a_command_waits_once_for_a_host_that_is_away(
    client: Flow, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOW_PROVIDER", "ssh")
    one = running(client, "sleep 1000", "gpu1", name="one")
    submitted(client, "sleep 1000", "gpu1", name="two")
    submitted(client, "sleep 1000", name="array", array="1-8")
    assert flow("status").returncode == 0
    fleet.hosts["gpu1"].cut()
    quick, tries = tmp_path / "bin" / "ssh", tmp_path / "tries"
    check = "*PreferredAuthentications=none*) ;;"  # beside a question over a connection that was kept
    count = f'case "$*" in {check} *" -- gpu1 "*) echo >>{tries} ;; esac\n'
    quick.write_text(quick.read_text().replace("exec ", f"{count}exec "))
    for words in (["logs", "one"], ["ssh", "one", "--", "true"], ["cancel", "one", "two", "array"]):
        tries.write_text("")
        told = flow(*words)
        assert "gpu1` cannot be reached" in told.stdout + told.stderr, words
        assert tries.read_text() == "\n", words
    fleet.hosts["gpu1"].heal()
    assert one.wait(timeout=_SECONDS) == "cancelled"


def test_a_host_that_is_checked_when_it_is_back_ends_what_was_cancelled_meanwhile(client: Flow, fleet: Fleet) -> None:
    task = running(client, "echo $$; sleep 1000", on="gpu1")
    end_attendant(client.home)
    fleet.hosts["gpu1"].cut()
    with pytest.raises(FlowError, match="cannot be reached"):
        task.cancel()
    end_attendant(client.home)
    fleet.hosts["gpu1"].heal()
    checked = flow("host", "check", "gpu1")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert task.wait(timeout=_SECONDS) == "cancelled"


def test_a_damaged_record_does_not_keep_a_host_out_of_reach(client: Flow, fleet: Fleet) -> None:
    task, damaged = running(client, "sleep 1000", on="gpu1"), running(client, "sleep 1000", on="gpu1")
    end_attendant(client.home)
    fleet.hosts["gpu1"].cut()
    sees = Flow("ssh")
    hosts = sees.provider().fleet  # type: ignore[attr-defined]
    assert sees.get_task(task.task_id).refresh().status == "running"
    assert hosts.silent_since("gpu1") is not None
    fleet.hosts["gpu1"].heal()
    intent = client.home / "record" / damaged.task_id / "intent.json"
    intent.write_text("{")
    assert Flow("ssh").get_task(task.task_id).refresh().status == "running"
    assert hosts.silent_since("gpu1") is None
    intent.unlink()
    for one in (task, damaged):
        one.cancel()
        assert one.wait(timeout=_SECONDS) == "cancelled"


def test_a_host_that_refuses_a_question_is_not_out_of_reach(client: Flow) -> None:
    hosts = SshFleet(client.home, {one: client.settings.get(f"ssh.{one}") for one in ("hosts", "ssh_config")})

    def refuse(_: str, remote: Remote) -> None:
        raise ProviderError(remote.channel.ask("sleep 0.5; echo not this one >&2; exit 3").stderr.decode())

    refused = hosts.ask_each(["gpu1"], refuse)["gpu1"]
    assert isinstance(refused, ProviderError) and refused.message.endswith("not this one\n")
    assert hosts.silent_since("gpu1") is None
    answer = hosts.ask_each(["gpu1"], lambda _, remote: remote.ask("facts"))["gpu1"]
    assert not isinstance(answer, FlowError), answer


def test_a_host_that_was_given_up_ends_what_it_runs_when_it_is_back(
    client: Flow, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOW_SSH_LOST_AFTER_MINUTES", "0.1")
    client, host = Flow("ssh"), fleet.hosts["gpu1"]
    task, waiting = running(client, "sleep 1000", "gpu1"), submitted(client, "sleep 1000", "gpu1", cpus=2)
    gang = running(client, "sleep 1000", num_instances=2, gpu="a100:4")
    gone_too = [one for one in gang.get_instances() if one.instance_id != "gpu1"]
    host.cut()
    for one in (task, waiting):
        becomes(one, "lost")
        assert one.reason == "gpu1 was out of reach for 0.1 minutes"
    if len(gone_too) < 2:
        becomes(gang, "lost")
        (other,) = gone_too
        assert wait_until(lambda: not processes_on(fleet.hosts[other.instance_id]), seconds=_SECONDS)
    assert processes_on(host)
    host.heal()
    assert wait_until(
        lambda: [Flow("ssh").offers(), processes_on(host)][1] == "", seconds=_SECONDS
    )  # any question to it
    assert wait_until((host_folder(host, waiting) / "ended").exists, seconds=_SECONDS)
    assert [str(Flow("ssh").get_task(one.task_id).status) for one in (task, waiting)] == ["lost", "lost"]


def test_a_silence_that_nobody_watched_does_not_count(
    client: Flow, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = running(client, "sleep 1000", "gpu1")
    fleet.hosts["gpu1"].cut()
    assert task.refresh().status == "running"
    noted = client.home / "ssh" / "silent" / "gpu1"
    noted.write_text(str(time.time() - 50000))
    os.utime(noted, (time.time() - 40000,) * 2)  # the machine slept meanwhile
    assert (task.refresh().status, task.refresh().status) == ("running", "running")
    noted.write_text(str(time.time() - 50000))  # it did not
    assert task.refresh().status == "lost"


def test_an_element_that_was_lost_stays_so_while_its_host_is_out_of_reach(client: Flow, fleet: Fleet) -> None:
    host = fleet.hosts["gpu1"]
    array = submitted(client, "sleep 1000", "gpu1", array="1-2")
    first = client.get_task(f"{array}_1")
    becomes(first, "running")
    host.run("kill -9 $1", str(runner_of(host, first)))
    becomes(first, "lost")
    ended = first.reason
    assert wait_until(lambda: array.refresh().elements == {"lost": 1, "running": 1}, seconds=_SECONDS)
    host.cut()
    again = Flow("ssh").get_task(first.task_id)
    assert (str(again.status), again.reason) == ("lost", ended)
    host.heal()
    array.cancel()


def test_what_is_cancelled_while_its_host_is_out_of_reach_ends_when_it_is_back(client: Flow, fleet: Fleet) -> None:
    host = fleet.hosts["gpu1"]
    task = running(client, "sleep 1000", "gpu1")
    host.cut()
    with pytest.raises(ProviderError, match="cannot be reached"):
        task.cancel()
    host.heal()
    assert task.wait(timeout=_SECONDS) == "cancelled"
    assert wait_until(lambda: not processes_on(host), seconds=_SECONDS)


def test_a_runner_is_killed(client: Flow, fleet: Fleet) -> None:
    host = fleet.hosts["gpu1"]
    hidden = "env -i setsid sleep 1111 & setsid sleep 1111 & "
    lost, again = (
        running(client, f"{hidden} sleep 1000", "gpu1"),
        running(client, f"{hidden} {AGAIN}", "gpu1", retries=1),
    )
    for task in (lost, again):
        status = json.loads((host_folder(host, task) / "1/0/status.json").read_text())
        host.run("kill -9 $1", str(status["runner_pid"]))
    assert (lost.wait(timeout=_SECONDS), again.wait(timeout=_SECONDS)) == ("lost", "completed")
    assert attempts(again) == ["lost", "completed"]
    assert host.run("pgrep -fx 'sleep 1111'", check=False).stdout == ""


def test_what_a_shutdown_ends_was_not_cancelled_and_runs_again(client: Flow, fleet: Fleet) -> None:
    host = fleet.hosts["gpu1"]
    task = running(client, "[ $FLOW_ATTEMPT = 2 ] || exec sleep 1000", on="gpu1")
    runner = runner_of(host, task)
    host.run("kill -TERM -1")  # all but the first process, as systemd does it
    assert wait_until(lambda: host.run(f"kill -0 {runner}", check=False).returncode != 0, seconds=_SECONDS)
    host.reboot()
    assert task.wait(timeout=_SECONDS) == "completed", task.reason
    assert (attempts(task), task.logs()) == (["preempted", "completed"], "up\nup\n")
    assert task.attempts[0].reason == "its runner was ended, as by a shutdown"


def test_the_container_of_a_runner_that_was_killed_ends_before_anything_else_runs(
    empty_fleet: Fleet, quick_ssh: None, tmp_path: Path, containers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = empty_fleet.boot("box", gpus=1, user="ann")  # who cannot kill what is in a container
    host.start_docker()
    host.run("chmod 666 /run/docker.sock")
    monkeypatch.setenv("FLOW_SSH_HOSTS", "box")
    monkeypatch.setenv("FLOW_SSH_SSH_CONFIG", str(empty_fleet.config))
    client = Flow("ssh")
    again = running(client, AGAIN, image=containers, retries=1, gpu="a100:1", env={"CUDA_VISIBLE_DEVICES": "0"})
    host.run("kill -9 $1", str(runner_of(host, again)))
    assert again.wait(timeout=_SECONDS) == "completed", again.reason
    assert (attempts(again), again.logs()) == (["lost", "completed"], "up\nup\nagain\n")
    for is_cancelled in (True, False):
        task = running(client, "sleep 1000", image=containers)
        host.run("kill -9 $1", str(runner_of(host, task)))
        if is_cancelled:
            task.cancel()
        assert task.wait(timeout=_SECONDS) in (("cancelled", "lost") if is_cancelled else ("lost",))
        assert host.run("docker ps --all --quiet").stdout == ""
    held = running(client, "sleep 1000", image=containers, retries=1)
    held.hold()
    host.run("kill -9 $1", str(runner_of(host, held)))
    assert wait_until(lambda: host.run("docker ps --all --quiet").stdout == "", seconds=_SECONDS)
    loss = host_folder(host, held) / "1/0/status.json"
    assert wait_until(lambda: json.loads(loss.read_text())["phase"] == "ended", seconds=_SECONDS)
    assert (held.refresh().status.is_final, held.is_held) == (False, True)
    held.cancel()
    assert held.wait(timeout=_SECONDS) == "lost"  # as its last attempt was
    end_attendant(client.home)


def runner_of(host: Host, task: Task) -> int:
    pid: int = json.loads((host_folder(host, task) / "1/0/status.json").read_text())["runner_pid"]
    return pid


def test_only_the_elements_on_a_lost_host_are_lost(client: Flow, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOW_SSH_LOST_AFTER_MINUTES", "0.1")
    client = Flow("ssh")
    array = submitted(client, "echo $FLOW_ARRAY_INDEX; until [ -e /tmp/go ]; do sleep 0.1; done", array="1-8")
    becomes(array, "running")
    fleet.hosts["gpu1"].cut()
    becomes(array, "running")
    gone = [n for n in range(1, 9) if (host_folder(fleet.hosts["gpu1"], array).with_name(f"{array}_{n}")).exists()]
    assert len(gone) == 2
    becomes(client.get_task(f"{array}_{gone[0]}"), "lost")
    assert array.refresh().status == "running"
    for name in ("gpu2", "gpu3", "gpu4"):
        fleet.hosts[name].run("touch /tmp/go")
    assert array.wait(timeout=_SECONDS) == "lost"
    states = [str(client.get_task(f"{array}_{n}").refresh().status) for n in range(1, 9)]
    assert states == ["lost" if n in gone else "completed" for n in range(1, 9)]


def test_a_host_that_was_installed_anew_has_lost_its_tasks(client: Flow, fleet: Fleet) -> None:
    host = fleet.hosts["gpu1"]
    task = running(client, "sleep 1000", "gpu1")
    host.clean()
    assert (task.wait(timeout=_SECONDS), task.reason) == ("lost", "gpu1 knows nothing of it any more")


def test_an_array_is_cancelled_before_it_has_a_turn(client: Flow, fleet: Fleet) -> None:
    array = submitted(client, "true", "gpu1", begin="now+1hour", array="1-3")
    assert array.refresh().status == "pending"
    array.cancel()
    assert array.wait(timeout=_SECONDS) == "cancelled"
    assert said_by_keeper(fleet.hosts["gpu1"]) == ""


def test_pruned_tasks_leave_nothing_on_their_hosts(client: Flow, fleet: Fleet) -> None:
    task, array = submitted(client, "true", "gpu1"), submitted(client, "true", "gpu1", array="1-3")
    assert [one.wait(timeout=_SECONDS) for one in (task, array)] == ["completed"] * 2
    tasks = host_folder(fleet.hosts["gpu1"], task).parent
    assert len(list(tasks.iterdir())) == 5
    waits = [submitted(client, "true", "gpu1", begin="now+1hour", **more) for more in ({}, {"array": "1-2"}, {})]
    for one in waits[:2]:
        one.cancel()
        assert one.wait(timeout=_SECONDS) == "cancelled"
    for one in waits:
        os.utime(tasks / one.task_id / "meta.json", (0, 0))
    client.prune(keep=0)
    assert [path.name for path in tasks.iterdir()] == [waits[2].task_id]
    waits[2].cancel()


def test_code_that_no_task_of_a_host_uses_goes_with_the_next_pruned_task(
    client: Flow, fleet: Fleet, project: Path
) -> None:
    host = fleet.hosts["gpu1"]
    store = host.folder / "root/root/.flow-host"

    def kept() -> set[str]:
        return {path.read_text() for path in store.glob("blobs/*/*")}

    def ran(content: str, *others: str) -> Task:
        for name, text in (("file", content), *zip(others, others, strict=True)):
            (project / name).write_text(text)
        task = client.run("cat file", region="gpu1")
        assert task.wait(timeout=_SECONDS) == "completed"
        return task

    old, new = ran("old", "both"), ran("new")
    recent = ran("recent")
    assert kept() == {"old", "both", "new", "recent"}
    for path in [*store.glob("manifests/*"), *store.glob("blobs/*/*")]:
        if recent.plan.bundle not in path.name:
            os.utime(path, (time.time() - 100_000,) * 2)
    (store / "blobs/own").write_text("own")
    os.utime(store / "blobs/own", (0, 0))
    client.prune(keep=2)
    assert kept() == {"both", "new", "recent"} and (store / "blobs/own").exists()
    assert not host_folder(host, old).exists() and host_folder(host, new).exists()
    client.prune(keep=1)
    assert kept() == {"both", "recent"}
    assert client.run("cat file both", region="gpu1").wait(timeout=_SECONDS) == "completed"


def test_a_clock_that_is_wrong_is_seen_through(client: Flow, fleet: Fleet) -> None:
    host = fleet.hosts["gpu1"]
    host.set_clock(-600)
    began = time.time()
    task = submitted(client, "true", "gpu1")
    assert task.wait(timeout=_SECONDS) == "completed"
    assert task.started_at and task.ended_at
    assert began - 3 < task.started_at.timestamp() < task.ended_at.timestamp() < time.time() + 3
    before, later = time.time(), submitted(client, "true", "gpu1", begin="now+1hour")
    shown = time.mktime(time.strptime(later.refresh().reason, "waits until %Y-%m-%d %H:%M:%S"))
    assert before - 3 < shown - 3600 < time.time() + 3
    soon = submitted(client, "true", "gpu1", begin="now+3")
    assert soon.wait(timeout=_SECONDS) == "completed"  # and not after ten minutes
    later.cancel()
    assert later.wait(timeout=_SECONDS) == "cancelled"


def test_several_nodes_are_gathered_though_a_link_is_cut(client: Flow, fleet: Fleet) -> None:
    gone = fleet.hosts["gpu3"]
    blocker = running(client, "sleep 1000", "gpu2", cpus=2)
    gang = submitted(client, "echo met", num_instances=4)
    waits = "waits for gpu2, to have all of its 4 nodes at once"
    assert wait_until(lambda: gang.refresh().reason == waits, seconds=_SECONDS), gang.reason
    gone.cut()
    blocker.cancel()
    assert blocker.wait(timeout=_SECONDS) == "cancelled"
    assert "cannot be reached" in gang.refresh().reason
    assert gang.status in ("pending", "running")  # who was looked at before it had told that it waits may have begun
    gone.heal()
    assert gang.wait(timeout=_SECONDS) == "completed"
    assert gang.logs() == "met\n" * 4


def test_a_node_is_told_though_its_link_was_cut_when_the_others_were(client: Flow, fleet: Fleet) -> None:
    late, ssh = fleet.hosts["gpu4"], client.provider()
    gang = submitted(client, "echo met; until [ -e /tmp/go ]; do sleep 0.05; done", num_instances=4)
    assert wait_until(lambda: "waiting" in states_of(late), seconds=_SECONDS)
    end_attendant(client.home)
    meeting = next((client.home / "record" / gang.task_id).glob("meeting-*"), None)
    if meeting is None:  # else it was quick
        with pytest.raises(ProviderError):
            late.cut()
            ssh.allocate(gang.plan)
        late.heal()
    start_attendant(client.home)
    assert wait_until(lambda: "running" in states_of(late), seconds=_SECONDS)
    for host in fleet.hosts.values():
        host.run("touch /tmp/go")
    assert gang.wait(timeout=_SECONDS) == "completed"


def states_of(host: Host) -> list[str]:
    """The phases of what is on it."""
    return [
        json.loads(file.read_text())["phase"]
        for file in host.folder.glob("root/root/.flow-host/tasks/*/*/*/status.json")
    ]


def test_a_host_is_rebooted_whose_runner_was_not_heard_of_by_that_of_the_first_node(client: Flow, fleet: Fleet) -> None:
    first, second = (fleet.hosts[name] for name in ("gpu1", "gpu2"))
    blockers = [running(client, "sleep 1000", name, cpus=2) for name in ("gpu3", "gpu4")]
    second.run("ip route add blackhole $1", first.address)
    gang = running(client, "sleep 1000", num_instances=2)
    assert [one.instance_id for one in gang.get_instances()] == ["gpu1", "gpu2"]
    assert wait_until(lambda: gang.logs() == "up\nup\n", seconds=_SECONDS)
    second.reboot()
    assert (gang.wait(timeout=_SECONDS), gang.reason) == ("lost", "its runner died without a report (node 1)")
    for one in blockers:
        one.cancel()


@pytest.mark.parametrize("retries", [0, 1])
def test_a_host_of_several_is_rebooted_while_they_run(client: Flow, fleet: Fleet, retries: int) -> None:
    gang = running(client, AGAIN, num_instances=2, retries=retries)
    assert wait_until(lambda: gang.logs() == "up\nup\n", seconds=_SECONDS)
    fleet.hosts[gang.get_instances()[1].instance_id].reboot()
    assert gang.wait(timeout=_SECONDS) == ("completed" if retries else "lost"), gang.reason
    assert attempts(gang) == (["lost", "completed"] if retries else ["lost"])


def test_a_runner_is_killed_where_the_other_node_has_ended(client: Flow, fleet: Fleet) -> None:
    command = "[ $FLOW_ATTEMPT$FLOW_NODE_RANK = 11 ] && sleep 1000; echo again"
    gang = running(client, command, num_instances=2, retries=1)
    folders = [fleet.hosts[one.instance_id] for one in gang.get_instances()]
    assert wait_until(lambda: gang.logs() == "up\nup\nagain\n", seconds=_SECONDS)
    host = folders[1]
    status = json.loads((host_folder(host, gang) / "1/1/status.json").read_text())
    host.run("kill -9 $1", str(status["runner_pid"]))
    assert gang.wait(timeout=_SECONDS) == "completed", gang.reason
    assert attempts(gang) == ["lost", "completed"]


def test_the_first_node_is_lost_before_the_other_has_met_it(client: Flow, fleet: Fleet) -> None:
    for name in ("gpu3", "gpu4"):
        running(client, "sleep 1000", name, cpus=2)
    first, second = (fleet.hosts[name] for name in ("gpu1", "gpu2"))
    second.run("ip route add blackhole $1", first.address)
    command = "echo up; [ $FLOW_ATTEMPT$FLOW_NODE_RANK = 10 ] && sleep 1000; echo again"
    gang = submitted(client, command, num_instances=2, retries=1)
    becomes(gang, "running")
    assert wait_until(lambda: sorted(gang.logs().split()) == ["again", "up", "up"], seconds=_SECONDS), gang.logs()
    first.run("kill -9 $1", str(runner_of(first, gang)))
    assert wait_until(lambda: "waiting" in states_of(first), seconds=_SECONDS)
    second.run("ip route del blackhole $1", first.address)
    assert gang.wait(timeout=_SECONDS) == "completed", gang.reason
    assert attempts(gang) == ["lost", "completed"]


def test_a_full_disk_is_told_and_what_runs_there_goes_on(
    client: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Fleet(tmp_path / "f") as fleet:
        host = fleet.boot("small", disk_mb=16, gpus=1)
        client = at(monkeypatch, fleet)
        task = running(client, "until [ -e /tmp/go ]; do sleep 0.05; done; exit 3")
        retried = running(client, "until [ -e /tmp/go ]; do sleep 0.05; done; exit 4", retries=1)
        host.run("dd if=/dev/zero of=/root/fill bs=64k || cat /dev/zero > /root/fill2 || true", check=False)
        (tmp_path / "code").mkdir()
        (tmp_path / "code" / "data").write_bytes(os.urandom(1 << 20))
        monkeypatch.chdir(tmp_path / "code")
        said = "cannot write to `ssh.folder`, `~/.flow-host` on `small`: no space left on device"
        with pytest.raises(StorageError, match=said):
            client.run("true", name="big", upload_code=True)
        host.run("touch /tmp/go")
        newest = int(host.run("echo $$").stdout)
        assert not wait_until(lambda: int(host.run("echo $$").stdout) > newest + 300, seconds=3), "it tries like mad"
        host.run("rm /root/fill*")
        assert (task.wait(timeout=_SECONDS), task.exit_code) == ("failed", 3)
        assert (retried.wait(timeout=_SECONDS), attempts(retried)) == ("failed", ["failed", "failed"])
        assert client.get_task("big").wait(timeout=_SECONDS) == "completed"
        assert host.run("find /root/.flow-host/blobs -name '*.*'").stdout == ""


def at(monkeypatch: pytest.MonkeyPatch, fleet: Fleet) -> Flow:
    """A client of another fleet."""
    monkeypatch.setenv("FLOW_SSH_HOSTS", ",".join(fleet.hosts))
    monkeypatch.setenv("FLOW_SSH_SSH_CONFIG", str(fleet.config))
    return Flow("ssh")


@pytest.mark.parametrize("sshd", [{"MaxSessions": 1}, {"MaxStartups": "1:50:3"}])
def test_an_sshd_that_takes_few_connections(
    client: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sshd: dict[str, str | int]
) -> None:
    with Fleet(tmp_path / "f") as fleet:
        fleet.boot("few", sshd=sshd)
        client = at(monkeypatch, fleet)
        monkeypatch.chdir(Path(__file__).parent / "support")
        tasks = [client.run("seq 100000; exit 3", upload_code=True) for _ in range(3)]
        with ThreadPoolExecutor() as threads:
            followed = list(threads.map(lambda task: sum(1 for _ in task.logs(follow=True)), tasks))
        assert followed == [100000] * 3
        assert [(str(task.wait(timeout=_SECONDS)), task.exit_code) for task in tasks] == [("failed", 3)] * 3


def test_two_users_never_have_one_gpu(client: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Fleet(tmp_path / "f") as fleet:
        host = fleet.boot("shared", gpus=2)
        host.run(
            "echo 'ann:*:1001:1001::/home/ann:/bin/bash' >> /etc/passwd; mkdir -m 700 /home/ann; chown 1001 /home/ann"
        )
        at(monkeypatch, fleet)
        root = Flow("ssh")
        monkeypatch.setenv("FLOW_SSH_HOSTS", "ann@shared")
        monkeypatch.setenv("FLOW_HOME", str(tmp_path / "ann"))
        ann = Flow("ssh")
        command = "echo $CUDA_VISIBLE_DEVICES; [ -z $WAIT ] || sleep 1000"
        first = submitted(ann, command, gpu="a100:1", env={"WAIT": "1"})
        assert wait_until(lambda: first.logs() == "0\n", seconds=_SECONDS), first.refresh().reason
        second = submitted(root, command, gpu="a100:1", env={"WAIT": "1"})
        assert wait_until(lambda: second.logs() == "1\n", seconds=_SECONDS), second.refresh().reason
        third = submitted(root, command, gpu="a100:1")
        assert third.refresh().status == "pending"
        first.cancel()
        assert (third.wait(timeout=_SECONDS), third.logs()) == ("completed", "0\n")
        assert first.wait(timeout=_SECONDS) == "cancelled"


def test_logs_are_followed_through_cuts_and_over_a_slow_link(client: Flow, fleet: Fleet) -> None:
    host = fleet.hosts["gpu1"]
    host.slow(100, 1)
    program = (
        "i=0; while [ $i -lt 400 ]; do echo $i $(head -c 300 /dev/urandom | base64 -w0); i=$((i+1)); sleep 0.02; done"
    )
    task = submitted(client, f"({program}) | tee $FLOW_OUTPUT/all", "gpu1")
    seen = hashlib.sha256()
    for number, line in enumerate(task.logs(follow=True)):
        seen.update(line.encode() + b"\n")
        if number in (100, 250):
            host.cut()
            Timer(3 if number == 100 else 0.5, host.heal).start()
    assert task.wait(timeout=_SECONDS) == "completed"
    written = task.outputs("all")
    assert written and seen.hexdigest() == hashlib.sha256(written.read_bytes()).hexdigest()
    assert hashlib.sha256(task.logs().encode()).hexdigest() == seen.hexdigest()


def test_an_upload_that_is_cut_goes_on(
    client: Flow, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = fleet.hosts["gpu1"]
    (tmp_path / "code").mkdir()
    for number in range(40):
        (tmp_path / "code" / f"{number}").write_bytes(os.urandom(1 << 19))
    monkeypatch.chdir(tmp_path / "code")
    host.slow(100, 1)
    monkeypatch.setenv("FLOW_SSH_HOSTS", "gpu1")
    words = [sys.executable, "-m", "flow", "run", "--provider", "ssh", "--name", "cut", "ls | wc -l"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert wait_until(lambda: len(list(host.folder.glob("root/root/.flow-host/blobs/*/*"))) > 3, seconds=_SECONDS)
        process.kill()
    host.slow(0)
    before = len(list(host.folder.glob("root/root/.flow-host/blobs/*/*")))
    assert before < 40
    task = client.get_task("cut")
    assert task.wait(timeout=_SECONDS) == "completed"
    assert task.logs() == "40\n"
    assert host.run("find /root/.flow-host/blobs -name '*.*'").stdout == ""
