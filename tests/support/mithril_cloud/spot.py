"""Bids come and go: who holds machines now, who is told to leave, what each pays. One look, again and again."""

from __future__ import annotations

import signal
from collections.abc import Iterable

from tests.support.mithril_cloud.clock import stamp
from tests.support.mithril_cloud.machines import Machines, Setup
from tests.support.mithril_cloud.market import Lane, settle
from tests.support.mithril_cloud.records import Bid, Instance, InstanceType, SshKey, Volume

HOLDING = ("Allocated", "Preempting")


class Spot:
    """All that is for sale and bid for. Tests set `notice_seconds`, `boot_seconds` (infinity: never) and the lanes."""

    def __init__(self, machines: Machines, lanes: Iterable[Lane], types: Iterable[InstanceType]) -> None:
        self.machines, self.lanes = machines, list(lanes)
        self.types = {one.fid: one for one in types}
        self.bids: dict[str, Bid] = {}
        self.volumes: dict[str, Volume] = {}
        self.ssh_keys: dict[str, SshKey] = {}
        self.notice_seconds, self.boot_seconds = 300.0, 0.0
        self.runs_before_it_answers = False  # STATUS_RUNNING and an address, while nothing boots yet

    def look(self, now: float) -> None:
        """Let the world go on to this moment."""
        for lane in self.lanes:
            bids = [one for one in self.bids.values() if one.is_live and _is_at(one, lane)]
            rivals = [one for one in bids if one.status in ("Open", "Allocated") and not one.paused]
            winners, clearing = settle(rivals, lane.price_cents, lane.capacity)
            if clearing != lane.clearing_cents:
                lane.clearing_cents = clearing
                lane.past.append((now, clearing))
            won = {id(one) for one in winners}
            for bid in bids:
                self._go_on(bid, id(bid) in won, now)
            for bid in rivals:
                if id(bid) in won and bid.status == "Open" and held(bids) + bid.quantity <= lane.capacity:
                    self._allocate(bid, now)
            for bid in bids:
                bid.bill.charge(now, clearing * bid.quantity if bid.status in HOLDING else 0)

    def end(self, bid: Bid, now: float) -> None:
        """For good: nothing is to be paid from now on."""
        bid.status, bid.deactivated = "Terminated", now
        bid.bill.charge(now, 0)
        for one in bid.instances:
            one.status, one.ssh_destination, one.boot_at = "STATUS_TERMINATED", None, None
            self.machines.bring(one.fid, "gone")

    def pause(self, bid: Bid) -> None:
        """Begin to; it is done when the machines are off."""
        bid.paused = True
        self._spin_down(bid, "STATUS_STOPPING")

    def _go_on(self, bid: Bid, won: bool, now: float) -> None:
        if bid.paused:
            if bid.status != "Paused" and self._are_off(bid):
                bid.status, bid.notice_ends = "Paused", None
                self._mark(bid, "STATUS_PAUSED")
            return
        if bid.status == "Allocated" and not won:
            bid.status, bid.notice_ends = "Preempting", now + self.notice_seconds
        if bid.status == "Preempting":
            self._preempt(bid, now)
        if bid.status == "Allocated":
            for one in bid.instances:
                self._watch(bid, one, now)

    def _preempt(self, bid: Bid, now: float) -> None:
        assert bid.notice_ends is not None
        if now < bid.notice_ends:
            self._mark(bid, "STATUS_PREEMPTING")
            for one in bid.instances:
                self.machines.announce(one.fid, one.status, bid.status, stamp(bid.notice_ends))
            return
        self._spin_down(bid, "STATUS_PREEMPTING")
        if self._are_off(bid):
            bid.status, bid.notice_ends = "Open", None
            self._mark(bid, "STATUS_PREEMPTED")

    def _allocate(self, bid: Bid, now: float) -> None:
        bid.status = "Allocated"
        if not bid.instances:
            names = [f"{bid.name}-{at + 1}" for at in range(bid.quantity)]
            bid.instances = [Instance(bid.fid, name, bid.project, bid.instance_type, bid.region, now) for name in names]
        for one in bid.instances:
            one.private_ip = self.machines.place(one.fid)
            one.boot_at, one.status = now + self.boot_seconds, "STATUS_NEW"
            if self.runs_before_it_answers:
                self._answer(bid, one)
        for one in bid.instances:  # when all have their addresses
            self._watch(bid, one, now)

    def _watch(self, bid: Bid, one: Instance, now: float) -> None:
        if one.boot_at is not None:
            if now >= one.boot_at:
                one.boot_at = None
                one.status = "STATUS_STARTING" if one.status == "STATUS_NEW" else one.status
                self.machines.bring(one.fid, "on", self._setup(bid, one))
            return
        if one.status == "STATUS_STARTING" and self.machines[one.fid].actual == "on":
            self._answer(bid, one)
        elif self.machines[one.fid].failure:
            one.status, one.ssh_destination = "STATUS_ERROR", None
        ended = self.machines.went_down(one.fid)
        if ended == signal.SIGHUP:
            one.status = "STATUS_STARTING"
            self.machines.bring(one.fid, "on")
        elif ended is not None:
            one.status = "STATUS_STOPPED" if ended == signal.SIGINT else "STATUS_ERROR"
            one.ssh_destination = None

    def _answer(self, bid: Bid, one: Instance) -> None:
        """The first of a bid says its port, others do not: the API leaves that open."""
        is_first = one is bid.instances[0]
        one.status, one.ssh_destination = "STATUS_RUNNING", self.machines.destination(one.fid, with_port=is_first)

    def _setup(self, bid: Bid, one: Instance) -> Setup:
        return Setup(
            one.name,
            self.types[bid.instance_type],
            tuple(self.ssh_keys[fid].public_key for fid in bid.launch.ssh_keys),
            bid.launch.startup_script,
            tuple(self.volumes[fid] for fid in bid.launch.volumes),
            {node.name: node.private_ip or "" for node in bid.instances},
        )

    def _spin_down(self, bid: Bid, status: str) -> None:
        for one in bid.instances:
            one.status, one.ssh_destination, one.boot_at = status, None, None
            self.machines.bring(one.fid, "off")

    def _are_off(self, bid: Bid) -> bool:
        return all(self.machines[one.fid].actual == "off" for one in bid.instances)

    def _mark(self, bid: Bid, status: str) -> None:
        for one in bid.instances:
            one.status = status


def held(bids: Iterable[Bid]) -> int:
    """How many instances are in use."""
    return sum(one.quantity for one in bids if one.status in HOLDING)


def _is_at(bid: Bid, lane: Lane) -> bool:
    return (bid.instance_type, bid.region) == (lane.instance_type, lane.region)
