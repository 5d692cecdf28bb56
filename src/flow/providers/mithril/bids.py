"""A bid of the API and its instances -> what has been rented; and the words that machines put into their bids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flow.machines import Machines
from flow.providers.mithril.market import dollars, moment
from flow.providers.rental import Machine, Rental
from flow.providers.startup import Mark, read_mark

# How many cents more than the limit that its bid was made with a machine pauses it with, and what that says: the API
# takes no other word.
UNDELIVERED = "undelivered"
PAUSES = {1: "completed", 2: "failed", 3: UNDELIVERED}
_ENDS = {
    "completed": "completed, and not collected yet",
    "failed": "has ended, and was not collected yet",
    UNDELIVERED: "its machine has waited for its code in vain",
}
_OFF = ("STOPPED", "TERMINATED")  # of an instance whose bid is still allocated
_OVER = (*_OFF, "PREEMPTED", "REPLACED", "PAUSED")


def rental_of(
    bid: Mapping[str, Any],
    instances: list[dict[str, Any]],
    prices: Mapping[tuple[str, str], float],
    noted: Callable[[Mapping[str, Any]], str],
) -> Rental:
    """What has been rented by it. prices: dollars an hour, by type and region. noted: what is on record of how its
    machine told that the task has ended, see PAUSES; "" where nothing is."""
    name, made_for = str(bid.get("name")), _mark_of(bid)
    is_task = made_for is not None and made_for.task_id == name
    state, reason = _state(bid, instances)
    instances = [one for one in instances if _word(one) not in _OVER]
    quantity = int(bid.get("instance_quantity") or 1)
    limit = dollars(bid.get("limit_price"))
    current = prices.get((str(bid.get("instance_type")), str(bid.get("region"))))
    price = min((one for one in (current, limit) if one is not None), default=None)
    is_billed = state in (Machines.UP, Machines.STARTING, Machines.PREEMPTED) and bid.get("status") != "Open"
    ended_with = _word_of(bid, state, noted) if is_task else ""
    if ended_with and state is not Machines.UP:
        least = None if current is None else current * quantity
        reason = _ENDS[ended_with] + _until_collected(state, reason, limit_of(bid) * quantity, least)
    machines = [_machine(name, number, one) for number, one in enumerate(sorted(instances, key=_by_name))]
    return Rental(
        str(bid["fid"]),
        name if is_task else None,
        state,
        name=name,
        attempt=made_for.attempt if made_for else 1,
        plan_hash=made_for.plan_hash if made_for else "",
        home_id=made_for.home_id if made_for else "",
        reason=reason,
        machines=tuple(machines),
        created=moment(bid.get("created_at")),
        given=max((at for one in instances if (at := moment(one.get("created_at")))), default=None),
        price_per_hour=price * quantity if price is not None and is_billed else 0.0 if not is_billed else None,
        ended_with=ended_with,
        told=bid,
    )


def limit_of(bid: Mapping[str, Any]) -> float:
    """The limit price that a bid was made with."""
    made_for = _mark_of(bid)
    return int(made_for.words[0]) / 100 if made_for and made_for.words else dollars(bid.get("limit_price")) or 0.0


def volumes_of(rental: Rental) -> list[str]:
    """Those that its bid has, by their ids."""
    return list(((rental.told or {}).get("launch_specification") or {}).get("volumes") or ())


def _state(bid: Mapping[str, Any], instances: list[dict[str, Any]]) -> tuple[Machines, str]:
    """Of a bid's machines; a state that is new to us counts as one that passes."""
    status = "Terminated" if bid.get("deactivated_at") else str(bid.get("status"))
    words = {_word(one) for one in instances if _word(one) not in _OVER}
    known = {
        "Open": (Machines.QUEUED, f"its bid of {bid.get('limit_price')}/h waits for a machine"),
        "Paused": (Machines.PAUSED, "its bid is paused"),
        "Preempting": (Machines.PREEMPTED, "its machine is being taken back"),
        "Terminated": (Machines.GONE, "its bid was ended"),
        "Replaced": (Machines.GONE, "its bid was ended"),
    }
    if status in known or "PREEMPTING" in words:
        return known.get(status, known["Preempting"])
    live = [one for one in instances if _word(one) not in _OVER]
    is_whole = len(live) >= int(bid.get("instance_quantity") or 1)
    if words == {"RUNNING"} and is_whole:
        is_reachable = all(one.get("ssh_destination") for one in live)
        return (Machines.UP, "") if is_reachable else (Machines.STARTING, "its machine boots")
    if "ERROR" in words:
        return Machines.LOST, "its machine has failed, says Mithril"
    if not is_whole and any(_word(one) in _OFF for one in instances):
        return Machines.LOST, "its machine is off, says Mithril"
    return Machines.STARTING, f"its machine is {', '.join(sorted(one.lower() for one in words or {status}))}"


def _word_of(bid: Mapping[str, Any], state: Machines, noted: Callable[[Mapping[str, Any]], str]) -> str:
    """How its machine told that the task has ended, before it paused; "" where it did not."""
    if state in (Machines.LOST, Machines.GONE):
        return ""
    word = _ended_with(bid) or noted(bid)
    return "" if word == UNDELIVERED and state is not Machines.PAUSED else word


def _ended_with(bid: Mapping[str, Any]) -> str:
    """What the machine told as it paused its own bid; "" where somebody else has paused it."""
    now = dollars(bid.get("limit_price")) or 0.0
    return PAUSES.get(round((now - limit_of(bid)) * 100), "")


def _until_collected(state: Machines, reason: str, limit: float, price: float | None) -> str:
    """What a machine whose task has ended waits for."""
    if state not in (Machines.PAUSED, Machines.QUEUED):
        return f"; {reason}"
    if price is None:
        return ""
    if state is Machines.QUEUED or price > limit:
        return f"; waits for a machine (limit ${limit:.2f}, price ${price:.2f})"
    return f"; its machine goes on for that at ${price:.2f}/h"


def _mark_of(bid: Mapping[str, Any]) -> Mark | None:
    return read_mark(str((bid.get("launch_specification") or {}).get("startup_script") or ""))


def _word(instance: Mapping[str, Any]) -> str:
    return str(instance.get("status")).removeprefix("STATUS_")


def _by_name(instance: Mapping[str, Any]) -> tuple[int, str]:
    """In the order of the numbers that end their names, which stay theirs when they move."""
    number = str(instance.get("name", "")).rpartition("-")[2]
    return (int(number) if number.isdigit() else 0, str(instance["fid"]))


def _machine(bid_name: str, place: int, instance: Mapping[str, Any]) -> Machine:
    number = str(instance.get("name", "")).removeprefix(f"{bid_name}-")
    rank = int(number) - 1 if number.isdigit() and int(number) else place
    target = instance.get("ssh_destination")
    return Machine(str(instance["fid"]), rank, str(target) if target else None, str(instance.get("private_ip") or ""))
