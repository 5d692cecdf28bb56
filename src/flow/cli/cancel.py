"""`flow cancel`: end tasks, and wait until they have ended."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import click

from flow.cli import costs, follow, listing, output
from flow.cli.confirm import confirmed
from flow.cli.group import FlowCommand, UsageError
from flow.cli.references import task_argument
from flow.errors import FlowError, ProviderError
from flow.status import FINAL, TaskStatus, Want

if TYPE_CHECKING:
    from flow.client import Flow
    from flow.task import Task

UNFINISHED = frozenset(TaskStatus) - FINAL


@click.command(cls=FlowCommand)
@task_argument("references", nargs=-1, metavar="[TASK…]")
@click.option("-n", "--name-pattern", metavar="PATTERN", help="All whose name matches, as `dev-*`.")
@click.option("-a", "--all", "everything", is_flag=True, help="All that have not ended.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def cancel(references: tuple[str, ...], *, name_pattern: str | None, everything: bool, yes: bool, as_json: bool) -> int:
    """End each TASK, and wait until it has ended. A name means the one task of that name that has not ended yet.

    A machine that was kept after the end (`flow run --keep`) is given back by `flow orphans TASK --yes`, not by this.

    Example:
      flow cancel --name-pattern 'dev-*' --yes
    """
    if bool(references) + (name_pattern is not None) + everything != 1:
        raise UsageError(
            "say which tasks to end, in one way",
            suggestions=["name them: `flow cancel train`", "or give `--name-pattern 'dev-*'` or `--all`"],
        )
    from flow.client import Flow

    client = Flow()
    tasks = _chosen(client, references, name_pattern)
    output.notes(client.notes)
    if tasks and not references:
        for line in listing.task_table(tasks):
            output.say(line)
        if not confirmed(f"End {_count(tasks)}?", yes=yes):
            return 1
    _end(client, [task for task in tasks if not task.status.is_final])
    if as_json:
        output.print_json({"tasks": [task.record() for task in tasks]})
    elif tasks:
        click.echo("\n".join(f"{task.task_id}  {task.status}" for task in tasks))
    else:
        output.note("no such task is left to end")
    for task in tasks:
        costs.say_kept(task)
    return 0


def _chosen(client: Flow, references: tuple[str, ...], name_pattern: str | None) -> list[Task]:
    if references:  # what is known of them will do: to look may take long, and nothing of this is on record yet
        return [client.get_task(reference, unfinished=True, refresh=False) for reference in references]
    return client.tasks(states=UNFINISHED, limit=None, name_pattern=name_pattern)


def _end(client: Flow, tasks: list[Task]) -> None:
    if not tasks:
        return
    rented = [task for task in tasks if _is_rented(client, task)]
    is_asked = len(rented) == len(tasks)  # by the attendant, if not here
    with suppress(FlowError):  # which is told below
        client.records.set_intents([task.task_id for task in tasks], Want.CANCEL)  # before it is said
    try:
        output.say(f"ending {_count(tasks)}")
        try:
            client.cancel(*tasks)
            is_asked = True
            output.notes(client.notes)
        except ProviderError as error:
            if len(rented) < len(tasks):
                raise
            output.note(f"{error.message}; it is asked again until it is done")
        for task in tasks:
            follow.until_ended(task)
        follow.until_given_back(client, rented)
    except KeyboardInterrupt:
        output.say("")
        if is_asked:
            output.note(f"{_count(tasks)} will end without this command")
        else:
            output.note(f"{_count(tasks)} may not have heard of it: type the same again")
        raise


def _is_rented(client: Flow, task: Task) -> bool:
    try:
        return client.provider(task.provider).capabilities.rents
    except FlowError:  # its profile was removed
        return False


def _count(tasks: list[Task]) -> str:
    return f"`{tasks[0].task_id}` ({tasks[0].name})" if len(tasks) == 1 else f"{len(tasks)} tasks"
