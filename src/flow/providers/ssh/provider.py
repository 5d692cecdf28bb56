"""The SSH provider: tasks on any hosts that ssh reaches; each keeps its own queue, and needs no client."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from flow.channel import Channel
from flow.durable import create_durably
from flow.errors import FlowError, ProviderError, TaskNotFoundError, ValidationError
from flow.gpus import Gpu
from flow.job import runner_job, slurm_job
from flow.machines import Allocation, Capabilities, Machines, Offer
from flow.outbox import outbox_files
from flow.plan import Plan
from flow.providers import Option, VolumeStore
from flow.providers.ssh.fleet import Fleet
from flow.providers.ssh.placing import offers_of, place
from flow.providers.ssh.states import allocation_of
from flow.providers.ssh.volumes import FleetVolumes
from flow.record import Records
from flow.remote import Remote, files_for, tools
from flow.status import Want

_PLACES = "hosts.json"  # in a task's record: what of it is on which host; on disk before any host is asked


class Ssh:
    """Tasks on the hosts of a fleet. `home` is the folder that holds the records."""

    name: ClassVar[str] = "ssh"
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
        self.fleet = Fleet(home, options, self._end_what_is_over)
        self._volumes = FleetVolumes(home, self.fleet, self.allocations, lambda plan: next(iter(self._place(plan))))
        self._attempts: dict[str, int] = {}  # of tasks and elements, as last seen

    @property
    def capabilities(self) -> Capabilities:
        """What the hosts do by themselves."""
        return Capabilities(
            volumes=True, containers=True, arrays=True, retries=True, divides_machines=True, gathers=True
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
        self._ask_all(task_id, "hold", task_id, True)

    def resume(self, task_id: str) -> None:
        """The host sees to the rest."""
        self._ask_all(task_id, "hold", task_id, False)

    def requeue(self, task_id: str) -> None:
        """Told to end, and queued again where it was."""
        self._ask_all(task_id, "ask", task_id, "requeue")

    def send_signal(self, task_id: str, number: int, *, to: str) -> None:
        """By way of the runners."""
        self._ask_all(task_id, "ask", task_id, f"signal {number} {to}")

    def offers(self, gpu: Gpu | None = None) -> list[Offer]:
        """What the hosts that answer have, those that are alike as one."""
        facts, missing = self._facts()
        if not facts and missing:
            raise ProviderError("no host of the fleet answers", suggestions=list(missing.values())[:3])
        return offers_of(facts, gpu)

    def allocate(self, plan: Plan, attempt: int = 1) -> None:
        """Give it to the hosts that are to run it, with what it needs; later attempts are their own doing."""
        places = self._places(plan.task_id) or self._choose(plan)
        indices = plan.elements.indices if plan.elements else ()
        at_once = plan.elements.at_once if plan.elements else None

        def submit(name: str, remote: Remote) -> None:
            own = places[name]
            limit = None if at_once is None else max(at_once // len(places), 1)
            meta = {"rank": 0 if indices else own[0], "indices": [indices[one] for one in own] if indices else []}
            self._submit(remote, plan, {**meta, "at_once": limit})

        self._each(list(places), submit)
        if plan.nodes > 1:
            self._gather(plan, places)

    def allocations(self, task_ids: Collection[str] | None = None) -> list[Allocation]:
        """What the hosts say of them, all asked at once; what is on a host that does not answer is as last seen."""
        bases = list(dict.fromkeys(one.partition("_")[0] for one in task_ids or ()))
        places = {one: self._places(one) for one in bases}
        asked: dict[str, list[str] | None] = {} if task_ids is not None else dict.fromkeys(self.fleet.hosts)
        for one in task_ids or ():
            for name in places[one.partition("_")[0]] or self._where_forgotten(one):
                asked[name] = [*(asked.get(name) or ()), one]
        # asked before looking: who gives one away now is not to have lost it
        given = {one for one in bases if (self.home / "record" / one / "allocated").exists()}
        told = self.fleet.ask_each(list(asked), lambda name, remote: look(remote, asked[name]))
        found: dict[str, dict[str, Any]] = {}
        clocks: dict[str, float] = {}
        known = set()
        for name, answer in told.items():
            if isinstance(answer, FlowError):
                continue
            clocks[name] = answer["ahead"]
            for entry in answer["tasks"]:
                found.setdefault(entry["id"], {})[name] = entry
                known.add((entry["id"].partition("_")[0], name))
                self._attempts[entry["id"]] = entry["attempt"]
        allocations = {one: allocation_of(entries, clocks) for one, entries in found.items()}
        for one in task_ids or ():
            base = one.partition("_")[0]
            for name in (name for name in places[base] if (base, name) not in known):
                for part in self._parts(one, places[base][name]):
                    if unseen := self._unseen(part, name, told[name], is_given=base in given):
                        allocations[part] = unseen
                        self._end_elsewhere(unseen, found.get(part, {}))
        return list(allocations.values())

    def release(self, *task_ids: str) -> None:
        """End what waits or runs on any host; on one that does not answer when it does again."""
        by_host: dict[str, list[str]] = {}
        for one in task_ids:
            for name in self._places(one.partition("_")[0]):
                by_host.setdefault(name, []).append(one)
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

    def _choose(self, plan: Plan) -> dict[str, list[int]]:
        places = self._place(plan)
        folder = self.home / "record" / plan.task_id
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):  # somebody else gives it away at the same time: it goes where they say
            create_durably(folder / _PLACES, json.dumps(places).encode())
        return self._places(plan.task_id)

    def _gather(self, plan: Plan, places: Mapping[str, list[int]]) -> None:
        """Let one host after the other, always in the same order, give its node a turn; then tell all where they meet.

        In this order two tasks never wait for each other; for that, who lost its turn on one host gives back those that
        it has on later ones. Called until all nodes run.
        """
        statuses, attempts, waiting, is_over, has_all = {}, {}, [], False, True
        for name in sorted(places):
            found = self._ask(name, "look", [plan.task_id])["tasks"]
            rank = places[name][0]
            status = json.loads(found[0]["reports"].get(str(rank)) or "{}") if found else {}
            has_turn = bool(status) and (found[0]["runs"] or status["phase"] != "waiting")
            if not has_all:
                if has_turn and status["phase"] == "waiting":
                    self._ask(name, "lease", plan.task_id, False)
                continue
            if not has_turn:
                if found and not found[0]["ended"]:
                    self._ask(name, "lease", plan.task_id, True)
                has_all = False
                continue
            statuses[rank], attempts[name] = status, found[0]["attempt"]
            waiting += [name] if status.get("phase") == "waiting" else []
            is_over |= rank == 0 and bool(found[0]["ended"])
        if not has_all:
            return
        newest = max(attempts.values())
        if any(attempts[name] < newest for name in places if name not in waiting):
            return  # it is about to end, as another node did
        for name in waiting:
            if is_over:  # the first node ended for good before this one began
                self._ask(name, "release", [plan.task_id])
                continue
            self._ask(name, "deliver", plan.task_id, "peers.json", self._meeting(plan, newest, statuses))

    def _meeting(self, plan: Plan, attempt: int, statuses: Mapping[int, Mapping[str, Any]]) -> str:
        """Where the nodes of an attempt meet: what whoever gathers them first says."""
        file = self.home / "record" / plan.task_id / f"meeting-{attempt}.json"
        if not file.exists():
            peers = [statuses[rank]["address"] for rank in sorted(statuses)]
            told = {"attempt": attempt, "peers": peers, "ports": statuses[0]["ports"], "token": os.urandom(16).hex()}
            with suppress(FileExistsError):
                create_durably(file, json.dumps(told).encode())
        return file.read_text()

    def _places(self, task_id: str) -> dict[str, list[int]]:
        """What of a task is on which host: places of elements, or ranks; nothing before it was placed."""
        try:
            places: dict[str, list[int]] = json.loads((self.home / "record" / task_id / _PLACES).read_text())
            return places
        except (FileNotFoundError, ValueError):
            return {}

    # -- what the hosts are asked

    def _submit(self, remote: Remote, plan: Plan, part: Mapping[str, Any]) -> None:
        secrets = {name: text.decode() for name, text in outbox_files(self.home / "record" / plan.task_id).items()}
        request = {
            "task_id": plan.task_id,
            "bundle": plan.bundle,
            "version": tools()[0],
            "job": {
                **runner_job(plan),
                "rank": part["rank"],
                "needs": [f"inbox/{name}" for name in secrets],
                "slurm": slurm_job(plan) if plan.batch else None,
                "mounts": self._mounts(plan),
                "private_mounts": bool(plan.options.get("private_mounts")),
                "numbers": {index: plan.number_of(index) for index in part["indices"]} if plan.batch else {},
            },
            "meta": {**part, **_meta(plan)},
            "inbox": secrets,
            "begin_seconds": max((plan.not_before or 0) - time.time(), 0),
            "marks": self._marks(plan),
        }
        if remote.ask("submit", request).get("missing"):
            remote.send(files_for(self.home, plan.bundle))
            remote.ask("submit", request)

    def _mounts(self, plan: Plan) -> list[dict[str, str]]:
        """As a runner takes them."""
        return self._volumes.job(plan.mounts)

    def _marks(self, plan: Plan) -> list[tuple[str, str]]:
        """Which of the task and its elements are held or cancelled already: names, each with `hold` or `cancel`."""
        record = self.home / "record"
        names = [f"{plan.task_id}_{one}" for one in plan.elements.indices] if plan.elements else []
        known = [plan.task_id, *(name for name in names if (record / name / "intent.json").exists())]
        try:
            wants = [(name, Records(self.home).intent(name).want) for name in known]
        except TaskNotFoundError:  # allocated by who keeps no records
            return []
        return [(name, want.value) for name, want in wants if want is not Want.RUN]

    def _ask_all(self, task_id: str, verb: str, *words: Any) -> None:
        self._each(list(self._places(task_id.partition("_")[0])), lambda _, remote: remote.ask(verb, *words))

    def _ask(self, name: str, verb: str, *words: Any) -> Any:
        """The answer of one host; where there is none, that is noted."""
        answer = self.fleet.ask_each([name], lambda _, remote: remote.ask(verb, *words))[name]
        if isinstance(answer, FlowError):
            raise answer
        return answer

    def _each(self, names: list[str], act: Any) -> None:
        """Of all of them; raises the first error once all were asked."""
        told = self.fleet.ask_each(names, act)
        failed = [one for one in told.values() if isinstance(one, FlowError)]
        if failed:
            raise failed[0]

    def _parts(self, task_id: str, own: Collection[int]) -> list[str]:
        """What of a task, an array or an element is at one of these places: itself, or elements."""
        base, _, index = task_id.partition("_")
        try:
            elements = Records(self.home).get(base).plan.elements
        except TaskNotFoundError:  # allocated by who keeps no records
            elements = None
        if elements is None:
            return [task_id]
        return [name for name in (f"{base}_{elements.indices[one]}" for one in own) if not index or name == task_id]

    def _unseen(self, task_id: str, name: str, told: Any, *, is_given: bool) -> Allocation | None:
        """Of what is on a host that tells nothing of it: as it was last seen, and lost when that has lasted."""
        now = time.time()
        lost = Allocation(task_id, max(self._last_attempt(task_id), 1), Machines.GONE)
        if not isinstance(told, FlowError):
            return replace(lost, reason=f"{name} knows nothing of it any more") if is_given else None
        since = self.fleet.silent_since(name) or now
        if now - since >= self.fleet.lost_after_seconds:
            minutes = self.fleet.lost_after_seconds / 60
            return replace(lost, reason=f"{name} was out of reach for {minutes:g} minutes")
        reason = f"{told.message}, since {time.strftime('%H:%M:%S', time.localtime(since))}"
        return Allocation(task_id, self._last_attempt(task_id), Machines.SILENT, reason=reason)

    def _last_attempt(self, task_id: str) -> int:
        """The attempt that it was last seen in."""
        rows = Records(self.home).rows_of([task_id.partition("_")[0]]) if task_id not in self._attempts else []
        return rows[0].outcome.attempt if rows else self._attempts.get(task_id, 1)

    def _end_elsewhere(self, lost: Allocation, entries: Mapping[str, Mapping[str, Any]]) -> None:
        """The other nodes of a task that is lost with one of them."""
        if lost.machines is Machines.GONE:
            open_ = [name for name, entry in entries.items() if not (entry["ended"] or entry["cancelled"])]
            self.fleet.ask_each(open_, lambda _, remote: remote.ask("release", [lost.task_id]))

    def _end_what_is_over(self, name: str, remote: Remote) -> None:
        """On a host that was silent: what was given up or cancelled meanwhile."""
        open_ = [one["id"] for one in remote.ask("look", None)["tasks"] if not (one["ended"] or one["cancelled"])]
        over = [one for one in open_ if name in self._places(one.partition("_")[0]) and self._is_over(one)]
        if over:
            remote.ask("release", over)

    def _is_over(self, task_id: str) -> bool:
        records = Records(self.home)
        try:
            is_cancelled = records.intent(task_id).want is Want.CANCEL
        except TaskNotFoundError:  # allocated by who keeps no records
            return False
        return is_cancelled or any(records.final(one) for one in {task_id, task_id.partition("_")[0]})

    def _where_forgotten(self, task_id: str) -> list[str]:
        """Where to look for what left its record: on all hosts. Nowhere for what was not placed yet."""
        return [] if (self.home / "record" / task_id.partition("_")[0]).exists() else list(self.fleet.hosts)


def look(remote: Remote, task_ids: list[str] | None) -> dict[str, Any]:
    """What a host tells of tasks, and by how many seconds its clock is `ahead` at least."""
    before = time.time()
    told: dict[str, Any] = remote.ask("look", task_ids)
    return {**told, "ahead": max(told["now"] - time.time(), min(told["now"] - before, 0.0))}


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
