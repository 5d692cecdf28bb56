"""The pieces of one folder's output, read here from its files or over a channel by the same program there."""

from __future__ import annotations

import os
import select
import shlex
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from flow.channel import Channel
from flow.errors import ProviderError
from flow.node import tail
from flow.node.tail import ALL_FOR_NOW, END_OF_FRAMES, FRAME, Piece, Reader, Start

_LOOK_SECONDS = 0.01  # between two looks at a file that has nothing new
_RETRY_SECONDS = 1.0
_RETRIES = 5  # one after the other without a byte, where the task is over


@dataclass(frozen=True, slots=True)
class Folder:
    """The folder of one rank of one attempt, and how to reach it."""

    attempt: int
    rank: int
    channel: Channel
    path: str


class Feed(Protocol):
    """One folder's pieces as they come.

    Set by its reader: `is_over`, the attempt is known to have ended; `is_patient`, its machine is waited for.
    """

    folder: Folder
    start: Start  # where it goes on after a cut
    queue: deque[Piece]
    is_over: bool
    is_patient: bool
    is_caught_up: bool  # all that was there when reading began is in the queue, or was
    is_done: bool  # nothing comes any more

    @property
    def is_cut(self) -> bool:
        """Whether its machine is out of reach now."""
        ...

    def fill(self) -> None:
        """Put what there is now into the queue; never waits. Raises ProviderError where the machine is out of reach."""
        ...

    def close(self) -> None:
        """Let go of files and processes."""
        ...


def open_feed(folder: Folder, start: Start, *, follow: bool, within_ns: int) -> Feed:
    """The pieces of `folder` from `start` on. Bytes at most `within_ns` apart may come as one piece."""
    if folder.channel.is_here:
        return _Here(folder, start, follow=follow, within_ns=within_ns)
    return _There(folder, start, follow=follow)


def idle(feeds: Sequence[Feed]) -> None:
    """Wait a moment, until one of the feeds may have more."""
    far = [feed.fileno() for feed in feeds if isinstance(feed, _There) and feed.fileno() >= 0]
    if far:
        waiter = select.poll()  # `select` takes no descriptor over 1023
        for descriptor in far:
            waiter.register(descriptor, select.POLLIN)
        waiter.poll(1000 * (_LOOK_SECONDS if len(far) < len(feeds) else 0.1))
    else:
        time.sleep(_LOOK_SECONDS)


def find_last_lines(folder: Folder, lines: int, stream: int | None) -> tuple[Start, int]:
    """Where the last `lines` lines of a folder begin, or a little before, and how many there are from there on."""
    if folder.channel.is_here:
        return tail.find_last_lines(folder.path, lines, stream)
    start, found = _ask(folder, "find-lines", str(lines), *([] if stream is None else [str(stream)])).split()
    return tail.start_from(start), int(found)


def find_time(folder: Folder, seconds: float) -> Start:
    """Where the lines of a folder begin that ended at that time (since the epoch) or later."""
    time_ns = int(seconds * 1e9) - 1000  # as near as a float says
    if folder.channel.is_here:
        return tail.find_time(folder.path, time_ns)
    return tail.start_from(_ask(folder, "find-time", str(time_ns)))


class _Here:
    """Files of this machine."""

    def __init__(self, folder: Folder, start: Start, *, follow: bool, within_ns: int) -> None:
        self.folder, self.start, self.follow, self.within_ns = folder, start, follow, within_ns
        self.queue: deque[Piece] = deque()
        self.is_over = self.is_patient = self.is_caught_up = self.is_done = False
        self.look_at = 0.0
        self.reader = Reader(folder.path, start)

    @property
    def is_cut(self) -> bool:
        return False

    def fill(self) -> None:
        if self.look_at > time.monotonic():
            return
        # asked before reading, so that nothing written before the end is missed
        is_over = self.is_over or tail.has_ended(self.folder.path)
        self.queue.extend(self.reader.read(is_over=is_over, within_ns=self.within_ns))
        if self.queue:
            return
        self.is_caught_up = True
        if is_over or not self.follow:
            self.is_done = True
            self.close()
        self.look_at = time.monotonic() + _LOOK_SECONDS

    def close(self) -> None:
        self.reader.close()


