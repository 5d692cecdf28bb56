"""What `flow init` asks about Mithril: the key, checked at once; a project, a region and an SSH key to choose."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

from flow.cli import output
from flow.cli.questions import Choice, ask, ask_secret, choose
from flow.cli.setup import Setup, nobody_to_ask
from flow.errors import AuthenticationError, FlowError, ValidationError, did_you_mean
from flow.providers.mithril.account import Account
from flow.providers.mithril.api import INIT, KEYS_PAGE, Api, NotKnownError
from flow.providers.mithril.keys import identity_file, login_keys
from flow.providers.mithril.provider import Mithril as Provider
from flow.settings import flow_home

_TRIES = 3  # to type a key that is accepted
_ANY, _NEW = "any", "new"


class Mithril:
    """The answers, asked for in their order when it is made. Nothing is made or written before `prepare`."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._api = self._signed_in()
        self._project = self._chosen_project()
        self._choose_region()
        self._ssh_key = self._chosen_ssh_key()

    def prepare(self) -> None:
        """Make the SSH key that was chosen, and send it, where that is needed. Raises FlowError."""
        home = flow_home()
        label = f"flow-{Provider(home, {}).home_id[:8]}"
        account = Account(self._api, self._project)
        prepared = partial(login_keys, account, home / "mithril", self._ssh_key, label)
        try:
            keys = prepared()
        except NotKnownError:  # it may be there: it is looked for before it is sent again
            keys = prepared()
        output.say(f"SSH key: `{keys.identity or self._ssh_key}`")

    def _signed_in(self) -> Api:
        given, kept = self._setup.given.get("api_key"), self._setup.now("mithril.api_key")
        if given == "-":
            given = ask_secret("API key") if output.is_terminal(sys.stdin) else sys.stdin.readline().strip()
            if not given:
                raise ValidationError("no API key came in", suggestions=[f"get one from {KEYS_PAGE}"])
        if given or not self._setup.asks:
            if not (given or kept):
                raise nobody_to_ask("`--api-key` is missing", f"get a key from {KEYS_PAGE}")
            return self._checked(given or str(kept))
        origin = self._setup.settings.origin("mithril.api_key")
        question = f"API key (Enter keeps that of {origin})" if kept else f"API key, from {KEYS_PAGE}"
        for tried in range(1, _TRIES + 1):
            key = ask_secret(question) or kept
            try:
                if not key:
                    raise AuthenticationError("a key is needed", suggestions=[f"get one from {KEYS_PAGE}"])
                return self._checked(key)
            except AuthenticationError as error:
                if tried == _TRIES:
                    raise
                output.say("; ".join((error.message, *error.suggestions[:1])))
        raise AssertionError

    def _checked(self, key: str) -> Api:
        try:
            api = Api(key, str(self._setup.settings.get("mithril.api_url")))
            me = api.get("/v2/me")
        except AuthenticationError as error:
            error.suggestions = tuple(one for one in error.suggestions if one != INIT)  # which this is
            raise
        me = me if isinstance(me, dict) else {}
        self._setup.answer("mithril.api_key", key)
        output.say(f"signed in as {output.printable(str(me.get('email') or me.get('name') or me.get('fid')))}")
        return api

    def _chosen_project(self) -> str:
        """Its id."""
        there = {str(one["fid"]): str(one.get("name")) for one in self._api.list("/v2/projects")}
        names = list(there.values())
        given, now = self._setup.given.get("project"), self._setup.now("mithril.project")
        if not there:
            raise ValidationError("this account has no project", suggestions=["make one in the web console"])
        asked = given or now
        if not given and len(there) == 1:
            asked = now if now in there else names[0]
            output.say(f"project: {output.printable(asked)}")
        elif self._setup.asks and not given:
            choices = [Choice(fid, name if names.count(name) == 1 else fid, name) for fid, name in there.items()]
            plain = [one._replace(about="" if one.name == one.about else one.about) for one in choices]
            fid = choose("Project", plain, next((fid for fid, name in there.items() if now in (fid, name)), None))
            asked = next(one.name for one in choices if one.value == fid)
        if not asked:
            raise nobody_to_ask("`--project` is missing", f"the projects are {', '.join(names)}")
        origin = "--project" if given else self._setup.settings.origin("mithril.project")
        fid = asked if asked in there else Account(self._api, asked, origin=origin).project
        if fid not in there:
            raise ValidationError(f"no project `{asked}`", suggestions=did_you_mean(asked, there))
        self._setup.answer("mithril.project", asked)
        return fid

    def _choose_region(self) -> None:
        given, now = self._setup.given.get("region"), self._setup.now("mithril.region")
        if not (given or self._setup.asks):
            return
        there = self._regions("/v2/spot/availability", "region")
        if not given and there:
            output.say(f"Regions with machines now: {', '.join(there)}")
        while True:
            said = given or ask(f"Region (`{_ANY}`: wherever it is cheapest)", now or _ANY)
            region = None if said == _ANY else said
            try:
                self._check_region(region, there)
            except ValidationError as error:
                if given:
                    raise
                output.say("; ".join((error.message, *error.suggestions)))
            else:
                break
        self._setup.answer("mithril.region", region)

    def _check_region(self, region: str | None, there: list[str]) -> None:
        """Raises ValidationError where it is none; one that has no machines now is noted."""
        if region and there and region not in there:
            hints = [*did_you_mean(region, there), f"there is: {', '.join(there)}"]
            known = self._regions("/marketplace/v1/regions", "name")
            if known and region not in known:
                raise ValidationError(f"no region `{region}`", suggestions=hints)
            output.note("; ".join((f"there are no machines in `{region}` now", *hints)))

    def _regions(self, path: str, field: str) -> list[str]:
        """Those that a list names; none where it cannot be had."""
        try:
            return sorted({str(one[field]) for one in self._api.list(path) if one.get(field)})
        except FlowError:
            return []

    def _chosen_ssh_key(self) -> str | None:
        """Its name there, or its file here; None for Flow's own."""
        given, now = self._setup.given.get("ssh_key"), self._setup.now("mithril.ssh_key")
        if self._setup.asks and not given:
            output.say("Which SSH key shall open the machines?")
            given = choose("SSH key", self._ssh_keys(now), now or _NEW)
        key = None if given == _NEW else given or now
        file = identity_file(flow_home(), key) if given and key else None
        key = str(file.parent.resolve() / file.name) if file and not str(key).startswith("~") else key
        self._setup.answer("mithril.ssh_key", key)
        return key

    def _ssh_keys(self, now: str | None) -> list[Choice]:
        own = flow_home() / "mithril" / "id_ed25519"
        choices = [
            Choice(_NEW, _NEW, f"one of Flow's own, in `{own}`: {'it is there' if own.exists() else 'made now'}")
        ]
        there = list(self._api.list("/v2/ssh-keys", project=self._project))
        by_key = {_key(str(one.get("public_key", ""))): one for one in there}
        by_key.pop(_key_of(own.with_suffix(".pub")), None)
        for file in sorted(Path("~/.ssh").expanduser().glob("*.pub")):
            if file.with_suffix("").exists():
                known = by_key.pop(_key_of(file), None)
                name = f"~/.ssh/{file.stem}"
                choices.append(Choice(name, name, f"known there as `{known['name']}`" if known else "is sent there"))
        names = [str(one.get("name")) for one in there]
        for one in by_key.values():
            name = str(one["name"]) if names.count(str(one.get("name"))) == 1 else str(one["fid"])
            choices.append(Choice(name, name, "is there; its private part must be known to your ssh"))
        if now and now not in {one.value for one in choices}:
            choices.append(Choice(now, now, "as it is now"))
        return choices


def _key(public: str) -> tuple[Any, ...]:
    return tuple(public.split()[:2])


def _key_of(file: Path) -> tuple[Any, ...]:
    return _key(file.read_text(errors="replace")) if file.exists() else (file,)  # like no key
