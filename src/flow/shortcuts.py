"""The functions of `flow` itself: each is the method of that name of a client made for the call."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from flow.client import Flow
from flow.task import Task

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from flow.client import Operand
    from flow.config import TaskConfig
    from flow.machines import Volume
    from flow.task_fields import TaskFields


def run(
    task: Operand | TaskConfig = None, /, *, idempotency_key: str | None = None, **fields: Unpack[TaskFields]
) -> Task:
    """Submit a shell command, a list of arguments, a task file, a script or a TaskConfig; see `Flow.run`."""
    return Flow().run(task, idempotency_key=idempotency_key, **fields)


submit = run  # what other clients call it


def get_task(reference: str) -> Task:
    """The task that an id, a unique prefix or a name stands for."""
    return Flow().get_task(reference)


def tasks(
    *,
    states: str | Collection[str] | None = None,
    limit: int | None = 20,
    name_pattern: str | None = None,
    refresh: bool = True,
) -> list[Task]:
    """The newest tasks; see `Flow.tasks`."""
    return Flow().tasks(states=states, limit=limit, name_pattern=name_pattern, refresh=refresh)


def create_volume(
    size_gb: int, name: str | None = None, *, interface: str = "block", region: str | None = None
) -> Volume:
    """Make a volume; see `Flow.create_volume`."""
    return Flow().create_volume(size_gb, name, interface=interface, region=region)


def volumes() -> list[Volume]:
    """The volumes there are, newest first."""
    return Flow().volumes()


def mount_volume(volume: str | Volume, task: str | Task) -> str:
    """Give a running task one more volume; the path at which it is seen, `/mnt/<name>`. See `Flow.mount_volume`."""
    return Flow().mount_volume(volume, task)


def cancel(*tasks: str | Task) -> None:
    """Ask for the end of tasks, each named by an id, a unique prefix or a name; see `Flow.cancel`."""
    Flow().cancel(*tasks)
