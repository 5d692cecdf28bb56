"""Tasks as a table: one row each, the newest first."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from flow.cli import output, times
from flow.cli.output import Column
from flow.status import TaskStatus

if TYPE_CHECKING:
    from flow.task import Task

COLUMNS = (
    Column("TASK"),
    Column("NAME", least=8),
    Column("STATUS", colors=output.STATES),
    Column("TYPE", least=6),
    Column("AGE", right=True),
    Column("RUN TIME", right=True),
    Column("$/H", right=True),
    Column("REASON", least=12),
)


def task_table(tasks: Sequence[Task]) -> list[str]:
    """The lines of `flow status`."""
    now = time.time()
    return output.table(COLUMNS, [_row(task, now) for task in tasks])


def reason(task: Task) -> str:
    """Why a task is as it is, where its state does not say so; of an array that goes on, how many elements are in which
    state."""
    elements = None if task.status.is_final else task.elements
    if not elements:
        why = own_reason(task)
        return "" if why == task.status else why
    counts = ", ".join(f"{count} {state}" for state, count in elements.items() if count)
    return f"{counts}: {task.reason}" if task.reason and len(elements) == 1 else counts


def own_reason(task: Task) -> str:
    """The reason that the task itself has, its state not said once more."""
    return (task.reason or "").removesuffix(f": {task.status}")


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """All that is made for a list is kept: looking for garbage in it, again and again, would be a fifth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _row(task: Task, now: float) -> tuple[str, ...]:
    created = task.created_at
    had_none = task.status.is_final and task.run_seconds is None and not task.is_array
    rate = None if had_none or task.status is TaskStatus.PENDING else task.price_per_hour  # of no machine yet, or ever
    return (
        task.task_id,
        task.name or output.NOTHING,
        str(task.status),
        task.instance_type or output.NOTHING,
        times.age(now - created.timestamp()) if created else output.NOTHING,
        output.NOTHING if task.run_seconds is None else times.span(task.run_seconds),
        output.price(rate).lstrip("$") or output.NOTHING,
        reason(task),
    )
