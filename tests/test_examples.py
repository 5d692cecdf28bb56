"""The examples run as they stand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.support.aws import Aws
from tests.support.components import require
from tests.support.processes import free_port

PROJECT = Path(__file__).parents[1]
DIGITS = PROJECT / "examples" / "digits"


def train(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(DIGITS / "train.py"), "--out", str(out), *options]
    return subprocess.run(argv, capture_output=True, text=True)


def result(out: Path) -> dict[str, Any]:
    return json.loads((out / "result.json").read_text())


def flow(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "flow", *words], cwd=PROJECT, capture_output=True, text=True)


def test_digits_are_read_by_a_network_trained_for_seconds(tmp_path: Path) -> None:
    run = train(tmp_path)
    assert run.returncode == 0, run.stderr
    assert [line.split()[:2] for line in run.stdout.splitlines()[:-1]] == [["epoch", f"{n}/20"] for n in range(1, 21)]
    assert result(tmp_path)["accuracy"] > 0.9
    assert "device: cpu" in run.stderr


def test_a_run_that_failed_goes_on_from_its_checkpoint_and_ends_like_one_that_did_not(tmp_path: Path) -> None:
    failed = train(tmp_path / "twice", "--epochs", "3", "--fail-at-epoch", "2")
    assert (failed.returncode, failed.stderr.splitlines()[-1].split(",")[0]) == (1, "failing at epoch 2")
    again = train(tmp_path / "twice", "--epochs", "3", "--fail-at-epoch", "2")
    assert (again.returncode, len(again.stdout.splitlines())) == (0, 2)
    assert "resuming after epoch 2" in again.stderr
    train(tmp_path / "once", "--epochs", "3")
    assert (tmp_path / "twice/checkpoint.json").read_bytes() == (tmp_path / "once/checkpoint.json").read_bytes()
    assert result(tmp_path / "twice")["accuracy"] == result(tmp_path / "once")["accuracy"]


def test_the_digits_task_runs_from_its_file_and_its_result_is_kept() -> None:
    run = flow("run", "examples/digits/task.yaml", "--watch")
    assert run.returncode == 0, run.stderr
    assert "test accuracy 0.9" in run.stdout
    told = json.loads(flow("info", "digits", "--json").stdout)
    assert (told["status"], told["exit_code"], told["result"]["epochs"]) == ("completed", 0, 20)


def test_two_nodes_train_one_model() -> None:
    require("torch", "torchrun trains one model on two nodes")
    run = flow("run", "examples/two-nodes/task.yaml", "--watch")
    assert run.returncode == 0, run.stdout + run.stderr
    told = json.loads(flow("info", "two-nodes", "--json").stdout)["result"]
    assert (told["world_size"], told["accuracy"] > 0.9) == (2, True)


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed beside this Python is found by a task, as in a user's activated environment."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")


def example(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, f"examples/{name}", *words]
    return subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True)


def test_a_machine_is_verified() -> None:
    run = example("01_verify_instance.py", "8xa100")
    assert run.returncode == 0, run.stderr
    first, *_, last = run.stdout.splitlines()
    assert re.fullmatch(r"task-\w+ on local, \$0\.00/h", first)
    assert re.search(r"^  CPUs    \d+$", run.stdout, re.M)
    assert last == "completed, $0.00 in all"


def test_a_jupyter_server_is_there_when_its_address_is_printed(programs: None) -> None:
    require("jupyter_server", "the example starts one")
    run = example("02_jupyter_server.py", str(free_port()))
    assert run.returncode == 0, run.stderr
    (url,) = re.findall(r"^Open (\S+)$", run.stdout, re.M)
    with urllib.request.urlopen(url.replace("/lab?", "/?").replace("/?", "/api/status?"), timeout=10) as answer:
        assert "kernels" in json.load(answer)
    assert flow("cancel", "notebook").returncode == 0


def test_without_jupyter_the_example_says_what_to_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    run = example("02_jupyter_server.py", str(free_port()))
    assert run.returncode == 1
    assert re.search(r"^error: `task-\w+` ended as failed: there is no Jupyter server$", run.stderr, re.M)


def test_what_is_on_s3_is_read_as_files(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    require("s3fs", "the example mounts S3")
    for name, value in aws.access.items():
        monkeypatch.setenv(name, value)
    aws.bucket("my-bucket", {"digits/train.csv": b"x" * 1234, "digits/test/one.csv": b"y" * 5, "other": b""})
    run = example("04_s3_data_access.py", "s3://my-bucket/digits")
    assert run.returncode == 0, run.stderr
    assert run.stdout == (
        "           5  test/one.csv\n       1,234  train.csv\n2 files, 1,239 bytes at s3://my-bucket/digits\n"
    )


def test_machines_train_together(programs: None) -> None:
    require("torch", "torchrun trains one model on several machines")
    run = example("03_multi_node_training.py", "3")
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.fullmatch(r"3 machines, accuracy 0\.9\d*", run.stdout.splitlines()[-1])
    assert {"[0]", "[1]", "[2]"} == {line[:3] for line in run.stdout.splitlines() if "epoch 100/100" in line}


def test_a_sweep_runs_one_training_for_each_seed_and_names_the_best() -> None:
    told = example("05_sweep.py", "1", "2").stdout.splitlines()
    assert [line.partition(" accuracy 0.")[0] for line in told[:2]] == ["seed 1:", "seed 2:"]
    assert told[2] in ("best: seed 1", "best: seed 2")
    assert json.loads(flow("status", "--all", "--json").stdout)["tasks"][0]["name"] == "sweep-seed-2"


def test_functions_are_called_here_and_elsewhere() -> None:
    told = example("06_functions.py").stdout.splitlines()
    assert told[:3] == ["here: 778", "as a task: 778", "pi is about 3.14"]
    assert told[3:6] == ["9", "`hits` raised ValueError: -1 samples", "17"]
    assert told[6].startswith("the spawned one: 7")
