"""mypy, and pyright's engine, see a function's own signature at `remote`, `spawn`, `map` and `starmap`."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.components import require

# What is marked `# wrong` must be an error, and nothing else may be.
CALLS = """\
from collections.abc import Iterator
from typing import Any

from typing_extensions import assert_type

import flow
from flow import FlowApp, function, invoke
from flow.errors import RemoteError

app = FlowApp()

@app.function(gpu="a100", volumes={"/data": "name"}, env={"A": 1}, retries=2)
def train(data: str, epochs: int = 100) -> dict[str, float]:
    return {data: epochs}

@app.function
def plain(x: float) -> list[int]:
    return [int(x)]

@function
def bare() -> str:
    return ""

@function(image="python:3.12")
def pair(a: int, b: str) -> float:
    return a + len(b)

assert_type(train("x"), dict[str, float])
train()  # wrong
train(1)  # wrong

assert_type(train.remote("x", epochs=2), dict[str, float])
assert_type(plain.remote(1), list[int])
assert_type(bare.remote(), str)
assert_type(pair.remote(1, b="x"), float)
train.remote(1)  # wrong
train.remote("x", epochs="2")  # wrong
train.remote("x", epoch=2)  # wrong
bare.remote(1)  # wrong
text: str = pair.remote(1, "x")  # wrong

task: flow.Task = train.spawn("x")
assert_type(str(task), str)
assert_type(train.spawn("x").result(), dict[str, float])
train.spawn()  # wrong
number: int = train.spawn("x").result()  # wrong

assert_type(plain.map([1, 2]), Iterator[list[int]])
assert_type(train.map(iter(["x"]), concurrency=2), Iterator[dict[str, float]])
assert_type(plain.map([1.0], on_error="return"), Iterator[list[int] | RemoteError])
train.map([1])  # wrong
train.map("x", on_error="ignore")  # wrong
pair.map([1])  # wrong
bare.map([1])  # wrong

assert_type(pair.starmap([(1, "x")]), Iterator[float])
assert_type(train.starmap(zip(["x"], [1])), Iterator[dict[str, float]])
assert_type(pair.starmap([(1, "x")], on_error="return"), Iterator[float | RemoteError])
pair.starmap([("x", 1)])  # wrong
pair.starmap([(1,)])  # wrong

with app.run() as running:
    assert_type(running, FlowApp)

assert_type(invoke("train.py", "f", args=[1], kwargs={"a": 1}, gpu="a100"), Any)
invoke("train.py")  # wrong
invoke("train.py", "f", gpus="a100")  # wrong
app.function(gpus="a100")  # wrong
function(retries="two")  # wrong
train.nothing  # wrong
"""


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    path = tmp_path / "calls.py"
    path.write_text(CALLS)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict", "pythonVersion": "3.10"}))
    return path


def wrong_lines() -> set[int]:
    return {number for number, line in enumerate(CALLS.splitlines(), 1) if line.endswith("# wrong")}


def test_mypy_sees_the_real_signatures(calls: Path) -> None:
    run = subprocess.run(["mypy", "--strict", calls.name], cwd=calls.parent, capture_output=True, text=True)
    found = {int(number) for number in re.findall(r"^calls\.py:(\d+): error:", run.stdout, re.M)}
    assert found == wrong_lines(), run.stdout + run.stderr


def test_pyright_sees_the_real_signatures(calls: Path) -> None:
    require("basedpyright", "pyright checks calls of decorated functions")
    argv = ["basedpyright", "--outputjson", "--level", "error", calls.name]
    run = subprocess.run(argv, cwd=calls.parent, capture_output=True, text=True)
    told = json.loads(run.stdout)["generalDiagnostics"]
    found = {one["range"]["start"]["line"] + 1 for one in told if one["severity"] == "error"}
    assert found == wrong_lines(), run.stdout + run.stderr
