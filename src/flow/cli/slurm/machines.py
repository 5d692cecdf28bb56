"""The machines of the default provider, as Slurm's commands list partitions and nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import click

from flow.cli.slurm.jobs import nodes_here
from flow.providers import SlurmCommands

if TYPE_CHECKING:
    from flow.client import Flow
    from flow.machines import Offer


class Machines(NamedTuple):
    """A line: machines of one kind. `available`: how many could be had; None where that is not known."""

    partition: str
    cpus: float
    memory_mb: int
    gpu: str
    available: int | None
    names: str

    @property
    def shown(self) -> str:
        """How many."""
        return str(self.available or 0)

    @property
    def state(self) -> str:
        """Slurm's word."""
        return "idle" if self.available else "n/a"


def machines(client: Flow) -> list[Machines]:
    """Those of the default provider; on this machine it is one, with all its GPUs."""
    provider = client.provider()
    offers = provider.offers()
    if provider.capabilities.same_machine and offers:
        most = max(offers, key=lambda one: (one.gpu.count or 0) if one.gpu else 0)
        return [_line(most, nodes_here(1))]
    return [_line(one, one.instance_type) for one in offers]


def ask_cluster(client: Flow, words: Sequence[str]) -> int | None:
    """Have Slurm's own command answer where the default provider is a cluster: its exit code; None where it is none."""
    provider = client.provider()
    if not isinstance(provider, SlurmCommands):
        return None
    code, out, err = provider.call_slurm(words)
    click.echo(out, nl=False)
    click.echo(err, nl=False, err=True)
    return code


def _line(offer: Offer, names: str) -> Machines:
    gpu = f"gpu:{offer.gpu.kind}:{offer.gpu.count}" if offer.gpu else ""
    partition = offer.region or offer.provider
    return Machines(partition, offer.cpus, round(offer.memory_gb * 1024), gpu, offer.available, names)
