"""The market: what stands for sale where, at what price, and who gets it. Second price: nobody pays his own limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


class Wanted(Protocol):
    """A bid, as far as an auction looks at it."""

    limit_cents: int
    quantity: int
    created: float


@dataclass(slots=True)
class Lane:
    """One instance type in one region. Tests set `price_cents`, what others bid, and `capacity` in instances."""

    instance_type: str
    region: str
    price_cents: int
    capacity: int
    minimum_cents: int = 25
    reserved_cents: int = 290
    clearing_cents: int = field(init=False)  # what is paid now
    past: list[tuple[float, int]] = field(init=False)  # since when which price is paid, in order

    def __post_init__(self) -> None:
        self.clearing_cents, self.past = self.price_cents, [(0.0, self.price_cents)]


def settle(bids: Sequence[Wanted], price_cents: int, capacity: int) -> tuple[list[Wanted], int]:
    """Who gets machines, and what all of them pay.

    Whoever bids most is first, then whoever was first. Who does not fit lets nobody behind him pass, and his bid is
    then the price.
    """
    able = [one for one in bids if one.limit_cents >= price_cents]
    winners: list[Wanted] = []
    for one in sorted(able, key=lambda bid: (-bid.limit_cents, bid.created)):
        if one.quantity > capacity:
            return winners, one.limit_cents
        capacity -= one.quantity
        winners.append(one)
    return winners, price_cents


def price_at(lane: Lane, moment: float) -> int:
    """What was paid then."""
    return [cents for begin, cents in lane.past if begin <= moment][-1]
