"""`flow resume`: let held tasks start."""

from __future__ import annotations

import click

from flow.cli import output
from flow.cli.group import FlowCommand
from flow.cli.references import task_argument


@click.command(cls=FlowCommand)
@task_argument("references", nargs=-1, required=True, metavar="TASK…")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def resume(references: tuple[str, ...], *, as_json: bool) -> int:
    """Let each held TASK start.

    Example:
      flow resume train
    """
    from flow.client import Flow

    client = Flow()
    tasks = [client.get_task(reference) for reference in references]
    output.notes(client.notes)
    for task in tasks:
        task.resume()
        task.refresh()
    if as_json:
        output.print_json({"tasks": [task.record() for task in tasks]})
    else:
        click.echo("\n".join(f"{task.task_id}  {task.status}" for task in tasks))
    return 0
