"""Asking before what cannot be undone."""

from __future__ import annotations

import sys

import click

from flow.cli import output
from flow.errors import ConfirmationRequiredError


def confirmed(question: str, *, yes: bool) -> bool:
    """Whether to go on: `yes` was given, or a user at the terminal agrees. Raises where there is nobody to ask."""
    if yes:
        return True
    if not (output.is_terminal(sys.stdin) and output.is_terminal(sys.stderr)):
        raise ConfirmationRequiredError(f"{question} There is nobody to ask", suggestions=["say so with `--yes`"])
    return click.confirm(question, err=True)
