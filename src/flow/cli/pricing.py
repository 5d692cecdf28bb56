"""`flow pricing`: what machines cost now, and have cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from flow.cli import output, times
from flow.cli.group import FlowCommand
from flow.cli.no_machines import say_nothing
from flow.cli.output import Column

if TYPE_CHECKING:
    from flow.machines import Price

_COLUMNS = (
    Column("TYPE"),
    Column("REGION"),
    Column("$/H", right=True),
    Column("LEAST", right=True),
    Column("FREE", right=True),
    Column("LOW", right=True),
    Column("HISTORY", least=8),
    Column("HIGH", right=True),
)
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 24


@click.command(cls=FlowCommand)
@click.argument("gpu", metavar="GPU|TYPE")
@click.option("--region", metavar="REGION", help="Only there.")
@click.option("--provider", metavar="NAME", help="At this provider.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def pricing(gpu: str, *, region: str | None, provider: str | None, as_json: bool) -> int:
    """Show what machines with GPU, or of TYPE, cost now, the least that may be bid, and what they have cost.

    Example:
      flow pricing 8xh100 --region us-central1-b
    """
    from flow.client import Flow

    client = Flow(provider=provider)
    found = client.prices(gpu, region=region)
    output.notes(client.notes)
    if as_json:
        output.print_json({"prices": [_document(one) for one in found]})
    elif found:
        click.echo("\n".join(output.table(_COLUMNS, [_row(one) for one in found])))
        first = min((one.history[0][0] for one in found if one.history), default=None)
        if first is not None:
            output.note(f"LOW, HISTORY and HIGH go back to {times.age(time.time() - first)} ago")
    else:
        say_nothing(client, "prices", gpu)
    return 0


def plot(points: Sequence[tuple[float, float]], width: int = _WIDTH) -> str:
    """Prices over time as a line of bars, from the lowest to the highest; each holds until the next."""
    if not points:
        return ""
    begin, end = points[0][0], points[-1][0]
    low, high = min(price for _, price in points), max(price for _, price in points)
    bars, at = [], 0
    for column in range(width):
        moment = begin + (end - begin) * column / max(width - 1, 1)
        while at + 1 < len(points) and points[at + 1][0] <= moment:
            at += 1
        share = (points[at][1] - low) / (high - low) if high > low else 0.0
        bars.append(_BARS[round(share * (len(_BARS) - 1))])
    return "".join(bars)


def _row(price: Price) -> tuple[str, ...]:
    costs = [cost for _, cost in price.history]
    return (
        price.offer.instance_type,
        price.offer.region or output.NOTHING,
        _dollars(price.now),
        _dollars(price.least),
        output.NOTHING if price.available is None else str(price.available),
        _dollars(min(costs, default=None)),
        plot(price.history) or output.NOTHING,
        _dollars(max(costs, default=None)),
    )


def _dollars(price: float | None) -> str:
    return output.NOTHING if price is None else f"{price:.2f}"


def _document(price: Price) -> dict[str, object]:
    return {
        "provider": price.offer.provider,
        "region": price.offer.region,
        "instance_type": price.offer.instance_type,
        "type_id": price.offer.type_id,
        "price_per_hour": price.now,
        "least_price_per_hour": price.least,
        "available": price.available,
        "total": price.total,
        "history": [{"at": times.iso(at), "price_per_hour": cost} for at, cost in price.history],
    }
