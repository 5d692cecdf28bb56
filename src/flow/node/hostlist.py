"""Slurm's lists of hosts: `n[1-3,07-09],x` and the names that it stands for. Standard library, Python 3.8 and up."""

from __future__ import annotations

import itertools
import os
import re
from typing import Any

MOST = 65536  # as in Slurm
_PART = re.compile(r"[^\[\],\s]+|\[[^\[\]]*\]")
_NUMBER = re.compile(r"(\d{1,18})(?:-(\d{1,18}))?")


def expand(text: str) -> list[str]:
    """The names in their order, doubles too. Raises ValueError for what is no such list."""
    return [name for one in _split(text) for name in _expand_one(one)]


def fold(names: list[str]) -> str:
    """The short way to write these names; neighbours whose number at the end goes on are taken together."""
    groups: list[tuple[str, list[str]]] = []
    for name in names:
        digits = name[len(name.rstrip("0123456789")) :][-18:]
        prefix = name[: len(name) - len(digits)]
        if groups and digits and groups[-1][0] == prefix and groups[-1][1][0]:
            groups[-1][1].append(digits)
        else:
            groups.append((prefix, [digits]))
    return ",".join(prefix + (_ranges(digits) if len(digits) > 1 else digits[0]) for prefix, digits in groups)


def names_of(task: dict[str, Any]) -> list[str]:
    """What the nodes of a task are called: the addresses by which they reach each other.

    A machine that has the task for itself keeps its own name, where that is known without asking anybody.
    """
    peers: list[str] = task.get("peers") or ["127.0.0.1"]
    if len(peers) > 1:
        return peers
    own = os.uname().nodename
    try:
        with open("/etc/hosts", encoding="utf-8", errors="replace") as file:
            is_known = any(own in line.partition("#")[0].split()[1:] for line in file)
    except OSError:
        is_known = False
    return [own] if is_known else peers


def _split(text: str) -> list[str]:
    """At the commas outside of brackets."""
    parts, depth = [""], 0
    for letter in text.strip():
        depth += (letter == "[") - (letter == "]")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part]


def _expand_one(text: str) -> list[str]:
    parts = _PART.findall(text)
    if "".join(parts) != text or (any(part[0] == "[" for part in parts) and parts[-1][0] != "["):
        raise ValueError(text)
    choices = [_numbers(part[1:-1], text) if part[0] == "[" else [part] for part in parts]
    count = 1
    for one in choices:
        count *= len(one)
    if count > MOST:
        raise ValueError(text)
    return ["".join(words) for words in itertools.product(*choices)]


def _numbers(text: str, whole: str) -> list[str]:
    numbers: list[str] = []
    for part in text.split(","):
        found = _NUMBER.fullmatch(part)
        if not found:
            raise ValueError(whole)
        low, high = int(found[1]), int(found[2] or found[1])
        if not low <= high < low + MOST:
            raise ValueError(whole)
        numbers += [str(number).zfill(len(found[1])) for number in range(low, high + 1)]
    return numbers


def _ranges(digits: list[str]) -> str:
    runs: list[list[str]] = []
    for number in digits:
        if runs and str(int(runs[-1][-1]) + 1).zfill(len(runs[-1][0])) == number:
            runs[-1].append(number)
        else:
            runs.append([number])
    return "[{}]".format(",".join("-".join([run[0], run[-1]][: len(run)]) for run in runs))
