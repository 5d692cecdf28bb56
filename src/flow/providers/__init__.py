"""The contract of a provider: it starts one boot script on N machines and says what became of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Protocol

from flow.channel import Channel
from flow.gpus import Gpu
from flow.machines import Allocation, Capabilities, Offer
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


class Provider(Protocol):
    """Five methods, four attributes; no logs, copying, results or status words: those live once, above."""

    name: ClassVar[str]
    options: ClassVar[tuple[Option, ...]]

    @property
    def capabilities(self) -> Capabilities:
        """What it can do, computed from its settings."""
        ...

    def offers(self, gpu: Gpu | None = None) -> list[Offer]:
        """What could be had now, cheapest first; with `gpu`, only machines that have that kind."""
        ...

    def allocate(self, plan: Plan, attempt: int = 1) -> None:
        """Ask for the plan's machines. Idempotent in (task_id, attempt); returns once the request is durable."""
        ...

    def allocations(self, task_ids: Collection[str] | None = None) -> list[Allocation]:
        """The newest attempt of each task named, or of all, newest task first; elements of an array one by one.

        An array is named by its id or an element's. Unknown ids are left out. The only truth about machines.
        """
        ...

    def release(self, task_id: str, attempt: int | None = None) -> None:
        """Stop paying: the task (array, element) and every process of it ends. Idempotent; unknown ids are fine."""
        ...

    def channel(self, allocation: Allocation, rank: int = 0) -> Channel:
        """How to reach a machine that is up."""
        ...
