"""The local provider's queue: one SQLite file (WAL); a row is one task, or one element of an array."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path

from flow.connection import connect
from flow.durable import is_damage
from flow.machines import Report
from flow.plan import Plan, plan_from_dict
from flow.status import Want

_SCHEMA = """
CREATE TABLE plan (base TEXT PRIMARY KEY, created REAL NOT NULL, hash TEXT NOT NULL, plan TEXT NOT NULL);
CREATE TABLE task (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    base TEXT NOT NULL,
    array_index INTEGER,
    state TEXT NOT NULL,
    priority INTEGER NOT NULL,
    not_before REAL,
    attempt INTEGER NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0,
    used_seconds REAL NOT NULL DEFAULT 0,
    cancel REAL,
    gpu_ids TEXT NOT NULL DEFAULT '[]',
    reason TEXT NOT NULL DEFAULT '',
    ended REAL,
    reports TEXT NOT NULL DEFAULT '{}'
);
CREATE INDEX task_next ON task (priority DESC, seq) WHERE state = 'queued';
CREATE INDEX task_open ON task (state, base, seq) WHERE state <> 'ended';
CREATE INDEX task_base ON task (base, seq);
CREATE INDEX task_cancel ON task (cancel) WHERE cancel IS NOT NULL AND state <> 'ended';
CREATE TABLE wait (upstream TEXT NOT NULL, downstream TEXT NOT NULL, state TEXT NOT NULL,
                   PRIMARY KEY (upstream, downstream, state)) WITHOUT ROWID;
