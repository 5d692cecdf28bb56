"""The options about nodes, tasks, CPUs, GPUs and memory -> what each node of a task has.

The nodes of a task are alike, so each has what the one with the most needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flow.mistakes import Mistake
from flow.node.layout import compressed, shares
from flow.slurm.options import Given
from flow.slurm.values import Gpus

_GPUS = ("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket", "gres")
_RIVALS = (("mem", "mem-per-cpu", "mem-per-gpu"), ("cpus-per-task", "cpus-per-gpu"))


@dataclass(frozen=True, slots=True)
class Request:
    """The fields of a task about its machines, the variables that tell of them, what the user should know."""

    fields: Mapping[str, Any]
    variables: Mapping[str, str]
    notes: tuple[str, ...]


def read_request(values: Mapping[str, Any]) -> Request:
    """What options that do not contradict themselves ask for."""
    notes: list[str] = []
    kind = _kind(values, notes)
    nodes = _nodes(values, notes)
    tasks = _tasks(values, nodes)
    per_node = values.get("ntasks-per-node")
    here = max(math.ceil((tasks or nodes) / nodes), min(per_node or 1, tasks or 1))  # on the node with the most
    gpus = _gpus(values, nodes, here)
    total = _count(values, "gpus")
    if total % nodes:
        notes.append(f"{total} GPUs on {nodes} nodes: each has {gpus}")
    of_task = values.get("cpus-per-task", 1)
    cpus = of_task
    if "overcommit" not in values:
        cpus = max(of_task * here, values.get("cpus-per-gpu", 0) * gpus, values.get("mincpus", 0))
    fields = {"num_instances": nodes, "cpus": cpus}
    if gpus:
        fields["gpu"] = f"{kind}:{gpus}" if kind else str(gpus)
    memory = values.get("mem") or (values.get("mem-per-cpu") or 0) * cpus or (values.get("mem-per-gpu") or 0) * gpus
    if memory:
        fields["memory_gb"] = memory / 1024
    variables = {"SLURM_NNODES": str(nodes), "SLURM_JOB_NUM_NODES": str(nodes)}
    if tasks:
        variables.update({"SLURM_NTASKS": str(tasks), "SLURM_NPROCS": str(tasks)})
    # more CPUs than one task needs are for more tasks, where nothing is said of tasks
    each = per_node or (cpus // of_task if not tasks else None)
    variables["SLURM_TASKS_PER_NODE"] = compressed([each] * nodes if each else shares(tasks, nodes))
    return Request(fields, variables, tuple(notes))


def contradictions(values: Mapping[str, Any], held: Mapping[str, Given]) -> list[Mistake]:
    """What cannot be had together, each with all the places where it is asked for."""
    total, each, of_task = _count(values, "gpus"), _of_node(values), _count(values, "gpus-per-task")
    tasks, per_node, of_gpu = (values.get(name, 0) for name in ("ntasks", "ntasks-per-node", "ntasks-per-gpu"))
    nodes = values.get("nodes")
    least, most = (nodes.least, nodes.most or nodes.least) if nodes else (0, math.inf)
    needs = total // each if total and each else 0
    of_tasks = total // of_task if total and of_task else 0
    refused: list[tuple[bool, str, Sequence[str]]] = [
        (len({name for name in names if name in held}) > 1, "only one of them can hold", names) for names in _RIVALS
    ]
    refused += [
        (len(set(map(bool, _kinds(values)))) > 1, "GPUs with and without their kind", _GPUS),
        (bool(each and total % each), "not a multiple of each node's", ("gpus", "gpus-per-node", "gres")),
        (bool(needs) and not least <= needs <= most, f"they need {needs} nodes", (*_GPUS, "nodes")),
        (bool(total) and not each and total < least, "each node needs a GPU", ("gpus", "nodes")),
        (bool(of_task and total % of_task), "not a multiple of each task's", ("gpus", "gpus-per-task")),
        (bool(of_tasks and tasks) and of_tasks != tasks, f"they are for {of_tasks} tasks", (*_GPUS, "ntasks")),
        (
            bool(of_task) and not (total or tasks or nodes),
            "say how many tasks there are, by `--ntasks`",
            ("gpus-per-task",),
        ),
        (
            bool(per_node) and tasks > per_node * most,
            f"no more than {per_node * (nodes.most or nodes.least) if nodes else 0} tasks fit",
            ("ntasks", "ntasks-per-node", "nodes"),
        ),
        (bool(of_gpu and tasks % of_gpu), "not a multiple of each GPU's tasks", ("ntasks", "ntasks-per-gpu")),
        (
            bool(values.get("mem-per-gpu")) and not any(_kinds_and_tasks(values)),
            "no GPU is asked for",
            ("mem-per-gpu",),
        ),
    ]
    return [
        Mistake(f"{' and '.join(held[name].told for name in names if name in held)}: {told}")
        for is_so, told, names in refused
        if is_so
    ]


def _nodes(values: Mapping[str, Any], notes: list[str]) -> int:
    """How many nodes: as many as are asked for, the least of a range, no more than there are tasks."""
    total, each, asked = _count(values, "gpus"), _of_node(values), values.get("nodes")
    tasks, per_node = values.get("ntasks"), values.get("ntasks-per-node")
    if total and each:
        return total // each
    if not asked:
        return math.ceil(tasks / per_node) if tasks and per_node else 1
    nodes = int(asked.least)
    if not tasks or tasks >= nodes:
        return nodes
    if asked.most is None:
        notes.append(f"can't run {tasks} processes on {nodes} nodes, setting nnodes to {tasks}")
    return int(tasks)


def _tasks(values: Mapping[str, Any], nodes: int) -> int:
    """How many tasks are asked for, in all; 0: nothing is said of them."""
    of_task, of_gpu = _count(values, "gpus-per-task"), values.get("ntasks-per-gpu", 0)
    if "ntasks" in values:
        return int(values["ntasks"])
    if "ntasks-per-node" in values:
        return int(values["ntasks-per-node"]) * nodes
    total = _count(values, "gpus") or _of_node(values) * nodes
    if of_task:
        return total // of_task or nodes
    return total * int(of_gpu)


def _gpus(values: Mapping[str, Any], nodes: int, tasks_here: int) -> int:
    """How many GPUs each node has."""
    of_gpu = values.get("ntasks-per-gpu", 0)
    return (
        _of_node(values)
        or math.ceil(_count(values, "gpus") / nodes)
        or _count(values, "gpus-per-task") * tasks_here
        or (math.ceil(values.get("ntasks", 0) / of_gpu / nodes) if of_gpu else 0)
    )


def _of_node(values: Mapping[str, Any]) -> int:
    """The GPUs asked for each node; where several options ask for them, `--gres` holds."""
    sockets = str(values.get("sockets-per-node", "1"))
    of_sockets = _count(values, "gpus-per-socket") * (int(sockets) if sockets.isdecimal() else 1)
    return _count(values, "gres") or _count(values, "gpus-per-node") or of_sockets


def _count(values: Mapping[str, Any], name: str) -> int:
    asked: tuple[Gpus, ...] = values.get(name) or ()
    return sum({gpus.kind: gpus.count for gpus in asked}.values())  # of two of one kind the later holds


def _kinds(values: Mapping[str, Any]) -> list[str]:
    return [gpus.kind for name in _GPUS for gpus in values.get(name) or ()]


def _kinds_and_tasks(values: Mapping[str, Any]) -> list[bool]:
    return [*(True for _ in _kinds(values)), "ntasks-per-gpu" in values]


def _kind(values: Mapping[str, Any], notes: list[str]) -> str:
    """The kind of all GPUs, "" for any."""
    kinds = list(dict.fromkeys(_kinds(values)))
    if len(kinds) > 1:
        notes.append(f"GPUs of several kinds ({', '.join(kinds)}): any kind is taken")
    return kinds[0] if len(kinds) == 1 else ""
