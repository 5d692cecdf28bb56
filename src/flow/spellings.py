"""Spellings within a task: arrays `1-100%8`, start times `now+1hour`, signals `USR1@90`, dependencies `ref:ended`."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal, get_args

from flow.errors import ValidationError, did_you_mean
from flow.plan import Elements, SignalBefore

DependencyState = Literal["completed", "failed", "ended", "started", "started_or_ended", "corresponding"]
DEPENDENCY_STATES = get_args(DependencyState)

_MOST_ELEMENTS = 1_000_000
_LARGEST_INDEX = 2**31 - 1
_RANGE = re.compile(r"([0-9]{1,12})(?:\s*-\s*([0-9]{1,12})(?:\s*:\s*([0-9]{1,12}))?)?")
_DEFAULT_SIGNAL_SECONDS = 60.0  # as Slurm's `--signal` has it
_SIGNAL = re.compile(r"(?P<name>[A-Za-z0-9+-]{1,20})(?:@(?P<seconds>[0-9]{1,9}))?")
_AFTER_NOW = re.compile(r"now(?:\s*\+\s*(?P<count>[0-9]{1,12})\s*(?P<unit>[a-z]*))?")
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?")
_UNIT_SECONDS = {"": 1, "second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}
_NAMED_TIMES = {"midnight": "00:00", "noon": "12:00", "teatime": "16:00"}


def parse_array(asked: str | int | Sequence[int]) -> Elements:
    """The elements that `1-100%8`, `1,3,5-9:2`, `7` or a list of indices asks for, sorted, each once.

    Raises ValidationError, also for more than 1,000,000 of them.
    """
    if not isinstance(asked, str):
        asked = ",".join(str(index) for index in ([asked] if isinstance(asked, int) else asked))
    ranges, percent, at_once = asked.partition("%")
    if percent and not re.fullmatch(r"\s*0*[1-9][0-9]{0,9}\s*", at_once):
        raise ValidationError(
            f"array `{asked}` cannot run `{at_once}` at once", suggestions=["write a number after `%`, as `1-100%8`"]
        )
    parts = [_indices(part.strip(), asked) for part in ranges.split(",")]
    indices = parts[0] if len(parts) == 1 else sorted(set().union(*parts))
    _refuse_too_many(len(indices), asked)
    return Elements(tuple(indices), int(at_once) if percent else None)


def _indices(part: str, asked: str) -> range:
    found = _RANGE.fullmatch(part)
    if not found:
        raise ValidationError(
            f"cannot read `{_short(part)}` in array `{_short(asked)}`",
            suggestions=["write indices and ranges, as `0-9`, `1,3,5-9:2` or `1-100%8`"],
        )
    first, last, step = int(found[1]), int(found[2] or found[1]), int(found[3] or 1)
    if last < first or step < 1:
        raise ValidationError(
            f"the range `{part}` of array `{_short(asked)}` is empty",
            suggestions=["write the smaller index first, and a step of 1 or more"],
        )
    if last > _LARGEST_INDEX:
        raise ValidationError(f"index {last} of array `{_short(asked)}` is larger than {_LARGEST_INDEX}")
    _refuse_too_many(len(range(first, last + 1, step)), asked)
    return range(first, last + 1, step)


def _refuse_too_many(count: int, asked: str) -> None:
    if count > _MOST_ELEMENTS:
        raise ValidationError(
            f"array `{_short(asked)}` has more than {_MOST_ELEMENTS:,} elements",
            suggestions=["let each element do several pieces of the work"],
        )


def parse_signal(text: str) -> SignalBefore:
    """The signal of `USR1@90` (90 seconds before the time limit), `15@60` or `TERM` (60 seconds before)."""
    found = _SIGNAL.fullmatch(text.strip())
    number = _signal_number(found["name"]) if found else None
    if not found or number is None:
        known = [one.name.removeprefix("SIG") for one in signal.Signals]
        near = did_you_mean(found["name"].upper().removeprefix("SIG"), known) if found else []
        raise ValidationError(
            f"no signal `{_short(text)}`",
            suggestions=[*near, "write a name and seconds before the limit, as `USR1@90`"],
        )
    return SignalBefore(number, float(found["seconds"] or _DEFAULT_SIGNAL_SECONDS))


def _signal_number(name: str) -> int | None:
    if name.isdecimal():
        return int(name) if 1 <= int(name) <= 64 else None
    upper = name.upper()
    known = signal.Signals.__members__
    found = known.get(upper) or known.get(f"SIG{upper}")
    return int(found) if found else None


def parse_dependency(text: str) -> tuple[str, str, float]:
    """`ref`, `ref:state` or `ref:state+10` -> (reference, state, minutes); without a state, `completed`.

    `:1` is a reference, too.
    """
    reference, colon, state = text.strip().rpartition(":")
    state, plus, minutes = state.partition("+")
    if not colon or not reference or state.isdecimal():
        reference, state, plus = text.strip(), "completed", ""
    if not reference:
        raise ValidationError("an empty dependency", suggestions=["name a task, as `task-…` or `task-…:ended`"])
    if state not in DEPENDENCY_STATES:
        raise ValidationError(
            f"dependency `{_short(text)}` waits for `{state}`, which is no state to wait for",
            suggestions=[*did_you_mean(state, DEPENDENCY_STATES), f"the states are {', '.join(DEPENDENCY_STATES)}"],
        )
    if plus and not re.fullmatch(r"\d{1,7}(\.\d+)?", minutes):
        raise ValidationError(
            f"dependency `{_short(text)}` has no number of minutes after the `+`",
            suggestions=["write it as `task-…:started+10`"],
        )
    return reference, state, float(minutes or 0)


def parse_begin(text: str, now: float) -> float:
    """The earliest start that `text` names, in seconds since the epoch; `now` is the present time, likewise.

    Reads `now`, `now+90`, `now+1hour`, ISO dates and times (local unless they have an offset), seconds since the
    epoch, `16:30` (the next one), `midnight`, `noon`, `teatime`, `today` and `tomorrow`. Raises ValidationError.
    """
    asked = text.strip().lower()
    try:
        begin = _begin(asked, now)
    except (ValueError, OverflowError, OSError):  # a 31st of February, a year 200,000
        begin = None
    if begin is None:
        raise ValidationError(
            f"cannot read `{_short(text)}` as a time",
            suggestions=["write `now+1hour`, `2030-01-31T08:00:00`, `16:30` or seconds since 1970"],
        )
    return begin


def _begin(asked: str, now: float) -> float | None:
    present = datetime.fromtimestamp(now)
    if re.fullmatch(r"\d+(\.\d*)?", asked):
        return datetime.fromtimestamp(float(asked)).timestamp()
    after = _AFTER_NOW.fullmatch(asked)
    if after:
        unit = _UNIT_SECONDS.get((after["unit"] or "").removesuffix("s"))
        seconds = None if unit is None else now + int(after["count"] or 0) * unit
        return seconds and datetime.fromtimestamp(seconds).timestamp()
    if asked in ("today", "tomorrow"):
        return now if asked == "today" else (present + timedelta(days=1)).timestamp()
    clock = _CLOCK.fullmatch(_NAMED_TIMES.get(asked, asked))
    if clock:
        hour, minute, second = (int(part or 0) for part in clock.groups())
        at = present.replace(hour=hour, minute=minute, second=second, microsecond=0)
        return (at if at > present else at + timedelta(days=1)).timestamp()
    # Python 3.10 reads neither a `Z` nor hours without minutes' seconds
    return datetime.fromisoformat(re.sub(r"z$", "+00:00", asked).replace("t", "T")).timestamp()


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
