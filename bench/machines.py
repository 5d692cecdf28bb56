"""Machines that are reached by ssh, with a home of its own that has them for its provider: as root."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.fleet import Fleet
from tests.support.processes import end_attendant

from bench.place import own_home
from flow.channel import ssh


@contextmanager
def machines(*names: str) -> Iterator[Fleet]:
    """A fleet of them; connections of ours to it are kept, and end with it."""
    with tempfile.TemporaryDirectory(prefix="fl") as folder, Fleet(Path(folder) / "fleet") as fleet:
        fleet.boot_all(*names)
        settings = {"PROVIDER": "ssh", "SSH_HOSTS": ",".join(names), "SSH_SSH_CONFIG": str(fleet.config)}
        with own_home(XDG_RUNTIME_DIR=folder, **{f"FLOW_{name}": value for name, value in settings.items()}) as home:
            try:
                yield fleet
            finally:
                end_attendant(home)


def bare(fleet: Fleet) -> list[str]:
    """What goes before the name of a machine: ssh, which connects anew each time."""
    return ["ssh", "-F", str(fleet.config)]


def connected(fleet: Fleet) -> list[str]:
    """The same over the connection that we keep, once there is one."""
    return list(ssh("", config=str(fleet.config)).prefix[:-2])
