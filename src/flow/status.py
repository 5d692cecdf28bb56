"""What a task's state is: derived from what the user wants, the machines there are and what the runners reported."""

from __future__ import annotations

import enum
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from flow.errors import ValidationError, did_you_mean
from flow.machines import Allocation, Machines, Report

_NUMBER = (int, float)
_REPORT: Mapping[str, type | tuple[type, ...]] = {
    "phase": str, "code": int, "signal": int, "cause": str, "reason": str, "needs": list,
    "started": _NUMBER, "ended": _NUMBER, "ran_seconds": _NUMBER,
}  # fmt: skip


class TaskStatus(str, enum.Enum):
    """The state of a task; compares with and prints as its text."""

    PENDING = "pending"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    PREEMPTED = "preempted"  # waiting to run again
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    LOST = "lost"

    def __str__(self) -> str:
        return self.value

    @property
    def is_final(self) -> bool:
        """Whether the state can never change again."""
        return self in FINAL


FINAL = frozenset(
    (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.TIMED_OUT, TaskStatus.LOST)
)


HELD = "held: `flow resume` lets it start"

_WORST_FIRST = (
    TaskStatus.LOST,
    TaskStatus.FAILED,
    TaskStatus.TIMED_OUT,
    TaskStatus.CANCELLED,
    TaskStatus.COMPLETED,
)


def states_named(asked: str | Collection[str] | None) -> frozenset[TaskStatus] | None:
    """The states that words name. Raises ValidationError for a word that names none."""
    if asked is None:
        return None
    known = [str(state) for state in TaskStatus]
    words = [str(word) for word in ([asked] if isinstance(asked, str) else asked)]
    for word in words:
        if word not in known:
            near = did_you_mean(word, known)
            raise ValidationError(f"no state `{word}`", suggestions=[*near, f"the states are {', '.join(known)}"])
    return frozenset(map(TaskStatus, words))


class Want(str, enum.Enum):
    """What the user wants of a task now."""

    RUN = "run"
    HOLD = "hold"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True)
class Intent:
    """What the user wants of a task, and since when (seconds since the epoch)."""

    want: Want
    since: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """A state with its facts. Exit code and signal are of the rank that decided; times are by the machine's clock."""

    state: TaskStatus
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""
    attempt: int = 0
    started: float | None = None
    ended: float | None = None


def derive(intent: Intent, allocation: Allocation | None, reports: Mapping[int, Report], nodes: int) -> Outcome:
    """The state of a task whose newest attempt is `allocation`, from the reports (by rank) of that attempt.

    Never `completed` unless every one of `nodes` ranks reported exit code 0; what nobody knows is `lost`.
    """
    if allocation is None:
        return _without_machines(intent)
    ended = attempt_outcome(reports, nodes, attempt=allocation.attempt)
    if ended:
        return ended
    if allocation.machines is Machines.QUEUED:  # most, in a long list
        return Outcome(TaskStatus.PENDING, reason=allocation.reason, attempt=allocation.attempt)
    started = min((r.started for r in reports.values() if r.started is not None), default=None)
    if allocation.machines is Machines.GONE:
        return _gone(intent, allocation, started)
    state = {
        Machines.SILENT: TaskStatus.RUNNING if allocation.attempt else TaskStatus.PENDING,
        Machines.STARTING: TaskStatus.STARTING,
        Machines.PREEMPTED: TaskStatus.PREEMPTED,
        Machines.LOST: TaskStatus.PREEMPTED,
        Machines.PAUSED: TaskStatus.PAUSED,
        Machines.UP: TaskStatus.RUNNING if started is not None else TaskStatus.STARTING,
    }[allocation.machines]
    return Outcome(state, reason=allocation.reason, attempt=allocation.attempt, started=started)


def attempt_outcome(reports: Mapping[int, Report], nodes: int, *, attempt: int = 1) -> Outcome | None:
    """How an attempt ended; None while a rank has not. The first that failed of itself decides (tie: lowest).

    `preempted` where it was requeued: its task is to run again.
    """
    if len(reports) < nodes or any(report.phase != "ended" for report in reports.values()):
        return None
    started = min((r.started for r in reports.values() if r.started is not None), default=None)
    ended = max((r.ended for r in reports.values() if r.ended is not None), default=None)
    requeued = next((report for report in reports.values() if report.cause == "requeue"), None)
    if requeued:
        return Outcome(TaskStatus.PREEMPTED, reason=requeued.reason, attempt=attempt, started=started, ended=ended)
    # one that was stopped may still end with 0, as who saves its work on SIGTERM does: it did not complete
    others = [(r.ended or 0.0, rank, r) for rank, r in reports.items() if r.code != 0 or r.cause not in ("exit", "")]
    own = [one for one in others if one[2].cause != "peer"]
    if not others:
        reason = next((r.reason for r in reports.values() if r.reason), "")  # a log that was cut
        return Outcome(TaskStatus.COMPLETED, 0, reason=reason, attempt=attempt, started=started, ended=ended)
    _, rank, first = min(own or others, key=lambda one: one[:2])
    state = {
        "exit": TaskStatus.FAILED,
        "start": TaskStatus.FAILED,
        "timeout": TaskStatus.TIMED_OUT,
        "cancel": TaskStatus.CANCELLED,
    }.get(first.cause, TaskStatus.LOST)
    where = f" (node {rank})" if nodes > 1 else ""
    return Outcome(state, first.code, first.signal, first.reason + where, attempt, started, ended)


