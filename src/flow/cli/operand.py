"""What `flow run` was given: one file or one shell string, or several words after `--`."""

from __future__ import annotations

import difflib
import shlex
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

import click

from flow.cli.group import FlowCommand, UsageError
from flow.errors import FlowError, ResourceNotFoundError

ARGV = "flow.argv"  # in the context's `meta`: the words after `--`, or None
_TASK_FILES = (".yaml", ".yml")
_SLURM_FILES = (".slurm", ".sbatch")
_SCRIPTS = (".py", ".sh")
_PEEK_BYTES = 65536  # #SBATCH lines stand at the top


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
            raise UsageError("a command of several words must be quoted", suggestions=_quoted_forms(args, words))

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


def read_operand(text: str) -> str | Path:
    """The task file or script that `text` names, or `text` itself: a shell string. Raises where it can be neither."""
    path = Path(text)
    mode = _mode(path)
    if stat.S_ISDIR(mode) and ("/" in text or not shutil.which(text)):
        raise _is_folder(path, text)
    if stat.S_ISREG(mode):
        if _is_slurm(path):
            raise _slurm_script(text)
        return path if path.suffix in (*_TASK_FILES, *_SCRIPTS) else text
    if path.suffix in (*_TASK_FILES, *_SLURM_FILES, *_SCRIPTS) and not any(c.isspace() for c in text):
        raise _no_file(path, text)
    return text


def _at_dashes(args: Sequence[str]) -> tuple[list[str], list[str] | None]:
    if "--" not in args:
        return list(args), None
    at = list(args).index("--")
    return list(args[:at]), list(args[at + 1 :])


def _is_option(word: str) -> bool:
    return word.startswith("-") and len(word) > 1


def _is_whole(word: str) -> bool:
    """Whether a word must be the whole operand, so that an option after it was meant for us."""
    return any(c.isspace() for c in word) or Path(word).suffix in _TASK_FILES


def _joined(words: Sequence[str]) -> str:
    """One shell string of words; a first word with blanks in it is a shell string already."""
    if any(c.isspace() for c in words[0]):
        return " ".join([words[0], shlex.join(words[1:])])
    return shlex.join(words)


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


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except (OSError, ValueError):  # a long command is no path at all
        return 0


def _is_slurm(path: Path) -> bool:
    if path.suffix in _SLURM_FILES:
        return True
    if path.suffix in _TASK_FILES:
        return False
    try:
        with path.open("rb") as file:
            return any(line.startswith(b"#SBATCH") for line in file.read(_PEEK_BYTES).splitlines())
    except OSError:
        return False


def _is_folder(path: Path, text: str) -> FlowError:
    inside = [*sorted(path.glob("*.y*ml")), *sorted(path.glob("*.py"))]
    meant = [f"did you mean `flow run {shlex.quote(str(inside[0]))}`?"] if inside else []
    return UsageError(f"`{text}` is a folder", suggestions=meant)


def _slurm_script(text: str) -> FlowError:
    return UsageError(
        f"`{text}` is a Slurm script, which this version cannot read yet",
        suggestions=["write what its `#SBATCH` lines say into a task file; `flow schema task` lists the fields"],
    )


def _no_file(path: Path, text: str) -> FlowError:
    """The error, with the file of the same kind whose name is nearly the same."""
    kinds = next(kinds for kinds in (_TASK_FILES, _SLURM_FILES, _SCRIPTS) if path.suffix in kinds)
    try:
        names = {entry.stem: entry.name for entry in path.parent.iterdir() if entry.suffix in kinds}
    except OSError:
        return ResourceNotFoundError(f"no file `{text}`: there is no folder `{path.parent}`")
    near = difflib.get_close_matches(path.stem, names, n=1)
    meant = [f"did you mean `{path.parent / names[stem]}`?" for stem in near]
    return ResourceNotFoundError(f"no file `{text}`", suggestions=meant)
