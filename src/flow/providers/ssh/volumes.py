"""The volumes of a fleet: a folder on one of its hosts each; other hosts reach it by sshfs, if they can."""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from flow.dependencies import ended_before
from flow.durable import Lock, write_durably
from flow.errors import (
    FlowError,
    ProviderError,
    ResourceNotFoundError,
    StorageError,
    TaskNotFoundError,
    ValidationError,
    did_you_mean,
)
from flow.machines import Allocation, Machines, Volume
from flow.mounts import VOLUME, Mount
from flow.node import host_volumes as program
from flow.plan import Plan
from flow.providers.ssh.fleet import Fleet
from flow.providers.ssh.placing import fits, room
from flow.record import Records
from flow.remote import Remote
from flow.status import Want

_NEEDS = ("mount_points", "fuse", "remains", "sshfs")
_FIELDS = [one.name for one in fields(Volume) if one.name not in ("used_by", "folder", "region")]


# How long a volume is held for a task that no host knows: one of ours may be about to be written down, one of another
# client's may wait there for its time.
_OURS_SECONDS, _THEIRS_SECONDS = 60.0, 86400.0


class _Remote(Remote):
    """What a host refuses is no sign that it is away."""

    def refusal(self, program: str, said: str) -> FlowError:
        if program == "volume":
            return ResourceNotFoundError(f"there is no volume `{said}`", suggestions=["see `flow volume list`"])
        if program == "file":
            return StorageError(said)
        return super().refusal(program, said)


