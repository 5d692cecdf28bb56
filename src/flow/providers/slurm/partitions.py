"""What `sinfo` says of partitions -> offers, smallest first."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from flow.errors import ValidationError
from flow.gpus import Gpu, parse_gpu
from flow.machines import Offer

_GPU = re.compile(r"gpu(?::(?P<kind>[^:(,]+))?:(?P<count>\d+)")
_DEAD = ("down", "drain", "fail", "maint", "unk", "no_respond", "power", "future")


@dataclass
class _Nodes:
    """Nodes of a partition that are alike."""

    partition: str
    is_default: bool
    gpus: tuple[tuple[str, int], ...]
    cpus: int
    memory_gb: float
    count: int = field(default=0)


def offers_of(sinfo: str, gpu: Gpu | None, *, only: object = None) -> list[Offer]:
    """The offers in what `slurm_login.sinfo` told; `only`: the one partition that is looked at.

    A machine's type is its GPUs as Slurm calls them; its region is the partition, "" where that is the default one.
    """
    found: list[tuple[tuple[object, ...], Offer]] = []
    for nodes in _nodes(sinfo):
        if only and nodes.partition != only:
            continue
        wanted: list[tuple[str, Gpu | None]] = [("cpu", None)] if gpu is None else []
        for name, most in nodes.gpus:
            if gpu is None or gpu.kind in (_kind(name), name, "gpu"):
                wanted += [(str(Gpu(name, count)), Gpu(_kind(name), count)) for count in range(1, most + 1)]
        for instance_type, one in wanted:
            offer = Offer(
                "slurm", instance_type, one, nodes.cpus, nodes.memory_gb, None,
                region=None if nodes.is_default else nodes.partition, available=nodes.count,
            )  # fmt: skip
            size = ((one and one.count) or 0, not nodes.is_default, nodes.cpus, nodes.partition, offer.instance_type)
            found.append((size, offer))
    return [offer for _, offer in sorted(found, key=lambda one: one[0])]


def _nodes(sinfo: str) -> list[_Nodes]:
    alike: dict[tuple[object, ...], _Nodes] = {}
    for line in sinfo.splitlines():
        partition, gres, cpus, memory, count, state = line.split("|")[:6]
        gpus = tuple((found["kind"] or "gpu", int(found["count"])) for found in _GPU.finditer(gres))
        key = (partition, gpus, cpus, memory)
        nodes = alike.setdefault(
            key,
            _Nodes(
                partition.rstrip("*"), partition.endswith("*"), gpus, int(cpus.rstrip("+")),
                round(int(memory.rstrip("+")) / 1024, 1),
            ),
        )  # fmt: skip
        if not state.startswith(_DEAD):
            nodes.count += int(count)
    return list(alike.values())


def _kind(name: str) -> str:
    """A GPU's type in Slurm (`tesla_v100`, `nvidia_a100`) as we spell it, where it is one that we can read."""
    try:
        return parse_gpu(name).kind
    except ValidationError:
        return name
