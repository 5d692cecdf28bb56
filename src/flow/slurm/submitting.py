"""How a batch script is run: its arguments, input and variables, and which of its options are only recorded."""

from __future__ import annotations

import os
import pwd
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

from flow.node.layout import compressed, shares
from flow.node.patterns import absolute_pattern, fill_pattern

SCRIPT = ".flow/batch/slurm_script"  # in the task's copy of the project; Slurm's own copy is called so
_LOGIN_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
_LOGIN_PATH_OF_ROOT = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What says nothing where there is no Slurm.
_FOR_A_CLUSTER = """
    account acctg-freq batch bb bbf cluster-constraint clusters constraint container contiguous core-spec
    cores-per-socket cpu-freq deadline delay-boot exclude extra-node-info gid gpu-bind gpu-freq gres-flags
    hint licenses mail-type mail-user mcs-label mem-bind network nodefile nodelist ntasks-per-core ntasks-per-socket
    partition power prefer profile propagate qos reboot reservation switches thread-spec threads-per-core time-min tmp
    uid wckey
"""
# What the shell that reads an input's name is told by: a letter of a pattern -> a variable.
_VARIABLES = {
    "A": "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}", "a": "${SLURM_ARRAY_TASK_ID:-4294967294}", "J": "$SLURM_JOB_ID",
    "j": "$SLURM_JOB_ID", "N": "$SLURMD_NODENAME", "n": "0", "s": "batch", "t": "0", "x": "$SLURM_JOB_NAME",
}  # fmt: skip


def option(options: Iterable[str], name: str) -> str | None:
    """The value of an option among those written out as `--name=value`; "" for a flag, None where it is not there."""
    for one in options:
        found, _, value = one.removeprefix("--").partition("=")
        if found == name:
            return value
    return None


def cluster_only(options: Iterable[str]) -> list[str]:
    """The options that have no effect where there is no Slurm, as `--name`."""
    known = _FOR_A_CLUSTER.split()
    found = [one.removeprefix("--").partition("=")[0] for one in options]
    gres = option(options, "gres") or ""
    is_other = any(part.split(":")[0] not in ("gpu", "gres", "none", "") for part in gres.split(","))
    return [f"--{name}" for name in found if name in known or (name == "gres" and is_other)]


def task_name(job_name: str) -> str | None:
    """The name of a job's task: a job may be called anything, a task has a word of up to 128 letters."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", job_name)[:128]
    return re.sub(r"^[.-]+", "_", name) or None


def variables_of(decided: Mapping[str, str], *, name: str | None, nodes: int) -> dict[str, str]:
    """The variables that the options decide, where the task was given another name, or number of nodes, beside them."""
    found = dict(decided)
    if name is not None and name != task_name(found.get("SLURM_JOB_NAME", "")):
        found["SLURM_JOB_NAME"] = name
    if found.get("SLURM_NNODES", str(nodes)) != str(nodes):
        found.update(SLURM_NNODES=str(nodes), SLURM_JOB_NUM_NODES=str(nodes))
        found["SLURM_TASKS_PER_NODE"] = compressed(shares(int(found.get("SLURM_NTASKS", nodes)), nodes))
    return found


def command(args: Sequence[str], options: Sequence[str], folder: str, *, joined: bool) -> tuple[str, ...]:
    """What runs the script: by its own first line, with its arguments. `joined`: both streams are one."""
    asked = option(options, "input")
    source = f" <{_in_shell(absolute_pattern(folder, asked))}" if asked else ""
    code = f'umask {current_umask():04o}; exec "$FLOW_WORKSPACE/{SCRIPT}" "$@"{source}{" 2>&1" if joined else ""}'
    return ("sh", "-c", code, "sh", *args)


def array_step(options: Iterable[str]) -> int:
    """What SLURM_ARRAY_TASK_STEP is: the step of an array's first range."""
    first = re.split("[,%]", option(options, "array") or "")[0]
    return int(first.partition(":")[2] or 1)


def current_umask() -> int:
    """The submitter's, which holds in the script, too."""
    umask = os.umask(0o77)
    os.umask(umask)
    return umask


def exported(asked: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The submitter's variables that `--export` asks for: all, or those of a login; SLURM_* always; those it names."""
    words = re.findall(r"""((?:"[^"]*"|'[^']*'|[^,])+)""", asked)
    if any(word.upper() == "ALL" for word in words):
        base = dict(environ)
    else:
        base = {**_login(environ), **{name: one for name, one in environ.items() if name.startswith("SLURM_")}}
    return {**base, **named(asked, environ)}


def named(asked: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that `--export` names, with the values it gives or those of the submitter."""
    found = {}
    for word in re.findall(r"""((?:"[^"]*"|'[^']*'|[^,])+)""", asked):
        name, equals, value = word.partition("=")
        if equals:
            found[name] = value
        elif name in environ:
            found[name] = environ[name]
    return found


def _login(environ: Mapping[str, str]) -> dict[str, str]:
    user = pwd.getpwuid(os.getuid())
    path = _LOGIN_PATH if os.getuid() else _LOGIN_PATH_OF_ROOT
    found = {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name, "SHELL": user.pw_shell, "PATH": path}
    return {**found, **{name: environ[name] for name in ("LANG",) if name in environ}}


def _in_shell(pattern: str) -> str:
    """The file name as a word of a shell, which knows the task's variables."""
    filled = fill_pattern(pattern, {letter: f"\0{letter}\0" for letter in _VARIABLES})
    parts = filled.split("\0")
    return "".join(f'"{_VARIABLES[part]}"' if at % 2 else shlex.quote(part) for at, part in enumerate(parts) if part)
