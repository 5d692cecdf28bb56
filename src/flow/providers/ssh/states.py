"""What a host tells of a task -> the allocation of its newest attempt."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flow.machines import Allocation, Machines, Node, Report
from flow.providers.ssh.places import Move
from flow.status import HELD, Outcome, read_report, report_from_json

_CLOCKS_AGREE = 2.0  # seconds; a difference that is larger is taken out of the times that a host tells


def allocation_of(
    unit: str,
    entries: Mapping[str, Mapping[str, Any]],
    clocks: Mapping[str, float],
    move: Move | None = None,
    *,
    unready: Collection[str] | None = None,
) -> Allocation:
    """Of one task or element, from what each of its hosts tells, in their order.

    clocks: seconds that each is ahead of this one. move: which brought it there. unready: those of machines that are
    rented for it which are not ready yet; None: they are hosts of a fleet.
    """
    one = next(iter(entries.values()))
    attempt = max(entry["attempt"] for entry in entries.values())
    reports: dict[int, Report] = {}
    nodes: list[Node] = []
    for host, entry in entries.items():
        for rank, text in entry["reports"].items():
            if report := report_from_json(text):
                reports[int(rank)] = _by_our_clock(report, clocks[host])
            folder = f"{entry['folder']}/{entry['attempt']}/{rank}"
            nodes.append(Node(int(rank), host, host, folder=folder, first_attempt=move.attempt if move else 1))
    machines, reason = _machines(entries, reports, clocks, unready)
    if move and machines is not Machines.GONE:
        reason = f"{reason}; {move.note}" if reason else move.note
    return Allocation(
        task_id=unit,
        attempt=attempt,
        machines=machines,
        nodes=tuple(sorted(nodes, key=lambda node: node.rank)),
        reason=reason,
        created=one["created"],
        price_per_hour=0.0,
        plan_hash=one["hash"],
        reports=reports if machines in (Machines.UP, Machines.GONE) else {},
        node_list=",".join(entries),
    )


def ended_allocation(unit: str, record: Path, end: Outcome, nodes: int) -> Allocation:
    """Of a task or element whose end is on record, in the folder `record`: its machines may be gone."""
    folders = [record / str(end.attempt) / str(rank) for rank in range(nodes)]
    reports = {rank: report for rank, folder in enumerate(folders) if (report := read_report(folder))}
    return Allocation(unit, end.attempt, Machines.GONE, reason=end.reason, reports=reports)


def _machines(
    entries: Mapping[str, Mapping[str, Any]],
    reports: Mapping[int, Report],
    clocks: Mapping[str, float],
    unready: Collection[str] | None,
) -> tuple[Machines, str]:
    all_ = list(entries.values())
    if all(entry["ended"] for entry in all_):
        return Machines.GONE, ""
    begun = [report for report in reports.values() if report.phase != "waiting"]
    if any(entry["runs"] or entry["ended"] for entry in all_) and (len(entries) == 1 or begun):
        is_up = len(begun) == len(entries) or (reports and len(entries) == 1)  # else some node is still to be told
        return (Machines.UP if is_up else Machines.STARTING), ""
    ends = [report for report in begun if report.phase == "ended" and report.cause == "exit" and report.code == 0]
    if len(ends) == len(entries):  # that there is nothing to follow is not written down yet
        return Machines.UP, ""
    in_turn = list(entries.items())
    host, one = next((each for each in in_turn if not each[1]["runs"]), in_turn[0])
    if unready is None and len(entries) > 1 and not begun and not one["held"]:
        return Machines.QUEUED, f"waits for {host}, to have all of its {len(entries)} nodes at once"
    state, reason = _why_waiting(host, one, clocks[host], unready)
    if any(report.phase == "running" or report.cause in ("requeue", "lost") for report in reports.values()):
        return Machines.PREEMPTED, reason
    return state, reason


def _why_waiting(
    host: str, one: Mapping[str, Any], ahead: float, unready: Collection[str] | None
) -> tuple[Machines, str]:
    if one["held"]:
        return Machines.QUEUED, HELD
    until = one.get("waits_until", 0.0) - (ahead if abs(ahead) > _CLOCKS_AGREE else 0)
    if until > time.time() + _CLOCKS_AGREE:
        return Machines.QUEUED, f"waits until {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(until))}"
    if unready is not None:
        is_element = "_" in one["id"]  # which take turns
        reason = "waits for its turn" if is_element else "its command starts"
        reason = "its machine gets ready" if host in unready else reason
        return Machines.QUEUED if is_element else Machines.STARTING, reason
    count = one["before"]
    before = f", after {count} other{'s' * (count > 1)}" if count else ""
    return Machines.QUEUED, f"waits for its turn on {host}{before}"


def _by_our_clock(report: Report, ahead: float) -> Report:
    if abs(ahead) < _CLOCKS_AGREE:
        return report
    started, ended = (None if one is None else one - ahead for one in (report.started, report.ended))
    return replace(report, started=started, ended=ended)
