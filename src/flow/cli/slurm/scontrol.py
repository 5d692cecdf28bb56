"""`flow scontrol`: look at tasks and machines in detail, hold tasks, let them go, run them again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from flow.cli.slurm.command import Refused, SlurmCommand
from flow.cli.slurm.jobs import NotAJob, chosen_tasks, load_jobs, split_list
from flow.errors import FlowError
from flow.node import hostlist
from flow.slurm.job_text import job_lines, text_of

if TYPE_CHECKING:
    from flow.client import Flow
    from flow.task import Task

_OURS = ("job", "host")  # what is shown of tasks, or needs no cluster
_NO_SUCH_JOB = "Invalid job id specified"


@click.command(cls=SlurmCommand)
@click.option("-o", "--oneliner", is_flag=True, help="Each thing on one line.")
@click.option("-d", "--details", is_flag=True, help="All there is, as shown anyway.")
@click.option("-Q", "--quiet", is_flag=True, help="Say only what went wrong.")
@click.argument("words", nargs=-1, required=True, metavar="COMMAND…")
def scontrol(words: tuple[str, ...], *, oneliner: bool, details: bool, quiet: bool) -> int:
    """Do what Slurm's `scontrol` does for one's own jobs.

    \b
    show job [JOB], show node [NAME], show partition
    show hostnames LIST, show hostlist NAME,NAME…
    hold JOB…, release JOB…, requeue JOB…
    update JobId=JOB Priority=N
    ping, version

    Example:
      flow scontrol show job 12
    """
    command, *rest = words
    acts: dict[str, Callable[[Task], None]] = {
        "hold": lambda task: task.hold(),
        "uhold": lambda task: task.hold(),
        "release": lambda task: task.resume(),
        "requeue": lambda task: task.requeue(),
        "requeuehold": lambda task: task.requeue(hold=True),
    }
    if command in ("ping", "version") or (command == "show" and not "".join(rest[:1]).startswith(_OURS)):
        from flow.cli.slurm.machines import ask_cluster
        from flow.client import Flow

        code = ask_cluster(Flow(), ["scontrol", *["--oneliner"] * oneliner, *["--details"] * details, *words])
        if code is not None:
            return code
    if command == "show":
        _show(rest, one_line=oneliner)
    elif command in acts:
        _each(rest, acts[command], command)
    elif command == "update":
        _update(rest)
    elif command == "ping":
        click.echo("Slurmctld(primary) at localhost is UP")
    elif command == "version":
        import flow

        click.echo(f"flow {flow.__version__}")
    else:
        raise Refused(f"invalid keyword: {command}")
    return 0


def _show(words: Sequence[str], *, one_line: bool) -> None:
    if not words:
        raise Refused("too few arguments for keyword:show")
    what, equals, name = words[0].partition("=")
    names = [name, *words[1:]] if equals else list(words[1:])
    kinds: dict[str, Callable[[list[str], bool], None]] = {
        "hostnames": lambda names, one: _lines(_expanded(names)),
        "hostlist": lambda names, one: _lines([hostlist.fold(_expanded(names))]),
        "hostlistsorted": lambda names, one: _lines([hostlist.fold(sorted(_expanded(names)))]),
        "jobs": _show_jobs,
        "jobid": _show_jobs,
        "nodes": _show_nodes,
        "partitions": _show_partitions,
    }
    show = next((show for kind, show in kinds.items() if kind.startswith(what.lower())), None)
    if not show:
        raise Refused(f"invalid entity:{what} for keyword:show ")
    show(names, one_line)


def _lines(lines: Sequence[str]) -> None:
    click.echo("\n".join(lines))


def _expanded(names: Sequence[str]) -> list[str]:
    try:
        return hostlist.expand(",".join(names))
    except ValueError:
        raise Refused(f"Invalid hostlist: {','.join(names)}") from None


def _show_jobs(names: list[str], one_line: bool) -> None:
    from flow.client import Flow

    client = Flow()
    chosen = None
    if names:
        chosen = _chosen(client, names[:1], "slurm_load_jobs error: ")
    jobs = load_jobs(client, chosen, unfinished=chosen is None)
    if not jobs:
        _lines(["No jobs in the system"])
    for job in sorted(jobs, key=lambda one: one.place):
        click.echo(text_of(job_lines(job), one_line=one_line))


def _show_nodes(names: list[str], one_line: bool) -> None:
    from flow.cli.slurm.machines import machines
    from flow.client import Flow

    wanted = _expanded(names)
    there = machines(Flow())
    for name in wanted:
        if name not in [one.names for one in there]:
            raise Refused(f"Node {name} not found")
    for one in there:
        if not wanted or one.names in wanted:
            lines = [
                [f"NodeName={one.names}", f"CoresPerSocket={one.cpus:g} "],
                [f"CPUTot={one.cpus:g}"],
                [f"Gres={one.gpu or '(null)'}"],
                [f"RealMemory={one.memory_mb}", "Sockets=1", "Boards=1"],
                [f"State={one.state.upper()}", "ThreadsPerCore=1"],
                [f"Partitions={one.partition} "],
            ]
            click.echo(text_of(lines, one_line=one_line))


def _show_partitions(names: list[str], one_line: bool) -> None:
    from flow.cli.slurm.machines import machines
    from flow.client import Flow

    there = machines(Flow())
    known = dict.fromkeys(one.partition for one in there)
    for name in names:
        if name not in known:
            raise Refused(f"Partition {name} not found")
    for name in names or known:
        own = [one for one in there if one.partition == name]
        lines = [
            [f"PartitionName={name}"],
            ["AllowGroups=ALL", "AllowAccounts=ALL", "AllowQos=ALL"],
            ["MaxNodes=UNLIMITED", "MaxTime=UNLIMITED", "MinNodes=0"],
            [f"Nodes={hostlist.fold([one.names for one in own])}"],
            ["State=UP", f"TotalNodes={sum(one.available or 0 for one in own)}"],
        ]
        click.echo(text_of(lines, one_line=one_line))


def _chosen(client: Flow, words: Sequence[str], refusal: str) -> dict[str, frozenset[int] | None]:
    try:
        chosen, unknown = chosen_tasks(client, [one for word in words for one in split_list(word)])
    except NotAJob:
        raise Refused(f"{refusal}{_NO_SUCH_JOB}") from None
    if unknown:
        raise Refused(f"{refusal}{_NO_SUCH_JOB}")
    return chosen


def _each(words: Sequence[str], act: Callable[[Task], None], name: str) -> None:
    if not words:
        raise Refused(f"too few arguments for keyword:{name}")
    from flow.client import Flow

    client = Flow()
    failed = []
    for word in words:
        try:
            for task in _tasks(client, word):
                act(task)
        except Refused:
            failed.append(f"{_NO_SUCH_JOB} for job {word}")
        except FlowError as error:
            failed.append(f"{error.message} for job {word}")
    if failed:
        raise Refused("\n".join(failed))


def _tasks(client: Flow, word: str) -> list[Task]:
    ids = []
    for base, some in _chosen(client, [word], "").items():
        ids += [base] if some is None else [f"{base}_{index}" for index in sorted(some)]
    return [client.get_task(task_id) for task_id in ids]


def _update(words: Sequence[str]) -> None:
    """What can be changed of a task that waits is whether it is held; the rest was decided when it was submitted."""
    asked = {name.lower(): value for name, _, value in (word.partition("=") for word in words)}
    job = asked.pop("jobid", None)
    if job is None:
        raise Refused(
            "No valid entity in update command\n"
            'Input line must include "NodeName", "PartitionName", "Reservation", "JobId", or "SlurmctldDebug"'
        )
    if set(asked) == {"priority"} and asked["priority"] == "0":
        _each([job], lambda task: task.hold(), "update")
        return
    told = [
        f"Update of this parameter is not supported: {word}" for word in words if not word.lower().startswith("jobid")
    ]
    raise Refused("\n".join([*told, "Request aborted"]))
