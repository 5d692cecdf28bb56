"""`flow mount`: one more volume for a task that runs."""

from __future__ import annotations

import click

from flow.cli import output
from flow.cli.group import FlowCommand
from flow.cli.references import task_argument


@click.command(cls=FlowCommand)
@click.argument("volume", metavar="VOLUME")
@task_argument()
def mount(volume: str, reference: str) -> int:
    """Have the running TASK see VOLUME at /mnt/NAME, at once.

    Both are named by id, by name, or by their line in the last list: `:1`.

    Example:
      flow mount datasets train
    """
    from flow.client import Flow

    client = Flow()
    task = client.get_task(reference)
    try:
        path = client.mount_volume(volume, task)
    finally:
        output.notes(client.notes)
    click.echo(f"{task.task_id}  {path}")
    output.hint(f"look into it with `flow ssh {task.task_id} -- ls {path}`")
    return 0
