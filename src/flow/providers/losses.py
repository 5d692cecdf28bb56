"""Rented machines that are gone before their task has ended: whether it runs again on others, and what is on record.

A loss is a move as of places.py: on disk before other machines are asked for. An attempt that was preempted is free: it
counts for nothing against `retries`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from flow.durable import create_durably, write_durably
from flow.errors import TaskNotFoundError
from flow.machines import Allocation
from flow.plan import Plan
from flow.providers.ssh.places import Move, Places
from flow.record import Records
from flow.status import Want

_TAKEN = "its machine was taken back"  # as a runner says


class Losses:
    """Of the tasks of the records in `home`."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def last(self, task_id: str) -> Move | None:
        """By which the task is to run where it is now; None: it is on its first machines."""
        return self._places(task_id).move_of(task_id)

    def was_asked(self, task_id: str) -> bool:
        """Whether machines were asked for, since the last loss."""
        places = self._places(task_id)
        move = places.move_of(task_id)
        return places.is_given(move) if move else (self._record(task_id) / "allocated").exists()

    def note_asked(self, task_id: str) -> None:
        """They were, and are there."""
        places = self._places(task_id)
        if move := places.move_of(task_id):
            places.mark_given(move)
        elif not self.was_asked(task_id):
            Records(self._home).mark_allocated(task_id)

    def may_run_again(self, task_id: str, attempt: int) -> bool:
        """Whether a task that was lost in this attempt is to run again."""
        records = Records(self._home)
        try:
            plan = records.get(task_id).plan
        except TaskNotFoundError:  # allocated by who keeps no records
            return False
        tries = attempt - len(self.free(task_id, attempt))
        is_over = self.is_cancelled(task_id) or records.final(task_id) is not None
        return tries <= plan.retries and not is_over and plan.elements is None

    def is_cancelled(self, task_id: str) -> bool:
        """Whether it was."""
        with suppress(TaskNotFoundError):
            return Records(self._home).intent(task_id).want is Want.CANCEL
        return False

    def note(self, plan: Plan, lost: Allocation, rentals: Collection[str]) -> None:
        """Put on record that this was lost with these, unless somebody else did; that is on disk first."""
        places = self._places(plan.task_id)
        number = places.number(plan.task_id) + 1
        last = places.move_of(plan.task_id)
        if not last or last.attempt <= lost.attempt:
            move = Move(plan.task_id, None, 0, number, lost.attempt + 1, (), tuple(sorted(rentals)), lost.reason)
            places.add(move)
        for attempt in range(1, lost.attempt + 1):
            is_free = attempt in self.free(plan.task_id, attempt)
            cause, reason = ("requeue", _TAKEN) if is_free else ("lost", lost.reason)
            end = {"v": 1, "phase": "ended", "cause": cause, "reason": reason, "ended": time.time()}
            for rank in range(plan.nodes):
                folder = self._record(plan.task_id) / str(attempt) / str(rank)
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                with suppress(FileExistsError):
                    create_durably(folder / "status.json", json.dumps(end).encode())

    def last_seen(self, task_id: str) -> int:
        """The attempt in which the task, or any of its elements, was last seen on its machines; 0 before the first."""
        try:
            return int((self._seen(task_id) / task_id).read_text())
        except (OSError, ValueError):
            return 0

    def note_seen(self, task_id: str, attempt: int) -> None:
        """It was, in this one."""
        if attempt > self.last_seen(task_id):
            with suppress(OSError):  # a home that can only be read
                self._seen(task_id).mkdir(mode=0o700, exist_ok=True)
                write_durably(self._seen(task_id) / task_id, str(attempt).encode())

    def free(self, task_id: str, attempt: float = math.inf) -> list[int]:
        """The attempts up to this one that count for nothing, as far as that was seen."""
        with suppress(OSError, ValueError):
            return [one for one in json.loads(self._free(task_id).read_text()) if one <= attempt]
        return []

    def note_free(self, task_id: str, attempts: Collection[int]) -> None:
        """These are: all that are known by now."""
        if sorted(attempts) != self.free(task_id):
            with suppress(OSError):  # a home that can only be read
                self._seen(task_id).mkdir(mode=0o700, exist_ok=True)
                write_durably(self._free(task_id), json.dumps(sorted(attempts)).encode())

    def _free(self, task_id: str) -> Path:
        return self._seen(task_id) / f"{task_id}.free"

    def _seen(self, task_id: str) -> Path:
        return self._record(task_id) / "seen"

    def _places(self, task_id: str) -> Places:
        return Places(self._record(task_id))

    def _record(self, task_id: str) -> Path:
        return self._home / "record" / task_id
