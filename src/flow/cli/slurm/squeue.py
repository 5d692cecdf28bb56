"""`flow squeue`: tasks that have not ended, as Slurm lists its jobs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from flow.cli import output
from flow.cli.slurm.command import Refused, SlurmCommand
from flow.cli.slurm.jobs import NotAJob, chosen_tasks, load_jobs, matching, split_list, users_named
from flow.slurm.formats import Layout, long_layout, short_layout
from flow.slurm.job_fields import ALL, DEFAULT, FIELDS, LETTERS, LONG, ORDER, START, sorted_jobs
from flow.slurm.jobs import STATES, UNFINISHED, Job, state_named

if TYPE_CHECKING:
    from flow.client import Flow


@click.command(cls=SlurmCommand, context_settings={"help_option_names": ["--help"]})
@click.option("-A", "--account", metavar="LIST", envvar="SQUEUE_ACCOUNT", help="Only of these accounts.")
@click.option("-a", "--all", "everywhere", is_flag=True, help="Of all partitions, as it does anyway.")
@click.option("-r", "--array", "expand", is_flag=True, envvar="SQUEUE_ARRAY", help="One line for each element.")
@click.option("-h", "--noheader", is_flag=True, help="No line of titles.")
@click.option("-i", "--iterate", type=float, metavar="SECONDS", help="Again and again, until Ctrl-C.")
@click.option("-j", "--jobs", is_flag=False, flag_value="", metavar="LIST", help="Only these: `12,13_4,14_[1-5]`.")
@click.option("-l", "--long", "is_long", is_flag=True, help="More of each.")
@click.option("--me", is_flag=True, help="Only mine.")
@click.option("-n", "--name", metavar="LIST", envvar="SQUEUE_NAMES", help="Only with these names.")
@click.option("-o", "--format", "short", metavar="FORMAT", envvar="SQUEUE_FORMAT", help="What to show: `%i %j %T`.")
@click.option("-O", "--Format", "long", metavar="FORMAT", envvar="SQUEUE_FORMAT2", help="What: `jobid:10,name,state`.")
@click.option("-p", "--partition", metavar="LIST", envvar="SQUEUE_PARTITION", help="Only of these partitions.")
@click.option("-q", "--qos", metavar="LIST", envvar="SQUEUE_QOS", help="Only of these qualities of service.")
@click.option("-S", "--sort", metavar="LIST", envvar="SQUEUE_SORT", help="In this order: `P,t,-p`.")
@click.option("--start", is_flag=True, help="When those that wait are expected to start.")
@click.option("-t", "--states", metavar="LIST", envvar="SQUEUE_STATES", help="Only in these states: `PD,R`, `all`.")
@click.option("-u", "--user", metavar="LIST", envvar="SQUEUE_USERS", help="Only of these users.")
@click.option("-w", "--nodelist", metavar="LIST", help="Only on these nodes.")
@click.argument("rest", nargs=-1, metavar="")
def squeue(*, noheader: bool, iterate: float | None, rest: tuple[str, ...], **asked: Any) -> int:
    """List the tasks that have not ended, with the options and the output of Slurm's `squeue`.

    Example:
      flow squeue --me -o '%i %j %T'
    """
    if rest:
        raise Refused(f"squeue: error: Unrecognized option: {rest[0]}")
    from flow.client import Flow

    client = Flow()
    layout = _layout(asked)
    while True:
        lines = listed(client, asked, layout, header=not noheader)
        if (iterate or asked["is_long"]) and not noheader:
            click.echo(time.strftime("%a %b %d %H:%M:%S %Y"))
        if lines:
            click.echo("\n".join(lines))
        if not iterate:
            return 0
        time.sleep(iterate)


def listed(client: Flow, asked: dict[str, Any], layout: Layout[Job], *, header: bool) -> list[str]:
    """The lines for what was asked, with the titles where `header`."""
    states = _states(asked)
    users = users_named(asked, "squeue: error: Invalid user: ")
    chosen = _chosen(client, asked["jobs"]) if asked["jobs"] else None
    unfinished = states is not None and states <= UNFINISHED
    jobs = load_jobs(client, chosen, unfinished=unfinished, expand=asked["expand"])
    output.notes(client.notes)
    jobs = matching(jobs, asked, states=states, users=users)
    order = asked["sort"] or ("S" if asked["start"] else ORDER)
    return [layout.header] * header + layout.lines(sorted_jobs(jobs, order))


def _layout(asked: dict[str, Any]) -> Layout[Job]:
    default = START if asked["start"] else LONG if asked["is_long"] else DEFAULT
    if asked["long"] and not asked["short"]:
        layout = long_layout(asked["long"], FIELDS)
    else:
        text = asked["short"] or default
        layout = short_layout(ALL if text == "%all" else text, LETTERS)
    for name in layout.unknown:
        click.echo(f"squeue: error: Invalid job format specification: {name}", err=True)
    return layout


def _chosen(client: Flow, words: str) -> dict[str, frozenset[int] | None]:
    try:
        chosen, unknown = chosen_tasks(client, split_list(words))
    except NotAJob as error:
        raise Refused(f"squeue: error: Invalid job id: {error}") from None
    if unknown and not chosen:
        raise Refused("slurm_load_jobs error: Invalid job id specified")
    return chosen


def _states(asked: dict[str, Any]) -> frozenset[str] | None:
    """Slurm's names of them; None for all."""
    if not asked["states"]:
        return frozenset(("PENDING",)) if asked["start"] else UNFINISHED
    if asked["states"].lower() == "all":
        return None
    found = set()
    for word in asked["states"].split(","):
        name = state_named(word)
        if name is None:
            known = ",".join(STATES)
            raise Refused(
                f"squeue: error: Invalid job state specified: {word}\nsqueue: error: Valid job states include: {known}"
            )
        found.add(name)
    return frozenset(found)
