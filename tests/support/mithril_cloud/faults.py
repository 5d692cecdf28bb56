"""What a cloud may do wrong, played to order: which route, how often, how likely, and whether the request was done."""

from __future__ import annotations

import email.utils
import json
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

HTML = b"<html><head><title>503 Service Temporarily Unavailable</title></head><body>nginx</body></html>"


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes over the wire."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    reset: bool = False  # the connection instead of an answer


def answer(status: int, content: Any = None, **headers: str) -> Answer:
    body = b"" if status == 204 else json.dumps(content).encode()
    return Answer(status, body, {"Content-Type": "application/json", **headers})


@dataclass(frozen=True, slots=True)
class Fault:
    """`change` makes what is sent, out of what would be; None is given to it if nothing is done before."""

    change: Callable[[Answer | None], Answer]
    done_before: bool = False
    wait_seconds: float = 0


def refusal(status: int, detail: Any) -> Fault:
    """401, 403, 404, 400 with their texts, 422 with its list."""
    return Fault(lambda _: answer(status, {"detail": detail}))


UNKNOWN_KEY = refusal(401, "Invalid API key")
NO_MEMBER = refusal(403, "Not a member of project")
NOT_FOUND = refusal(404, "Bid not found")
NAME_USED = refusal(400, "Name already used")
TOO_LOW = refusal(400, "Limit price below minimum of $1.25")
QUOTA = refusal(400, "Quota exceeded for h100-80gb.sxm.8x")
INVALID = refusal(422, [{"loc": ["body", "limit_price"], "msg": "field required", "type": "value_error.missing"}])


def busy(retry_after_seconds: int = 1, *, as_date: bool = False) -> Fault:
    """429, with either form of Retry-After."""

    def change(_: Answer | None) -> Answer:
        at = email.utils.formatdate(time.time() + retry_after_seconds, usegmt=True)
        told = at if as_date else str(retry_after_seconds)
        return answer(429, {"detail": "Too many requests"}, **{"Retry-After": told})

    return Fault(change)


def broken(status: int = 503) -> Fault:
    """A gateway's page instead of JSON; the request got nowhere."""
    return Fault(lambda _: Answer(status, HTML, {"Content-Type": "text/html"}))


def taken_then(status: int = 504) -> Fault:
    """The request was done, and the gateway says that it does not know."""
    return Fault(lambda _: Answer(status, HTML, {"Content-Type": "text/html"}), done_before=True)


def reset() -> Fault:
    """The connection, before anything was done."""
    return Fault(lambda _: Answer(0, reset=True))


def taken_then_reset() -> Fault:
    """The connection, after the request was done."""
    return Fault(lambda _: Answer(0, reset=True), done_before=True)


def slow(seconds: float) -> Fault:
    """A right answer, later."""
    return Fault(_same, done_before=True, wait_seconds=seconds)


def garbled(body: bytes = b'{"data": [{"fid": "bid_') -> Fault:
    """200, and what is no JSON."""
    return Fault(lambda _: Answer(200, body, {"Content-Type": "application/json"}), done_before=True)


def rewritten(pattern: str, by: str) -> Fault:
    """A right answer in which a regular expression is replaced: unknown states, fields that are missing or new."""

    def change(right: Answer | None) -> Answer:
        assert right
        return Answer(right.status, re.sub(pattern, by, right.body.decode()).encode(), right.headers)

    return Fault(change, done_before=True)


def _same(right: Answer | None) -> Answer:
    assert right
    return right


@dataclass(slots=True)
class _Order:
    fault: Fault
    route: str
    times: float
    probability: float
    skip: int


class Faults:
    """`cloud.faults.play(taken_then_reset(), "POST /v2/spot/bids")`; what has been played is in `played`."""

    def __init__(self) -> None:
        self._orders: list[_Order] = []
        self._lock = threading.Lock()
        self.played: list[str] = []
        self.random = random.Random(0)

    def play(self, fault: Fault, route: str = ".*", *, times: float = 1, probability: float = 1, skip: int = 0) -> None:
        """For requests whose `METHOD /path?query` this regular expression matches from its begin; `skip` so many."""
        with self._lock:
            self._orders.append(_Order(fault, route, times, probability, skip))

    def clear(self) -> None:
        with self._lock:
            self._orders.clear()
            self.played.clear()
            self.random.seed(0)

    def next(self, request: str) -> Fault | None:
        """The first that has its turn at this request."""
        with self._lock:
            for one in self._orders:
                if one.times > 0 and re.match(one.route, request) and self.random.random() < one.probability:
                    if one.skip:
                        one.skip -= 1
                        continue
                    one.times -= 1
                    self.played.append(request)
                    return one.fault
        return None
