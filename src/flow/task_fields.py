"""What may be written for each field of a task: the keyword arguments that editors offer and type checkers accept."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

if TYPE_CHECKING:
    from flow.config import Batch, DependsOn, VolumeMount

_Text = str | os.PathLike[str]


class _HasTaskId(Protocol):
    @property
    def task_id(self) -> str: ...


class TaskFields(TypedDict, total=False):
    """The fields of a TaskConfig, before they are checked; None is the default."""

    name: str | None
    instance_type: str | None
    gpu: str | int | None
    command: _Text | Sequence[_Text | float] | None
    image: str | None
    env: Mapping[str, _Text | float] | None
    working_dir: _Text | None
    volumes: Sequence[VolumeMount | Mapping[str, Any]] | Mapping[str, str] | None
    mounts: str | Mapping[str, str] | None
    ports: int | Iterable[int] | None
    num_instances: int | None
    max_price_per_hour: float | None
    wait_for_price: bool | None
    keep: bool | None
    max_run_time_hours: float | None
    ssh_keys: str | Iterable[str] | None
    region: str | None
    upload_code: bool | None
    provider: str | None
    cpus: float | None
    memory_gb: float | None
    retries: int | None
    priority: int | None
    labels: Mapping[str, _Text | float] | None
    array: str | int | Iterable[int] | None
    depends_on: str | _HasTaskId | Sequence[str | _HasTaskId | DependsOn | Mapping[str, str]] | None
    depends_on_any: bool | None
    singleton: bool | None
    unmet_dependency: str | None
    begin: str | float | date | None
    hold: bool | None
    signal: str | int | None
    requeue: bool | None
    grace_seconds: float | None
    output: _Text | None
    error: _Text | None
    options: Mapping[str, Any] | None
    batch: Batch | Mapping[str, Any] | None
