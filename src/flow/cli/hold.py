"""`flow hold` and `flow resume`: keep tasks from starting, and let them start."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from flow.cli import output
from flow.cli.group import FlowCommand
from flow.cli.references import task_argument

if TYPE_CHECKING:
    from flow.task import Task


@click.command(cls=FlowCommand)
@task_argument("references", nargs=-1, required=True, metavar="TASK…")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def hold(references: tuple[str, ...], *, as_json: bool) -> int:
    """Keep each TASK that has not started, or element of an array, from starting until `flow resume`.

    Example:
      flow hold train
    """
    return _ask(references, lambda task: task.hold(), as_json=as_json)


@click.command(cls=FlowCommand)
@task_argument("references", nargs=-1, required=True, metavar="TASK…")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def resume(references: tuple[str, ...], *, as_json: bool) -> int:
    """Let each held TASK, or element of an array, start.

    Example:
      flow resume train
    """
    return _ask(references, lambda task: task.resume(), as_json=as_json)


def _ask(references: tuple[str, ...], what: Callable[[Task], None], *, as_json: bool) -> int:
    from flow.client import Flow

    client = Flow()
    tasks = [client.get_task(reference) for reference in references]
    output.notes(client.notes)
    for task in tasks:
        what(task)
        task.refresh()
    if as_json:
        output.print_json({"tasks": [task.record() for task in tasks]})
    else:
        click.echo("\n".join(f"{task.task_id}  {task.status}" for task in tasks))
    return 0
