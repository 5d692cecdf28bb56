"""Moments and spans as Slurm's commands write them, and as they read them."""

from __future__ import annotations

import re
import time

_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}
_NAMED = {"midnight": 0, "today": 0, "noon": 12, "fika": 15, "teatime": 16}
_FORMATS = (
    "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d", "%m/%d/%y-%H:%M:%S", "%m/%d/%y-%H:%M", "%m/%d/%y",
    "%m/%d-%H:%M:%S", "%m/%d-%H:%M", "%m/%d", "%m.%d.%y-%H:%M:%S", "%m.%d.%y-%H:%M", "%m.%d.%y", "%m.%d-%H:%M:%S",
    "%m.%d-%H:%M", "%m.%d", "%m%d%y-%H:%M:%S", "%m%d%y-%H:%M", "%m%d%y", "%m%d-%H:%M:%S", "%m%d-%H:%M", "%m%d",
    "%I:%M:%S%p", "%I:%M%p", "%H:%M:%S", "%H:%M",
)  # fmt: skip


def stamp(moment: float | None, nothing: str = "N/A") -> str:
    """`2026-05-04T15:30:12`, in this machine's time."""
    return nothing if moment is None else time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(moment))


def short_span(seconds: float) -> str:
    """`0:05`, `1:00:00`, `2-00:00:00`: squeue's way, hours and days only where there are some."""
    days, hours, minutes, rest = _parts(seconds)
    if days:
        return f"{days}-{hours:02d}:{minutes:02d}:{rest:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def whole_span(seconds: float) -> str:
    """`00:00:05`, `1-02:00:00`: the way of sacct and scontrol."""
    days, hours, minutes, rest = _parts(seconds)
    return f"{days}-" * bool(days) + f"{hours:02d}:{minutes:02d}:{rest:02d}"


def parse_moment(text: str, now: float) -> float | None:
    """Seconds since the epoch of what `-S` and `-E` take; None where that is none of it. Source: sacct(1)."""
    word = text.strip().lower()
    if found := re.fullmatch(r"now(?:([+-])(\d+)(?:(second|minute|hour|day|week)s?)?)?", word):
        sign, count, unit = found.groups()
        return now + int(f"{sign or ''}{count or 0}") * _UNITS[unit or "second"]
    today = time.localtime(now)
    if word in _NAMED:
        return time.mktime((today.tm_year, today.tm_mon, today.tm_mday, _NAMED[word], 0, 0, 0, 0, -1))
    for pattern in _FORMATS:
        try:
            read = time.strptime(text.strip(), pattern)
        except ValueError:
            continue
        year = read.tm_year if "y" in pattern.lower() else today.tm_year
        month, day = (read.tm_mon, read.tm_mday) if "%d" in pattern else (today.tm_mon, today.tm_mday)
        return time.mktime((year, month, day, read.tm_hour, read.tm_min, read.tm_sec, 0, 0, -1))
    return None


def _parts(seconds: float) -> tuple[int, int, int, int]:
    whole = max(int(seconds), 0)
    return whole // 86400, whole // 3600 % 24, whole // 60 % 60, whole % 60
