"""Batch scripts run by real runners, one a node, on loopback addresses, as a provider without Slurm starts them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from flow.node import runner
from flow.slurm.submitting import SCRIPT, command
from tests.support.processes import free_port, is_alive, wait_until


class BatchTask:
    """`with BatchTask(folder, script, nodes=2) as task`: its nodes' folders are `folder/0`, …; it runs in `folder`."""

    def __init__(self, folder: Path, script: str, *, nodes: int = 1, python: str = sys.executable, **task: Any) -> None:
        self.folder, self.nodes = folder, nodes
        slurm = {"number": 7, "array_number": None, "array": None, "variables": {}, **task.pop("slurm", {})}
        ports = {name: free_port() for name in ("control_port", "step_port")}
        shared = {"v": 1, "task_id": "task-1", "name": "t", "attempt": 1, "nodes": nodes, "clean_env": True}
        shared.update(
            env={"PATH": os.environ["PATH"]}, cwd=str(folder), argv=[*command([], [], "", joined=False)], token="word"
        )
        shared.update(peers=[f"127.0.0.{rank + 1}" for rank in range(nodes)], grace_seconds=1, **ports)
        self.runners = []
        for rank in range(nodes):
            own = folder / str(rank)
            path = own / "workspace" / SCRIPT
            path.parent.mkdir(parents=True)
            path.write_text(script)
            path.chmod(0o755)
            (own / "task.json").write_text(json.dumps({**shared, "rank": rank, "slurm": slurm, **task}))
            self.runners.append(subprocess.Popen([python, runner.__file__, "run", own], stdin=subprocess.DEVNULL))

    def __enter__(self) -> BatchTask:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Nothing is left running."""
        for one in self.runners:
            if one.poll() is None:
                one.kill()
                one.wait()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):  # it may end of itself meanwhile
                os.kill(pid, signal.SIGKILL)

    def wait(self, seconds: float = 60) -> list[int | None]:
        """The exit code of each node, once all runners are gone."""
        assert [one.wait(seconds) for one in self.runners] == [0] * self.nodes
        return [self.status(rank)["code"] for rank in range(self.nodes)]

    def status(self, rank: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / str(rank) / "status.json").read_text())
        return found

    def out(self, name: str = "stdout.log", rank: int = 0) -> str:
        path = self.folder / str(rank) / name
        return path.read_bytes().decode(errors="replace") if path.exists() else ""

    def err(self) -> str:
        return self.out("stderr.log")

    def until(self, text: str) -> None:
        """Wait until the script, or a task of it, printed `text`."""
        assert wait_until(lambda: text in self.out(), seconds=30), (self.out(), self.err())

    def processes(self) -> list[int]:
        """All that run for the task, but its runners."""
        mark = b"FLOW_TASK_ID=task-1"
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                variables = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if mark in variables and any(os.fsencode(self.folder) in one for one in variables):
                found.append(int(entry.name))
        return [pid for pid in found if is_alive(pid)]

    def find(self, word: str) -> list[int]:
        """Those of its processes in whose command line `word` is."""
        return [pid for pid in self.processes() if word in _command_line(pid)]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
