"""An AWS endpoint over HTTP: moto's server, in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.components import require
from tests.support.processes import wait_until


@contextmanager
def aws_endpoint(folder: Path) -> Iterator[str]:
    """Its address, while it runs; what it logs is in `folder`. Leaves the test out where moto is not installed."""
    for module in ("moto", "boto3"):
        require(module, "what asks AWS is tested against an endpoint")
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HOME": str(folder)})
    try:
        assert wait_until(lambda: answers(port), seconds=30), (folder / "log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


def free_port() -> int:
    """A port of this machine that was free a moment ago."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0
