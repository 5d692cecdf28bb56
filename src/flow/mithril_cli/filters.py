"""`--field value` of a list: what the server is asked for, and what is looked at again when it has answered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from flow.cli import output
from flow.cli.group import UsageError
from flow.errors import did_you_mean
from flow.mithril_cli.lookup import Lookup, is_pattern
from flow.mithril_cli.resources import REFERENCES, STATES, Resource

Row = Mapping[str, Any]
Wanted = dict[str, list[str]]  # field -> any of these

_NOTHING = ("", "none", "null")


def read_filters(resource: Resource, words: Sequence[str]) -> Wanted:
    """`--status Open,Paused --name=train` -> {"status": ["Open", "Paused"], "name": ["train"]}. Raises UsageError."""
    wanted: Wanted = {}
    left = list(words)
    while left:
        option, equals, value = left.pop(0).partition("=")
        see = f"see `mithril {resource.name} list --help`"
        if not option.startswith("--") or option == "--":
            raise UsageError(f"`{option}` is no filter", suggestions=[f"write it as `--name {option}`", see])
        if not equals and (not left or left[0].startswith("--")):
            raise UsageError(f"`{option}` has no value", suggestions=[f"write it as `{option} VALUE`", see])
        name = option[2:].replace("-", "_")
        wanted.setdefault(name, []).extend((value if equals else left.pop(0)).split(","))
    if resource.needs and resource.needs not in wanted:
        option = "--" + resource.needs.replace("_", "-")
        raise UsageError(f"missing `{option}`", suggestions=[f"name one or several: `{option} NAME,NAME`"])
    return wanted


def chosen(lookup: Lookup, resource: Resource, wanted: Wanted) -> Iterator[Row]:
    """The rows that have one of the values of each field. Raises UsageError for a field that there is not."""
    asked = {name: _asked(lookup, resource, name, words) for name, words in wanted.items()}
    query = {
        parameter: words if name in resource.plural.split() else words[0]
        for name, words in asked.items()
        if (parameter := _parameter(resource, name, words))
    }
    kept = {name: words for name, words in asked.items() if name not in resource.parameters.split()}
    known = set(resource.fields.split())
    for row in lookup.rows(resource, **query):
        _check(kept, known | row.keys(), resource)
        known |= row.keys()
        if all(_holds(_value(row, name), words) for name, words in kept.items()):
            yield row
    _check(kept, known, resource)


def _asked(lookup: Lookup, resource: Resource, name: str, words: Sequence[str]) -> list[str]:
    """The values as the API has them: ids for names, states as they are written."""
    if name == "status" and resource.name in STATES:
        return [_state(STATES[resource.name], word) for word in words]
    referred = REFERENCES.get(name) if name in resource.fields.split() else None
    if referred is None:
        return list(words)
    return [fid for word in words for fid in ([word] if word.lower() in _NOTHING else lookup.ids(referred, word))]


def _state(states: Iterable[str], word: str) -> str:
    found = next((one for one in states if one.lower() == word.lower()), None)
    if found is None:
        meant = did_you_mean(word.capitalize(), states) or [f"there are {', '.join(states)}"]
        output.note(f"no status `{word}` is known: {meant[0]}")
    return found or word


def _parameter(resource: Resource, name: str, words: Sequence[str]) -> str | None:
    """What to ask the server for, if it can look for these values."""
    if name in resource.parameters.split():
        return name
    plain = all(word.lower() not in _NOTHING and not is_pattern(word) for word in words)
    if not plain or (len(words) > 1 and name not in resource.plural.split()):
        return None
    if name == "status" and words[0] not in STATES.get(resource.name, ()):
        return None
    return resource.filters.get(name)


def _check(wanted: Mapping[str, object], known: Iterable[str], resource: Resource) -> None:
    for name in wanted:
        if name.partition(".")[0] not in known:
            options = ["--" + one.replace("_", "-") for one in sorted(known)]
            option = "--" + name.replace("_", "-")
            raise UsageError(
                f"{resource.many} have no field `{option}`",
                suggestions=did_you_mean(option, options) or [f"the fields are {', '.join(options)}"],
            )


def _value(row: Row, name: str) -> Any:
    """Of a field, or of one within it: `launch_specification.volumes`."""
    value: Any = row
    for step in name.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def _holds(value: Any, words: Sequence[str]) -> bool:
    if isinstance(value, list) and value:
        return any(_holds(one, words) for one in value)
    return any(_is(value, word) for word in words)


def _is(value: Any, word: str) -> bool:
    if value is None or value in ([], {}):
        return word.lower() in _NOTHING
    if isinstance(value, bool):
        return word.lower() == str(value).lower()
    text = str(value)
    if isinstance(value, (int, float)) or text.startswith("$"):
        return _number(text) == _number(word)
    low = text.lower()
    return (
        text == word
        or fnmatchcase(text, word)
        or (low.startswith("status_") and low.removeprefix("status_") == word.lower())
    )


def _number(text: str) -> float | str:
    try:
        return float(text.replace("$", "").replace(",", ""))
    except ValueError:
        return text
