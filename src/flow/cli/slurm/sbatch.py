"""`flow sbatch`: submit a Slurm batch script, on any provider."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flow.cli.slurm.command import WORDS, Refused, WordsCommand
from flow.errors import FlowError
from flow.mistakes import MistakesError
from flow.slurm.times import stamp
from flow.status import TaskStatus

if TYPE_CHECKING:
    from flow.client import Flow
    from flow.config import TaskConfig
    from flow.slurm.options import Given
    from flow.slurm.script import SlurmScript
    from flow.task import Task

_BAD_OPTION = 255  # sbatch's own exit code for a mistake in the options


@click.command(cls=WordsCommand, options_metavar="[OPTIONS] [SCRIPT [ARGS…]]")
def sbatch() -> int:
    """Submit SCRIPT, or what standard input holds, with the options of Slurm's `sbatch`; print the number of the job.

    Options of the command line win over SBATCH_* variables, and those over the script's `#SBATCH` lines.

    \b
    --wrap COMMAND   a shell command in place of a script
    --parsable       print the number alone
    -W, --wait       wait for the end, and exit with its code
    --test-only      check it, and submit nothing
    -Q, --quiet      print no number

    Example:
      flow sbatch --array 1-10 --gpus 1 train.sh
    """
    words = click.get_current_context().meta[WORDS]
    from flow.client import Flow
    from flow.config import TaskConfig
    from flow.slurm.options import parse_command_line

    try:
        given, path, args = parse_command_line(words)
    except FlowError as error:
        raise _refused(error, _BAD_OPTION) from error
    asked = {one.name: one.value for one in given}
    try:
        script = _script(given, asked, path, args)
        config = TaskConfig.from_dict(dict(script.fields))
    except FlowError as error:
        raise _refused(error, _BAD_OPTION if isinstance(error, MistakesError) else 1) from error
    client = Flow()
    quiet = "quiet" in script.options
    if not quiet:
        for note in script.notes:
            click.echo(f"sbatch: {note}", err=True)
    if "test-only" in script.options:
        return _test(client, config)
    return _submit(client, config, script, quiet=quiet)


def _script(given: list[Given], asked: dict[str, str], path: str | None, args: list[str]) -> SlurmScript:
    from flow.slurm.script import read_script, read_slurm_script, wrapped

    if "wrap" in asked:
        if path is not None:
            raise Refused("sbatch: error: Script arguments not permitted with --wrap option")
        return read_script(wrapped(asked["wrap"]), os.environ, name="wrap", given=given)
    if path is None:
        return read_script(sys.stdin.buffer.read(), os.environ, name="the script", given=given)
    found = path if Path(path).exists() else "/" not in path and shutil.which(path)
    if not found:
        raise Refused(f"sbatch: error: Unable to open file {path}")
    return read_slurm_script(Path(found), os.environ, given=given, args=args)


def _test(client: Flow, config: TaskConfig) -> int:
    try:
        plan = client.plan(config)
    except FlowError as error:
        raise Refused(f"allocation failure: {error.message}") from error
    cpus = round(plan.cpus * plan.nodes)
    starts = stamp(max(time.time(), plan.not_before or 0.0))
    click.echo(f"sbatch: Job to start at {starts} using {cpus} processors on {plan.provider}", err=True)
    return 0


def _submit(client: Flow, config: TaskConfig, script: SlurmScript, *, quiet: bool) -> int:
    task = client.run(config)
    name = str(task.number or task.task_id)
    if not quiet:
        for note in [*client.notes, *task.plan.notes]:
            click.echo(f"sbatch: {note}", err=True)
        click.echo(name if "parsable" in script.options else f"Submitted batch job {name}")
    if "wait" not in script.options:
        return 0
    sys.stdout.flush()
    task.wait()
    return _exit_code(task)


def _exit_code(task: Task) -> int:
    """The script's own code; 1 where something else ended it. Source: sbatch(1), --wait."""
    if task.status is TaskStatus.COMPLETED:
        return 0
    is_own = task.status is TaskStatus.FAILED and not task.signal
    return (task.exit_code or 1) if is_own else 1


def _refused(error: FlowError, code: int) -> Refused:
    lines = [f"sbatch: error: {error.message}", *(f"sbatch: hint: {one}" for one in error.suggestions[:2])]
    return Refused("\n".join(lines), code)
