"""Machines that are rented, as their cloud tells of them, and the ways to them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flow.channel import Channel
from flow.errors import UnreachableError
from flow.machines import Machines
from flow.node import host as program
from flow.providers.ssh.fleet import NEEDS, Fleet
from flow.remote import Remote

_FOLDER = "~/.flow-host"  # for tasks, on each machine


@dataclass(frozen=True, slots=True)
class Machine:
    """One that is rented. target: as ssh takes it, once it can be reached. address: for the task's other machines."""

    name: str
    rank: int
    target: str | None = None
    address: str = ""


@dataclass(frozen=True, slots=True)
class Rental:
    """Machines as their cloud tells of them: of a task of ours, of another client's, or of none (`task_id` None).

    state: UP says no more than that they could be reached, LOST that the cloud calls one of them dead. attempt: the
    first that they were rented for. ended_with: what a machine that paused itself told before.
    """

    rental_id: str
    task_id: str | None
    state: Machines
    name: str = ""
    attempt: int = 1
    plan_hash: str = ""
    home_id: str = ""
    reason: str = ""
    machines: tuple[Machine, ...] = ()
    created: float | None = None
    given: float | None = None  # when the last of its machines was, in seconds since the epoch
    price_per_hour: float | None = None  # US dollars, all machines together
    ended_with: str = ""
    told: Mapping[str, Any] | None = None  # the cloud's own words

    @property
    def has_ended(self) -> bool:
        """Whether its task has, as its machine told before it paused."""
        return self.ended_with in ("completed", "failed")


class RentedFleet(Fleet):
    """Machines by their names at the cloud, as far as they were seen."""

    def __init__(self, home: Path, settings: Mapping[str, object]) -> None:
        super().__init__(home, settings)
        self.ways: dict[str, Channel] = {}

    def dead_seconds(self, name: str) -> float:
        """For how long it has been found dead, this time included."""
        self._note_silence(name)
        return time.time() - (self.silent_since(name) or time.time())

    def note_life(self, name: str) -> None:
        """It is not dead."""
        self._silence(name).unlink(missing_ok=True)

    def hang_up(self, name: str) -> None:
        """End the connections to a machine."""
        if name in self._remotes:
            self._remotes.pop(name).hang_up()
        elif way := self.ways.get(name):
            way.hang_up()
        self.ways.pop(name, None)

    def remote(self, name: str) -> Remote:
        """The machine of that name. Raises UnreachableError where none that can be reached is known by it."""
        if name not in self.ways:
            raise UnreachableError(f"the machine `{name}` cannot be reached yet")
        if name not in self._remotes or self._remotes[name].channel != self.ways[name]:
            self._remotes[name] = Remote(self.ways[name], _FOLDER, program, NEEDS, "the machine's folder")
        return self._remotes[name]
