"""Several nodes at once: each host in turn lets its node have its place, and all are told where they meet."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from flow.durable import create_durably


class Ask(Protocol):
    """Puts a question to one host, by its name; raises FlowError where it has no answer."""

    def __call__(self, name: str, verb: str, *words: Any) -> Any:
        """The answer."""
        ...


class _Seen(NamedTuple):
    """A node as its host tells of it."""

    entry: Mapping[str, Any]  # {} where it is not known there
    status: Mapping[str, Any]

    @property
    def has_turn(self) -> bool:
        return bool(self.status) and (self.entry["runs"] or self.status["phase"] != "waiting")

    @property
    def is_waiting(self) -> bool:
        return self.has_turn and self.status["phase"] == "waiting"

    @property
    def is_open(self) -> bool:
        return bool(self.entry) and not self.entry["ended"]


def gather(part: str, ranks: Mapping[str, int], record: Path, ask: Ask) -> None:
    """Bring the nodes of a task on, as far as that goes now; called until all run. ranks: by host; `part`: see places.

    Turns are taken host after host in an order that the hosts say, so that two tasks never wait for each other whatever
    their clients call the hosts; for that, who lost its turn on one host gives back those that it has on later ones.
    """
    told = {name: ask(name, "look", [part]) for name in ranks}
    seen = {
        name: _seen(told[name]["tasks"], ranks[name]) for name in sorted(told, key=lambda one: (told[one]["host"], one))
    }
    missing = next((name for name, one in seen.items() if not one.has_turn), None)
    if missing is not None:
        later = list(seen)[list(seen).index(missing) + 1 :]
        for name in (name for name in later if seen[name].is_waiting):
            ask(name, "lease", part, False)
        if seen[missing].is_open:
            ask(missing, "lease", part, True)
        return
    waiting = [name for name, one in seen.items() if one.is_waiting]
    newest = max(one.entry["attempt"] for one in seen.values())
    if any(one.entry["attempt"] < newest for one in seen.values() if not one.is_waiting):
        return  # it is about to end, as another node did
    if any(one.entry["ended"] for name, one in seen.items() if ranks[name] == 0):
        for name in waiting:  # the first node ended for good before these began
            ask(name, "release", [part])
        return
    for name in waiting:
        statuses = {ranks[one]: seen[one].status for one in ranks}
        ask(name, "deliver", part, "peers.json", _meeting(record, newest, statuses))


def last_meeting(record: Path) -> int:
    """The last attempt that all nodes of a task were told of; 0 before the first."""
    return max((int(path.stem.partition("-")[2]) for path in record.glob("meeting-*.json")), default=0)


def _seen(entries: list[Mapping[str, Any]], rank: int) -> _Seen:
    entry = entries[0] if entries else {}
    return _Seen(entry, json.loads(entry["reports"].get(str(rank)) or "{}") if entry else {})


def _meeting(record: Path, attempt: int, statuses: Mapping[int, Mapping[str, Any]]) -> str:
    """Where the nodes of an attempt meet: what whoever gathers them first says."""
    file = record / f"meeting-{attempt}.json"
    if not file.exists():
        peers = [statuses[rank]["address"] for rank in sorted(statuses)]
        told = {"attempt": attempt, "peers": peers, "ports": statuses[0]["ports"], "token": os.urandom(16).hex()}
        with suppress(FileExistsError):
            create_durably(file, json.dumps(told).encode())
    return file.read_text()
