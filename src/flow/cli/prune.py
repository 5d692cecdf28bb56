"""`flow prune`: delete the records of ended tasks, with their logs and outputs."""

from __future__ import annotations

import re
from typing import Any

import click

from flow.cli import output, times
from flow.cli.confirm import confirmed
from flow.cli.group import FlowCommand, UsageError
from flow.errors import ValidationError

_BYTES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@click.command(cls=FlowCommand)
@click.option("--older-than", metavar="SPAN", help="Those that ended so long ago: `30d`.")
@click.option("--keep", type=click.IntRange(min=0), metavar="N", help="All but the newest N.")
@click.option("--max-size", metavar="SIZE", help="The oldest, until the rest takes this much: `10GB`.")
@click.option("-d", "--dry-run", is_flag=True, help="Say what would be deleted; delete nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def prune(
    *, older_than: str | None, keep: int | None, max_size: str | None, dry_run: bool, yes: bool, as_json: bool
) -> int:
    """Delete the records of ended tasks: their logs, results and outputs. Tasks that have not ended stay, and those
    whose machines were kept (`flow run --keep`) and are still paid for.

    Example:
      flow prune --older-than 30d
    """
    chosen: dict[str, Any] = {
        "older_than_seconds": None if older_than is None else times.parse_span(older_than),
        "keep": keep,
        "max_bytes": None if max_size is None else parse_bytes(max_size),
    }
    if not any(value is not None for value in chosen.values()):
        raise UsageError(
            "say what to delete",
            suggestions=["by age: `flow prune --older-than 30d`", "or by `--keep` or `--max-size`"],
        )
    from flow.client import Flow

    client = Flow()
    pruned = client.prune(**chosen, dry_run=True)
    count = len(pruned.task_ids)
    what = f"the record of `{pruned.task_ids[0]}`" if count == 1 else f"the records of {count} tasks"
    if not dry_run:
        if count and not confirmed(f"Delete {what} ({output.size(pruned.bytes)})?", yes=yes):
            return 1
        pruned = client.prune(**chosen)
    output.notes(client.notes)
    if as_json:
        output.print_json({"task_ids": list(pruned.task_ids), "bytes": pruned.bytes, "dry_run": dry_run})
        return 0
    click.echo("".join(f"{task_id}\n" for task_id in pruned.task_ids), nl=False)
    output.say(f"{'would free' if dry_run else 'freed'} {output.size(pruned.bytes)}")
    return 0


def parse_bytes(text: str) -> int:
    """Bytes of `500MB`, `10GB`, `1.5T` (decimal units). Raises ValidationError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper())
    if not found:
        raise ValidationError(f"cannot read `{text}` as a size", suggestions=["write it as `500MB` or `10GB`"])
    return int(float(found[1]) * _BYTES[found[2]])
