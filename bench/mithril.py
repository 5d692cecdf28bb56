"""What Flow asks of the Mithril cloud, and what it adds to the time that the cloud takes: on the stand-in for it."""

from __future__ import annotations

import fcntl
import math
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.mithril_cloud import Cloud, serve

from bench.figures import Figure, median, milliseconds
from bench.floors import bare_python
from bench.place import own_home
from bench.startup import flow_words
from flow.attend import LOCK
from flow.chores import attend
from flow.client import Flow
from flow.providers.mithril.api import Api

BIDS = 1000
_REGION, _TYPE = "us-central1-b", "it_MsIRhxj3ccyVWGfP"


def measure(*, quick: bool) -> list[Figure]:
    """Machines are only said to be there: what is measured is Flow."""
    with tempfile.TemporaryDirectory(prefix="flow-bench-") as folder, serve(Path(folder) / "cloud") as cloud:
        cloud.machines.pretended, cloud.spot.boot_seconds = True, math.inf
        cloud.quotas.default_factory = lambda: 10**6
        few = [*_submit(cloud, rounds=5 if quick else 30), *_look(cloud)]  # a page holds a hundred bids
        return [*few, *_status(cloud, 100 if quick else BIDS)]


@contextmanager
def _client(cloud: Cloud) -> Iterator[Flow]:
    """In a home of its own, where no attendant asks anything meanwhile."""
    variables = {"FLOW_PROVIDER": "mithril", "FLOW_MITHRIL_API_URL": cloud.url, "MITHRIL_API_KEY": cloud.key}
    with own_home(**variables) as home:
        home.mkdir()
        with (home / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield Flow()


def _submit(cloud: Cloud, rounds: int) -> list[Figure]:
    """The first `flow run` of a home, the next ones, and the bare request that is in each of them."""
    with _client(cloud) as client:
        calls, spent = [], []
        for _ in range(rounds + 1):
            before = len(cloud.requests)
            spent.append(milliseconds(lambda: client.run("true", upload_code=False, region=_REGION)))
            calls.append(list(cloud.requests[before:]))
        body = next(one.json() for one in calls[-1] if one.line == "POST /v2/spot/bids")
        api = Api(cloud.key, cloud.url)
        bodies = [{**body, "name": f"bare-{number}"} for number in range(rounds)]
        bare = [milliseconds(partial(api.create, "/v2/spot/bids", one)) for one in bodies]
    script = body["launch_specification"]["startup_script"]
    return [
        Figure("flow run: calls, the first of a home", len(calls[0]), "", aim=12),
        Figure("  the next ones", median([len(one) for one in calls[1:]]), "", aim=6),
        Figure("  sent and got by the next ones", median([_kilobytes(one) for one in calls[1:]]), "kB", aim=30),
        Figure("submit acknowledged by the cloud, p50", median(spent[1:]), "ms", median(bare), "bare POST", aim=100),
        Figure("startup script", len(script) / 1000, "kB", aim=5),
    ]


def _status(cloud: Cloud, count: int) -> list[Figure]:
    """Twenty tasks of ours among many bids."""
    with _client(cloud) as client:
        cloud.lane(_TYPE, _REGION).capacity = 2 * count
        for _ in range(20):
            client.run("true", upload_code=False, region=_REGION)
        first = next(iter(cloud.spot.bids.values()))
        for number in range(count - len(cloud.spot.bids)):
            body = {**_body_of(first.json()), "name": f"other-{number}"}
            Api(cloud.key, cloud.url).create("/v2/spot/bids", body)
        words = [*flow_words(), "status", "--json"]
        status = partial(subprocess.run, words, check=True, capture_output=True)
        spent, calls = [], []
        for _ in range(5):
            before = len(cloud.requests)
            spent.append(milliseconds(status))
            calls.append(len(cloud.requests) - before)
        bare = median([milliseconds(bare_python) for _ in range(5)])
    return [
        Figure(f"flow status, {count:,} bids", median(spent), "ms", bare, "bare Python", aim=1000),
        Figure("  calls", median(calls), "", aim=20),
    ]


def _look(cloud: Cloud) -> list[Figure]:
    """What the attendant asks at each look, for one task that waits for machines and for ten, and while those boot."""
    figures = []
    with _client(cloud) as client:
        for count, state, capacity in ((1, "waits", 0), (10, "wait", 0), (10, "boot", 10**4)):
            while len(client.records.rows(unfinished=True)) < count:
                client.run("true", upload_code=False, region=_REGION, gpu="a100")
            cloud.lane(_TYPE, _REGION).capacity = capacity
            time.sleep(0.2)
            calls = []
            for _ in range(5):
                before = len(cloud.requests)
                attend(client, {})
                calls.append(len(cloud.requests) - before)
            tasks = "1 task" if count == 1 else f"{count} tasks"
            figures.append(Figure(f"attendant: calls of a look while {tasks} {state}", median(calls), "", aim=6))
    return figures


def _body_of(bid: dict[str, Any]) -> dict[str, Any]:
    launch = {name: bid["launch_specification"][name] for name in ("volumes", "ssh_keys", "startup_script")}
    names = ("project", "region", "instance_type", "limit_price", "instance_quantity")
    return {**{name: bid[name] for name in names}, "launch_specification": launch}


def _kilobytes(requests: list[Any]) -> float:
    return sum(len(one.body) + one.answer_bytes for one in requests) / 1000
