"""The provider of tasks whose own one is not set up any more: whatever it is asked, it says what is missing."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, NoReturn

from flow.channel import Channel
from flow.errors import ValidationError
from flow.gpus import Gpu
from flow.machines import Allocation, Capabilities, Offer
from flow.plan import Plan
from flow.providers import Option


class Absent:
    """`error` is why it cannot be opened. Everything that would ask it raises that."""

    name: ClassVar[str] = "absent"
    options: ClassVar[tuple[Option, ...]] = ()
    volumes: None = None
    steering: None = None

    def __init__(self, error: ValidationError) -> None:
        self._error = error

    @property
    def why(self) -> str:
        """For the task's reason."""
        return f"not known: {self._error.message}"

    @property
    def capabilities(self) -> Capabilities:
        """None."""
        return Capabilities()

    def offers(self, gpu: Gpu | None = None) -> list[Offer]:
        """Raises ValidationError."""
        self._refuse()

    def allocate(self, plan: Plan, attempt: int = 1) -> int | None:
        """Raises ValidationError."""
        self._refuse()

    def allocations(self, task_ids: Collection[str] | None = None) -> list[Allocation]:
        """Raises ValidationError."""
        self._refuse()

    def release(self, *task_ids: str) -> None:
        """Raises ValidationError."""
        self._refuse()

    def channel(self, allocation: Allocation, rank: int = 0) -> Channel:
        """Raises ValidationError."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise self._error
