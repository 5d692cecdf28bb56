"""`flow dev`: the machine to develop on."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flow.cli import follow, listing, output, times
from flow.cli.confirm import confirmed
from flow.cli.group import FlowCommand, UsageError, attach
from flow.errors import FlowError, ProviderError
from flow.status import TaskStatus

if TYPE_CHECKING:
    from flow.dev import DevMachine, Session
    from flow.task import Task

_SIGNALLED = 128  # an exit code above it tells of a signal
_SECTIONS = {
    "Machine": ("instance_type", "region", "provider", "idle_stop", "show_status", "do_reset", "do_stop"),
    "Command": ("command", "image", "environment", "no_upload", "watch"),
}
_COLUMNS = (output.Column("PID", right=True), output.Column("FOR", right=True), output.Column("RUNS", least=20))


@click.command(cls=FlowCommand, sections=_SECTIONS)
@click.option("-i", "--instance-type", metavar="TYPE", help="Kind of machine; by default an h100, or what there is.")
@click.option("--region", metavar="REGION", help="Region of the provider, or host of a fleet; by default any.")
@click.option("--provider", metavar="NAME", help="Where the machine is; `local` is this one.")
@click.option("--idle-stop", metavar="TIME", help="End it when nobody was there so long: `2h`, or `off`.")
@click.option("--status", "show_status", is_flag=True, help="Show the machine and what runs on it.")
@click.option(
    "--reset", "do_reset", is_flag=True, help="End the commands on it, with their containers; keep all files."
)
@click.option("--stop", "do_stop", is_flag=True, help="End the machine.")
@click.option("-c", "--command", metavar="CMD", help="Run this, and exit with its code; by default a shell.")
@click.option("--image", metavar="IMAGE", help="Run it in a fresh container of this image.")
@click.option("--env-name", "environment", default="", metavar="NAME", help="In another workspace of the machine.")
@click.option("--no-upload", is_flag=True, help="Leave the workspace as it is.")
@click.option("--watch", is_flag=True, help="Run the command again at each change to this folder.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def dev(
    *,
    instance_type: str | None,
    region: str | None,
    provider: str | None,
    idle_stop: str | None,
    show_status: bool,
    do_reset: bool,
    do_stop: bool,
    command: str | None,
    image: str | None,
    environment: str,
    no_upload: bool,
    watch: bool,
    yes: bool,
) -> int:
    """Work on one machine all day: a shell on it, or with `-c` a command, once this folder is up to date there.

    The first call starts the machine, which stays until `--stop`. Each command runs in a container of its own where
    there is an image, else on the machine with a /tmp of its own; nothing that it started outlives it.

    Example:
      flow dev -c 'python train.py'
    """
    _check(
        {"--status": show_status, "--reset": do_reset, "--stop": do_stop},
        {"-c": command is not None, "--image": image, "--env-name": environment, "--watch": watch,
         "--no-upload": no_upload, "-i": instance_type, "--region": region, "--idle-stop": idle_stop},
    )  # fmt: skip
    if command is not None and not command.strip():
        raise UsageError("the command is empty", suggestions=["type `flow dev -c 'python train.py'`"])
    if watch and (command is None or no_upload):
        raise UsageError(f"`--watch` {'needs `-c`' if command is None else 'uploads what changes'}")
    from flow.client import Flow
    from flow.dev import DevMachine

    idle_seconds = None if idle_stop is None else _idle_seconds(idle_stop)
    machine = DevMachine(Flow(provider=provider), environment=environment)
    if show_status:
        return _show(machine)
    if do_reset:
        count = machine.reset()
        output.say(f"{count} command{'' if count == 1 else 's'} ended; the files are as they were")
        return 0
    if do_stop:
        return _stop(machine, yes=yes)
    _start(machine, instance_type=instance_type, region=region, idle_stop_seconds=idle_seconds, upload=not no_upload)
    if watch:
        assert command
        return _watch(machine, command, image)
    if not no_upload and (environment or not machine.is_new):
        _sync(machine)
    attach()
    return _run(machine, command, image)


def _start(machine: DevMachine, *, upload: bool, **wanted: Any) -> None:
    """Until it runs. wanted: what `DevMachine.start` takes."""
    if upload and _is_project(Path.cwd()):
        machine.read_ahead()
    task = machine.start(upload=upload, **wanted)
    output.notes([*machine.client.notes, *(task.plan.notes if machine.is_new else ())])
    if machine.is_new:
        _tell_start(task)
    _until_started(task)
    if task.status.is_final:
        raise FlowError(f"the development machine ended: {task.reason}", suggestions=[f"see `flow logs {task}`"])


def _check(verbs: dict[str, bool], others: dict[str, object]) -> None:
    """That the options fit together."""
    given = [name for name, value in verbs.items() if value]
    if given and (more := [*given[1:], *(name for name, value in others.items() if value)]):
        raise UsageError(f"`{given[0]}` and `{more[0]}` exclude each other", suggestions=["give one of them"])


def _idle_seconds(text: str) -> float:
    if text in ("off", "never"):
        return 0
    seconds = times.parse_span(text)
    if seconds <= 0:
        raise UsageError(f"`--idle-stop {text}` leaves no time", suggestions=["write a span as `2h`, or `off`"])
    return seconds


def _sync(machine: DevMachine) -> None:
    here = Path.cwd()
    if not _is_project(here):
        output.note(f"`{here}` is not uploaded: run from a project's folder to have your code there")
        return
    done = machine.sync(here)
    output.notes(done.notes)
    for name in done.kept:
        output.note(f"`{name}` is kept, as it was changed there")


def _is_project(here: Path) -> bool:
    return here not in (Path.home(), Path(here.anchor))


def _tell_start(task: Task) -> None:
    from flow.dev import idle_stop_seconds

    output.say(output.line_of(task))
    idle = idle_stop_seconds(task)
    if idle:
        output.note(f"it ends by itself when nobody was on it for {times.span(idle)} (`--idle-stop off` to keep it)")
    else:
        output.note(f"it {'costs money' if task.price_per_hour else 'stays'} until `flow dev --stop`")


def _until_started(task: Task) -> None:
    try:
        follow.until_started(task)
    except KeyboardInterrupt:
        output.say("")
        output.note("the machine is still asked for")
        output.hint("give it up with `flow dev --stop`")
        raise click.exceptions.Exit(130) from None


def _show(machine: DevMachine) -> int:
    from flow.dev import idle_stop_seconds

    sessions = machine.sessions()
    task = machine.task
    idle = idle_stop_seconds(task)
    click.echo(f"{output.line_of(task)}{output.GAP}{output.status_word(task)}")
    end = f"when idle for {times.span(idle)}" if idle else "by `flow dev --stop`"
    is_up = task.status is TaskStatus.RUNNING
    where = f"{machine.host}, up {times.span(task.run_seconds or 0)}" if is_up else listing.reason(task)
    cost = task.total_cost if is_up and task.price_per_hour else ""
    click.echo(", ".join(part for part in (where, cost and f"{cost} so far", f"ends {end}") if part))
    if sessions:
        click.echo("\n".join(output.table(_COLUMNS, [_row(one) for one in sessions])))
    return 0


def _row(one: Session) -> tuple[str, str, str]:
    return str(one.pid), times.age(time.time() - one.started), one.what


def _stop(machine: DevMachine, *, yes: bool) -> int:
    try:
        sessions = machine.sessions()
    except ProviderError:  # out of reach: nobody knows what runs there
        if not yes:
            raise
        sessions = []
    if sessions:
        count = len(sessions)
        what = f"`{output.printable(sessions[0].what)}`" + (f" and {count - 1} more" if count > 1 else "")
        if not confirmed(f"{what} still run{'s' if count == 1 else ''} there. End the machine?", yes=yes):
            return 1
    task = machine.stop()
    told = "is to end, as the first `flow` command will tell it that finds its host to answer again"
    told = told if machine.is_silent else "is told to end"
    output.say(f"`{task}` has ended" if task.status.is_final else f"`{task}` {told}")
    if machine.client.provider(task.provider).capabilities.rents and not machine.is_silent:
        follow.until_ended(task)
        follow.until_given_back(machine.client, [task])
    return 0


def _run(machine: DevMachine, command: str | None, image: str | None) -> int:
    code = machine.run(command, image=image)
    if code > _SIGNALLED:
        with suppress(FlowError):  # it cannot be asked
            if machine.find() is None:
                output.note("the development machine has ended")
    return code


def _watch(machine: DevMachine, command: str, image: str | None) -> int:
    try:
        machine.watch(command, image=image, tell=output.note)
    except KeyboardInterrupt:
        sys.stderr.write("\n")
    return 130
