"""`flow run`: submit one task, and with `--watch` follow it to its end."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from flow.cli import copying, costs, follow, output
from flow.cli.group import UsageError
from flow.cli.operand import ARGV, OperandCommand
from flow.cli.variables import read_variables
from flow.errors import ValidationError
from flow.operand import read_operand

if TYPE_CHECKING:
    from pathlib import Path

    from flow.client import Flow
    from flow.config import TaskConfig
    from flow.task import Task

_SECTIONS = {
    "Machine": ("instance_type", "gpu", "num_instances", "image", "ports", "provider", "region", "max_price_per_hour",
                "wait_for_price", "keep"),
    "Task": (
        "name", "env", "env_files", "mounts", "working_dir", "upload_code", "max_run_time_hours", "retries", "priority",
        "idempotency_key",
    ),
}  # fmt: skip


@click.command(cls=OperandCommand, sections=_SECTIONS)
@click.argument("operand", required=False, metavar="[OPERAND]")
@click.option("-i", "--instance-type", metavar="TYPE", help="Kind of machine: `8xa100`, or a provider's own name.")
@click.option("--gpu", metavar="GPU", help="GPUs of each machine: `a100:8`.")
@click.option("-N", "--num-instances", type=click.IntRange(min=1), metavar="N", help="Number of machines.")
@click.option("--image", metavar="IMAGE", help="Container image to run in.")
@click.option(
    "-p",
    "--port",
    "ports",
    type=click.IntRange(1, 65535),
    multiple=True,
    metavar="PORT",
    help="A port that the task serves; may be repeated.",
)
@click.option("--provider", metavar="NAME", help="Where to run; `local` is this machine.")
@click.option("--region", metavar="REGION", help="Region of the provider; one that has the machines by default.")
@click.option("-m", "--max-price-per-hour", type=float, metavar="USD", help="Pay at most this for all machines.")
@click.option("--wait-for-price", is_flag=True, default=None, help="Wait where machines cost more than that now.")
@click.option("--keep", is_flag=True, default=None, help="Keep machines that cost money after the end.")
@click.option("-n", "--name", metavar="NAME", help="Name of the task.")
@click.option("-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="Set a variable, or pass on the one set here.")
@click.option("--env-file", "env_files", multiple=True, metavar="FILE", help="Set the variables that a file lists.")
@click.option(
    "--mount",
    "mounts",
    multiple=True,
    metavar="[PATH=]SOURCE",
    help="Have it see `s3://bucket/path` or `volume://name` at PATH (/data); may be repeated.",
)
@click.option("--working-dir", metavar="DIR", help="Folder in which the command starts.")
@click.option(
    "--upload-code/--no-upload-code", default=None, help="Give the task a copy of this folder (default), or not."
)
@click.option("-t", "--max-run-time-hours", type=float, metavar="HOURS", help="End it when it has run so long.")
@click.option("--retries", type=click.IntRange(min=0), metavar="N", help="How often to run again after a failure.")
@click.option("--priority", type=int, metavar="N", help="Higher goes first.")
@click.option("--idempotency-key", metavar="KEY", help="Asked twice with it, submit once, though files changed.")
@click.option("-w", "--watch", is_flag=True, help="Follow it to the end and exit with its code.")
@click.option("-d", "--dry-run", is_flag=True, help="Print what would be submitted; submit nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def run(
    operand: str | None,
    *,
    env: tuple[str, ...],
    env_files: tuple[str, ...],
    ports: tuple[int, ...],
    mounts: tuple[str, ...],
    idempotency_key: str | None,
    watch: bool,
    dry_run: bool,
    as_json: bool,
    yes: bool,
    **fields: Any,
) -> int:
    """Run OPERAND as a task, with a copy of this folder.

    OPERAND is a task file (.yaml), a script (.py, .sh) or one quoted shell command; a command of several words
    goes after `--`. With `--name`, `-i` or `--gpu` and nothing to run, a machine is held for `flow ssh`.

    Example:
      flow run 'python train.py --lr 0.1' --gpu a100 --name train --watch
    """
    argv = click.get_current_context().meta[ARGV]
    fields = {**fields, "ports": list(ports), "mounts": _mounts(mounts)}
    given = {name: value for name, value in fields.items() if value not in (None, [], {})}
    _check_operand(operand, argv, given)
    if idempotency_key == "":
        raise UsageError("`--idempotency-key` is empty", suggestions=["give it a word of its own for each task"])
    what = None if operand is None else read_operand(operand)
    variables = read_variables(env, env_files)
    from flow.client import Flow

    client = Flow(provider=given.get("provider"))
    config = _config(client, what, argv, fields=given, variables=variables)
    if dry_run:
        return _print_plan(client, config, as_json=as_json)
    task = client.run(config, idempotency_key=idempotency_key)
    output.notes([*client.notes, *task.plan.notes])
    if watch:
        return _watch(task, as_json=as_json)
    if as_json:
        output.print_json(task.record())
        return 0
    click.echo(output.line_of(task))
    output.hint(_next_step(task, interactive=operand is None and not argv))
    return 0


def _mounts(given: tuple[str, ...]) -> dict[str, str]:
    """What is to be seen, by its path; a source alone is seen at /data."""
    mounts: dict[str, str] = {}
    for one in given:
        path, equals, source = one.partition("=") if one.startswith("/") else ("/data", "=", one)
        if not equals:
            raise UsageError(f"`--mount {one}` has no source", suggestions=[f"write `--mount {one}=volume://NAME`"])
        if path in mounts:
            raise UsageError(f"two things are to be mounted at `{path}`", suggestions=["give each its own path"])
        mounts[path] = source
    return mounts


def _check_operand(operand: str | None, argv: list[str] | None, given: dict[str, Any]) -> None:
    if "gpu" in given and "instance_type" in given:
        raise UsageError("`--gpu` and `--instance-type` say the same thing", suggestions=["give one of them"])
    if operand is not None and not operand.strip():
        raise UsageError("the command is empty", suggestions=["type `flow run 'echo hello'`"])
    if argv is not None and not argv:
        raise UsageError("there is nothing after `--`", suggestions=["type `flow run -- echo hello`"])
    if operand is None and argv is None and not given.keys() & {"gpu", "instance_type", "name"}:
        raise UsageError(
            "there is nothing to run",
            suggestions=[
                "give a command, a script or a task file: `flow run 'echo hello'`",
                "for a machine to log in to, give its kind or name: `flow run --name box`",
            ],
        )


def _config(
    client: Flow,
    operand: str | Path | None,
    argv: list[str] | None,
    *,
    fields: dict[str, Any],
    variables: dict[str, str],
) -> TaskConfig:
    """What was asked: the file's fields, those of the command line over them, and the variables of both."""
    config = client.load(argv or operand)
    if variables:
        fields = {**fields, "env": {**config.env, **variables}}
    if fields.get("mounts"):
        fields = {**fields, "mounts": {**config.mounts, **fields["mounts"]}}
    return config.copy_with(**fields)


