"""The SSH provider: tasks on any hosts that ssh reaches; each keeps its own queue, and needs no client."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from flow.channel import Channel
from flow.errors import FlowError, ProviderError, TaskNotFoundError, ValidationError
from flow.gpus import Gpu
from flow.job import runner_job, slurm_job
from flow.machines import Allocation, Capabilities, Machines, Offer
from flow.outbox import RECORDS, outbox_files
from flow.plan import Plan
from flow.providers import Option, VolumeStore
from flow.providers.ssh.fleet import Fleet
from flow.providers.ssh.gathering import gather
from flow.providers.ssh.places import Move, Places, put_end
from flow.providers.ssh.placing import moves, offers_of, place
from flow.providers.ssh.sight import Sight
from flow.providers.ssh.volumes import FleetVolumes
from flow.record import Records
from flow.remote import Remote, files_for, tools
from flow.status import Want


class Ssh:
    """Tasks on the hosts of a fleet. `home` is the folder that holds the records."""

    name: ClassVar[str] = "ssh"
    scratch: ClassVar[str] = ""  # a folder of the machines for what tasks can do without
    options: ClassVar[tuple[Option, ...]] = (
        Option("hosts", list, "the machines, as ssh knows them"),
        Option("folder", str, "the folder for tasks on each host", "~/.flow-host"),
        Option("lost_after_minutes", float, "how long a host may be out of reach before its tasks are lost", 30.0),
        Option("python", str, "Python 3.8 or newer of the hosts", "python3"),
        Option("ssh_config", Path, "a file in place of ~/.ssh/config"),
    )

    def __init__(self, home: Path, options: Mapping[str, object]) -> None:
        self.home = home
        self._settings = options
        self.fleet = Fleet(home, options)
        self.sight = Sight(home, self.fleet)

    @property
    def capabilities(self) -> Capabilities:
        """What the hosts do by themselves."""
        hosts = 0
        with suppress(ValidationError):  # of a line that cannot be read: who asks the hosts is told
            hosts = len(self.fleet.hosts)
        return Capabilities(
            max_nodes=hosts or None,
            volumes=True,
            containers=True,
            arrays=True,
            retries=True,
            divides_machines=True,
            gathers=True,
            moves=True,
        )

    @property
    def volumes(self) -> VolumeStore | None:
        """Folders of hosts."""
        return self._volumes

    @property
    def steering(self) -> Ssh:
        """Itself: the hosts do all of it."""
        return self

    def hold(self, task_id: str) -> None:
        """Kept from starting; what runs goes on, and waits once it is requeued."""
        self._ask_all(task_id, "hold", True)

    def resume(self, task_id: str) -> None:
        """The host sees to the rest."""
        self._ask_all(task_id, "hold", False)

    def requeue(self, task_id: str) -> None:
        """Told to end, and queued again where it was."""
        self._ask_all(task_id, "ask", "requeue")

    def send_signal(self, task_id: str, number: int, *, to: str) -> None:
        """By way of the runners."""
        self._ask_all(task_id, "ask", f"signal {number} {to}")

    def offers(self, gpu: Gpu | None = None) -> list[Offer]:
        """What the hosts that answer have, those that are alike as one."""
        facts, missing = self._facts()
        if not facts and missing:
            raise ProviderError("no host of the fleet answers", suggestions=list(missing.values())[:3])
        return offers_of(facts, gpu)

    def allocate(self, plan: Plan, attempt: int = 1) -> None:
        """Give it to the hosts that are to run it, with what it needs; what was lost before `attempt` to other ones.

        Attempts on the same host are its own doing. Raises ValidationError for what no host can run, ProviderError
        for all else: what was given away once is not refused any more.
        """
        places = self._places(plan.task_id) or self._choose(plan)
        try:
            self._give(plan, places, attempt)
        except ValidationError as error:  # as a host has no such name any more
            raise ProviderError(error.message, suggestions=error.suggestions) from error

    @property
    def _volumes(self) -> FleetVolumes:
        return FleetVolumes(self.home, self.fleet, self.allocations, lambda plan: next(iter(self._place(plan))))

    def _give(self, plan: Plan, places: Places, attempt: int) -> None:
        if attempt > 1:
            places = self._move(plan, places, attempt)
        if not places.moves:
            self._each(
                list(places.first), lambda name, remote: self._submit(remote, plan, _first_part(plan, places, name))
            )
        for move in (move for move in places.newest_moves if not places.is_given(move)):
            part = partial(_moved_part, plan, places, move)
            self._each(list(move.hosts), lambda name, remote, part=part: self._submit(remote, plan, part(name)))
            places.mark_given(move)
        if plan.nodes > 1 and places.ranks:
            gather(places.part, places.ranks, self._record(plan.task_id), self._ask_each)

    def allocations(self, task_ids: Collection[str] | None = None) -> list[Allocation]:
        """What the hosts say of them, all asked at once; what is on a host that does not answer is as last seen."""
        places = {base: self._places(base) for base in {one.partition("_")[0]: None for one in task_ids or ()}}
        return list(self.sight.look(task_ids, places)[0].values())

    def release(self, *task_ids: str) -> None:
        """End what waits or runs on any host; on one that does not answer when it does again."""
        by_host: dict[str, list[str]] = {}
        for one in task_ids:
            for name, parts in self._parts(one).items():
                by_host.setdefault(name, []).extend(parts)
        self._each(list(by_host), lambda name, remote: remote.ask("release", by_host[name]))

    def channel(self, allocation: Allocation, rank: int = 0) -> Channel:
        """The host of that rank."""
        node = next(one for one in allocation.nodes if one.rank == rank)
        return self.fleet.remote(node.instance_id).channel

    # -- where it goes

    def _facts(self) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Of the hosts that answer; and why others do not."""
        hosts = list(self.fleet.hosts)
        if not hosts:
            raise ValidationError(
                "the fleet has no hosts", suggestions=["add one with `flow host add gpu1`, as ssh knows it"]
            )
        told = self.fleet.ask_each(hosts, lambda _, remote: remote.ask("facts"))
        facts = {name: one for name, one in told.items() if not isinstance(one, FlowError)}
        return facts, {name: one.message for name, one in told.items() if isinstance(one, FlowError)}

    def _place(self, plan: Plan) -> dict[str, list[int]]:
        facts, missing = self._facts()
        if not facts:
            raise ProviderError("no host of the fleet answers", suggestions=list(missing.values())[:3])
        able, near, reasons = self._volumes.hosts_for(plan, facts, missing)
        try:
            return place(plan, able, missing=missing, near=near)
        except ValidationError as error:
            error.suggestions = (*reasons, *error.suggestions)
            if missing:  # one of them might take it
                raise ProviderError(error.message, suggestions=list(error.suggestions)) from error
            raise

    def _choose(self, plan: Plan) -> Places:
        self._places(plan.task_id).place(self._place(plan))
        return self._places(plan.task_id)

    def _move(self, plan: Plan, places: Places, attempt: int) -> Places:
        """Decide where that runs again of which the attempt before this one was lost; where all of it is then.

        On record, with the loss, before any host is asked. A move is on record once: `places` is from before the look,
        so that one which somebody else makes meanwhile is not followed by another.
        """
        found, seen = self.sight.look([plan.task_id], {plan.task_id: places})
        lost = [one for one in found.values() if one.machines is Machines.LOST and one.attempt == attempt - 1]
        new = [one for one in lost if not ((move := places.move_of(str(one.task_id))) and move.attempt == attempt)]
        if new:
            gone = {str(one.task_id): list(seen[str(one.task_id)].lost) for one in new}
            facts, missing = self._facts()
            able, near, _ = self._volumes.hosts_for(plan, facts, missing)
            for move in moves(plan, places, new, gone, (able, near, missing)):
                if self._note_loss(move, plan.nodes):  # else a host is back, and its end has come here meanwhile
                    places.add(move)
        places = self._places(plan.task_id)  # also with what somebody else has moved meanwhile
        for one in lost:
            if move := places.move_of(str(one.task_id)):
                self._note_loss(move, plan.nodes)
        if new:
            self.sight.look([plan.task_id], {plan.task_id: places})  # where it was, what is left of it is ended
        return places

    def _note_loss(self, move: Move, nodes: int) -> bool:
        """Record the attempts of which nobody is to tell more; whether the last of them had not ended before."""
        lost = {"v": 1, "phase": "ended", "cause": "lost", "reason": move.reason, "ended": time.time()}
        lost["given_up"] = True
        for attempt in range(1, move.attempt):
            put_end(self._record(move.unit), attempt, nodes, lost)
        return self.sight.is_given_up(move.unit, [move.attempt - 1], nodes)

    def _parts(self, task_id: str) -> dict[str, list[str]]:
        """By host, what they call a task, an array or an element."""
        return self._places(task_id).parts(task_id)

    def _places(self, task_id: str) -> Places:
        """Where the task, or the array of that element, is."""
        return Places(self._record(task_id.partition("_")[0]))

    def _record(self, task_id: str) -> Path:
        return self.home / "record" / task_id

    # -- what the hosts are asked

    def _submit(self, remote: Remote, plan: Plan, part: Part) -> None:
        files = outbox_files(self._record(plan.task_id))
        secrets = {name: text.decode() for name, text in files.items() if name != RECORDS}
        request = {
            "task_id": part.name,
            "bundle": plan.bundle,
            "version": tools()[0],
            "job": {
                **runner_job(plan),
                "rank": part.rank,
                "first_attempt": part.first_attempt,
                "free_attempts": dict(part.free_attempts),
                "needs": [f"inbox/{name}" for name in secrets],
                "slurm": slurm_job(plan) if plan.batch else None,
                "mounts": self._mounts(plan),
                "scratch": self.scratch,
                "private_mounts": bool(plan.options.get("private_mounts")),
                "numbers": {index: plan.number_of(index) for index in part.indices} if plan.batch else {},
            },
            "meta": {
                **_meta(plan),
                **({"gpu_kind": None} if self.capabilities.rents else {}),  # the cloud's own names may be others
                **{name: getattr(part, name) for name in ("rank", "indices", "at_once", "first_attempt")},
            },
            "inbox": secrets,
            "begin_seconds": max((plan.not_before or 0) - time.time(), 0),
            "marks": self._marks(plan, part),
        }
        if remote.ask("submit", request).get("missing"):
            remote.send(files_for(self.home, plan.bundle))
            if remote.ask("submit", request).get("missing"):
                raise ProviderError(
                    f"`{remote.channel.prefix[-1]}` has lost what it was just sent",
                    suggestions=[f"see that nothing removes files from `{remote.folder}` there"],
                )

    def _mounts(self, plan: Plan) -> list[dict[str, str]]:
        """As a runner takes them."""
        return self._volumes.job(plan.mounts)

    def _marks(self, plan: Plan, part: Part) -> list[tuple[str, str]]:
        """Which of the task and its elements are held or cancelled already: the host's names, each with what it is."""
        names = [(plan.task_id, part.name)]
        names += [(f"{plan.task_id}_{one}", f"{part.name}_{one}") for one in part.indices]
        known = [one for one in names if one[0] == plan.task_id or (self._record(one[0]) / "intent.json").exists()]
        try:
            wants = [(there, Records(self.home).intent(here).want) for here, there in known]
        except TaskNotFoundError:  # allocated by who keeps no records
            return []
        return [(name, want.value) for name, want in wants if want is not Want.RUN]

    def _ask_all(self, task_id: str, verb: str, *words: Any) -> None:
        """Of all that it is given to."""
        parts = self._parts(task_id)
        self._each(list(parts), lambda name, remote: [remote.ask(verb, one, *words) for one in parts[name]])

    def _ask_each(self, names: Collection[str], verb: str, *words: Any) -> dict[str, Any]:
        """The answers of hosts; where there is none, that is noted."""
        return self._each(names, lambda _, remote: remote.ask(verb, *words))

    def _each(self, names: Collection[str], act: Any) -> dict[str, Any]:
        """Of all of them; raises the first error once all were asked."""
        told = self.fleet.ask_each(list(names), act)
        failed = [one for one in told.values() if isinstance(one, FlowError)]
        if failed:
            raise failed[0]
        return {name: one for name, one in told.items() if not isinstance(one, FlowError)}


