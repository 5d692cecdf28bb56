"""Where the output of a task lies: the folders of its attempts, of its nodes or of an array's elements."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import Any

from flow.attempts import attempt_numbers
from flow.channel import Channel
from flow.errors import ProviderError, ValidationError
from flow.log_feeds import Folder
from flow.machines import Allocation, Machines
from flow.plan import Plan
from flow.providers import Provider
from flow.record import Records

MOST_ELEMENTS = 256  # of an array, read at once: each may hold three files open and a MiB


def check_rank(task_id: str, plan: Plan, rank: int | None, *, is_array: bool) -> None:
    """Raises ValidationError where the task has no such node, or the array no such element, or too many at once."""
    elements = plan.elements.indices if is_array and plan.elements else None
    if elements is not None and (plan.nodes > 1 or (rank is None and len(elements) > MOST_ELEMENTS)):
        many = f"{len(elements)} elements" if plan.nodes == 1 else f"elements of {plan.nodes} nodes"
        raise ValidationError(
            f"`{task_id}` is an array of {many}: their output is not shown together",
            suggestions=[f"name an element: `flow logs {task_id}_{elements[0]}`"],
        )
    if rank is None or rank in (range(plan.nodes) if elements is None else elements):
        return
    if elements is None:
        raise ValidationError(f"`{task_id}` has no node `{rank}`", suggestions=[nodes_there_are(plan)])
    raise ValidationError(
        f"`{task_id}` has no element `{rank}`", suggestions=[f"its elements are {elements[0]} to {elements[-1]}"]
    )


def nodes_there_are(plan: Plan) -> str:
    """What to say to who named another node."""
    return f"its nodes are 0 to {plan.nodes - 1}" if plan.nodes > 1 else "it has one node, `0`"


def chosen_folders(
    provider: Provider, records: Records, task_id: str, plan: Plan, choice: dict[str, Any], *, is_array: bool
) -> Callable[[], list[Folder]]:
    """What finds the folders that a choice of lines is read from; its `node` becomes the `rank` of `flow.logs`.

    Raises ValidationError for a choice that cannot be. What it returns raises ProviderError where all that there may be
    is out of reach, unless it is followed.
    """
    tail = choice.get("tail")
    if tail is not None and tail < 0:
        raise ValidationError(f"`tail` is `{tail}`", suggestions=["write a number of lines, 0 or more"])
    rank = choice["rank"] = choice.pop("node", None)
    check_rank(task_id, plan, rank, is_array=is_array)

    if is_array and plan.elements:
        indices = plan.elements.indices if rank is None else (rank,)
        places = [(f"{task_id}_{index}", index, 0) for index in indices]
    else:
        places = [(task_id, node, node) for node in range(plan.nodes)]

    def folders() -> list[Folder]:
        allocations: dict[str | None, Allocation] = {}
        used = provider.capabilities
        is_here = used.same_machine or (used.rents and records.final(task_id))  # it was collected
        if not is_here:
            allocations = {one.task_id: one for one in provider.allocations([task_id])}
        found: list[Folder] = []
        for unit, shown, node in places:
            allocation = allocations.get(unit)
            found += _log_folders(provider, records, unit=unit, shown=shown, node=node, allocation=allocation)
        if not found and not choice.get("follow"):
            check_in_reach(task_id, allocations.values())
            _check_not_paused(task_id, allocations.values())
        return found

    return folders


def check_in_reach(task_id: str, allocations: Iterable[Allocation]) -> None:
    """Raises ProviderError where one of them is on a machine that does not answer."""
    for one in allocations:
        if one.machines is Machines.SILENT:
            raise ProviderError(f"`{task_id}` is out of reach: {one.reason}", suggestions=["try again later"])


def _check_not_paused(task_id: str, allocations: Iterable[Allocation]) -> None:
    for one in allocations:
        if one.machines is Machines.PAUSED:
            hint = f"wait for it: `flow logs {task_id} --follow`"
            raise ProviderError(f"`{task_id}` is paused: {one.reason}", suggestions=[hint])


def _log_folders(
    provider: Provider, records: Records, *, unit: str, shown: int, node: int, allocation: Allocation | None
) -> list[Folder]:
    """Those of one task or element and node that there are by now; `shown`: as which rank."""
    numbers = attempt_numbers(records, unit)
    there: list[Folder] = []
    at = next((each for each in allocation.nodes if each.rank == node), None) if allocation else None
    if allocation and at and (allocation.machines is not Machines.GONE or allocation.attempt not in numbers):
        task, channel = PurePosixPath(at.folder).parents[1], provider.channel(allocation, node)
        starts = range(at.first_attempt, allocation.attempt + 1)
        there = [Folder(number, shown, channel, f"{task}/{number}/{node}") for number in starts]
    # else the machine is this one, or what it left was collected
    here = [number for number in numbers if not there or number < there[0].attempt]
    return [*(Folder(number, shown, Channel(), str(records.folder(unit, number, node))) for number in here), *there]
