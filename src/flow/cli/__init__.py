"""The `flow` command: its table of commands, and where an invocation begins and ends."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from flow.cli.group import Entry, Invocation, TaskGroup

_TASKS = "Tasks"
_MACHINES = "Machines"
_SLURM = "Slurm's commands"
_SETUP = "Setup"

# name -> where it is, its line in `flow --help`, the section it stands in. Nothing is imported until it is called.
COMMANDS = {
    "run": Entry("flow.cli.run:run", "Run a command, a script or a task file.", _TASKS),
    "status": Entry("flow.cli.status:status", "List tasks, newest first.", _TASKS),
    "logs": Entry("flow.cli.logs:logs", "Print or follow what a task writes.", _TASKS),
    "info": Entry("flow.cli.info:info", "Everything known about one task.", _TASKS),
    "wait": Entry("flow.cli.wait:wait", "Wait for tasks to end, and exit with their code.", _TASKS),
    "cancel": Entry("flow.cli.cancel:cancel", "End tasks.", _TASKS),
    "dev": Entry("flow.cli.dev:dev", "A machine to develop on: a shell, or a command at once.", _TASKS),
    "hold": Entry("flow.cli.hold:hold", "Keep tasks from starting.", _TASKS),
    "resume": Entry("flow.cli.hold:resume", "Let held tasks start.", _TASKS),
    "ssh": Entry("flow.cli.ssh:ssh", "A shell, or one command, where a task runs.", _TASKS),
    "cp": Entry("flow.cli.cp:cp", "Copy files to and from a task.", _TASKS),
    "forward": Entry("flow.cli.forward:forward", "Make ports of a task ports of this machine.", _TASKS),
    "upload-code": Entry("flow.cli.upload_code:upload_code", "Bring a running task's code up to date.", _TASKS),
    "jupyter": Entry("flow.cli.jupyter:jupyter", "Open notebooks in a running task.", _TASKS),
    "colab": Entry("flow.cli.colab:colab", "A machine of yours behind Google Colab's page.", _TASKS),
    "ssh-config": Entry("flow.cli.ssh_config:ssh_config", "Entries for ssh, scp, rsync and editors.", _TASKS),
    "mount": Entry("flow.cli.mount:mount", "Give a running task one more volume.", _TASKS),
    "offers": Entry("flow.cli.offers:offers", "The machines to be had now, and their price.", _MACHINES),
    "pricing": Entry("flow.cli.pricing:pricing", "What machines cost, and have cost.", _MACHINES),
    "orphans": Entry("flow.cli.orphans:orphans", "What costs money and no task here owns.", _MACHINES),
    "host": Entry("flow.cli.host:host", "Machines of your own, over SSH: add, list, check, remove.", _MACHINES),
    "volume": Entry("flow.cli.volume:volume", "Storage that outlives tasks: create, list, info, delete.", _MACHINES),
    "sbatch": Entry("flow.cli.slurm.sbatch:sbatch", "Submit a batch script.", _SLURM),
    "srun": Entry("flow.cli.slurm.srun:srun", "Run a command, and wait for its end.", _SLURM),
    "squeue": Entry("flow.cli.slurm.squeue:squeue", "List tasks that have not ended.", _SLURM),
    "sacct": Entry("flow.cli.slurm.sacct:sacct", "List tasks since midnight, ended ones too.", _SLURM),
    "scancel": Entry("flow.cli.slurm.scancel:scancel", "End tasks, or send them a signal.", _SLURM),
    "scontrol": Entry("flow.cli.slurm.scontrol:scontrol", "Tasks in detail; hold, release, requeue them.", _SLURM),
    "sinfo": Entry("flow.cli.slurm.sinfo:sinfo", "List the machines to be had.", _SLURM),
    "slurm": Entry("flow.cli.slurm.install:slurm", "Put these commands on PATH under their own names.", _SLURM),
    "init": Entry("flow.cli.init:init", "Set Flow up: where tasks run, and what that needs.", _SETUP),
    "config": Entry("flow.cli.config:config", "Show and change the settings.", _SETUP),
    "schema": Entry("flow.cli.schema:schema", "Print the JSON schema of a task file.", _SETUP),
    "completion": Entry("flow.cli.completion:completion", "Complete our commands in your shell.", _SETUP),
    "prune": Entry("flow.cli.prune:prune", "Delete the records of ended tasks.", _SETUP),
}

SYNONYMS = {
    "copy": "cp", "delete": "cancel", "describe": "info", "exec": "ssh", "hosts": "host", "kill": "cancel",
    "lab": "jupyter", "launch": "run", "list": "status", "log": "logs", "ls": "status", "notebook": "jupyter",
    "port-forward": "forward", "ps": "status", "rm": "cancel", "scp": "cp", "setup": "init", "shell": "ssh",
    "show": "info", "stop": "cancel", "submit": "run", "tail": "logs", "upload": "upload-code", "volumes": "volume",
}  # fmt: skip

flow = TaskGroup(
    COMMANDS,
    SYNONYMS,
    name="flow",
    help="Run tasks anywhere: on this machine, SSH hosts, Slurm or a cloud.",
    example="flow run 'echo hello' --watch",
    is_program=True,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (those of the process by default) and return its exit code."""
    return run_program(flow, arguments)


def run_program(program: TaskGroup, arguments: Sequence[str] | None = None) -> int:
    """The same of any program."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    invocation = Invocation(as_json="--json" in words[: words.index("--") if "--" in words else None])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 is no reason to fail
    try:
        code = _completed(program) if _completing(program) in os.environ else program.call(words, invocation)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BaseException as error:
        from flow.cli.failures import report  # most invocations do not fail

        return report(error, invocation)


def _completed(program: TaskGroup) -> int:
    """What a shell's completion function asks for, by click's protocol."""
    from click.shell_completion import shell_complete

    variable = _completing(program)
    return shell_complete(program, {}, str(program.name), variable, os.environ[variable])


def _completing(program: TaskGroup) -> str:
    return f"_{program.name}_COMPLETE".upper()
