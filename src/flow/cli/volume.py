"""`flow volume`: storage that outlives tasks."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

import click

from flow.cli import output, times
from flow.cli.confirm import confirmed
from flow.cli.group import Entry, FlowCommand, TaskGroup
from flow.cli.output import Column

if TYPE_CHECKING:
    from flow.machines import Volume

_COLUMNS = (
    Column("VOLUME"),
    Column("NAME", least=8),
    Column("SIZE", right=True),
    Column("INTERFACE"),
    Column("REGION"),
    Column("$/MONTH", right=True),
    Column("AGE", right=True),
    Column("USED BY", least=12),
)

_provider = click.option("--provider", metavar="NAME", help="Of this provider.")
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")

volume = TaskGroup(
    {
        "create": Entry("flow.cli.volume:create", "Make a volume.", "Volumes"),
        "list": Entry("flow.cli.volume:list_", "List the volumes, newest first.", "Volumes"),
        "info": Entry("flow.cli.volume:info", "Everything known about one volume.", "Volumes"),
        "delete": Entry("flow.cli.volume:delete", "Remove a volume with all that is in it.", "Volumes"),
    },
    {"add": "create", "new": "create", "ls": "list", "show": "info", "rm": "delete", "remove": "delete"},
    name="volume",
    help="Make, list and remove volumes: storage that outlives tasks.",
    example="flow volume create datasets --size-gb 100",
)


@click.command("create", cls=FlowCommand)
@click.argument("name")
@click.option("--size-gb", type=click.IntRange(min=1), required=True, metavar="GB", help="How much it is to hold.")
@click.option(
    "--interface",
    type=click.Choice(["block", "file"]),
    default="block",
    help="`block`: for one task at a time (default); `file`: shared.",
)
@click.option("--region", metavar="REGION", help="Where it is to be.")
@_provider
@_json
def create(name: str, *, size_gb: int, interface: str, region: str | None, provider: str | None, as_json: bool) -> int:
    """Make the volume NAME, empty.

    Example:
      flow volume create datasets --size-gb 100
    """
    from flow.client import Flow

    client = Flow(provider=provider)
    made = client.create_volume(size_gb, name, interface=interface, region=region)
    output.notes(client.notes)
    if as_json:
        output.print_json(_document(made))
        return 0
    parts = (made.volume_id, made.name, f"{made.size_gb} GB", made.interface, made.region, _cost(made))
    click.echo(output.GAP.join(part for part in parts if part))
    output.hint(f"have a task see it at /data: `volumes: {{/data: {made.name}}}`")
    return 0


@click.command("list", cls=FlowCommand)
@_provider
@_json
def list_(*, provider: str | None, as_json: bool) -> int:
    """List the volumes, newest first; `:1` is the first of them from then on.

    Example:
      flow volume list
    """
    from flow.client import Flow

    client = Flow(provider=provider)
    found = client.volumes()
    client.save_volume_listing(found)
    output.notes(client.notes)
    if as_json:
        output.print_json({"volumes": [_document(one) for one in found]})
    elif found:
        click.echo("\n".join(output.table(_COLUMNS, [_row(one) for one in found])))
    else:
        click.echo("No volumes found")
    return 0


@click.command("info", cls=FlowCommand)
@click.argument("reference", metavar="VOLUME")
@_provider
@_json
def info(reference: str, *, provider: str | None, as_json: bool) -> int:
    """Show everything known about VOLUME: an id, a name, or `:1` of the last list.

    Example:
      flow volume info datasets
    """
    from flow.client import Flow

    client = Flow(provider=provider)
    found = client.get_volume(reference)
    output.notes(client.notes)
    if as_json:
        output.print_json(_document(found))
        return 0
    titles = [*(column.title.lower() for column in _COLUMNS), "folder"]
    facts = zip(titles, (*_row(found), found.folder or output.NOTHING), strict=True)
    click.echo("\n".join(f"{name:<9}  {text}" for name, text in facts if text != output.NOTHING))
    return 0


@click.command("delete", cls=FlowCommand)
@click.argument("reference", metavar="VOLUME")
@_provider
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def delete(reference: str, *, provider: str | None, yes: bool) -> int:
    """Remove VOLUME with all that is in it, for good. One that a task uses stays.

    Example:
      flow volume delete datasets
    """
    from flow.client import Flow

    client = Flow(provider=provider)
    found = client.get_volume(reference)
    if not confirmed(f"Delete the volume `{found.name}` ({found.size_gb} GB) and all that is in it?", yes=yes):
        return 1
    client.delete_volume(found.volume_id)
    click.echo(f"{found.volume_id}  {found.name}  deleted")
    return 0


def _row(volume: Volume) -> tuple[str, ...]:
    return (
        volume.volume_id,
        volume.name,
        f"{volume.size_gb} GB",
        volume.interface,
        volume.region or output.NOTHING,
        _cost(volume).partition("/")[0].lstrip("$") or output.NOTHING,
        times.age(time.time() - volume.created) if volume.created else output.NOTHING,
        ", ".join(volume.used_by) or output.NOTHING,
    )


def _cost(volume: Volume) -> str:
    rate = output.price(volume.price_per_month)
    return f"{rate}/month" if rate else ""


def _document(volume: Volume) -> dict[str, object]:
    return {**dataclasses.asdict(volume), "created": None if volume.created is None else times.iso(volume.created)}
