"""`flow offers`: the machines to be had now."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from flow.cli import output, times
from flow.cli.group import FlowCommand
from flow.cli.no_machines import say_nothing
from flow.cli.output import Column
from flow.machines import Offer

if TYPE_CHECKING:
    from flow.client import Flow

_COLUMNS = (
    Column("TYPE"),
    Column("GPU"),
    Column("CPUS", right=True),
    Column("MEMORY", right=True),
    Column("$/H", right=True),
    Column("FREE", right=True),
    Column("WHERE", least=8),
)

_OLD_SECONDS = 2.0


@click.command(cls=FlowCommand)
@click.argument("gpu", required=False, metavar="[GPU]")
@click.option("--region", metavar="REGION", help="Only there.")
@click.option("--provider", metavar="NAME", help="Of this provider.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def offers(gpu: str | None, *, region: str | None, provider: str | None, as_json: bool) -> int:
    """List the machines to be had now, cheapest first; with GPU (or the name of a kind of machine), only those.

    Example:
      flow offers 8xa100
    """
    from flow.client import Flow

    client = Flow(provider=provider)
    found = client.offers(gpu, region=region)
    output.notes(client.notes)
    if as_json:
        output.print_json({"offers": [_document(offer) for offer in found]})
    elif found:
        click.echo("\n".join(output.table(_COLUMNS, [_row(offer) for offer in found])))
        say_age(found)
    else:
        say_nothing(client, "offers", gpu)
        if gpu:
            _say_what_run_does(client, gpu)
    return 0


def say_age(found: Sequence[Offer]) -> None:
    """How old prices are that were not asked for just now."""
    age = max((time.time() - one.seen for one in found if one.seen is not None), default=0.0)
    if age >= _OLD_SECONDS:
        output.note(f"these prices are {times.age(age)} old")


def _say_what_run_does(client: Flow, gpu: str) -> None:
    """Of a GPU that is not there: it may be asked for all the same."""
    used = client.provider()
    if used.capabilities.emulates:
        output.note(f"`flow run -i {gpu}` runs all the same, emulated (`local.strict` refuses this)")
    elif used.capabilities.same_machine:
        output.note(f"`flow run -i {gpu}` is refused: this machine has no such GPU (`local.strict`)")


def _row(offer: Offer) -> tuple[str, ...]:
    known = offer.price_per_hour is not None
    return (
        offer.instance_type,
        str(offer.gpu) if offer.gpu else output.NOTHING,
        f"{offer.cpus:g}",
        f"{offer.memory_gb:.0f} GB",
        f"{offer.price_per_hour:.2f}" if known else output.NOTHING,
        output.NOTHING if offer.available is None else str(offer.available),
        "/".join(part for part in (offer.provider, offer.region) if part),
    )


def _document(offer: Offer) -> dict[str, object]:
    return {
        "provider": offer.provider,
        "region": offer.region,
        "instance_type": offer.instance_type,
        "gpu": str(offer.gpu) if offer.gpu else None,
        "cpus": offer.cpus,
        "memory_gb": offer.memory_gb,
        "price_per_hour": offer.price_per_hour,
        "available": offer.available,
        "seen": None if offer.seen is None else times.iso(offer.seen),
    }
