"""What the cloud begins with: instance types, regions, and what they cost where."""

from __future__ import annotations

from tests.support.mithril_cloud.market import Lane
from tests.support.mithril_cloud.records import InstanceType, Region

# One name, two fids: whoever takes names for unique is found out.
TYPES = (
    InstanceType("it_MsIRhxj3ccyVWGfP", "a100-80gb.sxm.1x", 1, "A100", 80, 12, "SXM4"),
    InstanceType("it_5M6aGxGovNeX5ltT", "a100-80gb.sxm.2x", 2, "A100", 80, 24, "SXM4"),
    InstanceType("it_fK7Cx6TVhOK5ZfXT", "a100-80gb.sxm.4x", 4, "A100", 80, 48, "SXM4"),
    InstanceType("it_J7OyNf9idfImLIFo", "a100-80gb.sxm.8x", 8, "A100", 80, 96, "SXM4"),
    InstanceType("it_5ECSoHQjLBzrp5YM", "h100-80gb.sxm.8x", 8, "H100", 80, 192, network="InfiniBand"),
    InstanceType("it_XqgKWbhZ5gznAYsG", "h100-80gb.sxm.8x", 8, "H100", 80, 192, network="InfiniBand"),
    InstanceType("it_7RHoQUztab9lU9Ne", "h200-141gb.sxm.8x", 8, "H200", 141, 192, network="InfiniBand"),
    InstanceType("it_q0o0UtmD4bgy36kb", "neb-b200.sxm.8x", 8, "B200", 192, 192, network="InfiniBand"),
)
REGIONS = (
    Region("us-central1-b", file=False, block_limit_gb=7_168),
    Region("us-central5-a"),
    Region("eu-central1-a"),
)
_LANES = (
    ("it_MsIRhxj3ccyVWGfP", "us-central1-b", 125, 12),
    ("it_MsIRhxj3ccyVWGfP", "us-central5-a", 130, 8),
    ("it_5M6aGxGovNeX5ltT", "us-central1-b", 250, 6),
    ("it_fK7Cx6TVhOK5ZfXT", "us-central1-b", 500, 4),
    ("it_J7OyNf9idfImLIFo", "us-central1-b", 1_000, 4),
    ("it_J7OyNf9idfImLIFo", "us-central5-a", 1_040, 2),
    ("it_5ECSoHQjLBzrp5YM", "us-central1-b", 1_600, 4),
    ("it_5ECSoHQjLBzrp5YM", "us-central5-a", 1_680, 4),
    ("it_XqgKWbhZ5gznAYsG", "eu-central1-a", 1_720, 2),
    ("it_7RHoQUztab9lU9Ne", "us-central5-a", 2_400, 2),
    ("it_q0o0UtmD4bgy36kb", "eu-central1-a", 3_200, 0),
)


def lanes() -> list[Lane]:
    return [Lane(kind, region, cents, capacity, minimum_cents=cents // 5) for kind, region, cents, capacity in _LANES]
