"""`flow status`: tasks and their states, newest first."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from flow.cli import listing, output
from flow.cli.group import FlowCommand, UsageError
from flow.cli.references import task_argument
from flow.references import split_element
from flow.status import TaskStatus

if TYPE_CHECKING:
    from flow.client import Flow
    from flow.task import Task

NEWEST = 20
_EVERY_SECONDS = 1.0
_CLEAR_BELOW = "\x1b[J"


def _states(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> frozenset[TaskStatus] | None:
    """`--state running,failed`, and the option given several times."""
    from flow.errors import did_you_mean

    words = [word.strip() for value in values for word in value.split(",") if word.strip()]
    known = [str(state) for state in TaskStatus]
    for word in words:
        if word not in known:
            near = did_you_mean(word, known)
            raise UsageError(f"no state `{word}`", suggestions=[*near, f"the states are {', '.join(known)}"])
    return frozenset(TaskStatus(word) for word in words) or None


@click.command(cls=FlowCommand)
@task_argument(required=False, metavar="[TASK]")
@click.option("-a", "--all", "everything", is_flag=True, help="All tasks, not the newest 20 and unfinished ones.")
@click.option("-s", "--state", "states", multiple=True, callback=_states, metavar="STATE", help="Only tasks in it.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="The newest N.")
@click.option("--format", "layout", type=click.Choice(["slurm"]), help="As Slurm's `squeue` lists them.")
@click.option("-w", "--watch", is_flag=True, help="Keep it up to date until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def status(
    reference: str | None,
    *,
    everything: bool,
    states: frozenset[TaskStatus] | None,
    limit: int | None,
    layout: str | None,
    watch: bool,
    as_json: bool,
) -> int:
    """List tasks and their states, newest first; the first one can then be called `:1`.

    Example:
      flow status --state running,pending
    """
    from flow.cli.costs import bill_record, rentals, say_costs
    from flow.client import Flow

    client = Flow()
    most = limit or (None if everything else NEWEST)

    def look() -> tuple[list[Task], bool]:
        """What is shown, and whether there are more."""
        with listing.no_collection():
            if reference:
                return [client.get_task(reference)], False
            if states or limit or everything:
                tasks = client.tasks(states=states, limit=None if most is None else most + 1)
                return tasks[:most], len(tasks) > len(tasks[:most])
            tasks = client.newest_tasks(NEWEST, unfinished=NEWEST)
            return tasks, len(client.records.rows(limit=len(tasks) + 1)) > len(tasks)

    if layout and (watch or as_json):
        raise UsageError("`--format` goes with neither `--watch` nor `--json`", suggestions=["see `flow squeue -i`"])
    if watch and (as_json or output.is_terminal(sys.stdout)):
        return _watch(look, as_json=as_json, of_one=reference is not None)
    tasks, has_more = look()
    output.notes(client.notes)
    rented = [] if reference else rentals(client)
    if as_json:
        bills = {"rented": bill_record(rented)} if rented else {}
        output.print_json({"tasks": [task.record() for task in tasks], **bills})
        return 0
    if layout:
        _print_queue(client, tasks)
    else:
        _print(client, tasks)
        if has_more:
            output.note(f"there are more than the newest {most}: `flow status --all` lists them")
        say_costs(rented)
    return 0


def _print(client: Flow, tasks: list[Task]) -> None:
    if not tasks:
        click.echo("No tasks found")
        return
    click.echo("\n".join(listing.task_table(tasks)))
    client.save_listing(tasks)


def _print_queue(client: Flow, tasks: list[Task]) -> None:
    from flow.cli.slurm.jobs import load_jobs, queue_lines

    chosen = {
        base: None if index is None else frozenset([index])
        for base, index in (split_element(task.task_id) for task in tasks)
    }
    click.echo("\n".join(queue_lines(load_jobs(client, chosen))))


def _watch(look: Callable[[], tuple[list[Task], bool]], *, as_json: bool, of_one: bool) -> int:
    """Show the table again in its place each second, or with `as_json` a document whenever something changed.

    Of one task until it has ended, else until Ctrl-C.
    """
    shown: object = None
    height = 0
    while True:
        tasks, _ = look()
        if as_json:
            document = {"tasks": [task.record() for task in tasks]}
            if document != shown:
                output.print_json_line(document)
            shown = document
        else:
            height = _redraw(listing.task_table(tasks) if tasks else ["No tasks found"], height)
        if of_one and all(task.status.is_final for task in tasks):
            return 0
        time.sleep(_EVERY_SECONDS)


def _redraw(lines: list[str], height: int) -> int:
    """Write `lines` over the `height` lines written before; returns how many there are now."""
    import shutil

    fitting = lines[: max(shutil.get_terminal_size().lines - 1, 1)]
    up = f"\x1b[{height}A" if height else ""
    click.echo(f"{up}\r{_CLEAR_BELOW}" + "\n".join(fitting))
    return len(fitting)
