"""`flow ssh`: a shell, or one command, where a task runs."""

from __future__ import annotations

import click

from flow.cli import output
from flow.cli.group import FlowCommand
from flow.cli.references import task_argument


@click.command(cls=FlowCommand)
@task_argument()
@click.argument("command", nargs=-1, metavar="[-- COMMAND…]", type=click.UNPROCESSED)
@click.option("--node", type=click.IntRange(min=0), default=0, metavar="R", help="On this node, 0 being the first.")
def ssh(reference: str, command: tuple[str, ...], *, node: int) -> int:
    """Open a shell in the folder and environment of TASK, or run COMMAND there and exit with its code.

    One word is a shell command (`'ls | wc -l'`); several are run as they are. Of a task that has ended but keeps its
    machine (`flow run --keep`): on that machine.

    Example:
      flow ssh train -- nvidia-smi -L
    """
    from flow.client import Flow

    client = Flow()
    task = client.get_task(reference)
    output.notes(client.notes)
    return task.shell(command[0] if len(command) == 1 else command or None, node=node, tell=output.note)
