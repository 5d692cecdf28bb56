"""What rented machines cost at this moment, as `flow status` tells it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flow.cli import output
from flow.errors import FlowError

if TYPE_CHECKING:
    from flow.client import Flow
    from flow.providers.rental import Rental
    from flow.task import Task

_NAMED = 3  # bids of no task here, told one by one


def rentals(client: Flow) -> list[tuple[Rental, str]]:
    """What is rented, with whose it is where no task here needs it.

    That it cannot be known is a note, and no reason to hide the tasks.
    """
    if not (client.provider().capabilities.rents or client.held()):
        return []
    from flow import orphans

    try:
        return orphans.rentals(client)
    except FlowError as error:
        output.note(f"what is rented, and what it costs, is not known: {error.message}")
        return []


def say_costs(rented: Sequence[tuple[Rental, str]]) -> None:
    """The sum, and what no task here owns."""
    if not rented:
        return
    total = sum(one.price_per_hour or 0.0 for one, _ in rented)
    output.note(f"{_count(len(rented))} at ${total:.2f}/h in all")
    if any(one.price_per_hour is None for one, _ in rented):
        output.note("the price of some of them is not known")
    others = [(one, whose) for one, whose in rented if whose]
    for one, whose in others[:_NAMED]:
        output.note(f"`{one.name}` costs ${one.price_per_hour or 0.0:.2f}/h: {whose}")
    if others:
        output.hint("`flow orphans` lists them, and ends them by name")


def say_kept(task: Task) -> bool:
    """What machines cost that a task has kept after its end; whether there may be any."""
    try:
        told = task.kept_cost()
    except FlowError as error:
        told = f"whether `{task.task_id}` still has the machine that it kept is not known: {error.message}"
    if told:
        output.note(told)
    return bool(told)


def bill_record(rented: Sequence[tuple[Rental, str]]) -> dict[str, object]:
    """The same for `--json`."""
    bids = [{"id": one.rental_id, "name": one.name, "price_per_hour": one.price_per_hour} for one, _ in rented]
    return {"price_per_hour": round(sum(one.price_per_hour or 0.0 for one, _ in rented), 4), "bids": bids}


def _count(bids: int) -> str:
    return "1 bid" if bids == 1 else f"{bids} bids"
