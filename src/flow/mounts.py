"""What a task sees at a path of its own choice: a volume, or objects in S3."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flow.errors import ValidationError

VOLUME, S3 = "volume", "s3"
DOCKER_CACHE = "/var/lib/docker"  # where a volume keeps images between machines
AUTO_SIZE_GB = 100  # of a volume that `volume://name` makes


@dataclass(frozen=True, slots=True)
class Mount:
    """What a task sees at `target`, an absolute path.

    kind: "volume" (`source` is its id, "" until it is made) or "s3" (`source` is bucket/path, to be read only).
    name, interface ("block" or "file"), ephemeral: of the volume, as `machines.Volume` has them.
    """

    target: str
    kind: str
    source: str = ""
    name: str = ""
    size_gb: int | None = None
    interface: str = "block"
    ephemeral: bool = False


def mount_from_dict(values: Mapping[str, Any]) -> Mount:
    """The Mount whose fields these are. Raises TypeError on anything else."""
    return Mount(**values)


def records_source(text: str) -> str:
    """`s3://bucket/path` -> "bucket/path", where records are copied to. Raises ValidationError for anything else."""
    found = re.fullmatch(r"s3://([A-Za-z0-9][A-Za-z0-9._-]+(?:/[^/\s]+)*)/*", text)
    if not found:
        raise ValidationError(f"`records` is `{text}`", suggestions=["write `s3://bucket/path`"])
    return found[1]


def parse_source(source: str) -> tuple[str, str]:
    """`volume://name` -> ("volume", "name"), `s3://bucket/path` -> ("s3", "bucket/path"); checked by the config."""
    kind, _, rest = source.partition("://")
    return kind, rest.rstrip("/") if kind == S3 else rest
