"""Routes of bids and their instances."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tests.support.mithril_cloud.checks import (
    Field,
    Inside,
    RefusedError,
    boolean,
    integer,
    name,
    one_of,
    price,
    read_fields,
    text,
    texts,
)
from tests.support.mithril_cloud.faults import Answer, answer
from tests.support.mithril_cloud.records import LIVE, Bid, Instance, Json, LaunchSpecification, dollars

if TYPE_CHECKING:
    from tests.support.mithril_cloud.cloud import Cloud
    from tests.support.mithril_cloud.server import Request

_PAGE = {
    "limit": Field(integer(1, 100, written=True), needed=False, default=20),
    "sort_by": Field(one_of("created_at", "status"), needed=False, default="created_at"),
    "sort_dir": Field(one_of("asc", "desc"), needed=False, default="asc"),
    "next_cursor": Field(text, needed=False),
    "instance_type": Field(text, needed=False),
    "region": Field(text, needed=False),
}
_LIST_BIDS = {
    **_PAGE,
    "project": Field(text, needed=False),
    "status": Field(one_of(*LIVE, "Terminated"), needed=False),
    "name": Field(text, needed=False),
}
_LIST_INSTANCES = {
    **_PAGE,
    "project": Field(text),
    "bid_fid_in": Field(text, needed=False),
    "reservation_fid_in": Field(text, needed=False),
}
_LAUNCH = Inside(
    {
        "volumes": Field(texts),
        "ssh_keys": Field(texts),
        "startup_script": Field(text, needed=False),
        "memory_gb": Field(integer(1), needed=False),
    }
)
_CREATE = {
    "project": Field(text),
    "region": Field(text),
    "instance_type": Field(text),
    "limit_price": Field(price),
    "instance_quantity": Field(integer(1)),
    "name": Field(name),
    "launch_specification": Field(_LAUNCH),
}
_CHANGE = {
    "limit_price": Field(price, needed=False),
    "paused": Field(boolean, needed=False),
    "volumes": Field(texts, needed=False),
    "memory_gb": Field(integer(1), needed=False),
}


def list_bids(cloud: Cloud, request: Request) -> Answer:
    asked = read_fields(request.query, _LIST_BIDS, "query")
    bids = [
        one
        for one in cloud.spot.bids.values()
        if all(asked[key] in (None, getattr(one, key)) for key in ("project", "status", "name"))
    ]
    return _page(bids, asked)


def show_bid(cloud: Cloud, request: Request, fid: str) -> Answer:
    return answer(200, _bid(cloud, fid).json())


def create_bid(cloud: Cloud, request: Request) -> Answer:
    given = read_fields(request.json(), _CREATE)
    cloud.check_project(given["project"])
    launch = LaunchSpecification(**given["launch_specification"])
    _check_bid(cloud, given)
    _check_launch(cloud, given, launch)
    bid = Bid(
        given["name"],
        given["project"],
        cloud.clock.now(),
        given["limit_price"],
        given["instance_quantity"],
        given["instance_type"],
        given["region"],
        launch,
    )
    cloud.spot.bids[bid.fid] = bid
    cloud.changed.notify_all()
    return answer(201, bid.json())


def change_bid(cloud: Cloud, request: Request, fid: str) -> Answer:
    given = read_fields(request.json(), _CHANGE)
    bid = _bid(cloud, fid)
    if not bid.is_live:
        raise RefusedError(400, "Bid is not active")
    if given["volumes"] is not None:
        if bid.status != "Paused":
            raise RefusedError(400, "Volumes can only be changed while the bid is paused")
        _check_volumes(cloud, bid.region, bid.quantity, given["volumes"], but_for=bid)
        bid.launch.volumes = given["volumes"]
    if given["limit_price"] is not None:
        _check_price(cloud, bid.instance_type, bid.region, given["limit_price"])
        bid.limit_cents = given["limit_price"]
    if given["paused"] and not bid.paused:
        cloud.spot.pause(bid)
    elif given["paused"] is False and bid.paused:
        if bid.status != "Paused":
            raise RefusedError(400, "Bid is still being paused")
        bid.paused, bid.status = False, "Open"
    cloud.changed.notify_all()
    return answer(200, bid.json())


def delete_bid(cloud: Cloud, request: Request, fid: str) -> Answer:
    bid = _bid(cloud, fid)
    if not bid.is_live:
        raise RefusedError(404, "Bid not found")
    cloud.spot.end(bid, cloud.clock.now())
    return answer(204)


def list_instances(cloud: Cloud, request: Request) -> Answer:
    asked = read_fields(request.query, _LIST_INSTANCES, "query")
    cloud.check_project(asked["project"])
    bids = None if asked["bid_fid_in"] is None else asked["bid_fid_in"].split(",")
    all_of_them = [one for bid in cloud.spot.bids.values() for one in bid.instances]
    found = [
        one
        for one in all_of_them
        if one.project == asked["project"] and (bids is None or one.bid in bids) and not asked["reservation_fid_in"]
    ]
    return _page(found, asked)


def show_instance_status(cloud: Cloud, request: Request, fid: str) -> Answer:
    found = [one for bid in cloud.spot.bids.values() for one in bid.instances if one.fid == fid]
    if not found:
        raise RefusedError(404, "Instance not found")
    return answer(200, {"status": found[0].status})


def change_instances(cloud: Cloud, request: Request) -> Answer:
    raise RefusedError(400, "Only reserved instances can be paused")


def _page(found: Sequence[Bid | Instance], asked: Json) -> Answer:
    """So many, and where to go on: after the last of them, even if that is gone by then."""
    found = [one for one in found if asked["instance_type"] in (None, one.instance_type)]
    found = [one for one in found if asked["region"] in (None, one.region)]
    descends = asked["sort_dir"] == "desc"

    def place(one: Bid | Instance) -> tuple[str, ...]:
        return (one.status if asked["sort_by"] == "status" else "", f"{one.created:020.6f}", one.fid)

    found = sorted(found, key=place, reverse=descends)
    if asked["next_cursor"] is not None:
        after = _read_cursor(asked["next_cursor"])
        found = [one for one in found if (place(one) < after if descends else place(one) > after)]
    page = found[: asked["limit"]]
    more = len(found) > len(page)
    cursor = base64.urlsafe_b64encode("\n".join(place(page[-1])).encode()).decode() if more else None
    return answer(200, {"data": [one.json() for one in page], "next_cursor": cursor})


def _read_cursor(word: str) -> tuple[str, ...]:
    try:
        return tuple(base64.urlsafe_b64decode(word.encode()).decode().split("\n"))
    except ValueError:
        raise RefusedError(400, "Invalid cursor") from None


def _bid(cloud: Cloud, fid: str) -> Bid:
    if fid not in cloud.spot.bids:
        raise RefusedError(404, "Bid not found")
    return cloud.spot.bids[fid]


def _check_bid(cloud: Cloud, given: Json) -> None:
    live = [one for one in cloud.spot.bids.values() if one.is_live and one.project == given["project"]]
    if any(one.name == given["name"] for one in live):
        raise RefusedError(400, "Name already used")
    kind = cloud.spot.types.get(given["instance_type"])
    if not kind:
        raise RefusedError(404, "Instance type not found")
    _check_price(cloud, kind.fid, given["region"], given["limit_price"])
    used = cloud.quota_used(given["project"], kind.fid)
    if used + given["instance_quantity"] > cloud.quotas[kind.fid]:
        raise RefusedError(400, f"Quota exceeded for {kind.name}")


def _check_price(cloud: Cloud, instance_type: str, region: str, cents: int) -> None:
    lane = cloud.find_lane(instance_type, region)
    if not lane:
        raise RefusedError(400, "Instance type is not available in this region")
    if cents < lane.minimum_cents:
        raise RefusedError(400, f"Limit price below minimum of {dollars(lane.minimum_cents)}")


def _check_launch(cloud: Cloud, given: Json, launch: LaunchSpecification) -> None:
    script = launch.startup_script
    if script is not None and len(script) > 10_000:
        raise RefusedError(400, "Startup script must be at most 10000 characters")
    if script is not None and not script.startswith("#!/bin/bash"):
        raise RefusedError(400, "Startup script must begin with #!/bin/bash")
    if not launch.ssh_keys:
        raise RefusedError(400, "At least one SSH key required")
    keys = {one.fid: one for one in cloud.spot.ssh_keys.values() if one.project == given["project"]}
    if not set(launch.ssh_keys) <= set(keys):
        raise RefusedError(404, "SSH key not found")
    missing = [one.name for one in keys.values() if one.required and one.fid not in launch.ssh_keys]
    if missing:
        raise RefusedError(400, f"Required SSH keys are missing: {', '.join(missing)}")
    _check_volumes(cloud, given["region"], given["instance_quantity"], launch.volumes)


def _check_volumes(cloud: Cloud, region: str, quantity: int, volumes: list[Any], but_for: Bid | None = None) -> None:
    for fid in volumes:
        volume = cloud.spot.volumes.get(fid)
        if not volume or volume.deleted is not None:
            raise RefusedError(404, "Volume not found")
        if volume.region != region:
            raise RefusedError(400, f"Volume {volume.name} is not available in this region")
        if volume.interface == "File":
            continue
        if quantity > 1:
            raise RefusedError(400, f"Block volume {volume.name} can only be attached to one instance")
        if any(one is not but_for for one in cloud.bids_with(fid)):
            raise RefusedError(400, f"Volume {volume.name} is already attached")
