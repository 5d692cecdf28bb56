"""What a task wrote, from the folders of its attempts and ranks: whole lines, in the order of their arrival.

Every line has a cursor, from which reading goes on after any interruption with nothing missing and nothing twice.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from flow.errors import ValidationError
from flow.log_feeds import Feed, Folder, find_last_lines, find_time, idle, open_feed
from flow.node.tail import MOST_BYTES, Piece, Start, start_from

__all__ = ["Folder", "Line", "read_lines", "read_merged"]

_STREAMS = {"stdout": 0, "stderr": 1}
_LOOK_AROUND_SECONDS = 0.25  # how often a follower asks whether the attempt is over, or has more folders
_FOREVER_NS = 1 << 63
_TOGETHER_NS = 10_000_000  # bytes of one rank this close to each other are not parted by those of another


class Line(NamedTuple):
    """One line, without its line end; `\\r` is part of a line."""

    attempt: int
    rank: int
    time: float  # of the arrival of its end, in seconds since the epoch, by the machine's clock
    stream: int  # 0 stdout, 1 stderr
    text: bytes
    cursor: str  # reading from it begins with the line after this one
    is_whole: bool = True  # False: the last one, without a line end; or a part of one longer than 1 MiB


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
    stream: "stdout" or "stderr". tail: begin at the last so many lines (of those that `grep` finds). since: begin with
    what arrived at this time, in seconds since the epoch. follow: go on until the task is final.
    Raises ValidationError for a cursor or pattern that cannot be read, ProviderError where a machine is out of reach.
    """
    search, only = _search(grep), None if stream is None else _STREAMS[stream]
    reading = _Reading(source, is_final, rank, follow=follow)
    reading.begin_at(cursor, since=since, tail=None if grep else tail, stream=only)
    held: deque[Line] | None = None if tail is None else deque(maxlen=tail)
    for line in _lines(reading):
        if line is None:  # all that was there has been read
            yield from held or ()
            held = None
        elif only not in (None, line.stream) or (search and not search(line.text)):
            continue
        elif since is None or line.time >= since:
            if held is None:
                yield line
            else:
                held.append(line)
    yield from held or ()


def read_merged(
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
) -> Iterator[tuple[int, bytes]]:
    """What `read_lines` reads, as (0 for stdout or 1 for stderr, some whole lines): as fast as can be."""
    search, only = _search(grep), None if stream is None else _STREAMS[stream]
    if tail is not None:
        chosen: dict[str, Any] = {"rank": rank, "stream": stream, "tail": tail, "since": since, "grep": grep}
        for line in read_lines(source, is_final=is_final, cursor=cursor, follow=follow, **chosen):
            yield line.stream, line.text + b"\n" * line.is_whole
        return
    reading = _Reading(source, is_final, rank, follow=follow)
    reading.begin_at(cursor, since=since, tail=None, stream=only)
    for which, block in _blocks(reading):
        if only in (None, which):
            found = block if search is None else _matching(block, search)
            if found:
                yield which, found


