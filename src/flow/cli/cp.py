"""`flow cp`: files and folders to and from a task."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flow.cli import output
from flow.cli.group import FlowCommand, UsageError

if TYPE_CHECKING:
    from flow.task import Task

_REMOTE = re.compile(r"(:\d+|[^/:]+):(.*)", re.S)  # TASK:PATH, where TASK may be `:1`


@click.command(cls=FlowCommand)
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
@click.option("--node", type=click.IntRange(min=0), default=0, metavar="R", help="Of this node, 0 being the first.")
def cp(source: str, target: str, *, node: int) -> None:
    """Copy SOURCE to TARGET, one of which is `TASK:PATH`, as `scp -r` does.

    A relative PATH begins at the task's workspace; `output/…` is its `$FLOW_OUTPUT`, also when it has ended. A folder
    that is there takes the copy in; `folder/.` stands for what is in it. `-` as TARGET writes a file to the output.

    Example:
      flow cp train:output/model.pt .
    """
    there = _REMOTE.fullmatch(source), _REMOTE.fullmatch(target)
    if all(there):
        raise UsageError("both are of a task", suggestions=["copy from the one to this machine first"])
    remote = there[0] or there[1]
    if remote is None:
        raise UsageError(
            "neither is of a task", suggestions=["write it as `train:model.pt`; `train:` is the whole workspace"]
        )
    from flow.client import Flow

    client = Flow()
    task = client.get_task(remote[1])
    output.notes(client.notes)
    if there[0] and target == "-":
        _print(task, remote[2], node)
    elif there[0]:
        output.say(f"`{task.copy_from(remote[2], target, node=node)}` is here now")
    else:
        task.copy_to(source, remote[2], node=node)
        output.say(f"`{source}` is copied to `{target}`")


def _print(task: Task, path: str, node: int) -> None:
    """Write a file of the task to the standard output."""
    import shutil
    import sys
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        copy = task.copy_from(path, Path(folder) / "copy", node=node)
        if copy.is_dir():
            raise UsageError("a folder cannot be written to the standard output", suggestions=["name a file in it"])
        with copy.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.flush()