CREATE INDEX wait_downstream ON wait (downstream);
PRAGMA user_version = 1;
"""
_COLUMNS = (
    "seq, id, base, array_index, state, priority, not_before, attempt, failures, used_seconds, cancel, gpu_ids, "
    "reason, ended, reports"
)

WAITS_FOR_USER = ("stuck", "held")  # until somebody lets go of it, or cancels it
_AT_WORK = "('waiting', 'later', 'throttled', 'queued', 'resumed', 'started')"
_OPEN = f"{_AT_WORK[:-1]}, 'stuck', 'held')"
_UNSTARTED = "('waiting', 'stuck', 'later', 'throttled', 'queued', 'resumed')"  # and not held

_REPORT = tuple(field.name for field in fields(Report))  # they are flat: `asdict` would look into each


@dataclass(frozen=True, slots=True)
class Row:
    """One task of the queue.

    state: "waiting" (for dependencies), "stuck" (waits for what can never be), "later" (for its time), "throttled" (for
    its array's limit), "queued", "held", "resumed" (let go of, to be given one of these states by the scheduler),
    "started" (its attempt was given to runners: the folder tells the rest), "ended".
    """

    seq: int
    id: str
    base: str
    array_index: int | None
    state: str
    priority: int
    not_before: float | None
    attempt: int
    failures: int
    used_seconds: float
    cancel: float | None
    gpu_ids: tuple[int, ...]
    reason: str
    ended: float | None
    reports: Mapping[int, Report]


class Queue:
    """A connection to the queue. Raises sqlite3.DatabaseError where the file is damaged; the caller mends that."""

    def __init__(self, path: Path) -> None:
        """Open, and make where missing."""
        self.path = path
        with suppress(OSError):  # plans hold secrets; never opened if it is there: closing frees SQLite's locks
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        self.db = connect(path, timeout_seconds=60)
        self.db.execute("PRAGMA synchronous = NORMAL")  # what a power cut takes back is in the records and the folders
        self._make_schema()
        self._plans: dict[str, Plan] = {}

    def close(self) -> None:
        """Close the connection."""
        self.db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; taken for writing at once, so that it waits its turn here and not in the middle."""
        try:
            self.db.execute("BEGIN IMMEDIATE")
            yield
            self.db.execute("COMMIT")
        except BaseException as error:
            with suppress(sqlite3.Error):  # there is none any more where the disk is full
                self.db.execute("ROLLBACK")
            note_damage(self.path, error)
            raise

    def add(self, plan: Plan, *, wanted: Callable[[], Iterable[tuple[str, Want]]] = tuple) -> bool:
        """Queue the plan's task or its whole array; False, and nothing done, where it is there already.

        `wanted` gives what of it the user has cancelled or holds, on record before `ask` is called.
        As it is asked when nobody else can write, one of the two sees the other.
        """
        with self.transaction():
            is_new = self.insert(plan)
            for task_id, want in wanted():
                self.note_want(task_id, want)
        return is_new

    def insert(self, plan: Plan, *, created: float | None = None) -> bool:
        """Queue it, inside `transaction`; `created`: when it was submitted, seconds since the epoch."""
        if self.holds(plan.task_id):
            return False
        text = json.dumps(plan.to_dict(), separators=(",", ":"))
        self.db.execute("INSERT INTO plan VALUES (?, ?, ?, ?)", (plan.task_id, created or time.time(), plan.hash, text))
        self.db.executemany(
            "INSERT INTO task (id, base, array_index, state, priority, not_before) VALUES (?, ?, ?, ?, ?, ?)",
            _new_rows(plan),
        )
        self.db.executemany(
            "INSERT OR IGNORE INTO wait VALUES (?, ?, ?)",
            [(one.task_id, plan.task_id, one.state) for one in plan.after],
        )
        return True

    def holds(self, base: str) -> bool:
        """Whether the task or array is in the queue."""
        return self.db.execute("SELECT 1 FROM plan WHERE base = ?", (base,)).fetchone() is not None

    def has_row(self, task_id: str) -> bool:
        """Whether this task or element is in the queue; an array has no row of its own."""
        return self.db.execute("SELECT 1 FROM task WHERE id = ?", (task_id,)).fetchone() is not None

    def plan(self, base: str) -> Plan:
        """The plan of a task or array, kept in memory once read."""
        if base not in self._plans:
            if len(self._plans) > 2000:
                self._plans.clear()
            try:
                (text,) = self.db.execute("SELECT plan FROM plan WHERE base = ?", (base,)).fetchone() or ("",)
                self._plans[base] = _plan(base, text)
            except sqlite3.DatabaseError as error:
                note_damage(self.path, error)
                raise
        return self._plans[base]

    def check(self) -> None:
        """Raises sqlite3.DatabaseError where anything in the file cannot be read."""
        (found,) = self.db.execute("PRAGMA quick_check").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(f"malformed: {found}")
        for values in self.db.execute(f"SELECT {_COLUMNS} FROM task"):
            _row(values)
        for base, text in self.db.execute(
            "SELECT base, coalesce(plan, '') FROM (SELECT DISTINCT base FROM task) LEFT JOIN plan USING (base)"
        ):
            _plan(base, text)

    def created(self, bases: Collection[str]) -> dict[str, tuple[float, str]]:
        """(created, plan hash) of each plan named."""
        found = self._by_ids("SELECT base, created, hash FROM plan WHERE base IN ({})", bases)
        return {str(base): (float(str(when)), str(hash_)) for base, when, hash_ in found}

    def rows(self, task_ids: Collection[str] | None = None) -> list[Row]:
        """Rows of the tasks, arrays or elements named, or all; newest first, an array's elements in their order."""
        if task_ids is None:
            found: Iterable[tuple[object, ...]] = self.db.execute(f"SELECT {_COLUMNS} FROM task")
        else:
            whole = self._by_ids(f"SELECT {_COLUMNS} FROM task WHERE base IN ({{}})", task_ids)
            elements = [one for one in task_ids if "_" in one]
            found = [*whole, *self._by_ids(f"SELECT {_COLUMNS} FROM task WHERE id IN ({{}})", elements)]
        rows = list({row.id: row for row in map(_row, found)}.values())
        rows.sort(key=lambda row: row.seq)
        rows.sort(key=lambda row: row.base, reverse=True)  # ids sort by time; equal ones keep their order
        return rows

    def in_state(self, state: str, *, base: str | None = None, limit: int = -1) -> list[Row]:
        """Rows in a state that is not "ended", oldest first."""
        where, values = ("state = ? AND base = ?", [state, base]) if base else ("state = ?", [state])
        sql = f"SELECT {_COLUMNS} FROM task WHERE {where} AND state <> 'ended' ORDER BY seq LIMIT ?"
        return [_row(one) for one in self.db.execute(sql, (*values, limit))]

    def after_ended(self, base: str, array: str) -> list[Row]:
        """The waiting elements of one array for which the element of the same index of another one has ended."""
        sql = (
            f"SELECT {_COLUMNS} FROM task WHERE state = 'waiting' AND base = ? AND state <> 'ended' AND EXISTS "
            "(SELECT 1 FROM task AS other WHERE other.id = ? || '_' || task.array_index AND other.state = 'ended')"
        )
        return [_row(one) for one in self.db.execute(sql, (base, array))]

    def occupied(self, base: str) -> int:
        """How many elements of an array take one of the places that its limit gives."""
        sql = (
            "SELECT count(*) FROM task WHERE state IN ('later', 'queued', 'started') AND base = ? AND state <> 'ended'"
        )
        count: int = self.db.execute(sql, (base,)).fetchone()[0]
        return count

    def next_queued(self, limit: int, *, skip: int = 0) -> Iterator[Row]:
        """The first of the queue, in the order in which they are to start; as it is now, whatever is done meanwhile."""
        sql = f"SELECT {_COLUMNS} FROM task WHERE state = 'queued' ORDER BY priority DESC, seq LIMIT ? OFFSET ?"
        return map(_row, self.db.execute(sql, (limit, skip)).fetchall())

    def uncancelled(self) -> list[tuple[str, str]]:
        """(id, id of its array or itself) of the rows that have not ended and are not to."""
        return self.db.execute("SELECT id, base FROM task WHERE cancel IS NULL AND state <> 'ended'").fetchall()

    def cancelled(self) -> list[Row]:
        """Rows that are to end and have not."""
        sql = f"SELECT {_COLUMNS} FROM task WHERE cancel IS NOT NULL AND state <> 'ended'"
        return [_row(one) for one in self.db.execute(sql)]

    def next_time(self) -> float | None:
        """When the next "later" row may start, in seconds since the epoch."""
        found = self.db.execute("SELECT min(not_before) FROM task WHERE state = 'later' AND state <> 'ended'")
        when: float | None = found.fetchone()[0]
        return when

    def due(self, now: float) -> list[Row]:
        """The "later" rows whose time has come."""
        sql = f"SELECT {_COLUMNS} FROM task WHERE state = 'later' AND state <> 'ended' AND not_before <= ?"
        return [_row(one) for one in self.db.execute(sql, (now,))]

    def new_waiting(self, last_seen: int) -> tuple[int, set[str]]:
        """The newest row there is, and the bases of the waiting ones among those that came after `last_seen`."""
        (newest,) = self.db.execute("SELECT coalesce(max(seq), 0) FROM task").fetchone()
        sql = "SELECT DISTINCT base FROM task WHERE seq > ? AND +state = 'waiting'"
        found = self.db.execute(sql, (last_seen,)).fetchall() if newest > last_seen else []
        return newest, {base for (base,) in found}

    def throttled(self) -> set[str]:
        """The arrays with elements that their limit holds back."""
        found = self.db.execute("SELECT DISTINCT base FROM task WHERE state = 'throttled' AND state <> 'ended'")
        return {base for (base,) in found}

    def is_open(self, task_id: str, *, unstarted: bool = False) -> bool:
        """Whether the task, or any of its elements, has not ended; `unstarted`: was not even started."""
        which = "id = ?" if "_" in task_id else f"base = ? AND state IN {_OPEN}"  # by the index of what is open
        more = "AND attempt = 0" if unstarted else ""
        sql = f"SELECT 1 FROM task WHERE {which} AND state <> 'ended' {more} LIMIT 1"
        return self.db.execute(sql, (task_id,)).fetchone() is not None

    def has_work(self) -> bool:
        """Whether any task has not ended, of those that do not wait for the user."""
        sql = f"SELECT 1 FROM task WHERE (state IN {_AT_WORK} OR cancel IS NOT NULL) AND state <> 'ended' LIMIT 1"
        return self.db.execute(sql).fetchone() is not None

    def places(self, rows: Iterable[Row]) -> dict[str, int]:
        """How many queued tasks start before each of `rows`. One walk over the queue, however many are asked."""
        above = "SELECT count(*) FROM task WHERE state = 'queued' AND priority > ?"
        between = "SELECT count(*) FROM task WHERE state = 'queued' AND priority = ? AND seq >= ? AND seq < ?"
        places: dict[str, int] = {}
        ahead, last = 0, None
        for row in sorted((one for one in rows if one.state == "queued"), key=lambda one: (-one.priority, one.seq)):
            if last is None or last.priority != row.priority:
                (ahead,) = self.db.execute(above, (row.priority,)).fetchone()
            since = last.seq if last and last.priority == row.priority else 0
            if since and row.seq == since + 1:  # as an array's elements are: nothing lies between
                ahead += 1
            else:
                ahead += self.db.execute(between, (row.priority, since, row.seq)).fetchone()[0]
            places[row.id], last = ahead, row
        return places

    def ask(self, task_ids: Iterable[str], want: Want) -> None:
        """Do what their user wants to tasks, arrays or elements: all of it or nothing."""
        with self.transaction():
            for task_id in task_ids:
                self.note_want(task_id, want)

    def note_want(self, task_id: str, want: Want) -> None:
        """The same to one of them, for use inside `transaction`. What has ended is left alone."""
        if want is Want.CANCEL:
            change, which = "cancel = :now", "state <> 'ended' AND cancel IS NULL"
        elif want is Want.HOLD:  # what runs goes on
            change, which = "state = 'held', reason = ''", f"state IN {_UNSTARTED}"
        else:
            change, which = "state = 'resumed'", "state = 'held'"
        sql = f"UPDATE task SET {change} WHERE (base = :id OR id = :id) AND {which}"
        self.db.execute(sql, {"id": task_id, "now": time.time()})
        if want is Want.HOLD:  # the places that this frees in its array are given out at once
            self.db.execute(
                "UPDATE task SET state = 'resumed' WHERE seq = "
                "(SELECT min(seq) FROM task WHERE base = ? AND state = 'throttled' AND state <> 'ended')",
                (task_id.partition("_")[0],),
            )

    def set_state(self, row: Row, state: str, reason: str = "") -> None:
        """Move a row on. For use inside `transaction`, as the rest below."""
        self.db.execute("UPDATE task SET state = ?, reason = ? WHERE seq = ?", (state, reason, row.seq))

    def let_on(self, base: str, state: str, *, not_before: float, seq: int | None = None, reason: str = "") -> None:
        """Move the waiting rows of a task or array on, or only one of them; none starts earlier than `not_before`."""
        only = "" if seq is None else "AND seq = ?"
        self.db.execute(
            "UPDATE task SET state = ?, reason = ?, not_before = nullif(max(coalesce(not_before, 0), ?), 0) "
            f"WHERE base = ? AND state = 'waiting' {only}",
            (state, reason, not_before, base, *(() if seq is None else (seq,))),
        )

    def start(self, row: Row, gpu_ids: Collection[int]) -> Row:
        """Give the row its next attempt and its GPUs; the row as it is then."""
        self.db.execute(
            "UPDATE task SET state = 'started', attempt = attempt + 1, gpu_ids = ?, reason = '', reports = '{}' "
            "WHERE seq = ?",
            (json.dumps(list(gpu_ids)), row.seq),
        )
        return replace(row, state="started", attempt=row.attempt + 1, gpu_ids=tuple(gpu_ids), reason="", reports={})

    def take_back(self, row: Row, reason: str) -> None:
        """The attempt provably ran nothing: queue the row again under the same attempt number."""
        self.db.execute(
            "UPDATE task SET state = 'queued', attempt = attempt - 1, gpu_ids = '[]', reason = ? WHERE seq = ?",
            (reason, row.seq),
        )

    def retry(self, row: Row, *, used_seconds: float, reason: str, is_held: bool = False) -> None:
        """Queue the row for its next attempt; this one counted as a failure."""
        self.requeue(row, reason=reason, is_held=is_held)
        self.db.execute(
            "UPDATE task SET failures = failures + 1, used_seconds = ? WHERE seq = ?", (used_seconds, row.seq)
        )

    def requeue(self, row: Row, *, reason: str, is_held: bool = False) -> None:
        """Queue the row for its next attempt, as if this one had not been."""
        self.db.execute(
            "UPDATE task SET state = ?, gpu_ids = '[]', reason = ? WHERE seq = ?",
            ("held" if is_held else "queued", "" if is_held else reason, row.seq),
        )

    def end(self, row: Row, reports: Mapping[int, Report], *, reason: str, now: float) -> None:
        """The row's end, once: what its last attempt's runners reported, or nothing where it never started."""
        values = {rank: {name: getattr(one, name) for name in _REPORT} for rank, one in reports.items()}
        text = json.dumps(values, separators=(",", ":"))
        self.db.execute(
            "UPDATE task SET state = 'ended', gpu_ids = '[]', reports = ?, reason = ?, ended = ? "
            "WHERE seq = ? AND state <> 'ended'",
            (text, reason, now, row.seq),
        )

    def downstream(self, upstream: str) -> list[tuple[str, str]]:
        """The tasks that wait for `upstream`, and the state that they wait for."""
        return list(self.db.execute("SELECT downstream, state FROM wait WHERE upstream = ?", (upstream,)))

    def forget_pruned(self, records: Path) -> None:
        """Forget the ended tasks whose record is no longer in the folder `records`."""
        with self.transaction():
            bases = [base for (base,) in self.db.execute("SELECT base FROM plan")]
            kept = set(os.listdir(records))  # noqa: PTH208  # names only, 100,000 of them; after the plans, as they are
            for base in bases:
                if base not in kept:
                    self.db.execute("DELETE FROM task WHERE base = ? AND state = 'ended'", (base,))
                    self.db.execute("DELETE FROM plan WHERE base = ? AND base NOT IN (SELECT base FROM task)", (base,))
                    self.db.execute(
                        "DELETE FROM wait WHERE downstream = ? AND downstream NOT IN (SELECT base FROM plan)", (base,)
                    )

    def _make_schema(self) -> None:
        if self.db.execute("PRAGMA user_version").fetchone()[0]:
            return
        self.db.execute("PRAGMA journal_mode = WAL")
        with self.transaction():  # asked again inside: another process may have made it in between
            if not self.db.execute("PRAGMA user_version").fetchone()[0]:
                for statement in _SCHEMA.split(";\n"):
                    self.db.execute(statement)

    def _by_ids(self, sql: str, ids: Collection[str]) -> Iterator[tuple[object, ...]]:
        """`sql` with its `{}` filled by the ids, 500 at a time (SQLite takes a limited number)."""
        wanted = list(ids)
        for start in range(0, len(wanted), 500):
            piece = wanted[start : start + 500]
            yield from self.db.execute(sql.format(",".join("?" * len(piece))), piece)


def _new_rows(plan: Plan) -> Iterator[tuple[str, str, int | None, str, int, float | None]]:
    """The rows of a new plan, in the state in which each begins."""
    first = "waiting" if plan.after else "later" if plan.not_before else "queued"
    if not plan.elements:
        yield plan.task_id, plan.task_id, None, first, plan.priority, plan.not_before
        return
    at_once = plan.elements.at_once or len(plan.elements.indices)
    for place, index in enumerate(plan.elements.indices):
        state = first if place < at_once or plan.after else "throttled"
        yield f"{plan.task_id}_{index}", plan.task_id, index, state, plan.priority, plan.not_before


def suspect_path(path: Path) -> Path:
    """The file that is there while the queue in `path` is known to be damaged."""
    return path.with_name(f"{path.name}.suspect")


def note_damage(path: Path, error: BaseException) -> None:
    """Leave word that the queue must be mended, for whoever opens it next; nothing where `error` is not about that."""
    if isinstance(error, sqlite3.DatabaseError) and is_damage(error) and "disk i/o" not in str(error).lower():
        with suppress(OSError):
            suspect_path(path).touch(mode=0o600)


def _plan(base: str, text: str) -> Plan:
    try:
        return plan_from_dict(json.loads(text))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise sqlite3.DatabaseError(f"malformed plan of {base}") from error


def _row(values: tuple[object, ...]) -> Row:
    row = list(values)
    gpu_ids, reports = str(row[11]), str(row[14])
    try:
        row[11] = tuple(json.loads(gpu_ids)) if gpu_ids != "[]" else ()
        row[14] = {int(rank): _report(one) for rank, one in json.loads(reports).items()} if reports != "{}" else {}
    except (ValueError, TypeError, AttributeError) as error:
        raise sqlite3.DatabaseError(f"malformed row of {row[1]}") from error
    return Row(*row)  # type: ignore[arg-type]  # SQLite gives the types of the schema


def _report(values: dict[str, object]) -> Report:
    values["needs"] = ()
    return Report(**values)  # type: ignore[arg-type]  # written by `end` from a Report
