"""What the records and task folders tell of tasks, which is the truth, as rows of the queue."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from flow.durable import write_durably, writing
from flow.errors import StorageError
from flow.machines import Report
from flow.plan import Plan, plan_from_dict
from flow.providers.local.queue import Queue, Row
from flow.providers.local.rank import rank_folder
from flow.record_format import first_intent, later_intent, read_final, read_intent
from flow.status import Intent, Outcome, TaskStatus, Want, attempt_outcome, read_report

_CAUSES = {
    TaskStatus.COMPLETED: "exit",
    TaskStatus.FAILED: "start",
    TaskStatus.TIMED_OUT: "timeout",
    TaskStatus.CANCELLED: "cancel",
    TaskStatus.LOST: "lost",
}


def fill(home: Path, folder: Path, path: Path) -> None:
    """Add to the queue `path` every task that has a record, is to run in `folder` and is not there."""
    with contextlib.closing(Queue(path)) as queue:
        for record in sorted(records(home)):
            is_new = not queue.holds(record.name) and _may_be_of(home, folder, record)
            found = recorded(record) if is_new else None
            if found:
                plan, created, intent = found
                with queue.transaction():  # whole, or a scheduler would start what has ended
                    if queue.insert(plan, created=created):
                        _restore(home, queue, plan, intent)


def recall_wants(home: Path, queue: Queue) -> None:
    """Cancel, hold and let go as the records say: a power cut takes the newest rows back, not the records."""
    with queue.transaction():
        for task_id, base in queue.uncancelled():
            queue.note_want(task_id, want_of(home / "record", task_id, base))


def note_given(home: Path, folder: Path, task_id: str) -> None:
    """Write in the record which queue has the task, where it is not the one beside the records."""
    if folder.parent != home:
        with writing(home), contextlib.suppress(FileNotFoundError):
            write_durably(home / "record" / task_id / "allocated", _address(home, folder).encode())


def was_given(home: Path, folder: Path, record: Path) -> bool:
    """Whether the task of `record` was given to the queue in `folder`."""
    try:
        return (record / "allocated").read_text() == _address(home, folder)
    except (OSError, ValueError):
        return False


def records(home: Path) -> Iterator[Path]:
    """The records of tasks and arrays."""
    return (folder for folder in (home / "record").glob("task-*") if "_" not in folder.name)


def recorded(record: Path) -> tuple[Plan, float, Intent] | None:
    """What the local provider was given, when, and what is wanted of it now; None where there is no such thing."""
    try:
        values = json.loads((record / "record.json").read_bytes())
        plan, created = plan_from_dict(values["plan"]), float(values["created"])
        intent = read_intent(record) or first_intent(values)
    except (OSError, StorageError, ValueError, LookupError, TypeError, AttributeError):
        return None  # damaged, which is told where it is looked at
    if plan.provider != "local" or (intent.want is Want.HOLD and not _may_have_been_given(record)):
        return None
    return plan, created, intent


def _may_have_been_given(record: Path) -> bool:
    """Of a task that is held: whether it was given to a queue before it was."""
    return (record / "allocated").exists() or any(one.name.isdigit() for one in record.iterdir())


def _address(home: Path, folder: Path) -> str:
    """What `allocated` holds in the records of the tasks that were given to the queue in `folder`."""
    return "" if folder.parent == home else f"{os.uname().nodename}:{folder}"  # elsewhere it is one machine's own


def _may_be_of(home: Path, folder: Path, record: Path) -> bool:
    """Whether the queue had the task: its submitter may have died before it wrote that down."""
    if was_given(home, folder, record):
        return True
    return folder.parent == home and not (record / "allocated").exists()


def _restore(home: Path, queue: Queue, plan: Plan, intent: Intent) -> None:
    """Bring the fresh rows of a plan to where their folders say they are."""
    whole = _final(home / "record" / plan.task_id)
    for row in queue.rows([plan.task_id]):
        record = home / "record" / row.id
        final = whole
        if row.id != row.base:
            # of an element that has left nothing, its array's end tells that it never started
            final = _final(record) or (whole and Outcome(TaskStatus.CANCELLED, reason=whole.reason, ended=whole.ended))
        _restore_row(home, queue, row, plan, final=final)
        queue.note_want(
            row.id, Want.CANCEL if intent.want is Want.CANCEL else want_of(home / "record", row.id, row.base)
        )


def _restore_row(home: Path, queue: Queue, row: Row, plan: Plan, *, final: Outcome | None) -> None:
    """`final`: the end on record, of which the folders may know nothing."""
    numbers = sorted(int(one.name) for one in (home / "record" / row.id).glob("[0-9]*") if one.name.isdigit())
    used, failures = 0.0, 0
    for number in numbers:
        reports = _reports(home, row.id, number, plan.nodes)
        outcome = attempt_outcome(reports, plan.nodes, attempt=number)
        is_requeued = outcome is not None and outcome.state is TaskStatus.PREEMPTED
        is_last = number == numbers[-1]
        if is_last and outcome is None:  # under way, or dead: the scheduler looks
            folders = (rank_folder(home, row.id, number, rank) for rank in range(plan.nodes))
            queue.start(row, list(dict.fromkeys(one for folder in folders for one in _gpu_ids(folder))))
            break
        queue.start(row, [])
        if is_requeued:
            queue.requeue(row, reason=f"attempt {number} requeued; runs again")
            continue
        used += max((report.ran_seconds for report in reports.values()), default=0.0)
        state = outcome.state if outcome else TaskStatus.LOST
        may_retry = state in (TaskStatus.FAILED, TaskStatus.LOST) and failures < plan.retries
        failures += 1
        if may_retry or not is_last:
            queue.retry(row, used_seconds=used, reason=f"attempt {number} {state}; runs again")
        elif outcome:
            queue.end(row, reports, reason=outcome.reason, now=outcome.ended or time.time())
            return
    if final:
        for _ in range(len(numbers), final.attempt):
            queue.start(row, [])
        queue.end(row, _reports_of(final, plan.nodes), reason=final.reason, now=final.ended or time.time())


def _reports(home: Path, task_id: str, attempt: int, nodes: int) -> dict[int, Report]:
    found = {rank: read_report(rank_folder(home, task_id, attempt, rank)) for rank in range(nodes)}
    return {rank: report for rank, report in found.items() if report is not None}


def _reports_of(final: Outcome, nodes: int) -> dict[int, Report]:
    """Reports that come to a recorded end."""
    if final.state is TaskStatus.CANCELLED and not final.attempt:
        return {}
    cause, times = _CAUSES[final.state], (final.started, final.ended)
    report = Report("ended", final.exit_code, final.signal, cause, final.reason, (), *times)
    return dict.fromkeys(range(nodes), report)


def _gpu_ids(folder: Path) -> list[int]:
    """The GPUs that an attempt was given."""
    try:
        return [int(one) for one in json.loads((folder / "task.json").read_bytes())["given_gpus"]]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def _final(record: Path) -> Outcome | None:
    """The end on record; one that cannot be read is an end too, and what has ended must not run again."""
    try:
        return read_final(record)
    except StorageError as error:
        return Outcome(TaskStatus.LOST, reason=error.message, attempt=1)


def want_of(records: Path, task_id: str, base: str) -> Want:
    """What is wanted of a task or element since it was submitted; where that cannot be read it was cancelled, as hardly
    anything else is written there."""
    try:
        whole = read_intent(records / base)
        own = read_intent(records / task_id) if task_id != base else None
    except StorageError:
        return Want.CANCEL
    intent = later_intent(own, whole)
    return intent.want if intent else Want.RUN
