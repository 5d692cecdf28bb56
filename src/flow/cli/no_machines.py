"""What is said where no machine is like the one that was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flow.cli import output
from flow.gpus import Gpu, is_known_kind, parse_gpu, unknown_kind

if TYPE_CHECKING:
    from flow.client import Flow


def say_nothing(client: Flow, what: str, gpu: str | None) -> None:
    """That there is nothing like it, and what there is. Raises ValidationError for a GPU that nobody makes."""
    from flow.resolve import near_types

    asked = parse_gpu(gpu) if gpu else Gpu("gpu")
    if not is_known_kind(asked.kind):
        raise unknown_kind(asked.kind)
    click.echo(f"No {what} found")
    for near in near_types(gpu, asked, client.provider().offers()) if gpu else ():
        output.hint(near)
