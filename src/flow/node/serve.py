"""A worker: one process that has imported the user's module and answers one client's calls over a socket, in order.

A call is a line of JSON, and so is the answer: `=` and the value, or `!` and the failure. Before a call begins, `+` is
sent for it: a call for which that came may have had its effects. `.` ends the worker.
Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
import threading
import time
from typing import Any, Callable, Iterator

SOCKET = "worker.sock"  # in the folder of invoke.py
FIRST_CLIENT_SECONDS = 60  # how long a worker waits for its client
GRACE_SECONDS = 5  # what a call may go on when its client is gone
BEGUN = b"+\n"


def serve(invoke: Any, call: dict[str, Any], folder: str) -> int:
    """Import the module, then answer calls; the exit code: 0 where the client said that it is done."""
    try:
        function = invoke.load(call)
    except BaseException as error:
        failure = invoke.failure_of(error)
        invoke.write(os.path.join(os.environ["FLOW_OUTPUT"], "error.json"), json.dumps(failure).encode())
        invoke.say(failure)
        return 1
    client = _client(folder)
    if client is None:
        sys.stderr.write(f"no client came within {FIRST_CLIENT_SECONDS} s\n")
        return 1
    os.register_at_fork(after_in_child=client.close)  # the client shall see this process's end, not a child's
    threading.Thread(target=_watch, args=(client,), daemon=True).start()
    with contextlib.suppress(OSError):
        for lines in _lines(client):
            calls = [line for line in lines if line != b"."]
            if calls:
                _answer_all(client, calls, lambda line: _answer(invoke, function, line))
            if len(calls) < len(lines):
                return 0
    sys.stderr.write("the client is gone\n")
    return 1


def _client(folder: str) -> socket.socket | None:
    """The connection of the client; the socket has its name only once it can be connected to."""
    here = os.getcwd()
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(folder)  # the path of a socket must be short
        with contextlib.suppress(FileNotFoundError):
            os.unlink(SOCKET + ".new")
        listener.bind(SOCKET + ".new")
        listener.listen(1)
        os.rename(SOCKET + ".new", SOCKET)
        os.chdir(here)
        listener.settimeout(FIRST_CLIENT_SECONDS)
        try:
            client, _ = listener.accept()
        except OSError:
            return None
    client.settimeout(None)
    return client


def _watch(client: socket.socket) -> None:
    """End this process, whatever it is at, some time after its client is gone."""
    poll = select.poll()
    poll.register(client, getattr(select, "POLLRDHUP", 0) | select.POLLHUP)
    poll.poll()
    time.sleep(GRACE_SECONDS)
    os.write(2, b"the client is gone\n")
    os._exit(1)


def _lines(client: socket.socket) -> Iterator[list[bytes]]:
    """Whole lines, as many at once as there are."""
    parts: list[bytes] = []
    while True:
        data = client.recv(1 << 16)
        if not data:
            return
        head, newline, rest = data.rpartition(b"\n")
        if newline:
            yield b"".join([*parts, head]).split(b"\n")
            parts = []
        parts.append(rest)


def _answer_all(client: socket.socket, calls: list[bytes], answer: Callable[[bytes], bytes]) -> None:
    """One message after each call: its answer, and that the next one begins."""
    client.sendall(BEGUN)
    for number, line in enumerate(calls, 1):
        client.sendall(answer(line) + BEGUN * (number < len(calls)))


def _answer(invoke: Any, function: Callable[..., Any], line: bytes) -> bytes:
    try:
        call = json.loads(line)
        told: bytes = b"=" + invoke.answer(function, call["args"], call["kwargs"])
    except BaseException as error:
        failure = invoke.failure_of(error)
        invoke.say(failure)
        told = b"!" + json.dumps(failure).encode()
    with contextlib.suppress(Exception):  # the function may have closed it
        sys.stdout.flush()
    return told + b"\n"
