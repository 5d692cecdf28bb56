"""`scontrol` inside a task, where there is no Slurm: hosts, and the task itself; all else is asked of `flow`, if any.

Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from typing import Any


def _beside(name: str) -> Any:
    return importlib.import_module(f"{__package__}.{name}" if __package__ else name)


asked, hostlist = map(_beside, ("asked", "hostlist"))


def main(folder: str, argv: list[str]) -> int:
    """One command; its exit code."""
    words = [word for word in argv if not word.startswith("-")]
    with open(os.path.join(folder, "task.json"), "rb") as file:
        task = json.load(file)
    number = str(task["slurm"]["number"])
    if len(words) > 1 and "show".startswith(words[0]):
        what, names = words[1].lower().rstrip("s"), words[2:]
        if what.startswith("hostname"):
            return _hostnames(names or [os.environ.get("SLURM_JOB_NODELIST", "")])
        if what.startswith("hostlist"):
            return _hostlist(names, is_sorted=what.endswith("sorted"))
        kind, _, value = what.partition("=")
        if kind in ("job", "jobid") and (value or "".join(names)) in ("", number):
            _say(_job(task, folder, is_one_line=bool({"-o", "--oneliner"} & set(argv))))
            return 0
    if words == ["requeue", number]:
        return _requeue(task, folder)
    flow = task["slurm"].get("flow")
    if not flow:
        sys.stderr.write(f"scontrol: `{' '.join(argv)}` can be asked only where `flow` is\n")
        return 1
    os.environ["FLOW_HOME"] = task["slurm"]["flow_home"]
    os.execv(flow[0], [*flow, "scontrol", *argv])
    raise AssertionError


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _requeue(task: dict[str, Any], folder: str) -> int:
    """Have this task stopped, to run again."""
    if not task.get("may_requeue", True):
        sys.stderr.write("Requested operation is presently disabled for job {number}\n".format(**task["slurm"]))
        return 1
    with open(os.path.join(folder, "status.json"), "rb") as file:
        runner = json.load(file)["runner_pid"]
    asked.ask(folder, asked.REQUEUE)
    os.kill(runner, signal.SIGUSR1)
    return 0


def _hostnames(names: list[str]) -> int:
    text = ",".join(names)
    if not text:
        sys.stderr.write("scontrol: error: host list is empty\n")
        return 0
    try:
        _say("\n".join(hostlist.expand(text)))
    except ValueError as error:
        sys.stderr.write(f"Invalid hostlist: {error}\n")
        return 1
    return 0


def _hostlist(names: list[str], *, is_sorted: bool) -> int:
    try:
        found = hostlist.expand(",".join(names))
    except ValueError as error:
        sys.stderr.write(f"Invalid hostlist: {error}\n")
        return 1
    _say(hostlist.fold(sorted(set(found), key=_by_number) if is_sorted else found))
    return 0


def _by_number(name: str) -> tuple[str, int]:
    head = name.rstrip("0123456789")
    return head, int(name[len(head) :] or 0)


def _job(task: dict[str, Any], folder: str, *, is_one_line: bool) -> str:
    """What of `scontrol show job` is known on the machine."""
    with open(os.path.join(folder, "status.json"), "rb") as file:
        status = json.load(file)
    env, started = os.environ, status.get("started") or time.time()
    limit = task.get("limit_seconds")
    lines = [
        "JobId={number} JobName={name}".format(name=env.get("SLURM_JOB_NAME", task.get("name")), **task["slurm"]),
        f"   UserId={env.get('SLURM_JOB_USER')}({env.get('SLURM_JOB_UID')}) Account=(null) QOS=(null)",
        "   JobState=RUNNING Reason=None Dependency=(null)",
        f"   Requeue=1 Restarts={task.get('attempt', 1) - 1} BatchFlag=1 Reboot=0 ExitCode=0:0",
        f"   RunTime={_span(time.time() - started)} TimeLimit={_span(limit) if limit else 'UNLIMITED'} TimeMin=N/A",
        f"   StartTime={_time(started)} EndTime={_time(started + limit) if limit else 'Unknown'} Deadline=N/A",
        f"   Partition={env.get('SLURM_JOB_PARTITION')} AllocNode:Sid={env.get('SLURM_SUBMIT_HOST')}:0",
        f"   NodeList={env.get('SLURM_JOB_NODELIST')}",
        f"   BatchHost={(task.get('peers') or ['127.0.0.1'])[0]}",
        f"   NumNodes={task.get('nodes', 1)} NumCPUs={int(env.get('SLURM_CPUS_ON_NODE', 1)) * task.get('nodes', 1)}"
        f" NumTasks={env.get('SLURM_NTASKS', task.get('nodes', 1))} CPUs/Task={env.get('SLURM_CPUS_PER_TASK', 1)}",
        f"   WorkDir={env.get('SLURM_SUBMIT_DIR')}",
        f"   StdErr={task.get('stderr_copy') or task.get('stdout_copy') or ''}",
        "   StdIn=/dev/null",
        f"   StdOut={task.get('stdout_copy') or ''}",
    ]
    return " ".join(line.strip() for line in lines) if is_one_line else "\n".join(lines) + "\n"


def _span(seconds: float) -> str:
    days, rest = divmod(int(seconds), 86400)
    return (f"{days}-" if days else "") + time.strftime("%H:%M:%S", time.gmtime(rest))


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
