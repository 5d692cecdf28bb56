"""What is written for an option of sbatch -> its value: time limits, memory, GPUs, arrays, dependencies.

Each form was tried on Slurm 22.05.8, malformed ones too; these raise ValidationError.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flow.errors import ValidationError, did_you_mean
from flow.mistakes import shown_value
from flow.slurm.moments import parse_moment
from flow.spellings import parse_array, parse_signal

MAX_ARRAY_SIZE = 100_001  # every index is smaller; Slurm's own default is 1001

_MB = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}
_TIME = re.compile(r"(?:(?P<days>\d+)-(?P<rest>\d+(?::\d+){0,2})?|(?P<parts>\d+(?::\d+){0,2}))")
_LONGEST_MINUTES = 60_000_000  # more than a task's limit can be: as good as none
_NODES = re.compile(r"(\d{1,9}[km]?)(?:-(\d{1,9}[km]?))?", re.IGNORECASE)
_SCALES = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4, "p": 1024**5}
_COUNT = r"\d{1,9}[kmgtp]?"
_GPU = re.compile(rf"(?:(?P<kind>[A-Za-z_][\w.-]*)(?::|=|$))?(?P<count>{_COUNT})?", re.IGNORECASE)
_GRES = re.compile(rf"(?:gres:)?(?P<name>[A-Za-z_]\w*)(?::(?P<kind>[A-Za-z_][\w.-]*))?(?:[:=](?P<count>{_COUNT}))?")
_AFTER = {
    "afterany": "ended", "afterburstbuffer": "ended", "aftercorr": "corresponding", "afternotok": "failed",
    "afterok": "completed", "after": "started_or_ended",
}  # fmt: skip
_TASK = re.compile(r"(?P<task>[^\s:+()]+)(?:\+(?P<minutes>\d{1,7}))?(?:\(\w+\))?")
_SIGNAL = re.compile(r"(?:[rb]{1,2}:)?(?P<name>[a-z0-9]+)(?:@(?P<seconds>\d*))?", re.IGNORECASE)
_MAIL = (
    "NONE", "BEGIN", "END", "FAIL", "REQUEUE", "ALL", "INVALID_DEPEND", "STAGE_OUT", "TIME_LIMIT", "TIME_LIMIT_90",
    "TIME_LIMIT_80", "TIME_LIMIT_50", "ARRAY_TASKS",
)  # fmt: skip
_DISTRIBUTION = re.compile(
    r"(\*|block|cyclic|arbitrary|plane(=\d+)?)(:(\*|block|cyclic|fcyclic)){0,2}(,(pack|nopack))?", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Nodes:
    """How many nodes: at least, and at most (None: the least)."""

    least: int
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Gpus:
    """So many GPUs of a kind ("" is any); None is no GPU at all."""

    kind: str
    count: int


@dataclass(frozen=True, slots=True)
class After:
    """What a task waits for: (task, state, minutes) of each, all or any of them, and the earlier ones of its name."""

    tasks: tuple[tuple[str, str, int], ...] = ()
    any: bool = False
    singleton: bool = False


def parse_value(name: str, text: str) -> Any:
    """The value of an option, or `text` where it is no more than that. Raises ValidationError for a malformed one."""
    read = _READ.get(name)
    return read(text) if read else text


def parse_minutes(text: str) -> int | None:
    """A time limit in minutes, rounded up; None: no limit.

    Reads minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, days-hours:minutes:seconds.
    """
    if text.lower() in ("unlimited", "infinite", "-1", "4294967295"):
        return None
    found = _TIME.fullmatch(text)
    if not found:
        raise ValidationError(
            f"{shown_value(text)} is no time limit", suggestions=["write `90`, `30:00`, `12:00:00` or `1-12:00:00`"]
        )
    parts = [int(part) for part in (found["parts"] or found["rest"] or "0").split(":")]
    if found["days"]:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    else:
        hours, minutes, seconds = parts if len(parts) == 3 else (0, *parts, 0)[:3]
    total = int(found["days"] or 0) * 1440 + hours * 60 + minutes + math.ceil(seconds / 60)
    return total if 0 < total < _LONGEST_MINUTES else None


def parse_megabytes(text: str) -> int | None:
    """Memory in MB, rounded up; None: all that there is."""
    found = re.fullmatch(r"(\d{1,15})([KMGT]?)B?", text.upper())
    if not found or text.upper().endswith(tuple(f"{digit}B" for digit in range(10))):
        raise ValidationError(
            f"{shown_value(text)} is no amount of memory", suggestions=["write it as `64G` or `500M`"]
        )
    return math.ceil(int(found[1]) * _MB[found[2]]) or None


def parse_nodes(text: str) -> Nodes | None:
    """`2`, `2-4`, `1k`; None: 0, which asks for none in particular."""
    found = _NODES.fullmatch(text)
    if not found:
        raise ValidationError(f"{shown_value(text)} is no count of nodes", suggestions=["write it as `2` or `2-4`"])
    least, most = (_scaled(part) if part else None for part in found.groups())
    if most is not None and most < (least or 0):
        raise ValidationError(
            f"at most {most} nodes are less than at least {least}", suggestions=[f"write `{found[2]}-{found[1]}`"]
        )
    return Nodes(least, most) if least else None


def parse_gpus(text: str) -> tuple[Gpus, ...]:
    """`4`, `a100:4`, `a100`, `a100:2,v100:1`."""
    return tuple(gpus for part in filter(None, text.split(",")) if (gpus := _gpus(part)).count)


def parse_gres(text: str) -> tuple[Gpus, ...]:
    """The GPUs of `gpu:a100:4,gpu:1`; what else there is to be had is left to a cluster."""
    if text.lower() == "none":
        return ()
    found = []
    for part in text.split(","):
        entry = _GRES.fullmatch(part)
        if not entry:
            raise ValidationError(
                f"{shown_value(part)} is no generic resource", suggestions=["write it as `gpu:4` or `gpu:a100:4`"]
            )
        if entry["name"] == "gpu":
            found.append(Gpus(entry["kind"] or "", _scaled(entry["count"] or "1")))
    return tuple(one for one in found if one.count)


def parse_indices(text: str) -> str | None:
    """An array as a task's field has it; None where there is none. `[1-3]`, `1,,2`, and `1-9%2,20` are read, too."""
    if not text:
        return None
    asked = ",".join(filter(None, re.sub(r"%[^,]*|[\[\]]", "", text).split(",")))
    at_once = re.match(r"[^%]*%0*([1-9]\d*)", text)  # the first limit is for all of them
    limit = f"%{at_once[1]}" if at_once else ""
    if " " in text:
        raise ValidationError(f"{shown_value(text)} is no array", suggestions=["write it without blanks, as `0-9`"])
    indices = parse_array(asked + limit).indices
    if indices[-1] >= MAX_ARRAY_SIZE:
        raise ValidationError(
            f"index {indices[-1]} of array {shown_value(text)} is larger than {MAX_ARRAY_SIZE - 1}",
            suggestions=["let each element do several pieces of the work"],
        )
    return asked + limit


