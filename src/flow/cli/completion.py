"""`flow completion`: the script by which a shell completes our commands, options and tasks."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from flow.cli.group import FlowCommand


@click.command(cls=FlowCommand)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), metavar="bash|zsh|fish")
def completion(shell: str) -> int:
    """Print the completion script of a shell.

    In bash and zsh put the example into the start file of the shell; in fish write the output to
    `~/.config/fish/completions/flow.fish`.

    Example:
      eval "$(flow completion bash)"
    """
    click.echo(completion_script("flow", shell))
    return 0


def completion_script(program: str, shell: str) -> str:
    """What a shell has to read to complete the words of `program`."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    return kind(click.Command(program), {}, program, f"_{program}_COMPLETE".upper()).source()
