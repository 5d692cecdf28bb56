"""The hosts of the fleet: which there are, how each is reached, and since when one could not be."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, cast

from flow.channel import ssh
from flow.durable import write_durably
from flow.errors import FlowError, UnreachableError, ValidationError, did_you_mean
from flow.node import host as program
from flow.remote import Remote

SETTING = "ssh.hosts"
HOSTS_FILE = "hosts"  # below Flow's home: a line each, `target` or `target as name`
_TARGET = re.compile(r"(?:[\w.-]+@)?(?:[\w.-]+|\[[0-9a-fA-F:]+\])(?::\d+)?")
NEEDS = ("remains", "inventory", "asked", "host_facts")
_LOOKS_SECONDS = 600.0  # between two that found a host silent, for what lies between them to count
_TRY_SECONDS = 30.0  # between two tries of a host of which nothing is awaited
_REST_SECONDS = 10.0  # at most, that a host is not asked again which a question was just put to in vain
_AT_ONCE = 32  # hosts that are asked at the same time
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Host:
    """`target`: as ssh takes it, or `user@address:port`. `origin`: where it is named."""

    name: str
    target: str
    origin: str = ""


def parse_host(text: str, origin: str = "") -> Host:
    """`gpu1`, `user@10.0.0.7:2222`, `10.0.0.7 as gpu1`. Raises ValidationError."""
    words, by = text.split(), f", by {origin}" if origin else ""
    is_named = len(words) == 3 and words[1] == "as"
    if not words or not (len(words) == 1 or is_named) or not _TARGET.fullmatch(words[0]):
        raise ValidationError(
            f"`{text.strip()}` is no host{by}",
            suggestions=["write `gpu1`, `user@10.0.0.7:2222` or `10.0.0.7 as gpu1`"],
        )
    name = words[2] if is_named else re.sub(r"^.*@|:\d+$", "", words[0])
    if not re.fullmatch(r"\w[\w.-]{0,63}", name):
        raise ValidationError(f"`{name}` is no name for a host{by}", suggestions=["name it: `TARGET as gpu1`"])
    return Host(name, words[0], origin)


def told_since(why: str, since: float | None) -> str:
    """Why a host does not answer, for the user; with since when (in seconds since the epoch), where that is known."""
    return why if since is None else f"{why}, since {time.strftime('%H:%M:%S', time.localtime(since))}"


def _is_line(line: str) -> bool:
    return bool(line.strip()) and not line.startswith("#")


class Fleet:
    """All hosts, by name, in the order in which they were named."""

    def __init__(self, home: Path, settings: Mapping[str, object]) -> None:
        self._home, self._settings = home, settings
        self.see_again: Callable[[str, Remote], None] = lambda *_: None  # called with a host that was silent
        self._remotes: dict[str, Remote] = {}
        self._failures: dict[str, tuple[float, FlowError]] = {}  # until when each holds, by the monotonic clock

    @property
    def hosts(self) -> dict[str, Host]:
        """Those that `ssh.hosts` names and those that `flow host add` did. Raises ValidationError."""
        named = cast("list[str]", self._settings.get("hosts") or [])
        found = [parse_host(text, SETTING) for text in named]
        found += [parse_host(line, str(self._home / HOSTS_FILE)) for line in self._lines() if _is_line(line)]
        return {one.name: one for one in found}

    def add(self, host: Host) -> None:
        """Write a host down. Raises ValidationError where its name is taken."""
        known = self.hosts.get(host.name)
        if known:
            raise ValidationError(
                f"the fleet has a host `{host.name}` already: `{known.target}`, by {known.origin}",
                suggestions=[f"give it another name: `flow host add {host.target} --as NAME`"],
            )
        self._write([*self._lines(), host.target if host.name == host.target else f"{host.target} as {host.name}"])

    def remove(self, name: str) -> Host:
        """Take a host out of the list. Raises ValidationError where it is not in it."""
        host = self.hosts.get(name)
        if host is None:
            raise ValidationError(f"no host `{name}` in the fleet", suggestions=did_you_mean(name, list(self.hosts)))
        if host.origin == SETTING:
            raise ValidationError(f"`{name}` is named by `{SETTING}`", suggestions=["take it out of the settings"])
        self._write([line for line in self._lines() if not _is_line(line) or parse_host(line).name != name])
        return host

    def _lines(self) -> list[str]:
        file = self._home / HOSTS_FILE
        return file.read_text().splitlines() if file.exists() else []

    def _write(self, lines: Sequence[str]) -> None:
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(self._home / HOSTS_FILE, "".join(f"{line}\n" for line in lines).encode())

    def remote(self, name: str) -> Remote:
        """The host of that name. Raises ValidationError where there is none."""
        if name not in self._remotes:
            hosts = self.hosts
            if name not in hosts:
                raise ValidationError(
                    f"no host `{name}` in the fleet",
                    suggestions=[*did_you_mean(name, list(hosts)), f"add it with `flow host add {name}`"],
                )
            config, python = self._settings.get("ssh_config"), self._settings.get("python")
            channel = ssh(hosts[name].target, config=str(config) if config else None)
            channel = replace(channel, python=str(python or channel.python))
            folder = str(self._settings.get("folder") or "~/.flow-host")
            self._remotes[name] = Remote(channel, folder, program, NEEDS, "ssh.folder")
        return self._remotes[name]

    def ask_each(self, names: Sequence[str], question: Callable[[str, Remote], T]) -> dict[str, T | FlowError]:
        """The answer of each host, or why there is none; all are asked at once.

        One that did not answer is let be for as long as that took, with the same error: a command has several
        questions, and is not to wait for each.
        """

        def asked(name: str) -> T | FlowError:
            began = time.monotonic()
            until, failure = self._failures.get(name, (0.0, None))
            if failure and began < until:
                self._note_silence(name)  # or, had this machine slept since, it would be taken for a long one
                return copy(failure)  # as who gets it may add advice
            try:
                answer = question(name, self.remote(name))
                if self.silent_since(name) is not None:
                    try:
                        self.see_again(name, self.remote(name))
                    except UnreachableError:
                        raise
                    except FlowError:  # as its disk is full, of which it tells who asks for something there
                        pass
                    self._silence(name).unlink(missing_ok=True)
                return answer
            except FlowError as error:
                if isinstance(error, (UnreachableError, ValidationError)):  # or no host is called so any more
                    self._note_silence(name)
                    now = time.monotonic()
                    self._failures[name] = now + min(now - began, _REST_SECONDS), copy(error)
                return error

        if len(names) == 1:
            return {names[0]: asked(names[0])}
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(min(len(names), _AT_ONCE) or 1) as threads:
            return dict(zip(names, threads.map(asked, names), strict=True))

    @property
    def lost_after_seconds(self) -> float:
        """How long a host may be silent."""
        minutes = self._settings.get("lost_after_minutes")
        return 1800.0 if minutes is None else float(str(minutes)) * 60

    def silent_since(self, name: str) -> float | None:
        """When a host was first found not to answer, by this clock; None where it did the last time."""
        try:
            return float(self._silence(name).read_text())
        except (OSError, ValueError):
            return None

    def may_be_back(self, name: str) -> bool:
        """Whether a host is to be asked though it was silent: not in each look, as that is waited for."""
        return self._unasked_seconds(name) > _TRY_SECONDS

    def _note_silence(self, name: str) -> None:
        """Once nobody looked for long, as while this machine slept, nobody knows that it was silent all the time."""
        file, most = self._silence(name), max(self.lost_after_seconds, _LOOKS_SECONDS)
        if self.silent_since(name) is None or self._unasked_seconds(name) > most:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_durably(file, str(time.time()).encode())
        else:
            file.touch()

    def _unasked_seconds(self, name: str) -> float:
        """How long ago a host was last found not to answer; endless where it did the last time."""
        try:
            return time.time() - self._silence(name).stat().st_mtime
        except FileNotFoundError:  # another client may remove it at any moment
            return math.inf

    def _silence(self, name: str) -> Path:
        return self._home / "ssh" / "silent" / name
