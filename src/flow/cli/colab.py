"""`flow colab`: Google Colab's page, with a machine of yours behind it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from flow.cli import follow, output, times
from flow.cli.group import Entry, FlowCommand, TaskGroup, UsageError
from flow.cli.references import task_argument

if TYPE_CHECKING:
    from flow.task import Task

colab = TaskGroup(
    {"connect": Entry("flow.cli.colab:connect", 'A machine for Colab\'s "local runtime".', "Commands")},
    {"start": "connect", "tunnel": "connect", "up": "connect", "url": "connect"},
    name="colab",
    help="Google Colab's page, with a machine of yours behind it.",
    example="flow colab connect --instance-type a100 --hours 4",
)


@click.command("connect", cls=FlowCommand)
@task_argument(required=False, metavar="[TASK]")
@click.option("-i", "--instance-type", metavar="TYPE", help="Kind of machine: `8xa100`, or a provider's own name.")
@click.option(
    "--hours", type=click.FloatRange(min=0, min_open=True), metavar="H", help="Hours after which it ends; by default 4."
)
@click.option("--image", metavar="IMAGE", help="Container image to run in.")
@click.option("--provider", metavar="NAME", help="Where the machine is; `local` is this one.")
@click.option("--port", type=click.IntRange(1, 65535), metavar="PORT", help="Port of this machine; by default 8888.")
@click.option("--print", "only_print", is_flag=True, help="Only print the address, and the command of its tunnel.")
def connect(
    reference: str | None,
    *,
    instance_type: str | None,
    hours: float | None,
    image: str | None,
    provider: str | None,
    port: int | None,
    only_print: bool,
) -> int:
    """Print the address that Colab asks for under "Connect to a local runtime", and hold the tunnel to it open.

    A task called `colab` serves it, which is started where there is none, and goes on after Ctrl-C. With TASK, which
    runs already, its own server is used, or one that ends with this command. Jupyter must be installed there.

    Example:
      flow colab connect --instance-type a100 --hours 4
    """
    from flow.client import Flow
    from flow.colab import find_or_start
    from flow.jupyter import COLAB

    if reference and (instance_type or image or provider or hours):
        raise UsageError("`TASK` runs already: nothing of its machine can be chosen", suggestions=["leave it out"])
    if reference and only_print:
        raise UsageError("what serves TASK ends with this command", suggestions=["leave out `--print`, or TASK"])
    client = Flow(provider=provider)
    if reference:
        task, is_new = client.get_task(reference), False
    else:
        task, is_new = find_or_start(client, instance_type=instance_type, image=image, hours=hours)
    output.notes([*client.notes, *(task.plan.notes if is_new else ())])
    output.say(output.line_of(task))
    follow.until_started(task)
    with task.jupyter(origin=COLAB, local=port) as server:
        click.echo(f"url     {server.url}")
        if not server.is_direct:
            click.echo(f"tunnel  flow forward {task} {server.port}:{urlsplit(server.url).port}")
        sys.stdout.flush()
        output.hint('in Colab choose "Connect to a local runtime", and paste the URL')
        code = 0
        if not only_print and (server.is_own or not server.is_direct):
            output.note("open until Ctrl-C")
            try:
                follow.until_unserved(task, server)
                return 0
            except KeyboardInterrupt:
                output.say("")
                code = 130
    _tell_end(task)
    return code


def _tell_end(task: Task) -> None:
    """That it goes on, and what ends it."""
    left = task.plan.limit_seconds and task.plan.limit_seconds - (task.refresh().run_seconds or 0)
    output.note(f"`{task}` goes on" + (f" for {times.span(left)} at most" if left else ""))
    output.hint(f"end it with `flow cancel {task}`")
