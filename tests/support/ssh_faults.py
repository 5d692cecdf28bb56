"""Seeded stories of tasks on a fleet whose hosts, links, keepers, runners and clients fail, and the promise kept.

An acknowledged task is never lost without a word, its command ran once for each recorded attempt and rank (what a host
does that was given up, until it is back, is its own), its final state never changes; two tasks never have one GPU; no
process stays behind; every output is read whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from flow.client import Flow
from flow.errors import FlowError
from flow.task import Task
from tests.support.faults import LINES
from tests.support.fleet import Fleet, Host
from tests.support.processes import end_attendant, wait_until
from tests.support.story import (
    Act,
    Clients,
    Kind,
    Verdict,
    far_surroundings,
    kind_of,
    perform,
    units_of,
    wrong_attempts,
)

PATIENCE_SECONDS = 150.0
_NOTE = 'echo "$FLOW_TASK_ID $FLOW_ATTEMPT $FLOW_NODE_RANK" >> ~/ledger; '
# A lock goes with the last process that has it, however that ends.
_ALONE = 'exec 9>/tmp/of-gpu-$CUDA_VISIBLE_DEVICES; flock -n 9 || echo "$FLOW_TASK_ID shares a GPU" >> ~/clash; '
_WORK = "for i in 1 2 3; do echo line $i; sleep 0.1; done"
_CODE = 'test "$(cat data.txt)" = uploaded || exit 9; '
KINDS = (
    Kind("works", _CODE + _WORK, ("completed",)),
    Kind("works again", _CODE + _WORK, ("completed",), {"retries": 3}),
    Kind("fails", "sleep 0.1; exit 3", ("failed",)),
    Kind("second try", f"{_WORK}; [ $FLOW_ATTEMPT -ge 2 ]", ("completed",), {"retries": 4}),
    Kind("with a gpu", _ALONE + _WORK, ("completed",), {"gpu": "a100:1"}),
    Kind("with all gpus", _ALONE + _WORK, ("completed",), {"gpu": "a100:4", "retries": 2}),
    Kind("two nodes", f"{_WORK}; sleep 0.2", ("completed",), {"num_instances": 2}),
    Kind("three nodes", _WORK, ("completed",), {"num_instances": 3, "retries": 2}),
    Kind("array", _WORK, ("completed",), {"array": "1-4", "retries": 1}),
    Kind("long", f"{_WORK}; sleep 2", ("completed",), {"retries": 2}),
    Kind("cancelled", "setsid sleep 300 & env -i setsid sleep 300 & sleep 300", ("cancelled",), is_cancelled=True),
    Kind("cancelled on two nodes", "sleep 300", ("cancelled",), {"num_instances": 2}, is_cancelled=True),
)  # fmt: skip


def run_story(seed: int, folder: Path, fleet: Fleet) -> Verdict:
    """Tell the story of `seed` on a fleet that is as new, in the empty folder `folder`: about ten seconds."""
    with _surroundings(fleet, folder):
        story = _Story(seed, fleet, folder)
        try:
            story.tell()
            story.judge()
        finally:
            story.close()
    return Verdict(seed, len(story.known), tuple(story.faults), tuple(story.violations))


@contextlib.contextmanager
def _surroundings(fleet: Fleet, folder: Path) -> Iterator[None]:
    """The environment and current folder of everything in a story."""
    hosts, config = ",".join(fleet.hosts), str(fleet.config)
    with far_surroundings(folder, FLOW_PROVIDER="ssh", FLOW_SSH_HOSTS=hosts, FLOW_SSH_SSH_CONFIG=config):
        yield


def race(count: int, fleet: Fleet, folder: Path) -> list[str]:
    """Two clients and two users race for the last GPUs, `count` times; what went wrong."""
    with _surroundings(fleet, folder):
        (folder / "bin" / "ssh").unlink()  # nothing is cut here, and many connect at once: the slow are waited for
        hosts = list(fleet.hosts.values())
        for host in hosts:
            host.run("grep -q ann /etc/passwd || echo 'ann:*:1001:1001::/tmp/ann:/bin/bash' >> /etc/passwd")
            host.run("rm -rf /tmp/ann; mkdir -m 700 /tmp/ann; chown 1001 /tmp/ann; mkdir -p -m 777 /tmp/race")
        names = {"one": "root", "two": "root", "ann": "ann"}
        clients = []
        for name, user in names.items():
            os.environ.update(
                FLOW_HOME=str(folder / name),
                FLOW_SSH_HOSTS=",".join(f"{user}@{host.name} as {host.name}" for host in hosts),
            )
            clients.append(Flow())
        try:
            with ThreadPoolExecutor(len(hosts)) as threads:
                return [
                    one
                    for found in threads.map(lambda n: _race_once(hosts[n % len(hosts)], n, clients), range(count))
                    for one in found
                ]
        finally:
            for name in names:
                end_attendant(folder / name)


# No two tasks make the same folder; a lock of another user's could not be opened.
_HOLD = """
for one in $(echo "$CUDA_VISIBLE_DEVICES" | tr , ' '); do mkdir "/tmp/race/$one" || exit 1; done
sleep 0.05
rmdir /tmp/race/*
"""


def _race_once(host: Host, number: int, clients: list[Flow]) -> list[str]:
    """Each client wants four GPUs, or three, at once: no two find room."""
    fields: dict[str, Any] = {"gpu": f"a100:{3 + number % 2}", "region": host.name, "upload_code": False}
    with ThreadPoolExecutor(len(clients)) as threads:
        tasks = list(threads.map(lambda client: client.run(_HOLD, **fields), clients))
        ends = list(threads.map(lambda task: str(task.wait(timeout=60)), tasks))
    each = zip(tasks, ends, strict=True)
    return [f"race {number}: {task} {end_} ({task.reason})" for task, end_ in each if end_ != "completed"]


class _Story:
    def __init__(self, seed: int, fleet: Fleet, folder: Path) -> None:
        self.random = random.Random(seed)
        self.is_given_up = seed % 2 == 1  # a host that is away for more than a moment
        os.environ["FLOW_SSH_LOST_AFTER_MINUTES"] = "0.05" if self.is_given_up else "30"
        self.fleet, self.folder, self.home = fleet, folder, folder / "flow"
        self.hosts = list(fleet.hosts.values())
        self.locks = {host.name: Lock() for host in self.hosts}
        self.known: dict[str, Kind] = {}
        self.asked: dict[str, Kind] = {}  # by `flow run`, to be asked again; by its name
        self.faults: list[str] = []
        self.violations: list[str] = []
        self.clients = Clients(folder, self._fields, self.faults)
        self.followed: dict[str, str] = {}

    # -- telling

    def tell(self) -> None:
        """Everything at its moment, then what was cut short is asked again, until all tasks have ended."""
        perform(self._acts())
        for name, kind in self.asked.items():
            self.violations += self.clients.run_again(name, kind)
        self._await_the_end()

    def _acts(self) -> list[Act]:
        moment = self.random.uniform
        acts: list[Act] = []
        for kind in self.random.choices(KINDS, k=self.random.randint(4, 6)):
            acts.append((moment(0, 2), partial(self._submit, kind)))
        for number in range(self.random.randint(0, 2)):
            begin, name, kind = moment(0, 1.5), f"run {number}", self.random.choice(KINDS[:6])
            line = int(10 ** moment(2, 4.5)) if self.random.random() < 0.6 else None
            if self.random.random() < 0.5:  # else what it left on record is to go on by itself
                self.asked[name] = kind
            acts.append((begin, partial(self.clients.run, name, kind, dies=line)))
            acts.append((begin + moment(0.2, 2), partial(self.clients.kill, name)))
        if self.random.random() < 0.5:
            acts.append((moment(1, 2.5), self._follow))
        acts += [(moment(0.5, 5), self._cancel_all_that_should)]
        faults = (self._cut, self._reboot, self._kill_keeper, self._kill_runner, self._slow, self._end_attendant)
        chosen = self.random.choices(faults, weights=(4, 2, 3, 3, 1, 1), k=self.random.randint(2, 4))
        for fault in [*chosen, *([self._give_up] if self.is_given_up else [])]:
            acts.append((moment(0.2, 5), partial(fault, self.random.choice(self.hosts), moment(0.3, 6))))
        acts += [(moment(0.3, 5), partial(Flow().tasks, limit=None)) for _ in range(2)]
        return acts

    def _fields(self, kind: Kind) -> dict[str, Any]:
        return {"command": _NOTE + kind.command, **kind.fields}

    def _submit(self, kind: Kind) -> None:
        Flow().run(**self._fields(kind))

    def _follow(self) -> None:
        rows = Flow().records.rows()
        if rows:
            self.followed["follower"] = rows[-1].task_id
            self.clients.start("follower", "logs", "-f", "--stdout", rows[-1].task_id)

    def _cancel_all_that_should(self) -> None:
        client = Flow()
        for row in client.records.rows(unfinished=True):
            if kind_of(client.task_of(row.task_id), KINDS).is_cancelled:
                client.task_of(row.task_id).cancel()

    def _await_the_end(self) -> None:
        for host in self.hosts:
            host.slow(0)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            client = Flow()
            tasks = client.tasks(limit=None)
            if all(task.status.is_final for task in tasks) or time.monotonic() > deadline:
                break
            with contextlib.suppress(FlowError):
                self._cancel_all_that_should()
            time.sleep(0.2)
        self.violations += self.clients.await_ends(seconds=60)

    # -- faults

    def _cut(self, host: Host, seconds: float) -> None:
        with self._doing("cut", host):
            host.cut()
            time.sleep(seconds)
            host.heal()

    def _give_up(self, host: Host, seconds: float) -> None:
        """It is back after something of it has begun elsewhere, if anything does."""
        with self._doing("give up", host):
            host.cut()
            wait_until(lambda: any(host.name in lost for lost in self._lost_hosts().values()), seconds=12)
            time.sleep(seconds / 3)
            host.heal()

    def _slow(self, host: Host, seconds: float) -> None:
        with self._doing("slow", host):
            host.slow(100, 1)
            time.sleep(seconds)
            host.slow(0)

    def _reboot(self, host: Host, seconds: float) -> None:
        with self._doing("reboot", host):
            host.power_off()
            time.sleep(seconds / 4)
            host.start()

    def _kill_keeper(self, host: Host, _: float) -> None:
        with self._doing("keeper", host):
            host.run("kill -9 $(pgrep -o -f '[h]ost_keeper')", check=False)

    def _kill_runner(self, host: Host, _: float) -> None:
        """Any process of Flow there but the keeper: it has no task, or is about to run one."""
        with self._doing("runner", host):
            pids = host.run("pgrep -f '[h]ost_keeper'", check=False).stdout.split()[1:]
            if pids:
                host.run("kill -9 $1", self.random.choice(pids), check=False)

    def _end_attendant(self, *_: object) -> None:
        self.faults.append("attendant")
        end_attendant(self.home)

    @contextlib.contextmanager
    def _doing(self, what: str, host: Host) -> Iterator[None]:
        with self.locks[host.name]:
            self.faults.append(what)
            yield

    def close(self) -> None:
        """End everything that is left of the story."""
        self.clients.close()
        end_attendant(self.home)
        for host in self.hosts:
            host.clean()

    # -- judging

    def judge(self) -> None:
        """Hold what is on disk here and on the hosts against the promise."""
        client = Flow()
        tasks = client.tasks(limit=None)
        self.known = {task.task_id: kind_of(task, KINDS) for task in tasks}
        lost = self._lost_hosts()
        lines: Counter[str] = Counter()
        for host in self.hosts:
            there = host.run("cat ~/ledger", check=False).stdout.splitlines()
            self.violations += [f"{line}: ran {n} times on {host.name}" for line, n in Counter(there).items() if n > 1]
            lines.update(line for line in there if host.name not in lost.get(line.split()[0], ()))
        for line, count in lines.items():
            if count > 1:
                self._wrong(f"{line}: ran {count} times in one attempt")
        for line in self._on_all("cat ~/clash"):
            self._wrong(line)
        # each host is seen once more, or again where it did not answer in time
        if not wait_until(lambda: [Flow().offers(), self._left_over()][1] == [], seconds=60):
            self._wrong(f"processes stayed behind: {self._left_over()}")
        for task in tasks:
            self._judge_state(task)
            for one in units_of(task):
                self._judge_attempts(one.refresh(), lines)
        keys = Counter(json.loads(file.read_bytes())["idempotency_key"] for file in self._records("record.json"))
        self.violations += [f"{key}: {count} tasks of one key" for key, count in keys.items() if key and count > 1]
        self.violations += [f"{file}: contradicted" for file in self._records("final-contradicted-*.json")]
        self._judge_follower(client)
        for path in self.home.glob("index.db*"):
            path.unlink()
        for task in tasks:
            if (now := Flow().get_task(task.task_id).status) != task.status:
                self._wrong(f"{task.task_id}: was {task.status}, is {now} without its index")

    def _lost_hosts(self) -> dict[str, set[str]]:
        """With which hosts a task or element was lost before it ran on others."""
        found: dict[str, set[str]] = {}
        for file in self._records("moves/*.json"):
            values = json.loads(file.read_bytes())
            unit = values["task_id"] if values["index"] is None else f"{values['task_id']}_{values['index']}"
            found.setdefault(unit, set()).update(values["lost"])
        return found

    def _records(self, pattern: str) -> list[Path]:
        return sorted((self.home / "record").glob(f"*/{pattern}"))

    def _on_all(self, script: str) -> list[str]:
        return [line for host in self.hosts for line in host.run(script, check=False).stdout.splitlines()]

    def _left_over(self) -> list[str]:
        return self._on_all("grep -lsa FLOW_TASK_ID= /proc/[0-9]*/environ; pgrep -fx 'sleep 300'")

    def _judge_state(self, task: Task) -> None:
        kind = self.known[task.task_id]
        is_lost = str(task.status) == "lost" and {"reboot", "runner", "give up"} & set(self.faults)
        if str(task.status) not in kind.states and not is_lost:
            self._wrong(f"{task.task_id} {kind.name}: {task.status} ({task.reason}), not {kind.states}")

    def _judge_attempts(self, task: Task, lines: Counter[str]) -> None:
        ran = {int(line.split()[1]) for line in lines if line.split()[0] == task.task_id}
        self.violations += wrong_attempts(task, ran)
        if str(task.status) == "completed":
            last = task.attempts[-1].number
            for rank in range(task.plan.nodes):
                if f"{task.task_id} {last} {rank}" not in lines:
                    self._wrong(f"{task.task_id}: completed, and node {rank} never ran")
                texts = [one.text for one in task.lines(stream="stdout", node=rank) if one.attempt == last]
                if texts != LINES:
                    self._wrong(f"{task.task_id}: completed, and node {rank} wrote {texts}")

    def _judge_follower(self, client: Flow) -> None:
        """It saw every line, once; of what went with a host perhaps more, or less."""
        for name, task_id in self.followed.items():
            task = client.get_task(task_id)
            seen = Counter(line.rpartition("] ")[2] for line in self.clients.written(name).splitlines())
            whole = Counter(line.text.decode() for line in task.lines(stream="stdout"))
            if str(task.status) == "lost":  # it went with its host, and what that may still have
                continue
            missed = whole - seen
            more = seen - whole if not self._records("moves/*.json") else None
            if missed or more:
                code, said = self.clients.processes[name].returncode, self.clients.written(name, "errors")
                self._wrong(f"{task_id}: the follower saw {seen}, written was {whole}; it ended with {code}: {said}")

    def _wrong(self, what: str) -> None:
        self.violations.append(what)
