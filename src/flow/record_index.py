"""The SQLite index over the records: a cache, so that a list of tasks reads one table; made anew when it is damaged."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from flow.connection import connect
from flow.durable import Lock, boot_id, is_damage, is_full, leave_to_parent, storage_error, writing
from flow.errors import StorageError
from flow.status import FINAL, Outcome, TaskStatus

_T = TypeVar("_T")
_VERSION = 4
_BUSY_SECONDS = 60.0
_SCHEMA = f"""
CREATE TABLE tasks (
    task_id TEXT PRIMARY KEY, name TEXT, provider TEXT, created REAL, instance_type TEXT, price_per_hour REAL,
    nodes INTEGER, elements INTEGER, number INTEGER, state TEXT, exit_code INTEGER, signal INTEGER, reason TEXT,
    attempt INTEGER, started REAL, ended REAL, partition TEXT, priority INTEGER, job_name TEXT,
    idempotency_key TEXT UNIQUE, want TEXT, allocated INTEGER, bundle TEXT, after TEXT
) WITHOUT ROWID;
CREATE INDEX by_time ON tasks (created DESC, task_id DESC);
CREATE INDEX by_state ON tasks (state, created DESC, task_id DESC);
CREATE INDEX by_name ON tasks (name, created DESC);
CREATE INDEX by_number ON tasks (number);
CREATE INDEX to_allocate ON tasks (created, task_id) WHERE allocated = 0;
CREATE TABLE listing (position INTEGER PRIMARY KEY, task_id TEXT);
CREATE TABLE damaged (task_id TEXT PRIMARY KEY, path TEXT, why TEXT);
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT);
PRAGMA user_version = {_VERSION};
"""
_FINAL_SQL = ", ".join(f"'{state.value}'" for state in sorted(FINAL, key=str))
_OUTCOME = "state, exit_code, signal, reason, attempt, started, ended"
_ROW = (
    "task_id, name, provider, created, instance_type, price_per_hour, nodes, elements, number, "
    f"{_OUTCOME}, partition, priority, job_name"
)
_STATE_AT = _ROW.split(", ").index("state")


@dataclass(frozen=True, slots=True)
class Row:
    """One task as a list shows it. Times are seconds since the epoch; `elements` is 0 but for an array."""

    task_id: str
    name: str
    provider: str
    created: float
    instance_type: str
    price_per_hour: float | None
    nodes: int
    elements: int
    number: int | None  # what Slurm's commands call it
    state: TaskStatus
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""
    attempt: int = 0
    started: float | None = None
    ended: float | None = None
    partition: str = ""
    priority: int = 0
    job_name: str = ""  # of a batch script: any text, where the name is a word

    @property
    def outcome(self) -> Outcome:
        """The state with its facts, as of the last look."""
        return Outcome(self.state, self.exit_code, self.signal, self.reason, self.attempt, self.started, self.ended)


@dataclass(frozen=True, slots=True)
class Entry:
    """What the index keeps of one record."""

    task_id: str
    row: Row | None  # None where the record itself cannot be read
    idempotency_key: str | None = None
    want: str = "run"
    allocated: bool = False
    bundle: str | None = None
    after: tuple[str, ...] = ()
    next_number: int = 0  # the first that is free after those of this task; 0 where they are not ours
    damage: tuple[str, str] | None = None  # which file cannot be read, and why


class RecordIndex:
    """The index of one home. Threads and processes may share it; what is read of a home without records is empty.

    `names` gives the ids that have a record on disk, `entry` what there is to know of one. Raises StorageError when the
    disk does not let it write; where the home cannot be written to, everything can still be read.
    """

    def __init__(self, home: Path, names: Callable[[], list[str]], entry: Callable[[str], Entry | None]) -> None:
        self.notes: list[str] = []
        self.lock = Lock(home / "record" / ".lock")
        self._home = home
        self._path = home / "index.db"
        self._names = names
        self._entry = entry
        self._mine = threading.local()  # a connection for each thread, and what it was opened on

    @property
    def is_writable(self) -> bool:
        """Whether this home's folder can be written to, or can be made."""
        return os.access(self._home, os.W_OK | os.X_OK) or not self._home.exists()

    def make(self) -> None:
        """Make the index where there is none yet; records that lie there already are read into it."""
        self._try(lambda db: None)

    def read(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of one SELECT."""
        return self._try(lambda db: db.execute(sql, values).fetchall())

    def write(self, change: Callable[[sqlite3.Connection], object]) -> None:
        """Make `change` in one transaction. It may run twice, when the index turns out to be damaged."""

        def transaction(db: sqlite3.Connection) -> None:
            db.execute("BEGIN IMMEDIATE")
            try:
                change(db)
                db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
                raise

        self._try(transaction)

    def next_number(self) -> int:
        """The number of the next task. Of records that were pruned it is not known that they had theirs."""
        found = self.read("SELECT value FROM meta WHERE key = 'next_number'")
        return int(found[0][0]) if found else 1

    def mark_allocated(self, task_id: str, number: int | None) -> None:
        """It was handed to a provider; `number`: what that one's own commands call it, where they do."""
        sql = "UPDATE tasks SET allocated = 1, number = ifnull(?, number) WHERE task_id = ?"
        self.write(lambda db: db.execute(sql, (number, task_id)))

    def put(self, entry: Entry) -> None:
        """Add one record, or replace what was known of it."""
        self.write(lambda db: _put(db, entry))

    def remove(self, task_ids: Iterable[str]) -> None:
        """Forget these tasks."""
        ids = [(task_id,) for task_id in task_ids]
        tables = ("tasks", "listing", "damaged")
        self.write(lambda db: [db.executemany(f"DELETE FROM {table} WHERE task_id = ?", ids) for table in tables])

    def note_outcomes(self, outcomes: Mapping[str, Outcome]) -> None:
        """Bring the states up to date; a final one stays as it is. Ids that are not in the index are passed over."""
        known = self.read(
            f"SELECT task_id, {_OUTCOME} FROM tasks WHERE state NOT IN ({_FINAL_SQL})"
            + (" AND task_id IN (SELECT value FROM json_each(?))"),
            (json.dumps(list(outcomes)),),
        )
        changed = [(*now, task_id) for task_id, *was in known if tuple(was) != (now := _facts(outcomes[task_id]))]
        if changed:
            sets = ", ".join(f"{column} = ?" for column in _OUTCOME.split(", "))
            sql = f"UPDATE tasks SET {sets} WHERE task_id = ? AND state NOT IN ({_FINAL_SQL})"
            self.write(lambda db: db.executemany(sql, changed))

    def rows(self, conditions: Mapping[str, Any], *, states: Sequence[str] = (), limit: int = -1) -> list[Row]:
        """Newest first: tasks for which each condition holds with its value, in one of `states` if there are some."""
        order = "ORDER BY created DESC, task_id DESC LIMIT ?"
        given = [*conditions.values(), limit]
        if not states:
            sql = f"SELECT {_ROW} FROM tasks WHERE {' AND '.join(conditions) or '1'} {order}"
        else:  # each state by its own index, so that a limit never sorts what it does not show
            one = f"SELECT * FROM (SELECT {_ROW} FROM tasks WHERE {' AND '.join(('state = ?', *conditions))} {order})"
            sql = f"{' UNION ALL '.join([one] * len(states))} {order}"
            given = [value for state in states for value in (state, *given)] + [limit]
        return [_row(*fields) for fields in self.read(sql, given)]

    def unallocated(self) -> list[str]:
        """Those that are to run and were not handed to a provider, oldest first."""
        conditions = f"allocated = 0 AND want = 'run' AND state NOT IN ({_FINAL_SQL})"
        found = self.read(f"SELECT task_id FROM tasks WHERE {conditions} ORDER BY created, task_id")
        return [task_id for (task_id,) in found]

    def save_listing(self, task_ids: Iterable[str]) -> None:
        """The list that was shown last, first line first."""
        lines = list(enumerate(task_ids, start=1))

        def change(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM listing")
            db.executemany("INSERT INTO listing VALUES (?, ?)", lines)

        self.write(change)

    def catch_up(self) -> None:
        """Take in every record that is on disk, whatever the index believes."""
        self.write(lambda db: db.execute("DELETE FROM meta WHERE key = 'boot'"))
        self._mine.connection = None
        self._try(lambda db: None)

    def _try(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        try:
            return work(self._opened())
        except sqlite3.DatabaseError as error:
            self._mend(error)
        try:
            return work(self._opened())
        except sqlite3.DatabaseError as error:
            raise StorageError(f"the index of tasks `{self._path}` cannot be used: {error}") from error

    def _mend(self, error: sqlite3.DatabaseError) -> None:
        """Return when the same may be tried again, raise StorageError otherwise."""
        text = str(error)
        if "full" in text or is_full(self._home):  # nothing can be opened then: that is no damage
            raise storage_error(self._home, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from error
        inode = self._mine.stamp[1]
        self._mine.connection = None
        if "readonly" in text and self.is_writable:  # the file was replaced under us
            return
        if not is_damage(error) or not self.is_writable:
            raise StorageError(f"the index of tasks `{self._path}` cannot be used: {text}") from error
        self._rebuild(inode)

    def _opened(self) -> sqlite3.Connection:
        stamp = self._stamp()
        connection: sqlite3.Connection | None = getattr(self._mine, "connection", None)
        if connection is None or self._mine.stamp != stamp:
            if connection is not None and self._mine.stamp[0] != stamp[0]:
                leave_to_parent(connection)
            self._mine.stamp = stamp
            connection = self._open(stamp[1])
            self._mine.connection, self._mine.stamp = connection, self._stamp()
        return connection

    def _stamp(self) -> tuple[int, ...]:
        """Another one when the index must be opened again: forked, replaced, or copied and since written to."""
        stamp = (os.getpid(), self._inode())
        if stamp[1] and self.is_writable:
            return stamp
        log = self._path.with_name("index.db-wal")
        return (*stamp, *(_written(path) for path in (self._home / "record", self._path, log)))

    def _open(self, inode: int) -> sqlite3.Connection:
        if not self.is_writable:
            return self._open_read_only(inode)
        if inode == 0:
            if not (self._home / "record").is_dir():
                return self._in_memory()
            self._rebuild(0)
        db = self._connect()
        self._catch_up(db)
        return db

    def _connect(self) -> sqlite3.Connection:
        db = _connect(str(self._path))
        if db.execute("PRAGMA user_version").fetchone() != (_VERSION,):
            raise sqlite3.DatabaseError("another version")
        return db

    def _catch_up(self, db: sqlite3.Connection) -> None:
        """After the machine went down the newest rows may be missing, though their records are there."""
        boot = boot_id()
        if db.execute("SELECT value FROM meta WHERE key = 'boot'").fetchone() == (boot,):
            return
        with writing(self._home):
            (self._home / "record").mkdir(mode=0o700, exist_ok=True)
        with self.lock:
            known = {task_id for (task_id,) in db.execute("SELECT task_id FROM tasks")}
            missing = [entry for name in self._names() if name not in known and (entry := self._entry(name))]
            db.execute("BEGIN IMMEDIATE")
            for entry in missing:
                _put(db, entry)
            db.execute("REPLACE INTO meta VALUES ('boot', ?)", (boot,))
            db.execute("COMMIT")

    def _rebuild(self, inode: int) -> None:
        """Read every record again, unless another process has done so since `inode` was opened."""
        with writing(self._home), self.lock:
            if self._inode() != inode:
                return
            if inode:
                aside = f"{self._path.name}.damaged-{time.time_ns()}"
                for end in ("", "-wal", "-shm"):
                    with contextlib.suppress(FileNotFoundError):
                        self._path.with_name(self._path.name + end).rename(self._path.with_name(aside + end))
                self.notes.append(
                    f"the index of tasks was damaged: made anew from the records, the old one is `{aside}`"
                )
            else:
                for end in ("-wal", "-shm"):
                    self._path.with_name(self._path.name + end).unlink(missing_ok=True)
            new = self._path.with_name(f"{self._path.name}.new-{os.getpid()}")
            new.unlink(missing_ok=True)
            os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            db = _connect(str(new))
            db.execute("PRAGMA journal_mode = WAL")
            count = self._fill(db)
            db.close()
            new.rename(self._path)
            if count and not inode:
                self.notes.append(f"the index of tasks was missing: made anew from {count} records")

    def _fill(self, db: sqlite3.Connection) -> int:
        db.executescript(_SCHEMA)
        db.execute("BEGIN")
        count = 0
        for name in self._names():
            entry = self._entry(name)
            if entry:
                _put(db, entry)
                count += 1
        db.execute("REPLACE INTO meta VALUES ('boot', ?)", (boot_id(),))
        db.execute("COMMIT")
        return count

    def _open_read_only(self, inode: int) -> sqlite3.Connection:
        if inode:
            with contextlib.suppress(sqlite3.DatabaseError):
                return self._copied()
        return self._in_memory()

    def _copied(self) -> sqlite3.Connection:
        """A copy of the index with its log: SQLite cannot read a log where it cannot write beside it."""
        import shutil
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            for end in ("", "-wal"):
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(f"{self._path}{end}", f"{folder}/index.db{end}")
            copy = _connect(f"{folder}/index.db")
            db = _connect(":memory:")
            copy.backup(db)
            copy.close()
        if db.execute("PRAGMA user_version").fetchone() != (_VERSION,):
            raise sqlite3.DatabaseError("another version")
        return db

    def _in_memory(self) -> sqlite3.Connection:
        db = _connect(":memory:")
        self._fill(db)
        return db

    def _inode(self) -> int:
        try:
            return self._path.stat().st_ino
        except OSError:
            return 0


def _connect(path: str) -> sqlite3.Connection:
    db = connect(path, timeout_seconds=_BUSY_SECONDS)
    db.create_function("matches", 2, fnmatch.fnmatchcase, deterministic=True)
    # a crash of the machine may take the newest rows, never a record: `_catch_up` finds them
    db.execute(f"PRAGMA synchronous = {'NORMAL' if boot_id() else 'FULL'}")
    return db


def _written(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _row(*fields: Any) -> Row:
    values = list(fields)
    values[_STATE_AT] = TaskStatus(values[_STATE_AT])
    return Row(*values)


def _facts(outcome: Outcome) -> tuple[Any, ...]:
    exit_code, signal, reason = outcome.exit_code, outcome.signal, outcome.reason
    return outcome.state.value, exit_code, signal, reason, outcome.attempt, outcome.started, outcome.ended


def _put(db: sqlite3.Connection, entry: Entry) -> None:
    if entry.damage:
        db.execute("REPLACE INTO damaged VALUES (?, ?, ?)", (entry.task_id, *entry.damage))
    if entry.row is None:
        return
    db.execute("DELETE FROM tasks WHERE task_id = ?", (entry.task_id,))
    key = entry.idempotency_key
    if key and db.execute("SELECT 1 FROM tasks WHERE idempotency_key = ?", (key,)).fetchone():
        key = None  # a damaged home may hold two; the older one answers
    values = [getattr(entry.row, column) for column in _ROW.split(", ")]
    values[_STATE_AT] = entry.row.state.value
    values += [key, entry.want, entry.allocated, entry.bundle, " ".join(entry.after)]
    db.execute(f"INSERT INTO tasks VALUES ({', '.join('?' * len(values))})", values)
    if entry.next_number:
        highest = "ON CONFLICT (key) DO UPDATE SET value = max(CAST(value AS INTEGER), CAST(excluded.value AS INTEGER))"
        db.execute(f"INSERT INTO meta VALUES ('next_number', ?) {highest}", (entry.next_number,))
