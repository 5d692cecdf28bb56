"""Questions at a terminal: on stderr, with what holds now as the answer of a bare Enter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import click

from flow.cli import output


class Choice(NamedTuple):
    """One of several answers: what it means to us, how it is called, and what is said of it."""

    value: str
    name: str
    about: str = ""


def choose(
    question: str, choices: Sequence[Choice], default: str | None = None, *, read: Callable[[str], str] = str
) -> str:
    """The value of the choice that the user names, by its number or its name; `read` makes that of other names."""
    width = max(len(one.name) for one in choices)
    for number, one in enumerate(choices, 1):
        output.say(f"  {number}  {output.printable(one.name):{width}}  {output.printable(one.about)}".rstrip())
    shown = next((str(number) for number, one in enumerate(choices, 1) if one.value == default), None)
    while True:
        said = str(click.prompt(question, default=shown, err=True)).strip()
        for number, one in enumerate(choices, 1):
            if said == str(number) or read(said) in (one.name, one.value):
                return one.value
        output.say(f"`{output.printable(said)}` is none of them: type a number from 1 to {len(choices)}")


def ask(question: str, default: str | None = None) -> str:
    """A line of text, "" for none."""
    return str(click.prompt(question, default=default or "", show_default=bool(default), err=True)).strip()


def ask_secret(question: str) -> str:
    """A line that is not shown as it is typed, "" for none."""
    return str(click.prompt(question, default="", show_default=False, hide_input=True, err=True)).strip()
