"""The words of `flow run`: one operand with options on either side, or several words after `--`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from flow.cli.group import FlowCommand, UsageError
from flow.operand import TASK_FILES, is_slurm

ARGV = "flow.argv"  # in the context's `meta`: the words after `--`, or None


class OperandCommand(FlowCommand):
    """A command with one operand and options on either side of it; what follows `--` is kept apart, as it is."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """click's own, after the several words of an unquoted command were refused."""
        before, after = _at_dashes(args)
        ctx.meta[ARGV] = after
        if not ctx.resilient_parsing:
            self._refuse_several_words(ctx, before, after)
        return super().parse_args(ctx, before)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """The pieces of the usage line, with the words that click does not know of."""
        return [*super().collect_usage_pieces(ctx), "[-- ARGV…]"]

    def _refuse_several_words(self, ctx: click.Context, args: list[str], after: Sequence[str] | None) -> None:
        """Raise UsageError, showing what was probably meant, for `flow run python train.py --lr 1`."""
        words = self._loose_words(ctx, args)
        if not words or _is_option(words[0]):
            return  # click tells of unknown options
        if after is not None:
            raise UsageError(
                "there is an operand before `--` and there are words after it",
                suggestions=[f"quote it all as one command: `flow run {shlex.quote(_joined([words[0], *after]))}`"],
            )
        if len(words) > 1 and not (_is_whole(words[0]) and _is_option(words[1])):
            if is_slurm(Path(words[0])):
                raise UsageError(
                    "a Slurm script with arguments is for `sbatch`",
                    suggestions=[f"type `flow sbatch {shlex.join(words)}`"],
                )
            meant = [f"did you mean `{name}`?" for name in _begun(ctx, words[1:])]
            raise UsageError(
                "a command of several words must be quoted", suggestions=[*meant, *_quoted_forms(args, words)]
            )

    def _loose_words(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Everything on the line that is no option of ours or its value; nothing if it asks for help."""
        ctx.ignore_unknown_options = True
        try:
            values, words, _ = self.make_parser(ctx).parse_args(list(args))
        except click.UsageError:
            return []  # click tells of it
        finally:
            ctx.ignore_unknown_options = False
        operand = values.get("operand")
        first = [operand] if isinstance(operand, str) else []
        return [] if values.get("help") else [*first, *words]


def _at_dashes(args: Sequence[str]) -> tuple[list[str], list[str] | None]:
    if "--" not in args:
        return list(args), None
    at = list(args).index("--")
    return list(args[:at]), list(args[at + 1 :])


def _is_option(word: str) -> bool:
    return word.startswith("-") and len(word) > 1


def _is_whole(word: str) -> bool:
    """Whether a word must be the whole operand, so that an option after it was meant for us."""
    return any(c.isspace() for c in word) or Path(word).suffix in TASK_FILES


def _joined(words: Sequence[str]) -> str:
    """One shell string of words; a first word with blanks in it is a shell string already."""
    if any(c.isspace() for c in words[0]):
        return " ".join([words[0], shlex.join(words[1:])])
    return shlex.join(words)


def _begun(ctx: click.Context, words: Sequence[str]) -> list[str]:
    """The option of ours that the first of these words begins to name, as `--max-price` does."""
    names = [name for one in ctx.command.params for name in one.opts]
    word = words[0].partition("=")[0] if words else ""
    return [name for name in names if len(word) > 3 and name.startswith(word)][:1]


def _quoted_forms(args: list[str], words: list[str]) -> list[str]:
    """The line with its words quoted and the line with `--`; options before and after the words stay outside."""
    first = args.index(words[0])
    end = len(args) - args[::-1].index(words[-1])
    command, options = args[first:end], [*args[:first], *args[end:]]
    before = [*args[:first], _joined(command), *args[end:]]
    return [
        f"quote it: `flow run {shlex.join(before)}`",
        f"or put it after `--`: `flow run {shlex.join([*options, '--', *command])}`",
    ]
