"""What a host has, for who would send a task there. Standard library, Python 3.8 and up."""

from __future__ import annotations

import fcntl
import importlib
import os
import shutil
import socket
import sys
import time
from typing import Any

_PACKAGE = f"{__package__}." if __package__ else ""
inventory = importlib.import_module(_PACKAGE + "inventory")
GPU_LOCKS = "/tmp/.flow-gpus"  # of all users: byte N is locked by who has GPU N
ENGINES = ("docker", "podman", "apptainer", "singularity")


def facts(root: str) -> dict[str, Any]:
    """Sizes in GB; `root` is the folder of the host's tasks."""
    machine = inventory.read_inventory()
    return {
        "now": time.time(),
        "cpus": machine.cpus,
        "memory_gb": machine.memory_gb,
        "gpus": [{"index": one.index, "kind": one.kind, "memory_gb": one.memory_gb} for one in machine.cards],
        "gpus_taken": gpus_taken([one.index for one in machine.cards]),
        "engines": [one for one in ENGINES if shutil.which(one)],
        "python": ".".join(map(str, sys.version_info[:3])),
        "disk_free_gb": round(_free_bytes(root) / 1e9, 1),
        "address": address(),
        "host": socket.gethostname(),
    }


def identity() -> str:
    """What tells this machine from others, the same for all its users."""
    try:
        with open("/etc/machine-id", encoding="ascii") as file:
            machine = file.read().strip()
    except (OSError, ValueError):
        machine = ""
    return f"{socket.gethostname()} {machine} {address()}"


def gpus_taken(indices: list[int]) -> list[int]:
    """Those that some user's task holds."""
    try:
        fd = os.open(GPU_LOCKS, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return []
    taken = []
    try:
        for one in indices:
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, one)
                fcntl.lockf(fd, fcntl.LOCK_UN, 1, one)
            except OSError:
                taken.append(one)
    finally:
        os.close(fd)
    return taken


def _free_bytes(root: str) -> int:
    while not os.path.exists(root):
        root = os.path.dirname(root)
    return shutil.disk_usage(root).free


def address() -> str:
    """By which other machines of its network reach this one: no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.connect(("192.0.2.1", 9))  # an address of nobody's; source: RFC 5737
            return str(one.getsockname()[0])
        except OSError:
            return socket.gethostname()
