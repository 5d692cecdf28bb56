"""What the kernel has of a fleet besides its processes, links and control groups; nothing of it stays."""

from __future__ import annotations

import re
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.support.processes import wait_until


def claim_network() -> tuple[socket.socket, int]:
    """A number that is ours while the socket is open; what a dead process had of it, or of any other, is gone."""
    for number in {int(found[1]) for _, link in socket.if_nameindex() if (found := re.match(r"fleet(\d+)", link))}:
        if claim := _claim(number):
            sweep(number)
            claim.close()
    for number in range(256):
        if claim := _claim(number):
            return claim, number
    raise AssertionError("there are 256 fleets already")


def _claim(number: int) -> socket.socket | None:
    one = socket.socket(socket.AF_UNIX)
    try:
        one.bind(f"\0flow-test-fleet-{number}")  # no file: known where the network is known, and gone with the process
    except OSError:
        one.close()
        return None
    return one


def sweep(number: int) -> None:
    """Remove the network and the control groups of a fleet whose machines have ended."""
    for _, link in socket.if_nameindex():
        if re.fullmatch(rf"fleet{number}(\D\d+)?", link):
            delete_link(link)
    remove_groups(f"fleet{number}-*")


def ip(*lines: str) -> None:
    done = subprocess.run(["ip", "-batch", "-"], input="\n".join(lines) + "\n", capture_output=True, text=True)
    assert done.returncode == 0, f"{lines}: {done.stderr}"


def delete_link(name: str) -> None:
    """It is gone, be it with its other end, which a moment after their death goes with the machine's processes."""
    subprocess.run(["ip", "link", "del", name], capture_output=True)


def mac(fleet: int, number: int) -> str:
    """The same after a reboot, or whoever knew it would look for it for half a minute."""
    return f"02:00:f1:ee:{fleet:02x}:{number:02x}"


def _hierarchies() -> list[Path]:
    """Where the control groups are: one folder in version 2, one a controller in version 1."""
    lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return [Path(at) for _, at, kind, *_ in lines if kind in ("cgroup", "cgroup2")]


def make_groups(name: str, memory_mb: int | None) -> list[Path]:
    groups = [folder / name for folder in _hierarchies()]
    for group in groups:
        group.mkdir(exist_ok=True)
        for file in ("cpuset.cpus", "cpuset.mems"):
            if (group / file).exists() and not (group / file).read_text().strip():
                (group / file).write_text((group.parent / file).read_text())
        for file in ("memory.limit_in_bytes", "memory.max"):
            if memory_mb and (group / file).exists():
                (group / file).write_text(str(memory_mb << 20))
    return groups


def remove_groups(pattern: str) -> None:
    """Their processes have ended, or are about to."""

    def remove() -> bool:
        for group in (one for folder in _hierarchies() for one in folder.glob(pattern)):
            for folder in [*sorted(group.rglob("*/"), reverse=True), group]:
                with suppress(OSError):
                    folder.rmdir()
        return not any(one for folder in _hierarchies() for one in folder.glob(pattern))

    assert wait_until(remove), f"control groups {pattern} have processes"
