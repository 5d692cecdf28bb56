"""`flow logs`: what a task wrote, and nothing else on stdout."""

from __future__ import annotations

import json
import re
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from flow.cli import follow, output, times
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
@click.option("-n", "--tail", type=click.IntRange(min=0), metavar="N", help="Begin at the last N lines.")
@click.option("--since", metavar="TIME", help="Begin at a time, or a span ago: `10m`, `2026-05-04T15:30`.")
@click.option("--grep", metavar="REGEX", help="Only lines in which it is found.")
@click.option("--node", type=click.IntRange(min=0), metavar="R", help="Only this node's, 0 being the first.")
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

    Example:
      flow logs train --follow --tail 20
    """
    _check_pattern(grep)
    from flow.client import Flow

    client = Flow()
    task = client.get_task(reference)
    output.notes(client.notes)
    chosen: dict[str, Any] = {
        "follow": following,
        "stream": None if stdout_only == stderr_only else "stdout" if stdout_only else "stderr",
        "tail": tail,
        "since": None if since is None else times.parse_moment(since, time.time()),
        "grep": grep,
        "node": node,
        "cursor": cursor,
    }
    if not following:
        _print(task, chosen, timestamps=timestamps, as_json=as_json)
        _say_if_not_started(task)
        return 0
    with follow.attached(task):
        if output.is_terminal(sys.stderr):
            follow.until_started(task)
        _print(task, chosen, timestamps=timestamps, as_json=as_json)
        task.wait()
    return follow.exit_code(task)


def _print(task: Task, chosen: dict[str, Any], *, timestamps: bool, as_json: bool) -> None:
    stdout = sys.stdout.buffer
    if not (timestamps or as_json):
        follow.copy_output(task.merged(**chosen), stdout, stdout)
        return
    for line in task.lines(**chosen):
        output.write_whole(stdout, _json_line(line) if as_json else _stamped(line))
        if chosen["follow"]:
            stdout.flush()


def _stamped(line: Line) -> bytes:
    return b"%s  %s\n" % (times.iso(line.time).encode(), line.text)


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
