"""Rented machines that are gone before their task has ended: whether it runs again on others, and what is on record.

A loss is a move as of places.py, of all of a task: on disk before other machines are asked for. It names the elements
of an array that go on, those whose end is not on record. An attempt that was preempted is free: it counts for nothing
against `retries`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from flow.durable import write_durably
from flow.errors import TaskNotFoundError
from flow.machines import Allocation
from flow.plan import Plan
from flow.providers.ssh.places import Move, Places, put_end, unit_name
from flow.record import Records
from flow.status import Outcome, TaskStatus, Want, end_on_record, is_given_up, read_report

_TAKEN = "its machine was taken back"  # as a runner says


class Losses:
    """Of the tasks of the records in `home`. A unit is a task or an element of an array."""

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

    def is_cancelled(self, task_id: str) -> bool:
        """Whether it was."""
        with suppress(TaskNotFoundError):
            return Records(self._home).intent(task_id).want is Want.CANCEL
        return False

    def elements(self, plan: Plan) -> list[int]:
        """The indices of an array's elements that the machines of now were rented for."""
        return self._elements(plan, self.last(plan.task_id))

    def machines(self, plan: Plan) -> int:
        """How many it has now, or is to have: of an array no more than elements that have not ended."""
        return min(plan.machines, len(self.elements(plan))) if plan.elements else plan.machines

    def free_attempts(self, unit: str, first: int) -> int:
        """How many attempts before the first on the machines of now count for nothing."""
        return first - 1 - self._tries(unit, first)

    def may_run_again(self, task_id: str) -> bool:
        """Whether a task, or any element of an array, that is lost now is to run again."""
        try:
            plan = Records(self._home).get(task_id).plan
        except TaskNotFoundError:  # allocated by who keeps no records
            return False
        move = self.last(task_id)
        return not self.is_cancelled(task_id) and any(self._going_on(plan, move))

    def note(self, plan: Plan, lost: Allocation, rentals: Collection[str]) -> None:
        """Put on record that this was lost with these, unless somebody else did; that is on disk first.

        First of all each attempt is given up that has no end on record, so that none can come any more: what has
        ended by then does not run again.
        """
        moves: list[Move | None] = [None, *self._places(plan.task_id).moves.get(plan.task_id, ())]
        is_noted = (newest := moves[-1]) is not None and newest.attempt > lost.attempt
        before = moves[-2] if is_noted else newest
        for unit in self._open_units(plan, before):
            self._give_up(unit, before, lost, nodes=plan.nodes)
        if not is_noted and (going_on := list(self._going_on(plan, before))):
            gone = tuple(sorted(rentals))
            indices = tuple(int(unit.partition("_")[2]) for unit in going_on if plan.elements)
            move = Move(plan.task_id, None, 0, len(moves), lost.attempt + 1, (), gone, lost.reason, indices)
            self._places(plan.task_id).add(move)
        move_now = self.last(plan.task_id)
        goes_on = self._units(plan, move_now) if move_now != before else []
        for unit in self._open_units(plan, before):
            if unit not in goes_on:
                attempt = self._lost_attempt(unit, before)
                end = Outcome(TaskStatus.LOST, reason=lost.reason, attempt=attempt)
                Records(self._home).set_final(unit, self.end_of(unit, plan.nodes) or end)

    def units(self, plan: Plan) -> list[str]:
        """The task, or all elements of the array."""
        return self._units(plan, None)

    def end_of(self, unit: str, nodes: int) -> Outcome | None:
        """How it ended, as far as that is on record, with all that it left."""
        return Records(self._home).final(unit) or end_on_record(self._record(unit), self.last_seen(unit), nodes)

    def why_given_up(self, plan: Plan) -> str:
        """Why a client that died over it has given up an attempt on the machines of now; "" where none has."""
        move = self.last(plan.task_id)
        for unit in self._open_units(plan, move):
            for attempt in range(_first(move), self._lost_attempt(unit, move) + 1):
                for folder in (self._record(unit) / str(attempt) / str(rank) for rank in range(plan.nodes)):
                    if is_given_up(folder) and (report := read_report(folder)):
                        return report.reason
        return ""

    # -- of the machines that were rented after a move, or with None of the first ones

    def _elements(self, plan: Plan, move: Move | None) -> list[int]:
        if move is None:
            return list(plan.elements.indices) if plan.elements else []
        return list(move.going_on)

    def _units(self, plan: Plan, move: Move | None) -> list[str]:
        if plan.elements is None:
            return [plan.task_id]
        return [unit_name(plan.task_id, one) for one in self._elements(plan, move)]

    def _open_units(self, plan: Plan, move: Move | None) -> Iterator[str]:
        """Those whose end is not on record."""
        records = Records(self._home)
        return (unit for unit in self._units(plan, move) if records.final(unit) is None)

    def _going_on(self, plan: Plan, move: Move | None) -> Iterator[str]:
        """Those that may be tried again."""
        for unit in self._open_units(plan, move):
            if self.end_of(unit, plan.nodes):
                continue
            first, free = _first(move), self.free(unit)
            here = [one for one in range(first, self._lost_attempt(unit, move) + 1) if one not in free]
            if self._tries(unit, first) + len(here) <= plan.retries:
                yield unit

    def _lost_attempt(self, unit: str, move: Move | None) -> int:
        """Which is lost with these machines: also where nobody has seen it begin."""
        return max(self.last_seen(unit), _first(move))

    def _tries(self, unit: str, before: int) -> int:
        """The attempts on record, before that one, which count."""
        ends = [read_report(self._record(unit) / str(number) / "0") for number in range(1, before)]
        return sum(one is not None and one.cause != "requeue" for one in ends)

    def _give_up(self, unit: str, move: Move | None, lost: Allocation, *, nodes: int) -> None:
        """Put on record the end of its attempts with these machines: of others than were seen somebody else knows."""
        free = self.free(unit)
        for attempt in range(_first(move), min(self._lost_attempt(unit, move), lost.attempt) + 1):
            cause, why = ("requeue", _TAKEN) if attempt in free else ("lost", lost.reason)
            end = {"v": 1, "phase": "ended", "cause": cause, "reason": why, "ended": time.time(), "given_up": True}
            put_end(self._record(unit), attempt, nodes, end)

    # -- what was seen

    def last_seen(self, unit: str) -> int:
        """The attempt in which it, or any element of it, was last seen; 0 before the first."""
        try:
            return int((self._seen(unit) / unit).read_text())
        except (OSError, ValueError):
            return 0

    def note_seen(self, unit: str, attempt: int) -> None:
        """It was, in this one."""
        for one in dict.fromkeys((unit, unit.partition("_")[0])):
            if attempt > self.last_seen(one):
                with suppress(OSError):  # a home that can only be read
                    self._seen(one).mkdir(mode=0o700, exist_ok=True)
                    write_durably(self._seen(one) / one, str(attempt).encode())

    def free(self, unit: str) -> list[int]:
        """The attempts that count for nothing, as far as that was seen."""
        with suppress(OSError, ValueError):
            return list(json.loads((self._seen(unit) / f"{unit}.free").read_text()))
        return []

    def note_free(self, unit: str, attempts: Collection[int]) -> None:
        """These are: all that are known by now."""
        if sorted(attempts) != self.free(unit):
            with suppress(OSError):  # a home that can only be read
                self._seen(unit).mkdir(mode=0o700, exist_ok=True)
                write_durably(self._seen(unit) / f"{unit}.free", json.dumps(sorted(attempts)).encode())

    def note_preempted(self, task_id: str) -> None:
        """What is on its machines counts for nothing now."""
        move = self.last(task_id)
        with suppress(TaskNotFoundError):
            for unit in self._open_units(Records(self._home).get(task_id).plan, move):
                self.note_free(unit, {*self.free(unit), self._lost_attempt(unit, move)})

    def _seen(self, unit: str) -> Path:
        return self._record(unit.partition("_")[0]) / "seen"

    def _places(self, task_id: str) -> Places:
        return Places(self._record(task_id))

    def _record(self, unit: str) -> Path:
        return self._home / "record" / unit


def _first(move: Move | None) -> int:
    """The first attempt on those machines."""
    return move.attempt if move else 1
