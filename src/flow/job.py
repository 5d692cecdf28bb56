"""What runners of any provider but the local one are given of a plan: the part of `task.json` that all ranks share."""

from __future__ import annotations

from typing import Any

from flow.plan import Plan


def runner_job(plan: Plan) -> dict[str, Any]:
    """What is the same for every rank and attempt; who starts a runner adds the rest to make a `task.json` of it."""
    is_batch = plan.batch is not None
    return {
        "v": 1,
        "name": plan.name,
        "nodes": 1 if is_batch else plan.nodes,
        "argv": plan.argv,
        "env": dict(plan.env),
        "user_env": list(plan.env),
        "clean_env": False,
        "cwd": plan.working_dir,
        "code": None,
        "image": plan.image,
        "ports": plan.ports,
        "memory_gb": plan.memory_gb,
        "limit_total_seconds": None if is_batch else plan.limit_seconds,
        "grace_seconds": plan.grace_seconds,
        "signal": None
        if is_batch or not plan.signal
        else {"number": plan.signal.number, "before_seconds": plan.signal.seconds},
        "retries": plan.retries,
        "is_batch": is_batch,
        "stdout": plan.stdout,
        "stderr": plan.stderr,
    }
