"""One worker as its client sees it: the task that serves, the socket to it, the calls that it has been sent."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from flow.calls import FOLDER
from flow.channel import Channel
from flow.node import connect, serve
from flow.task import Task

_LOOK_SECONDS = 0.05  # between looks at the state of a task that has not started, or is ending
_LOST_SECONDS = 2  # after which a worker whose connection was lost is ended, where it has not done so itself
_AHEAD_SECONDS = 0.01  # of work that a worker is sent before it has answered
_MOST_AHEAD = 256  # calls


@dataclass(slots=True)
class PendingCall:
    """A call on its way: its line, where its answer goes, how often it may be made again after a failure."""

    line: bytes
    retries: int = 0
    answer: Future[bytes] = field(default_factory=Future)


class Worker:
    """`link` is there from when it is connected until it is lost; `sent` are the calls it has, the oldest first."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.link: socket.socket | None = None
        self.is_lost = self.is_dismissed = False
        self.sent: deque[PendingCall] = deque()
        self.is_begun = False  # the oldest of them
        self.ahead = 1  # how many it may have
        self.seconds_per_call = 0.0
        self.since = time.monotonic()  # its last answer, or when it was given something to do
        self.out = bytearray()  # what the socket did not take yet
        self._parts: list[bytes] = []
        self._look_at = 0.0
        self._relay: subprocess.Popen[bytes] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether it waits for calls."""
        return self.link is not None and not self.sent

    @property
    def has_room(self) -> bool:
        """Whether it may be sent another call."""
        return self.link is not None and len(self.sent) < self.ahead

    def busy_seconds(self) -> float:
        """What a call takes, as far as it is known by now."""
        return max(self.seconds_per_call, time.monotonic() - self.since if self.sent else 0.0)

    def look(self) -> bool:
        """Connect to it if it is ready; whether its task has ended."""
        if self.link is None and not self.is_lost and self._relay is None:
            self._connect()
        now = time.monotonic()
        if self.link is not None or now < self._look_at:
            return False
        self._look_at = now + _LOOK_SECONDS
        if self.is_lost and now - self.since > _LOST_SECONDS:
            self.task.cancel()
        return self.task.refresh().status.is_final

    def _connect(self) -> None:
        reached = self.task.reach()
        if reached is None:
            return
        channel, folder = reached
        place = Path(folder, "workspace", FOLDER)
        try:
            if not channel.is_here or sys.platform != "linux":
                self.link = self._relayed(channel, place)
            elif (place / serve.SOCKET).exists():
                self.link = _connected(place)
        except OSError:  # it ended just now
            return
        if self.link:
            self.link.setblocking(False)
            self.since = time.monotonic()

    def _relayed(self, channel: Channel, place: Path) -> socket.socket:
        """By a process over there that joins its stdin and stdout with the worker's socket."""
        ours, theirs = socket.socketpair()
        argv = channel.python_command(
            Path(connect.__file__).read_text(), str(place / serve.SOCKET), str(serve.FIRST_CLIENT_SECONDS)
        )
        with theirs:
            self._relay = subprocess.Popen(argv, stdin=theirs.fileno(), stdout=theirs.fileno())
        return ours

    def send(self, calls: deque[PendingCall]) -> None:
        """Take as many of `calls` as it may have, and send them but for those that were cancelled."""
        if calls and not self.sent:
            self.since = time.monotonic()
        while calls and self.has_room:
            call = calls.popleft()
            if call.answer.running() or call.answer.set_running_or_notify_cancel():  # running: made again
                self.sent.append(call)
                self.out += call.line
        self.flush()

    def flush(self) -> None:
        """Give the socket what it takes."""
        if self.out and self.link:
            with suppress(OSError):  # full; or gone, which reading tells
                del self.out[: self.link.send(self.out)]

    def receive(self) -> list[tuple[PendingCall, bytes]] | None:
        """The answers that have come; None where the connection is lost."""
        assert self.link
        try:
            data = self.link.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            return None
        head, newline, rest = data.rpartition(b"\n")
        lines = b"".join([*self._parts, head]).split(b"\n") if newline else []
        self._parts = [rest] if newline else [*self._parts, rest]
        answers = []
        for line in lines:
            self.is_begun = line == b"+"
            if not self.is_begun:
                answers.append((self.sent.popleft(), line))
        self._note_pace(len(answers))
        return answers

    def _note_pace(self, answers: int) -> None:
        if answers:
            now = time.monotonic()
            self.seconds_per_call = (now - self.since) / answers
            self.since = now
            self.ahead = max(1, min(_MOST_AHEAD, int(_AHEAD_SECONDS / (self.seconds_per_call + 1e-9))))

    def lose(self) -> None:
        """Let go of the connection."""
        if self.link:
            self.link.close()
        self.link, self.is_lost, self.since = None, True, time.monotonic()
        if self._relay:
            self._relay.terminate()
            self._relay.wait()

    def dismiss(self) -> None:
        """End it: one that is idle by itself, any other by cancelling its task."""
        if self.is_idle and not self.out and self.link:
            with suppress(OSError):
                self.link.send(b".\n")
        else:
            self.task.cancel()
        self.is_dismissed = True
        self.lose()


def _connected(place: Path) -> socket.socket:
    """By way of the folder's descriptor: the path of a socket must be short."""
    link = socket.socket(socket.AF_UNIX)
    folder = os.open(place, os.O_PATH | os.O_DIRECTORY)
    try:
        link.connect(f"/proc/self/fd/{folder}/{serve.SOCKET}")
    except OSError:
        link.close()
        raise
    finally:
        os.close(folder)
    return link