def parse_after(text: str) -> After | None:
    """`afterok:1:2,afterany:3`, `after:1+10?singleton`; None: nothing. Tasks may be named in any way."""
    if not text:
        return None
    tasks: list[tuple[str, str, int]] = []
    is_singleton = False
    for part in re.split(r"[,?]", text):
        kind, colon, names = part.partition(":")
        kind = kind.strip().lower()
        if kind == "singleton" and not colon:
            is_singleton = True
            continue
        if not colon:
            kind, names = "afterany", kind
        if kind not in _AFTER:
            raise ValidationError(
                f"{shown_value(part)} is no dependency",
                suggestions=[*did_you_mean(kind, [*_AFTER, "singleton"]), "write it as `afterok:ID`"],
            )
        minutes = 0
        for name in names.split(":"):
            found = _TASK.fullmatch(name.strip())
            if not found or found["task"] in _AFTER:
                raise ValidationError(
                    f"the dependency {shown_value(part)} names no task", suggestions=[f"write it as `{kind}:ID`"]
                )
            minutes = int(found["minutes"] or minutes)
            tasks.append((found["task"].removesuffix("_*"), _AFTER[kind], minutes if kind == "after" else 0))
    return After(tuple(tasks), "?" in text, is_singleton)


def parse_signal_before(text: str) -> str:
    """The signal and its seconds before the limit, as a task's field has them."""
    found = _SIGNAL.fullmatch(text)
    if not found or int(found["seconds"] or 0) > 65535 or not found["name"].strip("0"):
        raise ValidationError(f"{shown_value(text)} is no signal", suggestions=["write it as `USR1@90` or `B:USR1@90`"])
    signal = found["name"] + (f"@{found['seconds']}" if found["seconds"] else "")
    parse_signal(signal)
    return signal


