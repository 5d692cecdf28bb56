"""squeue's fields, by the names of `-O` and the letters of `-o`. Source: squeue(1) of Slurm 22.05."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from flow.slurm.formats import Cut, Field
from flow.slurm.jobs import Job, group_name
from flow.slurm.times import short_span, stamp

DEFAULT = "%.18i %.9P %.8j %.8u %.2t %.10M %.6D %R"
LONG = "%.18i %.9P %.8j %.8u %.8T %.10M %.9l %.6D %R"
ORDER = "P,t,-p"  # in which the jobs are listed
START = "%.18i %.9P %.8j %.8u %.2t %.19S %.6D %20Y %R"
_FULL_PRIORITY = 1 << 32


def _always(text: str) -> Callable[[Job], str]:
    return lambda job: text


def _option(name: str, nothing: str = "(null)") -> Callable[[Job], str]:
    return lambda job: job.details.option(name, nothing)


def _gpus_per(name: str) -> Callable[[Job], str]:
    def show(job: Job) -> str:
        asked = job.details.options.get(name)
        return f"gres:gpu:{asked}" if asked else "N/A"

    return show


def _gpus_of_each_node(job: Job) -> str:
    asked = job.details
    if not asked.gpus or asked.options.keys() & {"gpus", "gpus-per-task"}:
        return "N/A"
    return ":".join(part for part in ("gres:gpu", asked.gpu_kind, str(asked.gpus)) if part)


def _waits(job: Job) -> str:
    """What it waits for, each with how that stands."""
    if not job.is_pending:
        return "(null)"
    stands = "failed" if job.reason == "DependencyNeverSatisfied" else "unfulfilled"
    return ",".join(f"{one}({stands})" for one in job.details.dependency.split(",") if one) or "(null)"


def _limit(job: Job) -> str:
    limit = job.details.limit_seconds
    return "UNLIMITED" if limit is None else short_span(limit)


def _left(job: Job) -> str:
    limit = job.details.limit_seconds
    return "UNLIMITED" if limit is None else short_span(limit - job.ran_seconds)


def _begins(job: Job) -> str:
    return stamp(job.started if job.started is not None or not job.is_pending else job.details.begin)


def _pending(job: Job) -> str:
    return str(int((job.now if job.started is None else job.started) - job.submitted))


# The name of `-O`, in small letters -> the field. Slurm knows more of a cluster's; those of a job are all here.
FIELDS: Mapping[str, Field[Job]] = {
    "account": Field("ACCOUNT", _option("account")),
    "accruetime": Field("ACCRUE_TIME", lambda job: stamp(job.submitted)),
    "admin_comment": Field("ADMIN_COMMENT", _always("(null)")),
    "allocnodes": Field("ALLOC_NODES", _always("localhost")),
    "allocsid": Field("ALLOC_SID", _always("0")),
    "arrayjobid": Field("ARRAY_JOB_ID", lambda job: str(job.array or job.number)),
    "arraytaskid": Field("ARRAY_TASK_ID", lambda job: job.element.strip("[]") or "N/A"),
    "associd": Field("ASSOC_ID", _always("0")),
    "batchflag": Field("BATCH_FLAG", _always("1")),
    "batchhost": Field("EXEC_HOST", lambda job: job.batch_host or "n/a"),
    "boardspernode": Field("BOARDS_PER_NODE", _always("0")),
    "burstbuffer": Field("BURST_BUFFER", _always("(null)")),
    "burstbufferstate": Field("BURST_BUFFER_STATE", _always("(null)")),
    "cluster": Field("CLUSTER", _always("flow")),
    "clusterfeature": Field("CLUSTER_FEATURES", _always("(null)")),
    "command": Field("COMMAND", lambda job: job.details.command),
    "comment": Field("COMMENT", _option("comment")),
    "container": Field("CONTAINER", _always("(null)")),
    "contiguous": Field("CONTIGUOUS", _always("0")),
    "cores": Field("CORES_PER_SOCKET", _always("*")),
    "corespec": Field("CORE_SPEC", _always("N/A")),
    "cpus-per-task": Field("CPUS_PER_TASK", lambda job: str(job.details.cpus_per_task)),
    "cpus-per-tres": Field("CPUS_PER_TRES", _always("N/A")),
    "deadline": Field("DEADLINE", _always("N/A")),
    "delayboot": Field("DELAY_BOOT", _always("0:00"), Cut.WORDS),
    "dependency": Field("DEPENDENCY", _waits),
    "derivedec": Field("DERIVED_EC", lambda job: str(job.exit_code)),
    "eligibletime": Field("ELIGIBLE_TIME", lambda job: stamp(job.submitted)),
    "endtime": Field("END_TIME", lambda job: stamp(job.ends)),
    "exit_code": Field("EXIT_CODE", lambda job: str(job.exit_code)),
    "feature": Field("FEATURES", _option("constraint")),
    "groupid": Field("GROUP", lambda job: str(os.getgid())),
    "groupname": Field("GROUP", lambda job: group_name()),
    "hetjobid": Field("HET_JOB_ID", _always("N/A")),
    "hetjobidset": Field("HET_JOB_ID_SET", _always("N/A")),
    "hetjoboffset": Field("HET_JOB_OFFSET", _always("N/A")),
    "jobarrayid": Field("JOBID", lambda job: job.id),
    "jobid": Field("JOBID", lambda job: str(job.number)),
    "lastschedeval": Field("LAST_SCHED_EVAL", lambda job: stamp(job.started or job.submitted)),
    "licenses": Field("LICENSES", _option("licenses")),
    "maxcpus": Field("MAX_CPUS", lambda job: str(job.details.cpus)),
    "maxnodes": Field("MAX_NODES", lambda job: str(job.nodes)),
    "mcslabel": Field("MCSLABEL", _always("(null)")),
    "mem-per-tres": Field("MEM_PER_TRES", _always("N/A")),
    "mincpus": Field("MIN_CPUS", lambda job: str(job.details.min_cpus)),
    "minmemory": Field("MIN_MEMORY", lambda job: job.details.memory),
    "mintime": Field("TIME_MIN", _always("0:00"), Cut.WORDS),
    "mintmpdisk": Field("MIN_TMP_DISK", _always("0")),
    "name": Field("NAME", lambda job: job.name),
    "network": Field("NETWORK", _always("(null)")),
    "nice": Field("NICE", _option("nice", "0")),
    "nodelist": Field("NODELIST", lambda job: job.node_list, Cut.NOTHING),
    "ntperboard": Field("NTASKS_PER_BOARD", _always("0")),
    "ntpercore": Field("NTASKS_PER_CORE", _always("N/A")),
    "ntpernode": Field("NTASKS_PER_NODE", _option("ntasks-per-node", "0")),
    "ntpersocket": Field("NTASKS_PER_SOCKET", _always("N/A")),
    "numcpus": Field("CPUS", lambda job: str(job.details.cpus)),
    "numnodes": Field("NODES", lambda job: str(job.nodes)),
    "numtasks": Field("TASKS", lambda job: str(job.details.tasks)),
    "origin": Field("ORIGIN", _always("NA")),
    "originraw": Field("ORIGIN_RAW", _always("NA")),
    "oversubscribe": Field("OVER_SUBSCRIBE", lambda job: "NO" if "exclusive" in job.details.options else "OK"),
    "partition": Field("PARTITION", lambda job: job.partition),
    "pendingtime": Field("PENDING_TIME", _pending),
    "preempttime": Field("PREEMPT_TIME", _always("N/A")),
    "prefer": Field("PREFER", _always("(null)")),
    "priority": Field("PRIORITY", lambda job: f"{job.priority / _FULL_PRIORITY:.14f}"),
    "prioritylong": Field("PRIORITY", lambda job: str(job.priority)),
    "profile": Field("PROFILE", _always("NotSet")),
    "qos": Field("QOS", _option("qos", "normal")),
    "reason": Field("REASON", lambda job: job.reason),
    "reasonlist": Field("NODELIST(REASON)", lambda job: job.reason_or_nodes),
    "reboot": Field("REBOOT", _always("0")),
    "reqnodes": Field("REQ_NODES", _option("nodelist", "")),
    "reqswitch": Field("REQ_SWITCH", _always("0")),
    "requeue": Field("REQUEUE", lambda job: "0" if "no-requeue" in job.details.options else "1"),
    "reservation": Field("RESERVATION", _option("reservation")),
    "resizetime": Field("RESIZE_TIME", _always("N/A")),
    "restartcnt": Field("RESTART_COUNT", lambda job: str(max(job.attempt - 1, 0))),
    "schednodes": Field("SCHEDNODES", _always("(null)"), Cut.NOTHING),
    "sct": Field("S:C:T", _always("*:*:*")),
    "selectjobinfo": Field("", _always("")),
    "siblingsactive": Field("ACTIVE_SIBLINGS", _always("NA")),
    "siblingsactiveraw": Field("ACTIVE_SIBLINGS_RAW", _always("NA")),
    "siblingsviable": Field("VIABLE_SIBLINGS", _always("NA")),
    "siblingsviableraw": Field("VIALBLE_SIBLINGS_RAW", _always("NA")),  # as Slurm spells it
    "sockets": Field("SOCKETS_PER_NODE", _always("*")),
    "sperboard": Field("SOCKETS_PER_BOARD", _always("0")),
    "starttime": Field("START_TIME", _begins),
    "state": Field("STATE", lambda job: job.state),
    "statecompact": Field("ST", lambda job: job.compact_state),
    "stderr": Field("STDERR", lambda job: job.details.stderr),
    "stdin": Field("STDIN", _option("input", "/dev/null")),
    "stdout": Field("STDOUT", lambda job: job.details.stdout),
    "submittime": Field("SUBMIT_TIME", lambda job: stamp(job.submitted)),
    "system_comment": Field("SYSTEM_COMMENT", _always("(null)")),
    "threads": Field("THREADS_PER_CORE", _always("*")),
    "timeleft": Field("TIME_LEFT", _left, Cut.WORDS),
    "timelimit": Field("TIME_LIMIT", _limit, Cut.WORDS),
    "timeused": Field("TIME", lambda job: short_span(job.ran_seconds), Cut.WORDS),
    "tres-alloc": Field("TRES_ALLOC", lambda job: job.details.tres()),
    "tres-bind": Field("TRES_BIND", _always("N/A")),
    "tres-freq": Field("TRES_FREQ", _always("N/A")),
    "tres-per-job": Field("TRES_PER_JOB", _gpus_per("gpus")),
    "tres-per-node": Field("TRES_PER_NODE", _gpus_of_each_node),
    "tres-per-socket": Field("TRES_PER_SOCKET", _always("N/A")),
    "tres-per-task": Field("TRES_PER_TASK", _gpus_per("gpus-per-task")),
    "userid": Field("UID", lambda job: str(os.getuid())),
    "username": Field("USER", lambda job: job.user),
    "wait4switch": Field("WAIT4SWITCH", _always("0:00"), Cut.WORDS),
    "wckey": Field("WCKEY", _option("wckey")),
    "workdir": Field("WORK_DIR", lambda job: job.details.work_dir),
}
_NAMES = {
    "a": "account", "A": "jobid", "B": "batchhost", "b": "tres-per-node", "c": "mincpus", "C": "numcpus",
    "d": "mintmpdisk", "D": "numnodes", "e": "endtime", "E": "dependency", "f": "feature", "F": "arrayjobid",
    "g": "groupname", "G": "groupid", "h": "oversubscribe", "H": "sockets", "i": "jobarrayid", "I": "cores",
    "j": "name", "J": "threads", "k": "comment", "K": "arraytaskid", "l": "timelimit", "L": "timeleft",
    "m": "minmemory", "M": "timeused", "n": "reqnodes", "N": "nodelist", "o": "command", "O": "contiguous",
    "p": "priority", "P": "partition", "q": "qos", "Q": "prioritylong", "r": "reason", "R": "reasonlist",
    "s": "selectjobinfo", "S": "starttime", "t": "statecompact", "T": "state", "u": "username", "U": "userid",
    "v": "reservation", "V": "submittime", "w": "wckey", "W": "licenses", "X": "corespec", "y": "nice",
    "Y": "schednodes", "z": "sct", "Z": "workdir",
}  # fmt: skip
LETTERS = {letter: FIELDS[name] for letter, name in _NAMES.items()} | {
    "x": Field("EXC_NODES", _option("exclude", "")),
}
# What `%all` stands for, in Slurm's order.
ALL = "|".join(f"%{letter}" for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter in LETTERS)

_NUMBERS = {  # what is sorted as a number and not as text
    "A": lambda job: job.number,
    "C": lambda job: job.details.cpus,
    "D": lambda job: job.nodes,
    "e": lambda job: job.ends or 0.0,
    "i": lambda job: job.place,
    "l": lambda job: job.details.limit_seconds or float("inf"),
    "M": lambda job: job.ran_seconds,
    "p": lambda job: job.priority,
    "Q": lambda job: job.priority,
    "S": lambda job: job.started or job.details.begin or float("inf"),
    "V": lambda job: job.submitted,
}


def sorted_jobs(jobs: list[Job], order: str) -> list[Job]:
    """As `-S` says: letters of `-o` after one another, each with `-` the other way round. Unknown ones are left out."""
    jobs = sorted(jobs, key=lambda job: job.place)
    for part in reversed(order.split(",")):
        letter = part.strip().lstrip("+-")
        field = LETTERS.get(letter)
        if field:
            jobs.sort(key=_NUMBERS.get(letter) or field.show, reverse=part.strip().startswith("-"))
    return jobs
