"""Several nodes at once: their hosts let each have its place, and all are told where they meet."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from flow.durable import create_durably

_PATIENCE_SECONDS = 2.0  # with hosts that were asked for a turn, since the last one gave it
_PAUSE_SECONDS = 0.03  # between two looks at them


class AskEach(Protocol):
    """Puts a question to hosts, by their names, all at once; raises FlowError where one of them has no answer."""

    def __call__(self, names: Collection[str], verb: str, *words: Any) -> Mapping[str, Any]:
        """The answers by name."""
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

    @property
    def is_leased(self) -> bool:
        return bool(self.entry) and bool(self.entry["leased"])


def gather(part: str, ranks: Mapping[str, int], record: Path, ask: AskEach) -> None:
    """Bring the nodes of a task on, as far as that goes now; called until all run. ranks: by host; `part`: see places.

    All hosts are asked for a turn at once. Where one has no room the task waits for the first such, in an order that
    the hosts say, and gives back what it has on later ones: so two tasks never wait for each other, whatever their
    clients call the hosts.
    """
    seen = _look(part, ranks, ask)
    missing = _without_turn(seen)
    if missing and seen[missing[0]].is_open and not seen[missing[0]].is_leased:
        ask([name for name in missing if seen[name].is_open], "lease", part, True)
        seen = _await_turns(part, ranks, seen, ask)
        missing = _without_turn(seen)
    if missing:
        later = list(seen)[list(seen).index(missing[0]) + 1 :]
        is_back = {name: seen[name].is_waiting or (seen[name].is_leased and not seen[name].has_turn) for name in later}
        ask([name for name in later if is_back[name]], "lease", part, False)
        return
    waiting = [name for name, one in seen.items() if one.is_waiting]
    newest = max(one.entry["attempt"] for one in seen.values())
    behind = [name for name, one in seen.items() if one.entry["attempt"] < newest and not one.is_waiting]
    if about_to_end := [name for name in behind if seen[name].is_open]:  # as another node did: they may not know it
        ask(about_to_end, "deliver", part, "attempt", str(newest))
    elif behind or any(one.entry["ended"] for name, one in seen.items() if ranks[name] == 0):
        ask(waiting, "release", [part])  # another node ended for good before these began
    elif waiting:
        statuses = {ranks[name]: one.status for name, one in seen.items()}
        ask(waiting, "deliver", part, "peers.json", _meeting(record, newest, statuses))


def _without_turn(seen: Mapping[str, _Seen]) -> list[str]:
    return [name for name, one in seen.items() if not one.has_turn]


def _look(part: str, ranks: Mapping[str, int], ask: AskEach) -> dict[str, _Seen]:
    told = ask(list(ranks), "look", [part])
    in_turn = sorted(told, key=lambda name: (told[name]["host"], name))
    return {name: _seen(told[name]["tasks"], ranks[name]) for name in in_turn}


def last_meeting(record: Path) -> int:
    """The last attempt that all nodes of a task were told of; 0 before the first."""
    return max((int(path.stem.partition("-")[2]) for path in record.glob("meeting-*.json")), default=0)


def _seen(entries: list[Mapping[str, Any]], rank: int) -> _Seen:
    entry = entries[0] if entries else {}
    return _Seen(entry, json.loads(entry["reports"].get(str(rank)) or "{}") if entry else {})


def _await_turns(part: str, ranks: Mapping[str, int], seen: dict[str, _Seen], ask: AskEach) -> dict[str, _Seen]:
    """Look until all have their turn, or none got it for some time."""
    left, until = len(_without_turn(seen)), time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < until:
        time.sleep(_PAUSE_SECONDS)
        missing = _without_turn(seen)
        seen = {**seen, **_look(part, {name: ranks[name] for name in missing}, ask)}
        if not _without_turn(seen):
            break
        if len(_without_turn(seen)) < left:
            left, until = len(_without_turn(seen)), time.monotonic() + _PATIENCE_SECONDS
    return _look(part, ranks, ask)  # what had its turn may have lost it meanwhile


def _meeting(record: Path, attempt: int, statuses: Mapping[int, Mapping[str, Any]]) -> str:
    """Where the nodes of an attempt meet: what whoever gathers them first says."""
    file = record / f"meeting-{attempt}.json"
    if not file.exists():
        peers = [statuses[rank]["address"] for rank in sorted(statuses)]
        told = {"attempt": attempt, "peers": peers, "ports": statuses[0]["ports"], "token": os.urandom(16).hex()}
        with suppress(FileExistsError):
            create_durably(file, json.dumps(told).encode())
    return file.read_text()
