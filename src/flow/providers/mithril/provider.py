"""The Mithril provider: a spot bid for each task, whose machines run it to a true end and then cost nothing more."""

from __future__ import annotations

import fcntl
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from flow.channel import Channel, ssh
from flow.durable import private, write_durably
from flow.errors import (
    AuthenticationError,
    FlowError,
    ProviderError,
    QuotaExceededError,
    ResourceNotFoundError,
    ValidationError,
)
from flow.gpus import Gpu
from flow.machines import Capabilities, Machines, Offer, Price, Volume
from flow.mounts import VOLUME
from flow.plan import Plan
from flow.providers import Option
from flow.providers.mithril.account import BIDS, Account, open_api
from flow.providers.mithril.api import URL, NameTakenError, NotKnownError, PriceTooLowError
from flow.providers.mithril.bids import PAUSES, UNDELIVERED, limit_of, rental_of, volumes_of
from flow.providers.mithril.keys import Keys, keys_of_others, login_keys
from flow.providers.mithril.market import Market, price_text
from flow.providers.mithril.volumes import Volumes, on_machine, path_of
from flow.providers.rental import Machine, Rental
from flow.providers.rented import Rented
from flow.providers.startup import Mark, startup_script, tell_guard

_INSTANCES, _KEYS, _QUOTAS = "/v2/instances", "/v2/api-keys", "/v2/quotas"
_USER = "ubuntu"
_NOTICE = "/opt/mithril/*_SIGNAL.yml"
_SCRIPT_BYTES = 10_000
_ASKED_ONE_BY_ONE = 3  # bids by their names; more are found in the list of all
_LISTED_SECONDS = 1.0  # how long the list of all bids is taken to hold where no task hangs on it
_IDS_AT_ONCE = 50
_KEY_SLACK_SECONDS = 72 * 3600.0  # for a bid to be allocated in
_KEY_MOST_SECONDS = 364 * 86400.0  # also of a task without a limit; the API takes a year
_PAUSING_SECONDS = 300.0
_LOOKS, _PAUSE_SECONDS = 5, 1.0  # for a bid that may have been made


