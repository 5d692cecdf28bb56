"""What is next to be done for a task by some client, as its provider cannot do it alone."""

from __future__ import annotations

import contextlib
import enum
import fcntl
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from types import MappingProxyType

from flow.dependencies import never_met, when_met
from flow.detached import start_python
from flow.machines import Allocation, Capabilities, Machines
from flow.node.remains import is_locked, unmarked
from flow.plan import Dependency, Plan
from flow.status import Outcome, TaskStatus, Want

LOCK = "attend.lock"  # in Flow's home; held by the attendant, of which there is one
START = "attend.start"  # beside it; held by one that begins


# Of several nodes: some may have to be told where they meet.
_SCATTERED = (Machines.QUEUED, Machines.STARTING, Machines.PREEMPTED, Machines.SILENT)


class Do(enum.Enum):
    """What there is to do."""

    NOTHING = "nothing"
    WAIT = "wait"  # and look again
    ALLOCATE = "allocate"  # or ask once more: machines are gathered one by one, or new ones take the place of lost ones
    GIVE_UP = "give up"  # as it can never start


@dataclass(frozen=True, slots=True)
class Duty:
    """`reason`: what the task waits for, or why it can never start. `attempt`: the one that is to be allocated."""

    do: Do
    reason: str = ""
    attempt: int = 1


def next_duty(
    plan: Plan,
    want: Want,
    *,
    is_allocated: bool,
    now: float,
    found: Mapping[Dependency, float | None] = MappingProxyType({}),
    allocation: Allocation | None = None,
    rents: bool = False,
) -> Duty:
    """What to do now for a task or element that has not ended. found: when each of `plan.after` is met, see `met_at`.
    rents: whether its machines cost money, so that somebody must be there when it ends.

    Everything in it is idempotent: who does it may die at any time, and another one begin again.
    """
    if allocation and allocation.machines is Machines.LOST and want is not Want.HOLD:
        return Duty(Do.ALLOCATE, attempt=allocation.attempt + 1)  # a cancel is told to machines that are being asked
    if want is not Want.RUN:
        return Duty(Do.NOTHING)
    if is_allocated:
        open_ = (*_SCATTERED, Machines.PAUSED) if rents else _SCATTERED if plan.nodes > 1 else ()
        is_open = allocation is not None and allocation.machines in open_
        return Duty(Do.ALLOCATE if is_open else Do.WAIT if rents else Do.NOTHING)
    when = when_met(plan, found, now)
    if when == inf:
        never = f"{never_met(plan, found)}, which cannot be any more"
        return Duty(Do.WAIT, f"waits for {never}") if plan.waits_in_vain else Duty(Do.GIVE_UP, f"waited for {never}")
    if when is None or when > now:
        return Duty(Do.WAIT, "waits for " + (" or " if plan.after_any else ", ").join(map(str, plan.after)))
    return Duty(Do.ALLOCATE)


def have_attended(
    home: Path, capabilities: Capabilities, nodes: int, outcome: Outcome, allocations: Collection[Allocation]
) -> None:
    """Start an attendant where something is to be done for a task that was seen so."""
    is_open = outcome.state in (TaskStatus.PENDING, TaskStatus.STARTING, TaskStatus.PREEMPTED)
    is_lost = any(one.machines is Machines.LOST for one in allocations)
    is_rented = capabilities.rents and not outcome.state.is_final
    if is_rented or (capabilities.gathers and nodes > 1 and is_open) or (capabilities.moves and is_lost):
        start_attendant(home)


def start_attendant(home: Path) -> None:
    """Have a process see to what tasks need, detached from this one and its terminal, unless one does already.

    Nor where one begins to: what it starts with is locked until it has the other lock, or is gone.
    """
    if is_locked(home / LOCK):
        return
    own = {"FLOW_HOME": str(home), "FLOW_SCHEDULER": str(home)}  # begun by a task, it is no part of it
    with contextlib.suppress(OSError), (home / START).open("a+") as start:
        fcntl.flock(start, fcntl.LOCK_EX | fcntl.LOCK_NB)
        start_python(
            ["-m", "flow.attendant"], log=home / "attend.log", env={**unmarked(os.environ), **own}, stdin=start
        )
