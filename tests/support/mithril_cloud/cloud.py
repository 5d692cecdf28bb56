"""The stand-in cloud: its state, its routes, and what a test may ask of it and do to it."""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from tests.support.components import require
from tests.support.fleet import Fleet, Host
from tests.support.mithril_cloud import account, bids, catalogue, goods, storage
from tests.support.mithril_cloud.checks import RefusedError
from tests.support.mithril_cloud.clock import Clock
from tests.support.mithril_cloud.debian import debian_image
from tests.support.mithril_cloud.faults import Answer, Faults
from tests.support.mithril_cloud.guest import LOG
from tests.support.mithril_cloud.machines import Machines, remove_backing
from tests.support.mithril_cloud.market import Lane
from tests.support.mithril_cloud.records import ApiKey, Bid, Instance, Project, Reservation, Volume
from tests.support.mithril_cloud.server import Request, Server
from tests.support.mithril_cloud.spot import Spot, held
from tests.support.mithril_cloud.virtual import require_virtual
from tests.support.processes import wait_until

_ROUTES: tuple[tuple[str, str, Callable[..., Answer]], ...] = (
    ("GET", "/v2/me", account.show_me),
    ("GET", "/v2/users/{fid}", account.show_user),
    ("GET", "/users/{fid}/teammates", account.list_teammates),
    ("GET", "/v2/projects", account.list_projects),
    ("GET", "/v2/quotas", account.list_quotas),
    ("GET", "/v2/api-keys", account.list_api_keys),
    ("POST", "/v2/api-keys", account.create_api_key),
    ("DELETE", "/v2/api-keys/{fid}", account.delete_api_key),
    ("GET", "/v2/ssh-keys", account.list_ssh_keys),
    ("POST", "/v2/ssh-keys", account.create_ssh_key),
    ("PATCH", "/v2/ssh-keys/{fid}", account.change_ssh_key),
    ("DELETE", "/v2/ssh-keys/{fid}", account.delete_ssh_key),
    ("GET", "/v2/instance-types", goods.list_instance_types),
    ("GET", "/marketplace/v1/regions", goods.list_regions),
    ("GET", "/v2/spot/availability", goods.list_availability),
    ("GET", "/v2/pricing/current", goods.show_price),
    ("GET", "/v2/pricing/history", goods.list_prices),
    ("GET", "/v2/spot/bids", bids.list_bids),
    ("POST", "/v2/spot/bids", bids.create_bid),
    ("GET", "/v2/spot/bids/{fid}", bids.show_bid),
    ("PATCH", "/v2/spot/bids/{fid}", bids.change_bid),
    ("DELETE", "/v2/spot/bids/{fid}", bids.delete_bid),
    ("GET", "/v2/instances", bids.list_instances),
    ("PATCH", "/v2/instances", bids.change_instances),
    ("GET", "/v2/instances/{fid}/status", bids.show_instance_status),
    ("GET", "/v2/volumes", storage.list_volumes),
    ("POST", "/v2/volumes", storage.create_volume),
    ("DELETE", "/v2/volumes/{fid}", storage.delete_volume),
    ("GET", "/v2/reservation", storage.list_reservations),
    ("POST", "/v2/reservation", storage.create_reservation),
    ("GET", "/v2/reservation/{fid}", storage.show_reservation),
    ("PATCH", "/v2/reservation/{fid}", storage.change_reservation),
    ("POST", "/v2/reservation/{fid}/extend", storage.extend_reservation),
)
_PATTERNS = [(verb, re.compile(path.replace("{fid}", "(?P<fid>[^/]+)")), do) for verb, path, do in _ROUTES]


