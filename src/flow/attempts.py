"""The starts of a task, each from the folders that it left in the record."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from flow.record import Records
from flow.status import Outcome, TaskStatus, attempt_outcome, read_report


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of the task."""

    number: int
    status: TaskStatus
    exit_code: int | None
    reason: str
    started_at: datetime | None
    ended_at: datetime | None

    @property
    def run_seconds(self) -> float | None:
        """How long it has run, or ran; None where it never began, or nothing tells when it ended."""
        return ran(self.status, self.started_at, self.ended_at)


def ran(status: TaskStatus, started_at: datetime | None, ended_at: datetime | None) -> float | None:
    """From its start to its end, or to now where it runs, in seconds; None where one of them is not known."""
    if ended_at is None and status is TaskStatus.RUNNING:
        ended_at = datetime.now(timezone.utc)
    return max((ended_at - started_at).total_seconds(), 0.0) if started_at and ended_at else None


def attempts_of(records: Records, task_id: str, nodes: int, now: Outcome) -> list[Attempt]:
    """Every start, oldest first; `now` is what the task has come to, and so its last attempt."""
    numbers = attempt_numbers(records, task_id)
    is_unseen = now.attempt > (numbers[-1] if numbers else 0)
    is_told = now.state.is_final or now.started is not None  # lost with all that it left, or not brought here so far
    if is_unseen and (numbers or is_told):
        numbers.append(now.attempt)
    places = [[records.folder(task_id, number, rank) for rank in range(nodes)] for number in numbers]
    return [_attempt(*one, now if one[0] == numbers[-1] else None) for one in zip(numbers, places, strict=True)]


def attempt_numbers(records: Records, task_id: str) -> list[int]:
    """The attempts that have a folder in the record, oldest first."""
    try:
        names = os.listdir(records.folder(task_id, 1, 0).parent.parent)  # noqa: PTH208
    except OSError:
        return []
    return sorted(int(name) for name in names if name.isdigit())


def _attempt(number: int, folders: Sequence[Path], now: Outcome | None) -> Attempt:
    found = {rank: read_report(folder) for rank, folder in enumerate(folders)}
    outcome = attempt_outcome({rank: one for rank, one in found.items() if one}, len(folders), attempt=number)
    if now and (outcome is None or now.state.is_final):
        outcome = now
    outcome = outcome or Outcome(TaskStatus.LOST, reason="left no report")
    times = moment(outcome.started), moment(outcome.ended)
    return Attempt(number, outcome.state, outcome.exit_code, outcome.reason, *times)


def moment(seconds: float | None) -> datetime | None:
    """A time since the epoch as what users are given: in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)
