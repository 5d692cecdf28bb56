"""What a task waits for: whether that holds, is open, or can never be."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import inf

from flow.plan import Dependency, Plan

STARTED = ("started", "started_or_ended")
PAIRED = "corresponding"


@dataclass(frozen=True, slots=True)
class Fact:
    """What became so far of a task that is waited for, or of one element. `since`: when that was, of the last of it."""

    has_started: bool
    has_ended: bool
    has_completed: bool
    since: float = 0.0


def met_at(one: Dependency, facts: Collection[Fact]) -> float | None:
    """From when on a dependency is met, in seconds since the epoch; inf: it never can be; None: that is open.

    facts: of the task, or of each element of the array; none where nobody knows it any more.
    """
    is_enough = (
        (lambda fact: fact.has_started or fact.has_ended) if one.state in STARTED else lambda fact: fact.has_ended
    )
    if not all(map(is_enough, facts)):
        return None
    if not facts or not holds(one.state, [(fact.has_started, fact.has_completed) for fact in facts]):
        return inf
    return max(fact.since for fact in facts) + one.delay_seconds if one.delay_seconds else 0.0


def holds(state: str, facts: Collection[tuple[bool, bool]]) -> bool:
    """Whether what was waited for is so: of a task or each element of an array, whether it started and completed."""
    if state == "started":
        return all(started for started, _ in facts)
    if state == "failed":  # of an array: any element, as its own state is the worst of theirs
        return not all(completed for _, completed in facts)
    return state != "completed" or all(completed for _, completed in facts)


def when_all(found: Collection[float | None]) -> float | None:
    """The last of them; inf as soon as one never can be; None while one is open."""
    if inf in found:
        return inf
    return None if None in found else max((when for when in found if when is not None), default=0.0)


def ended_before(plan: Plan, plan_of: Callable[[str], Plan | None]) -> set[str]:
    """The tasks and arrays that have ended when this one starts. plan_of: of a task; None where it is not known."""
    found: set[str] = set()
    ahead = _ends_awaited(plan)
    for base in ahead:
        if base not in found:
            found.add(base)
            before = plan_of(base)
            ahead += _ends_awaited(before) if before else []
    return found


def _ends_awaited(plan: Plan) -> list[str]:
    only_some = (*STARTED, PAIRED)
    return [one.task_id.partition("_")[0] for one in plan.after if not (one.state in only_some or plan.after_any)]


def when_met(plan: Plan, found: Mapping[Dependency, float | None], now: float) -> float | None:
    """The same of all that a plan waits for; where any is enough, the first of them."""
    if not plan.after_any:
        return when_all(found.values())
    first = min((when for when in found.values() if when is not None), default=inf)
    return first if first <= now or None not in found.values() else None


def never_met(plan: Plan, found: Mapping[Dependency, float | None]) -> str:
    """What of it can never be, in words."""
    never = [one for one, met in found.items() if met == inf]
    return " or ".join(map(str, never)) if plan.after_any else str(never[0])
