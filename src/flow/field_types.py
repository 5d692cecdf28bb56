"""The kinds of values that a task's fields hold: what is accepted for each, and what it becomes."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, GetJsonSchemaHandler, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from flow.errors import ValidationError
from flow.gpus import parse_gpu
from flow.mistakes import Mistake, MistakesError, shown_value
from flow.spellings import parse_array, parse_begin, parse_dependency, parse_signal

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_WORD = re.compile(r"[^\s\0]+")
_SOURCE = re.compile(r"s3://[A-Za-z0-9][A-Za-z0-9._-]*(/[^\0]*)?|volume://[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_SAYS_VOLUME = frozenset(("name", "volume_id", "size_gb", "mount_path"))  # one of them is in each volume
_KERNEL = ("dev", "proc", "sys")
_SYSTEM = ("bin", "boot", "etc", "lib", "lib32", "lib64", "run", "sbin", "usr", "var")
_WORKSPACE = "/workspace"
_DEFAULT_TARGET = "/data"  # where a mount given without a target appears


def _refuse(message: str, *advice: str) -> ValidationError:
    return ValidationError(message, suggestions=advice)


def _text(value: Any) -> str:
    """Text that says something: not blank, without NUL. Paths are text."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise _refuse(f"{shown_value(value)} is not text", "write text, in quotes where it looks like a number")
    if not text.strip():
        raise _refuse("is blank", "write something, or leave the field out")
    if "\0" in text:
        raise _refuse("holds a NUL character", "take it out")
    return text


