"""Joins standard input and output with a connection on this machine, so that a client's goes on through a channel.

`connect.py PORT ADDRESS…` (the first of them that answers) or `connect.py SOCKET SECONDS` (a path, which may take so
long to appear). Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time

NOBODY = 69  # as an exit code: nothing answers there
_CONNECT_SECONDS = 10


def join(link: socket.socket) -> None:
    """Copy both ways until the other side of `link` says no more, or nobody reads what it says."""

    def send() -> None:
        with contextlib.suppress(OSError):
            while True:
                data = os.read(0, 1 << 16)
                if not data:
                    break
                link.sendall(data)
            link.shutdown(socket.SHUT_WR)

    threading.Thread(target=send, daemon=True).start()
    with contextlib.suppress(OSError):
        while True:
            data = link.recv(1 << 16)
            if not data:
                return
            while data:
                data = data[os.write(1, data) :]


def _to_port(port: int, addresses: list[str]) -> socket.socket | None:
    for address in addresses:
        with contextlib.suppress(OSError):
            link = socket.create_connection((address, port), timeout=_CONNECT_SECONDS)
            link.settimeout(None)
            return link
    return None


def _to_socket(path: str, seconds: float) -> socket.socket | None:
    folder, name = os.path.split(path)
    os.chdir(folder)  # the path of a socket must be short
    deadline = time.monotonic() + seconds
    while not os.path.exists(name) and time.monotonic() < deadline:
        time.sleep(0.02)
    link = socket.socket(socket.AF_UNIX)
    with contextlib.suppress(OSError):
        link.connect(name)
        return link
    return None


def main(where: str, *more: str) -> None:
    """See above."""
    link = _to_socket(where, float(more[0])) if "/" in where else _to_port(int(where), list(more))
    if link is None:
        sys.exit(NOBODY)
    join(link)


if __name__ == "__main__":
    main(*sys.argv[1:])
