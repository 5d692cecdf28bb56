"""What users call a task -> its id: an id, `:N` of the last list, `@last`, a number, the beginning of an id, a name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from flow.errors import TaskNotFoundError, ValidationError, did_you_mean
from flow.record_index import RecordIndex

_ELEMENT = re.compile(r"(.+)_(0|[1-9]\d*)")
_SHOWN = 5  # of several that are meant
_NEAR = 1000  # newest tasks that a misspelt name is held against


@dataclass(frozen=True, slots=True)
class Found:
    """The task that is meant; `notes` where the user might have meant another."""

    task_id: str
    notes: tuple[str, ...] = ()
    place: int | None = None  # of the array's elements, the one that is meant
    name: str = ""  # by which it was found, where others have it, too


def split_element(task_id: str) -> tuple[str, int | None]:
    """The array's id and the index of an element `<id>_<index>`; (the id, None) of anything else."""
    match = _ELEMENT.fullmatch(task_id)
    return (match[1], int(match[2])) if match else (task_id, None)


def find_task(index: RecordIndex, reference: str) -> Found:
    """Raises TaskNotFoundError with the nearest, ValidationError where several ids begin so.

    An element is its array's reference with `_<index>`; whether the array has it is not looked at.
    """
    found = _find_whole(index, reference)
    if found:
        return found
    array, element = split_element(reference)
    found = _find_whole(index, array) if element is not None else None
    if found:
        return Found(f"{found.task_id}_{element}", found.notes, name=found.name)
    raise _not_found(index, reference)


def choose_unfinished(found: Found, unfinished: Sequence[str]) -> Found:
    """Of the tasks of its name the one that has not ended, where there is one. Raises ValidationError with several."""
    if len(unfinished) > 1:
        raise ValidationError(
            f"{len(unfinished)} tasks named `{found.name}` have not ended: {_listed(unfinished)}",
            suggestions=["give the id of one", f"all of them: `flow cancel --name-pattern {found.name}`"],
        )
    if not unfinished:
        return found
    _, *element = found.task_id.split("_")
    return Found("_".join([unfinished[0], *element]))


def _find_whole(index: RecordIndex, reference: str) -> Found | None:
    exact = index.read(
        "SELECT task_id FROM tasks WHERE task_id = ? UNION SELECT task_id FROM damaged WHERE task_id = ?",
        (reference, reference),
    )
    if exact:
        return Found(exact[0][0])
    if reference.startswith(":") and reference[1:].isdecimal():
        listed = index.read("SELECT task_id FROM listing WHERE position = ?", (int(reference[1:]),))
        return Found(listed[0][0]) if listed else None
    if reference == "@last":
        last = index.rows({}, limit=1)
        return Found(last[0].task_id) if last else None
    return (
        _numbered(index, reference)
        or _beginning(index, reference)
        or _named(index, reference)
        or _beginning(index, f"task-{reference}", least=4)
    )


def _numbered(index: RecordIndex, text: str) -> Found | None:
    """The task with this number, the newest where two providers gave the same; or the element of an array."""
    if not text.isdecimal() or len(text) > 18:
        return None
    number = int(text)
    sql = "SELECT task_id, number, elements FROM tasks WHERE number <= ? ORDER BY number DESC, created DESC LIMIT 2"
    found = index.read(sql, (number,))
    if not found:
        return None
    task_id, first, elements = found[0]
    if first == number:
        others = len(found) > 1 and found[1][1] == number
        return Found(task_id, (f"several tasks have the number {number}: this is the newest, `{task_id}`",) * others)
    return Found(task_id, place=number - first - 1) if number < first + elements else None


def _beginning(index: RecordIndex, prefix: str, *, least: int = 1) -> Found | None:
    if not prefix.startswith("task-") or len(prefix) < len("task-") + least:
        return None
    ids = [
        task_id
        for (task_id,) in index.read(
            "SELECT task_id FROM tasks WHERE task_id >= ? AND task_id < ? ORDER BY task_id DESC LIMIT ?",
            (prefix, prefix + "\U0010ffff", _SHOWN + 1),
        )
    ]
    if len(ids) > 1:
        raise ValidationError(
            f"several tasks begin with `{prefix}`: {_listed(ids)}", suggestions=["give more of the id"]
        )
    return Found(ids[0]) if ids else None


def _named(index: RecordIndex, name: str) -> Found | None:
    rows = index.rows({"name = ?": name}, limit=_SHOWN + 1)
    if not rows:
        return None
    if len(rows) == 1:
        return Found(rows[0].task_id)
    count = str(len(rows)) if len(rows) <= _SHOWN else f"more than {_SHOWN}"
    note = f"{count} tasks are named `{name}`: this is the newest, `{rows[0].task_id}`"
    return Found(rows[0].task_id, (note,), name=name)


def _listed(task_ids: Sequence[str]) -> str:
    more = ", …" if len(task_ids) > _SHOWN else ""
    return ", ".join(f"`{task_id}`" for task_id in task_ids[:_SHOWN]) + more


def _not_found(index: RecordIndex, reference: str) -> TaskNotFoundError:
    if reference.startswith(":"):
        return TaskNotFoundError(
            f"the last list has no line `{reference}`", suggestions=["list them with `flow status`"]
        )
    near = [word for row in index.rows({}, limit=_NEAR) for word in (row.name, row.task_id)]
    suggestions = [*did_you_mean(reference, near), "list them with `flow status --all`"]
    return TaskNotFoundError(f"there is no task `{reference}`", suggestions=suggestions)
