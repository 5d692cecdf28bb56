"""Seeded stories of tasks on the stand-in cloud whose clients and attendants are killed, while its API fails.

Once a `flow` command has run again and things have settled: no bid lives that no unfinished task owns, none was made
twice but where the cloud had ended the first, every acknowledged task has its true end and its whole output and ran
once for each recorded attempt, no volume and no API key that was made for a task is left, and no key is where it may
be read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flow.client import Flow
from flow.errors import FlowError
from flow.node.remains import is_locked
from flow.providers.startup import read_mark
from flow.task import Task
from tests.support.aws import Aws
from tests.support.mithril_cloud import Cloud
from tests.support.mithril_cloud import faults as wrong
from tests.support.mithril_cloud.records import Bid
from tests.support.processes import end_attendant, takes_place, wait_until
from tests.support.story import (
    Act,
    Clients,
    Kind,
    Verdict,
    deaths,
    far_surroundings,
    files_with,
    kind_of,
    perform,
    units_of,
    wrong_attempts,
)

PATIENCE_SECONDS = 120.0
REGION = "us-central1-b"
# Who runs says so to the cloud, which writes down every request: machines are gone in the end.
_TELL = """\
bash -c 'exec 3<>/dev/tcp/{host}/{port}
printf "GET /ran/$FLOW_TASK_ID/$FLOW_ATTEMPT/$FLOW_NODE_RANK HTTP/1.0\\r\\n\\r\\n" >&3
cat <&3 >/dev/null'
"""
_WORK = "seq 20000; sleep 0.1; seq 20000 | tac"
OUTPUT = hashlib.sha256("".join(f"{n}\n" for n in [*range(1, 20001), *range(20000, 0, -1)]).encode()).hexdigest()
_AGAIN = ("works-again", "array-again")  # also where its bid is ended
KINDS = (
    Kind("works", _WORK, ("completed",)),
    Kind("works longer", f"{_WORK}; sleep 1", ("completed",)),
    Kind("fails", f"{_WORK}; exit 3", ("failed",)),
    Kind("two nodes", _WORK, ("completed",), {"num_instances": 2}),
    Kind("array", _WORK, ("completed",), {"array": "1-3"}),
    Kind(
        "with a volume", f"touch /data/written || exit 9; {_WORK}", ("completed",),
        {"volumes": [{"mount_path": "/data", "size_gb": 1, "ephemeral": True}]},
    ),
    Kind("second try", f"{_WORK}; [ $FLOW_ATTEMPT -ge 2 ]", ("completed",), {"retries": 1}),
    Kind("works again", f"{_WORK}; sleep 0.7", ("completed",)),
    Kind("array again", f"{_WORK}; sleep 0.3", ("completed",), {"array": "1-4%2"}),
    Kind("cancelled", "sleep 300", ("cancelled",), is_cancelled=True),
)  # fmt: skip
_FAULTS = (
    (wrong.taken_then_reset(), "POST /v2/spot/bids"), (wrong.taken_then(504), "POST /v2/spot/bids"),
    (wrong.reset(), "POST /v2/spot/bids"), (wrong.broken(), "(POST|GET) /v2"), (wrong.busy(0), "[A-Z]+ /v2"),
    (wrong.taken_then_reset(), "POST /v2/api-keys"), (wrong.taken_then(502), "POST /v2/volumes"),
    (wrong.taken_then_reset(), "DELETE /v2"), (wrong.broken(500), "(DELETE|PATCH) /v2"), (wrong.reset(), "GET /v2"),
    (wrong.slow(1.0), "POST /v2"), (wrong.garbled(), "GET /v2"), (wrong.UNKNOWN_KEY, "GET /v2/spot/bids"),
)  # fmt: skip


# Where what a task left is fetched and collected, machines are told so, bids end, and what was made for them goes.
_END = (
    "fetch", "_unpack", "collect", "set_final", "release", "_tell_collected", "_give_back", "end", "forget_task",
)  # fmt: skip
_AWS_SECRET = "wJalr-a-secret-that-nobody-may-see"


def run_story(seed: int, folder: Path, cloud: Cloud, aws: Aws) -> Verdict:
    """Tell the story of `seed` on a cloud and an S3 that are as new, in the empty `folder`: some seconds."""
    aws.bucket("bucket", {})
    settings = {"FLOW_MITHRIL_API_URL": cloud.url, "MITHRIL_API_KEY": cloud.key, "FLOW_MITHRIL_REGION": REGION}
    with far_surroundings(folder, FLOW_PROVIDER="mithril", **settings):
        story = _Story(seed, cloud, aws, folder)
        try:
            story.tell()
            story.judge()
        finally:
            story.close()
    died = [where for _, where in deaths(folder)]
    return Verdict(seed, len(story.known), (*story.faults, *died), tuple(story.violations))


class _Story:
    def __init__(self, seed: int, cloud: Cloud, aws: Aws, folder: Path) -> None:
        self.random = random.Random(seed)
        self.cloud, self.aws, self.folder, self.home = cloud, aws, folder, folder / "flow"
        self.absent = 1.0
        self.endings = self.random.randint(1, 2)  # at most, of bids
        self.known: dict[str, Kind] = {}
        self.asked: dict[str, Kind] = {}  # by `flow run`; by its name
        self.faults: list[str] = []
        self.ended: Counter[str] = Counter()  # bids that the cloud ended, by name
        self.violations: list[str] = []
        self.clients = Clients(folder, self._fields, self.faults)
        place = urlsplit(cloud.url)
        self.tell_it = _TELL.format(host=place.hostname, port=place.port)

    # -- telling

    def tell(self) -> None:
        """Everything at its moment, then what was cut short is asked again, until nothing is left to be done."""
        self.absent = self.random.random()
        if self.absent < 0.7:  # nobody there when it ends: machines pause themselves, or copy what tasks left and end
            os.environ["FLOW_MITHRIL_GRACE_MINUTES"] = "0.01"
        if self.absent < 0.4:
            keys = {**self.aws.access, "AWS_SECRET_ACCESS_KEY": _AWS_SECRET}
            os.environ.update(keys, FLOW_RECORDS="s3://bucket/records")
        for fault, route in self.random.choices(_FAULTS, k=self.random.randint(2, 5)):
            self.cloud.faults.play(fault, route, probability=self.random.choice((0.1, 0.3, 1)), times=2)

        perform(self._acts())
        self.faults += [f"api: {line.partition('?')[0]}" for line in self.cloud.faults.played]
        self.cloud.faults.clear()
        self.aws.take_any_signature()
        for name, kind in self.asked.items():
            if self.random.random() < 0.5:  # else what it left on record is to go on by itself
                self.violations += self.clients.run_again(name, kind)
        with contextlib.suppress(FlowError):  # else who follows one that was to be cancelled in vain waits on
            self._cancel_all_that_should()
        self.violations += self.clients.await_ends(seconds=150)
        self._settle()

    def _acts(self) -> list[Act]:
        moment = self.random.uniform
        acts: list[Act] = []
        is_lossy = self.random.random() < 0.25
        kinds = [one for one in KINDS if one.fields["name"] in _AGAIN] if is_lossy else KINDS
        for number in range(self.random.randint(2, 3)):
            begin, name, kind = moment(0, 0.5), f"run {number}", self.random.choice(kinds)
            dies = self.random.random()
            line = int(10 ** moment(2.5, 4.8)) if dies < 0.5 else None
            self.asked[name] = kind
            acts.append((begin, partial(self.clients.run, name, kind, dies=line)))
            if dies < 0.8:
                acts.append((begin + moment(0.2, 3), partial(self.clients.kill, name)))
        for _ in range(self.random.randint(1, 3)):
            acts.append((moment(0.6, 4), self._kill_attendant))
        looks = (["status"], ["wait", "@last"], ["cancel", "cancelled"], ["logs", "-f", "@last"])
        for number, words in enumerate(self.random.choices(looks, k=3)):
            acts.append((moment(0.7, 4), partial(self._look, f"look {number}", *words)))
        if self.random.random() < 0.3:
            acts.append((moment(0.8, 3), partial(self._preempt, moment(0.5, 1.5))))
        if self.absent < 0.7:
            acts.append((moment(0.8, 2), partial(self._be_away, moment(2, 3.5))))
        if self.random.random() < 0.2:
            acts.append((moment(0.5, 3), self._refuse_to_copy))
        if is_lossy:
            acts += [(moment(0.8, 4), self._end_bid) for _ in range(self.endings)]
        acts += [(moment(1, 3.5), self._cancel_all_that_should)]
        return acts

    def _look(self, name: str, *words: str) -> None:
        """A command that dies somewhere on its way."""
        self.clients.start(name, *words, dies=self._moment())

    def _moment(self) -> str:
        """Anywhere, or where a task is brought to its end."""
        if self.random.random() < 0.5:
            return f"{self.random.choice(_END)}:{self.random.randint(0, 12)}"
        return str(int(10 ** self.random.uniform(2.5, 4.5)))

    def _fields(self, kind: Kind) -> dict[str, Any]:
        fields = {"command": self.tell_it + kind.command, **kind.fields}
        return {**fields, "retries": self.endings} if fields["name"] in _AGAIN else fields  # no more than it needs

    def _cancel_all_that_should(self) -> None:
        client = Flow()
        for task in client.tasks(limit=None, refresh=False):
            if kind_of(task, KINDS).is_cancelled and not task.status.is_final:
                task.cancel()

    def _settle(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            client = Flow()
            tasks = client.tasks(limit=None)
            if all(task.status.is_final for task in tasks):
                break
            with contextlib.suppress(FlowError):
                self._cancel_all_that_should()
            time.sleep(0.1)
        for file in self.home.glob("*/held/*"):  # nothing comes late any more
            with contextlib.suppress(FileNotFoundError):
                os.utime(file, (0, 0))
        if not wait_until(lambda: [Flow().tasks(), Flow().held()][1] == [], seconds=60, every=0.1):
            self._wrong(f"held for ever: {Flow().held()}")

    # -- what goes wrong

    def _preempt(self, seconds: float) -> None:
        """Others bid more for a while."""
        names = [one.name for one in list(self.cloud.spot.bids.values()) if one.status == "Allocated"]
        if not names:
            return
        name = self.random.choice(names)
        lane = self.cloud.lane(self.cloud.bid(name).instance_type, REGION)
        before, self.cloud.spot.notice_seconds = lane.price_cents, 0.7
        self.cloud.preempt(name)
        time.sleep(seconds)
        lane.price_cents = before
        self.faults.append("preempted")

    def _refuse_to_copy(self) -> None:
        """S3 takes nothing and gives nothing, for the rest of the story."""
        self.aws.ask_for_signatures("s3:*")
        self.faults.append("s3")

    def _be_away(self, seconds: float) -> None:
        """No attendant is there."""
        self.home.mkdir(mode=0o700, exist_ok=True)
        with (self.home / "attend.lock").open("a") as lock:
            if wait_until(lambda: takes_place(lock, partial(self._kill_attendant, followed=False)), seconds=2):
                lock.truncate(0)  # it names nobody
                self.faults.append("away")
                time.sleep(seconds)

    def _end_bid(self) -> None:
        """The cloud ends a bid, for good, of a task that may be tried again; two see it at the same time."""
        bids = [one for one in list(self.cloud.spot.bids.values()) if one.is_live and self._may_be_lost(one.name)]
        if bids:
            name = self.random.choice(bids).name
            self.ended[name] += 1
            self.cloud.end_bid(name)
            for number in range(2):
                self.clients.start(f"{name} seen {self.ended[name]}.{number}", "status", dies=10**6)  # watched: slow
            self.faults.append("ended")

    def _may_be_lost(self, task_id: str) -> bool:
        return Flow().records.get(task_id).plan.name in _AGAIN

    def _kill_attendant(self, *, followed: bool = True) -> None:
        lock = self.home / "attend.lock"
        with contextlib.suppress(ValueError, ProcessLookupError):  # it is about to say its number
            if is_locked(lock):
                os.kill(int(lock.read_text()), signal.SIGKILL)
                self.faults.append("attendant")
                if followed:
                    name = f"attendant {len(self.clients.processes)}"
                    self.clients.start_doomed(name, "attendant", self._moment())

    def close(self) -> None:
        """End everything that is left of the story."""
        self.clients.close()
        with contextlib.suppress(ValueError, ProcessLookupError):
            end_attendant(self.home)

    # -- judging

    def judge(self) -> None:
        """Hold the records here and what the cloud has and has seen against the promise."""
        client = Flow()
        tasks = client.tasks(limit=None)
        self.known = {task.task_id: kind_of(task, KINDS) for task in tasks}
        self._judge_cloud()
        ran = self._judge_runs()
        for task in tasks:
            kind = self.known[task.task_id]
            if str(task.status) not in kind.states:
                self._wrong(f"{task.task_id} {kind.name}: {task.status} ({task.reason}), not {kind.states}")
            for one in units_of(task):
                self._judge_attempts(one, kind, ran)
        self._judge_secrets()

    def _judge_runs(self) -> Counter[Any]:
        """Once in each attempt: only one that nobody saw, and that went with its bid, leaves its number to the next."""
        runs: dict[Any, list[Bid]] = {}
        for one in [one for one in list(self.cloud.requests) if one.path.startswith("/ran/")]:
            run = re.findall(r"^GET /ran/(\S+)/(\d+)/(\d+)", one.line)[0]
            bids = [bid for bid in self.cloud.spot.bids.values() if bid.name == run[0].partition("_")[0]]
            runs.setdefault(run, []).append(max((bid for bid in bids if bid.created <= one.at), key=_age))
        for run, bids in runs.items():
            is_once_each = len({one.fid for one in bids}) == len(bids)
            if not is_once_each or any(_first_attempt(one) == int(run[1]) for one in bids[:-1]):
                self._wrong(f"{run}: ran {len(bids)} times in one attempt")
        return Counter({run: len(bids) for run, bids in runs.items()})

    def _judge_cloud(self) -> None:
        bids = list(self.cloud.spot.bids.values())
        for name, count in Counter(one.name for one in bids).items():
            if count > 1 + self.ended[name]:
                self._wrong(f"{name}: {count} bids were made, and {self.ended[name]} ended")
        for one in bids:
            others = [each for each in bids if each.name == one.name and each.created > one.created]
            if any(one.deactivated is None or one.deactivated > each.created for each in others):
                self._wrong(f"{one.name}: two bids lived at once")
        self.violations += [f"{one.name}: its bid is {one.status}" for one in bids if one.is_live]
        live = [one.name for one in self.cloud.spot.volumes.values() if one.deleted is None]
        self.violations += [f"the volume {name} is left" for name in live]
        keys = [one.name for one in self.cloud.api_keys.values() if one.deactivated is None and one.name != "laptop"]
        self.violations += [f"the API key {name} is left" for name in keys]

    def _judge_attempts(self, task: Task, kind: Kind, ran: Counter[Any]) -> None:
        numbers = [one.number for one in task.attempts]
        self.violations += wrong_attempts(task, {int(number) for unit, number, _ in ran if unit == task.task_id})
        if kind.is_cancelled or str(task.status) not in kind.states:
            return
        for rank in range(task.plan.nodes):
            if (task.task_id, str(numbers[-1]), str(rank)) not in ran:
                self._wrong(f"{task.task_id}: {task.status}, and node {rank} never ran")
            folder = Flow().records.folder(task.task_id, numbers[-1], rank)
            written = (folder / "stdout.log").read_bytes() if (folder / "stdout.log").exists() else b""
            if hashlib.sha256(written).hexdigest() != OUTPUT:
                self._wrong(f"{task.task_id}: {task.status}, and of node {rank} are {len(written)} other bytes")

    def _judge_secrets(self) -> None:
        """No key in a script, a request, a log or a file here."""
        keys = [_AWS_SECRET, *(one.secret for one in self.cloud.api_keys.values())]
        for key in keys:
            places = [*self.cloud.leaks(key), *files_with(key, self.folder)]
            self.violations += [f"a key is in {place}" for place in places]

    def _wrong(self, what: str) -> None:
        self.violations.append(what)


def _age(bid: Bid) -> float:
    return bid.created


def _first_attempt(bid: Bid) -> int:
    mark = read_mark(str(bid.launch.startup_script))
    assert mark
    return mark.attempt
