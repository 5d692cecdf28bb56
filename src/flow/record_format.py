"""The files of a record, as values: what was submitted, how it ended, and what the index keeps of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flow.durable import why
from flow.errors import StorageError
from flow.mounts import VOLUME
from flow.plan import Plan, plan_from_dict
from flow.record_index import Entry, Row
from flow.slurm.submitting import partition_of
from flow.status import Intent, Outcome, TaskStatus, Want

# In two submissions of a request; the project may have changed by what the first one did there, as writing a log.
_NEVER_THE_SAME = ("task_id", "notes", "not_before", "price_per_hour", "shell_env", "bundle", "number")


@dataclass(frozen=True, slots=True)
class Submission:
    """What was submitted: the plan, the config it was made of (JSON values), when (since the epoch) and by whom."""

    task_id: str
    plan: Plan
    config: dict[str, Any]
    created: float
    user: str
    idempotency_key: str | None = None
    email: str = ""


def submission_values(submission: Submission, want: Want) -> dict[str, Any]:
    """What `record.json` holds; `want` is the intent it begins with."""
    values = {one.name: getattr(submission, one.name) for one in dataclasses.fields(Submission)}
    return {"v": 1, **values, "plan": submission.plan.to_dict(), "want": want.value}


def submission_from(values: Mapping[str, Any]) -> Submission:
    """The Submission of a `record.json`; raises LookupError, TypeError or AttributeError on anything else."""
    fields = {one.name: values[one.name] for one in dataclasses.fields(Submission) if one.name in values}
    return Submission(**{**fields, "plan": plan_from_dict(values["plan"])})


def first_intent(values: Mapping[str, Any]) -> Intent:
    """The intent that a `record.json` begins with; raises LookupError, TypeError or ValueError on anything else."""
    return Intent(Want(values["want"]), float(values["created"]))


def read_intent(folder: Path) -> Intent | None:
    """What was asked since the submission of the task or element with this record; None where nothing was.

    Raises StorageError where that cannot be read.
    """
    path = folder / "intent.json"
    try:
        values = json.loads(path.read_bytes())
        return Intent(Want(values["want"]), float(values["since"]))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise unreadable(path, error) from error


def later_intent(own: Intent | None, whole: Intent | None) -> Intent | None:
    """What holds for an element: the later of what was asked of it and of its array, a cancel before all."""
    if own is None or whole is None:
        return own or whole
    if whole.want is Want.CANCEL:
        return whole
    return own if own.want is Want.CANCEL or own.since >= whole.since else whole


def read_final(folder: Path) -> Outcome | None:
    """The final state in this record; None while none was recorded. Raises StorageError where it cannot be read."""
    path = folder / "final.json"
    try:
        return outcome_from(json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> StorageError:
    """What a file of a record that cannot be read is told with."""
    return StorageError(f"`{path}` is damaged: {why(error)}", suggestions=["the other tasks are not affected"])


def entry_from(values: Mapping[str, Any]) -> Entry:
    """What the index keeps of a record that has just begun."""
    plan = values["plan"]
    elements, batch = plan["elements"], plan.get("batch") or {}
    row = Row(
        task_id=values["task_id"],
        name=plan["name"],
        provider=plan["provider"],
        created=values["created"],
        instance_type=plan["instance_type"],
        price_per_hour=plan["price_per_hour"],
        nodes=plan["nodes"],
        elements=len(elements["indices"]) if elements else 0,
        number=plan.get("number"),
        partition=partition_of(batch.get("options", ()), plan["provider"]),
        priority=plan["priority"],
        job_name=batch.get("variables", {}).get("SLURM_JOB_NAME", ""),
        state=TaskStatus.PENDING,
    )
    after = tuple(dependency["task_id"] for dependency in plan["after"])
    key = values["idempotency_key"]
    next_number = row.number + max(row.elements, 1) if row.number else 0
    want = first_intent(values).want.value
    return Entry(row.task_id, row, key, want=want, bundle=plan["bundle"], after=after, next_number=next_number)


def outcome_values(outcome: Outcome) -> dict[str, Any]:
    """What `final.json` holds."""
    return {"v": 1, **dataclasses.asdict(outcome)}


def outcome_from(values: Mapping[str, Any]) -> Outcome:
    """The Outcome of a `final.json`; raises LookupError, TypeError or ValueError on anything else."""
    known = {one.name: values[one.name] for one in dataclasses.fields(Outcome) if one.name in values}
    return Outcome(**{**known, "state": TaskStatus(values["state"])})


def request_of(plan: Plan) -> dict[str, Any]:
    """What was asked for, without what differs between two submissions of the same."""
    values = json.loads(to_json(plan.to_dict()))
    for mount in values["mounts"]:  # the first submission may have made the volume, and named it after itself
        if mount["kind"] == VOLUME:
            mount.update(source="", size_gb=None, name=mount["name"].replace(plan.task_id[-6:], ""))
    if plan.singleton:  # by then others have its name, or have ended
        values["after"] = ()
    return {key: value for key, value in values.items() if key not in _NEVER_THE_SAME}


def to_json(values: Any) -> bytes:
    """As it is written to disk."""
    return json.dumps(values, separators=(",", ":")).encode()
