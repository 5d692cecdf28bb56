"""What the hosts tell of tasks, and what is to be thought where one tells nothing: out of reach for now, or lost."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from flow.errors import FlowError, StorageError, TaskNotFoundError, UnreachableError, ValidationError
from flow.machines import Allocation, Machines
from flow.node import host as program
from flow.providers.ssh.fleet import Fleet, told_since
from flow.providers.ssh.gathering import last_meeting
from flow.providers.ssh.places import Places, unit_of
from flow.providers.ssh.states import allocation_of, ended_allocation
from flow.record import Records
from flow.remote import Remote
from flow.status import Want, end_on_record, is_given_up


@dataclass(slots=True)
class Seen:
    """One task or element: what each of its hosts tells, and why others do not; all by host."""

    entries: dict[str, Any] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)

    @property
    def is_cancelled(self) -> bool:
        """Whether a host was told to end it."""
        return any(one["cancelled"] for one in self.entries.values())


class Sight:
    """Looks at tasks of the records in `home`, and ends what it finds left of attempts that do not count any more."""

    def __init__(self, home: Path, fleet: Fleet) -> None:
        self._home, self._fleet = home, fleet
        fleet.see_again = partial(_end_what_is_over, home)
        self._attempts: dict[str, int] = {}  # of tasks and elements, as last seen

    def look(
        self, task_ids: Collection[str] | None, places: Mapping[str, Places]
    ) -> tuple[dict[str, Allocation], dict[str, Seen]]:
        """The allocation of each task or element, and what it was made of; all hosts are asked at once.

        places: of each task or array that is named.
        """
        # asked before looking: who gives one away now is not to have lost it
        given = {one for one in places if (self._record(one) / "allocated").exists()}
        asked = self._whom_to_ask(task_ids, places)
        told = self._fleet.ask_each(list(asked), lambda name, remote: look(remote, asked[name]))
        answers = {name: one for name, one in told.items() if not isinstance(one, FlowError)}
        seen = self._sort(answers, places)
        known = {(name, one["id"].partition("_")[0]) for name, answer in answers.items() for one in answer["tasks"]}
        for task_id in task_ids or ():
            of_task = places[task_id.partition("_")[0]]
            for name, parts in of_task.parts(task_id).items():
                for part in (one for one in parts if (name, one.partition("_")[0]) not in known):
                    self._find_missing(of_task, name, part, seen, told=told[name], given=given)
        clocks = {name: answer["ahead"] for name, answer in answers.items()}
        found = {one: self._allocation(one, seen[one], clocks, places) for one in seen}
        of_record = {one: one.partition("_")[0] for one in seen if one.partition("_")[0] in places}
        is_over = {one for one in of_record if found[one].machines is Machines.GONE}
        if doubtful := [one for one in of_record if seen[one].lost or seen[one].is_cancelled or one in is_over]:
            now = {base: Places(self._record(base)) for base in places}
            if any(now[of_record[one]].number(one) != places[of_record[one]].number(one) for one in doubtful):
                return self.look(task_ids, now)  # somebody else has moved it meanwhile, and ended what is left
            # of what is to move, once that is on record: else the host that is back would find the others ended
            self._end_elsewhere([seen[one] for one in is_over])
        return found, seen

    # -- asking

    def _whom_to_ask(
        self, task_ids: Collection[str] | None, places: Mapping[str, Places]
    ) -> dict[str, list[str] | None]:
        """The hosts that have something of these tasks, or may still have, each with what they call it."""
        if task_ids is None:
            return dict.fromkeys(self._fleet.hosts)
        asked: dict[str, list[str] | None] = {}
        for one in task_ids:
            base = one.partition("_")[0]
            # what left its record may be on any host; what was not placed yet is on none
            anywhere = [] if self._record(base).exists() else self._fleet.hosts
            for name, parts in (places[base].parts(one) or {name: [one, f"{base}+"] for name in anywhere}).items():
                asked[name] = [*(asked.get(name) or ()), *parts]
        for of_task in places.values():
            for name, parts in of_task.left().items():
                if name in asked or self._fleet.may_be_back(name):
                    asked[name] = [*(asked.get(name) or ()), *parts]
        return asked

    def _sort(self, answers: Mapping[str, Any], places: Mapping[str, Places]) -> dict[str, Seen]:
        """What was told of each task or element as it is now. What is left there of a lost attempt is ended."""
        in_order = sorted(answers, key=lambda name: (answers[name]["host"], name))  # in which they give turns
        entries = [(name, *unit_of(one["id"]), one) for name in in_order for one in answers[name]["tasks"]]
        seen: dict[str, Seen] = {}
        left: dict[str, list[Any]] = {}
        for name, unit, number, entry in entries:
            of_task = places.get(unit.partition("_")[0])
            if not of_task:  # what left its record: each part by itself
                seen.setdefault(entry["id"], Seen()).entries[name] = entry
            elif number == of_task.number(unit):
                seen.setdefault(unit, Seen()).entries[name] = entry
                if program.has_begun(entry["reports"]):
                    self.note_attempt(unit, entry["attempt"])
            elif not entry["ended"]:
                left.setdefault(name, []).append(entry)
        for of_task in places.values():
            hosts = of_task.left()
            if hosts and answers.keys() >= hosts.keys() and not left.keys() & hosts.keys():
                of_task.mark_left()
        told = {name: [one["id"] for one in those if _is_open(one)] for name, those in left.items()}
        self._release({name: ids for name, ids in told.items() if ids})
        return seen

    # -- what nothing is told of

    def _find_missing(
        self, places: Places, name: str, part: str, seen: dict[str, Seen], *, told: Any, given: Collection[str]
    ) -> None:
        """Note that this host is silent about what it was given, or has lost it."""
        for unit in self._units(places, name, part):
            move = places.move_of(unit)
            is_given = places.is_given(move) if move else places.task_id in given
            if isinstance(told, FlowError):
                is_away = isinstance(told, (UnreachableError, ValidationError))  # no host has that name any more
                since = (self._fleet.silent_since(name) if is_away else None) or time.time()
                if time.time() - since >= self._fleet.lost_after_seconds:
                    minutes = self._fleet.lost_after_seconds / 60
                    seen.setdefault(unit, Seen()).lost[name] = f"{name} was out of reach for {minutes:g} minutes"
                else:
                    seen.setdefault(unit, Seen()).silent[name] = told_since(told.message, since)
            elif is_given:
                seen.setdefault(unit, Seen()).lost[name] = f"{name} knows nothing of it any more"
            elif move:
                seen.setdefault(unit, Seen())

    def _units(self, places: Places, name: str, part: str) -> list[str]:
        """The task or the elements that are meant by a part, of those that this host was given."""
        unit, number = unit_of(part)
        base = unit.partition("_")[0]
        if number:
            return [unit]
        try:
            elements = Records(self._home).get(base).plan.elements
        except TaskNotFoundError:  # allocated by who keeps no records
            elements = None
        if elements is None:
            return [unit]
        own = [f"{base}_{elements.indices[one]}" for one in places.first[name]]
        return [one for one in own if unit in (base, one) and not places.move_of(one)]

    def _allocation(
        self, unit: str, seen: Seen, clocks: Mapping[str, float], places: Mapping[str, Places]
    ) -> Allocation:
        of_task = places.get(unit.partition("_")[0])
        move = of_task.move_of(unit) if of_task else None
        nodes = (len(of_task.ranks) if of_task and unit == of_task.task_id else 0) or 1
        record = self._record(unit)
        # of what was seen to have ended, with all that it left copied here: whatever is with its hosts now
        if (seen.lost or seen.silent) and (end := end_on_record(record, self.last_attempt(unit), nodes)):
            return ended_allocation(unit, record, end, nodes)
        if of_task and (seen.lost or self._was_ended_with_a_host(unit, seen)):
            attempt = max(self.last_attempt(unit), move.attempt if move else 1, last_meeting(self._record(unit)))
            gone = {*seen.lost, *(move.lost if move else ())}
            machines = Machines.LOST if seen.lost and self._may_move(unit, attempt, gone) else Machines.GONE
            reason = next(iter(seen.lost.values()), "one of its hosts was given up")
            return Allocation(unit, attempt, machines, reason=reason)
        if of_task and move and not of_task.is_given(move):
            machines = Machines.LOST if move.hosts else Machines.GONE
            return Allocation(unit, move.attempt - 1, machines, reason=move.reason)
        if seen.silent:
            reason = next(iter(seen.silent.values()))
            return Allocation(unit, self.last_attempt(unit), Machines.SILENT, reason=reason)
        made = allocation_of(unit, seen.entries, clocks, move)
        first = move.attempt if move else 1
        if of_task and self.is_given_up(unit, range(first, made.attempt + 1), nodes):
            machines = Machines.LOST if self._may_move(unit, made.attempt, ()) else Machines.GONE
            return Allocation(unit, made.attempt, machines, reason="its host was out of reach for long")
        return made

    def is_given_up(self, unit: str, attempts: Collection[int], nodes: int) -> bool:
        """Whether a client gave up any of these attempts, on any node: see `flow.status.is_given_up`."""
        return any(is_given_up(self._record(unit) / str(n) / str(rank)) for n in attempts for rank in range(nodes))

    def _may_move(self, unit: str, attempt: int, gone: Collection[str]) -> bool:
        """Whether a task or element that was lost in this attempt may run again on other hosts than these."""
        records = Records(self._home)
        try:
            plan, want = records.get(unit).plan, records.intent(unit).want
        except TaskNotFoundError:  # allocated by who keeps no records
            return False
        others = set(self._fleet.hosts).difference(gone)
        return attempt <= plan.retries and want is not Want.CANCEL and not plan.region and len(others) >= plan.nodes

    def _was_ended_with_a_host(self, unit: str, seen: Seen) -> bool:
        """Whether it was ended with a host that is back, and nobody has cancelled it."""
        try:
            return seen.is_cancelled and Records(self._home).intent(unit).want is not Want.CANCEL
        except TaskNotFoundError:  # allocated by who keeps no records
            return False

    def _end_elsewhere(self, lost: Collection[Seen]) -> None:
        """The other nodes of tasks that are lost with one of them."""
        open_: dict[str, list[str]] = {}
        for one in lost:
            for name, entry in one.entries.items():
                if _is_open(entry):
                    open_.setdefault(name, []).append(entry["id"])
        self._release(open_)

    def _release(self, parts: Mapping[str, list[str]]) -> None:
        """On hosts that answered just now; on one that does not any more when it is asked again."""
        self._fleet.ask_each(list(parts), lambda name, remote: remote.ask("release", parts[name]))

    # -- which attempt it was

    def note_attempt(self, unit: str, attempt: int) -> None:
        """The attempt that it was seen in: the next one elsewhere must be another, and what ran does not wait again.

        Of first attempts it is noted once for all of an array, as each look would cost a file for each element.
        """
        name = unit if attempt > 1 else unit.partition("_")[0]
        if attempt > self._attempts.get(name, 0):
            file = self._noted(name)
            with suppress(OSError):  # a home that can only be read
                if file.parents[1].is_dir() and _number_in(file) < attempt:
                    file.parent.mkdir(mode=0o700, exist_ok=True)
                    file.write_text(str(attempt))
            self._attempts[name] = attempt
        self._attempts[unit] = attempt

    def last_attempt(self, unit: str) -> int:
        """The attempt that it was last seen in, whoever looked; 0 before the first, as far as that is known."""
        base = unit.partition("_")[0]
        unknown = 0 if self._record(base).exists() else 1
        first = min(_number_in(self._noted(base)), 1)
        return max(self._attempts.get(unit, unknown), _number_in(self._noted(unit)), first)

    def _noted(self, unit: str) -> Path:
        return self._record(unit.partition("_")[0]) / "seen" / unit

    def _record(self, task_id: str) -> Path:
        return self._home / "record" / task_id


def look(remote: Remote, parts: list[str] | None) -> dict[str, Any]:
    """What a host tells of tasks, and by how many seconds its clock is `ahead` at least."""
    before = time.time()
    told: dict[str, Any] = remote.ask("look", parts)
    return {**told, "ahead": max(told["now"] - time.time(), min(told["now"] - before, 0.0))}


def _is_open(entry: Mapping[str, Any]) -> bool:
    return not (entry["ended"] or entry["cancelled"])


def _number_in(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0


def _end_what_is_over(home: Path, _: str, remote: Remote) -> None:
    """On a host that was silent: what was given up, cancelled or begun elsewhere meanwhile."""
    over = [one["id"] for one in remote.ask("look", None)["tasks"] if _is_open(one) and _is_over(home, one["id"])]
    if over:
        remote.ask("release", over)


def _is_over(home: Path, part: str) -> bool:
    unit, number = unit_of(part)
    records = Records(home)
    try:
        is_cancelled = records.intent(unit).want is Want.CANCEL
    except (TaskNotFoundError, StorageError):  # allocated by who keeps no records, or they are damaged
        return False
    base = unit.partition("_")[0]
    is_left = number < Places(home / "record" / base).number(unit)
    return is_left or is_cancelled or any(records.final(one) for one in {unit, base})
