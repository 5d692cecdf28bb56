"""`flow wait`: until tasks have ended, with their exit code."""

from __future__ import annotations

import time

import click

from flow.cli import costs, follow, output
from flow.cli.group import FlowCommand, attach
from flow.cli.references import task_argument


@click.command(cls=FlowCommand)
@task_argument("references", nargs=-1, required=True, metavar="TASK…")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Give up after so long, with code 6.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def wait(references: tuple[str, ...], *, timeout: float | None, as_json: bool) -> int:
    """Wait until each TASK has ended; exit with the first code that is not 0.

    124 stands for a time limit reached, 125 for a lost task, 143 for a cancelled one.

    Example:
      flow wait train eval --timeout 3600
    """
    from flow.client import Flow

    client = Flow()
    tasks = [client.get_task(reference) for reference in references]
    output.notes(client.notes)
    attach()
    began = time.monotonic()
    for task in tasks:
        follow.until_ended(task, timeout, began=began)
        if not as_json:
            click.echo("\n".join(follow.summary(task)))
    if as_json:
        output.print_json({"tasks": [task.record() for task in tasks]})
    for task in tasks:
        costs.say_kept(task)
    return next((code for task in tasks if (code := follow.exit_code(task))), 0)
