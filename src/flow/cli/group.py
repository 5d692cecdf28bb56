"""click's commands as ours: loaded when called, help that ends with an example, errors that say what was meant."""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import click

import flow
from flow.errors import FlowError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class UsageError(FlowError):
    """The words of the command line do not fit together."""

    code = "usage"
    exit_code = 2


class Entry(NamedTuple):
    """One line of the command table. `target` is "module:attribute"."""

    target: str
    help: str
    section: str


class Invocation:
    """What the end of a command line needs to know of its course.

    `attached` is set once the command stands for a task that exists: from then on the exit code is the task's, and a
    failure of ours ends with 125.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.attached = False


def attach() -> None:
    """From here on the running command stands for its task (see `Invocation`)."""
    click.get_current_context().ensure_object(Invocation).attached = True


class FlowCommand(click.Command):
    """A command whose docstring ends with `Example:` and a line to type, which is shown after the options.

    `sections` groups the options by the names of their parameters; the rest stand under "Options".
    `takes_profile`: whether `--profile`, an option of `flow` itself, may also stand among its own.
    """

    takes_profile: ClassVar[bool] = True

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[str]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections or {}
        self.params += [_profile_option(hidden=True)] if self.takes_profile else []
        text, _, example = inspect.cleandoc(self.help or "").partition("\nExample:\n")
        self.help = text.rstrip()
        self.example = [line.strip() for line in example.splitlines() if line.strip()]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """click's own; each error knows the command it is about."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, a section at a time."""
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        records = {option.name: _help_record(option, ctx) for option in options}
        for title, names in self.sections.items():
            _write_section(formatter, title, [record for name in names if (record := records.pop(name))])
        _write_section(formatter, "Options", [record for record in records.values() if record])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """End with the example."""
        write_example(formatter, self.example)


class TaskGroup(click.Group):
    """A program, or a command with commands of its own, made from a table; a module is imported when it is called."""

    def __init__(
        self,
        table: Mapping[str, Entry],
        synonyms: Mapping[str, str],
        *,
        example: str,
        is_program: bool = False,
        **kwargs: Any,
    ) -> None:
        version = click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_version,
            help="Show the version and exit.",
        )
        super().__init__(
            params=[_profile_option(hidden=False), version] if is_program else [],
            callback=_show_help,
            invoke_without_command=True,
            context_settings={"help_option_names": ["-h", "--help"]},
            **kwargs,
        )
        self.table = table
        self.synonyms = synonyms
        self.example = example

    def call(self, words: Sequence[str], invocation: Invocation) -> int:
        """Run one command line and return its exit code; whatever goes wrong is raised."""
        try:
            with self.make_context(self.name, list(words), obj=invocation) as context:
                code = self.invoke(context)
                return code if isinstance(code, int) else 0
        except click.exceptions.Exit as end:
            return end.exit_code

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the table, in its order."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command of that name, or None."""
        if cmd_name not in self.table:
            return None
        module, _, attribute = self.table[cmd_name].target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """click's own, but an unknown name is an error that knows what was meant."""
        name = args[0]
        if name not in self.table and not ctx.resilient_parsing:
            raise self._unknown(name, ctx.command_path)
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by section, then the options."""
        by_section: dict[str, list[tuple[str, str]]] = {}
        for name, entry in self.table.items():
            by_section.setdefault(entry.section, []).append((name, entry.help))
        for section, records in by_section.items():
            _write_section(formatter, section, records)
        records = [record for param in self.get_params(ctx) if (record := param.get_help_record(ctx))]
        _write_section(formatter, "Options", records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """End with the example."""
        write_example(formatter, [self.example])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """The names of the table, without importing what is behind them."""
        from click.shell_completion import CompletionItem

        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, ctx, incomplete)
        return [CompletionItem(n, help=entry.help) for n, entry in self.table.items() if n.startswith(incomplete)]

    def _unknown(self, name: str, path: str) -> UsageError:
        if name.startswith("-"):
            return UsageError(f"no such option `{name}`", suggestions=[f"see `{path} --help`"])
        near = self.synonyms.get(name) or _nearest(name, self.table)
        meant = [f"did you mean `{path} {near}`?"] if near else []
        return UsageError(f"no command `{name}`", suggestions=[*meant, f"see `{path} --help`"])


def write_example(formatter: click.HelpFormatter, lines: Sequence[str]) -> None:
    """The end of every help text."""
    with formatter.section("Example"):
        for line in lines:
            formatter.write(" " * formatter.current_indent + line + "\n")


def _profile_option(*, hidden: bool) -> click.Option:
    return click.Option(
        ["--profile"],
        metavar="NAME",
        is_eager=True,
        expose_value=False,
        hidden=hidden,
        callback=_choose_profile,
        help="Use this profile of the settings.",
    )


def _choose_profile(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        os.environ["FLOW_PROFILE"] = value  # what this process starts shall use it, too


def _show_help() -> None:
    context = click.get_current_context()
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"{ctx.info_name} {flow.__version__}")
        ctx.exit()


def _help_record(option: click.Option, ctx: click.Context) -> tuple[str, str] | None:
    """click's own, without the `[x>=1]` that it makes of a number's range."""
    record = option.get_help_record(ctx)
    return record and (record[0], re.sub(r"  \[[^\]]*x[<>][^\]]*\]$", "", record[1]))


def _nearest(word: str, choices: Mapping[str, object]) -> str | None:
    from difflib import get_close_matches

    return next(iter(get_close_matches(word, choices, n=1)), None)


def _write_section(formatter: click.HelpFormatter, title: str, records: Sequence[tuple[str, str]]) -> None:
    if records:
        with formatter.section(title):
            formatter.write_dl(records)
