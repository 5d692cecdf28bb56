"""What runners of any provider but the local one are given of a plan: the part of `task.json` that all ranks share."""

from __future__ import annotations

from typing import Any

from flow.plan import Plan, SignalBefore
from flow.slurm.submitting import array_step


def runner_job(plan: Plan) -> dict[str, Any]:
    """What is the same for every rank and attempt; who starts a runner adds the rest to make a `task.json` of it."""
    return {
        "v": 1,
        "name": plan.name,
        "nodes": plan.nodes,
        "argv": plan.argv,
        "env": dict(plan.env),
        "user_env": list(plan.env),
        "clean_env": False,
        "cwd": plan.working_dir,
        "code": None,
        "image": plan.image,
        "ports": plan.ports,
        "cpus": plan.cpus,
        "memory_gb": plan.memory_gb,
        "limit_total_seconds": plan.limit_seconds,
        "grace_seconds": plan.grace_seconds,
        "signal": plan.signal and signal_job(plan.signal),
        "retries": plan.retries,
        "stdout": plan.stdout,
        "stderr": plan.stderr,
    }


def signal_job(signal: SignalBefore) -> dict[str, Any]:
    """The signal before the time limit, as a runner takes it."""
    return {"number": signal.number, "before_seconds": signal.seconds, "to": signal.to}


def slurm_job(plan: Plan, index: int | None = None) -> dict[str, Any]:
    """What a batch script's variables and `srun` are made of, of the element `index` where it is an array."""
    indices = plan.elements.indices if plan.elements else ()
    extent = {"count": len(indices), "min": indices[0], "max": indices[-1]} if indices else None
    if extent and plan.batch:
        extent["step"] = array_step(plan.batch.options)
    return {
        "number": plan.number_of(index),
        "array_number": plan.number if plan.elements else None,
        "array": extent,
        "variables": plan.batch.variables if plan.batch else {},
        "modules": plan.batch.modules if plan.batch else {},
    }
