"""Run a task anywhere: this machine, any host over SSH, Slurm, a cloud. The names below load when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flow import errors as errors
    from flow.client import Flow as Flow
    from flow.client import cancel as cancel
    from flow.client import create_volume as create_volume
    from flow.client import get_task as get_task
    from flow.client import mount_volume as mount_volume
    from flow.client import run as run
    from flow.client import submit as submit
    from flow.client import tasks as tasks
    from flow.client import volumes as volumes
    from flow.config import TaskConfig as TaskConfig
    from flow.functions import FlowApp as FlowApp
    from flow.functions import function as function
    from flow.functions import invoke as invoke
    from flow.machines import Volume as Volume
    from flow.status import TaskStatus as TaskStatus
    from flow.task import Task as Task

__version__ = "0.1.0"

_HOME = {
    "Flow": "flow.client",
    "cancel": "flow.client",
    "create_volume": "flow.client",
    "get_task": "flow.client",
    "mount_volume": "flow.client",
    "run": "flow.client",
    "submit": "flow.client",
    "tasks": "flow.client",
    "volumes": "flow.client",
    "Volume": "flow.machines",
    "TaskConfig": "flow.config",
    "FlowApp": "flow.functions",
    "function": "flow.functions",
    "invoke": "flow.functions",
    "TaskStatus": "flow.status",
    "Task": "flow.task",
}

__all__ = [
    "Flow",
    "FlowApp",
    "Task",
    "TaskConfig",
    "TaskStatus",
    "Volume",
    "cancel",
    "create_volume",
    "errors",
    "function",
    "get_task",
    "invoke",
    "mount_volume",
    "run",
    "submit",
    "tasks",
    "volumes",
]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("flow.errors")
    if name not in _HOME:
        raise AttributeError(f"module `flow` has no attribute `{name}`")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
