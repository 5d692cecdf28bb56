"""What became of a call of a function, from the files it left and the end of its task: its value, or RemoteError."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flow.errors import RemoteError, StorageError
from flow.status import Outcome, TaskStatus

_LOG_LINES = 20  # of the task's output, shown with an error beside its traceback


def returned_value(
    function: str, task_id: str, outcome: Outcome, output: Path | None, read_logs: Callable[[int], str]
) -> Any:
    """What the function returned. `output`: its `$FLOW_OUTPUT`; `read_logs` gives so many of the last lines.

    Raises RemoteError where it raised an error or did not come to return.
    """
    if outcome.state is TaskStatus.COMPLETED and output and (output / "result.json").exists():
        return read_json(output / "result.json")
    failure = read_json(output / "error.json") if output and (output / "error.json").exists() else {}
    if outcome.state is TaskStatus.FAILED and failure.get("attempt") == outcome.attempt:
        raise remote_error(function, task_id, failure, read_logs)
    raise ended_error(function, task_id, outcome, read_logs)


def read_json(path: Path) -> Any:
    """The value in a file that a task left. Raises StorageError where it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, OSError, RecursionError) as error:
        raise StorageError(f"the result `{path}` is not JSON: {error}") from error


def remote_error(
    function: str, task_id: str, failure: Mapping[str, Any], read_logs: Callable[[int], str]
) -> RemoteError:
    """What is raised for an error that the machine told of."""
    text = failure["message"].strip().splitlines() or [""]
    raised = f"raised {failure['type']}: {text[0]}" if failure["traceback"] else f"could not be called: {text[0]}"
    if failure["type"] == "ResultError":
        raised = f"returned, but {text[0]}"
    return RemoteError(
        f"`{function}` {raised}".rstrip(": "),
        suggestions=[*failure["advice"], f"see its output with `flow logs {task_id}`"],
        remote_type=failure["type"],
        remote_message=failure["message"],
        traceback=failure["traceback"],
        task_id=task_id,
        read_logs=lambda: read_logs(_LOG_LINES + failure["traceback"].count("\n")),
    )


def ended_error(function: str, task_id: str, outcome: Outcome, read_logs: Callable[[int], str]) -> RemoteError:
    """What is raised for a process that ended before the function returned."""
    why = outcome.reason or (f"exit {outcome.exit_code}" if outcome.exit_code is not None else "")
    ended = "ended" if outcome.state is TaskStatus.COMPLETED else f"ended as {outcome.state}"
    return RemoteError(
        f"`{function}` did not return: `{task_id}` {ended}" + (f" ({why})" if why and why != outcome.state else ""),
        suggestions=[f"see its output with `flow logs {task_id}`"],
        remote_message=why,
        task_id=task_id,
        read_logs=lambda: read_logs(_LOG_LINES),
    )
