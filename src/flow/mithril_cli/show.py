"""What the API tells -> lines on stdout: a table, facts, ids, or the API's own JSON."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

import click

from flow.cli import output, times
from flow.cli.output import Column
from flow.mithril_cli.lookup import Lookup
from flow.mithril_cli.resources import INSTANCE_TYPES, Resource

Row = Mapping[str, Any]

_TITLES = {
    "fid": "ID", "instance_type": "TYPE", "instance_type_name": "TYPE", "created_at": "AGE", "instance_quantity": "N",
    "limit_price": "LIMIT", "last_instance_price": "PRICE", "lowest_allocated_price": "LOWEST", "num_gpus": "GPUS",
    "num_cpus": "CPUS", "ram_gb": "RAM", "gpu_memory_gb": "GPU RAM", "local_storage_gb": "DISK",
    "network_type": "NETWORK", "gpu_type": "GPU", "ssh_destination": "SSH", "private_ip": "PRIVATE IP",
    "capacity_gb": "SIZE", "start_time": "FROM", "end_time": "UNTIL", "quoted_price": "PRICE",
    "spot_instance_price": "SPOT", "reserved_instance_price": "RESERVED", "block_storage_enabled": "BLOCK",
    "fileshare_storage_enabled": "FILE", "k8s_enabled": "KUBERNETES", "timestamp": "TIME", "expires_at": "UNTIL",
    "deactivated_at": "DEACTIVATED", "used_quantity": "USED", "total_quantity": "OF", "public_key": "PUBLIC KEY",
}  # fmt: skip
_COLORS = {
    "Open": "yellow", "Preempting": "yellow", "Paused": "yellow", "Allocated": "cyan", "Terminated": "magenta",
    "STATUS_RUNNING": "cyan", "STATUS_PREEMPTING": "yellow", "STATUS_PAUSED": "yellow", "STATUS_ERROR": "red",
    "Pending": "yellow", "Active": "cyan",
}  # fmt: skip
_LEAST = {"name": 12, "instance_type": 8, "instance_type_name": 8, "public_key": 16}  # characters, where room is short
_COUNTED = re.compile(r"(num_|created_at$|capacity$)|.*(_gb|_price|_quantity|_cents)$")


def rows(found: Iterable[Row], resource: Resource, lookup: Lookup, *, as_json: bool, only_ids: bool) -> None:
    """Lines for each, as they come; a table when all are there."""
    if as_json or only_ids:
        for row in found:
            facts(row, as_json=as_json, only_ids=only_ids)
        return
    found = list(found)
    if not found:
        output.say(f"no {resource.many}")
        return
    names = resource.columns.split()
    types = lookup.names(INSTANCE_TYPES) if "instance_type" in names else {}
    columns = [_column(name) for name in names]
    cells = [[types.get(cell, cell) for cell in _cells(row, names)] for row in found]
    click.echo("\n".join(output.table(columns, cells)))


def facts(row: Row, *, as_json: bool, only_ids: bool = False, secrets: str = "") -> None:
    """Everything about one thing, a line each; what has several lines in brief, but for secrets, which come last."""
    if as_json:
        output.print_json_line(row)
        return
    if only_ids:
        click.echo(output.printable(str(row.get("fid"))))
        return
    shown = {name: value for name, value in _flat(row) if value not in (None, [], {}) and name not in secrets.split()}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        click.echo(f"{name:<{width}}{output.GAP}{output.printable(_brief(value))}")
    for name in secrets.split():
        for line in str(row.get(name) or "").splitlines():
            click.echo(output.printable(line))


def _flat(row: Row, above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, value


def _brief(value: Any) -> str:
    first, *others = _text(value).splitlines() or [""]
    return f"{first} … ({len(others) + 1} lines)" if others else first


def _column(name: str) -> Column:
    title = _TITLES.get(name, name.replace("_", " ").upper())
    return Column(title, _LEAST.get(name), right=bool(_COUNTED.match(name)), colors=_COLORS if name == "status" else {})


def _cells(row: Row, names: Iterable[str]) -> list[str]:
    return [_age(row.get(name)) if name == "created_at" else _text(row.get(name)) or output.NOTHING for name in names]


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(map(_text, value))
    return json.dumps(value) if isinstance(value, Mapping) else str(value)


def _age(told: Any) -> str:
    """How long ago; a time without a zone is UTC."""
    try:
        moment = datetime.fromisoformat(re.sub(r"(\.\d+)?(Z)?$", "", str(told)))
    except ValueError:
        return _text(told) or output.NOTHING
    return times.age(time.time() - moment.replace(tzinfo=moment.tzinfo or timezone.utc).timestamp())
