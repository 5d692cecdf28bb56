"""The kinds of things that Mithril has: where each is, its fields, what can be done to it. Nothing but data.

Source: the API's documentation (docs.mithril.ai).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Field:
    """One field of what is sent. A field of REFERENCES takes names as well as ids.

    kind: one of `values.KINDS`, or "flag". many: a list of such. inside: the object that it is a field of.
    """

    name: str
    help: str
    kind: str = "text"
    required: bool = False
    default: str | None = None
    many: bool = False
    choices: tuple[str, ...] = ()
    inside: str = ""


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of thing. `one` is its name in prose.

    fields, columns: those of a row, and those shown in a table.
    filters: field -> the parameter by which the server filters by it; `plural`: those that take several values.
    parameters: what the server's list takes besides. needs: the filter that it cannot do without.
    together: the field of ids, where one request changes many.
    prefix: how ids begin, "" where there are none. has_get: one can be asked for by its id.
    """

    name: str
    one: str
    path: str
    fields: str
    columns: str
    prefix: str = ""
    of_project: bool = False
    is_paged: bool = False
    has_get: bool = False
    has_delete: bool = False
    query: Mapping[str, object] = field(default_factory=dict)
    filters: Mapping[str, str] = field(default_factory=dict)
    plural: str = ""
    parameters: str = ""
    needs: str = ""
    create: tuple[Field, ...] = ()
    update: tuple[Field, ...] = ()
    together: str = ""
    secrets: str = ""  # fields that are told once, when it is made
    examples: Mapping[str, str] = field(default_factory=dict)

    @property
    def many(self) -> str:
        """Several of them, in prose."""
        return self.one + "s"


_LAUNCH = "launch_specification"
_START = (
    Field("ssh_keys", "Keys to log in with, by name or id.", required=True, many=True, inside=_LAUNCH),
    Field("volumes", "Volumes to attach, by name or id.", default="", many=True, inside=_LAUNCH),
    Field("startup_script", "What root runs at the first boot.", kind="file", inside=_LAUNCH),
    Field("image_version", "Another image than the default.", inside=_LAUNCH),
    Field("memory_gb", "Memory of each machine, where it can be chosen.", kind="count", inside=_LAUNCH),
    Field("kubernetes_cluster", "The cluster to join.", inside=_LAUNCH),
)
_MACHINES = (
    Field("name", "What to call it; machines are called NAME-1 and so on.", required=True),
    Field("instance_type", "Kind of machine, by name or id.", required=True),
    Field("region", "Where.", required=True),
    Field("instance_quantity", "How many machines; by default 1.", kind="count", default="1"),
)

