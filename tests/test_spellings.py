"""Arrays, start times, signals and dependencies as users write them."""

from __future__ import annotations

import signal
import time
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flow.errors import ValidationError
from flow.plan import Elements, SignalBefore
from flow.spellings import parse_array, parse_begin, parse_dependency, parse_signal

NOW = datetime(2030, 1, 31, 12, 0, 30).timestamp()


@pytest.mark.parametrize(
    ("asked", "indices", "at_once"),
    [
        ("0-3", (0, 1, 2, 3), None),
        ("1-4%2", (1, 2, 3, 4), 2),
        ("1,3,5-9:2", (1, 3, 5, 7, 9), None),
        ("7", (7,), None),
        (" 3 , 1 - 2 % 5 ", (1, 2, 3), 5),
        ("3,1,2,1-3", (1, 2, 3), None),
        ("0-10:100", (0,), None),
        (7, (7,), None),
        ([5, 1, 5], (1, 5), None),
        (range(3), (0, 1, 2), None),
    ],
)
def test_an_array_has_its_elements_sorted_and_once(asked: Any, indices: tuple[int, ...], at_once: int | None) -> None:
    assert parse_array(asked) == Elements(indices, at_once)


def test_a_million_elements_are_taken_and_no_more() -> None:
    assert len(parse_array("1-1000000").indices) == 1_000_000
    for asked in ("0-1000000", "0-999999999999", "0-999999,1000000", "1-99999999999999999999"):
        with pytest.raises(ValidationError):
            parse_array(asked)


@pytest.mark.parametrize(
    "asked",
    [
        *("", ",", "1,", "a", "1-", "-1", "5-1", "1-5:0", "1:2", "1-5%", "1-5%0", "1-5%x", "1-5%-1", "1-5%1%1", "1.5"),
        *("²", "2147483648", "1" * 5000, [], [-1]),
    ],
)
def test_what_is_no_array_is_refused(asked: Any) -> None:
    with pytest.raises(ValidationError):
        parse_array(asked)


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=30))
def test_a_list_and_its_text_are_the_same_array(indices: list[int]) -> None:
    assert parse_array(",".join(map(str, indices))) == parse_array(indices) == Elements(tuple(sorted(set(indices))))


@pytest.mark.parametrize(
    ("text", "number", "seconds"),
    [
        ("USR1@90", signal.SIGUSR1, 90),
        ("usr1@90", signal.SIGUSR1, 90),
        ("SIGUSR1@90", signal.SIGUSR1, 90),
        ("15@60", 15, 60),
        ("TERM", signal.SIGTERM, 60),
        ("TERM@0", signal.SIGTERM, 0),
    ],
)
def test_a_signal_has_a_number_and_a_time(text: str, number: int, seconds: float) -> None:
    assert parse_signal(text) == SignalBefore(number, seconds)


@pytest.mark.parametrize("text", ["", "@90", "USR9@90", "USR1@", "USR1@-1", "USR1@soon", "0@60", "65", "9" * 5000])
def test_what_is_no_signal_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        parse_signal(text)


def test_a_misspelled_signal_is_told_with_the_nearest() -> None:
    with pytest.raises(ValidationError) as refused:
        parse_signal("SIGTEMR@90")
    assert refused.value.suggestions[0] == "did you mean `TERM`?"


@pytest.mark.parametrize(
    ("text", "task", "state", "minutes"),
    [
        ("task-abc", "task-abc", "completed", 0),
        ("task-abc:ended", "task-abc", "ended", 0),
        ("my.task_1:failed", "my.task_1", "failed", 0),
        ("train:started", "train", "started", 0),
        ("train:started+10", "train", "started", 10),
        ("12_3:started_or_ended+0.5", "12_3", "started_or_ended", 0.5),
        ("sweep:corresponding", "sweep", "corresponding", 0),
        (":1", ":1", "completed", 0),
        (":12:ended", ":12", "ended", 0),
        ("@last", "@last", "completed", 0),
        ("@last:completed", "@last", "completed", 0),
        ("12345", "12345", "completed", 0),
    ],
)
def test_a_dependency_is_a_reference_and_a_state_and_maybe_a_delay(
    text: str, task: str, state: str, minutes: float
) -> None:
    assert parse_dependency(text) == (task, state, minutes)


@pytest.mark.parametrize(
    "text",
    ["", " ", "task-abc:", "task-abc:complete", ":ended:soon", "a:b:c", "a:started+", "a:started+x", "a:ended+-1"],
)
def test_what_is_no_dependency_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        parse_dependency(text)


def local(*parts: int) -> float:
    return datetime(*parts).timestamp()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "begin"),
    [
        ("now", NOW),
        ("now+90", NOW + 90),
        ("now+1second", NOW + 1),
        ("now+5minutes", NOW + 300),
        ("now + 1 hour", NOW + 3600),
        ("NOW+2hours", NOW + 7200),
        ("now+3days", NOW + 3 * 86400),
        ("now+1week", NOW + 604800),
        ("1900000000", 1900000000),
        ("1900000000.5", 1900000000.5),
        ("2030-02-01", local(2030, 2, 1)),
        ("2030-02-01T08:00", local(2030, 2, 1, 8)),
        ("2030-02-01 08:00:05", local(2030, 2, 1, 8, 0, 5)),
        ("2030-02-01T08:00:00Z", datetime(2030, 2, 1, 8, tzinfo=timezone.utc).timestamp()),
        ("2030-02-01T08:00:00+02:00", datetime(2030, 2, 1, 6, tzinfo=timezone.utc).timestamp()),
        ("16:30", local(2030, 1, 31, 16, 30)),
        ("12:00", local(2030, 2, 1, 12)),
        ("noon", local(2030, 2, 1, 12)),
        ("midnight", local(2030, 2, 1)),
        ("teatime", local(2030, 1, 31, 16)),
        ("today", NOW),
        ("tomorrow", local(2030, 2, 1, 12, 0, 30)),
    ],
)
def test_a_start_time_is_read_in_many_ways(text: str, begin: float) -> None:
    assert parse_begin(text, NOW) == begin


@pytest.mark.parametrize(
    "text",
    [
        *("", "soon", "now+", "now-1hour", "now+1fortnight", "2030-02-31", "2030-13-01T00:00", "25:00", "12:60"),
        *("2030-02-01Z8", "now+" + "9" * 12 + "weeks", "9" * 30, "9" * 5000, "99999-01-01"),
    ],
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValidationError) as refused:
        parse_begin(text, NOW)
    assert refused.value.suggestions


def test_an_hour_from_now_is_3600_seconds_where_the_clock_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        before = datetime(2030, 10, 27, 2, 30, fold=0).timestamp()
        assert parse_begin("now+1hour", before) == before + 3600
    finally:
        monkeypatch.undo()
        time.tzset()


@given(st.text(max_size=30))
def test_any_text_is_a_time_or_refused(text: str) -> None:
    try:
        assert isinstance(parse_begin(text, NOW), float)
    except ValidationError:
        pass
