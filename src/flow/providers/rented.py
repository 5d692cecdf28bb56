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
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from flow.channel import Channel
from flow.durable import create_durably
from flow.errors import FlowError, ProviderError, QuotaExceededError, ResourceNotFoundError, ValidationError
from flow.machines import Allocation, Capabilities, Machines
from flow.plan import Plan
from flow.providers.holds import Holds
from flow.providers.losses import Losses
from flow.providers.rental import Machine, Rental, RentedFleet
from flow.providers.rented_sight import RentedSight
from flow.providers.ssh.gathering import gather
from flow.providers.ssh.provider import Part, Ssh
from flow.providers.ssh.sight import Sight, look
from flow.providers.startup import LASTING, READY, ROOT, RUN
from flow.record import Records
from flow.remote import Remote
from flow.status import Want

_STOP_SECONDS = 10.0  # beside a task's own grace time
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
        self.rented = RentedSight(
            home, self.fleet, self.losses, self.holds, home_id=lambda: self.home_id, copies=self._copies
        )
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
        found, told = self._look(bases)
        if bases and len(bases) == 1 and any(isinstance(one, FlowError) for one in told.values()):
            self._seen.pop(bases[0], None)  # while that was waited for, they may have been given back
            found, told = self._look(bases)
        asking = [(rental.task_id, partial(self.rented.allocations, rental, told)) for rental in found.values()]
        allocations = [one for task_id, ask in asking for one in self.rented.readable(task_id, ask)]
        if task_ids is None:
            return allocations
        by_id = {str(one.task_id): one for one in allocations}
        for one, (move, was_asked) in before.items():
            if one not in found or found[one].state is Machines.GONE:
                ask = partial(self.rented.without_machines, one, move, was_asked=was_asked, is_found=one in found)
                if made := self.rented.readable(one, ask):
                    by_id.pop(one, None)
                    by_id.update((str(each.task_id), each) for each in made)
        over = {one.partition("_")[0] for one in by_id if by_id[one].machines in (Machines.GONE, Machines.LOST)}
        if any(self.losses.last(one) != move for one, (move, _) in before.items() if one in over or one not in found):
            return self.allocations(task_ids)  # somebody else has noted a loss, and it goes on elsewhere
        asked = set(task_ids)
        whole = {one.partition("_")[0] for one in by_id if "_" not in one}  # arrays of which nothing is seen yet
        for one in asked:
            base = one.partition("_")[0]
            if one != base and base in whole:
                by_id[one] = self.rented.on_record(one) or replace(by_id[base], task_id=one)
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

    def _look(self, task_ids: list[str] | None) -> tuple[dict[str, Rental], dict[str, Any]]:
        """The newest that each task has, or what is of no task; and what each machine tells, or why it does not."""
        found: dict[str, Rental] = {}
        for rental in self._rentals(task_ids):
            if not self._is_left(rental):
                found.setdefault(rental.task_id or rental.rental_id, rental)
        for rental in found.values():
            if rental.state is not Machines.UP:
                self._hang_up(str(rental.task_id))
        return found, self._looked_at([one for one in found.values() if self._can_look(one)])

    def _rentals(self, task_ids: list[str] | None) -> list[Rental]:
        """What the cloud tells; of one task whose machines were up a moment ago only those are asked."""
        known = self._just_seen(task_ids[0]) if task_ids and len(task_ids) == 1 else []
        if known and known[0].state is Machines.UP and not self._is_left(known[0]):
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

    # -- after a loss

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
        self._forget_machines(str(rental.task_id), rental)
        self.end(rental)

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
            self.rent(plan, move.attempt if move else 1, self.losses.machines(plan))
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

        return {"records": order(plan, self._record(plan.task_id), self.rented.copy_names(plan), rank)}

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
        self._forget_machines(task_id, rental)
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

    def _forget_machines(self, task_id: str, rental: Rental | None) -> None:
        """They are given back: whether they answered is of no use any more."""
        names = {*self._machines.get(task_id, ()), *(one.name for one in (rental.machines if rental else ()))}
        self._hang_up(task_id)
        for name in names:
            self.fleet.note_life(name)

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
