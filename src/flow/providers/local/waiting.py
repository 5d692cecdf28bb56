"""Tasks that may not start yet: for their time, for other tasks, or for a place that their array's limit gives."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from math import inf
from pathlib import Path

from flow.dependencies import PAIRED, STARTED, holds, never_met, when_all
from flow.errors import FlowError
from flow.plan import Dependency, Plan
from flow.providers.local.queue import Queue, Row
from flow.providers.local.rank import rank_folder
from flow.status import TaskStatus, Want, attempt_outcome, read_report

_UNKNOWN_POLL_SECONDS = 2.0  # dependencies on tasks that only their record knows: nothing tells us of their end
_MOST_DECIDED = 100_000


class Waiting:
    """What the scheduler remembers between two looks at the tasks that wait."""

    def __init__(self, home: Path, queue: Queue) -> None:
        self._home = home
        self._queue = queue
        self._settled: set[str] = set()  # tasks, arrays and elements whose dependents are to be looked at
        self._freed = queue.throttled()  # arrays that may have places for more of their elements
        self._last_seen = 0  # the newest row whose dependencies were looked at
        self._unknown: set[str] = set()  # those that wait for what nothing will tell us of
        self._look_again_at = 0.0
        self._decided: dict[tuple[str, str, bool], float] = {}  # since when what was waited for holds, for good

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

    def note_hold(self, row: Row) -> None:
        """A task that had started is held: an array may have a place again."""
        if row.array_index is not None:
            self._freed.add(row.base)

    def release(self) -> list[tuple[Row, str]]:
        """Queue what need not wait any more; those that are to end, as they never can start, with the reason.

        Inside a transaction.
        """
        resumed = self._take_resumed()
        for row in self._queue.due(time.time()):
            self._queue.set_state(row, "queued")
        bases, elements = self._dependents()
        ends = [end for base in bases | resumed for end in self._look_at(base)]
        alone = [row for row in self._queue.rows(elements) if row.state == "waiting"] if elements else []
        ends += [end for row in alone if row.base not in bases for end in self._look_at(row.base, [row])]
        self._refill_arrays()
        return ends

    def _take_resumed(self) -> set[str]:
        """Give those that the user let go of the state that they would be in; the ones that may wait for others."""
        waiting = set()
        for row in self._queue.in_state("resumed"):
            plan = self._queue.plan(row.base)
            if plan.after:
                waiting.add(row.base)
                self._queue.set_state(row, "waiting")
            else:
                self._queue.set_state(row, self._next_state(plan, row.not_before or 0.0))
        return waiting

    def _next_state(self, plan: Plan, not_before: float) -> str:
        """The state of a row that waits for no other task."""
        if plan.elements and plan.elements.at_once:
            self._freed.add(plan.task_id)
            return "throttled"
        return _when_nothing_else(not_before)

    def _refill_arrays(self) -> None:
        freed, self._freed = self._freed, set()
        for base in freed:
            elements = self._queue.plan(base).elements
            if elements is None or elements.at_once is None:
                continue
            places = max(elements.at_once - self._queue.occupied(base), 0)
            for row in self._queue.in_state("throttled", base=base, limit=places):
                self._queue.set_state(row, _when_nothing_else(row.not_before or 0.0))

    def _dependents(self) -> tuple[set[str], set[str]]:
        """Those that began to wait or wait for what settled; and elements that wait for an element that did."""
        self._last_seen, bases = self._queue.new_waiting(self._last_seen)
        if time.monotonic() >= self._look_again_at:
            self._look_again_at = time.monotonic() + _UNKNOWN_POLL_SECONDS
            bases |= self._unknown
            self._unknown = set()
        elements: set[str] = set()
        settled, self._settled = self._settled, set()
        for one in settled:
            for base, state in self._queue.downstream(one):
                if state != PAIRED or not self._queue.is_open(one):
                    bases.add(base)
            array, _, index = one.partition("_")
            if index:
                pairs = self._queue.downstream(array)
                elements.update(f"{base}_{index}" for base, state in pairs if state == PAIRED)
        return bases, elements

    def _look_at(self, base: str, rows: Collection[Row] | None = None) -> list[tuple[Row, str]]:
        """Move on what waits of a task or array (of it only `rows`), if what it waits for holds; those that are to end.

        The elements of an array all wait for the same, and move together, unless each has its own to wait for.
        """
        plan = self._queue.plan(base)
        pairs = [one for one in plan.after if one.state == PAIRED]
        found = {one: self._met_at(one) for one in plan.after if one not in pairs}
        if not pairs:
            return self._decide(plan, found, None)
        if rows is None:
            rows = self._waiting_elements(plan, pairs, is_lost=inf in found.values())
        return [end for row in rows for end in self._decide(plan, {**found, **self._of_pairs(pairs, row)}, row)]

    def _waiting_elements(self, plan: Plan, pairs: Sequence[Dependency], *, is_lost: bool) -> list[Row]:
        """Those of which anything can be said: while the other array is open, only those whose element there ended."""
        if len(pairs) == 1 and not (plan.after_any or is_lost) and self._queue.is_open(pairs[0].task_id):
            return self._queue.after_ended(plan.task_id, pairs[0].task_id)
        return self._queue.in_state("waiting", base=plan.task_id)

    def _of_pairs(self, pairs: Collection[Dependency], row: Row) -> dict[Dependency, float | None]:
        """What an element waits for of other arrays; all of one that has no such element."""
        found = {}
        for one in pairs:
            element = f"{one.task_id}_{row.array_index}"
            upstream = element if self._queue.has_row(element) else one.task_id
            of_one = Dependency(upstream, "completed", one.delay_seconds)
            found[of_one] = self._met_at(of_one)
        return found

    def _decide(self, plan: Plan, found: Mapping[Dependency, float | None], row: Row | None) -> list[tuple[Row, str]]:
        """Move on a row, or all that wait of its task; those that are to end. `found`: when each dependency is met."""
        when = self._when_any(plan, found) if plan.after_any else when_all(found.values())
        seq = None if row is None else row.seq
        if when is None:
            return []
        if when < inf:
            when = max(when, plan.not_before or 0.0)
            self._queue.let_on(plan.task_id, self._next_state(plan, when), not_before=when, seq=seq)
            return []
        what = never_met(plan, found)
        if plan.waits_in_vain:
            reason = f"waits for {what}, which cannot be any more"
            self._queue.let_on(plan.task_id, "stuck", not_before=0.0, seq=seq, reason=reason)
            return []
        rows = self._queue.in_state("waiting", base=plan.task_id) if row is None else [row]
        return [(one, f"waited for {what}, which cannot be any more") for one in rows]

    def _when_any(self, plan: Plan, found: Mapping[Dependency, float | None]) -> float | None:
        """The first of them; one whose time comes later may be overtaken by one that is open."""
        first = min((when for when in found.values() if when is not None), default=inf)
        if first <= time.time() or None not in found.values():
            return first
        if first < inf:
            self._unknown.add(plan.task_id)
        return None

    def _met_at(self, one: Dependency) -> float | None:
        """From when on a dependency is met, in seconds since the epoch; inf: it never can be; None: that is open."""
        key = (one.task_id, one.state, bool(one.delay_seconds))
        since = self._decided.get(key)
        if since is None:
            since = self._since(one)
            if since is None:
                return None
            if len(self._decided) >= _MOST_DECIDED:
                self._decided.clear()
            self._decided[key] = since
        return since + one.delay_seconds

    def _since(self, one: Dependency) -> float | None:
        """The same without its delay; 0 where there is none, as nobody asks for the moment."""
        if self._queue.is_open(one.task_id, unstarted=one.state in STARTED):
            return None
        rows = self._queue.rows([one.task_id])
        if not rows:
            return self._since_by_record(one)
        if not holds(one.state, [(row.attempt > 0, self._completed(row)) for row in rows]):
            return inf
        return max(self._moment(row, one.state) for row in rows) if one.delay_seconds else 0.0

    def _since_by_record(self, one: Dependency) -> float | None:
        """The same for what the queue does not know: held, of another provider, its submitter died before it was
        queued."""
        from flow.record import Records

        records = Records(self._home)
        try:
            final = records.final(one.task_id)
            intent = records.intent(one.task_id)
        except FlowError:  # pruned, or damaged
            return inf
        if final is None and intent.want is not Want.CANCEL:
            self._unknown.update(base for base, _ in self._queue.downstream(one.task_id))
            return None
        facts = (bool(final and final.attempt), bool(final and final.state is TaskStatus.COMPLETED))
        since = (final and final.ended) or intent.since
        return (since if one.delay_seconds else 0.0) if holds(one.state, [facts]) else inf

    def _completed(self, row: Row) -> bool:
        if row.state != "ended":
            return False
        outcome = attempt_outcome(row.reports, self._queue.plan(row.base).nodes)
        return outcome is not None and outcome.state is TaskStatus.COMPLETED

    def _moment(self, row: Row, state: str) -> float:
        """When a row started or ended, whichever was waited for."""
        report = None
        if state in STARTED and row.attempt:
            report = row.reports.get(0) or read_report(rank_folder(self._home, row.id, row.attempt, 0))
        return (report and report.started) or row.ended or time.time()


def _when_nothing_else(not_before: float) -> str:
    """The state of a row that waits for nothing but, maybe, its time."""
    return "later" if not_before > time.time() else "queued"
