"""What a user asks of a task that goes on: to wait, to go on, to begin again, to hear a signal."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from flow.errors import FlowError, ValidationError
from flow.machines import Allocation, Node
from flow.providers import Provider, Steering
from flow.record import Records
from flow.status import Want

if TYPE_CHECKING:
    from flow.task import Task

# A signal that comes too late finds another task's folder, if any, and nothing in it; see node/asked.py.
_ASK = (
    'cd {folder} && printf "%s\\n" {line} >> asked && '
    'kill -USR1 "$(sed -n \'s/.*"runner_pid": \\([0-9]*\\).*/\\1/p\' status.json)"'
)


def hold(task: Task, records: Records, provider: Provider) -> None:
    """What `Task.hold` promises."""
    _refuse_ended(task)
    if not provider.allocations([task.task_id]) and records.intent(task.task_id).want is Want.HOLD:
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
    if not is_element:
        task.allocate()


def requeue(task: Task, records: Records, provider: Provider, *, hold: bool) -> None:
    """What `Task.requeue` promises."""
    _refuse_ended(task)
    if not task.plan.may_requeue:
        raise ValidationError(
            f"`{task.task_id}` may not be requeued", suggestions=["it was submitted with `requeue: false`"]
        )
    steering = _steering(provider)
    if not any(one.nodes_up for one in _own(task, provider)):
        raise ValidationError(f"`{task.task_id}` is {task.status}: only what runs is requeued")
    if hold:
        records.set_intent(task.task_id, Want.HOLD)
        steering.hold(task.task_id)
    steering.requeue(task.task_id)


def send_signal(task: Task, provider: Provider, number: int, *, to: str) -> None:
    """What `Task.send_signal` promises."""
    if to not in ("all", "command", "steps") or not 1 <= number <= 64:
        raise ValidationError(f"no signal `{number}` for `{to}`", suggestions=["send 1 to 64 to all, command or steps"])
    _refuse_ended(task)
    running = [(one, node) for one in _own(task, provider) for node in one.nodes_up]
    if not running:
        raise ValidationError(f"`{task.task_id}` is {task.status}: only what runs hears a signal")
    for allocation, node in running:
        _ask(provider, allocation, node, f"signal {number} {to}")


def _ask(provider: Provider, allocation: Allocation, node: Node, line: str) -> None:
    script = _ASK.format(folder=shlex.quote(node.folder), line=shlex.quote(line))
    answer = provider.channel(allocation, node.rank).through(node.beyond).ask(script)
    if answer.returncode:
        text = answer.stderr.decode(errors="replace").strip()
        raise FlowError(f"node {node.rank} of `{allocation.task_id}` did not hear it: {text}")


def _own(task: Task, provider: Provider) -> list[Allocation]:
    """The machines of a task or element, or of all elements of an array."""
    found = provider.allocations([task.task_id])
    return [one for one in found if task.is_array or one.task_id == task.task_id]


def _refuse_ended(task: Task) -> None:
    if task.refresh().status.is_final:
        raise ValidationError(
            f"`{task.task_id}` has ended as {task.status}, which never changes", suggestions=["submit it anew"]
        )


def _steering(provider: Provider) -> Steering:
    if provider.steering is None:
        raise ValidationError(
            f"the {provider.name} provider neither holds nor requeues what it was given",
            suggestions=["cancel the task, and submit it anew"],
        )
    return provider.steering
