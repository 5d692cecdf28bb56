"""The options and arguments that the data of a kind of thing makes, and what is sent of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from flow.errors import ResourceNotFoundError, ValidationError
from flow.mithril_cli.lookup import Lookup
from flow.mithril_cli.resources import REFERENCES, Field, Resource
from flow.mithril_cli.values import KINDS


def common_options(resource: Resource, *, with_ids: bool = True) -> list[click.Parameter]:
    """Those of every command, where they mean something."""
    options = [click.Option(["--json", "as_json"], is_flag=True, help="Print the API's JSON, an object a line.")]
    if resource.prefix and with_ids:
        options.insert(0, click.Option(["-q", "--ids"], is_flag=True, help="Print ids only."))
    if resource.of_project:
        options.append(click.Option(["--project"], metavar="NAME", help="Of this project, by name or id."))
    return [*options, click.Option(["--api-url"], metavar="URL", help="Where the API is.")]


def references_argument(resource: Resource) -> click.Parameter:
    """The things that a command is about, by name or id; see `references_of`."""
    word = resource.one.rpartition(" ")[2].upper()
    return click.Argument(["references"], nargs=-1, required=True, metavar=f"{word}...")


def field_option(one: Field) -> click.Option:
    """`--limit-price PRICE` of the field `limit_price`."""
    name = f"--{one.name.replace('_', '-')}"
    if one.kind == "flag":
        return click.Option([f"{name}/--no-{name[2:]}"], default=None, help=one.help)
    metavar = "NAME,NAME" if one.many else "NAME" if one.name in REFERENCES else KINDS[one.kind].metavar
    kind = click.Choice(one.choices, case_sensitive=False) if one.choices else click.STRING
    default: dict[str, Any] = {} if one.default is None else {"default": one.default}
    return click.Option(
        [name], type=kind, required=one.required, metavar=None if one.choices else metavar, help=one.help, **default
    )


def references_of(references: Sequence[str]) -> Iterator[str]:
    """Each once; those of standard input in the place of `-`."""
    words = (word for one in references for word in (sys.stdin.read().split() if one == "-" else [one]))
    return iter(dict.fromkeys(words))


def body_of(lookup: Lookup, fields: Sequence[Field], given: Mapping[str, Any]) -> dict[str, Any]:
    """What is sent, of what was given. Raises ValidationError for a value that is none, naming its option."""
    body: dict[str, Any] = {}
    for one in fields:
        word = given[one.name]
        if word is None:
            continue
        place = body.setdefault(one.inside, {}) if one.inside else body
        place[one.name] = _sent(lookup, one, word, given.get("region"))
    return body


def _sent(lookup: Lookup, one: Field, word: Any, region: str | None) -> Any:
    if isinstance(word, bool) or one.choices:
        return word
    try:
        if one.name not in REFERENCES:
            return KINDS[one.kind].read(word)
        if not one.many:
            return lookup.id(REFERENCES[one.name], word, region=region)
        return [lookup.id(REFERENCES[one.name], part.strip()) for part in word.split(",") if part.strip()]
    except (ValidationError, ResourceNotFoundError) as error:
        raise type(error)(f"`--{one.name.replace('_', '-')}`: {error.message}", suggestions=error.suggestions) from None
