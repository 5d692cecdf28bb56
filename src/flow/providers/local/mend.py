"""A damaged queue: moved aside and built again from the records and the task folders, which are the truth."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from flow.durable import writing
from flow.errors import StorageError
from flow.machines import Report
from flow.plan import Plan, plan_from_dict
from flow.providers.local.queue import Queue, Row
from flow.providers.local.rank import rank_folder
from flow.providers.local.wake import take_lock
from flow.status import Intent, TaskStatus, Want, attempt_outcome, read_report

_DAMAGE = (
    "malformed",
    "not a database",
    "no such table",
    "no such column",
    "unsupported file format",
    "disk i/o error",
)
_PATIENCE_SECONDS = 60.0  # for another process that mends, or a scheduler that ends


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether the file's content is broken, not merely locked, full or forbidden."""
    text = str(error).lower()
    return any(words in text for words in _DAMAGE)


def is_missing(home: Path, folder: Path) -> bool:
    """Whether there was a queue and its file is gone or empty. In another folder it may be that of another machine."""
    with contextlib.suppress(FileNotFoundError):
        if (folder / "local.db").stat().st_size:
            return False
    given = (home / "record").glob("task-*/allocated") if folder.parent == home else ()
    return any(True for _ in (*folder.glob("local.db.damaged-*"), *given))


def lacks(home: Path, folder: Path, bases: Collection[str]) -> bool:
    """Whether one of these tasks, which the queue does not hold, was given to it once. Not told of another folder."""
    given = (base for base in bases if (home / "record" / base / "allocated").exists())
    return folder.parent == home and any(_recorded(home / "record" / base) is not None for base in given)


def mend_queue(home: Path, folder: Path) -> None:
    """Make `folder`/local.db hold every task that has a record; the old file is kept aside where it is damaged.

    Raises StorageError where it cannot.
    """
    with writing(home):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mending = take_lock(folder / "mend.lock", wait_seconds=_PATIENCE_SECONDS)
    if mending is None:
        raise StorageError(f"the local queue `{folder / 'local.db'}` is damaged, and is being mended: try again later")
    try:
        scheduling = _end_scheduler(folder)  # nobody works with it meanwhile; running tasks go on
        try:
            with writing(home):
                if _is_whole(folder / "local.db"):
                    _fill(home, folder / "local.db")
                else:
                    _replace(home, folder)
        finally:
            os.close(scheduling)
    finally:
        os.close(mending)


def _end_scheduler(folder: Path) -> int:
    """The scheduler's lock, taken once the one that works with the damaged file has ended."""
    lock = take_lock(folder / "scheduler.lock")
    if lock is not None:
        return lock
    with contextlib.suppress(OSError, ValueError):
        os.kill(int((folder / "scheduler.lock").read_text()), signal.SIGTERM)
    lock = take_lock(folder / "scheduler.lock", wait_seconds=_PATIENCE_SECONDS)
    if lock is None:
        raise StorageError(
            f"the local queue `{folder / 'local.db'}` is damaged, and its scheduler does not end",
            suggestions=[f"end the process whose number is in `{folder / 'scheduler.lock'}`, and try again"],
        )
    return lock


def _is_whole(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("SELECT 1 FROM plan, task, wait LIMIT 1")
            return bool(db.execute("PRAGMA quick_check").fetchone()[0] == "ok")
    except sqlite3.DatabaseError:
        return False


def _replace(home: Path, folder: Path) -> None:
    """Built beside the old one and put in its place whole: whoever dies at this leaves something to mend."""
    path, new = folder / "local.db", folder / "local.db.new"
    for end in ("", "-wal", "-shm"):
        Path(f"{new}{end}").unlink(missing_ok=True)
    _fill(home, new)
    aside = f"{path}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
    for end in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{end}").rename(f"{aside}{end}")
    new.rename(path)
    _fill(home, path)  # who was given to the old one after its record was looked for
    print(f"note: the local queue was damaged: rebuilt, the old one is `{aside}`", file=sys.stderr)  # noqa: T201


def _fill(home: Path, path: Path) -> None:
    """Add every task that has a record, is to run here and is not there."""
    with contextlib.closing(Queue(path)) as queue:
        for folder in sorted((home / "record").glob("task-*")):
            found = None if queue.holds(folder.name) else _recorded(folder)
            if found:
                plan, created, intent = found
                with queue.transaction():  # whole, or a scheduler would start what has ended
                    if queue.insert(plan, created=created):
                        _restore(home, queue, plan, intent)


def _recorded(folder: Path) -> tuple[Plan, float, Intent] | None:
    """What the local provider was given, when, and what is wanted of it now; None where there is no such thing."""
    try:
        record = json.loads((folder / "record.json").read_bytes())
        plan, created = plan_from_dict(record["plan"]), float(record["created"])
        intent = _intent(folder) or Intent(Want(record["want"]), created)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # an element's folder, or a damaged record, which is told of where it is looked at
    return (plan, created, intent) if plan.provider == "local" and intent.want is not Want.HOLD else None


def _restore(home: Path, queue: Queue, plan: Plan, intent: Intent) -> None:
    """Bring the fresh rows of a plan to where their folders say they are."""
    for row in queue.rows([plan.task_id]):
        own = (_intent(home / "record" / row.id) if row.id != row.base else None) or intent
        last = intent if intent.want is Want.CANCEL else own
        _restore_row(home, queue, row, plan)
        if last.want is Want.CANCEL:
            queue.note_cancel(row.id, now=time.time())


def _restore_row(home: Path, queue: Queue, row: Row, plan: Plan) -> None:
    numbers = sorted(int(one.name) for one in (home / "record" / row.id).glob("[0-9]*") if one.name.isdigit())
    used = 0.0
    for number in numbers:
        queue.start(row, [])
        reports = _reports(home, row.id, number, plan.nodes)
        outcome = attempt_outcome(reports, plan.nodes, attempt=number)
        used += max((report.ran_seconds for report in reports.values()), default=0.0)
        is_last = number == numbers[-1]
        if is_last and outcome is None:
            return  # under way, or dead: the scheduler looks
        state = outcome.state if outcome else TaskStatus.LOST
        may_retry = state in (TaskStatus.FAILED, TaskStatus.LOST) and number <= plan.retries
        if may_retry or not is_last:
            queue.retry(row, used_seconds=used, reason=f"attempt {number} {state}; runs again")
        elif outcome:
            queue.end(row, reports, reason=outcome.reason, now=outcome.ended or time.time())


def _reports(home: Path, task_id: str, attempt: int, nodes: int) -> dict[int, Report]:
    found = {rank: read_report(rank_folder(home, task_id, attempt, rank)) for rank in range(nodes)}
    return {rank: report for rank, report in found.items() if report is not None}


def _intent(folder: Path) -> Intent | None:
    """The user's last word on a task or element, where there is one after its submission."""
    try:
        values: Mapping[str, Any] = json.loads((folder / "intent.json").read_bytes())
        return Intent(Want(values["want"]), float(values["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
