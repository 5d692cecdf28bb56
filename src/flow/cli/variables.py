"""`-e NAME=VALUE` and `--env-file` -> the variables of a task."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from flow.errors import ResourceNotFoundError, ValidationError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def read_variables(
    given: Sequence[str], files: Sequence[str], *, environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The variables of the files, then those `given`, later ones winning. NAME alone is passed on from `environment`.

    Raises ValidationError for what is neither, naming file and line, and ResourceNotFoundError for a missing file.
    """
    variables: dict[str, str] = {}
    for file in files:
        for where, text in _file_lines(file):
            name, value = _variable(text, where, environment)
            variables[name] = _unquoted(value)
    for text in given:
        name, value = _variable(text, "-e", environment)
        variables[name] = value
    return variables


def _file_lines(file: str) -> Iterator[tuple[str, str]]:
    """("file:line", text) of each line that says something."""
    try:
        content = Path(file).read_text()
    except FileNotFoundError as error:
        raise ResourceNotFoundError(f"no file `{file}`", suggestions=["give `--env-file` a path"]) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValidationError(f"cannot read `{file}`: {error}") from error
    for number, line in enumerate(content.splitlines(), 1):
        text = line.strip()
        if text and not text.startswith("#"):
            yield f"{file}:{number}", text.removeprefix("export ").lstrip()


def _variable(text: str, where: str, environment: Mapping[str, str]) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not _NAME.fullmatch(name):
        raise ValidationError(f"{where}: `{name}` cannot name a variable", suggestions=["write it as `-e NAME=VALUE`"])
    if equals:
        return name, value
    if name not in environment:
        raise ValidationError(
            f"{where}: `{name}` is not set here, so it cannot be passed on",
            suggestions=[f"give it a value: `-e {name}=VALUE`"],
        )
    return name, environment[name]


def _unquoted(value: str) -> str:
    """Env files quote values as a shell would, but only whole ones."""
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return value
