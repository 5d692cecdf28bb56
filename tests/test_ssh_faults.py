"""What goes wrong on a fleet of real machines: links are cut, hosts reboot or are gone for good, keepers are killed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flow.client import Flow
from flow.node.remains import is_locked
from flow.task import Task
from tests.support.fleet import Fleet, Host
from tests.support.processes import end, wait_until

_SECONDS = 60.0
# What was cut is noticed after two seconds, not after a minute: of an option that is given twice ssh takes the first.
_SSH = """\
#!/bin/sh
exec {ssh} -o ConnectTimeout=2 -o ServerAliveInterval=1 -o ServerAliveCountMax=2 "$@"
"""


@pytest.fixture
def client(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flow]:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "ssh"
    program.write_text(_SSH.format(ssh=shutil.which("ssh")))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("FLOW_SSH_HOSTS", ",".join(fleet.hosts))
    monkeypatch.setenv("FLOW_SSH_SSH_CONFIG", str(fleet.config))
    with tempfile.TemporaryDirectory(prefix="fl-", dir="/tmp") as sockets:
        monkeypatch.setenv("XDG_RUNTIME_DIR", sockets)
        made = Flow("ssh")
        yield made
        for host in fleet.hosts.values():
            host.heal()
        end_attendant(made.home)


def end_attendant(home: Path) -> None:
    if is_locked(home / "attend.lock"):
        end([int((home / "attend.lock").read_text())])


def submitted(client: Flow, command: str, on: str | None = None, **fields: object) -> Task:
    return client.run(command, upload_code=False, region=on, **fields)  # type: ignore[arg-type]


def becomes(task: Task, *states: str) -> None:
    assert wait_until(lambda: str(task.refresh().status) in states, seconds=_SECONDS, every=0.1), (
        f"{task.status} {task.reason}, not {states}"
    )


def running(client: Flow, command: str, on: str | None = None, **fields: object) -> Task:
    task = submitted(client, f"echo up; {command}", on, **fields)
    assert wait_until(lambda: "up" in task.logs(), seconds=_SECONDS, every=0.1), f"{task.refresh().status}"
    assert task.refresh().status == "running"
    return task


def kill_keeper(host: Host) -> None:
    host.run("kill -9 $(pgrep -o -f '[h]ost_keeper')")


def said_by_keeper(host: Host) -> str:
    return host.run("cat /root/.flow-host/keeper.log").stdout


def processes_on(host: Host) -> str:
    """The processes of tasks that are on it."""
    return host.run("grep -lsa FLOW_TASK_ID= /proc/[0-9]*/environ", check=False).stdout


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
