"""The contract of a provider: it starts one boot script on N machines and says what became of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from flow.channel import Channel
from flow.gpus import Gpu
from flow.machines import Allocation, Capabilities, Offer, Price, Volume
from flow.plan import Plan


@dataclass(frozen=True, slots=True)
class Option:
    """One setting of a provider: `local.strict` is Option("strict", bool, …) of `local`."""

    name: str
    kind: type
    help: str
    default: object = None
    environment: str = ""  # the variable that sets it
    secret: bool = False


class VolumeStore(Protocol):
    """The volumes of a provider. What an unknown id names raises ResourceNotFoundError."""

    def create(
        self, name: str, size_gb: int, *, interface: str = "block", region: str | None = None, plan: Plan | None = None
    ) -> Volume:
        """Make an empty one. Raises ValidationError where the name is taken, QuotaExceededError where there is no room.

        plan: of the task that it is made for, if it is.

        Made again with the same name, size and interface by who was cut off, it is the same volume.
        """
        ...

    def price_per_month(self, size_gb: int, *, interface: str = "block", region: str | None = None) -> float | None:
        """What such a volume would cost, in US dollars; None where that is not known."""
        ...

    def list(self) -> Sequence[Volume]:
        """All of them, newest first."""
        ...

    def delete(self, volume_id: str) -> None:
        """Remove it with what is in it. Raises ValidationError while a task that has not ended uses it."""
        ...

    def attach(self, volume_id: str, plan: Plan, *, ephemeral: bool = False) -> str:
        """Hold it for the plan's task until that has ended; `ephemeral`: then remove it. Idempotent.

        What the task's machines find it by: the path of a folder or of a device, or a source as of node/sshfs.py.

        Raises ValidationError for a block volume that another task holds which this one does not wait for.
        """
        ...

    def detach(self, volume_id: str, task_id: str) -> None:
        """Hold it no more for the task. Idempotent."""
        ...


class Steering(Protocol):
    """What a provider that queues tasks does with those it was given. But for signals it is idempotent, and durable on
    return.

    Each takes a task, an array or an element; what is unknown or has ended is left alone.
    """

    def hold(self, task_id: str) -> None:
        """Keep what has not started from starting, and what runs from running again."""
        ...

    def resume(self, task_id: str) -> None:
        """Let go of what is held."""
        ...

    def requeue(self, task_id: str) -> None:
        """Stop what runs, and run it again as its next attempt, which is no retry."""
        ...

    def send_signal(self, task_id: str, number: int, *, to: str) -> None:
        """Send it to what runs, on every node: to "all" of the command's group, the "command" alone or its "steps"."""
        ...


@runtime_checkable
class RestartsToMount(Protocol):
    """A provider whose machines get a volume only while they are stopped."""

    def check_volume(self, plan: Plan, volume: Volume) -> None:
        """Raises ValidationError where the task does not run, or may not have the volume."""
        ...

    def add_volume(self, plan: Plan, volume: Volume, begins: Callable[[], None]) -> None:
        """Stop a task that runs, and let it run again on its machines, which then have the volume at `/mnt/<name>`.

        begins: called before anything is done, once it is not refused. Raises as `check_volume` does.
        """
        ...


@runtime_checkable
class SlurmCommands(Protocol):
    """A provider that is a Slurm cluster."""

    def call_slurm(self, words: Sequence[str]) -> tuple[int, str, str]:
        """Call one of Slurm's own commands there: its exit code, what it printed, and on stderr."""
        ...


@runtime_checkable
class Priced(Protocol):
    """A provider whose prices change."""

    def prices(self, offers: Sequence[Offer]) -> list[Price]:
        """What these cost now and have cost, in their order."""
        ...


class Provider(Protocol):
    """Five methods, five attributes; no logs, copying, results or status words: those live once, above."""

    name: ClassVar[str]
    options: ClassVar[tuple[Option, ...]]

    @property
    def capabilities(self) -> Capabilities:
        """What it can do, computed from its settings."""
        ...

    @property
    def volumes(self) -> VolumeStore | None:
        """Where its volumes are kept; None where it has none."""
        ...

    @property
    def steering(self) -> Steering | None:
        """Who holds, requeues and signals its tasks; None where it cannot."""
        ...

    def offers(self, gpu: Gpu | None = None) -> list[Offer]:
        """What could be had now, cheapest first; with `gpu`, only machines that have that kind."""
        ...

    def allocate(self, plan: Plan, attempt: int = 1) -> int | None:
        """Ask for the plan's machines. Idempotent in (task_id, attempt); returns once the request is durable.

        The number by which its own commands know the task, where there is one.
        """
        ...

    def allocations(self, task_ids: Collection[str] | None = None) -> list[Allocation]:
        """The newest attempt of each task named, or of all, newest task first; elements of an array one by one.

        An array is named by its id or an element's. Unknown ids are left out. The only truth about machines.
        """
        ...

    def release(self, *task_ids: str) -> None:
        """Stop paying: each task (array, element) and every process of it ends. Idempotent; unknown ids are fine."""
        ...

    def channel(self, allocation: Allocation, rank: int = 0) -> Channel:
        """How to reach a machine that is up."""
        ...
