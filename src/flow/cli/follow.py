"""Following one task in front of a user: its phase until it writes, its output, its end, its exit code."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from flow.cli import listing, output, times
from flow.cli.group import attach
from flow.errors import FlowError
from flow.status import TaskStatus

if TYPE_CHECKING:
    from flow.client import Flow
    from flow.jupyter import Jupyter
    from flow.task import Task

_CODES = {TaskStatus.COMPLETED: 0, TaskStatus.TIMED_OUT: 124, TaskStatus.LOST: 125, TaskStatus.CANCELLED: 143}
_WAITING = (TaskStatus.PENDING, TaskStatus.STARTING, TaskStatus.PREEMPTED, TaskStatus.PAUSED)
_STOPPED = (TaskStatus.PREEMPTED, TaskStatus.PAUSED)
_QUIET_SECONDS = 1.0  # a phase shorter than this is not worth a line
_REDRAW_SECONDS = 1.0
_LONGEST_PAUSE = 0.25  # seconds between looks at a task that has not started
_HELD_SECONDS, _ASKED_SECONDS = 0.1, 2.0  # between looks at what is given back, and until somebody is to see to it
_SERVER_SECONDS = 1.0  # between looks at whether it runs
_RESULT_WIDTH = 200  # characters; a longer result is for `flow info`


def exit_code(task: Task) -> int:
    """The code of a task that ended: its own; 124 timed out, 125 lost, 143 cancelled."""
    return _CODES.get(task.status, task.exit_code or 1)


@contextlib.contextmanager
def attached(task: Task) -> Iterator[None]:
    """While the command stands for `task`: the first Ctrl-C leaves the task running, and says how to come back."""
    attach()
    try:
        yield
    except KeyboardInterrupt:
        tell_going_on(task.task_id)
        raise click.exceptions.Exit(130) from None


def tell_going_on(task_id: str) -> None:
    """Below the line that shows ^C: what the command leaves, and how to come back to it."""
    output.say("")
    output.note(f"`{task_id}` goes on")
    output.hint(f"come back with `flow logs {task_id} -f`")
    output.hint(f"end it with `flow cancel {task_id}`")


def until_started(task: Task) -> None:
    """Show the phases of a task on stderr until it runs or has ended."""
    from flow.patience import Patience

    began, patience = time.monotonic(), Patience()
    pause = 0.005
    with _Phase() as phase:
        while task.status in _WAITING:
            waited = time.monotonic() - began
            if waited >= _QUIET_SECONDS:
                phase.show(_phase_of(task), waited)
            time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE)
            patience.look(task)


def interruptions(task: Task, end_line: Callable[[], None] | None = None) -> Callable[[], None]:
    """What is to be called after each look at a task that is followed: says on stderr that it was stopped for a while,
    or what became of its machine.

    end_line: called before that.
    """
    told = ""

    def tell() -> None:
        nonlocal told
        is_cut = task.status is TaskStatus.RUNNING and not task.is_array  # of which that tells how many have ended
        phase = _phase_of(task) if task.status in _STOPPED or (is_cut and task.reason) else ""
        kind = phase.partition(", since ")[0]  # which moves where another client reaches the machine
        if kind not in ("", told):
            if end_line:
                end_line()
            output.note(phase)
        told = kind

    return tell


@contextlib.contextmanager
def forwarded(task: Task) -> Iterator[None]:
    """While it lasts, the ports that a running task serves on another machine are ports here; says which."""
    with contextlib.ExitStack() as stack:
        for port in task.plan.ports if task.status is TaskStatus.RUNNING and not task.is_array else ():
            with contextlib.suppress(FlowError):  # it ended just now, or is out of reach: no reason not to follow it
                one = stack.enter_context(task.forward(port))
                if not one.is_direct:
                    output.note(f"port {port} of `{task.task_id}` is here http://{one.address}")
        yield


def until_given_back(client: Flow, tasks: list[Task]) -> None:
    """Wait until what was rented for tasks is known to be gone; the attendant sees to it."""
    task_ids = {task.task_id for task in tasks}  # an element's machines are its array's, and go with it
    asked = -math.inf
    while task_ids & {task_id for _, task_id in client.held()}:
        if asked == -math.inf:
            output.say("giving back what was rented")
        if time.monotonic() - asked > _ASKED_SECONDS:
            client.finish_interrupted()  # which starts one, where there is none
            asked = time.monotonic()
        time.sleep(_HELD_SECONDS)
    if any("_" not in task_id for task_id in task_ids):
        output.note("nothing of it is rented any more")


def until_ended(task: Task, timeout: float | None = None, *, began: float | None = None) -> None:
    """Wait for the end, its phase shown on a terminal.

    Raises flow.errors.TimeoutError `timeout` seconds after `began` (by the monotonic clock; None: now).
    """
    from flow.errors import TimeoutError as FlowTimeoutError

    began = time.monotonic() if began is None else began
    deadline = math.inf if timeout is None else began + timeout
    step = _REDRAW_SECONDS if output.is_terminal(sys.stderr) else math.inf  # elsewhere nothing is gained by waking up
    with _Phase() as phase:
        while True:
            part = max(min(deadline - time.monotonic(), step), 0.0)
            try:
                task.wait(timeout=None if part == math.inf else part)
                return
            except FlowTimeoutError:
                if time.monotonic() >= deadline:
                    raise FlowTimeoutError(
                        f"`{task.task_id}` has not ended after {timeout:g} s; it goes on",
                        suggestions=[f"wait on with `flow wait {task.task_id}`"],
                    ) from None
                phase.show(_phase_of(task), time.monotonic() - began)


def until_unserved(task: Task, server: Jupyter) -> None:
    """Wait for the end of the task, or of a server that was started in it, and say which it was."""
    from flow.errors import TimeoutError as FlowTimeoutError

    while server.is_running and not task.status.is_final:
        with contextlib.suppress(FlowTimeoutError):
            task.wait(_SERVER_SECONDS)
    output.say(f"`{task}` has ended: {task.status}" if task.status.is_final else "the server has ended")


def summary(task: Task) -> list[str]:
    """How a task ended: the line, and its result where that is small."""
    parts = [str(task.status)]
    why = listing.own_reason(task)
    if why and why != parts[0]:
        parts.append(why)
    elif not why and task.exit_code is not None:
        parts.append(f"exit {task.exit_code}")
    if task.run_seconds is not None:
        parts.append(f"ran {times.span(task.run_seconds)}")
    if len(task.attempts) > 1:
        parts.append(f"attempt {len(task.attempts)}")
    lines = [f"{task.task_id}{output.GAP}{output.GAP.join(parts)}"]
    result = one_line(result_of(task))
    if result and len(result) <= _RESULT_WIDTH:
        lines.append(f"result: {result}")
    return lines


def result_of(task: Task) -> Any:
    """The result of a task that ended; one that is not JSON is a note and no reason to fail: the task did its work."""
    try:
        return task.result() if task.status.is_final else None
    except FlowError as error:
        output.note(error.message)
        return None


def one_line(result: Any) -> str:
    """A result as JSON on one line; nothing where there is none."""
    return "" if result is None else json.dumps(result, ensure_ascii=False)


def _phase_of(task: Task) -> str:
    why = listing.reason(task)
    return f"{task.status}: {why}" if why else str(task.status)


class _Phase:
    """One line on stderr: redrawn with the time on a terminal, written once for each phase elsewhere."""

    def __init__(self) -> None:
        self._shown = ""

    def __enter__(self) -> _Phase:
        return self

    def show(self, text: str, seconds: float) -> None:
        if output.is_terminal(sys.stderr):
            line = f"{output.printable(text)}{output.GAP}{times.span(seconds)}"
            click.echo(f"\r\x1b[K{line}", err=True, nl=False)
        elif text != self._shown:
            output.say(text)
        self._shown = text

    def __exit__(self, *_: object) -> None:
        if self._shown and output.is_terminal(sys.stderr):
            click.echo("\r\x1b[K", err=True, nl=False)
