"""`flow jupyter`: notebooks in a running task."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from flow.cli import follow, output
from flow.cli.group import FlowCommand
from flow.cli.references import task_argument
from flow.errors import TimeoutError as FlowTimeoutError

if TYPE_CHECKING:
    from flow.jupyter import Jupyter
    from flow.task import Task

_LOOK_SECONDS = 1.0


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
        until_ended(task, server)


def until_ended(task: Task, server: Jupyter) -> None:
    """Wait for the end of either, and say which it was."""
    while server.is_running and not task.status.is_final:
        try:
            task.wait(_LOOK_SECONDS)
        except FlowTimeoutError:
            continue
    output.say(f"`{task}` has ended: {task.status}" if task.status.is_final else "the server has ended")


def _has_screen() -> bool:
    """Whether a browser would come up in a window, not in this terminal."""
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
