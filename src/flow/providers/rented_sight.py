"""What clouds tell of machines, and what those tell of their tasks -> the allocations of tasks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from flow.errors import FlowError, ProviderError, ResourceNotFoundError
from flow.machines import Allocation, Machines
from flow.node import host as program
from flow.plan import Plan
from flow.providers.holds import Holds
from flow.providers.losses import Losses
from flow.providers.rental import Rental, RentedFleet
from flow.providers.ssh.fleet import told_since
from flow.providers.ssh.places import Move
from flow.providers.ssh.states import allocation_of, ended_allocation
from flow.record import Records
from flow.status import Want, report_from_json

_BOOT_SECONDS = 3600.0  # after which a machine is not waited for any more; 20 minutes are common
_DEAD_SECONDS = 120.0  # after which a machine that its cloud calls dead is taken to be lost


class RentedSight:
    """Of the tasks of the records in `home`. home_id: tells them from those of other clients; copies: a folder for
    what is fetched from S3."""

    def __init__(
        self, home: Path, fleet: RentedFleet, losses: Losses, holds: Holds, *, home_id: Callable[[], str], copies: Path
    ) -> None:
        self._home, self._fleet, self._losses, self._holds = home, fleet, losses, holds
        self._home_id, self._copies = home_id, copies

    def allocations(self, rental: Rental, told: Mapping[str, Any]) -> list[Allocation]:
        """Of the task, or all elements of the array, that has these. told: by machine, what it tells, or why not."""
        task_id, first = str(rental.task_id), rental.attempt
        attempt = self._losses.last_seen(task_id) if rental.task_id else 0
        attempt, was_seen = max(attempt, first - 1), attempt >= first
        is_away = rental.has_ended and rental.state is not Machines.UP
        whole = Allocation(
            rental.task_id,
            attempt,
            Machines.PAUSED if is_away else rental.state,
            reason=rental.reason,
            created=rental.created,
            price_per_hour=rental.price_per_hour,
            plan_hash=rental.plan_hash,
            is_ended=is_away,
        )
        plan = self._plan(task_id) if rental.home_id == self._home_id() else None
        if plan and (ended := self._ended_unnoted(plan)):
            return ended
        if why := self._why_lost(rental, told, attempt) or (self._losses.why_given_up(plan) if plan else ""):
            is_cancelled = rental.state is Machines.GONE and self._losses.is_cancelled(task_id)
            return [whole] if is_cancelled else self._lost(replace(whole, attempt=max(attempt, first), reason=why))
        if whole.machines is Machines.QUEUED and attempt:
            whole = replace(whole, machines=Machines.PREEMPTED)
        if whole.machines is Machines.PREEMPTED and was_seen and rental.home_id == self._home_id():
            self._losses.note_preempted(task_id)
        answers = {one.name: told[one.name] for one in rental.machines if one.name in told}
        unheard = Machines.SILENT if was_seen else Machines.STARTING
        if rental.state is not Machines.UP or not answers:
            state = {Machines.LOST: unheard, Machines.UP: Machines.STARTING}.get(rental.state, whole.machines)
            since = self._fleet.silent_since(rental.rental_id) if rental.state is Machines.LOST else None
            return [replace(whole, machines=state, reason=told_since(rental.reason, since))]
        for name, one in answers.items():
            if isinstance(one, FlowError):
                reason = told_since(one.message, self._fleet.silent_since(name)) if was_seen else "its machine boots"
                return [replace(whole, machines=unheard, reason=reason)]
        found = self._by_unit(answers, first)
        elements = [f"{task_id}_{one}" for one in self._losses.elements(plan)] if plan else []
        unready = [name for name, answer in answers.items() if not answer["is_ready"]]
        if not found or (not elements and any(len(entries) < len(answers) for entries in found.values())):
            reason = "its machine gets ready" if unready else "its code is on the way"
            return [replace(whole, machines=Machines.STARTING, reason=reason)]
        missing = [one for one in elements if one not in found]
        clocks = {name: answer["ahead"] for name, answer in answers.items()}
        move = self._losses.last(task_id)
        made = [allocation_of(unit, entries, clocks, move, unready=unready) for unit, entries in found.items()]
        made += [Allocation(one, first - 1, Machines.STARTING, reason="its code is on the way") for one in missing]
        made += self._ended_before(plan, elements) if plan else []
        return [replace(one, price_per_hour=rental.price_per_hour) for one in made]

    def without_machines(self, task_id: str, move: Move | None, *, was_asked: bool, is_found: bool) -> list[Allocation]:
        """Of a task that has none: what they had copied, if there were any; else what has become of them.

        is_found: the cloud still tells of them.
        """
        had_some = is_found or was_asked or self._losses.last_seen(task_id) >= (move.attempt if move else 1)
        if had_some and (copied := self._copied(task_id)):
            return copied
        if was_asked and not is_found:
            return self._unseen(task_id)
        lost = move and not is_found and Allocation(task_id, move.attempt - 1, Machines.LOST, reason=move.reason)
        return [lost] if lost else []

    def readable(self, task_id: str | None, ask: Callable[[], list[Allocation]]) -> list[Allocation]:
        """What is told of a task; where its record cannot be read it is silent, and does not hide the others."""
        try:
            return ask()
        except FlowError as error:
            attempt = max(self._losses.last_seen(str(task_id)), 1)
            return [Allocation(task_id, attempt, Machines.SILENT, reason=error.message)]

    def on_record(self, unit: str, nodes: int = 1) -> Allocation | None:
        """Of a task or element whose end is on record: its machines may be gone."""
        end = self._losses.end_of(unit, nodes)
        return ended_allocation(unit, self._record(unit), end, nodes) if end else None

    def copy_names(self, plan: Plan) -> list[str]:
        """What the machines that it has now call what they copy to S3."""
        from flow.providers.copied import names

        move = self._losses.last(plan.task_id)
        return names(plan.task_id, move.attempt if move else 1, self._losses.machines(plan))

    def _by_unit(self, answers: Mapping[str, Mapping[str, Any]], first: int) -> dict[str, dict[str, Any]]:
        """What each machine tells of a task, or of each element of an array. first: the attempt it was rented for."""
        found: dict[str, dict[str, Any]] = {}
        for name, answer in answers.items():
            for entry in answer["tasks"]:
                found.setdefault(entry["id"], {})[name] = entry
                self._note_attempt(entry, first)
        return found

    def _copied(self, task_id: str) -> list[Allocation]:
        """Of machines that have ended themselves: by what they had copied to S3."""
        records = Records(self._home)
        try:
            plan, want = records.get(task_id).plan, records.intent(task_id).want
            if not plan.records or records.final(task_id):
                return []
            from flow.providers.copied import fetch  # which few tasks need

            roots = fetch(plan, self.copy_names(plan), self._record(task_id), self._copies / task_id, os.environ)
        except ResourceNotFoundError:
            return []
        except ProviderError as error:
            attempt = max(self._losses.last_seen(task_id), 1)
            silent = Allocation(task_id, attempt, Machines.SILENT, reason=error.message)
            return [] if want is Want.CANCEL else [silent]
        move = self._losses.last(task_id)
        told = {str(root): program.look(str(root), [task_id]) for root in roots}
        found = self._by_unit(told, move.attempt if move else 1)
        made = [allocation_of(unit, entries, dict.fromkeys(entries, 0.0), move) for unit, entries in found.items()]
        return [*made, *self._ended_before(plan, found)] if made else []

    def _ended_before(self, plan: Plan, elements: Collection[str]) -> list[Allocation]:
        """The elements of an array that are not among these, as they had ended before its machines were rented."""
        if not plan.elements or not self._losses.last(plan.task_id):
            return []
        others = [one for index in plan.elements.indices if (one := f"{plan.task_id}_{index}") not in elements]
        return [found for one in others if (found := self.on_record(one))]

    def _ended_unnoted(self, plan: Plan) -> list[Allocation]:
        """Of a task, or all elements of an array, where a client died between collecting it and noting its end."""
        if Records(self._home).final(plan.task_id):
            return []
        found: list[Allocation] = []
        for unit in self._losses.units(plan):
            if (one := self.on_record(unit, plan.nodes)) is None:
                return []
            found.append(one)
        return found

    def _note_attempt(self, entry: Mapping[str, Any], first: int) -> None:
        """Of a task or element on a machine that was rented for the attempt `first`."""
        unit, attempt = entry["id"], entry["attempt"]
        if attempt >= first:
            self._losses.note_seen(unit, attempt)
        reports = map(report_from_json, entry["reports"].values())
        is_free = any(one is not None and one.cause == "requeue" for one in reports)
        if is_free or attempt > 1:
            before = [one for one in self._losses.free(unit) if one < first]
            self._losses.note_free(unit, {*before, *entry["free"], *([attempt] if is_free else [])})

    def _unseen(self, task_id: str) -> list[Allocation]:
        """Of what was asked for, and does not show: not yet, or not any more."""
        move = self._losses.last(task_id)
        if self._holds.is_new(task_id):
            reason = "is asked for, and does not show yet"
            return [Allocation(task_id, move.attempt - 1 if move else 0, Machines.QUEUED, reason=reason)]
        attempt = max(self._losses.last_seen(task_id), move.attempt if move else 1)
        return self._lost(Allocation(task_id, attempt, Machines.GONE, reason="its machines are gone"))

    def _why_lost(self, rental: Rental, told: Mapping[str, Any], attempt: int) -> str:
        """Why its machines are given up, or were; "" where they are not. attempt: the last that was seen."""
        was_seen = attempt >= rental.attempt
        if rental.home_id != self._home_id():
            return ""
        if rental.state is Machines.GONE:
            return rental.reason
        may_run_again, most = partial(self._losses.may_run_again, str(rental.task_id)), self._fleet.lost_after_seconds
        if rental.state is Machines.LOST:  # its disk may hold what nobody collected: that is not given up at once
            patience = min(_DEAD_SECONDS, most) if not was_seen or may_run_again() else most
            return rental.reason if self._fleet.dead_seconds(rental.rental_id) >= patience else ""
        self._fleet.note_life(rental.rental_id)
        answers = {one.name: told.get(one.name) for one in rental.machines}
        silent = [name for name, one in answers.items() if one is None or isinstance(one, FlowError)]
        if rental.state not in (Machines.STARTING, Machines.UP) or not silent:
            return ""
        if not was_seen:
            is_late = rental.given is not None and time.time() - rental.given > _BOOT_SECONDS
            return f"its machine did not boot within {_BOOT_SECONDS / 60:g} minutes" if is_late else ""
        since = min((at for name in silent if (at := self._fleet.silent_since(name))), default=time.time())
        # what runs where it cannot be asked is given up only for another attempt
        is_late = time.time() - since >= most and rental.state is Machines.UP and may_run_again()
        return f"its machine was out of reach for {most / 60:g} minutes" if is_late else ""

    def _lost(self, whole: Allocation) -> list[Allocation]:
        """Lost for good, but for what had ended before; or with an attempt to follow."""
        if self._losses.may_run_again(str(whole.task_id)):
            return [replace(whole, machines=Machines.LOST)]
        gone, plan = replace(whole, machines=Machines.GONE), self._plan(str(whole.task_id))
        ended = {unit: self.on_record(unit, plan.nodes) for unit in self._losses.units(plan)} if plan else {}
        each = [one or replace(gone, task_id=unit) for unit, one in ended.items()]
        return each if any(ended.values()) else [gone]

    def _plan(self, task_id: str) -> Plan | None:
        with suppress(ResourceNotFoundError):
            return Records(self._home).get(task_id).plan
        return None

    def _record(self, unit: str) -> Path:
        return self._home / "record" / unit
