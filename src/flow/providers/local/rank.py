"""What one rank of one attempt runs: its folder and its `task.json`, from the plan and the queue's row."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flow.gpus import parse_gpu
from flow.job import signal_job, slurm_job
from flow.mounts import VOLUME, Mount
from flow.outbox import deliver
from flow.plan import Plan
from flow.providers.local.queue import Row
from flow.providers.local.volumes import volume_path


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the ranks of one attempt meet: runners, `srun` and commands, each at its port."""

    master_port: int
    control_port: int
    step_port: int
    token: str


def new_meeting() -> Meeting:
    """Ports that were free a moment ago, and a secret word."""
    import socket  # only the scheduler needs it

    with socket.socket() as one, socket.socket() as two, socket.socket() as three:
        for each in (one, two, three):
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in (one, two, three)]
        return Meeting(ports[0], ports[1], ports[2], os.urandom(16).hex())


def rank_folder(home: Path, task_id: str, attempt: int, rank: int) -> Path:
    """The task folder of one rank of one attempt."""
    return home / "record" / task_id / str(attempt) / str(rank)


def loopback(rank: int) -> str:
    """The address of a node on this machine: 127.0.0.1, .2, … (all of 127/8 is ours on Linux)."""
    if os.uname().sysname == "Darwin":
        return "127.0.0.1"  # only this one is configured there; the nodes differ by port
    return f"127.0.{(rank + 1) // 250}.{(rank + 1) % 250 or 250}"


def write_job(home: Path, row: Row, plan: Plan, *, rank: int, meeting: Meeting, has_gpus: bool) -> Path:
    """Make the folder of the rank and its task.json (0600); the folder. `has_gpus`: the machine, not the task."""
    folder = rank_folder(home, row.id, row.attempt, rank)
    os.makedirs(folder, mode=0o700, exist_ok=True)  # noqa: PTH103  # half the system calls of pathlib's
    job = _job(home, row, plan, rank=rank, meeting=meeting)
    if plan.mounts or plan.image:  # a look at the disk less for the many
        job["needs"] = deliver(home / "record" / row.base, folder)
    if plan.batch:
        job["slurm"] = _slurm(home, row, plan)
    if has_gpus and "CUDA_VISIBLE_DEVICES" not in plan.env:
        job["gpu_ids"] = job["given_gpus"]  # none given: none seen
    descriptor = os.open(folder / "task.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as text:
        text.write(json.dumps(job))  # `json.dump` does not use the encoder in C
    return folder


def _job(home: Path, row: Row, plan: Plan, *, rank: int, meeting: Meeting) -> dict[str, Any]:
    attempt = row.attempt
    code = plan.bundle and {"manifest": str(home / "manifests" / f"{plan.bundle}.json"), "blobs": str(home / "blobs")}
    limit = plan.limit_seconds and max(plan.limit_seconds - row.used_seconds, 0.001)
    previous = rank_folder(home, row.id, attempt - 1, rank) / "output" if attempt > 1 else None
    env: Mapping[str, str] = {"MASTER_PORT": str(meeting.master_port), **plan.shell_env, **plan.env}
    return {
        "v": 1,
        "task_id": row.id,
        "name": plan.name,
        "attempt": attempt,
        "rank": rank,
        "nodes": plan.nodes,
        "array_index": row.array_index,
        "argv": plan.argv,
        "env": env,
        "user_env": list(plan.env),
        "clean_env": True,
        "cwd": plan.working_dir,
        "code": code,
        "needs": [],
        "mounts": [_mount(home, one) for one in plan.mounts],
        "private_mounts": os.getuid() == 0 or bool(plan.options.get("private_mounts")),
        "image": plan.image,
        "engine": plan.engine,
        "gpu_ids": None,
        "given_gpus": _gpus_of(row, plan, rank),  # also where `env` chooses what the command sees
        "ports": plan.ports,
        "cpus": plan.cpus,
        "memory_gb": plan.memory_gb,
        "limit_seconds": limit,
        "limit_total_seconds": plan.limit_seconds,
        "grace_seconds": plan.grace_seconds,
        "may_requeue": plan.may_requeue,
        "signal": plan.signal and signal_job(plan.signal),
        "peers": [loopback(one) for one in range(plan.nodes)],
        "control_port": meeting.control_port,
        "step_port": meeting.step_port,
        "token": meeting.token,
        "previous_output": str(previous) if previous and previous.is_dir() else None,
        **(_copies(row, plan, rank) if plan.stdout or plan.stderr else {}),
        "delivery_timeout_seconds": 1800,
    }


def _slurm(home: Path, row: Row, plan: Plan) -> dict[str, Any]:
    """With what makes the other commands of Slurm ours."""
    return {
        **slurm_job(plan, row.array_index),
        "submit_dir": plan.submit_dir,
        "emulated": bool(plan.gpu_kind) and (parse_gpu(plan.instance_type).count or 1) > plan.gpus,
        "flow": [sys.executable, "-m", "flow"],
        "flow_home": str(home),
    }


def _gpus_of(row: Row, plan: Plan, rank: int) -> list[int]:
    """Each node has its own part; all have all where there were too few for that."""
    begin = rank * plan.gpus if len(row.gpu_ids) == plan.nodes * plan.gpus else 0
    return list(row.gpu_ids[begin : begin + plan.gpus])


def _mount(home: Path, mount: Mount) -> dict[str, Any]:
    if mount.kind == VOLUME:
        return {"kind": "folder", "source": str(volume_path(home, mount.source)), "target": mount.target}
    return {"kind": mount.kind, "source": mount.source, "target": mount.target, "cache": str(home / "cache")}


def _copies(row: Row, plan: Plan, rank: int) -> dict[str, Any]:
    """Where copies of the streams go, with what only the row knows filled in. Of a batch script there is one rank."""
    import getpass

    from flow.node.patterns import fill_pattern
    from flow.slurm.submitting import pattern_values

    if plan.batch and rank:
        return {}
    known: dict[str, str | int] = {"n": rank, "t": rank, "u": getpass.getuser(), "N": os.uname().nodename.split(".")[0]}
    known |= pattern_values(plan, row.array_index)
    stdout, stderr = (pattern and fill_pattern(pattern, known) for pattern in (plan.stdout, plan.stderr))
    if plan.batch and stdout == stderr:  # the command has joined them
        stderr = None
    return {
        "stdout_copy": stdout,
        "stderr_copy": stderr,
        "fresh_copies": plan.fresh_output,
        "copies_mode": plan.output_mode,
    }
