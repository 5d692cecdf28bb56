"""The ranks of one task tell each other how they ended: one JSON object a line, over one connection to rank 0.

The first rank that fails stops all others. A rank that has ended stays until all have, to hear whether they ended well:
else it is to run again with them. Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import errno
import hmac
import json
import selectors
import socket
import time
from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:
    from flow.node.loop import Loop
    from flow.node.runner import Rank

LOST_PEER_SECONDS = 10  # a rank whose connection was cut is lost after this
LOST_MAIN_SECONDS = 60  # and rank 0 after this, which waits as long for one that is to hear how all ended
REFUSALS = 50  # or after so many in ten seconds, by a machine on which nobody listens any more


def join(rank: Rank) -> Hub | Link:
    """Meet the other ranks; raises OSError where rank 0 cannot listen."""
    return Hub(rank) if rank.task["rank"] == 0 else Link(rank)


class Wire:
    """A connection between two ranks: one JSON object a line, each way."""

    def __init__(self, loop: Loop, sock: socket.socket, hear: Callable[[Wire, dict[str, Any]], None]) -> None:
        self.loop, self.sock, self.hear = loop, sock, hear
        self.rank: int | None = None
        self.rest = b""
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # a machine that was rebooted is missed with the first of these, one that is cut off with the last
        for name, number in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 8)):
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), number)
        loop.on(sock, self.read)

    def read(self) -> None:
        """Hear each line; {} says that the connection was cut, or that what came is none of ours."""
        try:
            data = self.sock.recv(4096)
            *lines, self.rest = (self.rest + data).split(b"\n")
            messages = [json.loads(line) for line in lines]
        except (OSError, ValueError):
            data, messages = b"", []
        for message in messages:
            if self.sock.fileno() >= 0 and isinstance(message, dict) and message:
                self.hear(self, message)
        if self.sock.fileno() >= 0 and (not data or len(self.rest) > 4096):
            self.close()
            self.hear(self, {})

    def say(self, **message: Any) -> None:
        """Send a message; where the connection is cut, reading finds out."""
        try:
            self.sock.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            pass

    def close(self) -> None:
        """Hear no more of it."""
        if self.sock.fileno() >= 0:
            self.loop.off(self.sock)
            self.sock.close()


class Hub:
    """Rank 0's side: hears how each rank ended, and at the first failure tells all that are left to stop."""

    def __init__(self, rank: Rank) -> None:
        self.own, self.task, self.loop = rank, rank.task, rank.loop
        self.wires: dict[int, Wire] = {}
        self.unheard = set(range(1, self.task["nodes"]))  # ranks whose end is not known
        self.untold: set[int] = set()  # and those who wait to hear of all others'
        self.has_ended = False
        self.order: dict[str, str] = {}  # to end, which the others were told
        self.server = listening(self.task["peers"][0], self.task["control_port"])
        self.loop.on(self.server, lambda: Wire(self.loop, self.server.accept()[0], self.hear))
        for number in self.unheard:
            self.loop.after(self.task.get("delivery_timeout_seconds", 1800), f"lost {number}", self._lose(number))

    def is_done(self) -> bool:
        """Whether every rank's end is known, to each of them."""
        return not self.unheard and not self.untold

    @property
    def failure(self) -> str:
        """Why this attempt has failed, whatever became of rank 0's own command; "" where it has not."""
        return self.order["stop"] if self.order.get("cause") == "peer" else ""

    def own_end(self, code: int, reason: str) -> None:
        """Rank 0's command ended, or never started."""
        self.has_ended = True
        if code:
            self._fail(0, reason)
        elif self.task.get("slurm"):  # the others only ran the steps of rank 0's script
            self._tell("over", "")
        self._tell_all()

    def own_stop(self, cause: str, reason: str) -> None:
        """Rank 0 is told to end by its machine's owner: so are all."""
        if cause == "cancel":
            self._tell(cause, reason)

    def hear(self, wire: Wire, message: dict[str, Any]) -> None:
        """What one rank says; {} is its silence."""
        number = wire.rank
        if number is None:
            self._welcome(wire, message)
        elif "ended" in message:
            wire.say(heard=True)
            if message.get("stays"):
                self.untold.add(number)
            is_new = number in self.unheard
            self.unheard.discard(number)
            if is_new and message["ended"]:
                self._fail(number, message.get("reason", ""))
            self._tell_all()
        elif "knows" in message:
            self.untold.discard(number)
        elif not message and self.wires.get(number) is wire:
            self.loop.after(LOST_PEER_SECONDS, f"lost {number}", self._lose(number))

    def _fail(self, number: int, reason: str) -> None:
        """Only the first failure counts."""
        if not self.order:
            self._tell("peer", f"stopped: node {number}: {reason}")
            self.own.stop("peer", self.order["stop"])

    def _tell(self, cause: str, why: str) -> None:
        """Tell the other ranks to end, those that come later too."""
        self.order = {"stop": why, "cause": cause}
        for number in self.unheard & self.wires.keys():
            self.wires[number].say(**self.order)

    def _tell_all(self) -> None:
        """Once all have ended, how: those who cannot be reached now may be so soon."""
        if self.has_ended and not self.unheard:
            for wire in self.wires.values():
                wire.say(over=self.failure)
            self.loop.after(LOST_MAIN_SECONDS, "untold", self.untold.clear)

    def _welcome(self, wire: Wire, message: dict[str, Any]) -> None:
        number = message.get("rank")
        is_ours = hmac.compare_digest(str(message.get("token")).encode(), self.task["token"].encode())
        if not is_ours or not isinstance(number, int) or not 0 < number < self.task["nodes"]:
            wire.close()
            return
        wire.rank = number
        self.wires[number] = wire
        self.loop.times.pop(f"lost {number}", None)
        if number in self.unheard and self.order:
            wire.say(**self.order)
        self._tell_all()

    def _lose(self, number: int) -> Callable[[], None]:
        def lose() -> None:
            self.untold.discard(number)
            if number in self.unheard:
                self.unheard.discard(number)
                self._fail(number, "lost")
                self._tell_all()

        return lose