class _There:
    """Frames from the `tail` program on another machine; begun again after a cut, where it was cut."""

    def __init__(self, folder: Folder, start: Start, *, follow: bool) -> None:
        self.folder, self.start, self.follow = folder, start, follow
        self.queue: deque[Piece] = deque()
        self.is_over = self.is_patient = self.is_caught_up = self.is_done = False
        self.is_last = False  # the program running now reads what there is, and ends
        self.rest = b""
        self.failures = 0
        self.retry_at = 0.0
        self.process: subprocess.Popen[bytes] | None = None
        self.errors: IO[bytes] | None = None

    def fileno(self) -> int:
        """What has bytes to read when there is more; -1 never."""
        return self.process.stdout.fileno() if self.process and self.process.stdout else -1

    @property
    def is_cut(self) -> bool:
        return self.failures > 0

    def fill(self) -> None:
        if self.process is None:
            if time.monotonic() < self.retry_at:
                return
            self._open()
        data = self._read()
        if data:
            self.failures = 0
            self._take(data)
        elif data is not None:
            self._cut()
        elif self.is_over and not self.is_last:
            self.close()  # it would wait for an end that nobody reports any more
            self._open()

    def close(self) -> None:
        if self.process:
            assert self.process.stdout
            self.process.kill()
            self.process.stdout.close()
            self.process.wait()
            self.process = None
        self.rest = b""

    def _open(self) -> None:
        self.is_last = self.is_over or not self.follow
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  # stays open for as long as the program runs
        self.process = subprocess.Popen(
            _command(self.folder, "tail", str(self.start), *([] if self.is_last else ["--follow"])),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(_program())
            self.process.stdin.close()
        except BrokenPipeError:  # it ended already; what it said is found out when reading
            pass
        os.set_blocking(self.process.stdout.fileno(), False)

    def _read(self) -> bytes | None:
        """What has come; b"" when the connection was cut, None when nothing has come yet."""
        try:
            return os.read(self.fileno(), 1 << 20)
        except BlockingIOError:
            return None

    def _take(self, data: bytes) -> None:
        data, at = self.rest + data, 0
        while at + FRAME.size <= len(data):
            offset, when, stream, length = FRAME.unpack_from(data, at)
            if stream == END_OF_FRAMES:
                self.close()
                self.is_caught_up = self.is_done = True
                return
            if at + FRAME.size + length > len(data):
                break
            at += FRAME.size + length
            if stream == ALL_FOR_NOW:
                self.is_caught_up = True
                continue
            self.queue.append(Piece(offset, when, stream, data[at - length : at]))
            owed = list(self.start[1:]) if offset == self.start.offset else [0, 0]
            owed[stream] = 0
            self.start = Start(offset, *owed)
        self.rest = data[at:]

    def _cut(self) -> None:
        """The connection ended before all was read: try again, for ever while that is waited for."""
        self.close()
        self.failures += 1
        self.retry_at = time.monotonic() + _RETRY_SECONDS
        if self.failures > _RETRIES and not self.is_patient:
            assert self.errors
            self.errors.seek(0)
            raise _out_of_reach(self.folder, self.errors.read())


def _ask(folder: Folder, verb: str, *words: str) -> str:
    done = subprocess.run(_command(folder, verb, *words), input=_program(), capture_output=True, check=False)
    if done.returncode:
        raise _out_of_reach(folder, done.stderr)
    return done.stdout.decode().strip()


def _command(folder: Folder, verb: str, *words: str) -> list[str]:
    return folder.channel.command(shlex.join(["exec", folder.channel.python, "-", verb, folder.path, *words]))


def _program() -> bytes:
    return Path(tail.__file__).read_bytes()


def _out_of_reach(folder: Folder, said: bytes) -> ProviderError:
    last = said.decode(errors="replace").strip().rpartition("\n")[2] or "no answer"
    return ProviderError(
        f"cannot read the logs of node {folder.rank} over `{shlex.join(folder.channel.prefix)}`: {last}",
        suggestions=["try again when the machine can be reached"],
    )
