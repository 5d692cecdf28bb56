"""Which of a step's tasks runs on which node, as Slurm spreads them. Standard library, Python 3.8 and up."""

from __future__ import annotations

import itertools
from typing import Iterable


def spread(tasks: int, room: list[int], how: str = "block") -> list[int]:
    """For each task the place of its node; `room`: how many tasks each node has CPUs for.

    `how`: "cyclic" (one each in turn), "block" (as many each as by that, but neighbours together), "plane=2" (two each
    in turn). What there is no room for goes round.
    """
    plane = int(how[6:]) if how.startswith("plane=") else 1
    counts = [0] * len(room)
    order: list[int] = []
    while len(order) < tasks:
        is_full = all(count >= most for count, most in zip(counts, room))
        for place, most in enumerate(room):
            chunk = min(plane, tasks if is_full else max(0, most - counts[place]), tasks - len(order))
            counts[place] += chunk
            order += [place] * chunk
    return sorted(order) if how == "block" else order


def shares(total: int, parts: int) -> list[int]:
    """A number cut into whole parts that differ by one at most, the larger ones first."""
    return [total // parts + (place < total % parts) for place in range(parts)]


def compressed(counts: list[int]) -> str:
    """`2(x3),1`, as in SLURM_TASKS_PER_NODE."""
    runs = [(value, len(list(run))) for value, run in itertools.groupby(counts)]
    return ",".join(f"{value}(x{times})" if times > 1 else str(value) for value, times in runs)


def ranks(numbers: list[int]) -> str:
    """`task 3`, `tasks 0-2,5`."""
    return ("task " if len(numbers) == 1 else "tasks ") + ranges(sorted(numbers))


def ranges(numbers: Iterable[int]) -> str:
    """`0-2,5` of sorted numbers."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] + 1 == number:
            runs[-1][-1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
