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
        "engines": {one: engine_fault(one) for one in ENGINES if shutil.which(one)},
        "python": ".".join(map(str, sys.version_info[:3])),
        "disk_free_gb": round(_free_bytes(root) / 1e9, 1),
        "address": address(),
        "host": socket.gethostname(),
        "machine": f"{identity()} {_first_line('/proc/sys/kernel/random/boot_id')}".strip(),
    }


def engine() -> str | None:
    """What runs containers here: the first that works, else the first there is, which says why it does not."""
    found = [one for one in ENGINES if shutil.which(one)]
    return next((one for one in found if not engine_fault(one)), found[0] if found else None)


def engine_fault(name: str) -> str:
    """Why an engine that is installed does not work; "" where it does, or that is not known."""
    if name != "docker" or "DOCKER_HOST" in os.environ:
        return ""
    own = os.path.join(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}", "docker.sock")
    fault = ""
    for path in (own, "/var/run/docker.sock"):
        try:
            with socket.socket(socket.AF_UNIX) as one:
                one.connect(path)
                return ""
        except PermissionError:
            fault = "it is not open to you"
        except OSError:
            fault = fault or "its daemon does not run"
    return fault


def identity() -> str:
    """What tells this machine from others, the same for all its users."""
    return f"{socket.gethostname()} {_first_line('/etc/machine-id')} {address()}"


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


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.readline().strip()
    except (OSError, ValueError):
        return ""


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
