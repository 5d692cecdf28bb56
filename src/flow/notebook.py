"""A task as a notebook shows it: a small table, from what the handle knows; nothing is asked for it."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flow.task import Task


def task_html(task: Task) -> str:
    """HTML in which every value is escaped: names and reasons are whatever a user or a command wrote."""
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
