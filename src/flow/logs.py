"""What a task wrote, from the folders of its attempts and ranks: whole lines, in the order of their arrival.

Every line has a cursor, from which reading goes on after any interruption with nothing missing and nothing twice.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

from flow.errors import ValidationError
from flow.log_feeds import Folder
from flow.log_reading import Reading
from flow.node.tail import LONGEST_LINE, MOST_BYTES, Piece, Start

__all__ = ["Block", "Folder", "Line", "LogChoice", "read_blocks", "read_lines"]

_STREAMS = {"stdout": 0, "stderr": 1}


class Line(NamedTuple):
    """One line, without its line end; `\\r` is part of a line."""

    attempt: int
    rank: int  # of an array: the element's index
    time: float  # of the arrival of its end, in seconds since the epoch, by the machine's clock
    stream: int  # 0 stdout, 1 stderr
    text: bytes
    cursor: str  # reading from it begins with the line after this one
    is_whole: bool = True  # False: the last one, without a line end; or a part of one longer than 1 MiB


class Block(NamedTuple):
    """Some whole lines of one stream, with their line ends; what ends without one was unfinished, or grew too long."""

    attempt: int
    rank: int
    stream: int
    data: bytes


class LogChoice(TypedDict, total=False):
    """Which lines of a task are read: what `read_lines` takes, with `node` for its `rank`; None is all of them."""

    follow: bool
    tail: int | None
    stream: Literal["stdout", "stderr"] | None
    node: int | None
    since: float | None
    grep: str | None
    cursor: str | None


def read_lines(
    source: Callable[[], Sequence[Folder]],
    *,
    is_final: Callable[[], bool],
    rank: int | None = None,
    stream: str | None = None,
    tail: int | None = None,
    since: float | None = None,
    grep: str | None = None,
    cursor: str | None = None,
    follow: bool = False,
) -> Iterator[Line]:
    """The lines of all attempts, oldest first; those of several ranks merged by their times.

    source: the folders known so far, asked again while following. is_final: whether the task can write no more.
    stream: "stdout" or "stderr". tail: begin at the last so many lines (of those that `grep` finds), and with the last
    16 MiB of a longer one. since: begin with what arrived at this time, in seconds since the epoch. follow: go on
    until the task is final.
    Raises ValidationError for a cursor or pattern that cannot be read, ProviderError where a machine is out of reach.
    """
    search, only = _search(grep), None if stream is None else _STREAMS[stream]
    reading = Reading(source, is_final, rank, follow=follow)
    reading.begin_at(cursor, since=since, tail=None if grep else tail, stream=only)
    held = None if tail is None else _Last(tail)
    for line in _lines(reading):
        if line is None:  # all that was there has been read
            if held:
                yield from held.lines()
            held = None
            continue
        is_wanted = (
            only in (None, line.stream)
            and (search is None or bool(search(line.text)))
            and (since is None or line.time >= since)
        )
        if held:
            held.take(line, is_wanted=is_wanted)
        elif is_wanted:
            yield line
    if held:
        yield from held.lines()


def read_blocks(
    source: Callable[[], Sequence[Folder]],
    *,
    is_final: Callable[[], bool],
    rank: int | None = None,
    stream: str | None = None,
    tail: int | None = None,
    since: float | None = None,
    grep: str | None = None,
    cursor: str | None = None,
    follow: bool = False,
) -> Iterator[Block]:
    """What `read_lines` reads, as blocks of whole lines: as fast as can be."""
    search, only = _search(grep), None if stream is None else _STREAMS[stream]
    if tail is not None:
        chosen: dict[str, Any] = {"rank": rank, "stream": stream, "tail": tail, "since": since, "grep": grep}
        for line in read_lines(source, is_final=is_final, cursor=cursor, follow=follow, **chosen):
            yield Block(line.attempt, line.rank, line.stream, line.text + b"\n" * line.is_whole)
        return
    reading = Reading(source, is_final, rank, follow=follow)
    reading.begin_at(cursor, since=since, tail=None, stream=only)
    for block in _blocks(reading):
        if only in (None, block.stream):
            found = block if search is None else block._replace(data=_matching(block.data, search))
            if found.data:
                yield found


class _Last:
    """The last lines of those it is given; the parts of a long one count as one, and the last of them are kept."""

    def __init__(self, count: int) -> None:
        self._taken = 0
        self._ended: deque[Sequence[tuple[int, Line]]] = deque(maxlen=count)  # the parts, each with its place
        self._open: dict[tuple[int, int, int], deque[tuple[int, Line]]] = {}  # by attempt, rank and stream

    def take(self, line: Line, *, is_wanted: bool) -> None:
        """Every line is to be given, in order: also one that is not wanted ends what was begun before it."""
        key = (line.attempt, line.rank, line.stream)
        parts = self._open.pop(key, None) or deque(maxlen=LONGEST_LINE // MOST_BYTES)
        self._taken += 1
        if is_wanted:
            parts.append((self._taken, line))
        if not line.is_whole:
            self._open[key] = parts
        elif parts:
            self._ended.append(parts)

    def lines(self) -> list[Line]:
        """In the order in which they were taken."""
        for parts in self._open.values():
            if parts:
                self._ended.append(parts)
        return [line for _, line in sorted(entry for parts in self._ended for entry in parts)]


def _lines(reading: Reading) -> Iterator[Line | None]:
    """Every line; None when there is none for now."""
    splitters = {rank: _Splitter(attempt, rank, start) for (attempt, rank), start in reading.first_starts()}
    for event in reading.pieces(joined=False):
        if event is None:
            yield None
            continue
        folder, piece = event
        attempt, rank = folder.attempt, folder.rank
        splitter = splitters.get(rank)
        if splitter is None or splitter.attempt != attempt:
            splitter = splitters[rank] = _Splitter(attempt, rank, reading.starts.get((attempt, rank), Start()))
        for stream, text, is_whole in splitter.split(piece) if piece else splitter.unfinished():
            cursor = splitter.cursor
            if len(splitters) > 1:
                cursor = ",".join(one.cursor for _, one in sorted(splitters.items()))
            yield Line(attempt, rank, splitter.time_ns / 1e9, stream, text, cursor, is_whole)


class _Splitter:
    """Cuts one rank's pieces into lines, and knows the cursor after each."""

    def __init__(self, attempt: int, rank: int, start: Start) -> None:
        self.attempt = attempt
        self.name = f"{attempt}.{rank}."
        self.cursor = f"{self.name}{start}"
        self.offset, self.time_ns = start.offset, 0
        self.rests = (bytearray(), bytearray())  # what is there of a line whose end has not come

    def split(self, piece: Piece) -> Iterator[tuple[int, bytes, bool]]:
        """Stream, text, and whether it has a line end: of each line that ends in the piece, or grows too long in it."""
        self.offset, self.time_ns = piece.next_offset, piece.time_ns
        stream, rest = piece.stream, self.rests[piece.stream]
        if b"\n" in piece.data:
            text = bytes(rest) + piece.data
            left = len(text)
            *lines, last = text.split(b"\n")
            rest[:] = last
            for line in lines:
                whole = line
                while len(whole) > MOST_BYTES:
                    left -= MOST_BYTES
                    self._mark(stream, left)
                    yield stream, whole[:MOST_BYTES], False
                    whole = whole[MOST_BYTES:]
                left -= len(whole) + 1
                self._mark(stream, left)
                yield stream, whole, True
        else:
            rest += piece.data
        while len(rest) > MOST_BYTES:
            part = bytes(rest[:MOST_BYTES])
            del rest[:MOST_BYTES]
            self._mark(stream, len(rest))
            yield stream, part, False

    def unfinished(self) -> Iterator[tuple[int, bytes, bool]]:
        """What is left of both streams when nothing comes any more."""
        for stream, rest in enumerate(self.rests):
            if rest:
                text = bytes(rest)
                rest.clear()
                self._mark(stream, 0)
                yield stream, text, False

    def _mark(self, stream: int, owed: int) -> None:
        """The line just given is the last before the cursor; `owed` bytes of its stream were read but not given."""
        other = len(self.rests[1 - stream])
        start = Start(self.offset, owed, other) if stream == 0 else Start(self.offset, other, owed)
        self.cursor = f"{self.name}{start}"