PROJECTS = Resource(
    "projects", "project", "/v2/projects", "fid name created_at", "fid name created_at", prefix="proj_",
)  # fmt: skip
QUOTAS = Resource(
    "quotas", "quota", "/v2/quotas",
    "fid project name product_type instance_type instance_type_name used_quantity total_quantity units",
    "fid name instance_type_name used_quantity total_quantity units",
    prefix="quota_", of_project=True,
)  # fmt: skip
API_KEYS = Resource(
    "api-keys", "API key", "/v2/api-keys",
    "fid name created_at expires_at deactivated_at snippet", "fid name snippet created_at expires_at deactivated_at",
    prefix="apikey_", has_delete=True, secrets="secret",
    create=(
        Field("name", "What to call it.", required=True),
        Field("expires_at", "Until when: a time, or a span as `30d`; a year at most.", "time", required=True),
    ),
    examples={"create": "--name ci --expires-at 30d"},
)  # fmt: skip
SSH_KEYS = Resource(
    "ssh-keys", "SSH key", "/v2/ssh-keys",
    "fid name project public_key created_at required", "fid name required created_at public_key",
    prefix="sshkey_", of_project=True, has_delete=True, secrets="private_key",
    create=(
        Field("name", "What to call it.", required=True),
        Field("public_key", "The public key; without it a pair is made, and the private key shown once.", "key"),
        Field("required", "Whether all machines of the project take it.", "flag"),
    ),
    update=(Field("required", "Whether all machines of the project take it.", "flag"),),
    examples={"create": "--name laptop --public-key ~/.ssh/id_ed25519.pub", "update": "laptop --required"},
)  # fmt: skip
INSTANCE_TYPES = Resource(
    "instance-types", "instance type", "/v2/instance-types",
    "fid name num_cpus ram_gb num_gpus gpu_type gpu_memory_gb gpu_socket local_storage_gb network_type ib_count "
    "bridge_count",
    "fid name num_gpus gpu_type gpu_memory_gb num_cpus ram_gb local_storage_gb network_type",
    prefix="it_",
    examples={"list": "--gpu-type H100", "get": "a100-80gb.sxm.1x"},
)  # fmt: skip
REGIONS = Resource(
    "regions", "region", "/marketplace/v1/regions",
    "id name block_storage_enabled fileshare_storage_enabled k8s_enabled",
    "name block_storage_enabled fileshare_storage_enabled k8s_enabled",
    examples={"list": "--fileshare-storage-enabled true", "get": "us-central1-b"},
)  # fmt: skip
AVAILABILITY = Resource(
    "availability", "offer", "/v2/spot/availability",
    "fid instance_type region capacity last_instance_price lowest_allocated_price adjustable_memory "
    "default_image_version",
    "fid instance_type region capacity last_instance_price lowest_allocated_price",
    prefix="auc_", filters={"instance_type": "instance_type", "region": "region"},
    examples={"list": "--instance-type h100-80gb.sxm.8x"},
)  # fmt: skip
PRICING = Resource(
    "pricing", "price", "/v2/pricing/history",
    "timestamp instance_type region spot_instance_price reserved_instance_price",
    "timestamp instance_type region spot_instance_price reserved_instance_price",
    filters={"instance_type": "instance_types", "region": "region"}, plural="instance_type",
    parameters="num_samples start_time end_time", needs="instance_type",
    examples={"list": "--instance-type h100-80gb.sxm.8x --num-samples 24", "get": "h100-80gb.sxm.8x us-central1-b"},
)  # fmt: skip
BIDS = Resource(
    "bids", "bid", "/v2/spot/bids",
    "fid name project created_by created_at deactivated_at limit_price instance_quantity instance_type region "
    "instances launch_specification status",
    "fid name status instance_type instance_quantity limit_price region created_at",
    prefix="bid_", of_project=True, is_paged=True, has_get=True, has_delete=True,
    query={"sort_by": "created_at", "sort_dir": "desc"},
    filters={"instance_type": "instance_type", "region": "region", "status": "status", "name": "name"},
    parameters="sort_by sort_dir",
    create=(
        *_MACHINES,
        Field("limit_price", "The most that a machine may cost, in dollars for an hour.", "price", required=True),
        *_START,
    ),
    update=(
        Field("limit_price", "The most that a machine may cost, in dollars for an hour.", "price"),
        Field("paused", "Whether its machines are shut down, and their disks kept.", "flag"),
        Field("volumes", "All volumes that it is to have, by name or id; only while it is paused.", many=True),
        Field("memory_gb", "Memory of each machine.", "count"),
    ),
    examples={
        "list": "-q --status Open | mithril bids delete -",
        "create": "--name train --instance-type a100-80gb.sxm.1x \\\n"
        "--region us-central1-b --limit-price 6 --ssh-keys laptop",
        "update": "train --limit-price 7",
    },
)  # fmt: skip
INSTANCES = Resource(
    "instances", "instance", "/v2/instances",
    "fid name project created_at created_by instance_type region bid reservation ssh_destination private_ip status",
    "fid name status instance_type region ssh_destination private_ip bid created_at",
    prefix="inst_", of_project=True, is_paged=True,
    filters={
        "instance_type": "instance_type", "region": "region", "bid": "bid_fid_in", "reservation": "reservation_fid_in",
    },
    plural="bid reservation", parameters="sort_by sort_dir", together="instances",
    update=(
        Field("status", "What it is to be; only machines of reservations can be paused.", required=True,
              choices=("STATUS_PAUSED", "STATUS_RUNNING")),
    ),
    examples={"list": "--bid train", "get": "train-1", "update": "course-1 --status STATUS_PAUSED"},
)  # fmt: skip
VOLUMES = Resource(
    "volumes", "volume", "/v2/volumes",
    "fid name region created_at deleted_at capacity_gb project interface bids reservations attachments",
    "fid name capacity_gb interface region bids created_at",
    prefix="vol_", of_project=True, has_delete=True, filters={"region": "region"}, parameters="include_deleted",
    create=(
        Field("name", "What to call it.", required=True),
        Field("region", "Where.", required=True),
        Field("size_gb", "How much it is to hold, in GB.", "count", required=True),
        Field("disk_interface", "A disk for one machine, or a share for many; by default Block.",
              choices=("Block", "File"), default="Block"),
    ),
    examples={"list": "--interface File", "create": "--name datasets --size-gb 100 --region us-central1-b"},
)  # fmt: skip
RESERVATIONS = Resource(
    "reservations", "reservation", "/v2/reservation",
    "fid name project instance_type region instance_quantity status start_time end_time instances quoted_price "
    "launch_specification",
    "fid name status instance_type instance_quantity region start_time end_time quoted_price",
    prefix="res_", of_project=True, has_get=True,
    create=(
        *_MACHINES,
        Field("start_time", "When it begins: a time, or a span from now on, as `2h`.", "time", required=True),
        Field("end_time", "When it ends, likewise.", "time", required=True),
        *_START,
    ),
    update=(
        Field("paused", "Whether its machines are shut down.", "flag"),
        Field("volumes", "All volumes that it is to have, by name or id.", many=True),
    ),
    examples={
        "create": "--name course --instance-type h100-80gb.sxm.8x \\\n--region us-central1-b --ssh-keys laptop \\\n"
        "--start-time 2030-01-31T08:00 --end-time 2030-01-31T20:00",
        "update": "course --paused",
    },
)  # fmt: skip

# Fields that hold ids of other things, which may be named instead.
REFERENCES: Mapping[str, Resource] = {
    "bid": BIDS, "bids": BIDS, "instance_type": INSTANCE_TYPES, "instances": INSTANCES, "project": PROJECTS,
    "reservation": RESERVATIONS, "reservations": RESERVATIONS, "ssh_keys": SSH_KEYS, "volumes": VOLUMES,
}  # fmt: skip
STATES: Mapping[str, tuple[str, ...]] = {
    "bids": ("Open", "Allocated", "Preempting", "Terminated", "Paused"),
    "reservations": ("Pending", "Active", "Ended", "Canceled", "Paused"),
}