class Link:
    """Another rank's side: tells rank 0 how this one ended, and stops it when told to, or when rank 0 is gone."""

    def __init__(self, rank: Rank) -> None:
        self.own, self.task, self.loop = rank, rank.task, rank.loop
        self.wire: Wire | None = None
        self.last_word: dict[str, Any] = {}
        self.is_over = self.is_told_to_stop = False
        self.failure = ""  # why this attempt has failed, whatever became of this rank's own command
        self.refusals = -1e9  # before the first connection they say nothing
        self.loop.after(self.task.get("delivery_timeout_seconds", 1800), "main lost", self._lost)
        self._connect()

    def is_done(self) -> bool:
        """Whether rank 0 told how all have ended, or never will, or told this one to end and is gone."""
        return self.is_over or (self.is_told_to_stop and not self.wire)

    def own_end(self, code: int, reason: str) -> None:
        """This rank's command ended, or never started."""
        self.last_word = {"ended": code, "reason": reason, "stays": True}
        if self.wire:
            self.wire.say(**self.last_word)

    def own_stop(self, cause: str, reason: str) -> None:
        """Of what only this rank is told, the others hear at its end."""

    def _connect(self) -> None:
        address = self.task["peers"][0]
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        sock.setblocking(False)
        try:
            error = sock.connect_ex((address, self.task["control_port"]))
        except OSError:  # the name cannot be resolved yet
            error = errno.EHOSTUNREACH
        if error not in (0, errno.EINPROGRESS):
            self._retry(sock, error)
        else:
            self.loop.on(sock, lambda: self._connected(sock), selectors.EVENT_WRITE)
            self.loop.after(3, "connect", lambda: self._unwatched(sock))

    def hear(self, wire: Wire, message: dict[str, Any]) -> None:
        """What rank 0 says; {} is its silence."""
        if "stop" in message:
            self.is_told_to_stop = True
            self.failure = message["stop"] if message["cause"] == "peer" else ""
            self.own.stop(message["cause"], message["stop"])
        elif "over" in message:
            self.is_over, self.failure = True, message["over"]
            wire.say(knows=True)
        elif not message:
            self.wire, self.refusals = None, 0
            self.loop.after(LOST_MAIN_SECONDS, "main lost", self._lost)
            self._connect()

    def _connected(self, sock: socket.socket) -> None:
        if not _is_connected(sock):
            return self._unwatched(sock)
        self.loop.off(sock)
        self.loop.times.pop("connect")
        self.loop.times.pop("main lost", None)
        self.wire = Wire(self.loop, sock, self.hear)
        self.wire.say(token=self.task["token"], rank=self.task["rank"])
        return self.wire.say(**self.last_word) if self.last_word else None

    def _unwatched(self, sock: socket.socket) -> None:
        self.loop.off(sock)
        self._retry(sock, sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _retry(self, sock: socket.socket, error: int) -> None:
        sock.close()
        self.refusals += error == errno.ECONNREFUSED
        if self.refusals == REFUSALS or self._is_behind():
            self._lost()
        self.loop.after(0.2, "connect", self._connect)

    def _is_behind(self) -> bool:
        """Whether some rank waits for a later attempt, as a client has seen: rank 0 may be lost before they met."""
        try:
            with open(self.own.path("inbox", "attempt"), encoding="utf-8") as file:
                return int(file.read()) > int(self.task["attempt"])
        except (OSError, ValueError):
            return False

    def _lost(self) -> None:
        self.is_over, self.failure = True, "node 0 is gone"
        self.own.stop("peer", self.failure)


def listening(address: str, port: int) -> socket.socket:
    """Where the other nodes find this one. Raises OSError where it cannot be had within 5 seconds."""
    deadline = time.monotonic() + 5
    while True:
        server = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((address, port))
            server.listen(1024)
            return server
        except OSError as error:
            server.close()
            if error.errno == errno.EADDRNOTAVAIL:  # behind address translation: any address of this machine
                address = "::" if ":" in address else "0.0.0.0"
            elif time.monotonic() > deadline:
                raise
            else:
                time.sleep(0.05)


def _is_connected(sock: socket.socket) -> bool:
    """To another than itself: which is what a port without a listener can end in on a loopback address."""
    try:
        return bool(sock.getsockname() != sock.getpeername())
    except OSError:
        return False
