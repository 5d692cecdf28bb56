"""Tasks that may not start yet: for their time, for other tasks, or for a place that their array's limit gives."""

from __future__ import annotations

import time
from pathlib import Path

from flow.errors import FlowError
from flow.providers.local.queue import Queue, Row
from flow.status import TaskStatus, Want, attempt_outcome

_UNKNOWN_POLL_SECONDS = 2.0  # dependencies on tasks that only their record knows: nothing tells us of their end


class Waiting:
    """What the scheduler remembers between two looks at the tasks that wait."""

    def __init__(self, home: Path, queue: Queue) -> None:
        self._home = home
        self._queue = queue
        self._settled: set[str] = set()  # tasks, arrays and elements whose dependents are to be looked at
        self._freed = queue.throttled()  # arrays that may have places for more of their elements
        self._last_seen = 0  # the newest row whose dependencies were looked at
        self._unknown: set[str] = set()  # those that wait for what is not in the queue
        self._look_again_at = 0.0

    @property
    def has_news(self) -> bool:
        """Whether something happened since the last look that may let others on."""
        return bool(self._settled or self._freed)

    def note_start(self, row: Row) -> None:
        """A task started: some may have waited for that."""
        self._settled.update(one for one in (row.base, row.id) if self._queue.downstream(one))

    def note_end(self, row: Row) -> None:
        """A task ended: some may have waited for that, and an array may have a place again."""
        self._settled.update((row.base, row.id))
        if row.array_index is not None:
            self._freed.add(row.base)

    def release(self) -> list[tuple[Row, str]]:
        """Queue what need not wait any more; those that never can start, with the reason. Inside a transaction."""
        self._refill_arrays()
        for row in self._queue.due(time.time()):
            self._queue.set_state(row, "queued")
        return [(row, reason) for row in self._dependents() if (reason := self._look_at(row))]

    def _refill_arrays(self) -> None:
        freed, self._freed = self._freed, set()
        for base in freed:
            elements = self._queue.plan(base).elements
            if elements is None or elements.at_once is None:
                continue
            places = max(elements.at_once - self._queue.occupied(base), 0)
            waits = bool(self._queue.waits(base))
            for row in self._queue.in_state("throttled", base=base, limit=places):
                self._queue.set_state(row, "waiting" if waits else _when_nothing_else(row))
            if waits:
                self._settled.add(base)

    def _dependents(self) -> list[Row]:
        """Those that began to wait, and those that wait for what settled."""
        self._last_seen, bases = self._queue.new_waiting(self._last_seen)
        if time.monotonic() >= self._look_again_at:
            self._look_again_at = time.monotonic() + _UNKNOWN_POLL_SECONDS
            bases |= self._unknown
            self._unknown = set()
        settled, self._settled = self._settled, set()
        bases |= settled.union(*(self._queue.downstream(one) for one in settled))
        return [row for base in bases for row in self._queue.in_state("waiting", base=base)]

    def _look_at(self, row: Row) -> str:
        """Queue the row if all it waits for holds; the reason where something of it never can."""
        verdicts = {(up, state): self._is_met(up, state) for up, state in self._queue.waits(row.base)}
        never = [one for one, met in verdicts.items() if met is False]
        if never:
            return f"waited for {never[0][0]} to be {never[0][1]}, which cannot be any more"
        if all(verdicts.values()):
            self._queue.set_state(row, _when_nothing_else(row))
        return ""

    def _is_met(self, upstream: str, state: str) -> bool | None:
        """Whether a dependency holds: True, False when it never can any more, None when that is open."""
        if self._queue.is_open(upstream, unstarted=state == "started"):
            return None
        rows = self._queue.rows([upstream])
        if not rows:
            self._unknown.update(self._queue.downstream(upstream))
            return self._may_come(upstream, state)
        if state == "started":
            return all(row.attempt > 0 for row in rows)
        if state == "failed":  # of an array: any element, as its own state is the worst of theirs
            return any(self._fits(row, state) for row in rows)
        return all(self._fits(row, state) for row in rows)

    def _may_come(self, upstream: str, state: str) -> bool | None:
        """The same for a task that the queue does not know: held, or its submitter died before it was queued."""
        from flow.record import Records

        try:
            if Records(self._home).intent(upstream).want is not Want.CANCEL:
                return None
        except FlowError:  # pruned, or damaged
            return False
        return state == "ended"

    def _fits(self, row: Row, state: str) -> bool:
        """Whether an ended row is what a dependency waited for."""
        if state == "ended":
            return True
        outcome = attempt_outcome(row.reports, self._queue.plan(row.base).nodes)
        completed = outcome is not None and outcome.state is TaskStatus.COMPLETED
        return completed if state == "completed" else not completed


def _when_nothing_else(row: Row) -> str:
    """The state of a row that waits for nothing but, maybe, its time."""
    return "later" if row.not_before is not None and row.not_before > time.time() else "queued"
