"""Times as `sbatch --begin` and `sacct -S` have them: `16:00`, `2030-01-31T08:00`, `01/31/30-8:00pm`, `now+1hour`."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from flow.errors import ValidationError
from flow.mistakes import shown_value

_AFTER_NOW = re.compile(r"now(?:\s*(?P<sign>[+-])\s*(?P<count>\d{1,9})\s*(?P<unit>[a-z]*))?")
_UNIT_SECONDS = {"": 1, "second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}
_CLOCK = re.compile(r"(?P<hour>\d{1,2}):(?P<minute>\d\d)(?::(?P<second>\d\d))?\s*(?P<half>[ap]m)?")
_NAMED = re.compile(r"\b(midnight|noon|fika|teatime)\b")
_NAMED_HOURS = {"midnight": 0, "noon": 12, "fika": 15, "teatime": 16}
_DATES = (
    re.compile(r"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)"),
    re.compile(r"(?P<month>\d\d)([/.]?)(?P<day>\d\d)(?:\2(?P<year>\d\d))?"),
)


def parse_moment(text: str, now: float | None = None, *, past: bool = False) -> float:
    """The moment that `text` names, in seconds since the epoch. Raises ValidationError.

    A time of day is the next one, a date without a year the next one, a date without a time its midnight. `past`: this
    day's, the last one, and `today` is midnight.
    """
    present = datetime.now() if now is None else datetime.fromtimestamp(now)
    try:
        moment = _moment(text.strip().lower(), present, past=past)
    except (ValueError, OverflowError):  # a 31st of February, a year 200,000
        moment = None
    if moment is None:
        raise ValidationError(
            f"{shown_value(text)} is no time", suggestions=["write `now+1hour`, `16:00` or `2030-01-31T08:00`"]
        )
    return moment.timestamp()


def _moment(text: str, present: datetime, *, past: bool) -> datetime | None:
    after = _AFTER_NOW.fullmatch(text)
    if after:
        unit = _UNIT_SECONDS.get((after["unit"] or "").removesuffix("s"))
        seconds = int(after["count"] or 0) * (-1 if after["sign"] == "-" else 1)
        return None if unit is None else present + timedelta(seconds=seconds * unit)
    if text == "today" and not past:
        return present
    named = _CLOCK.search(text) or _NAMED.search(text)
    at = _at_time(named, present)
    rest = (text[: named.start()] + text[named.end() :]).strip(" -") if named else text
    if not rest and named:
        return at if past or at > present else at + timedelta(days=1)
    if rest in ("today", "tomorrow"):
        return at + timedelta(days=rest == "tomorrow")
    return _on_date(rest.removesuffix("t") if named else rest, at, present, past=past)


def _at_time(named: re.Match[str] | None, present: datetime) -> datetime:
    """The time of day, midnight where none is named, of the present day."""
    hour = minute = second = 0
    if named and named.re is _NAMED:
        hour = _NAMED_HOURS[named[0]]
    elif named:
        hour, minute, second = (int(named[part] or 0) for part in ("hour", "minute", "second"))
        hour = hour % 12 + (12 if named["half"] == "pm" else 0) if named["half"] else hour
    return present.replace(hour=hour, minute=minute, second=second, microsecond=0)


def _on_date(text: str, at: datetime, present: datetime, *, past: bool) -> datetime | None:
    date = next((found for one in _DATES if (found := one.fullmatch(text))), None)
    if not date:
        return None
    month, day, year = int(date["month"]), int(date["day"]), date["year"]
    if year:
        return at.replace(year=int(year) + (2000 if len(year) == 2 else 0), month=month, day=day)
    this_year = at.replace(month=month, day=day)
    if past:
        return this_year if this_year <= present else this_year.replace(year=at.year - 1)
    return this_year if this_year > present else this_year.replace(year=at.year + 1)
