"""A task's state as it is now: what its provider says of the machines, with what the runners reported there."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from pathlib import Path

from flow.channel import Channel
from flow.machines import Allocation, Machines, Report
from flow.providers import Provider
from flow.record import Records
from flow.status import Intent, Outcome, TaskStatus, Want, derive, fold, read_report, report_from_json


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
        outcome = derive(records.intent(task_id), None, {}, nodes)
    if outcome.state.is_final and not provider.capabilities.same_machine:
        outcome = records.set_final(task_id, outcome)
    return outcome, outcomes


def _derive(provider: Provider, records: Records, allocation: Allocation, nodes: int) -> Outcome:
    reports = dict(allocation.reports)
    for node in allocation.nodes:
        report = _report(provider.channel(allocation, node.rank), node.folder)
        if report and node.rank not in reports:
            reports[node.rank] = report
    asks_intent = allocation.machines is Machines.GONE and len(reports) < nodes  # a file less to read for the others
    intent = records.intent(allocation.task_id or "") if asks_intent else Intent(Want.RUN, 0.0)
    outcome = derive(intent, allocation, reports, nodes)
    if outcome.state.is_final and allocation.nodes and provider.capabilities.retries:
        # the attempt ended, but whether it was the last is for the provider to say
        return Outcome(TaskStatus.RUNNING, attempt=outcome.attempt, started=outcome.started)
    return outcome


def _report(channel: Channel, folder: str) -> Report | None:
    if channel.is_here:
        return read_report(Path(folder))
    answer = channel.run(f"cat {shlex.quote(folder)}/status.json")
    return report_from_json(answer.stdout.decode(errors="replace")) if answer.returncode == 0 else None