class Cloud:
    """`with serve(folder) as cloud:` — `cloud.url` and `cloud.key` are all that a client needs.

    `spot` says how long machines take to boot and to be taken away, `lane` what is paid and to be had where, `faults`
    what goes wrong on the wire, `clock` the time; all of it is as new after `reset`. It is as unkind as the API allows:
    a bid is open before it is allocated, the instances of one bid are listed in any order, one comes back with another
    address, and a page has 20 entries if nothing else is asked for.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet, self.folder = fleet, fleet.folder
        self.changed = threading.Condition(threading.RLock())
        self.clock, self.faults = Clock(), Faults()
        self.machines = Machines(fleet, self.changed)
        self.server = Server(fleet.gateway, self.handle, faults=self.faults, clock=self.clock)
        self.url = self.server.url
        self._fill()
        self._is_open = True
        self._beat = threading.Thread(target=self._live, daemon=True, name="mithril cloud's time")
        self._beat.start()

    def _fill(self) -> None:
        self.clock.ahead_seconds = 0.0
        now = self.clock.now()
        self.is_admin = False
        self.volume_linger_seconds = 30.0  # how long a deleted volume is still listed
        self.projects = [Project("my-project", now)]
        self.regions = {one.name: one for one in catalogue.REGIONS}
        self.quotas: defaultdict[str, int] = defaultdict(lambda: 64)
        self.reservations: dict[str, Reservation] = {}
        first = ApiKey("laptop", now, now + 90 * 86400)
        self.api_keys, self.key = {first.fid: first}, first.secret
        self.spot = Spot(self.machines, catalogue.lanes(), catalogue.TYPES)
        self.machines.pretended, self.machines.lacks_gpus = False, False
        self.machines.docker = self.machines.image = None
        self.faults.clear()
        self.server.requests.clear()

    @property
    def gateway(self) -> str:
        """The address here by which machines reach this machine."""
        return self._fleet.gateway

    @property
    def project(self) -> str:
        """The fid of the first."""
        return self.projects[0].fid

    @property
    def requests(self) -> list[Request]:
        """All since the last `reset`; `count` counts them."""
        return self.server.requests

    def count(self, route: str = ".*") -> int:
        """Requests whose `METHOD /path?query` this regular expression matches from its begin."""
        return sum(1 for one in self.requests if re.match(route, one.line))

    def leaks(self, secret: str) -> list[str]:
        """Where it is though it should not be: in a request's path, headers or body, in a script, in a script's log."""
        found = [one.line for one in self.requests if one.holds(secret)]
        for bid in self.spot.bids.values():
            if secret in (bid.launch.startup_script or ""):
                found.append(f"startup script of {bid.name}")
            for one in bid.instances:
                log = self.folder / one.fid / "root" / LOG
                if log.exists() and secret in log.read_text(errors="replace"):
                    found.append(f"log of {one.name}")
        return found

    def advance(self, seconds: float) -> None:
        """Let so much time go by, for the cloud; machines have their own."""
        with self.changed:
            self.spot.look(self.clock.now())
            self.clock.ahead_seconds += seconds
            self.spot.look(self.clock.now())
            self.changed.notify_all()

    def lane(self, instance_type: str, region: str) -> Lane:
        """By fid or by name; of several with one name that which is sold in the region."""
        lane = self.find_lane(instance_type, region)
        assert lane, f"no {instance_type} in {region}"
        return lane

    def find_lane(self, instance_type: str, region: str) -> Lane | None:
        named = {one.fid for one in self.spot.types.values() if instance_type in (one.fid, one.name)}
        return next((one for one in self.spot.lanes if one.region == region and one.instance_type in named), None)

    def bid(self, name: str) -> Bid:
        """The newest of that name or fid."""
        with self.changed:
            return [one for one in self.spot.bids.values() if name in (one.fid, one.name)][-1]

    def await_bid(self, name: str, status: str, *, seconds: float = 90) -> Bid:
        """When it has that status; for `Allocated` when all of its instances run and answer."""

        def is_there() -> bool:
            with self.changed:
                bid = self.bid(name)
                runs = all(one.status == "STATUS_RUNNING" for one in bid.instances)
                return bid.status == status and (status != "Allocated" or runs)

        assert wait_until(is_there, seconds=seconds), self.describe(name)
        return self.bid(name)

    def instance(self, name: str, rank: int = 0) -> Instance:
        return self.bid(name).instances[rank]

    def host(self, name: str, rank: int = 0) -> Host:
        """The machine behind a bid's instance: its console is `run`, its cable `cut` and `heal`."""
        host = self.machines[self.instance(name, rank).fid].host
        assert host, self.describe(name)
        return host

    def give_docker(self, variables: Mapping[str, str] = MappingProxyType({})) -> None:
        """Have a Docker on machines from now on, with the image of `tests.support.containers`; skips without one.

        It has `variables`, those of a registry for example.
        """
        require("dockerd", "containers run on machines of the cloud")
        self.machines.docker = variables

    def give_kernels(self, cache: Path, files: Mapping[str, str] = MappingProxyType({})) -> None:
        """Have machines from now on be virtual ones, a Debian with the real cloud-init; skips where there can be none.

        They hear of no preemption, and boot in a minute; their image is kept in `cache`. They have `files`, by path.
        """
        require_virtual()
        self.machines.image, self.machines.files = debian_image(cache), files

    def crash(self, name: str, rank: int = 0) -> None:
        """Its machine dies; the bid stays, and is paid for."""
        one = self.instance(name, rank)
        self.machines.crash(one.fid)
        with self.changed:
            one.status, one.ssh_destination = "STATUS_ERROR", None

    def end_bid(self, name: str) -> None:
        """For good, though nobody asked for it."""
        with self.changed:
            self.spot.end(self.bid(name), self.clock.now())

    def preempt(self, name: str) -> None:
        """Others bid more from now on; `lane(...).price_cents` lets it come back."""
        bid = self.bid(name)
        lane = self.lane(bid.instance_type, bid.region)
        with self.changed:
            lane.price_cents = bid.limit_cents + 1
            self.changed.notify_all()

    def cost(self, name: str) -> float:
        """Dollars until now."""
        with self.changed:
            return self.bid(name).bill.cents(self.clock.now()) / 100

    def billed(self) -> list[str]:
        """Names of the bids that cost money at this moment."""
        with self.changed:
            return [one.name for one in self.spot.bids.values() if one.bill.rate]

    def describe(self, name: str) -> str:
        """For a person who wonders."""
        bid = self.bid(name)
        lines = [
            f"{bid.name} {bid.status}",
            *(f"  {one.name} {one.status} {one.ssh_destination}" for one in bid.instances),
        ]
        for one in bid.instances:
            slot = self.machines[one.fid]
            lines.append(f"  machine {slot.actual}, wanted {slot.wanted} {slot.failure}")
            log = self.folder / one.fid / "root" / LOG
            lines.append(log.read_text(errors="replace") if log.exists() else "  no log")
        return "\n".join(lines)

    def reset(self) -> None:
        """No machine, no bid, no volume, no fault is left, and the key is another."""
        self.machines.close()
        with self.changed:
            for one in self.spot.volumes.values():
                remove_backing(one.backing)
            self._fill()

    def close(self) -> None:
        self._is_open = False
        self._beat.join()
        self.server.close()
        self.machines.close()

    def handle(self, request: Request) -> Answer:
        with self.changed:
            found = [(verb, do, match) for verb, at, do in _PATTERNS if (match := at.fullmatch(request.path))]
            if not found:
                raise RefusedError(404, "Not Found")
            self._check_key(request)
            for verb, do, match in found:
                if verb == request.method:
                    return do(self, request, **match.groupdict())
            raise RefusedError(405, "Method Not Allowed")

    def project_of(self, request: Request) -> str:
        """The one that is asked for."""
        if "project" not in request.query:
            detail = [{"loc": ["query", "project"], "msg": "field required", "type": "value_error.missing"}]
            raise RefusedError(422, detail)
        self.check_project(request.query["project"])
        return request.query["project"]

    def check_project(self, fid: str) -> None:
        if all(one.fid != fid for one in self.projects):
            raise RefusedError(403, "Not a member of project")

    def quota_used(self, project: str, instance_type: str) -> int:
        live = [one for one in self.spot.bids.values() if one.is_live and one.project == project]
        return sum(one.quantity for one in live if one.instance_type == instance_type)

    def free(self, lane: Lane) -> int:
        there = (lane.instance_type, lane.region)
        return max(0, lane.capacity - held(one for one in self.spot.bids.values() if _place(one) == there))

    def bids_with(self, volume: str) -> list[Bid]:
        return [one for one in self.spot.bids.values() if one.is_live and volume in one.launch.volumes]

    def is_gone(self, volume: Volume) -> bool:
        return volume.deleted is not None and self.clock.now() > volume.deleted + self.volume_linger_seconds

    def _check_key(self, request: Request) -> None:
        headers = {name.lower(): value for name, value in request.headers.items()}
        word, _, secret = headers.get("authorization", "").partition(" ")
        now = self.clock.now()
        for one in self.api_keys.values():
            if word == "Bearer" and one.secret == secret and one.deactivated is None and now < one.expires:
                return
        raise RefusedError(401, "Invalid API key")

    def _live(self) -> None:
        while self._is_open:
            with self.changed:
                self.spot.look(self.clock.now())
                self.changed.wait(0.02)


@contextmanager
def serve(folder: Path) -> Iterator[Cloud]:
    """One that serves, with a network of its own; leaves a test out where there can be no machines."""
    with Fleet(folder) as fleet:
        cloud = Cloud(fleet)
        try:
            yield cloud
        finally:
            cloud.close()


def _place(bid: Bid) -> tuple[str, str]:
    return bid.instance_type, bid.region
