"""`flow dev` on a machine at Mithril, which costs money while it is there."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flow.client import Flow
from flow.dev import IDLE_SECONDS, DevMachine, idle_stop_seconds
from tests.support.commands import flow
from tests.support.mithril_cloud import Cloud
from tests.support.processes import wait_until

GONE = "note: nothing of it is rented any more\n"


@pytest.fixture
def client(at_mithril: Flow, project: Path) -> Flow:
    (project / "hello.txt").write_text("hello\n")
    return at_mithril


def test_a_day_on_a_machine(client: Flow, cloud: Cloud, project: Path) -> None:
    words = [sys.executable, "-m", "flow", "dev", "-i", "a100", "-c", "cat hello.txt"]
    terminals = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [one.communicate(timeout=120) for one in terminals]
    assert [one.returncode for one in terminals] == [0, 0], told
    assert [output for output, _ in told] == ["hello\n", "hello\n"]
    assert any("it ends by itself when nobody was on it for 2h00m" in said for _, said in told)
    (bid,) = cloud.spot.bids.values()  # of both terminals
    (project / "hello.txt").write_text("again\n")
    assert flow("dev", "-c", "cat hello.txt").stdout == "again\n"
    line, where = flow("dev", "--status").stdout.splitlines()
    assert line == f"{bid.name}  dev  a100-80gb.sxm.1x  us-central1-b  $1.25/h  running"
    assert re.fullmatch(r"inst_\w+, up \S+, \$0\.\d\d so far, ends when idle for 2h00m", where)
    ended = flow("dev", "--stop")
    assert (ended.returncode, ended.stderr.endswith(GONE)) == (0, True), ended.stderr
    assert cloud.billed() == [] and client.held() == []
    assert flow("dev", "--status").returncode == 4


def test_a_machine_that_is_not_there_yet_is_shown_and_stopped(client: Flow, cloud: Cloud) -> None:
    cloud.spot.boot_seconds = math.inf
    DevMachine(client).start(instance_type="a100")
    (bid,) = cloud.spot.bids.values()
    assert wait_until(lambda: bid.status == "Allocated")
    line, why = flow("dev", "--status").stdout.splitlines()
    assert (line, why) == (
        f"{bid.name}  dev  a100-80gb.sxm.1x  us-central1-b  $1.25/h  starting",
        "its machine is new, ends when idle for 2h00m",
    )
    ended = flow("dev", "--stop")
    assert (ended.returncode, ended.stderr.endswith(GONE)) == (0, True), ended.stderr
    assert bid.status == "Terminated" and client.held() == []


def test_it_is_an_h100_by_default_else_the_cheapest_and_ends_when_idle(client: Flow, cloud: Cloud) -> None:
    cloud.machines.pretended = True
    task = DevMachine(client).start()
    assert (task.instance_type, task.plan.region) == ("h100-80gb.sxm.8x", "us-central1-b")
    assert idle_stop_seconds(task) == IDLE_SECONDS
    assert flow("dev", "--stop").returncode == 0
    cloud.spot.lanes[:] = [one for one in cloud.spot.lanes if cloud.spot.types[one.instance_type].gpu != "H100"]
    (client.home / "mithril" / "availability.json").unlink()
    assert DevMachine(client).start().instance_type == "a100-80gb.sxm.1x"
    cloud.machines.close()


def test_an_idle_machine_ends_and_costs_nothing_more(client: Flow, cloud: Cloud) -> None:
    machine = DevMachine(client)
    task = machine.start(instance_type="a100", idle_stop_seconds=1)
    assert task.wait(timeout=90) == "completed"
    assert wait_until(lambda: client.held() == [], seconds=60)
    assert cloud.billed() == []
