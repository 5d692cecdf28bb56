"""A Slurm batch script and its options -> the fields of a task that runs it as it is.

What an option asks for is done where a task can do it, recorded where it cannot, or refused with its place. Slurm's own
way with each option was tried on 22.05.8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from flow.errors import ValidationError
from flow.mistakes import Mistake, MistakesError
from flow.slurm.options import OF_SUBMITTING, Given, merged, read_directives, read_variables
from flow.slurm.request import Request, contradictions, read_request
from flow.slurm.submitting import task_name
from flow.slurm.values import After, parse_value

_INTERPRETER = "begin it with `#!` and what runs it, as `#!/bin/bash`"
_LAST_DESCRIPTOR = 1023
_WRAPPER = "#!/bin/sh\n# This script was created by sbatch --wrap.\n\n"
# Options that are a field of a task as they stand.
_FIELDS = {
    "array": "array", "chdir": "working_dir", "error": "error", "output": "output", "signal": "signal",
    "priority": "priority",
}  # fmt: skip
# Options of which Slurm tells the script: SLURM_ and their names, and what is called otherwise.
_TOLD = (
    "cpus-per-gpu", "cpus-per-task", "gpu-bind", "gpu-freq", "gpus", "gpus-per-node", "gpus-per-socket",
    "gpus-per-task", "hint", "mem-bind", "ntasks-per-core", "ntasks-per-gpu", "ntasks-per-node", "ntasks-per-socket",
    "threads-per-core",
)  # fmt: skip
_TOLD_AS = {
    "account": "SLURM_JOB_ACCOUNT", "container": "SLURM_CONTAINER", "dependency": "SLURM_JOB_DEPENDENCY",
    "partition": "SLURM_JOB_PARTITION", "qos": "SLURM_JOB_QOS",
    "reservation": "SLURM_JOB_RESERVATION",
}  # fmt: skip
_MEMORY = {"mem": "SLURM_MEM_PER_NODE", "mem-per-cpu": "SLURM_MEM_PER_CPU", "mem-per-gpu": "SLURM_MEM_PER_GPU"}


@dataclass(frozen=True, slots=True)
class SlurmScript:
    """What a script asks for: the fields of a TaskConfig, the options that hold, what the user should know."""

    fields: Mapping[str, Any]
    options: Mapping[str, str]
    notes: tuple[str, ...]


def read_slurm_script(
    path: Path, environ: Mapping[str, str], *, given: Iterable[Given] = (), args: Sequence[str] = ()
) -> SlurmScript:
    """What the script in a file asks for, with the options `given` beside it and the SBATCH_* variables of `environ`.

    Raises ValidationError, each mistake with its line; ResourceNotFoundError is the caller's.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValidationError(f"cannot read `{path}`: {error.strerror}") from None
    return read_script(content, environ, name=str(path), file=path.absolute(), given=given, args=args)


def read_script(
    content: bytes,
    environ: Mapping[str, str],
    *,
    name: str,
    file: Path | None = None,
    given: Iterable[Given] = (),
    args: Sequence[str] = (),
) -> SlurmScript:
    """The same for a script's bytes, which messages call `name`: from standard input, or `wrapped`."""
    text, encoding = _text(content, name)
    directives = read_directives(text, name)
    held = merged(directives.given, read_variables(environ), given)
    values, mistakes = _values(held.values())
    mistakes = [*directives.mistakes, *mistakes] or contradictions(values, held)
    if mistakes:
        raise MistakesError.of([*mistakes, *map(Mistake, directives.notes)], f"`{name}`")
    request = read_request(values)
    job_name = values.get("job-name", file.name if file else "wrap" if "wrap" in held else "sbatch")
    batch = {
        "script": text,
        "encoding": encoding,
        "file": str(file) if file else None,
        "args": list(args),
        "options": [str(one) for one in held.values() if one.name not in OF_SUBMITTING],
        "variables": {"SLURM_JOB_NAME": job_name, **_variables(values, held, request)},
        "export": _export(values),
    }
    fields = {"name": task_name(job_name), **_fields(values), **request.fields, "batch": batch}
    if "export-file" in held:
        fields["env"] = _exported_file(held["export-file"])
    options = {one.name: one.value for one in held.values()}
    return SlurmScript(fields, options, (*directives.notes, *request.notes))


def wrapped(command: str) -> bytes:
    """The script that `--wrap` makes of a shell command."""
    return f"{_WRAPPER}{command}\n".encode("utf-8", "surrogateescape")


