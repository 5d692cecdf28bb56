"""Lists of node names as Slurm writes them: `node[1-3,07-09]` <-> the names."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

_PART = re.compile(r"(?:[^,\[]|\[[^\]]*\])+")


def expand(text: str) -> list[str]:
    """The names of `a[1-3],b`. Raises ValueError for a range that is none."""
    return [name for part in _PART.findall(text) for name in _expand_part(part)]


def fold(names: Iterable[str]) -> str:
    """The names in as few words as may be, each once and in their order."""
    groups: dict[tuple[str, int], list[int]] = {}
    for name in dict.fromkeys(names):
        digits = re.search(r"\d*$", name)
        number = digits[0] if digits else ""
        width = len(number) if number.startswith("0") else 0
        groups.setdefault((name[: len(name) - len(number)], width if number else -1), []).append(int(number or 0))
    return ",".join(_folded(prefix, width, numbers) for (prefix, width), numbers in groups.items())


def _expand_part(part: str) -> list[str]:
    found = re.search(r"\[([^\]]*)\]", part)
    if not found:
        return [part]
    rest = _expand_part(part[found.end() :]) if found.end() < len(part) else [""]
    numbers = [number for one in found[1].split(",") for number in _range(one)]
    return [f"{part[: found.start()]}{number}{end}" for number in numbers for end in rest]


def _range(text: str) -> list[str]:
    first, dash, last = text.partition("-")
    if not first.isdigit() or (dash and not last.isdigit()):
        raise ValueError(f"`{text}` is no range of numbers")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)]


def _folded(prefix: str, width: int, numbers: list[int]) -> str:
    if width < 0:
        return prefix
    numbers = sorted(numbers)
    ranges = []
    for _, group in itertools.groupby(enumerate(numbers), key=lambda one: one[1] - one[0]):
        run = [number for _, number in group]
        ends = dict.fromkeys((str(run[0]).zfill(width), str(run[-1]).zfill(width)))
        ranges.append("-".join(ends))
    alone = len(numbers) == 1
    return prefix + (ranges[0] if alone else f"[{','.join(ranges)}]")
