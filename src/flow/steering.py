"""What a user asks of a task that goes on: to wait, to go on, to begin again, to hear a signal."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from flow.attend import start_attendant
from flow.errors import ValidationError
from flow.machines import Allocation, Machines
from flow.providers import Provider, Steering
from flow.record import Records
from flow.status import Want

if TYPE_CHECKING:
    from flow.task import Task


def hold(task: Task, records: Records, provider: Provider) -> None:
    """What `Task.hold` promises."""
    was_given = bool(_look(task, provider))
    if not was_given and records.intent(task.task_id).want is Want.HOLD:
        return
    steering = _steering(provider)
    if records.set_intent(task.task_id, Want.HOLD).want is not Want.HOLD:
        raise ValidationError(f"`{task.task_id}` was cancelled")
    steering.hold(task.task_id)


def resume(task: Task, records: Records, provider: Provider) -> None:
    """What `Task.resume` promises."""
    array, is_element = task.task_id.partition("_")[::2]
    was_given = bool(provider.allocations([task.task_id]))
    if is_element and not was_given:
        raise ValidationError(
            f"`{task.task_id}` is an element of an array that is held as a whole",
            suggestions=[f"let all of it start with `flow resume {array}`"],
        )
    if not task.is_held:
        raise ValidationError(f"`{task.task_id}` is not held")
    if records.set_intent(task.task_id, Want.RUN).want is not Want.RUN:
        raise ValidationError(f"`{task.task_id}` was cancelled")
    if was_given and provider.steering:
        provider.steering.resume(task.task_id)
    if not is_element and task.plan.after and not provider.capabilities.dependencies:
        start_attendant(records.home)
    elif not is_element:
        task.allocate()


def requeue(task: Task, records: Records, provider: Provider, *, hold: bool) -> None:
    """What `Task.requeue` promises."""
    found = _look(task, provider)
    if not task.plan.may_requeue:
        raise ValidationError(
            f"`{task.task_id}` may not be requeued", suggestions=["it was submitted with `requeue: false`"]
        )
    steering = _steering(provider)
    _refuse_idle(task, found, "only what runs is requeued")
    if hold:
        records.set_intent(task.task_id, Want.HOLD)
        steering.hold(task.task_id)
    steering.requeue(task.task_id)
    if task.plan.nodes > 1 and provider.capabilities.gathers:
        start_attendant(records.home)


def send_signal(task: Task, provider: Provider, number: int, *, to: str) -> None:
    """What `Task.send_signal` promises."""
    if to not in ("all", "command", "steps") or not 1 <= number <= 64:
        raise ValidationError(f"no signal `{number}` for `{to}`", suggestions=["send 1 to 64 to all, command or steps"])
    found = _look(task, provider)
    steering = _steering(provider)
    _refuse_idle(task, found, "only what runs hears a signal")
    steering.send_signal(task.task_id, number, to=to)


def _look(task: Task, provider: Provider) -> Collection[Allocation]:
    """What the provider has of the task, which has not ended. Raises ValidationError where it has."""
    found = [] if task.status.is_final else provider.allocations([task.task_id])
    if not task.status.is_final:
        task.see(found)
    if task.status.is_final:
        raise ValidationError(
            f"`{task.task_id}` has ended as {task.status}, which never changes", suggestions=["submit it anew"]
        )
    return found


def _refuse_idle(task: Task, found: Collection[Allocation], why: str) -> None:
    own = [one for one in found if task.is_array or one.task_id == task.task_id]
    if not any(one.machines is Machines.UP for one in own):
        raise ValidationError(f"`{task.task_id}` is {task.status}: {why}")


def _steering(provider: Provider) -> Steering:
    if provider.steering is None:
        raise ValidationError(
            f"the {provider.name} provider neither holds, requeues nor signals what it was given",
            suggestions=["cancel the task, and submit it anew"],
        )
    return provider.steering
