"""`flow schema`: what a file of ours may hold, for editors."""

from __future__ import annotations

import json

import click

from flow.cli.group import FlowCommand


@click.command(cls=FlowCommand)
@click.argument("what", type=click.Choice(["task"]), metavar="task")
def schema(what: str) -> int:
    """Print the JSON schema of a task file, by which an editor completes and checks it.

    Example:
      flow schema task > task.schema.json
    """
    from flow.config import task_schema

    click.echo(json.dumps(task_schema(), indent=2))
    return 0
