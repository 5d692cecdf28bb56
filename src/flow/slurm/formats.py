"""The small languages of `-o` and `-O`: which fields, how wide, and what stands between them."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

_T = TypeVar("_T")
_LETTER = re.compile(r"%(\.?)(\d*)(.?)", re.DOTALL)
_LONG_WIDTH = 20  # of a field of `-O` that names none


class Cut(enum.Enum):
    """What of a field is cut to the width asked for."""

    ALL = enum.auto()
    WORDS = enum.auto()  # titles and words, but no spans of time
    NOTHING = enum.auto()


class Field(NamedTuple, Generic[_T]):
    """A column: its title and what it shows."""

    title: str
    show: Callable[[_T], str]
    cut: Cut = Cut.ALL


class Cell(NamedTuple, Generic[_T]):
    """A field in a line. `width` 0: as wide as what it shows; `suffix`: what stands after it."""

    field: Field[_T] | None
    width: int = 0
    right: bool = False
    suffix: str = ""

    @property
    def template(self) -> str:
        """For the value, as `%` takes it."""
        if self.field is None:
            return self.suffix.replace("%", "%%")
        cut = f".{self.width}" if self.field.cut is Cut.ALL else ""
        width = f"{'' if self.right else '-'}{self.width}{cut}" if self.width else ""
        return f"%{width}s{self.suffix.replace('%', '%%')}"

    @property
    def show(self) -> Callable[[_T], str]:
        """The value, cut where that depends on what it is."""
        assert self.field
        plain, width = self.field.show, self.width
        if not width or self.field.cut is not Cut.WORDS:
            return plain
        return lambda one: _cut_word(plain(one), width)


class Layout(NamedTuple, Generic[_T]):
    """What a line is made of; `unknown` are the specifications that name no field."""

    cells: Sequence[Cell[_T]]
    unknown: Sequence[str] = ()

    @property
    def header(self) -> str:
        """The line of titles."""
        titles = [
            cell.field.title[: cell.width or None] if cell.field.cut is Cut.WORDS else cell.field.title
            for cell in self.cells
            if cell.field
        ]
        return self._template % tuple(titles)

    def lines(self, things: Iterable[_T]) -> list[str]:
        """One line for each: all of it is put together at once, as there may be ten thousand."""
        template, shows = self._template, [cell.show for cell in self.cells if cell.field]
        return [template % tuple([show(one) for show in shows]) for one in things]

    @property
    def _template(self) -> str:
        return "".join(cell.template for cell in self.cells)


def _cut_word(text: str, width: int) -> str:
    return text if text[:1].isdigit() else text[:width]


def short_layout(text: str, fields: Mapping[str, Field[_T]]) -> Layout[_T]:
    """Of `%.18i %.9P %j`: `%[[.]width]letter[suffix]`; `.` is to the right. What names no field stays as it is."""
    first, *_ = text.partition("%")
    cells, unknown = [Cell[_T](None, suffix=first)], []
    for found in re.finditer(r"%[^%]*", text):
        letter = _LETTER.match(found[0])
        assert letter  # it begins with the percent sign
        dot, width, name = letter.groups()
        if name in fields:
            cells.append(Cell(fields[name], int(width or 0), bool(dot), found[0][letter.end() :]))
        else:
            unknown.append(name)
            cells.append(Cell(None, suffix=found[0]))
    return Layout(cells, unknown)


def long_layout(text: str, fields: Mapping[str, Field[_T]]) -> Layout[_T]:
    """Of `jobid:10,name:.8,state`: `name[:[.][width][suffix]]`."""
    cells, unknown = [], []
    for part in text.split(","):
        name, _, how = part.partition(":")
        found = re.fullmatch(r"(\.?)(\d*)(.*)", how)
        field = fields.get(name.strip().lower())
        if field is None or found is None:
            unknown.append(name)
            continue
        dot, width, suffix = found.groups()
        cells.append(Cell(field, int(width or _LONG_WIDTH), bool(dot), suffix))
    return Layout(cells, unknown)
