"""Bodies and queries, looked at as strictly as the server's framework does: every mistake at once, a list for 422."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.support.mithril_cloud.clock import parse_stamp

Json = dict[str, Any]
NAME = r"[a-z]([-a-z0-9]*[a-z0-9])?"


class RefusedError(Exception):
    """An answer that is not what was asked for; `detail` as the framework has it."""

    def __init__(self, status: int, detail: Any) -> None:
        super().__init__(status, detail)
        self.status, self.detail = status, detail


class WrongValueError(Exception):
    """One value; `kind` is the framework's word for it."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(kind, text)
        self.kind, self.text = kind, text


Parse = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Field:
    """What is expected; a field without `needed` may be missing, or null, and is then `default`."""

    parse: Parse
    needed: bool = True
    default: Any = None


def read_fields(given: Any, fields: Mapping[str, Field], where: str = "body") -> Json:
    """Every field by its name; others are ignored. Raises RefusedError with 422."""
    mistakes: list[Json] = []
    found = _read(given, fields, [where], mistakes)
    if mistakes:
        raise RefusedError(422, mistakes)
    return found


def _read(given: Any, fields: Mapping[str, Field], path: list[str], mistakes: list[Json]) -> Json:
    if not isinstance(given, dict):
        mistakes.append({"loc": path, "msg": "value is not a valid dict", "type": "type_error.dict"})
        return {}
    found = {}
    for name, one in fields.items():
        loc = [*path, name]
        value = given.get(name)
        if name not in given and one.needed:
            mistakes.append({"loc": loc, "msg": "field required", "type": "value_error.missing"})
        elif value is None and not one.needed:
            found[name] = one.default
        elif isinstance(one.parse, Inside):
            found[name] = _read(value, one.parse.fields, loc, mistakes)
        else:
            try:
                found[name] = one.parse(value)
            except WrongValueError as error:
                mistakes.append({"loc": loc, "msg": error.text, "type": error.kind})
    return found


@dataclass(frozen=True, slots=True)
class Inside:
    """An object in an object."""

    fields: Mapping[str, Field]

    def __call__(self, value: Any) -> Any:
        raise NotImplementedError


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise WrongValueError("type_error.str", "str type expected")
    return value


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise WrongValueError("type_error.bool", "value could not be parsed to a boolean")
    return value


def texts(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise WrongValueError("type_error.list", "value is not a valid list")
    return [text(one) for one in value]


def moment(value: Any) -> float:
    try:
        return parse_stamp(text(value))
    except ValueError:
        raise WrongValueError("value_error.datetime", "invalid datetime format") from None


def price(value: Any) -> int:
    """In cents, as `$25.60`; nothing else, be it a number or without the dollar sign."""
    if not re.fullmatch(r"\$\d[\d,]*\.\d{2}", text(value)):
        raise WrongValueError("value_error.str.regex", r'string does not match regex "^\$\d+\.\d{2}$"')
    return int(re.sub(r"\D", "", value))


def one_of(*words: str) -> Parse:
    def parse(value: Any) -> str:
        if value not in words:
            listed = ", ".join(f"'{word}'" for word in words)
            raise WrongValueError("type_error.enum", f"value is not a valid enumeration member; permitted: {listed}")
        return str(value)

    return parse


def integer(least: int, most: int | None = None, *, written: bool = False) -> Parse:
    """`written` as a word, as in a query."""

    def parse(value: Any) -> int:
        if written and re.fullmatch(r"-?\d+", str(value)):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise WrongValueError("type_error.integer", "value is not a valid integer")
        if value < least:
            raise WrongValueError("value_error.number.not_ge", f"ensure this value is greater than or equal to {least}")
        if most is not None and value > most:
            raise WrongValueError("value_error.number.not_le", f"ensure this value is less than or equal to {most}")
        return value

    return parse


def name(value: Any) -> str:
    """The API says it of volumes; here bids are held to it, too."""
    if len(text(value)) > 64:
        raise WrongValueError("value_error.any_str.max_length", "ensure this value has at most 64 characters")
    if not re.fullmatch(NAME, value):
        raise WrongValueError("value_error.str.regex", f'string does not match regex "^{NAME}$"')
    return str(value)
