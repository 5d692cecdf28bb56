"""Routes of what is to be had: instance types, regions, availability, prices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.mithril_cloud.checks import Field, RefusedError, integer, moment, read_fields, text
from tests.support.mithril_cloud.clock import stamp
from tests.support.mithril_cloud.faults import Answer, answer
from tests.support.mithril_cloud.market import price_at
from tests.support.mithril_cloud.records import dollars

if TYPE_CHECKING:
    from tests.support.mithril_cloud.cloud import Cloud
    from tests.support.mithril_cloud.server import Request


def list_instance_types(cloud: Cloud, request: Request) -> Answer:
    return answer(200, [one.json() for one in cloud.spot.types.values()])


def list_regions(cloud: Cloud, request: Request) -> Answer:
    return answer(200, [one.json() for one in cloud.regions.values()])


def list_availability(cloud: Cloud, request: Request) -> Answer:
    asked = request.query
    lanes = [
        one
        for one in cloud.spot.lanes
        if asked.get("instance_type", one.instance_type) == one.instance_type
        and asked.get("region", one.region) == one.region
    ]
    return answer(
        200,
        [
            {
                "fid": f"auc_{at:02}{one.instance_type[5:]}",
                "instance_type": one.instance_type,
                "region": one.region,
                "capacity": cloud.free(one),
                "last_instance_price": dollars(one.clearing_cents),
                "lowest_allocated_price": dollars(one.price_cents + 5),
                "adjustable_memory": False,
                "default_image_version": "imgver_1",
            }
            for at, one in enumerate(lanes)
        ],
    )


def show_price(cloud: Cloud, request: Request) -> Answer:
    asked = read_fields(request.query, {"instance_type": Field(text), "region": Field(text)}, "query")
    lane = cloud.find_lane(asked["instance_type"], asked["region"])
    if not lane:
        raise RefusedError(404, "No price for this instance type in this region")
    spot = lane.clearing_cents
    return answer(
        200,
        {
            "spot_price_cents": spot,
            "reserved_price_cents": lane.reserved_cents,
            "minimum_price_cents": lane.minimum_cents,
            "lowest_allocated_bid_cents": spot + 5,
            "dynamic_win_price_cents": spot + 6,
            "available_capacity": cloud.free(lane),
            "total_capacity": lane.capacity,
        },
    )


def list_prices(cloud: Cloud, request: Request) -> Answer:
    fields = {
        "instance_types": Field(text),
        "region": Field(text, needed=False),
        "num_samples": Field(integer(1, 1000, written=True), needed=False, default=100),
        "start_time": Field(moment, needed=False),
        "end_time": Field(moment, needed=False),
    }
    asked = read_fields(request.query, fields, "query")
    end = asked["end_time"] or cloud.clock.now()
    begin, count = asked["start_time"] or end - 86400, asked["num_samples"]
    types = asked["instance_types"].split(",")
    lanes = [
        one
        for one in cloud.spot.lanes
        if one.instance_type in types and (asked["region"] is None or one.region == asked["region"])
    ]
    moments = [begin + (end - begin) * at / max(1, count - 1) for at in range(count)]
    prices = [
        {
            "timestamp": stamp(one),
            "instance_type": lane.instance_type,
            "region": lane.region,
            "spot_instance_price": dollars(price_at(lane, one)),
            "reserved_instance_price": dollars(lane.reserved_cents),
        }
        for lane in lanes
        for one in moments
    ]
    return answer(200, {"prices": prices})
