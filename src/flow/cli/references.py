"""TASK on a command line: the argument, and its completion from the index, without a provider or the client."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

NEWEST = 50  # tasks offered for completion


def completed_tasks(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Ids and names of the newest tasks that begin with what was typed; the newest of each name alone."""
    from click.shell_completion import CompletionItem

    found: dict[str, CompletionItem[str]] = {}
    with contextlib.suppress(Exception):  # nothing may be printed into the line that the user is typing
        from flow.record import Records
        from flow.settings import flow_home

        for row in Records(flow_home()).rows(limit=NEWEST):
            for word, help_text in ((row.name, row.task_id), (row.task_id, f"{row.state} {row.name}")):
                if word and word.startswith(incomplete):
                    found.setdefault(word, CompletionItem(word, help=help_text))
    return list(found.values())


def task_argument(name: str = "reference", **kwargs: Any) -> Callable[[Any], Any]:
    """The TASK argument of a command: an id, a unique beginning of one, a name, `:N` or `@last`."""
    kwargs.setdefault("metavar", "TASK")
    return click.argument(name, shell_complete=completed_tasks, **kwargs)
