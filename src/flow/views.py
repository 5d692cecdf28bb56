"""A task as others read it: JSON-ready values for `--json`, a table for a notebook."""

from __future__ import annotations

import html
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from flow.masking import masked, masked_batch

if TYPE_CHECKING:
    from flow.task import Task


def task_record(task: Task, config: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes, and `config` (what was asked for), secrets masked."""
    shown = {**config}
    for name, hide in (("env", masked), ("batch", masked_batch)):
        if config.get(name):
            shown[name] = hide(config[name])
    plain = ("task_id", "number", "name", "provider", "exit_code", "signal", "reason", "instance_type", "num_instances")
    return {
        **{name: getattr(task, name) for name in plain},
        "status": str(task.status),
        **{name: _text(getattr(task, name)) for name in ("created_at", "started_at", "ended_at")},
        "run_seconds": task.run_seconds,
        "price_per_hour": task.price_per_hour,
        "attempt": task.outcome.attempt,
        "elements": task.elements,
        "endpoints": dict(task.endpoints),
        "labels": dict(task.plan.labels),
        "config": shown,
    }


def task_html(task: Task) -> str:
    """A small table of what the handle knows; nothing is asked for it.

    Every value is escaped: names and reasons are whatever a user or a command wrote.
    """
    state = f"{task.status}: {task.reason}" if task.reason else str(task.status)
    machines = task.instance_type + (f", {task.num_instances} of them" if task.num_instances > 1 else "")
    facts = [
        ("task", task.task_id),
        ("name", task.name),
        ("status", state),
        ("machine", machines),
        ("created", f"{task.created_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("price", f"{task.cost_per_hour}/h" if task.cost_per_hour else "not known"),
        ("shell", task.shell_command),
    ]
    rows = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in facts)
    return f"<table>{rows}</table>"


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
