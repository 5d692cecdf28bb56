"""`flow upload-code`: the project as it is now, for a task that runs."""

from __future__ import annotations

import click

from flow.cli import output
from flow.cli.group import FlowCommand, UsageError
from flow.cli.references import task_argument


@click.command(cls=FlowCommand)
@task_argument()
@click.option("--source", default=".", metavar="DIR", help="The project; by default this folder.")
@click.option("--node", type=click.IntRange(min=0), metavar="R", help="On this node; by default on the first, 0.")
@click.option("--all-nodes", is_flag=True, help="On each node.")
def upload_code(reference: str, *, source: str, node: int | None, all_nodes: bool) -> None:
    """Bring the workspace of the running TASK to the state of this folder, by its `.flowignore`.

    What changed here since the last upload travels. What the project has no longer is removed there, if an upload had
    put it there and nobody changed it since.

    Example:
      flow upload-code train
    """
    if all_nodes and node is not None:
        raise UsageError("`--node` and `--all-nodes` exclude each other", suggestions=["give one of them"])
    from flow.client import Flow

    client = Flow()
    task = client.get_task(reference)
    output.notes(client.notes)
    for rank in range(task.num_instances) if all_nodes else (node or 0,):
        done = task.upload_code(source, node=rank)
        if rank == 0 or not all_nodes:
            output.notes(done.notes)
        mark = f"[{rank}] " if all_nodes and task.num_instances > 1 else ""
        kept = "kept, as it was changed there"
        for what, names in (("updated", done.updated), ("removed", done.removed), (kept, done.kept)):
            for name in names:
                click.echo(f"{mark}{what}{output.GAP}{output.printable(name)}")
        output.say(f"{mark}`{task}` has {source if source != '.' else 'this folder'} as it is now")