class _Reading:
    """Which folders are read, from where, and whether to go on."""

    def __init__(
        self,
        source: Callable[[], Sequence[Folder]],
        is_final: Callable[[], bool],
        rank: int | None,
        *,
        follow: bool,
    ) -> None:
        self.source, self.is_final, self.rank, self.follow = source, is_final, rank, follow
        self.first_attempt = 0
        self.starts: dict[tuple[int, int], Start] = {}  # by attempt and rank

    def begin_at(self, cursor: str | None, *, since: float | None, tail: int | None, stream: int | None) -> None:
        """Decide where each folder is read from."""
        if cursor:
            self.first_attempt, self.starts = _parse_cursor(cursor)
        elif tail is not None:
            self._begin_at_last_lines(tail, stream)
        elif since is not None:
            self.starts = {(one.attempt, one.rank): find_time(one, since) for one in self.folders()}

    def folders(self) -> list[Folder]:
        """Those of the attempts that are still to be read."""
        return [one for one in self.source() if self.rank in (None, one.rank) and one.attempt >= self.first_attempt]

    def pieces(self, *, joined: bool) -> Iterator[tuple[Folder, Piece | None] | None]:
        """Every piece with its folder; (folder, None) at a folder's end; None when nothing more is there yet.

        joined: pieces of one stream may come as one, where no other rank's lies between them.
        """
        pause = 0.01
        while True:
            is_final = self.is_final()  # asked before looking, so that no attempt is missed
            folders = self.folders()
            if folders:
                attempt = min(one.attempt for one in folders)
                yield from self._attempt(attempt, joined=joined)
                self.first_attempt = attempt + 1
                pause = 0.01
            elif is_final or not self.follow:
                return
            else:
                yield None
                time.sleep(pause)
                pause = min(pause * 1.5, _LOOK_AROUND_SECONDS)

    def _attempt(self, attempt: int, *, joined: bool) -> Iterator[tuple[Folder, Piece | None] | None]:
        feeds: dict[int, Feed] = {}  # by rank
        ended: set[int] = set()
        look_around_at = 0.0
        try:
            while True:
                if time.monotonic() >= look_around_at:
                    self._look_around(attempt, feeds, joined=joined)
                    look_around_at = time.monotonic() + _LOOK_AROUND_SECONDS
                for rank in feeds.keys() - ended:
                    feed = feeds[rank]
                    if not feed.queue and not feed.is_done:
                        feed.fill()
                    if not feed.queue and feed.is_done:
                        ended.add(rank)
                        yield feed.folder, None
                ready = [feed for feed in feeds.values() if feed.queue]
                if ready:
                    feed = ready[0] if len(ready) == 1 else min(ready, key=_next_arrival)
                    yield feed.folder, feed.queue.popleft()
                elif len(ended) == len(feeds):
                    return
                else:
                    if all(feed.is_caught_up for feed in feeds.values()):
                        yield None
                    idle(list(feeds.values()))
        finally:
            for feed in feeds.values():
                feed.close()

    def _look_around(self, attempt: int, feeds: dict[int, Feed], *, joined: bool) -> None:
        """Open the folders that are new, and learn whether this attempt can write no more."""
        is_over = self.is_final()
        folders = self.folders()
        now = [one for one in folders if one.attempt == attempt]
        within_ns = 0 if not joined else _FOREVER_NS if len(now) == 1 else _TOGETHER_NS
        for one in now:
            if one.rank not in feeds:
                start = self.starts.get((attempt, one.rank), Start())
                feeds[one.rank] = open_feed(one, start, follow=self.follow, within_ns=within_ns)
        for feed in feeds.values():
            feed.is_over = is_over or len(now) < len(folders)  # the attempt after it exists

    def _begin_at_last_lines(self, lines: int, stream: int | None) -> None:
        folders = sorted(self.folders(), key=lambda one: -one.attempt)
        found = 0
        for one in folders:
            if found >= lines and one.attempt < self.first_attempt:
                return
            self.first_attempt = one.attempt
            self.starts[one.attempt, one.rank], more = find_last_lines(one, lines, stream)
            found += more


def _lines(reading: _Reading) -> Iterator[Line | None]:
    """Every line; None when there is none for now."""
    splitters: dict[int, _Splitter] = {}  # by rank
    attempt = -1
    for event in reading.pieces(joined=False):
        if event is None:
            yield None
            continue
        folder, piece = event
        if folder.attempt != attempt:
            attempt, splitters = folder.attempt, {}
            for (number, rank), start in reading.starts.items():
                if number == attempt:
                    splitters[rank] = _Splitter(attempt, rank, start)
        splitter = splitters.setdefault(folder.rank, _Splitter(attempt, folder.rank, Start()))
        for stream, text, is_whole in splitter.split(piece) if piece else splitter.unfinished():
            cursor = splitter.cursor
            if len(splitters) > 1:
                cursor = ",".join(one.cursor for _, one in sorted(splitters.items()))
            yield Line(attempt, folder.rank, splitter.time_ns / 1e9, stream, text, cursor, is_whole)


class _Splitter:
    """Cuts one rank's pieces into lines, and knows the cursor after each."""

    def __init__(self, attempt: int, rank: int, start: Start) -> None:
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


def _blocks(reading: _Reading) -> Iterator[tuple[int, bytes]]:
    """Whole lines of one stream, as many as came together."""
    rests: dict[tuple[int, int], tuple[bytearray, bytearray]] = {}
    unended: list[int] = []  # streams that a folder left without a line end
    for event in reading.pieces(joined=True):
        if event is None:
            continue
        folder, piece = event
        both = rests.setdefault((folder.attempt, folder.rank), (bytearray(), bytearray()))
        if piece is None:
            found = [(stream, bytes(rest)) for stream, rest in enumerate(both) if rest]
        else:
            block = _whole_lines(piece.data, both[piece.stream])
            found = [(piece.stream, block)] if block else []
        if found:
            yield from ((stream, b"\n") for stream in unended)
            unended = [stream for stream, _ in found] if piece is None else []
        yield from found


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


def _parse_cursor(cursor: str) -> tuple[int, dict[tuple[int, int], Start]]:
    """The attempt of a cursor, and where its ranks are read from."""
    starts = {}
    try:
        for part in cursor.split(","):
            attempt, rank, start = part.split(".")
            starts[int(attempt), int(rank)] = start_from(start)
        ((only, _), *_) = starts
    except (ValueError, TypeError) as error:
        raise ValidationError(
            f"`{cursor}` is not a cursor", suggestions=["take one from `flow logs --json`, as it is"]
        ) from error
    return only, starts


def _next_arrival(feed: Feed) -> tuple[int, int]:
    return feed.queue[0].time_ns, feed.folder.rank