def _gpus(text: str) -> Gpus:
    found = _GPU.fullmatch(text)
    if not found or text.endswith((":", "=")):
        raise ValidationError(f"{shown_value(text)} is no count of GPUs", suggestions=["write it as `4` or `a100:4`"])
    return Gpus(found["kind"] or "", _scaled(found["count"] or "1"))


def _scaled(text: str) -> int:
    return int(text.rstrip("kKmMgGtTpP")) * _SCALES[text.lstrip("0123456789").lower()]


def _count(text: str) -> int:
    if not re.fullmatch(r"0*[1-9]\d{0,8}", text):
        raise ValidationError(f"{shown_value(text)} is no number", suggestions=["write a whole number from 1"])
    return int(text)


def _nice(text: str) -> int:
    if (text and not re.fullmatch(r"[+-]?\d{1,10}", text)) or abs(int(text or 0)) > 2147483645:
        raise ValidationError(f"{shown_value(text)} is no adjustment", suggestions=["write a whole number, as `100`"])
    return int(text or 100)


def _priority(text: str) -> int:
    if text.upper() == "TOP":
        return 10**9
    if not re.fullmatch(r"\d{1,10}", text):
        raise ValidationError(f"{shown_value(text)} is no priority", suggestions=["write a whole number, or `TOP`"])
    return min(int(text), 10**9)


def _mail(text: str) -> str:
    if not any(one.strip().upper() in _MAIL for one in text.split(",")):
        raise ValidationError(
            f"{shown_value(text)} is nothing to send mail of",
            suggestions=[*did_you_mean(text.upper(), _MAIL), f"write {', '.join(_MAIL)}"],
        )
    return text


def _distribution(text: str) -> str:
    if not _DISTRIBUTION.fullmatch(text):
        raise ValidationError(
            f"{shown_value(text)} is no distribution", suggestions=["write `block`, `cyclic` or `plane=2`"]
        )
    return text


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        found = [word for word in words if word == text.lower()]
        if not found:
            known = ", ".join(f"`{word}`" for word in words if word)
            raise ValidationError(f"{shown_value(text)} is not known here", suggestions=[f"write {known}"])
        return found[0]

    return read


def _open_mode(text: str) -> str:
    found = [word for word in ("append", "truncate") if text and word.startswith(text.lower())]
    if not found:
        raise ValidationError(f"{shown_value(text)} is no mode", suggestions=["write `append` or `truncate`"])
    return found[0]


_COUNTS = (
    "ntasks", "ntasks-per-node", "ntasks-per-core", "ntasks-per-socket", "ntasks-per-gpu", "cpus-per-task",
    "cpus-per-gpu", "mincpus",
)  # fmt: skip
_READ: Mapping[str, Callable[[str], Any]] = {
    **dict.fromkeys(_COUNTS, _count),
    **dict.fromkeys(("mem", "mem-per-cpu", "mem-per-gpu", "tmp"), parse_megabytes),
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket"), parse_gpus),
    **dict.fromkeys(("time", "time-min"), parse_minutes),
    **dict.fromkeys(("begin", "deadline"), parse_moment),
    "array": parse_indices,
    "dependency": parse_after,
    "distribution": _distribution,
    "exclusive": _one_of("", "user", "mcs"),
    "gres": parse_gres,
    "hint": _one_of("compute_bound", "memory_bound", "multithread", "nomultithread"),
    "kill-on-invalid-dep": _one_of("yes", "no"),
    "mail-type": _mail,
    "nice": _nice,
    "no-kill": _one_of("", "off"),
    "nodes": parse_nodes,
    "open-mode": _open_mode,
    "priority": _priority,
    "signal": parse_signal_before,
    "wait-all-nodes": _one_of("0", "1"),
}
