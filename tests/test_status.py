"""What a task's state is, from what its ranks reported."""

from __future__ import annotations

import pytest

from flow.machines import Report
from flow.status import TaskStatus, attempt_outcome


def ended(code: int, cause: str = "exit", at: float = 1.0) -> Report:
    return Report("ended", code=code, cause=cause, reason=f"{cause} {code}", ended=at)


@pytest.mark.parametrize(
    ("reports", "state", "code"),
    [
        ([ended(0)], TaskStatus.COMPLETED, 0),
        ([ended(3)], TaskStatus.FAILED, 3),
        ([ended(127, "start")], TaskStatus.FAILED, 127),
        ([ended(143, "timeout")], TaskStatus.TIMED_OUT, 143),
        ([ended(0, "timeout")], TaskStatus.TIMED_OUT, 0),  # it saved its work when it was told to end
        ([ended(0, "cancel")], TaskStatus.CANCELLED, 0),
        ([ended(137, "lost")], TaskStatus.LOST, 137),
        ([ended(0), ended(0)], TaskStatus.COMPLETED, 0),
        ([ended(143, "peer", 1.0), ended(3, at=2.0)], TaskStatus.FAILED, 3),
        ([ended(0, "peer", 1.0), ended(3, at=2.0)], TaskStatus.FAILED, 3),
        ([ended(4, at=2.0), ended(3, at=1.0)], TaskStatus.FAILED, 3),
        ([ended(4), ended(3)], TaskStatus.FAILED, 4),
        ([ended(0), ended(0, "peer")], TaskStatus.LOST, 0),  # stopped by nobody who tells: not the whole work
    ],
)
def test_the_first_rank_that_failed_of_itself_decides(reports: list[Report], state: TaskStatus, code: int) -> None:
    outcome = attempt_outcome(dict(enumerate(reports)), len(reports))
    assert outcome
    assert (outcome.state, outcome.exit_code) == (state, code)


def test_an_attempt_goes_on_while_a_rank_does() -> None:
    assert attempt_outcome({0: ended(3), 1: Report("running")}, 2) is None
    assert attempt_outcome({0: ended(0)}, 2) is None
