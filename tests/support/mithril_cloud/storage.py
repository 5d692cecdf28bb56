"""Routes of volumes and of reservations, the latter no more than their form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.mithril_cloud.checks import (
    Field,
    RefusedError,
    boolean,
    integer,
    moment,
    name,
    one_of,
    read_fields,
    text,
)
from tests.support.mithril_cloud.faults import Answer, answer
from tests.support.mithril_cloud.machines import make_backing, remove_backing
from tests.support.mithril_cloud.records import Reservation, Volume, new_fid

if TYPE_CHECKING:
    from tests.support.mithril_cloud.cloud import Cloud
    from tests.support.mithril_cloud.server import Request

_CREATE = {
    "name": Field(name),
    "project": Field(text),
    "disk_interface": Field(one_of("Block", "File")),
    "region": Field(text),
    "size_gb": Field(integer(1, 32_000)),
}
_RESERVE = {
    "project": Field(text),
    "instance_type": Field(text),
    "region": Field(text),
    "instance_quantity": Field(integer(1)),
    "start_time": Field(moment),
    "end_time": Field(moment),
    "name": Field(name),
}


def list_volumes(cloud: Cloud, request: Request) -> Answer:
    project, region = cloud.project_of(request), request.query.get("region")
    found = [one for one in cloud.spot.volumes.values() if one.project == project and region in (None, one.region)]
    if request.query.get("include_deleted") != "true":
        found = [one for one in found if not cloud.is_gone(one)]
    return answer(200, [one.json([bid.fid for bid in cloud.bids_with(one.fid)]) for one in found])


def create_volume(cloud: Cloud, request: Request) -> Answer:
    given = read_fields(request.json(), _CREATE)
    cloud.check_project(given["project"])
    region, interface, size_gb = cloud.regions.get(given["region"]), given["disk_interface"], given["size_gb"]
    if not region or not (region.file if interface == "File" else region.block):
        raise RefusedError(400, f"{interface} storage is not available in this region")
    if interface == "Block" and size_gb > region.block_limit_gb:
        raise RefusedError(400, f"Size exceeds the limit of {region.block_limit_gb} GB in this region")
    others = [one for one in cloud.spot.volumes.values() if one.project == given["project"] and one.deleted is None]
    if any(one.name == given["name"] for one in others):
        raise RefusedError(409, "Name already exists")
    fid = new_fid("vol")
    backing = make_backing(cloud.folder / "volumes", fid, interface, size_gb)
    volume = Volume(
        given["name"], given["project"], region.name, interface, size_gb, cloud.clock.now(), backing, fid=fid
    )
    cloud.spot.volumes[fid] = volume
    return answer(201, volume.json([]))


def delete_volume(cloud: Cloud, request: Request, fid: str) -> Answer:
    volume = cloud.spot.volumes.get(fid)
    if not volume or volume.deleted is not None:
        raise RefusedError(404, "Volume not found")
    if cloud.bids_with(fid):
        raise RefusedError(409, "Volume is in use")
    volume.deleted = cloud.clock.now()
    remove_backing(volume.backing)
    return answer(204)


def list_reservations(cloud: Cloud, request: Request) -> Answer:
    project = cloud.project_of(request)
    now = cloud.clock.now()
    return answer(200, [one.json(now) for one in cloud.reservations.values() if one.project == project])


def create_reservation(cloud: Cloud, request: Request) -> Answer:
    given = read_fields(request.json(), _RESERVE)
    cloud.check_project(given["project"])
    hours = (given["end_time"] - given["start_time"]) / 3600
    if not 3 <= hours <= 14 * 24:
        raise RefusedError(400, "Duration must be between 3 hours and 2 weeks")
    one = Reservation(
        given["name"],
        given["project"],
        given["instance_type"],
        given["region"],
        given["instance_quantity"],
        given["start_time"],
        given["end_time"],
    )
    cloud.reservations[one.fid] = one
    return answer(201, one.json(cloud.clock.now()))


def show_reservation(cloud: Cloud, request: Request, fid: str) -> Answer:
    return answer(200, _reservation(cloud, fid).json(cloud.clock.now()))


def change_reservation(cloud: Cloud, request: Request, fid: str) -> Answer:
    given = read_fields(request.json(), {"paused": Field(boolean, needed=False)})
    one = _reservation(cloud, fid)
    if given["paused"] is not None:
        one.paused = given["paused"]
    return answer(200, one.json(cloud.clock.now()))


def extend_reservation(cloud: Cloud, request: Request, fid: str) -> Answer:
    given = read_fields(request.json(), {"end_time": Field(moment)})
    one = _reservation(cloud, fid)
    one.end = given["end_time"]
    return answer(200, one.json(cloud.clock.now()))


def _reservation(cloud: Cloud, fid: str) -> Reservation:
    if fid not in cloud.reservations:
        raise RefusedError(404, "Reservation not found")
    return cloud.reservations[fid]
