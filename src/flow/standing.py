"""A task that there is one of at a provider: found by its name and label, started by one of those who ask at once."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flow.durable import private, writing
from flow.errors import ValidationError
from flow.gpus import parse_gpu
from flow.status import Want

if TYPE_CHECKING:
    from flow.client import Flow
    from flow.machines import Allocation
    from flow.task import Task


def find(client: Flow, name: str, label: str) -> tuple[Task, Allocation | None] | None:
    """The one of the client's provider that has not ended and shall not, as it is now."""
    client.finish_interrupted()
    provider = client.provider()
    for row in client.records.rows(unfinished=True, name_pattern=name):
        task = client.task_of(row.task_id, row=row)
        if task.provider != provider.name or label not in task.plan.labels:
            continue
        allocations = provider.allocations([task.task_id])
        task.see(allocations)
        client.records.note_outcomes({task.task_id: task.outcome})
        if not task.status.is_final and client.records.intent(task.task_id).want is not Want.CANCEL:
            return task, next(iter(allocations), None)
    return None


@contextmanager
def alone(client: Flow, name: str) -> Iterator[None]:
    """While it lasts nobody else finds or starts the one of that name."""
    home = client.home
    with writing(home):
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = open(home / f"{name}.lock", "w", opener=private)  # noqa: SIM115  # closed below
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_kind(task: Task, asked: str) -> bool:
    """Whether its machine is of the instance type that is asked for."""
    if asked == task.instance_type:
        return True
    try:
        gpu = parse_gpu(asked)
    except ValidationError:
        return False
    return str(gpu) == task.instance_type or (gpu.count is None and gpu.kind == task.plan.gpu_kind)
