"""The machines, as data: what can be had, what is held for a task, what a provider can do. Nouns only."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flow.gpus import Gpu

if TYPE_CHECKING:
    from flow.channel import Channel


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a provider can do. Facts about one machine are on Offer and Node instead."""

    max_nodes: int | None = None  # None: no limit of its own
    boot_bytes: int | None = None  # the longest boot script taken; None: any
    upload_limit_mb: float | None = None  # compressed project, in MB; None: any
    same_machine: bool = False  # tasks run here, as this user: the submitting shell's PATH and the like apply
    region: str | None = None  # where machines are to be, if their task does not say
    price_factor: float = 0.0  # of the current price, for the cap where none is given; 0: there are no caps
    rents: bool = False  # machines that cost money until they are given back
    volumes: bool = False
    containers: bool = False
    shared_folder: bool = False
    ends_itself: bool = False
    reruns_boot_script: bool = False
    arrays: bool = False  # takes an array whole
    dependencies: bool = False  # holds tasks back for others; elsewhere the attendant does
    gathers: bool = False  # several nodes are got one after the other, by `allocate` called again
    moves: bool = False  # what is lost with its machines runs again on others, by `allocate` called for that attempt
    divides_machines: bool = False  # gives a task some CPUs, memory and GPUs: no kind of machine need be named
    emulates: bool = False  # runs an instance type that it does not have on what there is, with a note
    own_numbers: bool = False  # its own commands call tasks by numbers, which `allocate` returns
    retries: bool = False  # starts the next attempt itself, with no client alive


@dataclass(frozen=True, slots=True)
class Offer:
    """One kind of machine that could be had now."""

    provider: str
    instance_type: str
    gpu: Gpu | None
    cpus: float
    memory_gb: float
    price_per_hour: float | None  # US dollars; 0 where machines cost nothing, None where the price is not known
    region: str | None = None
    available: int | None = None  # how many; None: not known
    hosts: tuple[str, ...] = ()  # that have it, where a task may name one of them as its region
    type_id: str = ""  # the provider's own name for the kind, where it has another one
    seen: float | None = None  # when it was found so, in seconds since the epoch; None: just now


@dataclass(frozen=True, slots=True)
class Price:
    """What one kind of machine costs in one region, in US dollars for a machine and hour; None: not known."""

    offer: Offer
    now: float | None
    least: float | None = None  # that may be bid
    available: int | None = None
    total: int | None = None  # machines there, taken or not
    history: tuple[tuple[float, float], ...] = ()  # when, in seconds since the epoch, and the price; oldest first


@dataclass(frozen=True, slots=True)
class Node:
    """One machine of an allocation."""

    rank: int
    instance_id: str
    address: str  # where the task's other nodes reach it
    public_address: str | None = None
    folder: str = ""  # the task folder of this rank and attempt on that machine, absolute
    first_attempt: int = 1  # of those that it had: what lies beside its folder
    beyond: Channel | None = None  # to the machine itself, where the provider's channel only reaches its files


@dataclass(frozen=True, slots=True)
class Volume:
    """Storage that outlives tasks. Its name is unique at its provider."""

    volume_id: str
    name: str
    size_gb: int
    interface: str = "block"  # "block": one task, one machine at a time; "file": shared
    region: str | None = None
    created: float | None = None  # seconds since the epoch
    price_per_month: float | None = None  # US dollars, of the whole volume; 0 where it costs nothing
    used_by: tuple[str, ...] = ()  # tasks that have not ended
    folder: str | None = None  # where its files lie, if that is a folder: on this machine, or as `host:folder`


@dataclass(frozen=True, slots=True)
class Report:
    """A runner's `status.json`, as read. Times are seconds since the epoch by that machine's clock.

    phase: "waiting" (for what `needs` names), "running", "ended".
    cause, once ended: "exit", "timeout", "cancel", "peer" (another rank's end stopped this one), "start" (the command
    could not be started), "requeue" (it is to run again), "lost" (the runner died; written by the provider that found
    it so).
    """

    phase: str
    code: int | None = None
    signal: int | None = None
    cause: str = ""
    reason: str = ""
    needs: tuple[str, ...] = ()
    started: float | None = None
    ended: float | None = None
    ran_seconds: float = 0.0  # by the monotonic clock, of this attempt


class Machines(enum.Enum):
    """What became of an allocation's machines."""

    QUEUED = "queued"  # asked for, none yet
    STARTING = "starting"  # booting, or their runner has not reported yet
    UP = "up"
    PREEMPTED = "preempted"  # taken away, to be given back
    PAUSED = "paused"
    LOST = "lost"  # gone for good before the end; another attempt may follow on others
    SILENT = "silent"  # they cannot be asked now: the task is as it was last seen
    GONE = "gone"  # let go, ended or never had


@dataclass(frozen=True, slots=True)
class Allocation:
    """The machines held for one attempt of one task; with `task_id` None it is billed to us but not ours."""

    task_id: str | None
    attempt: int  # 0: none was started yet
    machines: Machines
    nodes: tuple[Node, ...] = ()  # of machines that are gone: from where what they left can still be read
    reason: str = ""
    created: float | None = None
    price_per_hour: float | None = None
    plan_hash: str = ""
    reports: Mapping[int, Report] = field(default_factory=dict)  # by rank, where the provider holds them already
    partition: str = ""  # where it is queued, if its provider has several such places
    is_ended: bool = False  # its machines told so, and are away: they come back to have it collected
    node_list: str = ""  # all its machines as its provider writes them; a batch script's `nodes` are the first alone

    @property
    def nodes_up(self) -> tuple[Node, ...]:
        """The machines on which it runs now."""
        return self.nodes if self.machines is Machines.UP else ()
