"""The record of every task: acknowledged when it is on disk; the first final state wins."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from flow.durable import NoRoomError, create_durably, sync_path, why, write_all_durably, write_durably, writing
from flow.errors import FlowError, StorageError, TaskNotFoundError, ValidationError
from flow.outbox import empty_outbox, fill_outbox
from flow.record_format import (
    Submission,
    entry_from,
    first_intent,
    later_intent,
    outcome_values,
    read_final,
    read_intent,
    request_of,
    submission_from,
    submission_values,
    to_json,
    unreadable,
)
from flow.record_index import Entry, RecordIndex, Row
from flow.references import choose_unfinished, find_task, split_element
from flow.status import FINAL, Intent, Outcome, TaskStatus, Want

if TYPE_CHECKING:
    from flow.prune import Pruned

__all__ = ["Records", "Row", "Submission", "TaskIdTaken", "new_task_id"]

_T = TypeVar("_T")
_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_YEAR_2025 = 1_735_689_600.0  # 2025-01-01 UTC, in seconds since the epoch
_TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,99}")  # a folder's name, without the `_` that elements have


class TaskIdTaken(FlowError):  # noqa: N818  # what happened, to be answered by another id
    """There is a task with this id already."""


class Records:
    """The records of one home, `$FLOW_HOME`, made when first written to. Threads and processes may share it.

    `notes` gathers sentences for the user. Everything raises StorageError where the disk stands in the way, and
    TaskNotFoundError for an id that has no record. An element of an array is named `<id>_<index>`.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self._folder = home / "record"
        own = weakref.proxy(self)  # no cycle: what nobody holds any more lets go of its files at once
        self._index = RecordIndex(home, partial(Records._names, own), partial(Records._entry, own))

    @property
    def notes(self) -> list[str]:
        """What the user should know: a name that several tasks have, an index made anew."""
        return self._index.notes

    def add(
        self,
        submission: Submission,
        want: Want = Want.RUN,
        *,
        outbox: Mapping[str, bytes] | None = None,
        numbered: bool = True,
    ) -> Submission:
        """Acknowledge a task: it is on disk when this returns. The same idempotency key gives the earlier submission.

        numbered: whether it gets the next number; its provider has numbers of its own otherwise.
        outbox: secret files by name, 0600, which are brought to the machines and kept until the task has ended.
        Raises TaskIdTaken, or ValidationError when the key was used for another request.
        """
        if not _TASK_ID.fullmatch(submission.task_id):
            raise ValidationError(f"`{submission.task_id}` cannot be a task's id")
        with self._alone():
            self._index.make()
            self._adopt_what_a_crash_left()
            earlier = self._earlier(submission)
            if earlier is None:
                if numbered:
                    plan = dataclasses.replace(submission.plan, number=self._index.next_number())
                    submission = dataclasses.replace(submission, plan=plan)
                self._write(submission, want, outbox or {})
        return earlier or submission

    def mark_allocated(self, task_id: str, number: int | None = None) -> None:
        """`allocate` has returned for this task. Not worth waiting for the disk: asking twice is harmless.

        number: what the provider's own commands call it.
        """
        name, text = ("allocated", "") if number is None else ("number", str(number))
        with writing(self.home), contextlib.suppress(FileNotFoundError):
            handle = os.open(self._path(task_id, name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.write(handle, text.encode())
            os.close(handle)
        self._index.mark_allocated(task_id, number)

    def note_wait(self, task_id: str, reason: str) -> None:
        """What a task waits for that its provider was not given yet; "": nothing."""
        if reason != self.wait_reason(task_id):
            with writing(self.home), contextlib.suppress(FileNotFoundError):
                self._path(task_id, "waits").write_text(reason)

    def wait_reason(self, task_id: str) -> str:
        """What `note_wait` was told last."""
        try:
            return self._path(task_id, "waits").read_text()
        except OSError:
            return ""

    def note_mounted(self, task_id: str, volume_id: str) -> None:
        """That a task is given a volume which its plan does not have."""
        with writing(self.home), self._path(task_id, "mounted").open("a") as file:
            file.write(f"{volume_id}\n")

    def mounted(self, task_id: str) -> list[str]:
        """What `note_mounted` was told."""
        try:
            return self._path(task_id, "mounted").read_text().split()
        except OSError:
            return []

    def number(self, task_id: str) -> int | None:
        """The number that `mark_allocated` was given."""
        try:
            return int(self._path(task_id, "number").read_text())
        except (OSError, ValueError):
            return None

    def unallocated(self) -> list[str]:
        """Acknowledged tasks that are to run and for which `allocate` is not known to have returned, oldest first."""
        if self._index.is_writable and self._index.lock.is_noted:
            with self._alone():
                self._adopt_what_a_crash_left()
        return self._index.unallocated()

    def get(self, task_id: str) -> Submission:
        """What was submitted; an element gives its array's. StorageError names the file when it is damaged."""
        array, index = split_element(task_id)
        submission = self._read(array, submission_from)
        elements = submission.plan.elements
        if index is not None and not (elements and index in elements.indices):
            raise _not_found(task_id)
        return submission

    def intent(self, task_id: str) -> Intent:
        """What the user wants of it now; for an element the later of its own and its array's, a cancel before all."""
        array, index = split_element(task_id)
        own = self._own_intent(task_id) if index is not None else None
        whole = self._own_intent(array) or self._read(array, first_intent)
        return later_intent(own, whole) or whole

    def set_intent(self, task_id: str, want: Want) -> Intent:
        """Write down what the user wants from now on; what was cancelled stays cancelled.

        A cancel takes the place of what cannot be read: it is the last word in any case.
        """
        return self.set_intents([task_id], want)[0]

    def set_intents(self, task_ids: Sequence[str], want: Want) -> list[Intent]:
        """The same for each of them; all is on disk when it returns."""
        with self._alone():
            intents = [self._next_intent(task_id, want) for task_id in task_ids]
            new = {one: intent for one, (intent, is_new) in zip(task_ids, intents, strict=True) if is_new}
            write_all_durably(
                {
                    self._path(one, "intent.json"): to_json({"want": want.value, "since": intent.since})
                    for one, intent in new.items()
                }
            )
            for task_id in new if want is Want.CANCEL else ():  # nothing of it starts again
                empty_outbox(self._path(task_id, "outbox").parent)
        values = [(want.value, task_id) for task_id in new]
        if values:
            self._index.write(lambda db: db.executemany("UPDATE tasks SET want = ? WHERE task_id = ?", values))
        return [intent for intent, _ in intents]

    def _next_intent(self, task_id: str, want: Want) -> tuple[Intent, bool]:
        """The intent that holds once `want` is said, and whether it is to be written."""
        self._make_folder(task_id)
        try:
            before = self.intent(task_id)
        except StorageError:
            if want is not Want.CANCEL:
                raise
            before = Intent(Want.RUN, 0.0)
        is_said = before.want is want and split_element(task_id)[1] is None  # an element may have it of its array
        if is_said or before.want is Want.CANCEL:
            return before, False
        return Intent(want, max(time.time(), before.since)), True  # the clock may have been put back

    def final(self, task_id: str) -> Outcome | None:
        """The final state, or None while none was recorded."""
        return read_final(self._path(task_id, "final.json").parent)

    def set_final(self, task_id: str, outcome: Outcome) -> Outcome:
        """Record how it ended; the first one wins and is returned, one that contradicts it is kept beside it."""
        if outcome.state not in FINAL:
            raise ValueError(f"`{outcome.state}` is not a final state")
        path = self._path(task_id, "final.json")
        content = to_json(outcome_values(outcome))
        with writing(self.home):
            self._make_folder(task_id)
            try:
                create_durably(path, content)
                first = outcome
            except FileExistsError:
                first = self.final(task_id) or outcome
                if (first.state, first.exit_code) != (outcome.state, outcome.exit_code):
                    write_durably(path.with_name(f"final-contradicted-{time.time_ns()}.json"), content)
            empty_outbox(path.parent)
        self.note_outcomes({task_id: first})
        return first

    def note_outcomes(self, outcomes: Mapping[str, Outcome]) -> None:
        """Bring the lists up to date, in one transaction; a final state stays. A read-only home stays as it is."""
        if outcomes and self._index.is_writable:
            self._index.note_outcomes(outcomes)

    def rows(
        self,
        *,
        limit: int | None = None,
        states: Collection[TaskStatus] | None = None,
        name_pattern: str | None = None,
        unfinished: bool = False,
        since: float | None = None,
    ) -> list[Row]:
        """The tasks, newest first, an array as one. `since`: created at or after (seconds since the epoch)."""
        asked = set(TaskStatus if states is None else states) - (FINAL if unfinished else frozenset())
        if not asked:
            return []
        conditions: dict[str, Any] = {}
        if name_pattern is not None:
            conditions["matches(name, ?)"] = name_pattern
        if since is not None:
            conditions["created >= ?"] = since
        some = sorted(asked) if asked != set(TaskStatus) else ()
        return self._index.rows(conditions, states=some, limit=-1 if limit is None else limit)

    def rows_of(self, task_ids: Collection[str]) -> list[Row]:
        """These tasks as a list shows them, newest first; an element has no row of its own."""
        return self._index.rows({"task_id IN (SELECT value FROM json_each(?))": json.dumps(list(task_ids))})

    def folder(self, task_id: str, attempt: int, rank: int) -> Path:
        """The task folder of one rank of one attempt."""
        return self._folder / task_id / str(attempt) / str(rank)

    def damaged(self) -> list[tuple[str, Path, str]]:
        """Records that cannot be read: id, file, and why."""
        found = []
        for task_id, path, _ in self._index.read("SELECT task_id, path, why FROM damaged ORDER BY task_id"):
            try:
                self.get(task_id)
                self.intent(task_id)
                self.final(task_id)
            except StorageError as error:
                found.append((task_id, Path(path), error.message))
            except TaskNotFoundError:
                continue
        return found

    def find(self, reference: str, *, unfinished: Callable[[str], Sequence[str]] | None = None) -> str:
        """The id of the task that is meant by an id, its beginning, `:N` of the last list, `@last`, a number or a name.

        A name means the newest task of that name, with a note where there are more. With `unfinished`, which tells what
        of a name has not ended, it means that one.
        Raises TaskNotFoundError with the nearest, ValidationError where several are meant.
        """
        found = find_task(self._index, reference)
        if unfinished and found.name:
            found = choose_unfinished(found, unfinished(found.name))
        self.notes.extend(found.notes)
        if found.place is not None:
            plan = self.get(found.task_id).plan
            if not plan.elements or plan.number is None:  # at its provider those numbers may be others'
                raise _not_found(reference)
            return f"{found.task_id}_{plan.elements.indices[found.place]}"
        if split_element(found.task_id)[1] is not None:
            self.get(found.task_id)  # the array may have no such element
        return found.task_id

    def save_listing(self, task_ids: Sequence[str]) -> None:
        """What `:1`, `:2` … mean from now on; forgotten where the home cannot be written to."""
        if self._index.is_writable and self._folder.is_dir():
            self._index.save_listing(task_ids)

    def prune(
        self,
        *,
        older_than_seconds: float | None = None,
        keep: int | None = None,
        max_bytes: int | None = None,
        needed: Collection[str] = (),
        dry_run: bool = False,
    ) -> Pruned:
        """Remove what has ended: longer ago than `older_than_seconds`, beyond the newest `keep`, and from the oldest on
        until all records take at most `max_bytes`. Never what is not final, what one that is not final waits for, or
        what is `needed`.

        Uploaded projects that no task names any more go too, and what was left by writers that were killed.
        """
        from flow.blobs import store_lock  # what a list of tasks does not need
        from flow.prune import Limits, Pruned, collect, doom, doom_without_index, empty, sweep

        limits = Limits(older_than_seconds, keep, max_bytes)
        try:
            with self._alone():
                self._index.catch_up()
                gone = doom(self._folder, self._index, self.final, limits=limits, needed=needed, dry_run=dry_run)
        except NoRoomError:
            with self._alone():
                gone = doom_without_index(self._folder, limits=limits, needed=needed, dry_run=dry_run)
        if not dry_run:
            self.notes.extend(empty(self._folder))
            sweep(self.home)
        try:
            with store_lock(self.home, shared=False), self._alone():  # in the order of one who submits
                self._index.catch_up()
                more = collect(self.home, self._index, gone.task_ids, dry_run=dry_run)
        except NoRoomError:  # still: the index drops what is gone when it is asked for it
            return gone
        return Pruned(gone.task_ids, gone.bytes + more)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with writing(self.home):
            for folder in (self.home, self._folder):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._index.lock:
                yield

    def _write(self, submission: Submission, want: Want, outbox: Mapping[str, bytes]) -> None:
        values = submission_values(submission, want)
        folder = self._folder / submission.task_id
        if folder.exists():
            raise TaskIdTaken(f"there is a task `{submission.task_id}` already")
        self._index.lock.note = submission.task_id
        try:
            folder.mkdir(mode=0o700)
            fill_outbox(folder, outbox)
            write_durably(folder / "record.json", to_json(values))
            sync_path(str(self._folder))
            self._index.put(entry_from(values))
        except BaseException:
            _take_back(folder)
            self._index.lock.note = ""
            raise
        self._index.lock.note = ""

    def _adopt_what_a_crash_left(self) -> None:
        """A submitter that was killed at its work: what it wrote whole is a task, the rest never was."""
        task_id = self._index.lock.note
        if not task_id:
            return
        entry = self._entry(task_id)
        if entry:
            self._index.put(entry)
        else:
            _take_back(self._folder / task_id)
        self._index.lock.note = ""

    def has_key(self, idempotency_key: str) -> bool:
        """Whether a task was submitted with this key."""
        return bool(self._index.read("SELECT 1 FROM tasks WHERE idempotency_key = ?", (idempotency_key,)))

    def _earlier(self, submission: Submission) -> Submission | None:
        key = submission.idempotency_key
        found = key and self._index.read("SELECT task_id FROM tasks WHERE idempotency_key = ?", (key,))
        if not found:
            return None
        earlier = self.get(found[0][0])
        if request_of(earlier.plan) != request_of(submission.plan):
            raise ValidationError(
                f"the idempotency key `{key}` was used for another request, `{earlier.task_id}`",
                suggestions=["use another key", f"see what was asked with `flow info {earlier.task_id}`"],
            )
        return earlier

    def _names(self) -> list[str]:
        try:
            names = os.listdir(self._folder)  # noqa: PTH208
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for name in names if _TASK_ID.fullmatch(name))

    def _entry(self, task_id: str) -> Entry | None:
        """What the index is to know of a record, read from the disk; None where there is none."""
        path = self._path(task_id, "record.json")
        try:
            values = json.loads(path.read_bytes())
            entry = entry_from(values)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            return Entry(task_id, None, damage=(str(path), why(error)))
        number = self.number(task_id)
        is_allocated = number is not None or self._path(task_id, "allocated").exists()
        entry = dataclasses.replace(entry, allocated=is_allocated)
        try:
            intent, final = self._own_intent(task_id), self.final(task_id)
        except StorageError as error:
            return dataclasses.replace(entry, damage=(str(path.parent), error.message))
        row = dataclasses.replace(entry.row, **dataclasses.asdict(final)) if entry.row and final else entry.row
        if row and row.number is None:
            row = dataclasses.replace(row, number=number)
        return dataclasses.replace(entry, row=row, want=intent.want.value if intent else entry.want)

    def _own_intent(self, task_id: str) -> Intent | None:
        return read_intent(self._path(task_id, "intent.json").parent)

    def _read(self, task_id: str, made_of: Callable[[Mapping[str, Any]], _T]) -> _T:
        """What is made of the values of a record file."""
        path = self._path(task_id, "record.json")
        try:
            return made_of(json.loads(path.read_bytes()))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            is_known = bool(self._index.read("SELECT 1 FROM tasks WHERE task_id = ?", (task_id,)))
            if isinstance(error, (FileNotFoundError, NotADirectoryError)) and not (is_known and path.parent.is_dir()):
                if is_known and self._index.is_writable:  # its folder was removed by hand
                    self._index.remove([task_id])
                raise _not_found(task_id) from None
            if self._index.is_writable:
                self._index.put(Entry(task_id, None, damage=(str(path), why(error))))
            raise unreadable(path, error) from error

    def _path(self, task_id: str, name: str) -> Path:
        if not _TASK_ID.fullmatch(split_element(task_id)[0]):
            raise _not_found(task_id)
        return self._folder / task_id / name

    def _make_folder(self, task_id: str) -> None:
        """The folder of a task that is there, or of an element of one."""
        if self._path(task_id, "record.json").exists():
            return
        self.get(task_id)
        folder = self._folder / task_id
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
            sync_path(str(self._folder))


def new_task_id(now: float | None = None) -> str:
    """`task-` and 14 Crockford base32 characters: 40 bits of milliseconds since 2025, 30 random; sorts by time."""
    milliseconds = round(((time.time() if now is None else now) - _YEAR_2025) * 1000)
    number = (max(milliseconds, 0) % (1 << 40)) << 30 | int.from_bytes(os.urandom(4), "big") >> 2
    return "task-" + "".join(_CROCKFORD[number >> shift & 31] for shift in range(65, -1, -5))


def _take_back(folder: Path) -> None:
    """Remove a record that was never acknowledged."""
    with contextlib.suppress(OSError):
        for left in folder.glob(".record.json.*"):
            left.unlink()
        empty_outbox(folder)
        (folder / "record.json").unlink(missing_ok=True)
        folder.rmdir()


def _not_found(task_id: str) -> TaskNotFoundError:
    return TaskNotFoundError(f"there is no task `{task_id}`", suggestions=["list them with `flow status --all`"])
