"""What this machine has to give out: CPUs, memory, and the GPUs that `nvidia-smi` tells of.

Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from typing import Mapping


@dataclass(frozen=True)
class Card:
    """One GPU: its index as CUDA counts, its kind as Flow spells it (`a100`), its memory in GB."""

    index: int
    kind: str
    memory_gb: float


@dataclass(frozen=True)
class Inventory:
    """What can be given out at once."""

    cpus: float
    memory_gb: float
    cards: tuple[Card, ...]


def read_inventory(*, cpus: float | None = None, gpus: int | None = None) -> Inventory:
    """This machine's, with the settings' limits: at most `gpus` cards; `cpus` in place of the real number."""
    cards = _cards() if gpus is None or gpus > 0 else ()
    return Inventory(cpus or usable_cpus(), _memory_gb(), cards[:gpus])


def usable_cpus() -> int:
    """The CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_cards(cards: tuple[Card, ...], environ: Mapping[str, str]) -> tuple[Card, ...]:
    """The cards that `CUDA_VISIBLE_DEVICES` leaves us, where it is set to indices."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not re.fullmatch(r"\s*(\d+(\s*,\s*\d+)*)?\s*", visible):
        return cards
    kept = {int(one) for one in visible.split(",") if one.strip()}
    return tuple(card for card in cards if card.index in kept)


def parse_nvidia_smi(text: str) -> tuple[Card, ...]:
    """Cards from `nvidia-smi --query-gpu=index,name,memory.total --format=csv,noheader,nounits` (memory in MiB)."""
    cards = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != 3 or not parts[0].isdigit():
            continue
        memory = float(parts[2]) / 1024 if parts[2].replace(".", "").isdigit() else 0.0
        cards.append(Card(int(parts[0]), card_kind(parts[1]), round(memory, 1)))
    return tuple(cards)


def card_kind(name: str) -> str:
    """`NVIDIA A100-SXM4-80GB` -> `a100`, `NVIDIA GeForce RTX 4090` -> `rtx4090`, `Tesla T4` -> `t4`."""
    words = re.sub(r"nvidia|tesla|geforce|quadro|graphics|generation|laptop|gpu|\(.*?\)", " ", name.lower())
    words = re.sub(r"\b(rtx|gtx)\s+(?=[a-z]?\d)", r"\1", words)
    first = re.split(r"[\s-]+", words.strip())
    kind = "".join(first[:2]) if len(first) > 1 and first[1] in ("ti", "super") else first[0]
    kind = re.sub(r"^rtx(?=a\d)", "", kind)  # the vendor says RTX A6000, everybody says A6000
    return re.sub(r"[^a-z0-9]", "", kind) or "gpu"


def _cards() -> tuple[Card, ...]:
    program = shutil.which("nvidia-smi")
    if not program:
        return ()
    import subprocess  # the local scheduler would pay for `threading` at each of its forks

    query = [program, "--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return visible_cards(parse_nvidia_smi(answer.stdout), os.environ) if answer.returncode == 0 else ()


def _memory_gb() -> float:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1024**3, 1)
    except (ValueError, OSError):
        return 0.0
