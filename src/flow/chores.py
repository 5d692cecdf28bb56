"""What a client does for tasks beside what it is asked: each duty of `attend.py` carried out."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING

from flow.attend import Do, Duty, next_duty, start_attendant
from flow.dependencies import PAIRED, Fact, met_at
from flow.errors import AuthenticationError, FlowError, UnknownProfileError
from flow.machines import Allocation, Machines
from flow.plan import Dependency, Plan
from flow.status import Outcome, TaskStatus, Want

if TYPE_CHECKING:
    from flow.client import Flow
    from flow.task import Task


def give(client: Flow, task: Task) -> None:
    """Have the provider run a task that is acknowledged, once it may start. Raises what `allocate` does."""
    capabilities, plan = client.provider(task.provider).capabilities, task.plan
    if capabilities.dependencies or not plan.after:
        task.allocate()
        is_open = _needs_client(client, plan)
    else:
        found = {one: _met_at(client, one, plan) for one in plan.after}
        want = client.records.intent(task.task_id).want
        duty = next_duty(plan, want, is_allocated=False, now=time.time(), found=found)
        _do(client, task, duty)
        is_open = duty.do is Do.WAIT or (duty.do is Do.ALLOCATE and _needs_client(client, plan))
    if is_open:
        start_attendant(client.home)
    if _may_move(client, plan):
        client.notes.append("should its machine be lost, it runs again on another while this one is on: see `retries`")


def attend(client: Flow, plans: dict[str, Plan]) -> bool:
    """Do what is next for every task that needs a client for it; whether any will need one again.

    plans: of the tasks that were looked at before, to be kept for the next time. Raises AuthenticationError where all
    that need one are at providers that do not take our key: a client with another one is to come.
    """
    client.give_acknowledged()  # an attendant that is about to go starts no other: it would have the same key
    waiting = set(client.records.unallocated())
    refused: dict[str, AuthenticationError] = {}  # by provider
    watched: dict[str, list[str]] = {}
    rented: dict[str, list[str]] = {}
    for row in client.records.rows(unfinished=True):
        with suppress(FlowError):  # what stands in the way of one must not hide the others
            capabilities = client.provider(row.provider).capabilities
            if capabilities.rents:
                rented.setdefault(row.provider, []).append(row.task_id)
                waiting.discard(row.task_id)
            elif capabilities.moves or (capabilities.gathers and row.nodes > 1):
                plan = plans.setdefault(row.task_id, client.records.get(row.task_id).plan)
                if _needs_client(client, plan):
                    watched.setdefault(row.provider, []).append(row.task_id)
    is_needed = bool(waiting)
    for name, task_ids in rented.items():
        try:
            is_needed |= _see_to_all_rented(client, name, task_ids)
        except AuthenticationError as error:
            refused[name] = error
        except FlowError:
            is_needed = True
    for name, task_ids in watched.items():
        is_needed |= _see_to_all(client, name, task_ids, plans)
    is_needed |= _give_back(client, refused)
    if refused and not is_needed:
        raise next(iter(refused.values()))
    return is_needed


def _give_back(client: Flow, refused: dict[str, AuthenticationError]) -> bool:
    """See that nothing is rented for tasks that have ended, or are not known any more; whether we see to more."""
    seen_to = set()
    for name, task_id in [one for one in client.held() if one[0] not in refused]:
        with suppress(UnknownProfileError):  # nobody can, while it is not there
            provider, records = client.provider(name), client.records
            seen_to.add(name)
            try:
                is_over = records.final(task_id) or not records.rows_of([task_id])
                if is_over or records.intent(task_id).want is Want.CANCEL:  # also where the first request failed
                    provider.release(task_id)
            except AuthenticationError as error:
                refused[name] = error
            except FlowError:
                pass  # it is asked for again
    return bool(seen_to - refused.keys())


def _needs_client(client: Flow, plan: Plan) -> bool:
    """Whether something may have to be done for it once it was allocated."""
    capabilities = client.provider(plan.provider).capabilities
    return capabilities.rents or (capabilities.gathers and plan.nodes > 1) or _may_move(client, plan)


def _may_move(client: Flow, plan: Plan) -> bool:
    """Whether it may run again on other machines than those that it is lost with."""
    return client.provider(plan.provider).capabilities.moves and plan.retries > 0 and not plan.region


def _see_to_all(client: Flow, provider: str, task_ids: Collection[str], plans: Mapping[str, Plan]) -> bool:
    """See to the machines of tasks, or of their elements; whether that may be needed again."""
    is_needed = True
    with suppress(FlowError):  # it is asked again, and what is rented is given back meanwhile
        found = client.provider(provider).allocations(task_ids)
        is_needed = False
        for allocation in found:
            is_open = True
            with suppress(FlowError):
                is_open = _see_to(client, plans[(allocation.task_id or "").partition("_")[0]], allocation)
            is_needed |= is_open
    return is_needed


def _see_to(client: Flow, plan: Plan, allocation: Allocation) -> bool:
    """See to the machines of a task or element; whether that may be needed again."""
    task_id = allocation.task_id or ""
    want = client.records.intent(task_id).want
    duty = next_duty(plan, want, is_allocated=True, now=time.time(), allocation=allocation)
    if duty.do is Do.ALLOCATE:
        client.task_of(plan.task_id).allocate(duty.attempt)
    may_retry = plan.retries > 0 and want is Want.RUN and allocation.machines is not Machines.GONE
    return duty.do is Do.ALLOCATE or may_retry


def _see_to_all_rented(client: Flow, provider: str, task_ids: Collection[str]) -> bool:
    """The same of machines that cost money, to the end of each task; one look tells of all of them.

    Raises FlowError where that cannot be had.
    """
    found: dict[str, list[Allocation]] = {task_id: [] for task_id in task_ids}
    for one in client.provider(provider).allocations(task_ids):
        found[(one.task_id or "").partition("_")[0]].append(one)
    is_needed, waiting = False, set(client.records.unallocated())
    for task_id, allocations in found.items():
        is_open = True
        with suppress(FlowError):
            task = client.task_of(task_id)
            is_open = _see_to_rented(client, task, allocations, is_allocated=task_id not in waiting)
        is_needed |= is_open
    return is_needed


def _see_to_rented(client: Flow, task: Task, found: Collection[Allocation], *, is_allocated: bool) -> bool:
    want = client.records.intent(task.task_id).want
    task.see(found)
    client.records.note_outcomes({task.task_id: task.outcome})
    if task.status.is_final:
        return False
    # of an array some may still have to be brought to their machine
    one = next((each for each in found if each.machines is Machines.STARTING), next(iter(found), None))
    if is_allocated or (one and one.machines is Machines.LOST):  # what waits for its turn is given by `give`
        _do(client, task, next_duty(task.plan, want, is_allocated=True, now=time.time(), allocation=one, rents=True))
    return True


def _do(client: Flow, task: Task, duty: Duty) -> None:
    client.records.note_wait(task.task_id, duty.reason if duty.do is Do.WAIT else "")
    if duty.do is Do.GIVE_UP:
        outcome = Outcome(TaskStatus.CANCELLED, reason=duty.reason, ended=time.time())
        client.records.set_final(task.task_id, outcome)
        client.records.note_outcomes({task.task_id: outcome})
        client.records.mark_allocated(task.task_id)
    elif duty.do is Do.ALLOCATE:
        client.records.set_intents(_unpaired(client, task.plan), Want.CANCEL)
        task.allocate(duty.attempt)


def _met_at(client: Flow, one: Dependency, plan: Plan) -> float | None:
    facts = [_fact(outcome) for outcome in _outcomes(client, one.task_id)]
    if one.state != PAIRED or not plan.elements:
        return met_at(one, facts)
    if not facts or not all(fact.has_ended for fact in facts):
        return None if facts else inf
    return inf if len(_without_pair(client, one, plan)) == len(plan.elements.indices) else 0.0


def _unpaired(client: Flow, plan: Plan) -> list[str]:
    """The elements that can never start, as that of another array did not complete."""
    pairs = [one for one in plan.after if one.state == PAIRED]
    return sorted({element for one in pairs for element in _without_pair(client, one, plan)})


def _without_pair(client: Flow, one: Dependency, plan: Plan) -> list[str]:
    """The same of one array, all of which has ended; an element without a counterpart waits for the whole of it."""
    array = client.task_of(one.task_id).plan.elements
    there = array.indices if array else ()
    found = []
    for index in plan.elements.indices if plan.elements else ():
        task = client.task_of(f"{one.task_id}_{index}" if index in there else one.task_id).refresh()
        if task.status is not TaskStatus.COMPLETED:
            found.append(f"{plan.task_id}_{index}")
    return found


def _outcomes(client: Flow, task_id: str) -> Collection[Outcome]:
    """What a task or each element of an array has come to; nothing where it is not known any more."""
    rows = client.records.rows_of([task_id.partition("_")[0]])
    if not rows:
        return ()
    if "_" in task_id:
        return [client.task_of(task_id).refresh().outcome]
    if rows[0].state.is_final:
        return [rows[0].outcome]
    look = client.look_at(rows).get(task_id)
    return [] if look is None else (look.elements.values() or [look.outcome])


def _fact(outcome: Outcome) -> Fact:
    state = outcome.state
    return Fact(
        outcome.attempt > 0, state.is_final, state is TaskStatus.COMPLETED, outcome.ended or outcome.started or 0.0
    )
