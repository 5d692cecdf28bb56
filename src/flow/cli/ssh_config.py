"""`flow ssh-config`: the machines of running tasks, for ssh and whatever uses it."""

from __future__ import annotations

from pathlib import Path

import click

from flow.cli import output
from flow.cli.group import FlowCommand


@click.command("ssh-config", cls=FlowCommand)
@click.option("--install", is_flag=True, help="Have ~/.ssh/config include them.")
def ssh_config(*, install: bool) -> int:
    """Print an entry of ssh's configuration for each machine on which a task runs: `flow-train` for the task `train`.

    Example:
      flow ssh-config --install; ssh flow-train
    """
    from flow import ssh_entries
    from flow.client import Flow

    client = Flow()
    tasks = client.tasks(states="running", limit=None)
    found = list(ssh_entries.entries(tasks))
    output.notes(client.notes)
    if not install:
        click.echo("\n".join(one.text for one in found), nl=False)
    elif ssh_entries.install(client.home, found, Path.home() / ".ssh" / "config"):
        output.note("~/.ssh/config now includes these entries; `flow ssh-config --install` brings them up to date")
    for one in found if install else ():
        click.echo(f"{one.name}{output.GAP}{one.task_id}")
    if not found:
        output.note(f"none of the {len(tasks)} running tasks is on a machine that ssh itself reaches")
    return 0
