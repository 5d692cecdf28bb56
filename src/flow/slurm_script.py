"""The leading #SBATCH lines of a Slurm script -> the fields of a task, which runs the script as it is.

What a line asks for is done, or refused with its place; what only a Slurm cluster knows (accounts, partitions, mail) is
told in a note. Source: sbatch(1) of Slurm 22.05.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flow.errors import ValidationError, did_you_mean
from flow.mistakes import Mistake, MistakesError

_SHORT = {
    "A": "account", "a": "array", "b": "begin", "C": "constraint", "c": "cpus-per-task", "D": "chdir",
    "d": "dependency", "e": "error", "G": "gpus", "H": "hold", "J": "job-name", "N": "nodes", "n": "ntasks",
    "k": "no-kill", "L": "licenses", "M": "clusters", "o": "output", "p": "partition", "Q": "quiet", "q": "qos",
    "s": "oversubscribe", "t": "time", "v": "verbose", "W": "wait", "w": "nodelist", "x": "exclude",
}  # fmt: skip
_FLAGS = {"exclusive", "hold", "no-kill", "no-requeue", "oversubscribe", "quiet", "requeue", "verbose", "wait"}
# What says nothing where there is no Slurm; told in a note.
_FOR_SLURM = {
    "account", "clusters", "comment", "constraint", "exclude", "exclusive", "licenses", "mail-type", "mail-user",
    "no-kill", "no-requeue", "nodelist", "open-mode", "oversubscribe", "partition", "qos", "quiet", "requeue",
    "reservation", "verbose", "wait",
}  # fmt: skip
_SAME = ("array", "begin", "error", "output", "signal")  # in a task, too
_COUNTS = ("nodes", "ntasks", "ntasks-per-node", "cpus-per-task")
_READ = (
    "chdir", "dependency", "export", "gpus", "gpus-per-node", "gpus-per-task", "gres", "hold", "mem", "mem-per-cpu",
    "mem-per-gpu", "time",
)  # fmt: skip
_KNOWN = {*_FOR_SLURM, *_SAME, *_COUNTS, *_READ, "job-name"}
_AFTER = {"afterok": "completed", "afterany": "ended", "afternotok": "failed", "after": "started"}
_UNITS = {"K": 1 / 1024**2, "M": 1 / 1024, "": 1 / 1024, "G": 1, "T": 1024}
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<parts>\d+(?::\d+){0,2})")


@dataclass(frozen=True, slots=True)
class SlurmScript:
    """What a script asks for: the fields of a TaskConfig, and what the user should know."""

    fields: Mapping[str, Any]
    notes: tuple[str, ...]


def read_slurm_script(path: Path, place: str) -> SlurmScript:
    """What the script asks for; `place` is its path on the machine. Raises ValidationError, each mistake with its line.

    The job's number, and what else only the task knows, are not among the variables.
    """
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    if not lines or not lines[0].startswith("#!"):
        raise ValidationError(
            f"`{path}` does not begin with `#!`, as a Slurm script must", suggestions=["write `#!/bin/bash` first"]
        )
    asked, notes, mistakes = _directives(path, lines)
    found: dict[str, Any] = {}
    for name, (value, number) in asked.items():
        try:
            found[name] = _value(name, value)
        except ValidationError as error:
            mistakes.append(Mistake(f"{path}:{number}: {error.message}", error.suggestions))
    if mistakes:
        raise MistakesError.of(mistakes, f"`{path}`")
    command = [*shlex.split(lines[0][2:]), place]
    if found.get("nodes", 1) > 1:  # a batch script runs on the first of its nodes
        command = ["sh", "-c", '[ $FLOW_NODE_RANK = 0 ] || exit 0; exec "$@"', "sh", *command]
    own = {"name": path.name, **_fields(found), "command": command, "env": _variables(found)}
    return SlurmScript(own, tuple(notes))


def _directives(path: Path, lines: list[str]) -> tuple[dict[str, tuple[str, int]], list[str], list[Mistake]]:
    """Each option with its value and line, the last one winning; they end where the commands begin."""
    asked: dict[str, tuple[str, int]] = {}
    notes, mistakes = [], []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            break
        if not re.match(r"#SBATCH\s", line):
            continue
        try:
            for name, value in _options(shlex.split(line[len("#SBATCH") :], comments=True)):
                if name not in _KNOWN:
                    notes.append(
                        "; ".join((f"{path}:{number}: unknown option `--{name}`", *did_you_mean(name, _KNOWN)))
                    )
                elif name in _FOR_SLURM:
                    notes.append(f"{path}:{number}: `--{name}` is for a Slurm cluster, and has no effect here")
                else:
                    asked[name] = (value, number)
        except ValueError as error:
            mistakes.append(Mistake(f"{path}:{number}: {error}"))
    return asked, notes, mistakes


def _options(words: list[str]) -> list[tuple[str, str]]:
    """`--name=value`, `--name value`, `-N2`, `-N 2`. Raises ValueError for what is none of them."""
    found, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
        elif word.startswith("-") and word[1:2] in _SHORT:
            name, value = _SHORT[word[1]], word[2:]
            equals = value
        else:
            raise ValueError(f"`{word}` is no option of sbatch")
        if not equals and name not in _FLAGS and (name in _KNOWN or (rest and not rest[0].startswith("-"))):
            if not rest:
                raise ValueError(f"`{word}` has no value")
            value = rest.pop(0)
        found.append((name, value))
    return found


def _value(name: str, text: str) -> Any:
    """What is written for an option, as a number where it is one."""
    if name in _COUNTS:
        return _count(text.partition("-")[0] if name == "nodes" else text, name)  # 2-4 nodes: the least will do
    if name.startswith("gpus"):
        return _gpus(text)
    if name.startswith("mem"):
        return _memory_gb(text)
    if name == "signal":
        return text.removeprefix("B:")  # the script has it in any case, with all that it started
    read: dict[str, Callable[[str], Any]] = {"dependency": _dependencies, "gres": _gres, "time": _hours}
    return True if name == "hold" else read[name](text) if name in read else text


def _count(text: str, name: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise ValidationError(f"`--{name}` is `{text}`", suggestions=["write a whole number from 1"])
    return int(text)


def _hours(text: str) -> float | None:
    """Minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, days-hours:minutes:seconds."""
    if text.lower() in ("unlimited", "infinite", "0"):
        return None
    found = _TIME.fullmatch(text)
    if not found:
        raise ValidationError(f"cannot read `{text}` as a time limit", suggestions=["write it as `1-12:00:00`"])
    parts = [int(part) for part in found["parts"].split(":")]
    if found["days"] is not None:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    else:
        hours, minutes, seconds = parts if len(parts) == 3 else (0, *parts, 0)[:3]
    return int(found["days"] or 0) * 24 + hours + minutes / 60 + seconds / 3600


def _memory_gb(text: str) -> float | None:
    found = re.fullmatch(r"(\d+)([KMGT]?)B?", text.upper())
    if not found:
        raise ValidationError(f"cannot read `{text}` as memory", suggestions=["write it as `64G`"])
    return int(found[1]) * _UNITS[found[2]] or None  # 0: all that there is


def _gpus(text: str) -> tuple[str, int]:
    """Kind ("" for any) and number of `a100:4`, `a100` or `4`."""
    kind, _, count = text.rpartition(":") if ":" in text or text.isdecimal() else (text, "", "1")
    return kind, _count(count, "gpus")


def _gres(text: str) -> tuple[str, int]:
    found = re.fullmatch(r"(?:gres[/:])?gpu(?::([A-Za-z][\w.-]*))?(?::(\d+))?", text)
    if not found:
        raise ValidationError(f"`--gres={text}` asks for what is no GPU", suggestions=["write `--gres=gpu:a100:4`"])
    return found[1] or "", int(found[2] or 1)


def _dependencies(text: str) -> list[str]:
    found = []
    for part in text.split(","):
        kind, _, tasks = part.partition(":")
        if kind not in _AFTER or not tasks or "?" in text:
            raise ValidationError(
                f"the dependency `{part}` cannot be kept here",
                suggestions=[f"write {', '.join(_AFTER)}, as `afterok:ID`"],
            )
        found += [f"{task}:{_AFTER[kind]}" for task in tasks.split(":")]
    return found


def _fields(asked: Mapping[str, Any]) -> dict[str, Any]:
    nodes = asked.get("nodes", 1)
    cpus = asked.get("cpus-per-task", 1) * _tasks_per_node(asked)
    gpu = _gpu_of_each_node(asked, nodes)
    fields: dict[str, Any] = {name: asked.get(name) for name in _SAME}
    fields.update(
        name=asked.get("job-name"), num_instances=nodes, cpus=cpus, gpu=gpu and ":".join(map(str, gpu)).lstrip(":")
    )
    fields.update(max_run_time_hours=asked.get("time"), working_dir=asked.get("chdir"), hold=asked.get("hold"))
    fields["depends_on"] = asked.get("dependency")
    per_cpu, per_gpu = asked.get("mem-per-cpu"), asked.get("mem-per-gpu")
    fields["memory_gb"] = asked.get("mem") or (per_cpu and per_cpu * cpus) or (per_gpu and gpu and per_gpu * gpu[1])
    return {name: value for name, value in fields.items() if value is not None}


def _gpu_of_each_node(asked: Mapping[str, Any], nodes: int) -> tuple[str, int] | None:
    """Kind and number; `--gpus` is of all nodes together. Raises ValidationError where they cannot have the same."""
    each = asked.get("gpus-per-node") or asked.get("gres")
    if not each and "gpus-per-task" in asked:
        kind, count = asked["gpus-per-task"]
        each = kind, count * _tasks_per_node(asked)
    if each or "gpus" not in asked:
        found: tuple[str, int] | None = each
        return found
    kind, count = asked["gpus"]
    if count % nodes:
        raise ValidationError(
            f"{count} GPUs cannot be shared by {nodes} nodes", suggestions=["write `--gpus-per-node`"]
        )
    return kind, count // nodes


def _tasks_per_node(asked: Mapping[str, Any]) -> int:
    return int(asked.get("ntasks-per-node") or math.ceil(asked.get("ntasks", 1) / asked.get("nodes", 1)))


def _variables(asked: Mapping[str, Any]) -> dict[str, str]:
    """What Slurm would set in the script's environment as far as the script alone decides it, and what `--export` sets.

    `ALL` of the shell's variables are not passed on: what a task sees of them is the provider's matter.
    """
    nodes, each = asked.get("nodes", 1), _tasks_per_node(asked)
    tasks = str(asked.get("ntasks") or nodes * each)
    given = {
        "SLURM_NNODES": str(nodes),
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_NTASKS": tasks,
        "SLURM_NPROCS": tasks,
    }
    for name in ("ntasks-per-node", "cpus-per-task", "job-name"):
        if name in asked:
            given["SLURM_" + name.upper().replace("-", "_")] = str(asked[name])
    pairs = (part.partition("=") for part in asked.get("export", "").split(","))
    return {**given, **{name: value for name, equals, value in pairs if equals}}
