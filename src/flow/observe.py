"""A task's state as it is now: what its provider says of the machines, with what the runners reported there."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from flow.channel import Channel
from flow.collect import collect, is_collected
from flow.errors import FlowError, ProviderError, StorageError
from flow.machines import Allocation, Machines, Report
from flow.providers import Provider
from flow.record import Records
from flow.status import Intent, Outcome, TaskStatus, Want, derive, fold, read_report, report_from_json

_TRIED = (TaskStatus.FAILED, TaskStatus.LOST)


def observe(
    provider: Provider, records: Records, task_id: str, *, nodes: int, allocations: Collection[Allocation]
) -> tuple[Outcome, dict[str, Outcome]]:
    """The state of a task from what its provider said, and of each element where it is an array."""
    outcomes = {one.task_id or "": _derive(provider, records, one, nodes) for one in allocations}
    if task_id in outcomes:
        outcome = outcomes.pop(task_id)
    elif outcomes:
        outcome = fold(outcomes.values())
    else:
        final = records.final(task_id)  # by whoever gave it up
        outcome = final or derive(records.intent(task_id), None, {}, nodes)
        if outcome.state is TaskStatus.PENDING and not outcome.reason:
            outcome = replace(outcome, reason=records.wait_reason(task_id.partition("_")[0]))
    if outcomes and not provider.capabilities.same_machine:
        allocations = _keep_ended(provider, records, outcomes, allocations)
    if outcome.state.is_final and not provider.capabilities.same_machine:
        if outcome.state is TaskStatus.LOST and (final := records.final(task_id)):  # by who has given them back since
            return final, outcomes
        try:
            left_out = collect(provider, records, allocations)
        except ProviderError:  # somebody else has, perhaps, and let go of the machines
            final = records.final(task_id)
            if final is None:
                raise
            return final, outcomes
        outcome = records.set_final(task_id, _with_left_out(outcome, left_out))
        if provider.capabilities.rents:
            with contextlib.suppress(FlowError):  # else the attendant does
                provider.release(task_id)
    elif outcome.state.is_final:
        with contextlib.suppress(StorageError):  # a home that can only be read
            _record_untold(records, {task_id: outcome, **outcomes}, task_id, nodes=nodes, allocations=allocations)
    return outcome, outcomes


def _with_left_out(outcome: Outcome, left_out: Collection[str]) -> Outcome:
    """What a task has come to, with what of its files could not be brought here."""
    if not left_out:
        return outcome
    first, *others = left_out
    told = f"not copied: {first}" + (f", and {len(others)} more" if others else "")
    return replace(outcome, reason=f"{outcome.reason}; {told}" if outcome.reason else told)


def _keep_ended(
    provider: Provider, records: Records, outcomes: Mapping[str, Outcome], allocations: Collection[Allocation]
) -> list[Allocation]:
    """Bring what ended elements left here, as far as that goes now; the others of these.

    Of machines that are rented, with how each ended: nobody can tell once they are gone.
    """
    rents = provider.capabilities.rents

    def is_kept(one: Allocation) -> bool:
        return records.final(one.task_id or "") is not None if rents else is_collected(records, one)

    ended = [one for one in allocations if (end := outcomes.get(one.task_id or "")) and end.state.is_final]
    new = [one for one in ended if not is_kept(one)]
    with contextlib.suppress(FlowError):  # somebody else has, perhaps; and there is time until all have ended
        collect(provider, records, new)  # what is left out of it is in its log there
        for one in new if rents else ():
            records.set_final(one.task_id or "", outcomes[one.task_id or ""])
    return [one for one in allocations if not is_kept(one)]


@dataclass(frozen=True, slots=True)
class Look:
    """What a task has come to; of an array, each element by its id. `allocations`: what their provider said, by id."""

    outcome: Outcome
    elements: Mapping[str, Outcome]
    allocations: Mapping[str | None, Allocation]


@dataclass(frozen=True, slots=True)
class Instance:
    """One machine of a task: its address for the world, if it has one, and for the task's other machines."""

    rank: int
    instance_id: str
    public_ip: str | None
    private_ip: str
    status: TaskStatus


def instances(provider: Provider, allocation: Allocation) -> list[Instance]:
    """The machines of an attempt by rank, each with the state of its own part of the task."""
    found = []
    for node in allocation.nodes_up:
        report = allocation.reports.get(node.rank) or _report(provider.channel(allocation, node.rank), node.folder)
        outcome = derive(Intent(Want.RUN, 0.0), allocation, {node.rank: report} if report else {}, 1)
        found.append(Instance(node.rank, node.instance_id, node.public_address, node.address, outcome.state))
    return found


def _record_untold(
    records: Records, outcomes: Mapping[str, Outcome], task_id: str, *, nodes: int, allocations: Collection[Allocation]
) -> None:
    """Record the end where neither the task's folders nor a cancel tell it: else only its provider would know."""
    untold = [one for one in allocations if _is_untold(records, one, nodes)]
    if untold and records.intent(task_id).want is not Want.CANCEL:
        records.set_final(task_id, outcomes[task_id])
        for element in untold:  # those that never started have the array's end
            if element.task_id and element.task_id != task_id and outcomes[element.task_id].state in _TRIED:
                records.set_final(element.task_id, outcomes[element.task_id])


def _is_untold(records: Records, allocation: Allocation, nodes: int) -> bool:
    if len(allocation.reports) == nodes and all(one.cause != "start" for one in allocation.reports.values()):
        return False
    return not (records.folder(allocation.task_id or "", allocation.attempt, 0) / "status.json").exists()


def _derive(provider: Provider, records: Records, allocation: Allocation, nodes: int) -> Outcome:
    reports = dict(allocation.reports)
    for node in allocation.nodes_up:
        if node.rank not in reports and (report := _report(provider.channel(allocation, node.rank), node.folder)):
            reports[node.rank] = report
    is_gone = allocation.machines is Machines.GONE and allocation.attempt > 0
    asks_intent = is_gone and len(reports) < nodes  # a file less to read for the others
    intent = records.intent(allocation.task_id or "") if asks_intent else Intent(Want.RUN, 0.0)
    outcome = derive(intent, allocation, reports, nodes)
    if outcome.state.is_final and allocation.machines is Machines.UP and provider.capabilities.retries:
        # the attempt ended, but whether it was the last is for the provider to say
        return Outcome(TaskStatus.RUNNING, attempt=outcome.attempt, started=outcome.started)
    return outcome


def _report(channel: Channel, folder: str) -> Report | None:
    if channel.is_here:
        return read_report(Path(folder))
    answer = channel.ask(f"cat {shlex.quote(folder)}/status.json")
    return report_from_json(answer.stdout.decode(errors="replace")) if answer.returncode == 0 else None
