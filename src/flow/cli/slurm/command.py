"""A command that reads its options as Slurm's do, and refuses in their words."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import click

from flow.cli.failures import MOST_HINTS
from flow.cli.group import FlowCommand
from flow.errors import FlowError


class Refused(Exception):  # noqa: N818  # what the command says of it is the message
    """The command ends with this text on stderr, as it is, and this exit code."""

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.text = text
        self.code = code


class SlurmCommand(FlowCommand):
    """Long options may be cut short while they stay the only one; an error is Slurm's line, the exit code 1."""

    takes_profile = False  # `--profile` is one of Slurm's own options

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", {"help_option_names": ["-h", "--help"]})
        super().__init__(*args, **kwargs)
        self.params += [
            click.Option(["-M", "--clusters"], metavar="LIST", expose_value=False, help="Of all clusters, as anyway."),
            click.Option(["-V", "--version"], is_flag=True, expose_value=False, callback=_tell_version, help="Flow's."),
        ]

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """click's own; a mistake in the words is told here."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.exceptions.Exit:
            raise
        except click.ClickException as error:
            name = self.name or ""
            told = [_wrong_words(name, error), f'Try "{name} --help" for more information']
            click.echo("\n".join(told), err=True)
            raise click.exceptions.Exit(1) from error

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """click's own, with long options in full."""
        return super().parse_args(ctx, self._in_full(ctx, args))

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; what it refuses is told in Slurm's way."""
        try:
            return super().invoke(ctx)
        except Refused as refusal:
            if refusal.text:
                click.echo(refusal.text, err=True)
            return refusal.code
        except FlowError as error:
            if os.environ.get("FLOW_DEBUG") == "1":
                raise
            hints = [f"{self.name}: hint: {hint}" for hint in error.suggestions[:MOST_HINTS]]
            click.echo(
                "\n".join([f"{self.name}: error: {error.message.removeprefix(f'{self.name}: ')}", *hints]), err=True
            )
            return 1

    def _in_full(self, ctx: click.Context, args: Sequence[str]) -> list[str]:
        known = [name for param in self.get_params(ctx) for name in param.opts if name.startswith("--")]
        words = list(args)
        for at, word in enumerate(words):
            if word == "--":
                break
            name, equals, value = word.partition("=")
            if name.startswith("--") and name not in known:
                near = [one for one in known if one.startswith(name)]
                if len(near) == 1:
                    words[at] = near[0] + equals + value
        return words


def words_of(value: str | None) -> frozenset[str] | None:
    """The words of a list with commas; None where nothing was given."""
    return None if value is None else frozenset(filter(None, value.split(",")))


def _tell_version(ctx: click.Context, param: click.Parameter, is_asked: bool) -> None:  # click's own
    if is_asked:
        import flow

        click.echo(f"flow {flow.__version__}")
        ctx.exit()


def _wrong_words(name: str, error: click.ClickException) -> str:
    if isinstance(error, click.NoSuchOption):
        option = error.option_name
        if option.startswith("--"):
            return f"{name}: unrecognized option '{option}'"
        return f"{name}: invalid option -- '{option.lstrip('-')}'"
    param = getattr(error, "param", None)
    if isinstance(error, click.BadOptionUsage) and not param:
        option = error.option_name
        if option.startswith("--"):
            return f"{name}: option '{option}' requires an argument"
        return f"{name}: option requires an argument -- '{option.lstrip('-')}'"
    return f"{name}: error: {error.format_message().rstrip('.')}"


class WordsCommand(SlurmCommand):
    """A command whose words are read by Slurm's own rules: they are all in `ctx.meta[WORDS]`, as they came."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Nothing is read but `--help` and `--version`."""
        ctx.meta[WORDS] = list(args)
        return super().parse_args(ctx, args[:1] if args[:1] and args[0] in ("-h", "--help", "-V", "--version") else [])


WORDS = "flow.cli.slurm.words"
