"""Which host takes what of a plan: a task, each element of an array, each node of a gang."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flow.errors import ProviderError, ValidationError
from flow.gpus import Gpu
from flow.machines import Allocation, Offer
from flow.plan import Plan
from flow.providers.ssh.places import Move, Places

_NEEDS = ("cpus", "memory_gb", "gpus", "gpu_kind")  # what of a plan a host counts


def offers_of(facts: Mapping[str, Mapping[str, Any]], gpu: Gpu | None) -> list[Offer]:
    """What hosts have: none of their GPUs, or 1, 2, … of them; `available`: on how many alike that is free now."""
    free: dict[tuple[Gpu | None, float, float], int] = {}
    names: dict[tuple[Gpu | None, float, float], list[str]] = {}
    for name, host in facts.items():
        kinds = [one["kind"] for one in host["gpus"]]
        wanted = [Gpu(kinds[0], count) for count in range(1, len(kinds) + 1)] if kinds else []
        for one in [None, *wanted]:
            if gpu is None or (one and gpu.kind in (one.kind, "gpu")):
                has_room = ((one and one.count) or 0) <= len(kinds) - _used(host, "gpus")
                key = (one, host["cpus"], host["memory_gb"])
                free[key] = free.get(key, 0) + int(has_room and _used(host, "cpus") < host["cpus"])
                names.setdefault(key, []).append(name)
    found = [
        Offer("ssh", str(key[0] or "cpu"), *key, 0.0, available=count, hosts=tuple(names[key]))
        for key, count in free.items()
    ]
    return sorted(found, key=lambda one: ((one.gpu and one.gpu.count) or 0, one.cpus, one.instance_type))


def place(
    plan: Plan, facts: Mapping[str, Mapping[str, Any]], *, missing: Mapping[str, str], near: Collection[str] = ()
) -> dict[str, list[int]]:
    """The places of the array's elements, or the nodes' ranks, by host; `missing`: hosts that do not answer, and why.

    A host that has room now comes before one that has not, those that are `near` its volumes before others, and the
    least loaded first. Raises ValidationError where no host can ever take it.
    """
    able = {name: host for name, host in facts.items() if fits(plan, host) and plan.region in (None, name)}
    count = len(plan.elements.indices) if plan.elements else plan.nodes
    if not able or (not plan.elements and plan.nodes > len(able)):
        raise ValidationError(_why_none(plan, facts, len(able)), suggestions=_advice(missing))
    loads = {name: _load(host) for name, host in able.items()}
    if plan.elements and plan.elements.at_once:  # each host is to run one of them at least
        able = {name: able[name] for name in sorted(able, key=loads.__getitem__)[: plan.elements.at_once]}
    rooms = {name: room(plan, host) for name, host in able.items()}
    share = {name: _share(plan, host) for name, host in able.items()}
    placed: dict[str, list[int]] = {}
    for number in range(count):
        free = [name for name in able if plan.elements or name not in placed]
        best = min(free, key=lambda name: (rooms[name] <= 0, name not in near, loads[name], len(able[name]["gpus"])))
        placed.setdefault(best, []).append(number)
        loads[best] += share[best]
        rooms[best] -= 1
    return placed


def moves(
    plan: Plan,
    places: Places,
    lost: Sequence[Allocation],
    gone: Mapping[str, Collection[str]],
    told: tuple[Mapping[str, Mapping[str, Any]], Collection[str], Mapping[str, str]],
) -> Iterator[Move]:
    """Where each of these runs again: on hosts that have not lost it before, or on none if no other can ever take it.

    gone: what each was lost with now, by task or element. told: facts, near and missing, as `place` takes them.
    Raises ProviderError where a host might take it that does not answer.
    """
    facts, near, missing = told
    for one in lost:
        unit = str(one.task_id)
        before, index = places.move_of(unit), unit.partition("_")[2]
        left = {*gone[unit], *(before.lost if before else ())}
        placed: dict[str, list[int]] = {}
        try:
            others = {name: host for name, host in facts.items() if name not in left}
            placed = place(replace(plan, elements=None), others, missing=missing, near=near)
        except ValidationError as error:
            if set(missing) - left:
                raise ProviderError(error.message, suggestions=list(error.suggestions)) from error
        for name in placed:  # the next of them finds it there
            facts[name]["waiting"].append({**{each: getattr(plan, each) for each in _NEEDS}, "count": 1})
        yield Move(
            task_id=plan.task_id,
            index=int(index) if index else None,
            place=plan.elements.indices.index(int(index)) if plan.elements and index else 0,
            number=places.number(unit) + 1,
            attempt=one.attempt + 1,
            hosts=tuple(sorted(placed, key=lambda name: placed[name][0])),
            lost=tuple(sorted(left)),
            reason=one.reason if placed else f"{one.reason}, and no other host can take it",
        )


def fits(plan: Plan, host: Mapping[str, Any]) -> bool:
    """Whether it could take one node or element, were nothing else there."""
    cards = [one for one in host["gpus"] if plan.gpu_kind in (None, "gpu", one["kind"])]
    return host["cpus"] >= plan.cpus and host["memory_gb"] >= (plan.memory_gb or 0) and len(cards) >= plan.gpus


def _used(host: Mapping[str, Any], what: str) -> float:
    """What runs and waits there needs of it."""
    used = float(sum((one[what] or 0) * one["count"] for one in (*host["running"], *host["waiting"])))
    return max(used, len(host["gpus_taken"])) if what == "gpus" else used


def _load(host: Mapping[str, Any]) -> float:
    """The part of it that is used or waited for: of its scarcest."""
    cards = len(host["gpus"])
    return max(_used(host, "cpus") / float(host["cpus"]), _used(host, "gpus") / cards if cards else 0.0)


def _share(plan: Plan, host: Mapping[str, Any]) -> float:
    cards = len(host["gpus"])
    return float(max(plan.cpus / host["cpus"], plan.gpus / cards if cards else 0.0))


def room(plan: Plan, host: Mapping[str, Any]) -> float:
    """How many more like it could start there at once."""
    most = [(host["cpus"] - _used(host, "cpus")) // plan.cpus]
    if plan.gpus:
        most.append((len(host["gpus"]) - _used(host, "gpus")) // plan.gpus)
    if plan.memory_gb:
        most.append((host["memory_gb"] - _used(host, "memory_gb")) // plan.memory_gb)
    return float(min(most))


def needs(plan: Plan) -> str:
    """What it asks of a host, in words."""
    gpus = f"{plan.gpus} {plan.gpu_kind or 'GPU'}, " if plan.gpus else ""
    memory = f", {plan.memory_gb:g} GB of memory" if plan.memory_gb else ""
    return f"{gpus}{cpu_text(plan.cpus)}{memory}"


def cpu_text(count: float) -> str:
    """A number of CPUs, in words."""
    return f"{count:g} CPU{'s' * (count != 1)}"


def _why_none(plan: Plan, facts: Mapping[str, Mapping[str, Any]], able: int) -> str:
    if plan.region and plan.region not in facts:
        return f"`{plan.region}` is no host of the fleet that answers: there is {', '.join(facts)}"
    if able:
        return f"{plan.nodes} nodes are asked for, and {able} of the fleet's hosts have {needs(plan)}"
    have = "; ".join(f"{name} has {_has(host)}" for name, host in facts.items())
    return f"no host of the fleet has {needs(plan)}: {have}" if facts else "no host of the fleet answers"


def _has(host: Mapping[str, Any]) -> str:
    cards = [one["kind"] for one in host["gpus"]]
    gpus = f"{len(cards)} {cards[0]}, " if cards else ""
    return f"{gpus}{cpu_text(host['cpus'])}, {host['memory_gb']:g} GB"


def _advice(missing: Mapping[str, str]) -> list[str]:
    return [*(f"`{name}` was not asked: {why}" for name, why in missing.items()), "add a host with `flow host add`"]