def _matching(pattern: re.Pattern[str], advice: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        text = _text(value)
        if not pattern.fullmatch(text):
            raise _refuse(f"{shown_value(text)} is not allowed", advice)
        return text

    return check


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise _refuse(f"{shown_value(value)} is not a number", "write a number, or text in quotes")
    return value


def _absolute(value: Any) -> str:
    text = _text(value)
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if not text.startswith("/") or ".." in parts or not parts or ":" in text:
        raise _refuse(f"{shown_value(text)} is no place to mount at", "write an absolute path, as `/data`")
    if parts[0] in _KERNEL or (parts[0] in _SYSTEM and len(parts) == 1):
        raise _refuse(f"{shown_value(text)} is no place to mount at: programs need what is there", "take `/data`")
    path = "/" + "/".join(parts)
    if path == _WORKSPACE:
        raise _refuse(
            f"{shown_value(text)} is no place to mount at: the task's copy of the project is there",
            f"take `/data`, or a folder in it, as `{_WORKSPACE}/data`",
        )
    return path


def _plain_text(value: Any, name: str = "") -> str:
    """Text of a scalar, which may be empty: numbers as Python writes them, booleans as `true` and `false`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value) if isinstance(value, (int, float)) else os.fspath(value) if _is_path(value) else value
    if text is None:
        raise _refuse("has no value", "write `''` where it shall be empty")
    if not isinstance(text, str):
        raise _refuse(f"{shown_value(value, name)} is not text", "write text or a number")
    if "\0" in text:
        raise _refuse("holds a NUL character", "take it out")
    return text


def _is_path(value: Any) -> bool:
    return isinstance(value, os.PathLike)


def _texts_by_name(value: Any) -> dict[str, str]:
    """A mapping of names to text; all that is wrong with it at once."""
    if not isinstance(value, Mapping):
        raise _refuse(f"{shown_value(value)} is not a mapping", "write names and values, as `NAME: value`")
    texts: dict[str, str] = {}
    mistakes: list[Mistake] = []
    for name, one in value.items():
        try:
            if not isinstance(name, str) or not name or "=" in name or "\0" in name:
                raise _refuse(f"{shown_value(name)} is no name", "name it with letters, digits and `_`")
            texts[name] = _plain_text(one, name)
        except ValidationError as error:
            mistakes.append(Mistake(f"{name}: {error.message}", error.suggestions, (str(name),)))
    if mistakes:
        raise MistakesError.of(mistakes, "the mapping")
    return texts


def _command(value: Any) -> str | list[str] | None:
    """A shell command as text, or a list of arguments, in which numbers are accepted."""
    if value is None or not isinstance(value, (list, tuple)):
        return None if value is None else _text(value)
    if not value or value[0] == "":
        raise _refuse("names no program", "write the program first, as `[python, train.py]`")
    words: list[str] = []
    mistakes: list[Mistake] = []
    for index, one in enumerate(value):
        try:
            words.append(_plain_text(_not_bool(one)))
        except ValidationError as error:
            mistakes.append(Mistake(f"[{index}]: {error.message}", error.suggestions, (index,)))
    if mistakes:
        raise MistakesError.of(mistakes, "the command")
    return words


def _words(value: Any) -> list[str]:
    """Arguments, of which none, and empty ones, are possible."""
    if not isinstance(value, (list, tuple)):
        raise _refuse(f"{shown_value(value)} is no list", "write a list of words")
    return [_plain_text(_not_bool(one)) for one in value]


def _mounts(value: Any) -> dict[str, str]:
    """Target -> source; a source alone is mounted at /data."""
    sources = _texts_by_name({_DEFAULT_TARGET: value} if isinstance(value, str) else value)
    mounts: dict[str, str] = {}
    mistakes: list[Mistake] = []
    for target, source in sources.items():
        try:
            mounts[_absolute(target)] = _matching(_SOURCE, "write `s3://bucket/path` or `volume://name`")(source)
        except ValidationError as error:
            mistakes.append(Mistake(f"{target}: {error.message}", error.suggestions, (target,)))
    if mistakes:
        raise MistakesError.of(mistakes, "the mounts")
    return mounts


def _volumes(value: Any) -> Any:
    """`{"/data": "name"}` is a short way to write `[{"mount_path": "/data", "name": "name"}]`."""
    if isinstance(value, Mapping) and _SAYS_VOLUME.isdisjoint(value) and all(map(_is_text, value.values())):
        return [{"mount_path": path, "name": name} for path, name in value.items()]
    return [value] if isinstance(value, Mapping) else value


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _listed(value: Any) -> Any:
    """One is as good as a list of one."""
    return [value] if isinstance(value, (str, int, Mapping)) or hasattr(value, "task_id") else value


def _dependency(value: Any) -> Any:
    """`ref:state`, or a task itself, as the fields of a DependsOn."""
    if hasattr(value, "task_id"):
        return {"task": str(value.task_id)}
    if not isinstance(value, str):
        return value
    task, state, minutes = parse_dependency(value)
    return {"task": task, "state": state, **({"delay_minutes": minutes} if minutes else {})}


def _text_or_number(value: Any) -> str:
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else _text(value)


def _gpu(value: Any) -> str:
    text = _text_or_number(value)
    parse_gpu(text)
    return text


def _array(value: Any) -> str | list[int]:
    array = _text_or_number(value) if isinstance(value, (str, int)) else _indices(value)
    parse_array(array)
    return array


def _indices(value: Any) -> list[int]:
    if not isinstance(value, (list, tuple, range, set, frozenset)) or not value:
        raise _refuse(f"{shown_value(value)} is no array", "write indices, as `0-9` or `[1, 2, 5]`")
    for one in value:
        if not re.fullmatch(r"\d+", str(one)):
            raise _refuse(f"{shown_value(one)} is no index", "write whole numbers from 0")
    return [int(one) for one in value]


def _begin(value: Any) -> str:
    text = value.isoformat() if isinstance(value, date) else _text_or_number(value)  # a datetime is a date, too
    parse_begin(text, time.time())
    return text


def _signal(value: Any) -> str:
    text = _text_or_number(value)
    parse_signal(text)
    return text


def _json_ready(value: dict[str, Any]) -> dict[str, Any]:
    try:
        ready: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise _refuse(f"holds what JSON cannot ({error})", "use text, numbers, lists and mappings") from None
    return ready


def _each_once(ports: list[int]) -> list[int]:
    twice = sorted({port for port in ports if ports.count(port) > 1})
    if twice:
        raise _refuse(f"`{twice[0]}` is listed twice", "list each port once")
    return ports


@dataclass(frozen=True)
class OrElse:
    """Tells the JSON schema of another kind of value that is accepted, too."""

    kind: str

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": self.kind}, handler(schema)]}


_SCALAR_SCHEMA = {"type": ["string", "number", "boolean"]}

Text = Annotated[str, BeforeValidator(_text)]
Word = Annotated[str, BeforeValidator(_matching(_WORD, "write one word, without spaces"))]
Name = Annotated[
    str,
    BeforeValidator(_matching(_NAME, "use up to 128 letters, digits, `-`, `_` and `.`, none of `-.` first")),
    WithJsonSchema({"type": "string", "pattern": f"^{_NAME.pattern}$"}),
]
WholeNumber = Annotated[int, BeforeValidator(_not_bool)]
Seconds = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False), BeforeValidator(_not_bool)]
Minutes = Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False), BeforeValidator(_not_bool)]
# Limits stand next to the type: behind a validator they would get lost in the JSON schema.
Positive = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False), BeforeValidator(_not_bool)]
Size = Annotated[int, Field(ge=1, le=10**9), BeforeValidator(_not_bool)]
AbsolutePath = Annotated[str, BeforeValidator(_absolute), WithJsonSchema({"type": "string", "pattern": "^/"})]
Port = Annotated[int, Field(ge=1, le=65535), BeforeValidator(_not_bool)]
Ports = Annotated[list[Port], BeforeValidator(_listed), AfterValidator(_each_once), OrElse("integer")]
Words = Annotated[list[str], BeforeValidator(_words)]
Texts = Annotated[list[Text], BeforeValidator(_listed), OrElse("string")]
TextsByName = Annotated[
    dict[str, str],
    BeforeValidator(_texts_by_name),
    WithJsonSchema({"type": "object", "additionalProperties": _SCALAR_SCHEMA}),
]
Command = Annotated[
    str | list[str] | None,
    BeforeValidator(_command),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": ["string", "number"]}}]}),
]
Mounts = Annotated[
    dict[str, str],
    BeforeValidator(_mounts),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": {"type": "string"}}]}),
]
GpuText = Annotated[str, BeforeValidator(_gpu), WithJsonSchema({"type": ["string", "integer"]})]
ArrayText = Annotated[
    str | list[int],
    BeforeValidator(_array),
    WithJsonSchema({"anyOf": [{"type": ["string", "integer"]}, {"type": "array", "items": {"type": "integer"}}]}),
]
BeginText = Annotated[str, BeforeValidator(_begin), WithJsonSchema({"type": ["string", "number"]})]
SignalText = Annotated[str, BeforeValidator(_signal), WithJsonSchema({"type": ["string", "integer"]})]
Options = Annotated[dict[str, Any], AfterValidator(_json_ready)]

as_volumes = BeforeValidator(_volumes)
as_list = BeforeValidator(_listed)
as_dependency = BeforeValidator(_dependency)
