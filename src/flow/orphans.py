"""What costs money at a provider that rents machines out, and whose it is: of tasks here, of others, of nobody."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flow.errors import FlowError, ResourceNotFoundError
from flow.mounts import VOLUME
from flow.providers.rental import Rental
from flow.providers.rented import Rented

if TYPE_CHECKING:
    from flow.client import Flow
    from flow.machines import Volume

BID, STORE = "bid", "volume"
_HAND, _OTHER = "made by hand, or by another program", "of another Flow home: {}"


@dataclass(frozen=True, slots=True)
class Orphan:
    """Something that is paid for, and that no unfinished task of this home owns.

    whose: for the user. is_ours: it was made for a task of this home, which does not need it any more.
    """

    kind: str
    orphan_id: str
    name: str
    provider: str
    whose: str
    is_ours: bool
    created: float | None
    price_per_hour: float | None  # US dollars; None: not known
    rental: Rental | None = None


def renting(client: Flow) -> list[Rented]:
    """The providers where this client may have something that costs money."""
    names = dict.fromkeys([client.provider().name, *(name for name, _ in client.held())])
    return [one for name in names if isinstance(one := client.provider(name), Rented)]


def rentals(client: Flow) -> list[tuple[Rental, str]]:
    """Everything that costs money now, or will when it goes on, with whose it is where no task here needs it."""
    return [one for provider in renting(client) for one in _rentals(client, provider)]


def paid_for(client: Flow, providers: Mapping[str, str]) -> set[str]:
    """Tasks for which something is rented, or may be. providers: those of the tasks that ended, by task."""
    found = {task_id for _, task_id in client.held()}
    for name in set(providers.values()):
        its = [task_id for task_id, of in providers.items() if of == name]
        try:
            provider = client.provider(name)
            if isinstance(provider, Rented) and _kept(client, its):
                found |= {one.name for one in provider.bills()}
        except FlowError as error:  # also where its profile was removed
            if kept := _kept(client, its):
                client.notes.append(f"tasks with `--keep` stay, as what they cost is not known: {error.message}")
                found |= kept
    return found


def orphans(client: Flow) -> list[Orphan]:
    """Rented machines, then volumes that nothing is attached to."""
    providers = renting(client)
    found = [one for provider in providers for one in _machines(client, provider)]
    return found + [one for provider in providers for one in _volumes(client, provider)]


def end(client: Flow, orphan: Orphan) -> None:
    """For good. Raises FlowError where that does not work, and nobody is to think it did."""
    provider = client.provider(orphan.provider)
    if orphan.rental and isinstance(provider, Rented):
        provider.give_back(orphan.rental)
    elif provider.volumes:
        provider.volumes.delete(orphan.orphan_id)


def _machines(client: Flow, provider: Rented) -> Iterator[Orphan]:
    for rental, whose in _rentals(client, provider):
        if whose:
            yield Orphan(
                BID,
                rental.rental_id,
                rental.name,
                provider.name,
                whose,
                rental.home_id == provider.home_id and whose != _KEPT,
                rental.created,
                rental.price_per_hour,
                rental,
            )


def _rentals(client: Flow, provider: Rented) -> Iterator[tuple[Rental, str]]:
    """Each with whose it is; "": of a task of this home that has not ended, or for which it is being given back."""
    held = {task_id for _, task_id in client.held()}
    for rental in provider.bills():
        rows = client.records.rows_of([rental.name])
        if rental.home_id != provider.home_id:
            yield rental, _OTHER.format(rental.home_id) if rental.home_id else _HAND
        elif rows and (rental.name in held or not rows[0].state.is_final):
            yield rental, ""
        else:
            yield rental, _why_left(client, rental)


_KEPT = "kept, as its task was run with `--keep`"


def _why_left(client: Flow, rental: Rental) -> str:
    """Of a task of ours that does not need it."""
    with suppress(ResourceNotFoundError):
        return _KEPT if client.records.get(rental.name).plan.keep else "its task has ended"
    return "its task is not on record any more"


def _kept(client: Flow, task_ids: Iterable[str]) -> set[str]:
    """Those that were run to keep their machines."""
    found = set()
    for task_id in task_ids:
        with suppress(FlowError):  # a damaged record
            if client.records.get(task_id).plan.keep:
                found.add(task_id)
    return found


def _volumes(client: Flow, provider: Rented) -> Iterator[Orphan]:
    there = [one for one in provider.volumes.list() if not one.used_by] if provider.volumes else []
    users = _users(client, provider.name) if there else {}
    for volume in there:
        is_awaited, whose, is_ours = users.get(volume.volume_id, (False, "nobody's: no task here has had it", False))
        if not is_awaited:
            yield _orphan(provider.name, volume, whose, is_ours=is_ours)


def _orphan(provider: str, volume: Volume, whose: str, *, is_ours: bool) -> Orphan:
    return Orphan(STORE, volume.volume_id, volume.name, provider, whose, is_ours, volume.created, None)


def _users(client: Flow, provider: str) -> dict[str, tuple[bool, str, bool]]:
    """By volume: whether a task that has not ended is to have it, whose it is else, and if it was to go with a task."""
    found: dict[str, tuple[bool, str, bool]] = {}
    for row in reversed(client.records.rows()):  # the newest has the last word
        if row.provider != provider:
            continue
        with suppress(ResourceNotFoundError):
            mounts = client.records.get(row.task_id).plan.mounts
            had = {one.source: one.ephemeral for one in mounts if one.kind == VOLUME}
            for volume_id, is_ours in (dict.fromkeys(client.records.mounted(row.task_id), False) | had).items():
                was_awaited = found.get(volume_id, (False,))[0]
                whose = f"of `{row.task_id}`, with which it was to go" if is_ours else f"`{row.task_id}` had it"
                found[volume_id] = (was_awaited or not row.state.is_final, whose, is_ours)
    return found
