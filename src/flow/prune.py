"""What has ended is removed from the record: by age, number and size; then the uploaded projects nobody names."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from flow.blobs import collect_garbage
from flow.durable import NoRoomError, remove_left, why
from flow.errors import StorageError
from flow.plan import Plan
from flow.record_format import entry_from, read_final, submission_from
from flow.record_index import RecordIndex, Row
from flow.references import split_element
from flow.status import FINAL, Outcome, TaskStatus, attempt_outcome, read_report

_UNREADABLE = (OSError, StorageError, ValueError, LookupError, TypeError, AttributeError)
_DOOMED = ".pruned-"  # a record's folder is named so before it is emptied, so that a crash leaves no half of one
_WRITTEN = ("", "*/", "*/*/", "record/*/*/", "record/*/*/*/")  # folders that have files of Flow itself, in its home


@dataclass(frozen=True, slots=True)
class Limits:
    """What of the ended tasks may stay; None: no limit of that kind."""

    older_than_seconds: float | None = None  # since their end
    keep: int | None = None  # the newest so many
    max_bytes: int | None = None  # of all records together


@dataclass(frozen=True, slots=True)
class Pruned:
    """The tasks removed, oldest first, and the bytes their records and projects took."""

    task_ids: tuple[str, ...]
    bytes: int


def doom(
    record: Path,
    index: RecordIndex,
    final: Callable[[str], Outcome | None],
    *,
    limits: Limits,
    needed: Collection[str],
    dry_run: bool,
) -> Pruned:
    """Take what must go out of the record and the index; what it held is left for `empty`.

    To be called by the holder of the index's lock. `final` reads the recorded end of a task: the index may err.
    needed: tasks that stay.
    """
    awaited = _awaited(index).union(needed)
    ended = [
        (row, end)
        for row in index.rows({}, states=sorted(FINAL))
        if row.task_id not in awaited and (end := _end_of(record, row, final)) is not None
    ]
    gone = _doom(record, ended, limits=limits, dry_run=dry_run)
    if not dry_run:
        with contextlib.suppress(NoRoomError):  # it is dropped when it is asked for
            index.remove(gone.task_ids)
    return gone


def doom_without_index(record: Path, *, limits: Limits, needed: Collection[str], dry_run: bool) -> Pruned:
    """The same on a full disk, where only reading and removing is possible: records and task folders tell the ends.

    A task whose end only its provider knows stays.
    """
    ended: list[tuple[Row, float]] = []
    awaited = set(needed)
    for path in sorted(record.glob("*/record.json"), reverse=True):
        try:
            values = json.loads(path.read_bytes())
            plan, row = submission_from(values).plan, entry_from(values).row
            end = _end_on_disk(record, plan)
        except _UNREADABLE:
            continue
        if end is None:
            awaited.update(split_element(one.task_id)[0] for one in plan.after)
        elif row:
            ended.append((row, end))
    may_go = [(row, end) for row, end in ended if row.task_id not in awaited]
    return _doom(record, may_go, limits=limits, dry_run=dry_run)


def empty(record: Path) -> list[str]:
    """Remove what `doom` took out, by this prune or one that was killed; sentences on what does not go away."""
    notes = []
    for folder in record.glob(f"{_DOOMED}*"):
        try:
            _remove_tree(folder)
        except FileNotFoundError:
            continue  # another prune is at it
        except OSError as error:
            notes.append(f"`{folder}` cannot be removed: {why(error)}")
    return notes


def sweep(home: Path) -> None:
    """Remove what writers that were killed have left of the files of Flow itself: none of those that tasks write."""
    for folders in _WRITTEN:
        remove_left(home, folders)


def collect(home: Path, index: RecordIndex, doomed: Collection[str], *, dry_run: bool) -> int:
    """Remove the uploaded projects that only `doomed` tasks, or none, name; bytes freed.

    To be called by the holder of `store_lock(home, shared=False)` and of the index's lock.
    """
    if index.read("SELECT 1 FROM damaged LIMIT 1"):
        return 0  # a damaged record may name a project that no other does
    named = index.read("SELECT task_id, bundle FROM tasks WHERE bundle IS NOT NULL")
    keep = {bundle for task_id, bundle in named if task_id not in doomed}
    return collect_garbage(home, keep, dry_run=dry_run)


def choose(
    ended: list[tuple[Row, float]], sizes: dict[str, int], total: int, *, limits: Limits, now: float
) -> list[str]:
    """Which of the ended tasks (newest first, with the time of their end) must go, oldest first."""
    doomed = set()
    for place, (row, end) in enumerate(ended):
        too_old = limits.older_than_seconds is not None and now - end > limits.older_than_seconds
        too_many = limits.keep is not None and place >= limits.keep
        if too_old or too_many:
            doomed.add(row.task_id)
    oldest_first = [row.task_id for row, _ in reversed(ended)]
    left = total - sum(sizes[task_id] for task_id in doomed)
    for task_id in oldest_first:
        if limits.max_bytes is None or left <= limits.max_bytes:
            break
        if task_id not in doomed:
            doomed.add(task_id)
            left -= sizes[task_id]
    return [task_id for task_id in oldest_first if task_id in doomed]


def _doom(record: Path, ended: list[tuple[Row, float]], *, limits: Limits, dry_run: bool) -> Pruned:
    folders = _folders(record)
    sizes = {row.task_id: sum(map(_size, folders.get(row.task_id, ()))) for row, _ in ended}
    total = sum(_size(folder) for those in folders.values() for folder in those) if limits.max_bytes is not None else 0
    doomed = choose(ended, sizes, total, limits=limits, now=time.time())
    if not dry_run:
        for task_id in doomed:
            # elements first: while the record itself is there, a crash leaves a task that can be pruned again
            for folder in sorted(folders.get(task_id, ()), key=lambda path: path.name == task_id):
                folder.rename(record / f"{_DOOMED}{folder.name}")
    return Pruned(tuple(doomed), sum(sizes[task_id] for task_id in doomed))


def _end_on_disk(record: Path, plan: Plan) -> float | None:
    """When a task or every element of an array ended for good, or None. Raises StorageError on a damaged end."""
    final = read_final(record / plan.task_id)
    if final:
        return final.ended or 0.0
    indices = plan.elements.indices if plan.elements else ()
    ids = [f"{plan.task_id}_{index}" for index in indices] or [plan.task_id]
    ends = [_last_end(record / task_id, plan) for task_id in ids]
    known = [end for end in ends if end is not None]
    return max(known) if len(known) == len(ends) else None


def _last_end(folder: Path, plan: Plan) -> float | None:
    """When the last attempt ended; None while it has not, or where another may follow."""
    numbers = [int(one.name) for one in folder.glob("[0-9]*") if one.name.isdigit()]
    last = max(numbers, default=0)
    found = {rank: read_report(folder / str(last) / str(rank)) for rank in range(plan.nodes)}
    reports = {rank: report for rank, report in found.items() if report}
    outcome = attempt_outcome(reports, plan.nodes, attempt=last)
    if outcome is None or outcome.state is TaskStatus.PREEMPTED:
        return None
    if outcome.state in (TaskStatus.FAILED, TaskStatus.LOST) and last - _requeued(folder, last) <= plan.retries:
        return None
    return outcome.ended or 0.0


def _requeued(folder: Path, last: int) -> int:
    """How many attempts before the last ended so that they are no failures."""
    found = [[read_report(path) for path in (folder / str(number)).glob("[0-9]*")] for number in range(1, last)]
    return sum(any(report and report.cause == "requeue" for report in reports) for reports in found)


def _end_of(record: Path, row: Row, final: Callable[[str], Outcome | None]) -> float | None:
    """When a task ended, or None when neither its record nor its folders say that it did."""
    try:
        outcome = final(row.task_id)
        if outcome is None:
            values = json.loads((record / row.task_id / "record.json").read_bytes())
            return _end_on_disk(record, submission_from(values).plan)
    except _UNREADABLE:
        return None
    return outcome.ended if outcome.ended is not None else row.created


def _awaited(index: RecordIndex) -> set[str]:
    """Tasks that one which is not final waits for."""
    unfinished = ", ".join(f"'{state}'" for state in TaskStatus if state not in FINAL)
    rows = index.read(f"SELECT after FROM tasks WHERE after != '' AND state IN ({unfinished})")
    return {split_element(task_id)[0] for (after,) in rows for task_id in after.split()}


def _folders(record: Path) -> dict[str, list[Path]]:
    """The folders of each task: its own and its elements'."""
    found: dict[str, list[Path]] = {}
    with os.scandir(record) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(_DOOMED):
                found.setdefault(split_element(entry.name)[0], []).append(Path(entry.path))
    return found


def _remove_tree(folder: Path) -> None:
    """All of it, folders that the task made read-only too."""
    try:
        shutil.rmtree(folder)
    except PermissionError:
        for path, _, _ in os.walk(folder):
            Path(path).chmod(0o700)
        shutil.rmtree(folder)


def _size(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # it belongs to a task that runs
                total += os.lstat(f"{path}/{name}").st_size
    return total
