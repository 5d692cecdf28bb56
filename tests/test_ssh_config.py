"""`flow ssh-config`: machines of running tasks under names that ssh knows."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from flow.client import Flow
from tests.support.commands import flow
from tests.support.fleet import Fleet
from tests.support.processes import wait_until


def test_ssh_reaches_the_machines_of_running_tasks_by_name(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOW_SSH_HOSTS", ",".join(fleet.hosts))
    monkeypatch.setenv("FLOW_SSH_SSH_CONFIG", str(fleet.config))
    client = Flow("ssh")
    task = client.run("sleep 1000", name="my-train", num_instances=2, upload_code=False)
    assert wait_until(lambda: task.refresh().status == "running", seconds=60)
    own = Path.home() / ".ssh" / "config"
    own.parent.mkdir(mode=0o700)
    own.write_text("Host other\n  User me\n")
    for _ in range(2):
        told = flow("ssh-config", "--install")
        assert [line.split()[0] for line in told.stdout.splitlines()] == ["flow-my-train", "flow-my-train-1"], told
    assert own.read_text() == f'Include "{client.home}/ssh_config"\n\nHost other\n  User me\n'
    names = [one.instance_id for one in task.get_instances()]
    for name, host in zip(("flow-my-train", "flow-my-train-1"), names, strict=True):
        said = subprocess.run(["ssh", "-F", own, name, "hostname"], capture_output=True, text=True)
        assert said.stdout == f"{host}\n", said.stderr
    task.cancel()
    assert task.wait(timeout=30) == "cancelled"
    assert "none of the 0 running tasks" in flow("ssh-config").stderr
