"""What tells the commands that `flow slurm install-commands` made from others of their names."""

from __future__ import annotations

from pathlib import Path

MADE_BY = "# Made by `flow slurm install-commands`."


def is_installed(path: Path) -> bool:
    """Whether it is one of them."""
    try:
        with path.open("rb") as file:
            return MADE_BY.encode() in file.read(200)
    except OSError:
        return False
