"""Machines of running tasks as entries of an ssh config: for `ssh flow-train`, scp, rsync and editors."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flow.channel import Channel
from flow.durable import write_durably

if TYPE_CHECKING:
    from flow.task import Task

FILE = "ssh_config"  # in Flow's home
# Of what `ssh -G` says, where and as whom; the rest is the user's own defaults again.
_KEPT = (
    "hostname", "user", "port", "identityfile", "identityagent", "identitiesonly", "certificatefile", "proxyjump",
    "proxycommand", "userknownhostsfile", "hostkeyalias", "stricthostkeychecking",
)  # fmt: skip


class Entry(NamedTuple):
    """A machine of a task, under the name that ssh is to know it by."""

    name: str
    task_id: str
    text: str


def entries(tasks: Iterable[Task]) -> Iterator[Entry]:
    """One for each machine of these tasks that ssh itself reaches; of tasks of the same name for the first."""
    seen: set[str] = set()
    for task in tasks:
        for rank in range(task.plan.nodes):
            reached = task.reach(rank)
            channel = reached[0] if reached else Channel()
            name = f"flow-{re.sub(r'[^A-Za-z0-9_.-]', '-', task.name)}" + (f"-{rank}" if rank else "")
            if channel.prefix[:1] == ("ssh",) and channel.beyond is None and name not in seen:
                seen.add(name)
                yield Entry(name, task.task_id, _entry(name, channel.prefix))


def install(home: Path, found: Iterable[Entry], config: Path) -> bool:
    """Write them to a file in Flow's home that `config`, the user's own, includes; whether it did not do so before."""
    write_durably(home / FILE, "\n".join(one.text for one in found).encode())
    line = f'Include "{home / FILE}"'
    before = config.read_text() if config.exists() else ""
    if line in before.splitlines():
        return False
    config.parent.mkdir(mode=0o700, exist_ok=True)
    write_durably(config.resolve(), f"{line}\n\n{before}".encode())  # first: an Include behind a Host is a part of it
    return True


def _entry(name: str, prefix: tuple[str, ...]) -> str:
    told = subprocess.run([*prefix[:-2], "-G", *prefix[-2:]], capture_output=True, text=True, check=False).stdout
    lines = [line for line in told.splitlines() if line.split(" ")[0] in _KEPT and not line.endswith(" none")]
    return f"Host {name}\n" + "".join(f"  {line}\n" for line in lines)