class Mithril(Rented):
    """`home` is the folder that holds the records."""

    name: ClassVar[str] = "mithril"
    scratch: ClassVar[str] = "/mnt/local"
    startup_copy: ClassVar[str] = "/var/lib/foundry/startup_script.sh"
    options: ClassVar[tuple[Option, ...]] = (
        Option("api_key", str, "key of the API", environment="MITHRIL_API_KEY", secret=True),
        Option("project", str, "project, by name or id", environment="MITHRIL_PROJECT"),
        Option("region", str, "region of its machines"),
        Option("ssh_key", str, "SSH key to log in with"),
        Option("api_url", str, "where the API is", URL),
        Option("price_factor", float, "limit price, where no cap is given: the current price times this", 1.5),
        Option("grace_minutes", float, "how long a machine waits to have its task collected", 10.0),
        Option("lost_after_minutes", float, "how long a machine may be out of reach, or dead", 30.0),
    )

    def __init__(self, home: Path, options: Mapping[str, object]) -> None:
        super().__init__(home, options)
        self._listed: tuple[float, list[dict[str, Any]]] = (-math.inf, [])  # all live bids, and since when

    @cached_property
    def account(self) -> Account:
        """The account that the settings name. Raises AuthenticationError where there is no key."""
        project = self._settings.get("project")
        api = open_api(self._settings.get("api_key"), self._settings.get("api_url"))
        return Account(api, str(project) if project else None)

    @cached_property
    def market(self) -> Market:
        """Its prices and kinds of machines."""
        return Market(self.account.api, self.home / "mithril")

    @property
    def capabilities(self) -> Capabilities:
        """As other clouds', with caps on prices."""
        return replace(
            super().capabilities,
            volumes=True,
            boot_bytes=_SCRIPT_BYTES,
            upload_limit_mb=10.0,
            price_factor=float(str(self._settings.get("price_factor") or 1.5)),
            region=self._region,
        )

    @property
    def volumes(self) -> Volumes:
        """Its volumes."""
        made = self.home / self.name / "made"
        return Volumes(self.account, self.home, self._region, made=made, note=self.holds.note_making)

    def offers(self, gpu: Gpu | None = None) -> list[Offer]:
        """Spot machines, those in the settings' region first; what can be had now, then the cheapest first."""
        return sorted(self.market.offers(gpu), key=lambda one: self._region not in (None, one.region))

    def prices(self, offers: Sequence[Offer]) -> list[Price]:
        """What the market tells of these."""
        return self.market.prices(offers)

    @property
    def _region(self) -> str | None:
        region = self._settings.get("region")
        return str(region) if region else None

    # -- bids

    def rentals(self, task_ids: Collection[str] | None = None) -> list[Rental]:
        """Bids, by what their names and scripts say of whose they are."""
        if task_ids is not None and len(task_ids) <= _ASKED_ONE_BY_ONE:
            bids = [one for name in task_ids for one in self._bids_named(name)]
        else:
            bids = self._live_bids()
            known = {str(one["name"]) for one in bids}
            # one that is not among them is gone, or in a state that we do not know
            bids += [one for name in task_ids or () if name not in known for one in self._bids_named(name)]
            bids = [one for one in bids if task_ids is None or one["name"] in task_ids]
        instances = self._instances([one for one in bids if one["status"] not in ("Open", "Terminated", "Paused")])
        prices = self._prices() if bids else {}
        return [rental_of(one, instances.get(str(one["fid"]), []), prices, self._noted_word) for one in bids]

    def bills(self) -> list[Rental]:
        """The same of all live bids without their machines; a look at many tasks a moment ago will do."""
        since, bids = self._listed
        if time.monotonic() - since > _LISTED_SECONDS:
            bids = self._live_bids()
        prices = self._prices() if bids else {}
        return [rental_of(one, [], prices, self._noted_word) for one in bids]

    def rent(self, plan: Plan, attempt: int, machines: int) -> None:
        """Bid for them; a bid of this name that is ours already is left alone."""
        try:
            self._bid(plan, attempt, machines)
        except AuthenticationError:
            self.account.check_project()
            raise

    def _bid(self, plan: Plan, attempt: int, machines: int) -> None:
        others = keys_of_others(self.account, plan.ssh_keys)
        key_ids, limit = list(dict.fromkeys([*self._login.key_ids, *others])), self._limit(plan)
        volumes = [one.source for one in plan.mounts if one.kind == VOLUME]
        script = startup_script(
            plan,
            machines=machines,
            mark=Mark(plan.task_id, attempt, plan.hash, self.home_id, (str(round(limit * 100)),)),
            user=_USER,
            notice=_NOTICE,
            scratch=self.scratch,
            volumes=on_machine(self.volumes.list(), volumes),
            grace_seconds=float(str(self._settings.get("grace_minutes") or 10.0)) * 60,
        )
        body = {
            "project": self.account.project,
            "region": plan.region,
            "instance_type": self._type_id(plan),
            "limit_price": price_text(limit),
            "instance_quantity": machines,
            "name": plan.task_id,
            "launch_specification": {"volumes": volumes, "ssh_keys": key_ids, "startup_script": script},
        }
        for is_last in (False, True):
            try:
                self.account.api.create(BIDS, body)
                break
            except FlowError as error:
                may_be_there = is_last or isinstance(error, (NotKnownError, NameTakenError))
                # looked for first, it may be asked for again: should it come late, then its name is taken
                if may_be_there and self._has_come(plan, attempt):
                    break
                if is_last:  # which is no refusal: the first may still come, and be why the second is refused
                    raise NotKnownError(f"the bid `{plan.task_id}` does not show: {error.message}") from error
                if isinstance(error, (PriceTooLowError, QuotaExceededError)):
                    error.suggestions = (*self._facts_of(error, plan, limit), *error.suggestions)
                if not may_be_there:
                    raise
        self.holds.note_answer(plan.task_id)

    def end(self, rental: Rental) -> None:
        """Delete the bid, and with it the machines and their disks."""
        self.account.api.delete(f"{BIDS}/{rental.rental_id}")

    def wake(self, rental: Rental) -> None:
        """Let a paused bid go on, without the word that its machine put into its limit price, if that is taken.

        The word is noted here.
        """
        if rental.ended_with not in ("", UNDELIVERED):
            write_durably(self._word_file(str(rental.task_id)), f"{rental.rental_id} {rental.ended_with}".encode())
        bid, limit = f"{BIDS}/{rental.rental_id}", {"limit_price": price_text(limit_of(rental.told or {}))}
        try:
            self.account.api.update(bid, {"paused": False, **(limit if rental.ended_with else {})})
        except PriceTooLowError:  # the least that is taken has risen
            self.account.api.update(bid, {"paused": False})

    def _word_file(self, task_id: str) -> Path:
        """Names its bid, and how its machine has told that the task has ended."""
        return self.home / "record" / task_id / "ended_with"

    def _noted_word(self, bid: Mapping[str, Any]) -> str:
        with suppress(OSError):
            bid_id, word = self._word_file(str(bid.get("name"))).read_text().split()
            return word if bid_id == bid["fid"] else ""
        return ""

    def bill(self, plan: Plan, rental: Rental) -> dict[str, Any]:
        """With a key of its own, made for this, which expires by itself should nobody revoke it."""
        until = datetime.fromtimestamp(time.time() + _key_seconds(plan), timezone.utc)
        name = f"flow-{plan.task_id}-{time.time_ns() % 10**6:06}"
        key = self.account.api.create(_KEYS, {"name": name, "expires_at": until.strftime("%Y-%m-%dT%H:%M:%SZ")})
        url = f"{self.account.api.url}{BIDS}/{rental.rental_id}"
        limit = limit_of(rental.told or {})
        requests: dict[str, Any] = {
            word: ["PATCH", url, {"paused": True, "limit_price": price_text(limit + number / 100)}]
            for number, word in PAUSES.items()
        }
        requests["collected"] = ["DELETE", url, None]
        headers = {"Authorization": f"Bearer {key['secret']}"}
        return {"headers": headers, "requests": requests, "keep": plan.keep}

    def way_to(self, rental: Rental, machine: Machine) -> Channel:
        """By ssh; its host key is pinned for the task."""
        name = "known_hosts" if rental.attempt == 1 else f"known_hosts-{rental.attempt}"  # addresses come again
        known = self.home / "record" / str(rental.task_id) / name
        with suppress(OSError):  # of a task that left its record; ssh would have it readable by all
            known.touch(0o600)
        identity = self._login.identity
        options = [f"UserKnownHostsFile={known}", "StrictHostKeyChecking=accept-new", "HashKnownHosts=no"]
        options += [f"IdentityFile={identity}", "IdentitiesOnly=yes"] if identity else []
        return ssh(f"{_USER}@{machine.target}", options=options)

    def check_volume(self, plan: Plan, volume: Volume) -> None:
        """Raises ValidationError where the task does not run, or may not have the volume."""
        states = {one.machines for one in self.allocations([plan.task_id])}
        if Machines.UP not in states or Machines.STARTING in states:
            raise _not_running(plan)
        self.volumes.attach(volume.volume_id, plan)

    def add_volume(self, plan: Plan, volume: Volume, begins: Callable[[], None]) -> None:
        """By way of a pause: the API changes a bid's volumes only then. Whoever dies over it is followed by another."""
        self.check_volume(plan, volume)
        with self._changing(plan) as file:
            if file is None:
                raise ValidationError(
                    f"`{plan.task_id}` is getting another volume", suggestions=["wait until it runs again"]
                )
            rental = self._live(plan.task_id)
            if rental is None or rental.state is not Machines.UP:
                raise _not_running(plan)
            wanted = [*_noted(file, rental), volume.volume_id]  # with what a client that died was about to add
            begins()
            file.write_text(" ".join([rental.rental_id, *wanted]))  # no loss where a power cut takes it
            missing = self._missing(rental, wanted)
            try:
                self._tell_of(plan, rental, missing)
            except FlowError:  # nothing was stopped for it
                file.unlink()
                raise
            self._add_volumes(plan, rental, missing)

    def goes_on_changing(self, plan: Plan) -> bool:
        """Whether volumes are being added; not while its machines are away, and come back without them."""
        if not self._change(plan.task_id).exists():
            return False
        with self._changing(plan) as file:
            if file is None:
                return True
            rental = self._live(plan.task_id)
            wanted = _noted(file, rental)
            if rental is None or not wanted:  # of other machines, or not begun
                file.unlink(missing_ok=True)
                return False
            if rental.state not in (Machines.UP, Machines.PAUSED):
                return False
            missing = self._missing(rental, wanted)
            if rental.state is Machines.UP:
                self._tell_of(plan, rental, missing)
            self._add_volumes(plan, rental, missing)
        return True

    def _add_volumes(self, plan: Plan, rental: Rental, missing: Sequence[Volume]) -> None:
        """From wherever it was left, until its machines go on: what runs there was told of these, and is stopped."""
        bid, refused = f"{BIDS}/{rental.rental_id}", None
        if missing and rental.state is Machines.UP:
            self._stop_tasks(rental, plan.grace_seconds)
            self.account.api.update(bid, {"paused": True})
            self._await(plan.task_id, Machines.PAUSED)
        if missing:
            try:
                ids = [*volumes_of(rental), *(one.volume_id for one in missing)]
                self.account.api.update(bid, {"volumes": ids})
            except (ValidationError, ResourceNotFoundError) as error:  # which is none of the task
                refused = error
        if missing or rental.state is Machines.PAUSED:
            self.wake(rental)
        self._change(plan.task_id).unlink(missing_ok=True)
        if refused:
            raise ProviderError(refused.message) from refused

    def _missing(self, rental: Rental, wanted: Collection[str]) -> list[Volume]:
        """Those that its bid does not have yet, as far as there still are such volumes."""
        new = set(wanted) - set(volumes_of(rental))
        return [one for one in self.volumes.list() if one.volume_id in new] if new else []

    def _tell_of(self, plan: Plan, rental: Rental, volumes: Sequence[Volume]) -> None:
        """Tell its machines of volumes that they will have when they are back."""
        if not self._can_look(rental):
            raise ProviderError(f"the machines of `{plan.task_id}` cannot be reached yet")
        names = [one.name for one in rental.machines]
        for volume in volumes:
            mount = {"kind": "folder", "source": path_of(volume.volume_id), "target": f"/mnt/{volume.name}"}
            (entry,) = on_machine([volume], [volume.volume_id])
            self._ask_each(names, "add_mount", plan.task_id, mount)
            self._each(names, lambda _, remote, entry=entry: tell_guard(remote.channel, entry))

    def _change(self, task_id: str) -> Path:
        """Names its bid and the volumes that are being added; locked by who adds them."""
        return self.home / "record" / task_id / "adding"

    @contextmanager
    def _changing(self, plan: Plan) -> Iterator[Path | None]:
        """The file, locked; None where another client has it."""
        with open(self._change(plan.task_id), "a+", opener=private) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            yield self._change(plan.task_id)

    def _await(self, task_id: str, state: Machines) -> None:
        end = time.monotonic() + _PAUSING_SECONDS
        while (found := self._live(task_id)) and found.state is not state:
            if time.monotonic() > end:
                raise ProviderError(f"the bid of `{task_id}` is not {state.value} after {_PAUSING_SECONDS:g} s")
            time.sleep(_PAUSE_SECONDS)

    def forget_task(self, task_id: str, *, is_refused: bool = False) -> None:
        """Revoke the keys that its machines had; remove volumes that were to go with it, or were made in vain."""
        for key in self.account.api.list(_KEYS):
            if str(key.get("name", "")).startswith(f"flow-{task_id}-") and not key.get("deactivated_at"):
                self.account.api.delete(f"{_KEYS}/{key['fid']}")
        is_unknown = not self.holds.was_asked_for(task_id)
        self.volumes.forget_task(task_id, is_refused=is_refused, is_unknown=is_unknown)
        self._change(task_id).unlink(missing_ok=True)

    def _mounts(self, plan: Plan) -> list[dict[str, str]]:
        """Volumes are where the machine's guard has put them."""
        return [
            {"kind": "folder", "source": path_of(one.source), "target": one.target}
            if one.kind == VOLUME
            else {"kind": one.kind, "source": one.source, "target": one.target}
            for one in plan.mounts
        ]

    # -- what a bid is made of

    @cached_property
    def _login(self) -> Keys:
        named = self._settings.get("ssh_key")
        return login_keys(
            self.account, self.home / "mithril", str(named) if named else None, f"flow-{self.home_id[:8]}"
        )

    def _type_id(self, plan: Plan) -> str:
        for one in self.market.offers():
            if (one.instance_type, one.region) == (plan.instance_type, plan.region):
                return one.type_id
        raise ValidationError(
            f"`{plan.instance_type}` is not to be had in {plan.region} any more", suggestions=["see `flow offers`"]
        )

    def _limit(self, plan: Plan) -> float:
        """Of one machine: what is given, down to a cent."""
        limit = (plan.max_price_per_hour or 0.0) / plan.machines
        return int(round(limit * 100, 6)) / 100

    def _facts_of(self, error: FlowError, plan: Plan, limit: float) -> Iterator[str]:
        """What is known of why a bid is refused."""
        if isinstance(error, PriceTooLowError):
            price = self._prices().get((self._type_id(plan), str(plan.region)))
            now = f"; it costs {price_text(price)}/h there now" if price is not None else ""
            yield f"the bid was {price_text(limit)}/h for each machine{now}"
            return
        with suppress(FlowError, KeyError):
            for one in self.account.api.list(_QUOTAS, project=self.account.project):
                if one.get("instance_type") == self._type_id(plan):
                    yield f"{one['used_quantity']} of {one['total_quantity']} {one['units']} of that type are in use"

    def _has_come(self, plan: Plan, attempt: int) -> bool:
        """Whether a bid was made for this attempt, be it ended by now: it may take a moment to show."""
        for tried in range(_LOOKS):
            if tried:
                time.sleep(_PAUSE_SECONDS)
            with suppress(ProviderError):
                for one in self.rentals([plan.task_id]):
                    if one.plan_hash == plan.hash and one.attempt == attempt:
                        return True
                    if one.plan_hash != plan.hash and one.state is not Machines.GONE:
                        raise ValidationError(f"`{plan.task_id}` is the name of a bid that is not ours")
        return False

    # -- what the API tells

    def _live_bids(self) -> list[dict[str, Any]]:
        bids = self.account.live_bids()
        self._listed = (time.monotonic(), bids)
        return bids

    def _bids_named(self, name: str) -> list[dict[str, Any]]:
        query = {"project": self.account.project, "name": name, "sort_by": "created_at", "sort_dir": "desc"}
        return [one for one in self.account.api.pages(BIDS, **query) if one.get("name") == name]

    def _instances(self, bids: Iterable[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """Those of each bid."""
        ids = [str(one["fid"]) for one in bids]
        found: dict[str, list[dict[str, Any]]] = {}
        for first in range(0, len(ids), _IDS_AT_ONCE):
            some = ids[first : first + _IDS_AT_ONCE]
            for one in self.account.api.pages(_INSTANCES, project=self.account.project, bid_fid_in=some):
                found.setdefault(str(one.get("bid")), []).append(one)
        return found

    def _prices(self) -> dict[tuple[str, str], float]:
        try:
            offers = self.market.offers()
        except FlowError:  # that they are not known must not hide the bids
            return {}
        return {(one.type_id, str(one.region)): one.price_per_hour for one in offers if one.price_per_hour is not None}


def _not_running(plan: Plan) -> ValidationError:
    return ValidationError(
        f"`{plan.task_id}` does not run now", suggestions=[f"wait until it runs: `flow status {plan.task_id} --watch`"]
    )


def _noted(file: Path, rental: Rental | None) -> list[str]:
    """The volumes that are being added to these machines, by their ids."""
    bid, *wanted = file.read_text().split() or [""]
    return wanted if rental and bid == rental.rental_id else []


def _key_seconds(plan: Plan) -> float:
    """How long the key of a plan's machines is to be good for."""
    if plan.limit_seconds is None:
        return _KEY_MOST_SECONDS
    elements = len(plan.elements.indices) if plan.elements else 1  # which may have to run one after the other
    return min(plan.limit_seconds * elements + _KEY_SLACK_SECONDS, _KEY_MOST_SECONDS)
