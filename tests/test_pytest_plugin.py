"""The fixture that users test their pipelines with, as they run it: in a pytest of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import processes_of, wait_until

PIPELINE = """
import flow

def test_first(flow_local):
    (train := flow.run("echo trained", gpu="8xa100", name="train")).wait(60, check=True)
    report = flow_local.run("echo report", depends_on=train)
    assert (report.wait(60), report.logs(), train.instance_type) == ("completed", "report\\n", "8xa100")
    assert flow_local.tasks() == flow.tasks() == [report, train]

def test_second_begins_with_nothing(flow_local):
    assert flow.tasks() == []
    assert flow_local.settings.origin("provider") == "FLOW_PROVIDER"
"""
STUBBORN = """
import flow
from pathlib import Path

def test_leaves_tasks(flow_local):
    for fields in ({}, {"array": "0-2"}, {"hold": True}, {"num_instances": 2}):
        flow.run("trap '' TERM; touch $FLOW_OUTPUT/here; sleep 300; sleep 300", cpus=0.1, upload_code=False, **fields)
    while len(list(Path(flow_local.home, "record").glob("*/1/*/output/here"))) < 6:
        pass
"""
NOTHING = """
import sys

def test_costs_nothing():
    assert "flow.pytest_plugin" in sys.modules
    assert not [name for name in sys.modules if name.startswith("flow.") and name != "flow.pytest_plugin"]
    assert "pydantic" not in sys.modules
"""


def run_pytest(project: Path, test: str, *options: str) -> subprocess.CompletedProcess[str]:
    (project / "test_it.py").write_text(test)
    argv = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *options]
    return subprocess.run(argv, capture_output=True, text=True)


def test_each_test_has_a_client_of_its_own(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOW_LOCAL_STRICT", "true")
    monkeypatch.setenv("FLOW_PROFILE", "work")
    run = run_pytest(project, PIPELINE)
    assert "2 passed" in run.stdout, run.stdout
    seconds = re.search(r"passed in ([\d.]+)s", run.stdout)
    assert seconds and float(seconds[1]) < 20  # for so long two schedulers would stay


def test_nothing_is_left_of_a_test_that_ends_before_its_tasks(project: Path, tmp_path: Path) -> None:
    run = run_pytest(project, STUBBORN, f"--basetemp={tmp_path / 'theirs'}")
    assert "1 passed" in run.stdout, run.stdout + run.stderr
    assert wait_until(lambda: not processes_of(tmp_path / "theirs"), seconds=60), processes_of(tmp_path / "theirs")


def test_a_test_without_it_loads_nothing(project: Path) -> None:
    run = run_pytest(project, NOTHING)
    assert "1 passed" in run.stdout, run.stdout


def test_it_is_told_of_by_pytest(project: Path) -> None:
    run = run_pytest(project, "", "--fixtures")
    assert re.search(r"flow_local.*\n\s+A Flow client of the local provider in a home of its own", run.stdout), (
        run.stdout
    )
