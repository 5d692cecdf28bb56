"""What all clouds share: machines rented for a task and given back after it; between the two they are hosts like any.

A cloud says how machines are asked for, found again and given back. Each machine keeps its own queue, as hosts of the
SSH fleet do, and its guard (`node/guard.py`) sees to the bill while no client is there.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from flow.channel import Channel
from flow.durable import create_durably
from flow.errors import FlowError, ProviderError, QuotaExceededError, ResourceNotFoundError, ValidationError
from flow.machines import Allocation, Capabilities, Machines
from flow.node import host as program
from flow.plan import Plan
from flow.providers.holds import Holds
from flow.providers.losses import Losses
from flow.providers.rental import Machine, Rental, RentedFleet
from flow.providers.ssh.fleet import told_since
from flow.providers.ssh.gathering import gather
from flow.providers.ssh.places import Move
from flow.providers.ssh.provider import Part, Ssh
from flow.providers.ssh.sight import Sight, look
from flow.providers.ssh.states import allocation_of, ended_allocation
from flow.providers.startup import LASTING, READY, ROOT, RUN
from flow.record import Records
from flow.remote import Remote
from flow.status import Want, report_from_json

_BOOT_SECONDS = 3600.0  # after which a machine is not waited for any more; 20 minutes are common
_STOP_SECONDS = 10.0  # beside a task's own grace time
_DEAD_SECONDS = 120.0  # after which a machine that its cloud calls dead is taken to be lost
_TRUSTED_SECONDS = 3.0  # how long what the cloud told of machines is taken to hold, of those that are up or come
_TAKE_COLLECTED = f"sudo -n touch {ROOT}/collected"
_CUT_SECONDS = 60.0  # after which a startup script is taken to be cut off: it takes one or two
_SIGNS = {"lasting": LASTING, "ready": READY, "told": f"{ROOT}/bill.json", "guarded": ROOT}
_STATE = "".join(f"test -e {path} && echo {word}; " for word, path in _SIGNS.items()) + ":"
_TAKE_BILL = f"sudo -n sh -c 'umask 077; cat > {ROOT}/bill.new && mv {ROOT}/bill.new {ROOT}/bill.json'"


class Rented(Ssh):
    """Tasks on machines that a cloud rents out. startup_copy: where a machine has its startup script."""

    startup_copy: ClassVar[str]

    def __init__(self, home: Path, options: Mapping[str, object]) -> None:
        super().__init__(home, options)
        self.fleet: RentedFleet = RentedFleet(home, options)
        self.sight, self.losses = Sight(home, self.fleet), Losses(home)
        self.holds = Holds(home / self.name / "held")
        self.fleet.see_again = lambda *_: None  # what is over there goes with the machine
        self._seen: dict[str, tuple[float, list[Rental]]] = {}  # by task: when, and what
        self._unready: dict[str, float] = {}  # machines whose startup script has not ended, since when
        self._machines: dict[str, list[str]] = {}  # by task: to which there is a way

    # -- what each cloud does

    @abstractmethod
    def rentals(self, task_ids: Collection[str] | None = None) -> list[Rental]:
        """What these tasks have, newest first; without `task_ids` all there is."""

    @abstractmethod
    def bills(self) -> list[Rental]:
        """Everything that costs the project money, without its machines."""

    @abstractmethod
    def rent(self, plan: Plan, attempt: int, machines: int) -> None:
        """Ask for so many machines of the plan's kind, unless they are there."""

    @abstractmethod
    def end(self, rental: Rental) -> None:
        """Give them back, for good. Idempotent."""

    @abstractmethod
    def wake(self, rental: Rental) -> None:
        """Have machines that are paused go on."""

    @abstractmethod
    def way_to(self, rental: Rental, machine: Machine) -> Channel:
        """How to reach a machine."""

    @abstractmethod
    def bill(self, plan: Plan, rental: Rental) -> dict[str, Any]:
        """By what its machines end or pause it: see `node/guard.py`. It holds a key made for this."""

    def goes_on_changing(self, plan: Plan) -> bool:
        """Whether somebody changes its machines, who is to be let; what a client that died had begun is finished."""
        return False

    @abstractmethod
    def forget_task(self, task_id: str, *, is_refused: bool = False) -> None:
        """Once nothing is rented for it any more: remove what else was made for it, as keys.

        is_refused: it never had machines, for which volumes were made in vain.
        """

    # -- the provider

    @property
    def capabilities(self) -> Capabilities:
        """What machines of one task each do by themselves."""
        return Capabilities(containers=True, arrays=True, retries=True, gathers=True, rents=True)

    def allocate(self, plan: Plan, attempt: int = 1) -> None:
        """Ask for machines, once; called again, bring those that are there what they need.

        For the attempt after one that was lost others are asked for, once that is on record and the old ones are gone.
        """
        try:
            self._bring(plan, attempt)
        except (ValidationError, QuotaExceededError) as error:
            if not self.losses.was_asked(plan.task_id):
                raise
            # no refusal of the task, which has machines, or had some, with what it left there
            raise ProviderError(error.message, suggestions=error.suggestions) from error

    def allocations(self, task_ids: Collection[str] | None = None) -> list[Allocation]:
        """What the cloud says of the machines, and what those say of the tasks, all asked at once."""
        bases = None if task_ids is None else list(dict.fromkeys(one.partition("_")[0] for one in task_ids))
        # before looking: it may be given just now
        before = {one: (self.losses.last(one), self.losses.was_asked(one)) for one in bases or ()}
        found: dict[str, Rental] = {}
        for rental in self._rentals(bases):
            if not self._is_left(rental):
                found.setdefault(rental.task_id or rental.rental_id, rental)
        for rental in found.values():
            if rental.state is not Machines.UP:
                self._hang_up(str(rental.task_id))
        told = self._looked_at([one for one in found.values() if self._can_look(one)])
        asking = [(rental.task_id, partial(self._allocations, rental, told)) for rental in found.values()]
        allocations = [one for task_id, ask in asking for one in self._readable(task_id, ask)]
        if task_ids is None:
            return allocations
        by_id = {str(one.task_id): one for one in allocations}
        for one, (move, was_asked) in before.items():
            if one not in found or found[one].state is Machines.GONE:
                ask = partial(self._without_machines, one, move, was_asked=was_asked, is_found=one in found)
                if made := self._readable(one, ask):
                    by_id.pop(one, None)
                    by_id.update((str(each.task_id), each) for each in made)
        asked = set(task_ids)
        whole = {one.partition("_")[0] for one in by_id if "_" not in one}  # arrays of which nothing is seen yet
        for one in asked:
            base = one.partition("_")[0]
            if one != base and base in whole:
                by_id[one] = self._on_record(one) or replace(by_id[base], task_id=one)
        return [by_id[one] for one in by_id if one in asked or one.partition("_")[0] in asked]

    def release(self, *task_ids: str) -> None:
        """What runs is told to end, and its machines are given back when its record was collected; else at once.

        What has ended of itself, and is cancelled, is left to be collected: for that, machines that are paused go on.
        """
        for one in task_ids:
            base, _, index = one.partition("_")
            if self._is_kept(base):
                continue
            has_ended = self._has_ended(base)
            if has_ended:
                self._tell_collected(base)
            rental = self._live(base)
            if rental and not has_ended and self._is_uncollected(rental):
                if rental.state is Machines.PAUSED:
                    self.wake(rental)
                continue
            if rental and self._can_look(rental) and not has_ended and self._ask_to_end(rental, one):
                continue
            if index and not has_ended:  # the others go on; what is not there yet is told when it comes
                continue
            self._give_back(base, rental)

    def channel(self, allocation: Allocation, rank: int = 0) -> Channel:
        """The machine of that rank; this one, where its files were fetched to."""
        (node,) = (one for one in allocation.nodes if one.rank == rank)
        return Channel() if Path(node.instance_id).is_absolute() else super().channel(allocation, rank)

    def give_back(self, rental: Rental) -> None:
        """End it, whosever it is, with what was made for it if it is ours. Raises ProviderError while it is there."""
        if rental.task_id and rental.home_id == self.home_id:
            self._give_back(rental.task_id, rental)
        else:
            self.end(rental)
        there = [one.rental_id for one in self.rentals([rental.name]) if one.state is not Machines.GONE]
        if rental.rental_id in there:
            raise ProviderError(f"`{rental.name}` is still there", suggestions=["try again in a moment"])

    # -- stopping for a while

    def _stop_tasks(self, rental: Rental, seconds: float) -> None:
        """Tell what runs on its machines to end, as before they are taken away, and wait for that."""
        names = [one.name for one in rental.machines]
        told = f"sudo -n sh -c 'echo preempting > {RUN}/notice'"
        self._each(names, lambda _, remote: _done(remote.channel.ask(told)))
        end = time.monotonic() + seconds + _STOP_SECONDS
        while time.monotonic() < end:
            looks = [one for one in self._looked_at([rental]).values() if not isinstance(one, FlowError)]
            if len(looks) == len(names) and not any(entry["runs"] for look in looks for entry in look["tasks"]):
                return
            time.sleep(0.2)

    # -- looking

    def _rentals(self, task_ids: list[str] | None) -> list[Rental]:
        """What the cloud tells; of one task whose machines were up a moment ago only those are asked."""
        known = self._just_seen(task_ids[0]) if task_ids and len(task_ids) == 1 else []
        if known and known[0].state is Machines.UP:
            return known
        found = self.rentals(task_ids)
        for one in task_ids or ():
            self._seen[one] = (time.monotonic(), [rental for rental in found if rental.name == one])
        return found

    def _just_seen(self, task_id: str) -> list[Rental]:
        """What the cloud told of a task a moment ago; nothing where it was not asked."""
        since, known = self._seen.get(task_id, (0.0, []))
        return known if time.monotonic() - since <= _TRUSTED_SECONDS else []

    def _live(self, task_id: str) -> Rental | None:
        """The newest one of a task that is not gone."""
        return next((one for one in self.rentals([task_id]) if one.state is not Machines.GONE), None)

    def _can_look(self, rental: Rental) -> bool:
        """Whether its machines may be asked, and the way to each is known from here on."""
        is_reachable = rental.state is Machines.UP and all(one.target for one in rental.machines)
        is_reachable = is_reachable and not self._is_left(rental)
        if not (rental.task_id and is_reachable and rental.machines and rental.home_id == self.home_id):
            return False
        for one in rental.machines:
            self.fleet.ways[one.name] = self.way_to(rental, one)
        self._machines[rental.task_id] = [one.name for one in rental.machines]
        return True

    def _looked_at(self, rentals: Sequence[Rental]) -> dict[str, Any]:
        """What each machine tells of its task, or why it does not."""
        tasks = {one.name: rental.task_id for rental in rentals for one in rental.machines}
        return self.fleet.ask_each(list(tasks), lambda name, remote: look(remote, [str(tasks[name])])) if tasks else {}

    def _allocations(self, rental: Rental, told: Mapping[str, Any]) -> list[Allocation]:
        task_id, first = str(rental.task_id), rental.attempt
        attempt = self.losses.last_seen(task_id) if rental.task_id else 0
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
        plan = self._plan(task_id) if rental.home_id == self.home_id else None
        if plan and (ended := self._ended_unnoted(plan)):
            return ended
        if why := self._why_lost(rental, told, attempt) or (self.losses.why_given_up(plan) if plan else ""):
            is_cancelled = rental.state is Machines.GONE and self.losses.is_cancelled(task_id)
            return [whole] if is_cancelled else self._lost(replace(whole, attempt=max(attempt, first), reason=why))
        if whole.machines is Machines.QUEUED and attempt:
            whole = replace(whole, machines=Machines.PREEMPTED)
        if whole.machines is Machines.PREEMPTED and was_seen and rental.home_id == self.home_id:
            self.losses.note_preempted(task_id)
        answers = {one.name: told[one.name] for one in rental.machines if one.name in told}
        unheard = Machines.SILENT if was_seen else Machines.STARTING
        if rental.state is not Machines.UP or not answers:
            state = {Machines.LOST: unheard, Machines.UP: Machines.STARTING}.get(rental.state, whole.machines)
            since = self.fleet.silent_since(rental.rental_id) if rental.state is Machines.LOST else None
            return [replace(whole, machines=state, reason=told_since(rental.reason, since))]
        for name, one in answers.items():
            if isinstance(one, FlowError):
                reason = told_since(one.message, self.fleet.silent_since(name)) if was_seen else "its machine boots"
                return [replace(whole, machines=unheard, reason=reason)]
        found = self._by_unit(answers, first)
        elements = [f"{task_id}_{one}" for one in self.losses.elements(plan)] if plan else []
        unready = [name for name, answer in answers.items() if not answer["is_ready"]]
        if not found or (not elements and any(len(entries) < len(answers) for entries in found.values())):
            reason = "its machine gets ready" if unready else "its code is on the way"
            return [replace(whole, machines=Machines.STARTING, reason=reason)]
        missing = [one for one in elements if one not in found]
        clocks = {name: answer["ahead"] for name, answer in answers.items()}
        move = self.losses.last(task_id)
        made = [allocation_of(unit, entries, clocks, move, unready=unready) for unit, entries in found.items()]
        made += [Allocation(one, first - 1, Machines.STARTING, reason="its code is on the way") for one in missing]
        made += self._ended_before(plan, elements) if plan else []
        return [replace(one, price_per_hour=rental.price_per_hour) for one in made]

    def _readable(self, task_id: str | None, ask: Callable[[], list[Allocation]]) -> list[Allocation]:
        """What is told of a task; where its record cannot be read it is silent, and does not hide the others."""
        try:
            return ask()
        except FlowError as error:
            attempt = max(self.losses.last_seen(str(task_id)), 1)
            return [Allocation(task_id, attempt, Machines.SILENT, reason=error.message)]

    def _without_machines(
        self, task_id: str, move: Move | None, *, was_asked: bool, is_found: bool
    ) -> list[Allocation]:
        """Of a task that has none: what they had copied, if there were any; else what has become of them.

        is_found: the cloud still tells of them.
        """
        had_some = is_found or was_asked or self.losses.last_seen(task_id) >= (move.attempt if move else 1)
        if had_some and (copied := self._copied(task_id)):
            return copied
        if was_asked and not is_found:
            return self._unseen(task_id)
        lost = move and not is_found and Allocation(task_id, move.attempt - 1, Machines.LOST, reason=move.reason)
        return [lost] if lost else []

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
        records = Records(self.home)
        try:
            plan, want = records.get(task_id).plan, records.intent(task_id).want
            if not plan.records or records.final(task_id):
                return []
            from flow.providers.copied import fetch  # which few tasks need

            roots = fetch(plan, self._copy_names(plan), self._record(task_id), self._copies / task_id, os.environ)
        except ResourceNotFoundError:
            return []
        except ProviderError as error:
            attempt = max(self.losses.last_seen(task_id), 1)
            silent = Allocation(task_id, attempt, Machines.SILENT, reason=error.message)
            return [] if want is Want.CANCEL else [silent]
        move = self.losses.last(task_id)
        told = {str(root): program.look(str(root), [task_id]) for root in roots}
        found = self._by_unit(told, move.attempt if move else 1)
        made = [allocation_of(unit, entries, dict.fromkeys(entries, 0.0), move) for unit, entries in found.items()]
        return [*made, *self._ended_before(plan, found)] if made else []

    def _copy_names(self, plan: Plan) -> list[str]:
        """What the machines that it has now call what they copy to S3."""
        from flow.providers.copied import names

        move = self.losses.last(plan.task_id)
        return names(plan.task_id, move.attempt if move else 1, self._count(plan))

    def _count(self, plan: Plan) -> int:
        """How many machines it has now, or is to have: of an array no more than elements that have not ended."""
        return min(plan.machines, len(self.losses.elements(plan))) if plan.elements else plan.machines

    def _ended_before(self, plan: Plan, elements: Collection[str]) -> list[Allocation]:
        """The elements of an array that are not among these, as they had ended before its machines were rented."""
        if not plan.elements or not self.losses.last(plan.task_id):
            return []
        others = [one for index in plan.elements.indices if (one := f"{plan.task_id}_{index}") not in elements]
        return [found for one in others if (found := self._on_record(one))]

    def _note_attempt(self, entry: Mapping[str, Any], first: int) -> None:
        """Of a task or element on a machine that was rented for the attempt `first`."""
        unit, attempt = entry["id"], entry["attempt"]
        if attempt >= first:
            self.losses.note_seen(unit, attempt)
        reports = map(report_from_json, entry["reports"].values())
        is_free = any(one is not None and one.cause == "requeue" for one in reports)
        if is_free or attempt > 1:
            before = [one for one in self.losses.free(unit) if one < first]
            self.losses.note_free(unit, {*before, *entry["free"], *([attempt] if is_free else [])})

    def _unseen(self, task_id: str) -> list[Allocation]:
        """Of what was asked for, and does not show: not yet, or not any more."""
        move = self.losses.last(task_id)
        if self.holds.is_new(task_id):
            reason = "is asked for, and does not show yet"
            return [Allocation(task_id, move.attempt - 1 if move else 0, Machines.QUEUED, reason=reason)]
        attempt = max(self.losses.last_seen(task_id), move.attempt if move else 1)
        return self._lost(Allocation(task_id, attempt, Machines.GONE, reason="its machines are gone"))

    # -- what is lost

    def _why_lost(self, rental: Rental, told: Mapping[str, Any], attempt: int) -> str:
        """Why its machines are given up, or were; "" where they are not. attempt: the last that was seen."""
        was_seen = attempt >= rental.attempt
        if rental.home_id != self.home_id:
            return ""
        if rental.state is Machines.GONE:
            return rental.reason
        may_run_again, most = partial(self.losses.may_run_again, str(rental.task_id)), self.fleet.lost_after_seconds
        if rental.state is Machines.LOST:  # its disk may hold what nobody collected: that is not given up at once
            patience = min(_DEAD_SECONDS, most) if not was_seen or may_run_again() else most
            return rental.reason if self.fleet.dead_seconds(rental.rental_id) >= patience else ""
        self.fleet.note_life(rental.rental_id)
        answers = {one.name: told.get(one.name) for one in rental.machines}
        silent = [name for name, one in answers.items() if one is None or isinstance(one, FlowError)]
        if rental.state not in (Machines.STARTING, Machines.UP) or not silent:
            return ""
        if not was_seen:
            is_late = rental.given is not None and time.time() - rental.given > _BOOT_SECONDS
            return f"its machine did not boot within {_BOOT_SECONDS / 60:g} minutes" if is_late else ""
        since = min((at for name in silent if (at := self.fleet.silent_since(name))), default=time.time())
        # what runs where it cannot be asked is given up only for another attempt
        is_late = time.time() - since >= most and rental.state is Machines.UP and may_run_again()
        return f"its machine was out of reach for {most / 60:g} minutes" if is_late else ""

    def _lost(self, whole: Allocation) -> list[Allocation]:
        """Lost for good, but for what had ended before; or with an attempt to follow."""
        if self.losses.may_run_again(str(whole.task_id)):
            return [replace(whole, machines=Machines.LOST)]
        gone, plan = replace(whole, machines=Machines.GONE), self._plan(str(whole.task_id))
        ended = {unit: self._on_record(unit, plan.nodes) for unit in self.losses.units(plan)} if plan else {}
        each = [one or replace(gone, task_id=unit) for unit, one in ended.items()]
        return each if any(ended.values()) else [gone]

    def _give_up(self, plan: Plan, attempt: int) -> None:
        """Put on record that the attempt before was lost, as far as it still is."""
        rentals = [one.rental_id for one in self.rentals([plan.task_id]) if not self._is_left(one)]
        for one in self.allocations([plan.task_id]):
            if one.machines is Machines.LOST and one.attempt == attempt - 1:
                self.losses.note(plan, one, rentals)

    def _is_left(self, rental: Rental) -> bool:
        """Whether it was rented for an attempt that is on record as lost."""
        if not rental.task_id or rental.home_id != self.home_id:
            return False
        move = self.losses.last(rental.task_id)
        return move is not None and rental.attempt < move.attempt

    def _end_left(self, rental: Rental) -> None:
        self._seen.pop(str(rental.task_id), None)
        self._hang_up(str(rental.task_id))
        self.end(rental)

    def _plan(self, task_id: str) -> Plan | None:
        with suppress(ResourceNotFoundError):
            return Records(self.home).get(task_id).plan
        return None

    def _ended_unnoted(self, plan: Plan) -> list[Allocation]:
        """Of a task, or all elements of an array, where a client died between collecting it and noting its end."""
        if self._has_ended(plan.task_id):
            return []
        found: list[Allocation] = []
        for unit in self.losses.units(plan):
            if (one := self._on_record(unit, plan.nodes)) is None:
                return []
            found.append(one)
        return found

    def _on_record(self, unit: str, nodes: int = 1) -> Allocation | None:
        """Of a task or element whose end is on record: its machines may be gone."""
        end = self.losses.end_of(unit, nodes)
        return ended_allocation(unit, self._record(unit), end, nodes) if end else None

    def _parts(self, task_id: str) -> dict[str, list[str]]:
        """By machine, what they call it, once they can be reached."""
        rental = self._live(task_id.partition("_")[0])
        if rental is None or not self._can_look(rental):
            return {}
        return {one.name: [task_id] for one in rental.machines}

    # -- bringing

    def _bring(self, plan: Plan, attempt: int) -> None:
        if attempt > 1:
            self._give_up(plan, attempt)
        seen = (one for one in self._just_seen(plan.task_id) if one.state is not Machines.GONE)
        rental = next(seen, None) or self._live(plan.task_id)
        if rental and self._is_left(rental):
            self._end_left(rental)
            rental = self._live(plan.task_id)
        if rental and self._is_left(rental):  # it goes with the next call
            return
        if rental is None:
            if not self.losses.was_asked(plan.task_id):
                self._ask_for(plan)
            return
        self.losses.note_asked(plan.task_id)  # before anything of it may run, so that it is not asked for again
        if self.goes_on_changing(plan):
            return
        if rental.state is Machines.PAUSED and rental.ended_with:
            self.wake(rental)
        elif rental.state is Machines.UP and rental.plan_hash == plan.hash:
            self._deliver(plan, rental)

    def _ask_for(self, plan: Plan) -> None:
        move = self.losses.last(plan.task_id)
        self.holds.open(plan.task_id)
        try:
            self.rent(plan, move.attempt if move else 1, self._count(plan))
        except (ValidationError, QuotaExceededError):  # refused, so that there is nothing to come
            self.forget_task(plan.task_id, is_refused=move is None)
            self.holds.close(plan.task_id)
            raise

    def _deliver(self, plan: Plan, rental: Rental) -> None:
        """To each machine first how it pauses its bill, then the task; to several where they meet."""
        if not self._can_look(rental):
            return
        states = self.fleet.ask_each(
            [one.name for one in rental.machines], lambda _, remote: remote.channel.ask(_STATE).stdout.decode().split()
        )
        words = {name: one for name, one in states.items() if not isinstance(one, FlowError)}
        cut = [name for name, one in words.items() if "lasting" not in one and self._is_cut(name)]
        if cut:  # as by a preemption: the cloud runs it at the first boot only
            self._each(cut, lambda _, remote: _done(remote.channel.ask(f"sudo -n bash {self.startup_copy}")))
        if len(words) < len(states) or any("guarded" not in one for one in words.values()):
            return  # it boots
        untold = [name for name, one in words.items() if "told" not in one]
        if untold:
            if not self.holds.is_open(plan.task_id):  # given back meanwhile by another: a key is to be revoked
                self.holds.note_answer(plan.task_id)
            bill, ranks = self.bill(plan, rental), {one.name: one.rank for one in rental.machines}

            def tell(name: str, remote: Remote) -> None:
                text = json.dumps({**bill, **self._copying(plan, ranks[name])}).encode()
                _done(remote.channel.ask(_TAKE_BILL, stdin=text))

            self._each(untold, tell)
        if any("ready" not in one for one in words.values()):
            return
        indices = self.losses.elements(plan)
        places = _spread(rental, len(indices))

        def submit(name: str, remote: Remote) -> None:
            own = places[name]
            rank, elements = (0, [indices[one] for one in own]) if indices else (own[0], [])
            at_once = 1 if plan.elements and plan.elements.at_once else None
            units = {str(one): f"{plan.task_id}_{one}" for one in elements} or {"": plan.task_id}
            free = (
                {one: self.losses.free_attempts(unit, rental.attempt) for one, unit in units.items()}
                if rental.attempt > 1
                else {}
            )
            self._submit(remote, plan, Part(plan.task_id, rank, elements, at_once, rental.attempt, free))

        self._each(list(places), submit)
        if plan.nodes > 1:
            ranks = {name: own[0] for name, own in places.items()}
            gather(plan.task_id, ranks, self._record(plan.task_id), self._ask_each)

    def _copying(self, plan: Plan, rank: int) -> dict[str, Any]:
        """What of its bill says where a machine copies the task's record to."""
        if not plan.records:
            return {}
        from flow.providers.copied import order

        return {"records": order(plan, self._record(plan.task_id), self._copy_names(plan), rank)}

    def _is_cut(self, name: str) -> bool:
        """Whether a machine has been up for so long without being ready for its next boot."""
        return time.monotonic() - self._unready.setdefault(name, time.monotonic()) > _CUT_SECONDS

    # -- giving back

    def _has_ended(self, task_id: str) -> bool:
        """Whether its end is on record, and with it all that its machines had to tell."""
        return Records(self.home).final(task_id) is not None

    def _is_kept(self, task_id: str) -> bool:
        """Whether it has ended of itself, and its machines are to stay."""
        with suppress(ResourceNotFoundError):
            records = Records(self.home)
            is_kept = records.get(task_id).plan.keep and records.intent(task_id).want is not Want.CANCEL
            if is_kept and records.final(task_id):
                self.holds.close(task_id)
            return is_kept
        return False

    def _is_uncollected(self, rental: Rental) -> bool:
        """Whether its machine has told that its task has ended, which was cancelled before anybody collected it."""
        return rental.has_ended and self.losses.is_cancelled(str(rental.task_id)) and not self._is_left(rental)

    def _ask_to_end(self, rental: Rental, task_id: str) -> bool:
        """Whether something of the task has not ended on machines that answer; it is told to.

        Or whether all has: that is collected first.
        """
        looks = self._looked_at([rental]).items()
        told = {name: one["tasks"] for name, one in looks if not isinstance(one, FlowError)}
        open_ = [name for name, entries in told.items() if any(not one["ended"] for one in entries)]
        if not open_:
            return len(told) == len(rental.machines) and all(told.values())
        answers = self.fleet.ask_each(open_, lambda _, remote: remote.ask("release", [task_id]))
        return any(not isinstance(one, FlowError) for one in answers.values())

    def _tell_collected(self, task_id: str) -> None:
        """Machines that were just reached end what they cost by themselves, whatever becomes of this client."""
        if names := self._machines.get(task_id):
            self.fleet.ask_each(names, lambda _, remote: remote.channel.ask(_TAKE_COLLECTED))
            self._hang_up(task_id)

    def _give_back(self, task_id: str, rental: Rental | None) -> None:
        """And prove it gone; what may still appear, as it was asked for just now, is looked for again."""
        self._seen.pop(task_id, None)
        self._hang_up(task_id)
        if rental:
            self.end(rental)
        if (rental is None and self.holds.may_come(task_id)) or self._live(task_id) is not None:
            return
        self.forget_task(task_id)
        shutil.rmtree(self._copies / task_id, ignore_errors=True)
        self.holds.close(task_id)

    def _hang_up(self, task_id: str) -> None:
        """End the connections to its machines: one to a machine that is gone would be waited for."""
        for name in self._machines.pop(task_id, ()):
            self.fleet.hang_up(name)

    @property
    def _copies(self) -> Path:
        """Of what machines had that have ended themselves, until it is in the record."""
        return self.home / self.name / "copied"

    @property
    def home_id(self) -> str:
        """What tells this home's tasks from those of other clients of the project."""
        file = self.home / "id"
        if not file.exists():
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(FileExistsError):
                create_durably(file, os.urandom(8).hex().encode())
        return file.read_text()


def _spread(rental: Rental, elements: int) -> dict[str, list[int]]:
    """The rank of each machine; of an array the places of the elements that are its part."""
    machines = sorted(rental.machines, key=lambda one: one.rank)
    if not elements:
        return {one.name: [one.rank] for one in machines}
    return {one.name: list(range(number, elements, len(machines))) for number, one in enumerate(machines)}


def _done(answer: Any) -> None:
    if answer.returncode:
        said = answer.stderr.decode(errors="replace").strip()
        raise ProviderError(f"a machine does not take what it needs: {said or shlex.join(answer.args)[:80]}")
