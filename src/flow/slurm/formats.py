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

    def text(self, value: str) -> str:
        """The value in its place."""
        if not self.width:
            return value + self.suffix
        cut = self.field.cut if self.field else Cut.ALL
        if cut is Cut.ALL or (cut is Cut.WORDS and not value[:1].isdigit()):
            value = value[: self.width]
        return (value.rjust(self.width) if self.right else value.ljust(self.width)) + self.suffix


class Layout(NamedTuple, Generic[_T]):
    """What a line is made of; `unknown` are the specifications that name no field."""

    cells: Sequence[Cell[_T]]
    unknown: Sequence[str] = ()

    @property
    def header(self) -> str:
        """The line of titles."""
        return "".join(cell.text(cell.field.title if cell.field else "") for cell in self.cells)

    def lines(self, things: Iterable[_T]) -> list[str]:
        """One line for each."""
        cells = self.cells
        return ["".join([cell.text(cell.field.show(one) if cell.field else "") for cell in cells]) for one in things]


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
