"""Which folders of a task are read, and from where: their pieces, in the order of their arrival."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from flow.errors import ValidationError
from flow.log_feeds import Feed, Folder, find_last_lines, find_time, idle, open_feed
from flow.node.tail import Piece, Start, start_from

_LOOK_AROUND_SECONDS = 0.25  # how often a follower asks whether the task is over, or has more folders
_FIRST_PAUSE = 0.01  # seconds between looks while there is no folder to read
_FOREVER_NS = 1 << 63
_TOGETHER_NS = 10_000_000  # bytes of one rank this close to each other are not parted by those of another

Event = tuple[Folder, Piece | None] | None


class Reading:
    """One way through a task's folders: each rank's attempts one after the other, all ranks at once."""

    def __init__(
        self,
        source: Callable[[], Sequence[Folder]],
        is_final: Callable[[], bool],
        rank: int | None,
        *,
        follow: bool,
    ) -> None:
        self.source, self.is_final, self.rank, self.follow = source, is_final, rank, follow
        self.starts: dict[tuple[int, int], Start] = {}  # by attempt and rank; a rank's earlier attempts are not read

    def begin_at(self, cursor: str | None, *, since: float | None, tail: int | None, stream: int | None) -> None:
        """Decide where each folder is read from. Raises ValidationError for what is no cursor."""
        if cursor:
            self.starts = _parse_cursor(cursor)
        elif tail is not None:
            self._begin_at_last_lines(tail, stream)
        elif since is not None:
            self.starts = {(one.attempt, one.rank): find_time(one, since) for one in self._folders()}

    def first_starts(self) -> list[tuple[tuple[int, int], Start]]:
        """Where the first attempt that is read of each rank begins, as far as that was decided."""
        return [(place, start) for place, start in self.starts.items() if place[0] == self._first_attempt(place[1])]

    def pieces(self, *, joined: bool) -> Iterator[Event]:
        """Every piece with its folder; (folder, None) at a folder's end; None when nothing more is there yet.

        joined: pieces of one stream may come as one, where no other rank's lies between them.
        """
        lanes: dict[int, _Lane] = {}
        look_at, pause, is_final = 0.0, _FIRST_PAUSE, False
        try:
            while True:
                if time.monotonic() >= look_at:
                    is_final = self.is_final()  # asked before looking, so that no folder is missed
                    self._look_around(lanes, is_final=is_final, joined=joined)
                    look_at = time.monotonic() + _LOOK_AROUND_SECONDS
                feeds = []
                for lane in lanes.values():
                    yield from lane.ended()
                    if lane.feed:
                        feeds.append(lane.feed)
                ready = [feed for feed in feeds if feed.queue]
                if ready:
                    feed = ready[0] if len(ready) == 1 else min(ready, key=_next_arrival)
                    yield feed.folder, feed.queue.popleft()
                    pause = _FIRST_PAUSE
                elif feeds:
                    if all(feed.is_caught_up for feed in feeds):
                        yield None
                    idle(feeds)
                elif is_final or not self.follow:
                    return
                else:
                    yield None
                    time.sleep(pause)
                    pause = min(pause * 1.5, _LOOK_AROUND_SECONDS)
                    look_at = 0.0
        finally:
            for lane in lanes.values():
                lane.close()

    def _folders(self) -> list[Folder]:
        found = [one for one in self.source() if self.rank in (None, one.rank)]
        return sorted(found, key=lambda one: (one.attempt, one.rank))

    def _first_attempt(self, rank: int) -> int:
        return min((attempt for attempt, other in self.starts if other == rank), default=0)

    def _look_around(self, lanes: dict[int, _Lane], *, is_final: bool, joined: bool) -> None:
        """Give each rank the folders that are new, and learn whether what it reads can be written no more."""
        for one in self._folders():
            if one.rank not in lanes:
                lanes[one.rank] = _Lane(self, self._first_attempt(one.rank))
            lanes[one.rank].add(one)
        within_ns = 0 if not joined else _FOREVER_NS if len(lanes) == 1 else _TOGETHER_NS
        for lane in lanes.values():
            lane.within_ns = within_ns
            lane.begin(is_final=is_final)

    def _begin_at_last_lines(self, lines: int, stream: int | None) -> None:
        """Of each rank as many of its newest attempts as have that many lines, or all."""
        found: dict[int, int] = {}
        for one in reversed(self._folders()):
            if one.rank not in found or found[one.rank] < lines:
                self.starts[one.attempt, one.rank], more = find_last_lines(one, lines, stream)
                found[one.rank] = found.get(one.rank, 0) + more


class _Lane:
    """One rank: the folders of its attempts, read one after the other."""

    def __init__(self, reading: Reading, first_attempt: int) -> None:
        self.reading = reading
        self.within_ns = 0
        self.feed: Feed | None = None
        self.newest = first_attempt - 1
        self.waiting: deque[Folder] = deque()
        self.is_final = False

    def add(self, folder: Folder) -> None:
        """Folders come in the order of their attempts; one that is known is passed over."""
        if folder.attempt > self.newest:
            self.newest = folder.attempt
            self.waiting.append(folder)
        elif self.feed and self.feed.is_cut and folder.attempt == self.feed.folder.attempt:
            self._go_on_at(folder)

    def _go_on_at(self, folder: Folder) -> None:
        """Where the machine is gone from which it was read: what there is of it now lies elsewhere."""
        assert self.feed
        if folder == self.feed.folder:
            return
        queue, start = self.feed.queue, self.feed.start
        self.feed.close()
        self.feed = open_feed(folder, start, follow=self.reading.follow, within_ns=self.within_ns)
        self.feed.queue.extend(queue)

    def begin(self, *, is_final: bool) -> None:
        """Open the next folder where none is open; `is_final` holds for all that are known now."""
        self.is_final = is_final
        if self.feed is None and self.waiting:
            folder = self.waiting.popleft()
            start = self.reading.starts.get((folder.attempt, folder.rank), Start())
            self.feed = open_feed(folder, start, follow=self.reading.follow, within_ns=self.within_ns)
        if self.feed:
            self.feed.is_over = is_final or bool(self.waiting)  # there is an attempt after it
            self.feed.is_patient = self.reading.follow and not is_final

    def ended(self) -> Iterator[Event]:
        """Have something in the feed's queue where there is more; the ends of the folders that were read to it."""
        while self.feed and not self.feed.queue:
            if not self.feed.is_done:
                self.feed.fill()
            if self.feed.queue or not self.feed.is_done:
                return
            folder, self.feed = self.feed.folder, None
            yield folder, None
            self.begin(is_final=self.is_final)

    def close(self) -> None:
        if self.feed:
            self.feed.close()


def _parse_cursor(cursor: str) -> dict[tuple[int, int], Start]:
    """Where each of a cursor's ranks is read from."""
    starts = {}
    try:
        for part in cursor.split(","):
            attempt, rank, start = part.split(".")
            starts[int(attempt), int(rank)] = start_from(start)
    except (ValueError, TypeError) as error:
        raise ValidationError(
            f"`{cursor}` is not a cursor", suggestions=["take one from `flow logs --json`, as it is"]
        ) from error
    return starts


def _next_arrival(feed: Feed) -> tuple[int, int]:
    return feed.queue[0].time_ns, feed.folder.rank
