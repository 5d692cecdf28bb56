"""`flow info`: everything known about one task."""

from __future__ import annotations

import dataclasses
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from flow.cli import follow, listing, output, times
from flow.cli.group import FlowCommand
from flow.cli.plan_text import value_lines
from flow.cli.references import task_argument
from flow.status import TaskStatus

if TYPE_CHECKING:
    from flow.task import Task


@click.command(cls=FlowCommand)
@task_argument()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def info(reference: str, *, as_json: bool) -> int:
    """Show everything known about TASK: its state, times, attempts, machine, folder, result and configuration.

    Example:
      flow info train
    """
    from flow.client import Flow

    client = Flow()
    task = client.get_task(reference)
    output.notes(client.notes)
    if as_json:
        output.print_json(_document(task))
    else:
        click.echo("\n".join(_lines(task)))
    return 0


def _document(task: Task) -> dict[str, Any]:
    """The record, and what only a look into its folder tells."""
    attempts = [
        {
            **dataclasses.asdict(attempt),
            "status": str(attempt.status),
            "started_at": _iso(attempt.started_at),
            "ended_at": _iso(attempt.ended_at),
        }
        for attempt in task.attempts
    ]
    return {
        **task.record(),
        "attempts": attempts,
        "folder": None if task.folder is None else str(task.folder),
        "shell_command": task.shell_command,
        "result": follow.result_of(task),
    }


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else times.iso(moment.timestamp())


def _lines(task: Task) -> list[str]:
    facts = [(name, text) for name, text in _facts(task) if text]
    width = max(len(name) for name, _ in facts)
    lines = [f"{name:<{width}}  {text}" for name, text in facts]
    if len(task.attempts) > 1:
        lines += ["", "attempts", *_attempts(task)]
    config = task.record().get("config") or {}
    if config:
        lines += ["", "config", *value_lines(config, 2)]
    return lines


def _facts(task: Task) -> list[tuple[str, str]]:
    result = follow.one_line(follow.result_of(task))
    return [
        ("task", task.task_id),
        ("number", _number(task.number)),
        ("name", output.printable(task.name or "")),
        ("status", output.status_word(task)),
        ("reason", output.printable(listing.reason(task))),
        ("exit code", _number(task.exit_code)),
        ("signal", _number(task.signal)),
        ("created", _moment(task.created_at)),
        ("started", _moment(task.started_at)),
        ("ended", _moment(task.ended_at)),
        ("run time", "" if task.run_seconds is None else times.span(task.run_seconds)),
        ("provider", task.provider),
        ("region", task.plan.region or ""),
        ("type", task.instance_type or ""),
        ("nodes", _number(task.num_instances)),
        ("price", f"{output.price(task.price_per_hour)}/h" if task.price_per_hour else ""),
        ("cost", task.total_cost if task.price_per_hour else ""),
        *((f"port {name}", url) for name, url in task.endpoints.items()),
        ("folder", str(task.folder or "")),
        ("shell", task.shell_command if task.status is TaskStatus.RUNNING else ""),
        ("result", result),
    ]


def _attempts(task: Task) -> list[str]:
    rows = []
    for attempt in task.attempts:
        ran = "" if attempt.run_seconds is None else times.span(attempt.run_seconds)
        rows.append((f"  {attempt.number}", str(attempt.status), ran, attempt.reason or ""))
    columns = [
        output.Column(""),
        output.Column("", colors=output.STATES),
        output.Column("", right=True),
        output.Column(""),
    ]
    return output.table(columns, rows)[1:]


def _moment(moment: datetime | None) -> str:
    if moment is None:
        return ""
    return f"{times.stamp(moment)} ({times.age(time.time() - moment.timestamp())} ago)"


def _number(value: Any) -> str:
    return "" if value is None else str(value)
