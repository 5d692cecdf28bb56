"""What the cloud knows, and how it says it: one class a kind of thing, and its JSON as the API has it."""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.mithril_cloud.bill import Bill
from tests.support.mithril_cloud.clock import stamp

Json = dict[str, Any]
USER = "user_kfV4CCaapLiqCNlv"
LIVE = ("Open", "Allocated", "Preempting", "Paused")


def new_fid(prefix: str) -> str:
    letters = string.ascii_letters + string.digits
    return f"{prefix}_{''.join(secrets.choice(letters) for _ in range(16))}"


def dollars(cents: float) -> str:
    return f"${cents / 100:,.2f}"


@dataclass(frozen=True, slots=True)
class Project:
    name: str
    created: float
    fid: str = field(default_factory=lambda: new_fid("proj"))

    def json(self) -> Json:
        return {"fid": self.fid, "name": self.name, "created_at": stamp(self.created)}


@dataclass(slots=True)
class ApiKey:
    name: str
    created: float
    expires: float
    deactivated: float | None = None
    fid: str = field(default_factory=lambda: new_fid("apikey"))
    secret: str = field(default_factory=lambda: f"fkey_{secrets.token_hex(20)}")

    def json(self) -> Json:
        return {
            "fid": self.fid,
            "name": self.name,
            "created_at": stamp(self.created),
            "expires_at": stamp(self.expires),
            "deactivated_at": stamp(self.deactivated),
            "snippet": f"{self.secret[:8]}...",
        }


@dataclass(slots=True)
class SshKey:
    name: str
    project: str
    public_key: str
    created: float
    required: bool = False
    fid: str = field(default_factory=lambda: new_fid("sshkey"))

    def json(self) -> Json:
        return {
            "fid": self.fid,
            "name": self.name,
            "project": self.project,
            "public_key": self.public_key,
            "created_at": stamp(self.created),
            "required": self.required,
        }


@dataclass(frozen=True, slots=True)
class InstanceType:
    fid: str
    name: str
    gpus: int
    gpu: str
    memory_gb: int
    cpus: int
    socket: str = "SXM5"
    network: str = "Ethernet"

    def json(self) -> Json:
        return {
            "fid": self.fid,
            "name": self.name,
            "num_cpus": self.cpus,
            "ram_gb": self.cpus * 8,
            "num_gpus": self.gpus,
            "gpu_type": self.gpu,
            "gpu_memory_gb": self.memory_gb,
            "gpu_socket": self.socket,
            "local_storage_gb": 1000 * self.gpus,
            "network_type": self.network,
            "ib_count": 8 if self.network == "InfiniBand" else 0,
            "bridge_count": 0,
        }


@dataclass(frozen=True, slots=True)
class Region:
    name: str
    block: bool = True
    file: bool = True
    block_limit_gb: int = 32_000

    def json(self) -> Json:
        return {
            "id": f"region-{self.name}",
            "name": self.name,
            "block_storage_enabled": self.block,
            "fileshare_storage_enabled": self.file,
            "k8s_enabled": False,
        }


@dataclass(slots=True)
class Volume:
    """`backing` is a file for a block device, a folder for a share."""

    name: str
    project: str
    region: str
    interface: str
    size_gb: int
    created: float
    backing: Path
    deleted: float | None = None
    fid: str = field(default_factory=lambda: new_fid("vol"))

    def json(self, bids: Sequence[str]) -> Json:
        return {
            "fid": self.fid,
            "name": self.name,
            "region": self.region,
            "created_at": stamp(self.created),
            "deleted_at": stamp(self.deleted),
            "capacity_gb": self.size_gb,
            "project": self.project,
            "interface": self.interface,
            "bids": list(bids),
            "reservations": [],
            "attachments": {},
        }


@dataclass(slots=True)
class LaunchSpecification:
    volumes: list[str]
    ssh_keys: list[str]
    startup_script: str | None
    memory_gb: int | None = None

    def json(self) -> Json:
        return {
            "volumes": list(self.volumes),
            "ssh_keys": list(self.ssh_keys),
            "startup_script": self.startup_script,
            "kubernetes_cluster": None,
            "image_version": "imgver_1",
            "memory_gb": self.memory_gb,
        }


@dataclass(slots=True)
class Instance:
    """One of a bid's. `boot_at` is when its machine may begin to boot, None while it should not."""

    bid: str
    name: str
    project: str
    instance_type: str
    region: str
    created: float
    status: str = "STATUS_NEW"
    ssh_destination: str | None = None
    private_ip: str | None = None
    boot_at: float | None = None
    fid: str = field(default_factory=lambda: new_fid("inst"))

    def json(self) -> Json:
        return {
            "fid": self.fid,
            "name": self.name,
            "project": self.project,
            "created_at": stamp(self.created),
            "created_by": USER,
            "instance_type": self.instance_type,
            "region": self.region,
            "bid": self.bid,
            "reservation": None,
            "ssh_destination": self.ssh_destination,
            "private_ip": self.private_ip,
            "status": self.status,
        }


@dataclass(slots=True)
class Bid:
    """`paused` is what its owner asked for, which takes a moment; `notice_ends` is set while it is preempted."""

    name: str
    project: str
    created: float
    limit_cents: int
    quantity: int
    instance_type: str
    region: str
    launch: LaunchSpecification
    status: str = "Open"
    paused: bool = False
    notice_ends: float | None = None
    deactivated: float | None = None
    instances: list[Instance] = field(default_factory=list)
    bill: Bill = field(default_factory=Bill)
    fid: str = field(default_factory=lambda: new_fid("bid"))

    @property
    def is_live(self) -> bool:
        return self.status in LIVE

    def json(self) -> Json:
        return {
            "fid": self.fid,
            "name": self.name,
            "project": self.project,
            "created_by": USER,
            "created_at": stamp(self.created),
            "deactivated_at": stamp(self.deactivated),
            "limit_price": dollars(self.limit_cents),
            "instance_quantity": self.quantity,
            "instance_type": self.instance_type,
            "region": self.region,
            "instances": [one.fid for one in self.instances],
            "launch_specification": self.launch.json(),
            "status": self.status,
        }


@dataclass(slots=True)
class Reservation:
    name: str
    project: str
    instance_type: str
    region: str
    quantity: int
    start: float
    end: float
    paused: bool = False
    fid: str = field(default_factory=lambda: new_fid("res"))

    def json(self, now: float) -> Json:
        status = "Pending" if now < self.start else "Paused" if self.paused else "Active"
        hours = (self.end - self.start) / 3600
        return {
            "fid": self.fid,
            "name": self.name,
            "project": self.project,
            "instance_type": self.instance_type,
            "region": self.region,
            "instance_quantity": self.quantity,
            "status": status if now < self.end else "Ended",
            "start_time": stamp(self.start),
            "end_time": stamp(self.end),
            "instances": [],
            "quoted_price": dollars(290 * hours * self.quantity),
        }
