"""`flow logs`: what a task wrote, and nothing else on stdout."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from flow.cli import copying, costs, follow, listing, output, times
from flow.cli.group import FlowCommand, UsageError
from flow.cli.references import task_argument
from flow.status import TaskStatus

if TYPE_CHECKING:
    from flow.logs import Line
    from flow.task import Task


@click.command(cls=FlowCommand)
@task_argument()
@click.option("-f", "--follow", "following", is_flag=True, help="Go on until the task ends; exit with its code.")
@click.option("--stdout", "stdout_only", is_flag=True, help="Only its standard output.")
@click.option("--stderr", "stderr_only", is_flag=True, help="Only its standard error.")
@click.option(
    "-n",
    "--tail",
    type=click.IntRange(min=0),
    metavar="N",
    help="Begin at the last N lines (of one over 16 MiB: its end).",
)
@click.option("--since", metavar="TIME", help="Begin at a time, or a span ago: `10m`, `2026-05-04T15:30`.")
@click.option("--grep", metavar="REGEX", help="Only lines in which it is found.")
@click.option("--node", type=click.IntRange(min=0), metavar="R", help="Only this node's, or array element's.")
@click.option("--cursor", metavar="CURSOR", help="Begin after the line that has this cursor (see `--json`).")
@click.option("--timestamps", is_flag=True, help="Put the time of arrival before each line.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document for each line.")
def logs(
    reference: str,
    *,
    following: bool,
    stdout_only: bool,
    stderr_only: bool,
    tail: int | None,
    since: str | None,
    grep: str | None,
    node: int | None,
    cursor: str | None,
    timestamps: bool,
    as_json: bool,
) -> int:
    """Print what TASK wrote, its two outputs in the order of arrival.

    Of several nodes, or of an array, each line begins with the node or index: `[3] `.

    Example:
      flow logs train --follow --tail 20
    """
    _check_pattern(grep)
    task, node = _named(reference, node)
    chosen: dict[str, Any] = {
        "follow": following,
        "stream": None if stdout_only == stderr_only else "stdout" if stdout_only else "stderr",
        "tail": tail,
        "since": None if since is None else times.parse_moment(since, time.time()),
        "grep": grep,
        "node": node,
        "cursor": cursor,
    }
    is_marked = copying.is_marked(task, node)
    copy: Callable[[], None]
    if timestamps or as_json:
        form = _json_line if as_json else _marked_line if is_marked else _stamped
        tell = follow.interruptions(task) if following else None
        copy = partial(_print_lines, task.lines(on_look=tell, **chosen), form, at_once=following)
    else:
        to = copying.Copy(sys.stdout.buffer, sys.stdout.buffer, marked=is_marked)
        tell = follow.interruptions(task, to.end_line) if following else None
        copy = partial(to.take, task.blocks(on_look=tell, **chosen), tell_attempts=following)
    if not following:
        copy()
        _say_if_not_started(task)
        _say_if_lost(task)
        return 0
    with follow.attached(task):
        if output.is_terminal(sys.stderr) or task.plan.ports:
            follow.until_started(task)
        with follow.forwarded(task):
            copy()
            task.wait()
    _say_if_lost(task)
    costs.say_kept(task)
    return follow.exit_code(task)


def _named(reference: str, node: int | None) -> tuple[Task, int | None]:
    """The task that is meant, and the node of it: a node of an array is an element, a task by itself."""
    from flow.client import Flow
    from flow.log_folders import check_rank

    client = Flow()
    task = client.get_task(reference)
    output.notes(client.notes)
    if not task.is_array or node is None:
        return task, node
    check_rank(task.task_id, task.plan, node, is_array=True)
    return client.get_task(f"{task.task_id}_{node}"), None


def _print_lines(lines: Iterator[Line], form: Callable[[Line], bytes], *, at_once: bool) -> None:
    stdout = sys.stdout.buffer
    for line in lines:
        output.write_whole(stdout, form(line))
        if at_once:
            stdout.flush()


def _stamped(line: Line) -> bytes:
    return b"%s  %s\n" % (times.iso(line.time).encode(), line.text)


def _marked_line(line: Line) -> bytes:
    return b"%s  %s%s\n" % (times.iso(line.time).encode(), copying.mark(line.rank), line.text)


def _json_line(line: Line) -> bytes:
    return json.dumps(_document(line), separators=(",", ":")).encode() + b"\n"


def _document(line: Line) -> dict[str, Any]:
    return {
        "time": times.iso(line.time),
        "attempt": line.attempt,
        "node": line.rank,
        "stream": "stderr" if line.stream else "stdout",
        "text": line.text.decode(errors="replace"),
        "cursor": line.cursor,
    }


def _check_pattern(pattern: str | None) -> None:
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise UsageError(f"`--grep`: cannot read `{pattern}` as a pattern: {error}") from error


def _say_if_not_started(task: Task) -> None:
    if task.status in (TaskStatus.PENDING, TaskStatus.STARTING):
        output.note(f"`{task.task_id}` has not started: {task.reason or task.status}")
        output.hint(f"follow it with `flow logs {task.task_id} -f`")


def _say_if_lost(task: Task) -> None:
    if task.status is TaskStatus.LOST:  # of which the log tells nothing
        output.note(f"lost: {output.printable(listing.own_reason(task))}".removesuffix(": "))