def _text(content: bytes, name: str) -> tuple[str, str]:
    """The script's text and its encoding. Raises ValidationError for what sbatch does not take, in its words."""
    wrong = (
        (not content, "is empty", _INTERPRETER),
        (not content.strip(), "contains only whitespace", _INTERPRETER),
        (
            not content.startswith(b"#!"),
            "does not look like a batch script: its first line must start with `#!`",
            _INTERPRETER,
        ),
        (b"\0" in content, "contains a NUL character", "is it a program? `--wrap` runs one"),
        (
            b"\r\n" in content,
            "contains DOS line breaks (`\\r\\n`) instead of UNIX line breaks (`\\n`)",
            "take them out with `sed -i 's/\\r$//' FILE`",
        ),
    )
    for is_so, told, advice in wrong:
        if is_so:
            raise ValidationError(f"`{name}` {told}", suggestions=[advice])
    try:
        return content.decode(), "utf-8"
    except UnicodeDecodeError:
        return content.decode("latin-1"), "latin-1"


def _values(held: Iterable[Given]) -> tuple[dict[str, Any], list[Mistake]]:
    values, mistakes = {}, []
    for one in held:
        try:
            values[one.name] = parse_value(one.name, one.value)
        except ValidationError as error:
            mistakes.append(one.mistake(f"`--{one.name}`: {error.message}", *error.suggestions))
    return values, mistakes


def _fields(values: Mapping[str, Any]) -> dict[str, Any]:
    fields = {field: values[name] for name, field in _FIELDS.items() if values.get(name) not in (None, "")}
    if "priority" not in fields and "nice" in values:
        fields["priority"] = max(-values["nice"], -(10**9))
    if values.get("time"):
        fields["max_run_time_hours"] = values["time"] / 60
    if "begin" in values:
        fields["begin"] = datetime.fromtimestamp(values["begin"]).isoformat()
    if "hold" in values or values.get("priority") == 0:
        fields["hold"] = True
    if values.get("dependency"):
        fields.update(_waiting(values["dependency"]))
        fields["unmet_dependency"] = "cancel" if values.get("kill-on-invalid-dep") == "yes" else "wait"
    if "no-requeue" in values:
        fields["requeue"] = False
    return fields


def _waiting(after: After) -> dict[str, Any]:
    tasks = [
        {"task": task, "state": state, **({"delay_minutes": minutes} if minutes else {})}
        for task, state, minutes in after.tasks
    ]
    flags = {"depends_on_any": after.any, "singleton": after.singleton}
    return {"depends_on": tasks, **{name: True for name, is_so in flags.items() if is_so}}


def _export(values: Mapping[str, Any]) -> str:
    """What the script gets of the submitter's variables; with a file of them, no more than a login has."""
    return "NONE" if "export-file" in values or values.get("export") == "" else str(values.get("export", "ALL"))


def _exported_file(given: Given) -> dict[str, str]:
    """The variables in a file, or in an open descriptor of that number: `NAME=value`, each ended by a NUL."""
    number = given.value.isdecimal() and 3 <= int(given.value) <= _LAST_DESCRIPTOR
    try:
        with open(int(given.value) if number else given.value, "rb", closefd=not number) as file:
            entries = file.read().split(b"\0")
    except OSError as error:
        raise ValidationError(f"cannot read {given.told}: {error.strerror}") from None
    pairs = (entry.decode(errors="replace").partition("=") for entry in entries)
    return {name: value for name, equals, value in pairs if name and equals}


def _variables(values: Mapping[str, Any], held: Mapping[str, Given], request: Request) -> dict[str, str]:
    """What Slurm sets in the script's environment as far as the options alone decide it."""
    given = {name: one.value for name, one in held.items()}
    found = {f"SLURM_{name.upper().replace('-', '_')}": given[name] for name in _TOLD if name in given}
    found.update({variable: given[name] for name, variable in _TOLD_AS.items() if given.get(name)})
    if given.get("export", "ALL").upper() != "ALL":
        found.update(SLURM_EXPORT_ENV=given["export"], SLURM_GET_USER_ENV="1")
    found.update({variable: str(values[name]) for name, variable in _MEMORY.items() if values.get(name)})
    if "distribution" in given:
        method, _, size = given["distribution"].partition("=")
        found["SLURM_DISTRIBUTION"] = method
        if size:
            found["SLURM_DIST_PLANESIZE"] = size
    if values.get("hint") == "nomultithread":
        found["SLURM_THREADS_PER_CORE"] = "1"
    if "overcommit" in given:
        found["SLURM_OVERCOMMIT"] = "1"
    if "open-mode" in values:
        found["SLURM_OPEN_MODE"] = values["open-mode"][0]
    if "get-user-env" in given:
        found["SLURM_GET_USER_ENV"] = "1"
    return {**found, **request.variables}