def fold(outcomes: Collection[Outcome]) -> Outcome:
    """The state of an array from its elements' (one at least): final once all are, and then the worst of them."""
    states = {one.state for one in outcomes}
    open_ = [one for one in outcomes if not one.state.is_final]
    started = min((one.started for one in outcomes if one.started is not None), default=None)
    attempt = max(one.attempt for one in outcomes)
    if open_:
        under_way = states - {TaskStatus.PENDING}
        state = TaskStatus.RUNNING if under_way else TaskStatus.PENDING
        done = len(outcomes) - len(open_)
        reason = f"{done} of {len(outcomes)} ended" if under_way else open_[0].reason
        return Outcome(state, reason=reason, attempt=attempt, started=started)
    worst = next(state for state in _WORST_FIRST if state in states)
    those = [one for one in outcomes if one.state is worst]
    ended = max((one.ended for one in outcomes if one.ended is not None), default=None)
    reason = "" if worst is TaskStatus.COMPLETED else f"{len(those)} of {len(outcomes)} {worst}: {those[0].reason}"
    return Outcome(worst, those[0].exit_code, those[0].signal, reason.removesuffix(": "), attempt, started, ended)


def report_from_json(text: str) -> Report | None:
    """A runner's `status.json` as a Report, or None where it is damaged: unknown keys are passed over."""
    try:
        values = json.loads(text)
        known = {name: values[name] for name in _REPORT if values.get(name) is not None}
        if not all(isinstance(value, _REPORT[name]) and not isinstance(value, bool) for name, value in known.items()):
            return None
        known["needs"] = tuple(known.get("needs", ()))
        for name in ("cause", "reason"):  # as text that any file and screen takes: a path may hold any byte
            known[name] = known.get(name, "").encode(errors="backslashreplace").decode()
        return Report(**known)
    except (ValueError, TypeError, AttributeError):
        return None


def read_report(folder: Path) -> Report | None:
    """The report in a task folder of this machine, or None while there is none that can be read."""
    try:
        return report_from_json((folder / "status.json").read_text())
    except (OSError, UnicodeDecodeError):
        return None


def is_given_up(folder: Path) -> bool:
    """Whether a client put on record that this attempt counts as lost, whatever its machine tells later."""
    try:
        return bool(json.loads((folder / "status.json").read_bytes()).get("given_up"))
    except (OSError, ValueError):
        return False


def end_on_record(unit: Path, attempt: int, nodes: int) -> Outcome | None:
    """How the machines of an attempt told that it ended, from the record of its task or element, in the folder `unit`.

    None where not all did, or a client gave it up before: then nothing that they tell counts.
    """
    folders = [unit / str(attempt) / str(rank) for rank in range(nodes)]
    if any(map(is_given_up, folders)):
        return None
    reports = {rank: report for rank, folder in enumerate(folders) if (report := read_report(folder))}
    end = attempt_outcome(reports, nodes, attempt=attempt)
    return end if end and end.state.is_final else None


def _without_machines(intent: Intent) -> Outcome:
    if intent.want is Want.CANCEL:
        return Outcome(TaskStatus.CANCELLED, reason="cancelled before it started", ended=intent.since)
    return Outcome(TaskStatus.PENDING, reason=HELD if intent.want is Want.HOLD else "")


def _gone(intent: Intent, allocation: Allocation, started: float | None) -> Outcome:
    """The machines are gone and not every rank told its end."""
    if allocation.attempt == 0:
        own = "" if intent.want is Want.CANCEL else allocation.reason
        reason = own or "cancelled before it started"
        return Outcome(TaskStatus.CANCELLED, reason=reason, ended=allocation.created)
    if intent.want is Want.CANCEL:
        return Outcome(TaskStatus.CANCELLED, reason="cancelled", attempt=allocation.attempt, started=started)
    reason = allocation.reason or "its machines are gone and left no report"
    return Outcome(TaskStatus.LOST, reason=reason, attempt=allocation.attempt, started=started)
