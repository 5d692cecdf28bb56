"""What Slurm calls a job's state -> what became of the task's machines, with the reports that no runner could write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flow.channel import Channel
from flow.machines import Allocation, Machines, Node, Report
from flow.node.slurm_login import ENDED, LOST_SECONDS
from flow.slurm import jobs
from flow.status import HELD, report_from_json

_WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
_PAUSED = ("SUSPENDED", "STOPPED")
_REASONS = {**jobs.REASONS, "JobHeldUser": HELD}
# The end of a job of which its runner says nothing, or only that it was told to end: cause, and in words.
_ENDS = {
    "BOOT_FAIL": ("lost", "its nodes did not boot"),
    "CANCELLED": ("cancel", "cancelled in Slurm"),
    "DEADLINE": ("timeout", "its deadline has passed"),
    "NODE_FAIL": ("lost", "its node failed"),
    "OUT_OF_MEMORY": ("exit", "out of memory"),
    "PREEMPTED": ("lost", "preempted"),
    "REVOKED": ("lost", "revoked by Slurm"),
    "TIMEOUT": ("timeout", "Slurm's time limit reached"),
}
UNKNOWN_ADVICE = "is `slurm.folder` mounted, and this the cluster that it was given to?"


def allocation_of(one: Mapping[str, Any], now: float) -> Allocation:
    """The allocation of an entry of `slurm_login.look`."""
    reports = {rank: found for rank, text in enumerate(one["reports"]) if (found := report_from_json(text))}
    machines, reason = _machines(one, reports, now)
    is_gone, attempt = machines is Machines.GONE, one["attempt"]
    if is_gone and not one["ended"]:
        never_began = one["state"] in ("CANCELLED", "REVOKED") or one["cancelled"]
        reports, attempt = _with_ends(one, reports), attempt or int(not never_began)
    if one["state"] == "OUT_OF_MEMORY":
        reports = {rank: _out_of_memory(report) for rank, report in reports.items()}
    shown = reports if is_gone or machines is Machines.UP else {}
    return Allocation(
        task_id=one["id"],
        attempt=attempt,
        machines=machines,
        nodes=tuple(_node(one, rank) for rank in range(len(one["nodes"]))),
        reason=reason,
        created=one["created"],
        plan_hash=one["hash"],
        reports=_of_all_ranks(shown, one["ranks"]),
        partition=one["partition"],
        node_list=one["node_list"],
    )


def _machines(one: Mapping[str, Any], reports: Mapping[int, Report], now: float) -> tuple[Machines, str]:
    state = one["state"]
    if one["ended"] or state == "GONE" or state in ENDED:
        unsure = _why_unsure(one, reports, now)
        return (Machines.STARTING, unsure) if unsure else (Machines.GONE, _why_gone(one))
    if state in _WAITING:
        reason = _why_waiting(one)
        if not one["attempt"]:
            return Machines.QUEUED, reason
        return Machines.PREEMPTED, reason if reason == HELD else f"queued again: {reason}".removesuffix(": ")
    if state in _PAUSED:
        return Machines.PAUSED, "suspended in Slurm"
    return (Machines.UP if reports else Machines.STARTING), ""


def _why_unsure(one: Mapping[str, Any], reports: Mapping[int, Report], now: float) -> str:
    """Why an end is not to be believed yet: its runner may have reported what cannot be seen from here."""
    if one["unknown"]:
        return f"job {one['job']} is not known here: {UNKNOWN_ADVICE}"
    is_told = one["ended"] or one["said"] or (one["reports"] and len(reports) == len(one["reports"]))
    is_told = is_told or (one["cancelled"] and not reports)  # it was ended before its runner was up
    is_awaited = one["state"] in ("COMPLETED", "FAILED") and not is_told and now - (one["end"] or now) < LOST_SECONDS
    return "its report is awaited" if is_awaited else ""


def _why_waiting(one: Mapping[str, Any]) -> str:
    if one["never"]:
        return f"waits for {one['never']}, which cannot be any more"
    return f"waits for {one['waits']}" if one["waits"] else _REASONS.get(one["reason"], str(one["reason"]))


def _why_gone(one: Mapping[str, Any]) -> str:
    if one["never"] and not one["cancelled"] and not one["attempt"]:
        return f"waited for {one['never']}, which cannot be any more"
    if one["ended"] or (one["cancelled"] and one["state"] == "CANCELLED"):
        return ""
    if one["state"] == "GONE":
        return f"job {one['job']} is gone from Slurm and left no report"
    return _ENDS.get(one["state"], ("", f"job {one['job']} ended as {one['state']} and left no report"))[1]


def _with_ends(one: Mapping[str, Any], reports: Mapping[int, Report]) -> dict[int, Report]:
    """The reports of a job that ended in Slurm, with those that its runners could not write."""
    state = one["state"]
    cause, reason = _ENDS.get(state, ("", ""))
    if one["cancelled"] and state == "CANCELLED":
        reason = "cancelled"
    if not one["attempt"] and state == "FAILED" and not one["cancelled"]:  # else it had no time to hear that
        cause, reason = "start", one["said"] or "the job could not start: does its node see `slurm.folder`?"
    if state in ("COMPLETED", "FAILED") and not one["cancelled"] and any(r.cause == "cancel" for r in reports.values()):
        cause, reason = "lost", f"job {one['job']} was told to end and ended as {state}"
    found = dict(reports)
    for rank in range(max(len(one["reports"]), 1) if one["attempt"] or cause == "start" else 0):
        known = found.get(rank)
        if cause and (known is None or known.phase != "ended" or (known.cause == "cancel" and not one["cancelled"])):
            started = known.started if known else None
            code = 137 if state == "OUT_OF_MEMORY" else None
            found[rank] = Report("ended", code, None, cause, reason, started=started, ended=one["end"])
    return found


def _out_of_memory(report: Report) -> Report:
    """What a runner saw only as a signal."""
    return (
        replace(report, reason=f"out of memory: {report.reason}") if report.code and report.cause == "exit" else report
    )


def _of_all_ranks(reports: Mapping[int, Report], ranks: int) -> Mapping[int, Report]:
    """A batch script has one runner, which speaks for all of its nodes."""
    if ranks > 1 and set(reports) == {0}:
        return dict.fromkeys(range(ranks), reports[0])
    return reports


def _node(one: Mapping[str, Any], rank: int) -> Node:
    name, address = one["nodes"][rank]
    words: tuple[str, ...] = (
        one["srun"],
        f"--jobid={one['raw']}",
        "--overlap",
        f"--nodelist={name}",
        "--nodes=1",
        "--ntasks=1",
    )
    words += ("--mpi=none", "--quiet", "--kill-on-bad-exit=0")
    folder = f"{one['folder']}/{one['attempt']}/{rank}"
    # by default srun passes whole lines on; without buffers standard output is a pseudo terminal, which changes no byte
    beyond = Channel(words, terminal=(*words, "--pty"), at_once=(*words, "--unbuffered"))
    return Node(rank, name, address, folder=folder, beyond=beyond)
