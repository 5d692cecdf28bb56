"""Slurm's small languages: formats, lists of indices and of nodes, moments and spans."""

from __future__ import annotations

import time

import pytest

from flow.slurm.account_fields import columns
from flow.slurm.formats import Cut, Field, long_layout, short_layout
from flow.slurm.jobs import OF_TASK, STATES, folded, state_and_reason, state_named
from flow.slurm.moments import parse_moment
from flow.slurm.times import short_span, whole_span
from flow.status import TaskStatus

FIELDS = {
    "i": Field("JOBID", lambda one: one),
    "j": Field("NAME", lambda one: "a long name"),
    "M": Field("TIME", lambda one: "1:00:00", Cut.WORDS),
    "N": Field("NODELIST", lambda one: "node[1-20]", Cut.NOTHING),
}
NAMES = {"jobid": FIELDS["i"], "name": FIELDS["j"], "timeused": FIELDS["M"], "nodelist": FIELDS["N"]}


@pytest.mark.parametrize(
    ("text", "header", "line"),
    [
        ("%i", "JOBID", "12"),
        ("%.8i %j", "   JOBID NAME", "      12 a long name"),
        ("%8i|%.4j|", "JOBID   |NAME|", "12      |a lo|"),
        ("x%i y", "xJOBID y", "x12 y"),
        ("%.3M|%.3N", "TIM|NODELIST", "1:00:00|node[1-20]"),
        ("100%", "100%", "100%"),
        ("", "", ""),
    ],
)
def test_a_short_format_shows_each_field_in_its_width(text: str, header: str, line: str) -> None:
    layout = short_layout(text, FIELDS)
    assert (layout.header, layout.lines(["12"])) == (header, [line])


def test_what_names_no_field_stays_and_is_told() -> None:
    layout = short_layout("%i %_ %-5j", FIELDS)
    assert layout.lines(["12"]) == ["12 %_ %-5j"]
    assert layout.unknown == ["_", "-"]
    assert long_layout("jobid:4,bogus", NAMES).unknown == ["bogus"]


@pytest.mark.parametrize(
    ("text", "header", "line"),
    [
        ("jobid", "JOBID               ", "12                  "),
        ("jobid:10,name", "JOBID     NAME                ", "12        a long name         "),
        ("JobID:.6,name:.4,jobid:4|", " JOBIDNAMEJOBI|", "    12a lo12  |"),
    ],
)
def test_a_long_format_gives_each_field_twenty_letters_or_its_own_width(text: str, header: str, line: str) -> None:
    layout = long_layout(text, NAMES)
    assert (layout.header, layout.lines(["12"])) == (header, [line])


def test_sacct_takes_the_beginning_of_a_field_and_its_width() -> None:
    chosen, unknown = columns("jobid,JobNam%20,state%-5,exitcode")
    assert [(one.title, one.width) for one in chosen] == [
        ("JobID", -12), ("JobName", 20), ("State", -5), ("ExitCode", 8),
    ]  # fmt: skip
    assert unknown is None
    assert columns("jobid,foo,bar") == ([], "foo")
    assert chosen[2].cell("COMPLETED") == "COMP+"
    assert chosen[3].cell("0:0") == "     0:0"


@pytest.mark.parametrize(
    ("indices", "at_once", "text"),
    [
        (range(4, 11), 2, "[4-10%2]"),
        (range(0, 21, 4), None, "[0-20:4]"),
        ((1, 3, 7, 8, 9), None, "[1,3,7-9]"),
        ((5,), None, "[5]"),
        ((4, 6), 1, "[4,6%1]"),
    ],
)
def test_elements_that_wait_are_folded(indices: range, at_once: int | None, text: str) -> None:
    assert folded(list(indices), at_once) == text


def test_each_state_of_a_task_has_a_word_of_slurms() -> None:
    assert set(OF_TASK) == {str(state) for state in TaskStatus}
    assert set(OF_TASK.values()) <= set(STATES)
    assert (state_named("pd"), state_named("Running"), state_named("foo")) == ("PENDING", "RUNNING", None)


@pytest.mark.parametrize(
    ("state", "reason", "word"),
    [
        ("pending", "held: `flow resume` lets it start", "JobHeldUser"),
        ("pending", "queued: 0 ahead", "Resources"),
        ("pending", "queued: 3 ahead", "Priority"),
        ("pending", "queued: its array runs as many as it may", "JobArrayTaskLimit"),
        ("pending", "begins 2030-01-01 08:00:00", "BeginTime"),
        ("pending", "waits for task-x to be completed", "Dependency"),
        ("pending", "waits for task-x to be completed, which cannot be any more", "DependencyNeverSatisfied"),
        ("pending", "QOSMaxCpuPerUserLimit", "QOSMaxCpuPerUserLimit"),
        ("pending", "", "None"),
        ("running", "", "None"),
        ("failed", "exit 3", "NonZeroExitCode"),
        ("timed_out", "", "TimeLimit"),
        ("lost", "the runner died", "NodeDown"),
    ],
)
def test_why_a_task_is_as_it_is_has_a_word_of_slurms(state: str, reason: str, word: str) -> None:
    assert state_and_reason(state, reason, exit_code=3, signal=None)[1] == word


@pytest.mark.parametrize(
    ("seconds", "short", "whole"),
    [
        (5, "0:05", "00:00:05"),
        (3600, "1:00:00", "01:00:00"),
        (90061, "1-01:01:01", "1-01:01:01"),
        (-3, "0:00", "00:00:00"),
    ],
)
def test_spans_are_written_as_squeue_and_sacct_do(seconds: float, short: str, whole: str) -> None:
    assert (short_span(seconds), whole_span(seconds)) == (short, whole)


NOW = time.mktime((2026, 5, 4, 15, 30, 12, 0, 0, -1))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("now", "2026-05-04 15:30:12"),
        ("now-1hour", "2026-05-04 14:30:12"),
        ("now+2days", "2026-05-06 15:30:12"),
        ("midnight", "2026-05-04 00:00:00"),
        ("today", "2026-05-04 00:00:00"),
        ("12/24", "2025-12-24 00:00:00"),
        ("noon", "2026-05-04 12:00:00"),
        ("2026-01-02", "2026-01-02 00:00:00"),
        ("2026-01-02T03:04", "2026-01-02 03:04:00"),
        ("0102", "2026-01-02 00:00:00"),
        ("01/02/25-03:04:05", "2025-01-02 03:04:05"),
        ("08:15", "2026-05-04 08:15:00"),
        ("3:15PM", "2026-05-04 15:15:00"),
    ],
)
def test_moments_are_read_as_sacct_reads_them(text: str, shown: str) -> None:
    moment = parse_moment(text, NOW, past=True)
    assert time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment)) == shown