class FleetVolumes:
    """Folders as volumes; their size is noted and not enforced, and they cost nothing. A volume's region is its host.

    allocations: as the provider's. choose: the host for a volume that a plan's task is to have.
    """

    def __init__(
        self,
        home: Path,
        fleet: Fleet,
        allocations: Callable[[Collection[str]], Sequence[Allocation]],
        choose: Callable[[Plan], str],
    ) -> None:
        self._records, self._fleet, self._allocations, self._choose = Records(home), fleet, allocations, choose
        self._client = f"{socket.gethostname()}:{home}"
        self._file = home / "ssh" / "volumes.json"  # what each host told last
        self._remotes: dict[str, Remote] = {}

    def create(
        self, name: str, size_gb: int, *, interface: str = "block", region: str | None = None, plan: Plan | None = None
    ) -> Volume:
        """Make an empty folder for it, on the host `region`; else where the plan's task fits, or most is free.

        Of clients that make one of a name at the same moment on several hosts, all but the first give way.
        """
        if region is not None:
            self._fleet.remote(region)  # or it is refused
        with self._alone():
            # who finds one looks again: it may give way to one that was made before it, and is there now to be seen
            found = self._first_called(name) and self._first_called(name)
            if found:
                return _made_before(*found, size_gb=size_gb, interface=interface, region=region)
            host = region or (self._choose(plan) if plan else self._roomiest())
            volume = Volume(f"vol-{os.urandom(6).hex()}", name, size_gb, interface, host, time.time(), 0.0)
            values = {one: getattr(volume, one) for one in _FIELDS}
            self._ask(host, "make", values)
            # looked for once more, now that whoever makes one later finds this one
            found = self._first_called(name) or (host, values)
            if found[1]["volume_id"] == volume.volume_id:
                return _volume(*found)
            with contextlib.suppress(ResourceNotFoundError):  # the other one is on the same host
                self._ask(host, "remove", volume.volume_id)
            self._listed()
            return _made_before(*found, size_gb=size_gb, interface=interface, region=region)

    def price_per_month(self, size_gb: int, *, interface: str = "block", region: str | None = None) -> float:
        """Nothing."""
        return 0.0

    def list(self) -> Sequence[Volume]:
        """What the hosts have, and what one that does not answer had; what ended tasks should have taken goes now."""
        found = [_volume(*one) for one in self._listed()]
        return sorted(found, key=lambda one: one.created or 0.0, reverse=True)

    def delete(self, volume_id: str) -> None:
        """Remove the folder, with what is in it."""
        volume = _volume(*self._find(self._listed(), volume_id))
        users = volume.used_by or self._ask_of(volume_id, "remove")
        if users:
            raise ValidationError(
                f"the volume `{volume.name}` is used by `{users[0]}`",
                suggestions=[f"end it first: `flow cancel {users[0]}`"],
            )

    def attach(self, volume_id: str, plan: Plan, *, ephemeral: bool = False) -> str:
        """Leave the task's name in the volume's folder."""
        values = self._known(volume_id)[1]
        mark = {"client": self._client, "ephemeral": ephemeral}
        may = {_base(plan.task_id)} if values["interface"] == "block" else None
        others = self._ask_of(volume_id, "hold", plan.task_id, mark, may and sorted(may))
        if others and may is not None:
            may |= ended_before(plan, self._plan_of) | self._over(others)
            others = self._ask_of(volume_id, "hold", plan.task_id, mark, sorted(may))
        if others:
            holder = min(others)
            raise ValidationError(
                f"the block volume `{values['name']}` is held by `{holder}`",
                suggestions=[
                    f"start after it, with `depends_on: {holder}:ended`",
                    "share a volume made with `--interface file`",
                ],
            )
        return self.source_of(volume_id)

    def detach(self, volume_id: str, task_id: str) -> None:
        """Take the task's name away."""
        self._ask(self._known(volume_id)[0], "let_go", {volume_id: [task_id]})

    # -- for the provider

    def source_of(self, volume_id: str) -> str:
        """As `node/sshfs.py` takes it: it is the folder itself on the volume's own host."""
        host, values = self._known(volume_id)
        ways = dict.fromkeys((self._told()[host]["way"], self._fleet.hosts[host].target))
        return f"{','.join(one for one in ways if one)}:{values['folder']}"

    def job(self, mounts: Sequence[Mount]) -> builtins.list[dict[str, str]]:
        """Mounts as a runner takes them."""
        return [
            {"kind": "sshfs", "source": self.source_of(one.source), "target": one.target}
            if one.kind == VOLUME
            else {"kind": one.kind, "source": one.source, "target": one.target}
            for one in mounts
        ]

    def hosts_for(
        self, plan: Plan, facts: Mapping[str, Mapping[str, Any]], missing: Mapping[str, str]
    ) -> tuple[dict[str, Mapping[str, Any]], set[str], Sequence[str]]:
        """The hosts that can have all volumes of the plan, which of them have them themselves, why others cannot.

        Others are only asked where the volumes' own host has no room for all of it. Raises ProviderError where a
        volume's host does not answer.
        """
        at = {one: self._known(one.source)[0] for one in plan.mounts if one.kind == VOLUME and one.source}
        if not at:
            return dict(facts), set(), []
        for mount, host in at.items():
            if host not in facts:
                why = missing.get(host, "it is not in the fleet any more")
                raise ProviderError(f"the volume `{mount.name}` is on {host}: {why}")
        near = {name for name in facts if set(at.values()) <= {name}}
        asked = _asked(plan, facts, near)
        told = self._fleet.ask_each(sorted(asked - near), lambda name, _: self._why_out_of_reach(name, at))
        reasons = {name: str(why) for name, why in told.items() if why}
        if plan.region in reasons:
            raise ValidationError(
                reasons[plan.region],
                suggestions=[
                    f"run it on {next(iter(at.values()))}",
                    "or see to it that `ssh` gets from one to the other",
                ],
            )
        return {name: facts[name] for name in facts if name in asked and name not in reasons}, near, [*reasons.values()]

    def _why_out_of_reach(self, name: str, at: Mapping[Mount, str]) -> str:
        for mount, host in at.items():
            if host != name:
                why = self._remote(name).ask("why_out_of_reach", self.source_of(mount.source))
                if why:
                    return f"`{name}` cannot have the volume `{mount.name}`, which is on {host}: {why}"
        return ""

    # -- who holds one

    def _over(self, marks: Mapping[str, Mapping[str, Any]]) -> set[str]:
        """Which of these tasks have ended, by what is noted of each where it holds a volume: `client`, `age`."""
        machines: dict[str, list[Machines]] = {}
        for one in self._allocations(list(marks)) if marks else ():
            for name in {one.task_id or "", _base(one.task_id or "")}:
                machines.setdefault(name, []).append(one.machines)
        over = {name for name in marks if all(one is Machines.GONE for one in machines.get(name, [None]))}
        return over | {name for name in marks if name not in machines and self._is_over(name, marks[name])}

    def _is_over(self, task_id: str, mark: Mapping[str, Any]) -> bool:
        """The same of a task that no host knows."""
        try:
            is_cancelled = self._records.intent(task_id).want is Want.CANCEL
            return is_cancelled or any(self._records.final(one) for one in {task_id, _base(task_id)})
        except TaskNotFoundError:
            return bool(mark["age"] > (_OURS_SECONDS if mark["client"] == self._client else _THEIRS_SECONDS))

    def _plan_of(self, task_id: str) -> Plan | None:
        try:
            return self._records.get(task_id).plan
        except TaskNotFoundError:
            return None

    # -- what the hosts tell

    def _listed(self) -> Sequence[tuple[str, dict[str, Any]]]:
        """Each volume with its host. Holders that have ended are let go."""
        hosts = list(self._fleet.hosts)
        told = self._fleet.ask_each(hosts, lambda name, _: self._remote(name).ask("volumes"))
        for one in told.values():
            if isinstance(one, StorageError):
                raise one
        here = {name: one for name, one in told.items() if not isinstance(one, FlowError)}
        holders = {
            task: mark for one in here.values() for each in one["volumes"] for task, mark in each["holders"].items()
        }
        over = self._over(holders) if holders else set()
        for name, one in here.items():
            gone = {each["volume_id"]: [task for task in each["holders"] if task in over] for each in one["volumes"]}
            if any(gone.values()):
                here[name] = self._ask(name, "let_go", {each: tasks for each, tasks in gone.items() if tasks})
        before = self._told()
        known = {name: here.get(name) or before[name] for name in hosts if name in here or name in before}
        if known != before:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_durably(self._file, json.dumps(known).encode())
        return [(name, volume) for name, one in known.items() for volume in one["volumes"]]

    def _first_called(self, name: str) -> tuple[str, dict[str, Any]] | None:
        """The oldest volume of that name, by the clocks of the hosts."""
        found = [one for one in self._listed() if one[1]["name"] == name]
        return min(found, key=lambda one: (one[1]["created"] or 0.0, one[1]["volume_id"]), default=None)

    def _known(self, volume_id: str) -> tuple[str, dict[str, Any]]:
        """Where it was seen last; else where it is found."""
        hosts = self._fleet.hosts
        known = [(name, one) for name, told in self._told().items() if name in hosts for one in told["volumes"]]
        found = next((one for one in known if one[1]["volume_id"] == volume_id), None)
        return found or self._find(self._listed(), volume_id)

    def _told(self) -> dict[str, dict[str, Any]]:
        try:
            told: dict[str, dict[str, Any]] = json.loads(self._file.read_text())
            return told
        except (FileNotFoundError, ValueError):
            return {}

    def _find(self, volumes: Sequence[tuple[str, dict[str, Any]]], volume_id: str) -> tuple[str, dict[str, Any]]:
        for name, one in volumes:
            if one["volume_id"] == volume_id:
                return name, one
        names = [word for _, one in volumes for word in (one["name"], one["volume_id"])]
        raise ResourceNotFoundError(
            f"there is no volume `{volume_id}`", suggestions=[*did_you_mean(volume_id, names), "see `flow volume list`"]
        )

    def _roomiest(self) -> str:
        told = self._told()
        answers = [name for name in self._fleet.hosts if name in told and self._fleet.silent_since(name) is None]
        if not answers:
            raise ProviderError("no host of the fleet answers", suggestions=["see `flow host list`"])
        return max(answers, key=lambda name: round(told[name]["free_gb"]))

    def _remote(self, name: str) -> Remote:
        if name not in self._remotes:
            host = self._fleet.remote(name)
            self._remotes[name] = _Remote(host.channel, host.folder, program, _NEEDS, host.setting)
        return self._remotes[name]

    def _ask(self, name: str, verb: str, *words: Any) -> Any:
        answer = self._fleet.ask_each([name], lambda one, _: self._remote(one).ask(verb, *words))[name]
        if isinstance(answer, FlowError):
            raise answer
        return answer

    def _ask_of(self, volume_id: str, verb: str, *words: Any) -> Any:
        """The answer of its host, which may not be there."""
        host, values = self._known(volume_id)
        try:
            return self._ask(host, verb, volume_id, *words)
        except ProviderError as error:
            raise ProviderError(
                f"the volume `{values['name']}` is on {host}: {error.message}", suggestions=error.suggestions
            ) from error

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Of two clients of this home, one makes a volume after the other."""
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with Lock(self._file.with_suffix(".lock")):
            yield


def _made_before(host: str, values: Mapping[str, Any], *, size_gb: int, interface: str, region: str | None) -> Volume:
    """A volume of the name that is asked for, if it is as asked, and empty. Raises ValidationError otherwise."""
    made = _volume(host, values)
    if values["is_empty"] and region in (None, host) and (made.size_gb, made.interface) == (size_gb, interface):
        return made
    raise ValidationError(
        f"there is a volume `{made.name}` already", suggestions=["take another name", "see `flow volume list`"]
    )


def _asked(plan: Plan, facts: Mapping[str, Mapping[str, Any]], near: set[str]) -> set[str]:
    """The hosts that a plan's task may go to: those that are near its volumes, if they have room for it now."""
    if plan.region is not None:
        return {plan.region} & facts.keys()
    count = (plan.elements.at_once or len(plan.elements.indices)) if plan.elements else 1
    have_room = sum(room(plan, facts[name]) for name in near if fits(plan, facts[name]))
    return near if plan.nodes == 1 and have_room >= count else set(facts)


def _base(task_id: str) -> str:
    """The array of an element; any other task as it is."""
    return task_id.partition("_")[0]


def _volume(host: str, values: Mapping[str, Any]) -> Volume:
    own = {name: values[name] for name in _FIELDS if name in values}
    return Volume(**own, region=host, used_by=tuple(values["holders"]), folder=f"{host}:{values['folder']}")
