"""`flow srun`: run a command as a task, its output here, its exit code ours."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import stat
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flow.cli import copying, follow
from flow.cli.group import attach
from flow.cli.slurm.command import WORDS, Refused, WordsCommand
from flow.errors import FlowError
from flow.status import TaskStatus

if TYPE_CHECKING:
    from flow.client import Flow
    from flow.slurm.options import Given
    from flow.task import Task

# What the srun on the task's first node is told; the rest is asked of the task itself.
_OF_THE_STEP = """
    accel-bind bcast bcast-exclude compress cpu-bind debugger-test disable-status distribution epilog error exact
    het-group immediate input interactive jobid kill-on-bad-exit label mpi msg-timeout multi-prog no-allocate
    ntasks-per-tres output overlap preserve-env prolog pty quiet relative resv-ports send-libs slurmd-debug task-epilog
    task-prolog threads tres-per-task unbuffered verbose wait x11
"""
_AGAIN_SECONDS = 1.0  # a second Ctrl-C within this ends the task


@click.command(cls=WordsCommand, options_metavar="[OPTIONS] COMMAND [ARGS…]")
def srun() -> int:
    """Run COMMAND as a task with the options of Slurm's `srun`, and wait for it; its output comes here.

    Its exit code is ours. Ctrl-C twice within a second ends it. With `--pty` it is a shell, or one command, at this
    terminal. A task on this machine reads our standard input.

    Example:
      flow srun -n 4 --label hostname
    """
    words = click.get_current_context().meta[WORDS]
    if "SLURM_JOB_ID" in os.environ:
        _become_the_steps_srun(words)
    own, given, command = _read(words)
    if "--pty" not in own and not command:
        raise Refused("srun: fatal: No command given to execute.")
    from flow.client import Flow
    from flow.config import TaskConfig

    client = Flow()
    fields = _fields(own, given, command, stdin=_stdin(client))
    attach()
    task = client.run(TaskConfig.from_dict(fields))
    return _at_terminal(client, task, command) if "--pty" in own else _watched(client, task)


def _become_the_steps_srun(words: Sequence[str]) -> None:
    """In a task it is the `srun` there that starts a step of it: the next one on PATH that does not call us."""
    from flow.node.slurm_login import program

    path = program("srun")
    if os.path.isabs(path):  # noqa: PTH117  # it was found
        os.execv(path, ["srun", *words])
    raise Refused("srun: error: this task has no `srun` to start its steps with")


def _read(words: Sequence[str]) -> tuple[list[str], list[Given], list[str]]:
    """The options that are the step's alone, those of the task, and the command."""
    from flow.node.srun_options import UsageError, read
    from flow.slurm.options import parse_command_line

    own = _OF_THE_STEP.split()
    try:
        found, _, command = read(list(words), {})
        written = {name: f"--{name}={value}" if value else f"--{name}" for name, value in found.items()}
        given, *_ = parse_command_line([word for name, word in written.items() if name not in own])
    except UsageError as error:
        raise Refused(*error.args) from error
    except FlowError as error:
        raise Refused(f"srun: error: {error.message}") from error
    return [word for name, word in written.items() if name in own], given, command


def _stdin(client: Flow) -> str:
    """Where a task on this machine finds our standard input; "" for a terminal, and a file that was read in part."""
    path = Path(f"/proc/{os.getpid()}/fd/0")
    with contextlib.suppress(OSError):
        mode = path.stat().st_mode
        is_whole = stat.S_ISFIFO(mode) or (stat.S_ISREG(mode) and os.lseek(0, 0, os.SEEK_CUR) == 0)
        if is_whole and client.provider().capabilities.same_machine:
            return f" <{path}"
    return ""


def _fields(own: Sequence[str], given: list[Given], command: Sequence[str], *, stdin: str) -> dict[str, Any]:
    """Those of a task whose batch script is one `srun`; with `--pty` it waits, for the terminal enters it."""
    from flow.slurm.options import Given
    from flow.slurm.script import read_script

    step = "tail -f /dev/null" if "--pty" in own else shlex.join(["srun", *own]) + f' "$@"{stdin}'
    named = {one.name for one in given}
    defaults = {
        "job-name": Path(command[0]).name if command else "interactive",
        "output": "/dev/null",  # what the step does not write elsewhere is shown here
        "error": "/dev/./null",  # in one file they were one stream
    }
    given = [Given(name, value) for name, value in defaults.items() if name not in named] + given
    try:
        script = read_script(f"#!/bin/sh\nexec {step}\n".encode(), {}, name="srun", given=given, args=command)
    except FlowError as error:
        raise Refused(f"srun: error: {error.message}") from error
    for note in script.notes:
        click.echo(f"srun: {note}", err=True)
    return dict(script.fields)


def _watched(client: Flow, task: Task) -> int:
    for note in [*client.notes, *task.plan.notes]:
        click.echo(f"srun: {note}", err=True)
    _take_interrupts(client, task)
    is_told = False
    began = time.monotonic()
    while task.refresh().status in (TaskStatus.PENDING, TaskStatus.STARTING):
        if not is_told and time.monotonic() - began > _AGAIN_SECONDS:
            click.echo(f"srun: job {task.number} queued and waiting for resources", err=True)
            is_told = True
        time.sleep(0.02)
    if is_told:
        click.echo(f"srun: job {task.number} has been allocated resources", err=True)
    copy = copying.Copy(sys.stdout.buffer, sys.stderr.buffer, marked=False)
    copy.take(task.blocks(follow=True), tell_attempts=False)
    task.wait()
    return follow.exit_code(task)


def _take_interrupts(client: Flow, task: Task) -> None:
    """The first Ctrl-C is told of, a second one soon after it ends the task."""
    last = -_AGAIN_SECONDS
    count = int(task.plan.batch.variables.get("SLURM_NTASKS", "1")) if task.plan.batch else 1
    tasks = f"tasks 0-{count - 1}" if count > 1 else "task 0"

    def interrupted(number: int, frame: object) -> None:  # what it interrupts may be writing, or at the records
        nonlocal last
        now = time.monotonic()
        if now - last < _AGAIN_SECONDS:
            os.write(2, f"srun: sending Ctrl-C to StepId={task.number}.0\n".encode())
            threading.Thread(target=client.cancel, args=(task.task_id,)).start()
            return
        last = now
        told = (
            f"srun: interrupt (one more within 1 sec to abort)\nsrun: StepId={task.number}.0 {tasks}: {task.status}\n"
        )
        os.write(2, told.encode())

    signal.signal(signal.SIGINT, interrupted)


def _at_terminal(client: Flow, task: Task, command: Sequence[str]) -> int:
    try:
        follow.until_started(task)
        if task.status.is_final:
            raise Refused(f"srun: error: job {task.number} ended before it could be entered: {task.reason}")
        return task.shell(list(command) or None)
    finally:
        client.cancel(task)
