"""What a batch script finds where there is no Slurm: the variables of its batch step, and `srun`, `scontrol`, `module`
and the other commands on its PATH. Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import importlib
import os
import pwd
import shlex
import shutil
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flow.node.runner import Rank

OURS = ("srun", "scontrol")
OF_FLOW = ("sbatch", "squeue", "scancel", "sacct", "sinfo")
BEGIN = "export SLURM_TASK_PID=$$; "
BEGIN_INSIDE = 'export SLURM_TASK_PID=$$ PATH="$0/bin:$PATH"; exec "$@"'  # in a container, whose PATH is the image's


def _beside(name: str) -> Any:
    return importlib.import_module(f"{__package__}.{name}" if __package__ else name)


hostlist, layout, steps = map(_beside, ("hostlist", "layout", "steps"))


def prepare(rank: Rank, env: dict[str, str]) -> list[str]:
    """Complete the environment; what this node executes: on the first one the script, on others what starts steps."""
    task, folder = rank.task, rank.folder
    env.update(variables(task, submit_dir=env.get("PWD", folder)))
    env["PATH"] = rank.path("bin") + ":" + env.get("PATH", os.defpath)
    env.setdefault("TMPDIR", "/tmp")
    bash = shutil.which("bash", path=env["PATH"])
    env.update(_write_commands(rank, env, given=task["slurm"], python=sys.executable, shell=bash or "/bin/sh"))
    if task.get("rank", 0):
        return [sys.executable, "-ES", steps.__file__, "serve", folder]
    argv: list[str] = task["argv"]  # sh -c CODE sh ARGS…
    return [bash or argv[0], argv[1], BEGIN + argv[2], *argv[3:]]


def prepare_inside(rank: Rank, env: dict[str, str]) -> list[str]:
    """The same for a container, which must see the task's folder and ours, and has a Python of its own."""
    task, folder = rank.task, rank.folder
    env.update(variables(task, submit_dir=env["FLOW_WORKSPACE"]))
    _write_commands(rank, {}, given={}, python="python3", shell="/bin/sh")
    argv = ["python3", "-ES", steps.__file__, "serve", folder] if task.get("rank", 0) else task["argv"]
    return ["sh", "-c", BEGIN_INSIDE, folder, *argv]


def variables(task: dict[str, Any], *, submit_dir: str) -> dict[str, str]:
    """What Slurm sets in the environment of a batch step; `submit_dir` where the task does not say it."""
    given = task["slurm"]
    nodes, number = task.get("nodes", 1), str(given["number"])
    names: list[str] = hostlist.names_of(task)
    here = names[task.get("rank", 0)]
    cpus = max(1, int(-(-task.get("cpus", 1) // 1)))
    static: dict[str, str] = given.get("variables", {})
    count = int(static.get("SLURM_NTASKS") or nodes * int(static.get("SLURM_NTASKS_PER_NODE", 1)))
    room = [cpus // int(static.get("SLURM_CPUS_PER_TASK", 1))] * nodes
    order = layout.spread(count, room)
    user = pwd.getpwuid(os.getuid())
    found = {
        "SLURM_JOB_ACCOUNT": user.pw_name, "SLURM_JOB_QOS": "normal",
        "SLURM_NNODES": str(nodes), "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_JOB_PARTITION": given.get("partition") or "local", **static,
        "SLURM_JOB_ID": number, "SLURM_JOBID": number, "SLURM_JOB_NODELIST": hostlist.fold(names),
        "SLURM_NODELIST": hostlist.fold(names), "SLURM_CPUS_ON_NODE": str(cpus),
        "SLURM_JOB_CPUS_PER_NODE": layout.compressed([cpus] * nodes),
        "SLURM_TASKS_PER_NODE": layout.compressed([order.count(place) for place in range(nodes)]),
        "SLURM_SUBMIT_DIR": given.get("submit_dir") or submit_dir,
        "SLURM_SUBMIT_HOST": given.get("submit_host") or os.uname().nodename,
        "SLURM_JOB_USER": user.pw_name, "SLURM_JOB_UID": str(user.pw_uid), "SLURM_JOB_GID": str(user.pw_gid),
        "SLURM_CLUSTER_NAME": given.get("cluster") or "local", "SLURMD_NODENAME": here, "SLURM_TOPOLOGY_ADDR": here,
        "SLURM_TOPOLOGY_ADDR_PATTERN": "node", "SLURM_NODE_ALIASES": "(null)", "SLURM_PRIO_PROCESS": "0",
        "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_GTIDS": "0",
        "ENVIRONMENT": "BATCH", "HOSTNAME": os.uname().nodename,
    }  # fmt: skip
    gpus = ",".join(map(str, task.get("given_gpus") or []))
    if gpus:
        found.update(SLURM_JOB_GPUS=gpus, SLURM_GPUS_ON_NODE=str(gpus.count(",") + 1))
        found.update({name: gpus for name in steps.VISIBLE_GPUS if name != "CUDA_VISIBLE_DEVICES"})
    if given.get("array"):
        found.update(SLURM_ARRAY_JOB_ID=str(given["array_number"]), SLURM_ARRAY_TASK_ID=str(task["array_index"]))
        found.update({f"SLURM_ARRAY_TASK_{name.upper()}": str(value) for name, value in given["array"].items()})
    if task.get("attempt", 1) > 1:
        found["SLURM_RESTART_COUNT"] = str(task["attempt"] - 1)
    return found


def _write_commands(
    rank: Rank, env: dict[str, str], *, given: dict[str, Any], python: str, shell: str
) -> dict[str, str]:
    """Fill `bin/`; the variables that bring `module` to bash as a function, which can change its environment.

    `shell`: bash where there is one, for it keeps exported functions, which other shells drop.
    """
    folder = rank.folder

    def write(name: str, text: str) -> None:
        with open(os.path.join(folder, "bin", name), "w", encoding="utf-8") as file:
            file.write(f"#!{shell}\n{text}\n")
            os.fchmod(file.fileno(), 0o755)

    os.makedirs(os.path.join(folder, "bin"), exist_ok=True)
    for name in OURS:
        write(name, "exec {} {}".format(_ours(name, folder, python), '"$@"'))
    for name in OF_FLOW:
        if given.get("flow"):
            home = shlex.quote(given["flow_home"])
            write(name, f'FLOW_HOME={home} exec {_quoted(given["flow"])} {name} "$@"')
        else:
            write(name, f"echo '{name}: there is no Slurm on this machine, and no `flow`' >&2\nexit 1")
    if "MODULESHOME" in env or "LMOD_CMD" in env:  # the machine has modules of its own
        return {}
    found = {}
    for name in ("module", "ml"):
        code = '{} {} "$@"'.format(_ours("modules", folder, python), name)
        write(name, f"{code} >/dev/null")
        found[f"BASH_FUNC_{name}%%"] = f'() {{ eval "$({code})"\n}}'
    return found


def _ours(name: str, folder: str, python: str) -> str:
    """The words of a shell that run a file beside this one, with a Python that reads nothing of the user's."""
    return _quoted([python, "-ES", os.path.join(os.path.dirname(steps.__file__), f"{name}.py"), folder])


def _quoted(words: list[str]) -> str:
    return " ".join(map(shlex.quote, words))
