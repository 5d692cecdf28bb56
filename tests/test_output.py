"""How things are shown: tables, times, sizes, plans; and how a user's times are read."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from flow.cli import times
from flow.cli.output import STATES, Column, layout, printable, size
from flow.cli.plan_text import plan_lines, ranges, value_lines
from flow.cli.prune import parse_bytes
from flow.errors import ValidationError
from flow.plan import Plan

COLUMNS = (Column("TASK"), Column("NAME", least=4), Column("STATUS", colors=STATES), Column("REASON", least=6))
ROWS = [
    ("task-06f3k2m9q7xw1d", "a-rather-long-name", "running", "queued: 3 ahead of this one"),
    ("task-06f3k2m9q7xw1e", "b", "failed", ""),
]


def test_a_table_is_aligned_and_whole_when_nothing_limits_it() -> None:
    assert layout(COLUMNS, ROWS) == [
        "TASK                 NAME                STATUS   REASON",
        "task-06f3k2m9q7xw1d  a-rather-long-name  running  queued: 3 ahead of this one",
        "task-06f3k2m9q7xw1e  b                   failed",
    ]


def test_on_a_narrow_terminal_the_last_columns_are_cut_first_and_ids_never() -> None:
    assert layout(COLUMNS, ROWS, width=60) == [
        "TASK                 NAME                STATUS   REASON",
        "task-06f3k2m9q7xw1d  a-rather-long-name  running  queued: 3…",
        "task-06f3k2m9q7xw1e  b                   failed",
    ]
    assert layout(COLUMNS, ROWS, width=44)[1] == "task-06f3k2m9q7xw1d  a-rat…  running  queue…"
    assert layout(COLUMNS, ROWS, width=10)[1].startswith("task-06f3k2m9q7xw1d  a-r…  running")


def test_only_the_state_is_coloured_and_the_columns_stay_in_place() -> None:
    plain = layout(COLUMNS, [("running", "running", "running", "running")])
    assert plain[1] == "running  running  running  running"
    colored = layout(COLUMNS, [("running", "running", "running", "running")], color=True)
    assert colored[0] == plain[0]
    assert colored[1] == "running  running  \x1b[36mrunning\x1b[0m  running"


def test_wide_characters_take_the_room_they_need() -> None:
    lines = layout((Column("A", least=2), Column("B")), [("日本", "x"), ("é", "y")])
    assert lines == ["A     B", "日本  x", "é     y"]
    assert layout((Column("A", least=2), Column("B")), [("日本語日本語", "x")], width=10)[1] == "日本語…  x"


def test_what_would_move_the_cursor_is_written_out() -> None:
    assert printable("a\x1b[2Jb\nc") == "a\\x1b[2Jb\\nc"
    assert printable("é 日本") == "é 日本"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0s"), (3.21, "3.2s"), (9.99, "10.0s"), (42.4, "42s"), (59.6, "1m00s"), (184, "3m04s"), (3599.7, "1h00m"),
     (7500, "2h05m"), (86399, "23h59m"), (86400, "1d00h"), (273600, "3d04h"), (-1, "0.0s")],
)  # fmt: skip
def test_a_span_is_shown_in_two_units(seconds: float, text: str) -> None:
    assert times.span(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0s"), (5.9, "5s"), (60, "1m"), (7199, "1h"), (86400 * 12.5, "12d")]
)
def test_an_age_is_shown_in_one_unit(seconds: float, text: str) -> None:
    assert times.age(seconds) == text


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("1.5d", 129600)]
)
def test_a_span_is_read(text: str, seconds: float) -> None:
    assert times.parse_span(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "10x", "10m!", "ten", "-5m"])
def test_what_is_no_span_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="as a time span"):
        times.parse_span(text)


def test_a_moment_is_a_time_with_or_without_zone_or_a_span_ago() -> None:
    assert times.parse_moment("2026-05-04T15:30:00Z", 0) == 1777908600
    assert times.parse_moment("2026-05-04T17:30:00+02:00", 0) == 1777908600
    assert times.parse_moment("10m", 1000) == 400
    assert times.iso(times.parse_moment("2026-05-04T15:30:00.250Z", 0)) == "2026-05-04T15:30:00.250Z"
    with pytest.raises(ValidationError, match="`2026-13-01` as a time"):
        times.parse_moment("2026-13-01", 0)


@pytest.mark.parametrize(
    ("text", "count"), [("500", 500), ("500MB", 5 * 10**8), ("1.5 G", 15 * 10**8), ("2tb", 2 * 10**12)]
)
def test_a_size_is_read(text: str, count: int) -> None:
    assert parse_bytes(text) == count


def test_a_size_is_shown_in_the_unit_that_fits() -> None:
    assert [size(count) for count in (0, 999, 1000, 1_234_567, 5 * 10**12)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "1.2 MB",
        "5.0 TB",
    ]


def test_a_plan_reads_like_yaml_without_secrets_and_without_what_is_not_set() -> None:
    plan = Plan(
        task_id="task-06f3k2m9q7xw1d",
        name="train",
        provider="local",
        argv=("sh", "-c", "echo 'a b'\necho c"),
        env={"WANDB_API_KEY": "s3cr3t", "LR": "0.1", "NOTE": "a: b"},
        ports=(8888,),
        notes=("told apart",),
    )
    lines = plan_lines(plan)
    assert lines[:7] == [
        "name: train",
        "provider: local",
        'argv: ["sh", "-c", "echo \'a b\'\\necho c"]',
        "env:",
        '  WANDB_API_KEY: "***"',
        '  LR: "0.1"',
        '  NOTE: "a: b"',
    ]
    assert "ports: [8888]" in lines
    assert not [line for line in lines if line.startswith(("image", "notes", "bundle")) or "s3cr3t" in line]


@pytest.mark.parametrize(
    ("indices", "text"), [((5,), "5"), ((1, 2, 3, 7, 9, 10), "1-3,7,9-10"), (tuple(range(10**6)), "0-999999")]
)
def test_the_elements_of_an_array_are_shown_as_ranges(indices: tuple[int, ...], text: str) -> None:
    assert ranges(indices) == text


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)))
VALUES = st.recursive(TEXT | st.integers() | st.booleans(), lambda inner: st.lists(inner, min_size=1, max_size=3))


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True).map(lambda name: f"k_{name}"), VALUES, min_size=1))
def test_shown_values_are_yaml_that_reads_back_as_they_are(values: dict[str, object]) -> None:
    shown = {key: value for key, value in values.items() if value not in ("", [], {})}
    text = "\n".join(value_lines(values))
    assert (yaml.safe_load(text) or {}) == shown
