"""Run a task anywhere: this machine, any host over SSH, Slurm, a cloud. The names below load when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flow import errors as errors
    from flow.client import Flow as Flow
    from flow.config import TaskConfig as TaskConfig
    from flow.dev import DevMachine as DevMachine
    from flow.functions import FlowApp as FlowApp
    from flow.functions import function as function
    from flow.functions import invoke as invoke
    from flow.machines import Volume as Volume
    from flow.shortcuts import cancel as cancel
    from flow.shortcuts import create_volume as create_volume
    from flow.shortcuts import get_task as get_task
    from flow.shortcuts import mount_volume as mount_volume
    from flow.shortcuts import run as run
    from flow.shortcuts import submit as submit
    from flow.shortcuts import tasks as tasks
    from flow.shortcuts import volumes as volumes
    from flow.status import TaskStatus as TaskStatus
    from flow.task import Task as Task

__version__ = "0.1.0"

_HOME = {
    "Flow": "flow.client",
    "cancel": "flow.shortcuts",
    "create_volume": "flow.shortcuts",
    "get_task": "flow.shortcuts",
    "mount_volume": "flow.shortcuts",
    "run": "flow.shortcuts",
    "submit": "flow.shortcuts",
    "tasks": "flow.shortcuts",
    "volumes": "flow.shortcuts",
    "Volume": "flow.machines",
    "TaskConfig": "flow.config",
    "DevMachine": "flow.dev",
    "FlowApp": "flow.functions",
    "function": "flow.functions",
    "invoke": "flow.functions",
    "TaskStatus": "flow.status",
    "Task": "flow.task",
}

__all__ = [
    "DevMachine",
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
