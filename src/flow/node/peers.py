"""The ranks of one task tell each other how they ended: one JSON object a line, over one connection to rank 0.

The first rank that fails stops all others. Standard library, Python 3.8 and up.
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
LOST_MAIN_SECONDS = 60  # and rank 0 after this
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
        self.order: dict[str, str] = {}  # to end, which the others were told
        self.server = listening(self.task["peers"][0], self.task["control_port"])
        self.loop.on(self.server, lambda: Wire(self.loop, self.server.accept()[0], self.hear))
        for number in self.unheard:
            self.loop.after(self.task.get("delivery_timeout_seconds", 1800), f"lost {number}", self._lose(number))

    def is_done(self) -> bool:
        """Whether every rank's end is known."""
        return not self.unheard

    def own_end(self, code: int, reason: str) -> None:
        """Rank 0's command ended, or never started."""
        if code:
            self._fail(0, reason)
        elif self.task.get("slurm"):  # the others only ran the steps of rank 0's script
            self._tell("over", "")

    def own_stop(self, cause: str, reason: str) -> None:
        """Rank 0 is told to end by its machine's owner: so are all."""
        if cause == "cancel":
            self._tell(cause, reason)

    def hear(self, wire: Wire, message: dict[str, Any]) -> None:
        """What one rank says; {} is its silence."""
        number = wire.rank
        if number is None:
            self._welcome(wire, message)
        elif "ended" in message and number in self.unheard:
            wire.say(heard=True)
            self.unheard.discard(number)
            if message["ended"]:
                self._fail(number, message.get("reason", ""))
        elif not message and number in self.unheard and self.wires.get(number) is wire:
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

    def _welcome(self, wire: Wire, message: dict[str, Any]) -> None:
        number = message.get("rank")
        is_ours = hmac.compare_digest(str(message.get("token")).encode(), self.task["token"].encode())
        if not is_ours or not isinstance(number, int) or not 0 < number < self.task["nodes"]:
            wire.close()
            return
        wire.rank = number
        self.wires[number] = wire
        self.loop.times.pop(f"lost {number}", None)
        if number not in self.unheard:
            wire.say(heard=True)
        elif self.order:
            wire.say(**self.order)

    def _lose(self, number: int) -> Callable[[], None]:
        def lose() -> None:
            self.unheard.discard(number)
            self._fail(number, "lost")

        return lose


class Link:
    """Another rank's side: tells rank 0 how this one ended, and stops it when told to, or when rank 0 is gone."""

    def __init__(self, rank: Rank) -> None:
        self.own, self.task, self.loop = rank, rank.task, rank.loop
        self.wire: Wire | None = None
        self.last_word: dict[str, Any] = {}
        self.is_heard = False
        self.is_told_to_stop = False
        self.refusals = -1e9  # before the first connection they say nothing
        self.loop.after(self.task.get("delivery_timeout_seconds", 1800), "main lost", self._lost)
        self._connect()

    def is_done(self) -> bool:
        """Whether rank 0 knows of this rank's end, or will never, or told it to end and is gone."""
        return self.is_heard or (self.is_told_to_stop and not self.wire)

    def own_end(self, code: int, reason: str) -> None:
        """This rank's command ended, or never started."""
        self.last_word = {"ended": code, "reason": reason}
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
            self.own.stop(message["cause"], message["stop"])
        elif "heard" in message:
            self.is_heard = True
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
        if self.refusals == REFUSALS:
            self._lost()
        self.loop.after(0.2, "connect", self._connect)

    def _lost(self) -> None:
        self.is_heard = True
        self.own.stop("peer", "node 0 is gone")


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
