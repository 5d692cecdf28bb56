"""What the commands print: tables, JSON, notes and hints. Data goes to stdout, prose to stderr."""

from __future__ import annotations

import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:
    from flow.task import Task

GAP = "  "
NOTHING = "-"
STATES = {
    "pending": "yellow", "starting": "yellow", "preempted": "yellow", "paused": "yellow", "running": "cyan",
    "completed": "green", "failed": "red", "timed_out": "red", "lost": "red", "cancelled": "magenta",
}  # fmt: skip


class Column(NamedTuple):
    """A column of a table. `least`: to how many characters it may be cut on a narrow terminal; None: never.

    `colors`: of the words in it.
    """

    title: str
    least: int | None = None
    right: bool = False
    colors: Mapping[str, str] = MappingProxyType({})


def note(text: str) -> None:
    """Something the user should know, on stderr."""
    click.echo(f"note: {text}", err=True)


def notes(texts: Iterable[str]) -> None:
    """Each of `texts` once, as a note."""
    for text in dict.fromkeys(texts):
        note(text)


def hint(text: str) -> None:
    """A thing to type next, on stderr."""
    click.echo(f"hint: {text}", err=True)


def say(text: str) -> None:
    """Prose for whoever sits in front, on stderr."""
    click.echo(text, err=True)


def print_json(document: Any) -> None:
    """One JSON document on stdout; indented for a reader, on one line for a program."""
    click.echo(json.dumps(document, indent=2 if is_terminal(sys.stdout) else None))


def print_json_line(document: Any) -> None:
    """One document of a stream, on its own line, at once."""
    click.echo(json.dumps(document, separators=(",", ":")))


def write_whole(stream: IO[bytes], data: bytes) -> None:
    """Write all of `data`: with PYTHONUNBUFFERED a write may be a part."""
    left = memoryview(data)
    while left:
        left = left[stream.write(left) :]


def is_terminal(stream: IO[Any] | None) -> bool:
    """Whether somebody looks at `stream`."""
    return stream is not None and not stream.closed and stream.isatty()


def has_color(stream: IO[Any]) -> bool:
    """Whether colour is welcome there."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table: a header, one line a row. Cut to the width of a terminal, whole when piped."""
    width = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None
    return layout(columns, rows, width=width, color=has_color(sys.stdout))


def layout(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], *, width: int | None = None, color: bool = False
) -> list[str]:
    """The lines of a table at most `width` characters wide, if its columns may be cut that far."""
    cells = [[printable(cell) for cell in row] for row in rows]
    titled = [[column.title for column in columns], *cells]
    widths = [max(_width(row[at]) for row in titled) for at in range(len(columns))]
    _shrink(widths, columns, width)
    lines = []
    for row in titled:
        fitted = [_fit(cell, most, right=column.right) for cell, most, column in zip(row, widths, columns, strict=True)]
        if color:
            fitted = [_colored(cell, column.colors) for cell, column in zip(fitted, columns, strict=True)]
        lines.append(GAP.join(fitted).rstrip())
    return lines


def printable(text: str) -> str:
    """`text` on one line and without control characters: nothing in it can move the cursor."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def price(per_hour: float | None) -> str:
    """`$12.40`, or nothing where it costs nothing or is not known."""
    return f"${per_hour:.2f}" if per_hour else ""


def size(count: float) -> str:
    """Bytes in the largest decimal unit that keeps a digit before the point: `1.2 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def line_of(task: Task) -> str:
    """One task in one line: id, name, instance type, where, price; what does not exist is left out."""
    rate = price(task.price_per_hour)
    where = task.plan.region or task.provider
    parts = (task.task_id, printable(task.name or ""), task.instance_type, where, f"{rate}/h" if rate else "")
    return GAP.join(part for part in parts if part)


def status_word(task: Task) -> str:
    """The state, coloured where that is welcome."""
    word = str(task.status)
    return click.style(word, fg=STATES.get(word)) if has_color(sys.stdout) else word


def _shrink(widths: list[int], columns: Sequence[Column], width: int | None) -> None:
    """Take what is too wide from the last column that may be cut, then from the one before it."""
    if width is None:
        return
    over = sum(widths) + len(GAP) * (len(widths) - 1) - width
    for at in reversed(range(len(columns))):
        least = columns[at].least
        if over > 0 and least is not None:
            taken = min(over, max(widths[at] - least, 0))
            widths[at] -= taken
            over -= taken


def _fit(cell: str, width: int, *, right: bool) -> str:
    if _width(cell) > width:
        while cell and _width(cell) > width - 1:
            cell = cell[:-1]
        cell += "…"
    pad = " " * (width - _width(cell))
    return pad + cell if right else cell + pad


def _width(text: str) -> int:
    """Columns of a terminal that `text` takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _colored(cell: str, colors: Mapping[str, str]) -> str:
    word = cell.strip()
    return cell.replace(word, click.style(word, fg=colors[word])) if word in colors else cell
