"""Mistakes in what a user wrote -> one ValidationError that tells them all, each with its path, place and remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flow.errors import ValidationError, did_you_mean
from flow.masking import MASK, is_secret, masked_text

Location = tuple[str | int, ...]

_LONGEST = 100  # characters of a source line, or of a value, that are shown


@dataclass(frozen=True, slots=True)
class Place:
    """A point in a file; line and column count characters from 1."""

    name: str
    line: int
    column: int
    source: str

    def shown(self, message: str) -> str:
        """`file:line:column: message`, the source line, and a caret; secrets are masked, long lines cut."""
        from_column = max(0, self.column - _LONGEST // 2) if len(self.source) > _LONGEST else 0
        line = masked_text(self.source)[from_column : from_column + _LONGEST]
        # tabs are repeated, so that the caret stands below its character whatever the terminal makes of a tab
        indent = re.sub(r"[^\t]", " ", self.source[from_column : self.column - 1])
        return f"{self.name}:{self.line}:{self.column}: {message}\n    {line}\n    {indent}^"


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong, where, and what to do about it. `of_key`: the name is wrong, not its value."""

    message: str
    advice: tuple[str, ...] = ()
    location: Location = ()
    of_key: bool = False
    place: Place | None = None

    def text(self, *, with_advice: bool) -> str:
        """The mistake as it is told; one line, and the source with a caret where the place is known."""
        message = "; ".join((self.message, *self.advice)) if with_advice else self.message
        return self.place.shown(message) if self.place else message


class MistakesError(ValidationError):
    """Everything that is wrong with one thing; `mistakes` has them one by one."""

    def __init__(self, message: str, *, suggestions: Sequence[str] = (), mistakes: Sequence[Mistake] = ()) -> None:
        super().__init__(message, suggestions=suggestions)
        self.mistakes = tuple(mistakes)

    @classmethod
    def of(cls, mistakes: Sequence[Mistake], what: str) -> MistakesError:
        """The error that tells `mistakes` in their order; `what` names the thing they are in."""
        if len(mistakes) == 1:
            return cls(mistakes[0].text(with_advice=False), suggestions=mistakes[0].advice, mistakes=mistakes)
        told = "\n".join(one.text(with_advice=True) for one in mistakes)
        return cls(f"{len(mistakes)} mistakes in {what}\n{told}", mistakes=mistakes)


def path_text(location: Iterable[str | int]) -> str:
    """`("volumes", 0, "size_gb")` -> `volumes[0].size_gb`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location).removeprefix(".")


def from_pydantic(errors: Iterable[Mapping[str, Any]], fields: Iterable[str]) -> list[Mistake]:
    """What `pydantic.ValidationError.errors()` lists for a model of these `fields`, in our words."""
    mistakes: list[Mistake] = []
    for error in errors:
        location = tuple(error["loc"])
        cause = error.get("ctx", {}).get("error")
        if isinstance(cause, MistakesError):
            mistakes += [_moved(one, location) for one in cause.mistakes]
        elif isinstance(cause, ValidationError):
            mistakes.append(Mistake(_with_path(location, cause.message), cause.suggestions, location))
        elif error["type"] in ("extra_forbidden", "no_such_attribute"):
            mistakes.append(_unknown(location, fields))
        else:
            mistakes.append(_wrong_value(error, location))
    return mistakes


def shown_value(value: object, name: object = "") -> str:
    """A value in backticks, as a message may show it: never a secret, nothing long, a word for what has parts."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple, set, frozenset)):
        return "a list"
    if is_secret(str(name)) and name != "ssh_keys":
        return f"`{MASK}`"
    text = "true" if value is True else "false" if value is False else "null" if value is None else str(value)
    text = masked_text(text)
    return f"`{text if len(text) <= _LONGEST else text[: _LONGEST - 1] + '…'}`"


def _moved(mistake: Mistake, location: Location) -> Mistake:
    """A mistake of a part, told of the whole."""
    message, there, here = mistake.message, path_text(mistake.location), path_text(location + mistake.location)
    if mistake.of_key:
        message = message.replace(f"`{there}`", f"`{here}`", 1)
    else:
        message = here + message.removeprefix(there) if mistake.location else _with_path(location, message)
    return Mistake(message, mistake.advice, location + mistake.location, mistake.of_key)


def _with_path(location: Location, message: str) -> str:
    return f"{path_text(location)}: {message}" if location else message


def _unknown(location: Location, fields: Iterable[str]) -> Mistake:
    advice = did_you_mean(str(location[-1]), fields) or [f"the fields are {', '.join(fields)}"]
    return Mistake(f"unknown field `{path_text(location)}`", tuple(advice), location, of_key=True)


def _wrong_value(error: Mapping[str, Any], location: Location) -> Mistake:
    kind, context = error["type"], error.get("ctx", {})
    name = next((step for step in reversed(location) if isinstance(step, str)), "")
    if kind == "missing":
        return Mistake(f"{path_text(location)} is missing", (f"add `{name}`",), location)
    asked = next((text for start, text in _ASKED if kind.startswith(start)), "")
    numbers = {key: f"{one:,.10g}" if isinstance(one, (int, float)) else one for key, one in context.items()}
    advice = asked.format_map(numbers) if asked else str(error["msg"]).replace("Input should be", "write")
    told = f"{shown_value(error['input'], name)} {_NOT.get(kind, 'is not allowed')}"
    return Mistake(_with_path(location, told), (advice,), location)


# What each kind of pydantic error asks for; the first that the kind starts with.
_ASKED = (
    ("greater_than_equal", "write {ge} or more"),
    ("greater_than", "write more than {gt}"),
    ("less_than_equal", "write {le} or less"),
    ("int", "write a whole number"),
    ("float", "write a number"),
    ("finite_number", "write a number"),
    ("bool", "write `true` or `false`"),
    ("string", "write text"),
    ("list", "write a list"),
    ("dict", "write a mapping"),
    ("model", "write a mapping"),
    ("literal_error", "write {expected}"),
)
_NOT = {
    "greater_than_equal": "is too small",
    "greater_than": "is too small",
    "less_than_equal": "is too large",
    "string_type": "is not text",
    "string_unicode": "is not Unicode text",
    "list_type": "is not a list",
    "dict_type": "is not a mapping",
    "model_type": "is not a mapping",
    "model_attributes_type": "is not a mapping",
    "bool_type": "is neither true nor false",
    "bool_parsing": "is neither true nor false",
    "int_type": "is not a whole number",
    "int_parsing": "is not a whole number",
    "int_from_float": "is not a whole number",
    "float_type": "is not a number",
    "float_parsing": "is not a number",
    "finite_number": "is not a finite number",
}