def _blocks(reading: Reading) -> Iterator[Block]:
    """Whole lines of one stream, as many as came together."""
    rests: dict[tuple[int, int], tuple[bytearray, bytearray]] = {}
    for event in reading.pieces(joined=True):
        if event is None:
            continue
        folder, piece = event
        place = (folder.attempt, folder.rank)
        both = rests.setdefault(place, (bytearray(), bytearray()))
        if piece is None:
            yield from (Block(*place, stream, bytes(rest)) for stream, rest in enumerate(both) if rest)
            del rests[place]
        elif data := _whole_lines(piece.data, both[piece.stream]):
            yield Block(*place, piece.stream, data)


def _whole_lines(data: bytes, rest: bytearray) -> bytes:
    """All of `rest` and `data` up to the last line end, or when it grew too long; the others stay in `rest`."""
    cut = data.rfind(b"\n") + 1
    if cut == 0 and len(rest) + len(data) > MOST_BYTES:
        cut = len(data)
    if not rest and cut == len(data):
        return data
    if cut == 0:
        rest += data
        return b""
    block = bytes(rest) + data[:cut]
    rest[:] = data[cut:]
    return block


def _matching(block: bytes, search: Callable[[bytes], object]) -> bytes:
    *lines, last = block.split(b"\n")
    return b"".join([line + b"\n" for line in lines if search(line)]) + (last if last and search(last) else b"")


def _search(grep: str | None) -> Callable[[bytes], object] | None:
    if grep is None:
        return None
    try:
        return re.compile(grep.encode()).search
    except re.error as error:
        raise ValidationError(f"cannot read `{grep}` as a pattern: {error}") from error