class Part(NamedTuple):
    """What one host is given of a task: all of it, one of its nodes, or elements."""

    name: str
    rank: int
    indices: list[int]
    at_once: int | None
    first_attempt: int
    free_attempts: Mapping[str, int] = MappingProxyType({})  # by index ("": the task): before, and no retries


def _first_part(plan: Plan, places: Places, host: str) -> Part:
    own, indices = places.first[host], plan.elements.indices if plan.elements else ()
    return Part(
        plan.task_id, 0 if indices else own[0], [indices[one] for one in own if indices], _at_once(plan, places), 1
    )


def _moved_part(plan: Plan, places: Places, move: Move, host: str) -> Part:
    indices = [] if move.index is None else [move.index]
    return Part(move.part, move.hosts.index(host), indices, _at_once(plan, places), move.attempt)


def _at_once(plan: Plan, places: Places) -> int | None:
    """How many elements may run on each host."""
    limit = plan.elements.at_once if plan.elements else None
    return None if limit is None else max(limit // len(places.first), 1)


def _meta(plan: Plan) -> dict[str, Any]:
    """What a host's keeper decides by, and what is asked of a task that it knows."""
    return {
        "hash": plan.hash,
        "created": time.time(),
        "priority": plan.priority,
        "cpus": plan.cpus,
        "memory_gb": plan.memory_gb,
        "gpus": plan.gpus,
        "gpu_kind": plan.gpu_kind,
        "is_gang": plan.nodes > 1,
    }
