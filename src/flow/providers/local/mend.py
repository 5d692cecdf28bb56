"""A damaged queue: moved aside and built again from the records and the task folders, which are the truth."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import time
from pathlib import Path

from flow.machines import Report
from flow.plan import Plan, plan_from_dict
from flow.providers.local.queue import Queue, Row
from flow.providers.local.rank import rank_folder
from flow.providers.local.wake import take_lock
from flow.status import TaskStatus, attempt_outcome, read_report


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether the file's content is broken, not merely locked, full or forbidden."""
    text = str(error)
    return "malformed" in text or "not a database" in text or "no such table" in text


def mend_queue(home: Path, folder: Path) -> None:
    """Rebuild `folder`/local.db. Under the scheduler's lock, so that nobody works with the old one meanwhile."""
    lock = take_lock(folder / "scheduler.lock") or _end_scheduler(folder)
    try:
        path = folder / "local.db"
        if _is_whole(path):
            return  # another process was faster
        aside = f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
        for suffix in ("", "-wal", "-shm"):
            old = folder / f"local.db{suffix}"
            if old.exists():
                old.rename(folder / f"{aside}{suffix}")
        _rebuild(home, Queue(path))
        print(f"note: the local queue was damaged: rebuilt, the old one is `{folder / aside}`", file=sys.stderr)  # noqa: T201
    finally:
        if lock is not None:
            os.close(lock)


def _end_scheduler(folder: Path) -> int | None:
    """End the scheduler that works with the damaged file, and take its lock. Running tasks go on."""
    try:
        os.kill(int((folder / "scheduler.lock").read_text()), signal.SIGTERM)
    except (OSError, ValueError):
        pass
    return take_lock(folder / "scheduler.lock", wait_seconds=10.0)


def _is_whole(path: Path) -> bool:
    try:
        db = sqlite3.connect(path)
        try:
            return bool(db.execute("PRAGMA user_version").fetchone()[0]) and (
                db.execute("PRAGMA quick_check").fetchone()[0] == "ok"
            )
        finally:
            db.close()
    except sqlite3.DatabaseError:
        return False


def _rebuild(home: Path, queue: Queue) -> None:
    for file in sorted((home / "record").glob("task-*/record.json")):
        try:
            record = json.loads(file.read_text())
            plan = plan_from_dict(record["plan"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a damaged record is reported where it is looked at
        if plan.provider != "local" or _wanted(file.parent) == "hold":
            continue
        queue.add(plan, created=record.get("created"))
        rows = queue.rows([plan.task_id])
        with queue.transaction():
            for row in rows:
                _restore(home, queue, row, plan)
        if _wanted(file.parent) == "cancel":
            queue.ask_cancel(plan.task_id, now=time.time())
    queue.close()


def _restore(home: Path, queue: Queue, row: Row, plan: Plan) -> None:
    """Bring a fresh row to where its folders say it is."""
    attempts = sorted(int(one.name) for one in (home / "record" / row.id).glob("[0-9]*") if one.name.isdigit())
    for attempt in attempts:
        queue.start(row, [])
        reports = _reports(home, row.id, attempt, plan.nodes)
        outcome = attempt_outcome(reports, plan.nodes, attempt=attempt)
        if outcome is None:
            return  # under way, or dead: the scheduler looks
        if attempt == attempts[-1]:
            may_retry = outcome.state in (TaskStatus.FAILED, TaskStatus.LOST) and attempt <= plan.retries
            if may_retry:
                queue.retry(row, used_seconds=0.0, reason=f"attempt {attempt} {outcome.state}; runs again")
            else:
                queue.end(row, reports, reason=outcome.reason, now=outcome.ended or time.time())


def _reports(home: Path, task_id: str, attempt: int, nodes: int) -> dict[int, Report]:
    found = {rank: read_report(rank_folder(home, task_id, attempt, rank)) for rank in range(nodes)}
    return {rank: report for rank, report in found.items() if report is not None}


def _wanted(folder: Path) -> str:
    try:
        return str(json.loads((folder / "intent.json").read_text())["want"])
    except (OSError, ValueError, KeyError, TypeError):
        return "run"
