"""The cloud's time: the real one, plus what a test adds to it; and how it writes a time."""

from __future__ import annotations

import re
import time
from datetime import datetime, timezone


class Clock:
    """Seconds since 1970, as the cloud has them."""

    def __init__(self) -> None:
        self.ahead_seconds = 0.0

    def now(self) -> float:
        return time.time() + self.ahead_seconds


def stamp(seconds: float | None) -> str | None:
    """As in `2026-11-23T15:30:00Z`."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(int(seconds), timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_stamp(text: str) -> float:
    """Without a zone it is UTC. Raises ValueError."""
    if not re.match(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d", text):
        raise ValueError(text)
    found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp()
