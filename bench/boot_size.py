"""How long the script is that starts a task on a bare machine; clouds take 10 to 16 kB of it."""

from __future__ import annotations

from typing import Any

from bench.figures import Figure
from flow.boot import boot


def measure(*, quick: bool) -> list[Figure]:
    """Two nodes, an image, twenty variables: the runner inside, and with the runner to be delivered."""
    jobs = [_job(rank) for rank in range(2)]
    whole, short = boot(jobs, "~/flow"), boot(jobs, "~/flow", most_bytes=5000)
    return [
        Figure("boot script with its runner inside", _kilobytes(whole.script), "kB", aim=5),
        Figure("boot script where 5 kB are allowed", _kilobytes(short.script), "kB", aim=5),
    ]


def _job(rank: int) -> dict[str, Any]:
    env = {f"SETTING_{number}": f"value number {number} of a kind" for number in range(20)}
    return {
        "v": 1,
        "task_id": "task-06f3k2m9q7xw1d",
        "name": "train",
        "attempt": 1,
        "rank": rank,
        "nodes": 2,
        "argv": ["torchrun", "--nnodes=2", "train.py"],
        "env": env,
        "user_env": list(env),
        "image": "python:3.12",
        "engine": "docker",
        "peers": ["10.0.0.1", "10.0.0.2"],
        "control_port": 29400,
        "token": "0" * 32,
        "limit_seconds": 3600,
        "grace_seconds": 30,
    }


def _kilobytes(text: str) -> float:
    return len(text.encode()) / 1000
