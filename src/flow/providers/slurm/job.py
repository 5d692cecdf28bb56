"""A plan as a Slurm job: what its runners are given, and the options of `sbatch` that ask for the same."""

from __future__ import annotations

import math
import os
import re
import shlex
import time
from collections.abc import Mapping
from typing import Any

from flow.errors import ValidationError
from flow.job import runner_job
from flow.node.layout import ranges
from flow.plan import Dependency, Plan
from flow.slurm.jobs import AFTER

_MARGIN_SECONDS = 60  # between our own time limit and Slurm's, which is to act only where ours did not
_NAMED = ("partition", "account", "qos", "constraint", "reservation")  # options of ours that are options of sbatch
_OURS = (
    "--hold",
    "--wait",
    "--dependency",
    "--array",
    "--begin",
    "--parsable",
    "--comment",
    "--output",
    "--error",
    "--kill-on-invalid-dep",
)  # said otherwise here
_UNFIT = (
    "--array",
    "-a",
    "--wait",
    "-W",
    "--quiet",
    "-Q",
    "--test-only",
    "--wrap",
    "--dependency",
    "-d",
    "--clusters",
    "-M",
)  # among options for all tasks: who has these would get another job than ours, or not hear of it


def comment(plan: Plan, plan_hash: str) -> str:
    """By which a job is known for ours, whatever happened to who submitted it."""
    return f"flow:{plan.task_id}:{plan_hash}"


def job(plan: Plan) -> dict[str, Any]:
    """What its runners are given; a batch script's limit is Slurm's to keep, and it starts on the first node alone."""
    is_batch = plan.batch is not None
    batch = {"nodes": 1, "limit_total_seconds": None, "signal": None} if is_batch else {}
    return {**runner_job(plan), **batch, "is_batch": is_batch}


def meta(plan: Plan, plan_hash: str) -> dict[str, Any]:
    """What is asked of a task that Slurm does not know any more."""
    return {
        "hash": plan_hash,
        "created": time.time(),
        "nodes": 1 if plan.batch else plan.nodes,
        "ranks": plan.nodes,
        "indices": list(plan.elements.indices) if plan.elements else [],
        "after": [_dependency(one) for one in plan.after],
        "after_any": plan.after_any,
        "singleton": plan.singleton,
        "waits_in_vain": plan.waits_in_vain,
    }


def sbatch_options(plan: Plan, settings: Mapping[str, Any]) -> list[str]:
    """For `sbatch`; of those given twice it takes the last. A batch script's own are all that it asked for."""
    options = [f"--job-name={plan.name}"]
    own = {name: plan.options.get(name) or settings.get(name) for name in _NAMED}
    options += [f"--{name}={value}" for name, value in own.items() if value]
    if plan.region and not own["partition"]:
        options.append(f"--partition={plan.region}")
    options += _more("slurm.sbatch_options", settings.get("sbatch_options"))
    if plan.elements:
        most = f"%{plan.elements.at_once}" if plan.elements.at_once else ""
        options.append("--array=" + ranges(plan.elements.indices) + most)
    if plan.not_before:
        options.append(time.strftime("--begin=%Y-%m-%dT%H:%M:%S", time.localtime(plan.not_before)))
    if plan.batch:
        options += [one for one in plan.batch.options if one.partition("=")[0] not in _OURS]
        options += [f"--output={plan.stdout}"] if plan.stdout else []
        return options + ([f"--error={plan.stderr}"] if plan.stderr and plan.stderr != plan.stdout else [])
    return options + _machine(plan) + _more("options.sbatch_options", plan.options.get("sbatch_options"))


def _more(name: str, given: Any) -> list[str]:
    """What a user adds for `sbatch`, text or a list. Raises ValidationError for what would hide the job from us."""
    try:
        words = shlex.split(str(given or "")) if isinstance(given, str | None) else [str(one) for one in given]
    except (ValueError, TypeError) as error:
        raise ValidationError(f"{name}: `{given}` cannot be read: {error}") from error
    for word in words:
        if word.partition("=")[0] in _UNFIT or word[:2] in _UNFIT:
            raise ValidationError(f"{name}: `{word}` would change what the job is", suggestions=["leave it out"])
    return words


def _dependency(one: Dependency) -> dict[str, Any]:
    return {
        "task_id": one.task_id,
        "kind": AFTER[one.state],
        "minutes": math.ceil(one.delay_seconds / 60),
        "text": str(one),
    }


def _machine(plan: Plan) -> list[str]:
    options = [
        "--requeue" if plan.may_requeue else "--no-requeue",
        f"--nodes={plan.nodes}",
        f"--ntasks={plan.nodes}",
        "--ntasks-per-node=1",
    ]
    options.append(f"--cpus-per-task={math.ceil(plan.cpus)}")
    if plan.memory_gb:
        options.append(f"--mem={math.ceil(plan.memory_gb * 1024)}M")
    if plan.gpus:
        kind = re.sub(r"^\d+x", "", plan.instance_type)  # as this cluster calls it
        options.append(f"--gpus-per-node={plan.gpus}" if kind == "gpu" else f"--gpus-per-node={kind}:{plan.gpus}")
    if plan.limit_seconds:
        seconds = plan.limit_seconds + plan.grace_seconds * (plan.retries + 1) + _MARGIN_SECONDS
        options.append(f"--time={math.ceil(seconds / 60)}")
    if plan.priority < 0:  # only root may ask for more than others have
        options.append(f"--nice={-plan.priority}")
    return options


def submit_folder(plan: Plan) -> str:
    """Where `sbatch` is called, if that is there."""
    return plan.working_dir if os.path.isabs(plan.working_dir) else plan.submit_dir  # noqa: PTH117
