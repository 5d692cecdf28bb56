"""One measured figure with its floor and its aim, and the small arithmetic that makes figures of samples."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """`value` in `unit`; a unit that ends in "/s" is a rate, of which more is better, of all others less is.

    floor: what the machine itself takes for the least that must be done, in the same unit, and its name.
    aim: what we want to reach, in the same unit.
    key: what a peer's figure for the same work is called; "" where there is none.
    """

    what: str
    value: float
    unit: str
    floor: float | None = None
    floor_name: str = ""
    aim: float | None = None
    key: str = ""

    @property
    def is_rate(self) -> bool:
        """Whether more is better."""
        return self.unit.endswith("/s")

    @property
    def ratio(self) -> float | None:
        """How many times the floor it costs."""
        if not self.floor or not self.value:
            return None
        return self.floor / self.value if self.is_rate else self.value / self.floor

    @property
    def meets_aim(self) -> bool | None:
        """Whether the aim is reached; None where there is none."""
        if self.aim is None:
            return None
        return self.value >= self.aim if self.is_rate else self.value <= self.aim


def milliseconds(act: Callable[[], object]) -> float:
    """How long `act` takes."""
    begin = time.perf_counter()
    act()
    return (time.perf_counter() - begin) * 1000


def median(samples: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(samples)


def p99(samples: Sequence[float]) -> float:
    """What 99 of 100 stay below; of fewer than 100 the largest."""
    return sorted(samples)[min(len(samples) - 1, len(samples) * 99 // 100)]


def in_turns(rounds: int, **acts: Callable[[], object]) -> dict[str, list[float]]:
    """Milliseconds of each act, `rounds` times in turn, so that a busy machine slows all of them alike."""
    samples: dict[str, list[float]] = {name: [] for name in acts}
    for _ in range(rounds):
        for name, act in acts.items():
            samples[name].append(milliseconds(act))
    return samples
