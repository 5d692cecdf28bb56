"""`flow sacct`: tasks of a span of time, ended ones too, as Slurm accounts for its jobs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from flow.cli import output
from flow.cli.slurm.command import Refused, SlurmCommand
from flow.cli.slurm.jobs import NotAJob, chosen_tasks, load_jobs, matching, split_list
from flow.errors import ValidationError
from flow.slurm.account_fields import BRIEF, DEFAULT, LONG, columns, entries, help_text, table
from flow.slurm.jobs import NOT_ELIGIBLE, Job, state_named
from flow.slurm.moments import parse_moment

if TYPE_CHECKING:
    from flow.client import Flow


@click.command(cls=SlurmCommand)
@click.option("-A", "--accounts", "account", metavar="LIST", help="Only of these accounts.")
@click.option("-X", "--allocations", is_flag=True, help="The jobs alone, without their steps.")
@click.option("-a", "--allusers", is_flag=True, help="Of all users, which are you.")
@click.option("-b", "--brief", is_flag=True, help="The id, the state and the exit code alone.")
@click.option("-D", "--duplicates", is_flag=True, help="Each of several with one number, which do not occur.")
@click.option("--delimiter", metavar="TEXT", default="|", help="What stands between the fields of `-p` and `-P`.")
@click.option("-E", "--endtime", metavar="TIME", help="Those that were there before it.")
@click.option("-o", "--format", "names", metavar="LIST", envvar="SACCT_FORMAT", help="What to show: `JobID,State%20`.")
@click.option("-e", "--helpformat", is_flag=True, help="The fields there are.")
@click.option("-j", "--jobs", multiple=True, metavar="LIST", help="Only these: `12,13_4`.")
@click.option("-l", "--long", "is_long", is_flag=True, help="More of each.")
@click.option("--name", metavar="LIST", help="Only with these names.")
@click.option("-N", "--nodelist", metavar="LIST", help="Only on these nodes.")
@click.option("-n", "--noheader", is_flag=True, help="No lines of titles.")
@click.option("-p", "--parsable", is_flag=True, help="Whole values, `|` after each.")
@click.option("-P", "--parsable2", is_flag=True, help="Whole values, `|` between them.")
@click.option("-q", "--qos", metavar="LIST", help="Only of these qualities of service.")
@click.option("-r", "--partition", metavar="LIST", help="Only of these partitions.")
@click.option("-S", "--starttime", metavar="TIME", help="Those that were there after it; this midnight by default.")
@click.option("-s", "--state", metavar="LIST", help="Only those that were in one of these states.")
@click.option("-u", "--user", "--uid", "user", metavar="LIST", help="Only of these users.")
@click.argument("rest", nargs=-1, metavar="")
def sacct(*, rest: tuple[str, ...], **asked: Any) -> int:
    """List the tasks since midnight, ended ones too, with the options and the output of Slurm's `sacct`.

    Example:
      flow sacct -j 12 -o JobID,State,ExitCode -n -P
    """
    if asked["helpformat"]:
        click.echo(help_text())
        return 0
    names = asked["names"] or (LONG if asked["is_long"] else BRIEF if asked["brief"] else DEFAULT)
    chosen, unknown = columns(names)
    if unknown is not None:
        raise Refused(f'sacct: error: Invalid field requested: "{unknown}"')
    from flow.client import Flow

    client = Flow()
    jobs = _jobs(client, asked)
    output.notes(client.notes)
    lines = table(
        chosen,
        entries(jobs, steps=not asked["allocations"]),
        header=not asked["noheader"],
        delimiter=asked["delimiter"] if asked["parsable"] or asked["parsable2"] else None,
        ends=not asked["parsable2"],
    )
    if lines:
        click.echo("\n".join(lines))
    return 0


def _jobs(client: Flow, asked: dict[str, Any]) -> list[Job]:
    """Those that are asked for, in the order of their numbers. Source: sacct(1), DEFAULT TIME WINDOW."""
    now = time.time()
    states = _states(asked["state"])
    chosen = None
    if asked["jobs"]:
        words = [word.partition(".")[0] for given in asked["jobs"] for word in split_list(given)]
        try:
            chosen, _ = chosen_tasks(client, words)
        except NotAJob as error:
            raise Refused(f"sacct: fatal: Bad job/step specified: {error}") from None
    default = 0.0 if chosen is not None else now if states else parse_moment("today", now, past=True)
    begin, end = _moment(asked["starttime"], default, now), _moment(asked["endtime"], now, now)
    jobs = [job for job in load_jobs(client, chosen) if _is_within(job, begin, end)]
    if chosen is None:
        jobs = [job for job in jobs if job.reason not in NOT_ELIGIBLE or not job.is_pending]
    return sorted(matching(jobs, asked, states=states), key=lambda job: job.place)


def _is_within(job: Job, begin: float, end: float) -> bool:
    return job.submitted <= end and (not job.is_finished or (job.ended or job.submitted) >= begin)


def _moment(text: str | None, default: float, now: float) -> float:
    if text is None:
        return default
    try:
        return parse_moment(text, now, past=True)
    except ValidationError:
        raise Refused(f"Invalid time specification (pos=0): {text}") from None


def _states(text: str | None) -> frozenset[str] | None:
    if text is None:
        return None
    found = {word: state_named(word) for word in text.split(",")}
    for word, state in found.items():
        if state is None:
            raise Refused(f"sacct: fatal: unrecognized job state value '{word}'")
    return frozenset(state for state in found.values() if state)
