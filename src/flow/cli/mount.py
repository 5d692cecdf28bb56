"""`flow mount`: one more volume for a task that runs."""

from __future__ import annotations

import click

from flow.cli import output
from flow.cli.confirm import confirmed
from flow.cli.group import FlowCommand
from flow.cli.references import task_argument


@click.command(cls=FlowCommand)
@click.argument("volume", metavar="VOLUME")
@task_argument()
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def mount(volume: str, reference: str, *, yes: bool) -> int:
    """Have the running TASK see VOLUME at /mnt/NAME, at once.

    Both are named by id, by name, or by their line in the last list: `:1`. On a cloud whose machines get volumes only
    while they are stopped, the task is preempted for it, and runs again on the same machines.

    Example:
      flow mount datasets train
    """
    from flow.client import Flow

    client = Flow()
    task = client.get_task(reference)

    def ask() -> None:
        question = f"`{task.task_id}` is stopped for it, and runs again with FLOW_RESUME=1. Go on?"
        if not confirmed(question, yes=yes):
            raise click.exceptions.Exit(1)

    try:
        path = client.mount_volume(volume, task, before_stop=ask)
    finally:
        output.notes(client.notes)
    click.echo(f"{task.task_id}  {path}")
    output.hint(f"look into it with `flow ssh {task.task_id} -- ls {path}`")
    return 0
