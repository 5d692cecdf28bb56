"""Job: what Slurm's commands show of a task, of an element of an array, or of those of an array that wait together."""

from __future__ import annotations

import grp
import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from flow.node.hostlist import expand
from flow.node.layout import ranges
from flow.node.patterns import NO_INDEX, fill_pattern
from flow.plan import Plan

# Slurm's words for a state, and its letters. Source: squeue(1), JOB STATE CODES.
STATES = {
    "PENDING": "PD", "RUNNING": "R", "SUSPENDED": "S", "COMPLETED": "CD", "CANCELLED": "CA", "FAILED": "F",
    "TIMEOUT": "TO", "NODE_FAIL": "NF", "PREEMPTED": "PR", "BOOT_FAIL": "BF", "DEADLINE": "DL", "OUT_OF_MEMORY": "OOM",
    "COMPLETING": "CG", "CONFIGURING": "CF", "RESIZING": "RS", "RESV_DEL_HOLD": "RD", "REQUEUED": "RQ",
    "REQUEUE_FED": "RF", "REQUEUE_HOLD": "RH", "REVOKED": "RV", "SIGNALING": "SI", "SPECIAL_EXIT": "SE",
    "STAGE_OUT": "SO", "STOPPED": "ST",
}  # fmt: skip
OF_TASK = {
    "pending": "PENDING", "starting": "CONFIGURING", "running": "RUNNING", "paused": "SUSPENDED",
    "preempted": "PREEMPTED", "completed": "COMPLETED", "failed": "FAILED", "cancelled": "CANCELLED",
    "timed_out": "TIMEOUT", "lost": "NODE_FAIL",
}  # fmt: skip
UNFINISHED = frozenset(("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "PREEMPTED"))
# What another task is waited to be -> Slurm's word, which takes a cancel before the start for a start.
AFTER = {
    "completed": "afterok", "failed": "afternotok", "ended": "afterany", "started": "after",
    "started_or_ended": "after", "corresponding": "aftercorr",
}  # fmt: skip
_ENDED_FOR = {"FAILED": "NonZeroExitCode", "TIMEOUT": "TimeLimit", "NODE_FAIL": "NodeDown"}
# How the reason of a task that waits begins -> Slurm's word for it.
_WAITS_FOR = (
    ("queued: 0 ahead", "Resources"),
    ("queued: its array", "JobArrayTaskLimit"),
    ("queued", "Priority"),
    ("held", "JobHeldUser"),
    ("begins", "BeginTime"),
    ("waits for", "Dependency"),
)
# Slurm's codes in words; sources: squeue(1), JOB REASON CODES. Others are shown as they are.
REASONS = {
    "None": "",
    "Priority": "others are before it in the queue",
    "Resources": "waits for resources",
    "Dependency": "waits for other jobs",
    "DependencyNeverSatisfied": "what it waits for can never be",
    "BeginTime": "begins later",
    "JobHeldAdmin": "held in Slurm by an administrator",
    "JobArrayTaskLimit": "its array runs as many as it may",
    "ReqNodeNotAvail": "the nodes that it needs are down, drained or reserved",
    "BadConstraints": "no node has what it asks for",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition takes no jobs now",
    "PartitionTimeLimit": "its time limit is longer than the partition's",
    "PartitionNodeLimit": "it asks for more nodes than the partition has",
    "NodeDown": "a node that it needs is down",
}
_WORDS = {text: word for word, text in REASONS.items()}
NOT_ELIGIBLE = frozenset(
    ("JobHeldUser", "BeginTime", "JobArrayTaskLimit", "Dependency", "DependencyNeverSatisfied")
)  # sacct does not list them unasked
_SLURMS_WORD = re.compile(r"[A-Z][A-Za-z]+")
_MIDDLE = 1 << 31  # the priority of a task that asks for none: Slurm's are whole numbers of 32 bits, 0 being held
_NULL = "(null)"


class Job(NamedTuple):
    """One line. Times are seconds since the epoch; `element` is `3` or, of several that wait, `[4-10%2]`."""

    task_id: str
    number: int  # 0 where it has none yet
    array: int | None  # the array's number
    element: str
    name: str
    user: str
    partition: str
    state: str
    reason: str
    nodes: int
    node_list: str
    submitted: float
    started: float | None
    ended: float | None
    exit_code: int
    signal: int
    attempt: int
    asked_priority: int
    now: float
    load: Callable[[], Details]

    @property
    def id(self) -> str:
        """`12`, `12_3`, `12_[4-10%2]`."""
        base = self.array or self.number or self.task_id.partition("_")[0]
        return f"{base}_{self.element}" if self.element else str(base)

    @property
    def place(self) -> tuple[int, int, int]:
        """Its place among the jobs in the order of their numbers; of an array, what waits comes last."""
        is_one = self.element.isdecimal()
        return self.array or self.number, not is_one, int(self.element) if is_one else 0

    @property
    def details(self) -> Details:
        """What only the task's record tells."""
        return self.load()

    @property
    def is_pending(self) -> bool:
        """Whether it waits for its start."""
        return self.state == "PENDING"

    @property
    def is_finished(self) -> bool:
        """Whether it has ended."""
        return self.state not in UNFINISHED

    @property
    def priority(self) -> int:
        """As Slurm counts it: 0 is held, more goes first."""
        return 0 if self.reason == "JobHeldUser" else _MIDDLE + self.asked_priority

    @property
    def ran_seconds(self) -> float:
        """How long it has run, or ran."""
        return 0.0 if self.started is None else max((self.ended or self.now) - self.started, 0.0)

    @property
    def exit_text(self) -> str:
        """`3:0`, or `0:9` where signal 9 ended it. A job that was stopped has none of its own."""
        if self.state in ("CANCELLED", "TIMEOUT") or not self.is_finished:
            return "0:0"
        return f"0:{self.signal}" if self.signal else f"{self.exit_code}:0"

    @property
    def ends(self) -> float | None:
        """When it ended, or will have to."""
        limit = self.details.limit_seconds if self.ended is None and self.started is not None else None
        return self.started + limit if limit and self.started is not None else self.ended

    @property
    def batch_host(self) -> str:
        """The node that its script runs on; "" where it runs on none."""
        return next(iter(expand(self.node_list)), "")

    @property
    def compact_state(self) -> str:
        """`PD`."""
        return STATES[self.state]

    @property
    def reason_or_nodes(self) -> str:
        """What squeue shows last: why it waits or failed, in brackets, else its nodes."""
        if self.state in ("PENDING", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"):
            return f"({self.reason})"
        return self.node_list


@dataclass(frozen=True, slots=True)
class Details:
    """What was asked for, in Slurm's terms. `options` are those of sbatch that hold, by name."""

    cpus: int  # of all nodes
    tasks: int
    cpus_per_task: int
    memory: str  # of each node; "0" where nothing was asked
    limit_seconds: float | None
    gpus: int  # of each node
    gpu_kind: str
    begin: float | None
    dependency: str  # `afterok:12,afterany:13`; "" where it waits for no other
    command: str
    work_dir: str
    stdout: str
    stderr: str
    throttle: int | None
    retries: int
    nodes: int
    options: Mapping[str, str]

    def option(self, name: str, nothing: str = _NULL) -> str:
        """The value of one of sbatch's options."""
        return self.options.get(name) or nothing

    @property
    def min_cpus(self) -> int:
        """Of each node."""
        return self.cpus_per_task * int(self.options.get("ntasks-per-node", 1))

    def tres(self, order: Sequence[str] = ("cpu", "mem", "node", "billing", "gres")) -> str:
        """`cpu=1,mem=500M,node=1,billing=1`, of all nodes."""
        gpus = self.gpus * self.nodes
        gres = [f"gres/gpu={gpus}", *[f"gres/gpu:{self.gpu_kind}={gpus}"] * bool(self.gpu_kind)]
        parts = {
            "cpu": f"cpu={self.cpus}",
            "mem": "" if self.memory == "0" else f"mem={self.total_memory}",
            "node": f"node={self.nodes}",
            "billing": f"billing={self.cpus}",
            "gres": ",".join(gres) if gpus else "",
        }
        return ",".join(parts[name] for name in order if parts[name])

    @property
    def total_memory(self) -> str:
        """Of all nodes."""
        number, unit = self.memory.rstrip("KMGT"), self.memory.lstrip("0123456789")
        return f"{int(number) * self.nodes}{unit}"


def state_named(word: str) -> str | None:
    """The state that Slurm's word or letters name, in any case; None where they name none."""
    upper = word.upper()
    return upper if upper in STATES else next((name for name, short in STATES.items() if short == upper), None)


def waiting_reason(text: str) -> str:
    """Slurm's word for why a task waits, from the reason that it has."""
    text = text.removeprefix("queued again: ")
    if text in _WORDS:  # as the Slurm provider put it
        return _WORDS[text]
    for begin, word in _WAITS_FOR:
        if text.startswith(begin):
            return "DependencyNeverSatisfied" if text.endswith("which cannot be any more") else word
    return text if _SLURMS_WORD.fullmatch(text) else "None"


def state_and_reason(task_state: str, text: str, *, exit_code: int | None, signal: int | None) -> tuple[str, str]:
    """Slurm's words for a task's state and the reason of it."""
    state = OF_TASK[task_state]
    if state == "PENDING":
        return state, waiting_reason(text)
    if state == "FAILED" and (exit_code is None or signal):  # Slurm says the same of a script that a signal ended
        return state, "JobLaunchFailure"
    return state, _ENDED_FOR.get(state, "None")


def folded(indices: Sequence[int], at_once: int | None = None) -> str:
    """`[4-10%2]`, `[0-20:4]`, `[1,3,7-9]` of sorted indices, as squeue shows those of an array that wait."""
    limit = f"%{at_once}" if at_once else ""
    step = _even_step(indices)
    if step > 1 and len(indices) > 2:
        return f"[{indices[0]}-{indices[-1]}:{step}{limit}]"
    return f"[{ranges(indices)}{limit}]"


def details_of(plan: Plan, index: int | None, number_of: Callable[[str], str]) -> Details:
    """What was asked for, from the plan of a task; `index`: of this element of an array.

    `number_of` gives what another task is called.
    """
    batch = plan.batch
    options = dict(option.removeprefix("--").partition("=")[::2] for option in batch.options) if batch else {}
    variables = batch.variables if batch else {}
    number = number_of(plan.task_id)
    stdout, stderr = (_filled(path or "", plan, index, number=number) for path in (plan.stdout, plan.stderr))
    return Details(
        cpus=max(round(plan.cpus * plan.nodes), 1),
        tasks=int(variables.get("SLURM_NTASKS", plan.nodes)),
        cpus_per_task=int(variables.get("SLURM_CPUS_PER_TASK", 1)),
        memory=_memory(plan.memory_gb),
        limit_seconds=plan.limit_seconds,
        gpus=plan.gpus,
        gpu_kind=plan.gpu_kind or "",
        begin=plan.not_before,
        dependency=",".join(
            f"{AFTER[one.state]}:{number_of(one.task_id)}" + f"+{one.delay_seconds / 60:g}" * bool(one.delay_seconds)
            for one in plan.after
        ),
        command=(batch.file or _NULL) if batch else " ".join(plan.argv),
        work_dir=plan.working_dir if plan.working_dir.startswith("/") else plan.submit_dir,
        stdout=stdout,
        stderr=stderr or stdout,
        throttle=plan.elements.at_once if plan.elements else None,
        retries=plan.retries,
        nodes=plan.nodes,
        options=options,
    )


@cache
def group_name() -> str:
    """The name of our group."""
    try:
        return grp.getgrgid(os.getgid()).gr_name
    except KeyError:
        return str(os.getgid())


def _filled(path: str, plan: Plan, index: int | None, *, number: str) -> str:
    """An output file with the numbers and the name in it, as far as they are known beforehand."""
    own = plan.number_of(index) or number
    name = plan.batch.variables.get("SLURM_JOB_NAME", plan.name) if plan.batch else plan.name
    element = NO_INDEX if index is None else index
    return fill_pattern(path, {"j": own, "J": own, "A": number, "a": element, "x": name})


def _memory(gb: float | None) -> str:
    """In megabytes, or in gigabytes where it is a whole number of them."""
    if not gb:
        return "0"
    megabytes = round(gb * 1024)
    return f"{megabytes // 1024}G" if megabytes % 1024 == 0 else f"{megabytes}M"


def _even_step(indices: Sequence[int]) -> int:
    """The step between all of them; 0 where they have none."""
    steps = {after - before for before, after in itertools.pairwise(indices)}
    return steps.pop() if len(steps) == 1 else 0
