"""The pytest plug-in: `flow_local`, a client with an empty home of its own, whose tasks end with the test."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from flow.client import Flow

_POLITE_SECONDS = 2.0  # for tasks that are cancelled when their test is over, before they are killed
_LAST_SECONDS = 20.0


@pytest.fixture
def flow_local(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flow]:
    """A Flow client of the local provider in a home of its own; `flow.run` and the command use it too.

    Machines that this one lacks are emulated, whatever the settings say. What still runs after the test is ended.
    """
    from flow.client import Flow
    from flow.settings import SETTINGS

    for variable in ("FLOW_PROFILE", *(name for one in SETTINGS for name in (one.variable, *one.also))):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("FLOW_HOME", str(tmp_path_factory.mktemp("flow-home")))
    monkeypatch.setenv("FLOW_PROVIDER", "local")
    monkeypatch.setenv("FLOW_LOCAL_STRICT", "false")
    client = Flow()
    yield client
    _end_tasks(client)
    _end_scheduler(client)


def _end_tasks(client: Flow) -> None:
    """Cancel what still runs, and kill what does not heed that."""
    from flow.errors import TimeoutError as FlowTimeoutError
    from flow.providers.local.burial import signal_runner
    from flow.status import FINAL, TaskStatus

    left = client.tasks(states=set(TaskStatus) - FINAL, limit=None)
    client.cancel(*left)
    deadline = time.monotonic() + _POLITE_SECONDS
    for task in left:
        try:
            task.wait(deadline - time.monotonic())
        except FlowTimeoutError:
            for allocation in client.provider().allocations([task.task_id]):
                for node in allocation.nodes:
                    signal_runner(Path(node.folder), None, signal.SIGTERM)  # the second one spares nothing
            task.wait(_LAST_SECONDS)


def _end_scheduler(client: Flow) -> None:
    from flow.providers.local.wake import end_scheduler

    end_scheduler(client.home / "local", wait_seconds=_LAST_SECONDS)
