"""`flow completion`: the script by which a shell completes our commands, options and tasks."""

from __future__ import annotations

import click

from flow.cli import output
from flow.cli.group import FlowCommand
from flow.cli.shell_start import SHELLS, completion_script, install


@click.command(cls=FlowCommand)
@click.argument("shell", type=click.Choice(SHELLS), metavar="bash|zsh|fish")
@click.option("--install", "do_install", is_flag=True, help="Have each start of the shell load it.")
def completion(shell: str, *, do_install: bool) -> int:
    """Print the completion script of a shell, or install it: one line in the file that the shell starts with.

    Example:
      flow completion bash --install
    """
    if do_install:
        output.say(f"`{install(shell)}` loads it: open a new {shell}")
    else:
        click.echo(completion_script(shell), nl=False)
    return 0
