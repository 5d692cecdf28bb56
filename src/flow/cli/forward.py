"""`flow forward`: ports of a task, as ports of this machine."""

from __future__ import annotations

import contextlib

import click

from flow.cli import follow, output
from flow.cli.group import FlowCommand, UsageError
from flow.cli.references import task_argument


@click.command(cls=FlowCommand)
@task_argument()
@click.argument("ports", nargs=-1, metavar="[PORT[:LOCAL]…]")
@click.option("--node", type=click.IntRange(min=0), default=0, metavar="R", help="Of this node, 0 being the first.")
def forward(reference: str, ports: tuple[str, ...], *, node: int) -> None:
    """Make each PORT of TASK a port of this machine, for this machine alone, until the task ends or Ctrl-C.

    Without LOCAL it is the same number, or the next that is free; without PORT, those that the task says it serves.

    Example:
      flow forward train 6006 8888:9000
    """
    asked = [_port(one) for one in ports]
    from flow.client import Flow

    client = Flow()
    task = client.get_task(reference)
    output.notes(client.notes)
    asked = asked or [(port, None) for port in task.plan.ports]
    if not asked:
        raise UsageError(f"which port? `{task}` does not say that it serves one", suggestions=["name it: `8888`"])
    follow.until_started(task)
    with contextlib.ExitStack() as stack:
        for port, local in asked:
            one = stack.enter_context(task.forward(port, local, node=node, tell=output.note))
            click.echo(f"{port}{output.GAP}http://{one.address}")
        task.wait()
    output.say(f"`{task}` has ended: {task.status}")


def _port(text: str) -> tuple[int, int | None]:
    try:
        port, local = (int(one) if one else None for one in text.partition(":")[::2])
        if port and 0 < port < 65536 and 0 <= (local or 0) < 65536:
            return port, local
    except ValueError:
        pass
    raise UsageError(f"`{text}` is no port", suggestions=["write `8888`, or `8888:9000` for port 9000 here"])
