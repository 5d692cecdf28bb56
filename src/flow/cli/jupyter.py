"""`flow jupyter`: notebooks in a running task."""

from __future__ import annotations

import os
import sys

import click

from flow.cli import follow, output
from flow.cli.group import FlowCommand
from flow.cli.references import task_argument


@click.command(cls=FlowCommand)
@task_argument()
@click.option("--node", type=click.IntRange(min=0), default=0, metavar="R", help="On this node, 0 being the first.")
@click.option("--no-browser", is_flag=True, help="Only print the address.")
def jupyter(reference: str, *, node: int, no_browser: bool) -> None:
    """Open Jupyter in the running TASK: the server that it serves, else one that ends with this command.

    It runs in the task's folder, environment and container, where Jupyter must be installed. Only this machine reaches
    it, and only with the token in the address that is printed.

    Example:
      flow jupyter train
    """
    from flow.client import Flow

    client = Flow()
    task = client.get_task(reference)
    output.notes(client.notes)
    follow.until_started(task)
    with task.jupyter(node=node) as server:
        click.echo(server.url)
        sys.stdout.flush()
        if not no_browser and output.is_terminal(sys.stdout) and _has_screen():
            import webbrowser

            webbrowser.open(server.url)
        follow.until_unserved(task, server)


def _has_screen() -> bool:
    """Whether a browser would come up in a window, not in this terminal."""
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
