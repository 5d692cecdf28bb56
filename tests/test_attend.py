"""What is next for a task that its provider cannot see to alone."""

from __future__ import annotations

from math import inf
from pathlib import Path

import pytest

from flow.attend import Do, next_duty, start_attendant
from flow.client import Flow
from flow.dependencies import Fact, met_at
from flow.machines import Allocation, Machines
from flow.plan import Dependency, Plan
from flow.status import Want
from tests.support.processes import is_alive, wait_until

ONE, OTHER = Dependency("task-1"), Dependency("task-2", "failed")
NOW = 1000.0
WAITS = "waits for task-1 to be completed, task-2 to be failed"
RUNNING, OVER = Fact(True, False, False, 10.0), Fact(True, True, True, 20.0)
FAILED, NEVER_RAN = Fact(True, True, False, 30.0), Fact(False, True, False, 5.0)


def plan(**fields: object) -> Plan:
    return Plan("task-3", "n", "ssh", ("true",), after=(ONE, OTHER), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "found", "do", "reason"),
    [
        ({}, (0.0, 0.0), Do.ALLOCATE, ""),
        ({}, (0.0, None), Do.WAIT, WAITS),
        ({}, (None, None), Do.WAIT, WAITS),
        ({}, (0.0, NOW + 60), Do.WAIT, WAITS),
        ({}, (0.0, NOW - 60), Do.ALLOCATE, ""),
        ({}, (None, inf), Do.GIVE_UP, "waited for task-2 to be failed, which cannot be any more"),
        ({"waits_in_vain": True}, (inf, 0.0), Do.WAIT, "waits for task-1 to be completed, which cannot be any more"),
        ({"after_any": True}, (inf, 0.0), Do.ALLOCATE, ""),
        ({"after_any": True}, (inf, None), Do.WAIT, "waits for task-1 to be completed or task-2 to be failed"),
        (
            {"after_any": True}, (inf, inf), Do.GIVE_UP,
            "waited for task-1 to be completed or task-2 to be failed, which cannot be any more",
        ),
    ],
)  # fmt: skip
def test_a_task_is_given_to_its_provider_once_it_may_start(
    fields: dict[str, object], found: tuple[float | None, float | None], do: Do, reason: str
) -> None:
    duty = next_duty(
        plan(**fields), Want.RUN, is_allocated=False, now=NOW, found=dict(zip((ONE, OTHER), found, strict=True))
    )
    assert (duty.do, duty.reason) == (do, reason)


@pytest.mark.parametrize("want", [Want.HOLD, Want.CANCEL])
def test_nothing_is_done_for_what_is_not_wanted(want: Want) -> None:
    for is_allocated in (False, True):
        assert next_duty(plan(), want, is_allocated=is_allocated, now=NOW, found={ONE: 0.0}).do is Do.NOTHING


@pytest.mark.parametrize(
    ("machines", "do"),
    [
        (one, Do.ALLOCATE if one not in (Machines.UP, Machines.PAUSED, Machines.GONE) else Do.NOTHING)
        for one in Machines
    ],
)
def test_machines_are_gathered_until_all_are_there(machines: Machines, do: Do) -> None:
    allocation = Allocation("task-3", 1, machines)
    assert next_duty(plan(nodes=2), Want.RUN, is_allocated=True, now=NOW, allocation=allocation).do is do


@pytest.mark.parametrize("machines", list(Machines))
@pytest.mark.parametrize("want", list(Want))
@pytest.mark.parametrize(("is_allocated", "attempt"), [(True, 1), (True, 3), (False, 1)])
def test_what_is_lost_with_its_machine_is_allocated_anew(
    machines: Machines, want: Want, is_allocated: bool, attempt: int
) -> None:
    """Also where its first machine was lost before it is known to have taken it; nothing else of one node needs it."""
    one = Allocation("task-3", attempt, machines)
    duty = next_duty(plan(), want, is_allocated=is_allocated, now=NOW, allocation=one, found={ONE: None, OTHER: None})
    if want is not Want.HOLD and machines is Machines.LOST:
        assert (duty.do, duty.attempt) == (Do.ALLOCATE, attempt + 1)
    else:
        assert duty.do is (Do.WAIT if want is Want.RUN and not is_allocated else Do.NOTHING)


@pytest.mark.parametrize(
    ("state", "facts", "when"),
    [
        ("completed", [RUNNING], None),
        ("completed", [OVER], 0.0),
        ("completed", [FAILED], inf),
        ("completed", [], inf),
        ("completed", [OVER, RUNNING], None),
        ("failed", [OVER], inf),
        ("failed", [OVER, FAILED], 0.0),
        ("failed", [NEVER_RAN], 0.0),
        ("ended", [FAILED], 0.0),
        ("started", [RUNNING], 0.0),
        ("started", [NEVER_RAN], inf),
        ("started_or_ended", [NEVER_RAN], 0.0),
    ],
)
def test_a_dependency_is_met_open_or_never(state: str, facts: list[Fact], when: float | None) -> None:
    assert met_at(Dependency("task-1", state), facts) == when


def test_a_delay_counts_from_the_last_of_them() -> None:
    assert met_at(Dependency("task-1", "ended", 60.0), [OVER, FAILED]) == 90.0


def test_who_starts_attendants_keeps_no_dead_ones() -> None:
    home = Flow().home
    home.mkdir()
    lock, pids = home / "attend.lock", [0]
    for _ in range(3):
        start_attendant(home)  # there is nothing to do for it
        assert wait_until(lambda: lock.exists() and int(lock.read_text() or 0) not in pids)
        pids.append(int(lock.read_text()))
        assert wait_until(lambda: not is_alive(pids[-1]))
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == pids[-1:]
