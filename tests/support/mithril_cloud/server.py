"""HTTP for the cloud: reads a request, lets a fault have its way, logs it, answers."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.support.mithril_cloud.checks import RefusedError
from tests.support.mithril_cloud.clock import Clock
from tests.support.mithril_cloud.faults import Answer, Faults, answer
from tests.support.mithril_cloud.records import new_fid


@dataclass(slots=True)
class Request:
    """One that came; `status` is 0 where the connection was reset instead, and while there is no answer yet."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    status: int = 0
    answer_bytes: int = 0
    seconds: float = 0
    query: dict[str, str] = field(default_factory=dict)
    at: float = 0  # when it came, by the cloud's clock

    @property
    def line(self) -> str:
        return f"{self.method} {self.target}"

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    def json(self) -> Any:
        """Raises RefusedError with 422."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            detail = [{"loc": ["body", 0], "msg": f"JSON decode error: {error}", "type": "value_error.jsondecode"}]
            raise RefusedError(422, detail) from None

    def holds(self, secret: str) -> bool:
        """Whether it is anywhere in the request but where a key belongs."""
        others = [value for name, value in self.headers.items() if name.lower() != "authorization"]
        return any(secret in text for text in (self.target, self.body.decode(errors="replace"), *others))


Handle = Callable[[Request], Answer]


class Server(ThreadingHTTPServer):
    """Serves from a thread of its own until `close`; a fork of this process has nothing of it."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, host: str, handle: Handle, *, faults: Faults, clock: Clock) -> None:
        super().__init__((host, 0), _Handler)
        self.handle, self.faults, self.clock = handle, faults, clock
        self.requests: list[Request] = []
        self.open_ones = set[socket.socket]()
        self.url = f"http://{host}:{self.server_address[1]}"
        ours = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _let_go(ours()))
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True, name="mithril cloud").start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        for one in list(self.open_ones):
            self.shutdown_request(one)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open_ones.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open_ones.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who asks may be killed; there is nothing to be said about that."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Server

    def _respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        request = Request(self.command, self.path, dict(self.headers), body, query=query, at=self.server.clock.now())
        self.server.requests.append(request)
        begin = time.monotonic()
        sent = self._answer(request)
        request.status, request.answer_bytes, request.seconds = sent.status, len(sent.body), time.monotonic() - begin
        if sent.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            os.close(self.connection.detach())  # the others who hold it would send a polite end first
            return
        self.send_response(sent.status)
        headers = {"x-request-id": new_fid("req"), "Content-Length": str(len(sent.body)), **sent.headers}
        if sent.status == 204:
            del headers["Content-Length"]
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent.body)

    def _answer(self, request: Request) -> Answer:
        fault = self.server.faults.next(request.line)
        if fault and not fault.done_before:
            return fault.change(None)
        try:
            right = self.server.handle(request)
        except RefusedError as error:
            right = answer(error.status, {"detail": error.detail})
        if fault:
            time.sleep(fault.wait_seconds)
        return fault.change(right) if fault else right

    do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _respond  # noqa: N815

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(self.server.clock.now())

    def log_message(self, *_: Any) -> None:
        pass


def _let_go(server: Server | None) -> None:
    """Or a connection would be open for as long as a fork lives."""
    if server:
        for one in (server.socket, *server.open_ones):
            if one.fileno() >= 0:
                os.close(one.detach())
