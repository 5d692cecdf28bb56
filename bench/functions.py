"""Functions that run elsewhere: one call as a task of its own, and calls of a worker that stays."""

from __future__ import annotations

import importlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from bench.figures import Figure, in_turns, median, milliseconds, p99
from bench.floors import bare_python
from bench.place import own_home

APP = """
from flow import FlowApp
app = FlowApp()

@app.function
def double(x: int) -> int:
    return 2 * x
"""


def measure_remote(*, quick: bool) -> list[Figure]:
    """`f.remote(x)` beside the start of a Python that does nothing."""
    with own_home(), _app() as app:
        app.double.remote(1)
        spent = in_turns(10 if quick else 100, remote=lambda: app.double.remote(1), bare=bare_python)
    floor = median(spent["bare"])
    return [
        Figure("cold remote, p50", median(spent["remote"]), "ms", floor, "python3 -c pass", aim=80),
        Figure("cold remote, p99", p99(spent["remote"]), "ms", floor, "python3 -c pass"),
    ]


def measure_warm(*, quick: bool) -> list[Figure]:
    """`f.remote(x)` and `f.map` inside of `with app.run():`, once the worker is there."""
    calls = 2_000 if quick else 20_000
    with own_home(), _app() as app, app.app.run():
        app.double.remote(1)
        spent = [milliseconds(lambda: app.double.remote(1)) for _ in range(calls)]
        mapped = [milliseconds(lambda: list(app.double.map(range(calls)))) for _ in range(3)]
        first = milliseconds(lambda: list(app.double.map(range(calls), concurrency=1)))
    floor = _echo_ms()
    rate = calls * 1000 / median([*mapped, first])
    return [
        Figure("warm call, p50", median(spent), "ms", floor, "echo over a socket", aim=0.6),
        Figure("warm call, p99", p99(spent), "ms", floor, "echo over a socket"),
        Figure("warm calls mapped", rate, "calls/s", 1000 / floor, "echoes over a socket", aim=5_000),
    ]


@contextmanager
def _app() -> Iterator[ModuleType]:
    """The user's module, imported from the current folder."""
    Path("benchapp.py").write_text(APP)
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield importlib.import_module("benchapp")
    finally:
        sys.path.pop(0)
        del sys.modules["benchapp"]


def _echo_ms(rounds: int = 2_000) -> float:
    """A byte to another process and back, over a Unix socket."""
    ours, theirs = socket.socketpair()
    echo = "import os\nwhile data := os.read(0, 1): os.write(0, data)"

    def once() -> None:
        ours.send(b"x")
        ours.recv(1)

    with subprocess.Popen([sys.executable, "-c", echo], stdin=theirs.fileno()), ours:
        theirs.close()
        return median([milliseconds(once) for _ in range(rounds)])
