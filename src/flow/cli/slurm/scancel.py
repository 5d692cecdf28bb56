"""`flow scancel`: end tasks, or send them a signal."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from flow.cli.slurm.command import Refused, SlurmCommand
from flow.cli.slurm.jobs import NotAJob, chosen_tasks, load_jobs, matching, split_list, users_named
from flow.errors import FlowError
from flow.references import split_element
from flow.slurm.jobs import Job, state_named

if TYPE_CHECKING:
    from flow.client import Flow

_CAN_BE = ("PENDING", "RUNNING", "SUSPENDED")


@click.command(cls=SlurmCommand)
@click.argument("words", nargs=-1, metavar="[JOB…]")
@click.option("-A", "--account", metavar="LIST", help="Only of these accounts.")
@click.option("-b", "--batch", is_flag=True, help="Signal the batch script alone.")
@click.option("-f", "--full", is_flag=True, help="Signal the batch script and all that it started.")
@click.option("-i", "--interactive", is_flag=True, help="Ask before each.")
@click.option("--me", is_flag=True, help="All that are mine.")
@click.option("-n", "--name", "--jobname", "name", metavar="LIST", help="All with this name.")
@click.option("-p", "--partition", metavar="LIST", help="All of this partition.")
@click.option("-w", "--nodelist", metavar="LIST", help="All on these nodes.")
@click.option("-q", "--qos", metavar="LIST", help="All of this quality of service.")
@click.option("-Q", "--quiet", is_flag=True, help="Say nothing of those that have ended.")
@click.option("-s", "--signal", "signal_name", metavar="NAME", help="Send this signal in place of ending them.")
@click.option("-t", "--state", metavar="LIST", help="All in this state: PENDING, RUNNING or SUSPENDED.")
@click.option("-u", "--user", metavar="LIST", help="All of this user.")
@click.option("-v", "--verbose", count=True, help="Say what is done.")
def scancel(words: tuple[str, ...], **asked: Any) -> int:
    """End tasks: each JOB (`12`, `12_3`, `12_[1-5]`), or all that the options choose. It does not wait for their end.

    Example:
      flow scancel 12 13_[2-4]
    """
    filters = ("account", "me", "name", "nodelist", "partition", "qos", "state", "user")
    if not words and not any(asked[name] for name in filters):
        raise Refused("scancel: error: No job identification provided")
    number = _signal_number(asked["signal_name"])
    from flow.client import Flow

    client = Flow()
    jobs = _jobs(client, words, asked)
    if asked["interactive"]:
        jobs = [job for job in jobs if _is_confirmed(job)]
    ends = number is None or (number == signal.SIGKILL and not asked["batch"])
    live = []
    for task_id, shown in _wholes(client, jobs).items() if ends else [(job.task_id, job) for job in jobs]:
        if asked["verbose"]:
            click.echo(f"scancel: {'Terminating' if ends else f'Signal {number} to'} job {shown.id}", err=True)
        if shown.is_finished:
            if asked["verbose"] and not asked["quiet"]:
                why = "Job/step already completing or completed"
                click.echo(f"scancel: error: Kill job error on job id {shown.id}: {why}", err=True)
        elif ends or not shown.is_pending:
            live.append((task_id, shown.id))
    if ends or number is None:
        client.cancel(*[task_id for task_id, _ in live])
        return 0
    for task_id, shown_id in live:
        try:
            client.get_task(task_id).send_signal(number, to=_receivers(asked))
        except FlowError as error:  # one for which that fails does not spare the others
            click.echo(f"scancel: error: Kill job error on job id {shown_id}: {error.message}", err=True)
    return 0


def _jobs(client: Flow, words: tuple[str, ...], asked: dict[str, Any]) -> list[Job]:
    """Those that are meant, each element of an array by itself."""
    chosen = None
    if words:
        try:
            chosen, unknown = chosen_tasks(client, [one for word in words for one in split_list(word)])
        except NotAJob as error:
            raise Refused(f"scancel: error: Invalid job id {error}") from None
        if asked["verbose"]:
            for word in unknown:
                told = f"scancel: error: Kill job error on job id {word}: Invalid job id specified"
                click.echo(f"scancel: Terminating job {word}\n{told}", err=True)
    jobs = load_jobs(client, chosen, unfinished=chosen is None, expand=True)
    users = users_named(asked, "scancel: error: Invalid user name: ")
    return matching(jobs, asked, states=_states(asked["state"]), users=users)


def _wholes(client: Flow, jobs: list[Job]) -> dict[str, Job]:
    """By task id; an array of which nothing else is left to end as one, so that 20,000 elements are one request."""
    elements: dict[str, list[Job]] = {}
    found: dict[str, Job] = {}
    for job in jobs:
        base, index = split_element(job.task_id)
        if index is None:
            found[base] = job
        else:
            elements.setdefault(base, []).append(job)
    for base, own in elements.items():
        count = len(own)
        row = client.records.rows_of([base])[0]
        live = [job for job in own if not job.is_finished]
        if count == row.elements and live:
            found[base] = live[0]._replace(element="", number=row.number or 0)
        else:
            found.update((job.task_id, job) for job in own)
    return found


def _is_confirmed(job: Job) -> bool:
    click.echo(f"Cancel job_id={job.id} name={job.name} partition={job.partition} [y/n]? ", nl=False)
    return sys.stdin.readline().strip().lower().startswith("y")


def _states(text: str | None) -> frozenset[str] | None:
    if text is None:
        return None
    found = {word: state_named(word) for word in text.split(",")}
    for word, state in found.items():
        if state not in _CAN_BE:
            raise Refused(f"Invalid job state specified: {word}\nValid job states are PENDING, RUNNING, and SUSPENDED")
    return frozenset(state for state in found.values() if state)


def _signal_number(name: str | None) -> int | None:
    if name is None:
        return None
    known = {one.name.removeprefix("SIG"): int(one) for one in signal.Signals}
    number = int(name) if name.isdecimal() else known.get(name.upper().removeprefix("SIG"))
    if number is None:
        raise Refused(f"Unknown job signal: {name}")
    return number


def _receivers(asked: dict[str, Any]) -> str:
    """Unasked, only the steps hear it, as with Slurm."""
    return "all" if asked["full"] else "command" if asked["batch"] else "steps"
