"""`flow orphans`: what costs money and is of no task that runs here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from flow.cli import output, times
from flow.cli.confirm import confirmed
from flow.cli.group import FlowCommand
from flow.cli.output import Column
from flow.errors import FlowError, ResourceNotFoundError

if TYPE_CHECKING:
    from flow.client import Flow
    from flow.orphans import Orphan

_COLUMNS = (
    Column("ID"),
    Column("KIND"),
    Column("NAME", least=8),
    Column("$/H", right=True),
    Column("AGE", right=True),
    Column("WHOSE", least=12),
)


@click.command(cls=FlowCommand)
@click.argument("names", nargs=-1, metavar="[ID…]")
@click.option("--provider", metavar="NAME", help="At this provider.")
@click.option("-y", "--yes", is_flag=True, help="End those that tasks of this home have left, or each ID, unasked.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def orphans(names: tuple[str, ...], *, provider: str | None, yes: bool, as_json: bool) -> int:
    """List bids, and volumes that nothing is attached to, of no unfinished task of this home; end each ID.

    With `--yes` alone only what tasks of this home have left is ended: volumes that went with them, and bids. What is
    of somebody else, or holds data to be kept, is ended only when named.

    Example:
      flow orphans --yes
    """
    from flow.client import Flow
    from flow.orphans import orphans as find

    client = Flow(provider=provider)
    found = find(client)
    output.notes(client.notes)
    chosen = [_named(client, found, name) for name in names] if names else [one for one in found if yes and one.is_ours]
    shown = chosen if names else found
    if as_json:
        output.print_json({"orphans": [_document(one, is_ended=one in chosen) for one in shown]})
    elif shown:
        click.echo("\n".join(output.table(_COLUMNS, [_row(one) for one in shown])))
    else:
        click.echo("No orphans found")
    if not chosen:
        if any(one.is_ours for one in found):
            output.hint("`flow orphans --yes` ends what tasks of this home have left")
        elif found:
            output.hint(f"each of these is ended only when it is named: `flow orphans {found[0].name}`")
        return 0
    if not confirmed(f"End {len(chosen)} of them for good?", yes=yes):
        return 1
    return _end(client, chosen)


def _end(client: Flow, chosen: Sequence[Orphan]) -> int:
    """What cannot be ended does not spare the others."""
    from flow.orphans import end

    code = 0
    for one in chosen:
        try:
            end(client, one)
            output.note(f"`{one.orphan_id}` ({one.name}) is gone")
        except FlowError as error:
            output.note(f"`{one.orphan_id}` ({one.name}) is still there: {error.message}")
            code = 1
    return code


def _named(client: Flow, found: Sequence[Orphan], name: str) -> Orphan:
    """By its id or its name, which for a bid of a task is the id of that; or by what else means the task."""
    by_name = {word: one for one in reversed(found) for word in (one.name, one.orphan_id)}
    with suppress(FlowError, KeyError):
        return by_name.get(name) or by_name[client.get_task(name, refresh=False).task_id]
    raise ResourceNotFoundError(f"no orphan `{name}`", suggestions=["list them with `flow orphans`"])


def _row(orphan: Orphan) -> tuple[str, ...]:
    return (
        orphan.orphan_id,
        orphan.kind,
        orphan.name,
        output.NOTHING if orphan.price_per_hour is None else f"{orphan.price_per_hour:.2f}",
        times.age(time.time() - orphan.created) if orphan.created else output.NOTHING,
        orphan.whose,
    )


def _document(orphan: Orphan, *, is_ended: bool) -> dict[str, object]:
    return {
        "kind": orphan.kind,
        "id": orphan.orphan_id,
        "name": orphan.name,
        "provider": orphan.provider,
        "whose": orphan.whose,
        "is_ours": orphan.is_ours,
        "price_per_hour": orphan.price_per_hour,
        "created": None if orphan.created is None else times.iso(orphan.created),
        "to_end": is_ended,
    }
