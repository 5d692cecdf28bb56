"""Where a task is: the hosts that it was first given to, and where it went when one of them was lost.

All of it is on disk, in the task's record, before a host is asked. What is on a host has a name there, its part: the
task's own at first, `<task>+<move>` after a move of all of it, `<task>+<move>+<index>` of an element.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flow.durable import create_durably

_FIRST = "hosts.json"
_MOVES = "moves"


@dataclass(frozen=True, slots=True)
class Move:
    """What was lost of a task runs again on other hosts, or nowhere."""

    task_id: str
    index: int | None  # of the element; None: all of the task
    place: int  # of the element in its array
    number: int  # of the moves of this task or element, from 1
    attempt: int  # the first one there
    hosts: tuple[str, ...]  # by rank; none: there is no other that can ever run it
    lost: tuple[str, ...]  # all that it was lost with, or has left
    reason: str
    going_on: tuple[int, ...] = ()  # of an array that moves as a whole: the elements that are to run again

    @property
    def part(self) -> str:
        """What the hosts call what they were given."""
        return f"{self.task_id}+{self.number}" + ("" if self.index is None else f"+{self.index}")

    @property
    def unit(self) -> str:
        """The task or the element that it is about."""
        return unit_name(self.task_id, self.index)

    @property
    def note(self) -> str:
        """What the user is told while it runs."""
        return f"attempt {self.attempt - 1} was lost: {self.reason}"


def unit_name(task_id: str, index: int | None) -> str:
    """A task, or the element of an array."""
    return task_id if index is None else f"{task_id}_{index}"


def unit_of(name: str) -> tuple[str, int]:
    """The task or element that a host calls so, or that is all of a part; and after how many moves it came there."""
    base, _, rest = name.partition("+")
    if not rest:
        return base, 0
    number, _, index = rest.partition("_")[0].partition("+")
    return unit_name(base, int(index) if index else None), int(number)


def put_end(unit: Path, attempt: int, nodes: int, end: Mapping[str, object]) -> None:
    """Put on record how an attempt has ended, on each node of which no end is there; `unit`: its record's folder."""
    for rank in range(nodes):
        folder = unit / str(attempt) / str(rank)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            create_durably(folder / "status.json", json.dumps(end).encode())


class Places:
    """Of one task; `folder` is its record. As it is when this is made."""

    def __init__(self, folder: Path) -> None:
        self.task_id = folder.name
        self._folder = folder
        self.first: Mapping[str, Sequence[int]] = {}  # places of elements, or ranks, by host; none before it was placed
        self.moves: dict[str, list[Move]] = {}  # of each task or element that was moved, oldest first
        self._marks: set[str] = set()
        with suppress(FileNotFoundError, ValueError):
            self.first = json.loads((folder / _FIRST).read_text())
        try:
            names = sorted(path.name for path in (folder / _MOVES).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in names:
            if name.endswith(".json"):
                values = json.loads((folder / _MOVES / name).read_bytes())
                lists = {name: tuple(one) for name, one in values.items() if isinstance(one, list)}
                move = Move(**{**values, **lists})
                self.moves.setdefault(move.unit, []).append(move)
            else:
                self._marks.add(name)
        for those in self.moves.values():
            those.sort(key=lambda one: one.number)

    def __bool__(self) -> bool:
        return bool(self.first)

    def place(self, places: Mapping[str, Sequence[int]]) -> None:
        """Write down where it goes, unless somebody else did at the same time: then it goes where they say."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            create_durably(self._folder / _FIRST, json.dumps(places).encode())

    def add(self, move: Move) -> None:
        """Write down a move, unless somebody else did at the same time: then theirs is the one."""
        (self._folder / _MOVES).mkdir(mode=0o700, exist_ok=True)
        values = {name: getattr(move, name) for name in Move.__slots__}
        with suppress(FileExistsError):
            create_durably(self._folder / _MOVES / f"{move.part}.json", json.dumps(values).encode())

    def move_of(self, unit: str) -> Move | None:
        """The newest of a task or element."""
        return next(reversed(self.moves.get(unit, ())), None)

    def number(self, unit: str) -> int:
        """How often a task or element was moved."""
        return len(self.moves.get(unit, ()))

    @property
    def newest_moves(self) -> list[Move]:
        """That of each task or element that was moved."""
        return [those[-1] for those in self.moves.values()]

    @property
    def ranks(self) -> dict[str, int]:
        """The hosts of several nodes, each with the rank that it has now."""
        move = self.move_of(self.task_id)
        if move:
            return {host: rank for rank, host in enumerate(move.hosts)}
        return {host: ranks[0] for host, ranks in self.first.items()}

    @property
    def part(self) -> str:
        """What the hosts call a task that is no array now."""
        move = self.move_of(self.task_id)
        return move.part if move else self.task_id

    def parts(self, task_id: str) -> dict[str, list[str]]:
        """By host, what they call a task, an array or an element, as it is given to them now."""
        index = task_id.partition("_")[2]
        here = [move for move in self.newest_moves if task_id in (self.task_id, move.unit)]
        found: dict[str, list[str]] = {}
        for move in here:
            for host in move.hosts:
                found.setdefault(host, []).append(unit_name(move.part, int(index)) if index else move.part)
        if self.task_id in self.moves or (index and here):
            return found
        moved = {move.place for move in self.newest_moves}
        for host in (host for host, places in self.first.items() if not moved.issuperset(places)):
            found.setdefault(host, []).append(task_id)
        return found

    def left(self) -> dict[str, list[str]]:
        """By host, what they call what was lost with them, as far as it is not known to have ended there."""
        found: dict[str, list[str]] = {}
        for move in (move for those in self.moves.values() for move in those if not self._is_marked(move, "left")):
            before = self.moves[move.unit][move.number - 2] if move.number > 1 else None
            part = before.part if before else self.task_id
            hosts = before.hosts if before else [name for name, has in self.first.items() if move.place in has]
            if move.index is None and not before:
                hosts = list(self.first)
            for host in hosts:
                found.setdefault(host, []).append(unit_name(part, move.index))
        return found

    def mark_left(self) -> None:
        """Nothing is left of what `left` told."""
        for move in (move for those in self.moves.values() for move in those):
            self._mark(move, "left")

    def is_given(self, move: Move) -> bool:
        """Whether its hosts have taken it."""
        return self._is_marked(move, "given")

    def mark_given(self, move: Move) -> None:
        """They have. Not worth waiting for the disk: asking twice is harmless."""
        self._mark(move, "given")

    def _is_marked(self, move: Move, mark: str) -> bool:
        return f"{move.part}.{mark}" in self._marks

    def _mark(self, move: Move, mark: str) -> None:
        if not self._is_marked(move, mark):
            (self._folder / _MOVES / f"{move.part}.{mark}").touch(mode=0o600)
            self._marks.add(f"{move.part}.{mark}")
