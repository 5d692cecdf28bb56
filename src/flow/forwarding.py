"""A port of a task's machine -> a loopback port here: each connection is joined with one there by a program there."""

from __future__ import annotations

import contextlib
import errno
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flow.access import Place, node_of
from flow.errors import FlowError, ValidationError
from flow.machines import Allocation
from flow.node import connect

if TYPE_CHECKING:
    from flow.task import Task

LOOPBACK = "127.0.0.1"
_NEXT_PORTS = 20  # that are tried where the port itself is taken; after them any
_LOOK_SECONDS = 0.2  # between looks at whether it was closed, and at what became of the connections


class Forwarding:
    """One port, from when it is made until `close`, or the end of its `with` block. `address` is where it is here.

    A machine that is this one, or that this one reaches by itself, needs nothing in between: `is_direct`.
    """

    def __init__(
        self,
        task: Task,
        find: Callable[[], Allocation | None],
        port: int,
        local: int | None,
        *,
        node: int,
        near: int | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`find` gives the machines of the task while it runs; `local`: the port here, None for one `near` it.

        near: that one or one of the next; by default `port`. `tell` is told when nothing answers. Raises
        ValidationError where the task does not run, or `local` is taken.
        """
        self.port = port
        self._task, self._find, self._node, self._tell = task, find, node, tell
        self._place: Place | None = node_of(task, find(), node, "a forwarded port")
        self._relays: list[subprocess.Popen[bytes]] = []
        self._is_closed = self._is_silent = False
        self.is_direct = local is None and is_own(self._place)
        if self.is_direct:  # to listen would take its port from the server that is still to come
            # several nodes here differ by their loopback addresses; a server elsewhere may be bound to the usual one
            host = self._place.node.address if self._place.channel.is_here else LOOPBACK
            self.address = f"{host}:{port}"
            return
        self._listener = _listener(port, local, near or port)
        self._listener.settimeout(_LOOK_SECONDS)
        self.address = f"{LOOPBACK}:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> Forwarding:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, and its connections."""
        self._is_closed = True
        if not self.is_direct:
            self._thread.join()

    def _serve(self) -> None:
        with self._listener:
            while not self._is_closed:
                with contextlib.suppress(TimeoutError), self._listener.accept()[0] as connection:
                    self._relay(connection)
                self._reap()
        for relay in self._relays:
            relay.terminate()
            relay.wait()

    def _relay(self, connection: socket.socket) -> None:
        """Hand the connection to a program that goes on to the machine; it is closed where there is none any more."""
        with contextlib.suppress(FlowError, OSError):
            self._place = self._place or node_of(self._task, self._find(), self._node, "a forwarded port")
            node, is_there = self._place.node, self._place.channel.prefix and self._place.node.beyond is None
            own = () if is_there else (node.address,)  # on the machine itself that may be another one's name
            argv = self._place.channel.unbuffered().python_command(
                Path(connect.__file__).read_text(), str(self.port), *own, "localhost"
            )
            both = connection.fileno()
            self._relays.append(subprocess.Popen(argv, stdin=both, stdout=both, stderr=subprocess.DEVNULL))

    def _reap(self) -> None:
        for relay in [one for one in self._relays if one.poll() is not None]:
            self._relays.remove(relay)
            if relay.returncode:
                self._place = None  # it may run on another machine by now
            was_silent, self._is_silent = self._is_silent, relay.returncode == connect.NOBODY
            if self._is_silent and not was_silent:
                self._tell(f"nothing answers at port {self.port} of `{self._task}` yet")


def is_own(place: Place) -> bool:
    """Whether the machine is this one, however it is reached."""
    if place.channel.is_here:
        return True
    if place.channel.prefix:  # an address over there may be one of ours by chance
        return False
    try:
        socket.create_server((place.node.address, 0)).close()
    except OSError:
        return False
    return True


def _listener(port: int, local: int | None, near: int) -> socket.socket:
    choice = [*range(near, min(near + _NEXT_PORTS, 65536)), 0]
    for one in [local] if local is not None else choice:
        try:
            return socket.create_server((LOOPBACK, one))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
    raise ValidationError(
        f"port {local} of this machine is taken or not allowed",
        suggestions=[f"name another one: `{port}:{(local or port) + 1}`", f"or none, for any that is free: `{port}`"],
    )
