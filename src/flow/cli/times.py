"""Spans and moments, as users type them and as they are shown."""

from __future__ import annotations

import re
from datetime import datetime, timezone

from flow.errors import ValidationError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")


def parse_span(text: str) -> float:
    """Seconds of "90s", "10m", "2h", "30d", "1h30m"; a bare number is seconds. Raises ValidationError."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not text or _SPAN.sub("", text):
        raise ValidationError(
            f"cannot read `{text}` as a time span", suggestions=["write a number and s, m, h, d or w, as `10m`"]
        )
    return sum(float(number) * _SECONDS[unit] for number, unit in _SPAN.findall(text))


def parse_moment(text: str, now: float) -> float:
    """Seconds since the epoch of an ISO 8601 time (without a zone: this machine's) or of a span before `now`."""
    if not re.match(r"\d{4}-", text):
        return now - parse_span(text)
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError as error:
        raise ValidationError(
            f"cannot read `{text}` as a time", suggestions=["write it as `2026-05-04T15:30` or as a span: `10m`"]
        ) from error


def span(seconds: float) -> str:
    """`3.2s`, `42s`, `3m04s`, `2h05m`, `3d04h`: two units at most."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    minutes = whole // 60
    if minutes < 1440:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    hours = minutes // 60
    return f"{hours // 24}d{hours % 24:02d}h"


def age(seconds: float) -> str:
    """How long ago, in one unit: `5s`, `3m`, `2h`, `12d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(int(seconds), 0)}s"


def stamp(moment: datetime) -> str:
    """`2026-05-04 15:30:12 UTC`."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def iso(epoch: float) -> str:
    """ISO 8601 in UTC to the millisecond, from seconds since the epoch."""
    return datetime.fromtimestamp(epoch, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
