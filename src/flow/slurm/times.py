"""Moments and spans as Slurm's commands write them."""

from __future__ import annotations

import time


def stamp(moment: float | None, nothing: str = "N/A") -> str:
    """`2026-05-04T15:30:12`, in this machine's time."""
    return nothing if moment is None else time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(moment))


def short_span(seconds: float) -> str:
    """`0:05`, `1:00:00`, `2-00:00:00`: squeue's way, hours and days only where there are some."""
    days, hours, minutes, rest = _parts(seconds)
    if days:
        return f"{days}-{hours:02d}:{minutes:02d}:{rest:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def whole_span(seconds: float) -> str:
    """`00:00:05`, `1-02:00:00`: the way of sacct and scontrol."""
    days, hours, minutes, rest = _parts(seconds)
    return f"{days}-" * bool(days) + f"{hours:02d}:{minutes:02d}:{rest:02d}"


def _parts(seconds: float) -> tuple[int, int, int, int]:
    whole = max(int(seconds), 0)
    return whole // 86400, whole // 3600 % 24, whole // 60 % 60, whole % 60
