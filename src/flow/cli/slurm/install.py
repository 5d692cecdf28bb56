"""`flow slurm`: Slurm's commands under their own names."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

import click

from flow.cli import output
from flow.cli.group import Entry, FlowCommand, TaskGroup
from flow.errors import StorageError, ValidationError
from flow.node.slurm_login import MADE_BY, is_ours

COMMANDS = ("sbatch", "squeue", "scancel", "sacct", "sinfo", "srun", "scontrol")

slurm = TaskGroup(
    {"install-commands": Entry("flow.cli.slurm.install:install_commands", "Put them into a folder.", "Commands")},
    {"install": "install-commands"},
    name="slurm",
    help="Slurm's commands under their own names, for scripts that call them.",
    example="flow slurm install-commands ~/slurm-bin",
)


@click.command("install-commands", cls=FlowCommand)
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
def install_commands(folder: Path) -> int:
    """Put `sbatch`, `squeue`, `scancel`, `sacct`, `sinfo`, `srun` and `scontrol` into DIR, each calling this `flow`.

    What is there already, and was not put there by this command, stays, and nothing is written.

    Example:
      flow slurm install-commands ~/slurm-bin
    """
    others = [name for name in COMMANDS if (folder / name).exists() and not is_ours(str(folder / name))]
    if others:
        raise ValidationError(
            f"`{folder / others[0]}` is there already, and not made by this command",
            suggestions=["give another folder, as `~/slurm-bin`"],
        )
    shell = shutil.which("bash") or "/bin/sh"  # other shells drop the functions that were exported for a script
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in COMMANDS:
            _write(folder / name, f'#!{shell}\n{MADE_BY}\nexec {_this_flow()} {name} "$@"\n')
    except OSError as error:
        raise StorageError(f"cannot write to `{folder}`: {error.strerror}") from error
    for name in COMMANDS:
        click.echo(str(folder / name))
    where = folder.absolute()
    if str(where) not in os.environ.get("PATH", "").split(os.pathsep):
        output.hint(f'put them first on your PATH: `export PATH={shlex.quote(str(where))}:"$PATH"`')
    return 0


def _write(path: Path, text: str) -> None:
    """Whole, in place of what was there: somebody may be running it."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(text)
    new.chmod(0o755)
    new.rename(path)


def _this_flow() -> str:
    """The words that call the program that runs now, wherever they are called."""
    beside = Path(sys.executable).with_name("flow")
    words = [str(beside)] if os.access(beside, os.X_OK) else [sys.executable, "-m", "flow"]
    return shlex.join(words)