def _print_plan(client: Flow, config: TaskConfig, *, as_json: bool) -> int:
    from flow.cli.plan_text import masked_plan, plan_lines

    plan = client.plan(config)
    output.notes([*client.notes, *plan.notes])
    if as_json:
        output.print_json(masked_plan(plan))
    else:
        click.echo("\n".join(plan_lines(plan)))
    return 0


def _watch(task: Task, *, as_json: bool) -> int:
    """Follow the task to its end. With `as_json` stdout holds its record alone, and what it writes goes to stderr."""
    stderr = sys.stderr.buffer
    copy = copying.Copy(stderr if as_json else sys.stdout.buffer, stderr, marked=copying.is_marked(task, None))
    with follow.attached(task):
        output.say(output.line_of(task))
        follow.until_started(task)
        try:
            blocks = task.blocks(follow=True, on_look=follow.interruptions(task, copy.end_line))
        except ValidationError as error:  # an array too large to be read at once
            output.note(error.message)
            output.hint(error.suggestions[0])
            follow.until_ended(task)
        else:
            with follow.forwarded(task):
                copy.take(blocks, tell_attempts=True)
                copy.end_line()
                task.wait()
    if as_json:
        output.print_json(task.record())
    for line in follow.summary(task):
        output.say(line)
    if costs.say_kept(task):
        from flow.access import way_in

        output.hint(way_in(task))
    return follow.exit_code(task)


def _next_step(task: Task, *, interactive: bool) -> str:
    if interactive:
        return f"log in with `flow ssh {task.task_id}`"
    if task.plan.elements:
        return f"see how far it is with `flow status {task.task_id}`"
    return f"follow it with `flow logs {task.task_id} -f`"
