"""Seeded stories of the local provider whose processes are killed, and the promise they are held against.

An acknowledged task is never lost, never runs again after it finished, and its final state never changes; its command
ran once for each recorded attempt; what is held does not start; no process stays behind; every output can be read.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from flow.client import Flow
from flow.errors import ValidationError
from flow.node.remains import is_locked
from flow.status import HELD, read_report
from flow.task import Task
from tests.support.commands import flow
from tests.support.processes import end, is_alive, processes_of, wait_until
from tests.support.story import Act, Clients, Kind, Verdict, deaths, kind_of, surroundings, units_of, wrong_attempts

PATIENCE_SECONDS = 60.0
LINES = [f"line {number}".encode() for number in (1, 2, 3)]

_NOTE = 'echo "$FLOW_TASK_ID $FLOW_ATTEMPT $FLOW_NODE_RANK" >> "$LEDGER"; '
_WORK = "for i in 1 2 3; do echo line $i; sleep 0.05; done"


# `env -i` takes Flow's marks off, `$MARK` keeps the process recognisable for the story.
_HIDDEN = "setsid sleep 300 & env -i setsid sh -c 'sleep 300; :' \"$MARK\" & "
_REQUEUE = '[ $FLOW_ATTEMPT -ge 2 ] || { echo requeue >> "$FLOW_OUTPUT/../asked"; exit 3; };'
KINDS = (
    Kind("works", _WORK, ("completed",)),
    Kind("fails", "sleep 0.05; exit 3", ("failed",)),
    Kind("fails again", "sleep 0.05; exit 3", ("failed",), {"retries": 2}),
    Kind("second try", f"{_WORK}; [ $FLOW_ATTEMPT -ge 2 ]", ("completed",), {"retries": 3}),
    Kind("two nodes", f"{_WORK}; sleep 0.2", ("completed",), {"num_instances": 2}),
    Kind("two nodes, one fails", "[ $FLOW_NODE_RANK = 0 ] && sleep 60; exit 3", ("failed",), {"num_instances": 2}),
    Kind("array", _WORK, ("completed",), {"array": "1-3%2", "retries": 1}),
    Kind("too long", "sleep 300", ("timed_out",), {"max_run_time_hours": 0.4 / 3600}),
    Kind("leaves processes", f"{_HIDDEN} {_WORK}", ("completed",)),
    Kind("later", _WORK, ("completed",), {"begin": "now+1"}),
    Kind("requeues itself", f"{_REQUEUE} {_WORK}", ("completed",)),
    Kind("cancelled", f"{_HIDDEN} sleep 300", ("cancelled",), is_cancelled=True),
    Kind(
        "cancelled, stubborn", f"trap '' TERM; {_HIDDEN} while :; do sleep 0.05; done", ("cancelled",), {"retries": 1},
        is_cancelled=True,
    ),
    Kind("cancelled on two nodes", "sleep 300", ("cancelled",), {"num_instances": 2}, is_cancelled=True),
)  # fmt: skip


def run_story(seed: int, folder: Path) -> Verdict:
    """Tell the story of `seed` in the empty folder `folder`: real processes, killed. About two seconds."""
    story = _Story(seed, folder)
    with surroundings(folder, FLOW_LOCAL_CPUS="8"):
        try:
            story.tell()
            story.judge()
        finally:
            story.close()
    kills = [*story.kills, *(who for who, _ in deaths(folder))]
    return Verdict(seed, len(story.known), tuple(kills), tuple(story.violations))


class _Story:
    def __init__(self, seed: int, folder: Path) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        self.home = folder / "flow"
        self.ledger = folder / "ledger"
        self.known: dict[str, tuple[Kind, str]] = {}  # task id -> kind, the task and state that it waits for
        self.asked: dict[str, Kind] = {}  # by `flow run`, to be asked again; by its name
        self.followed = ""
        self.held: dict[str, list[str]] = {}  # what is held and did not run, with its lines in the ledger
        self.kills: list[str] = []
        self.violations: list[str] = []
        self.clients = Clients(folder, self._fields, self.kills)

    # -- telling

    def tell(self) -> None:
        """Everything at its moment, then what was cut short is asked again, until all tasks have ended."""
        acts = self._acts()
        if self.random.random() < 0.5:
            self._start_doomed_scheduler()
        began = time.monotonic()
        for moment, act in sorted(acts, key=lambda one: one[0]):
            time.sleep(max(0.0, began + moment - time.monotonic()))
            act()
        for name, kind in self.asked.items():
            self.violations += self.clients.run_again(name, kind)
        self._await_the_end()

    def _acts(self) -> list[Act]:
        moment = self.random.uniform
        acts: list[Act] = []
        for kind in self.random.choices(KINDS, k=self.random.randint(4, 7)):
            begin = moment(0, 0.5)
            acts.append((begin, partial(self._submit, kind)))
        acts.append((moment(0.3, 0.8), self._submit_dependent))
        for number in range(self.random.randint(1, 2)):
            begin, name = moment(0, 0.6), f"run {number}"
            acts.append((begin, partial(self._run, name)))
            acts.append((begin + moment(0.02, 0.6), partial(self.clients.kill, name)))
        if self.random.random() < 0.5:
            begin = moment(0.3, 0.9)
            acts.append((begin, self._follow))
            if self.random.random() < 0.5:
                acts.append((begin + moment(0.1, 0.6), partial(self.clients.kill, "follower")))
        acts += [(moment(0.2, 1.2), self._cancel_all_that_should) for _ in range(2)]
        for victim in self.random.choices(("scheduler", "runner", "everything"), weights=(4, 4, 1), k=3):
            acts.append((moment(0.05, 1.4), partial(self._kill, victim)))
        for _ in range(3):
            begin = moment(0.1, 1.0)
            acts.append((begin, self._hold))
            acts.append((begin + moment(0.1, 0.5), self._resume))
        acts += [(moment(0.2, 1.3), self._requeue) for _ in range(3)]
        acts += [(moment(0.3, 1.4), self._look) for _ in range(2)]  # any command brings the scheduler back
        return acts

    def _fields(self, kind: Kind) -> dict[str, Any]:
        env = {"LEDGER": str(self.ledger), "MARK": str(self.folder)}
        return {"command": _NOTE + kind.command, "env": env, **kind.fields}

    def _submit(self, kind: Kind, **more: Any) -> str:
        task = Flow().run(**self._fields(kind), **more)
        self.known[task.task_id] = (kind, "")
        return task.task_id

    def _submit_dependent(self) -> None:
        """A task that waits for another one: until it completed, failed, ended or started."""
        if not self.known:
            return
        upstream = self.random.choice(sorted(self.known))
        state = self.random.choice(("completed", "failed", "ended", "started_or_ended"))
        kind = KINDS[0]
        self.known[self._submit(kind, depends_on=[f"{upstream}:{state}"])] = (kind, f"{upstream}:{state}")

    def _run(self, name: str) -> None:
        """A `flow run` that is to die: at a line of its code, or from outside if it is not through by then."""
        kind = self.random.choice(KINDS[:8])
        if self.random.random() < 0.5:  # else what it left on record is to go on by itself
            self.asked[name] = kind
        words = ["--watch"] if self.random.random() < 0.5 else []
        dies = int(self.random.uniform(0, 2600)) if self.random.random() < 0.6 else None
        self.clients.run(name, kind, *words, dies=dies)

    def _follow(self) -> None:
        if self.known:
            self.followed = self.random.choice(sorted(self.known))
            self.clients.start("follower", "logs", "-f", "--stdout", self.followed)

    def _cancel_all_that_should(self) -> None:
        for task_id, (kind, _) in self.known.items():
            if kind.is_cancelled and self.random.random() < 0.6:
                Flow().get_task(task_id).cancel()

    def _some(self) -> Task | None:
        """Any task, or an element of it, as it is now."""
        if not self.known:
            return None
        task = Flow().get_task(self.random.choice(sorted(self.known)))
        indices = task.plan.elements.indices if task.plan.elements and self.random.random() < 0.5 else ()
        return Flow().get_task(f"{task.task_id}_{self.random.choice(indices)}") if indices else task

    def _hold(self) -> None:
        task = self._some()
        if task is None:
            return
        with contextlib.suppress(ValidationError):  # it has ended
            task.hold()
            if task.refresh().reason == HELD:
                self.held[task.task_id] = self._lines_of(task)

    def _resume(self) -> None:
        if not self.held:
            return
        held = self.random.choice(sorted(self.held))
        before, task = self.held.pop(held), Flow().get_task(held)
        if self._lines_of(task) != before:
            self._wrong(f"{held}: ran while it was held")
        with contextlib.suppress(ValidationError):  # cancelled, or let go of with its array
            task.resume()
        for other in [one for one in self.held if task.is_array and one.startswith(held)]:
            del self.held[other]
        self.held.pop(held.partition("_")[0], None)  # an array of which something may run

    def _requeue(self) -> None:
        task = self._some()
        if task:
            with contextlib.suppress(ValidationError):  # it does not run
                task.requeue()

    def _lines_of(self, task: Task) -> list[str]:
        lines = self.ledger.read_text().splitlines() if self.ledger.exists() else []
        return [
            line for line in lines if line.split()[0].partition("_")[0] == task.task_id or line.split()[0] == str(task)
        ]

    def _look(self) -> None:
        Flow().tasks(limit=None)

    def _await_the_end(self) -> None:
        """Let go of what is held, cancel what is to be cancelled and was not, and wait until everything has ended."""
        while self.held:
            self._resume()
        for task_id in self.known:
            for task in (Flow().get_task(task_id), *units_of(Flow().get_task(task_id))):
                if task.is_held and not task.status.is_final:
                    with contextlib.suppress(ValidationError):
                        task.resume()
        for task_id, (kind, _) in self.known.items():
            if kind.is_cancelled:
                Flow().get_task(task_id).cancel()
        client = Flow()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while any(not task.status.is_final for task in client.tasks(limit=None)):
            if time.monotonic() > deadline:
                break
            time.sleep(0.03)
        self.violations += self.clients.await_ends(seconds=60)

    # -- killing

    def _start_doomed_scheduler(self) -> None:
        """One that dies at a line of its own, and some of whose runners do."""
        local = self.home / "local"
        local.mkdir(parents=True)
        lines = [int(self.random.uniform(0, 560)) if self.random.random() < 0.4 else None for _ in range(12)]
        own = int(10 ** self.random.uniform(1.5, 4)) if self.random.random() < 0.8 else None
        plan = json.dumps({"scheduler": own, "runners": lines, "cpus": 8})
        self.clients.start_doomed("scheduler", "scheduler", str(self.home), str(local), plan)

    def _kill(self, victim: str) -> None:
        if victim in ("scheduler", "everything"):
            self._kill_holder(self.home / "local" / "scheduler.lock", "scheduler")
        runners = sorted((self.home / "record").glob("*/*/*/runner.lock"))
        living = [lock for lock in runners if is_locked(lock)]
        if victim == "runner":
            living = self.random.sample(living, min(1, len(living)))
        if victim in ("runner", "everything"):
            for lock in living:
                self._kill_holder(lock, "runner")

    def _kill_holder(self, lock: Path, name: str) -> None:
        if not is_locked(lock):
            return
        try:
            pid = int(lock.read_text())
            if os.fsencode(self.folder) in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
                self.kills.append(name)
        except (OSError, ValueError):
            pass  # it ended meanwhile

    def close(self) -> None:
        """End everything that is left of the story."""
        self.clients.close()
        end([found.pid for found in processes_of(self.folder)])
        end(self._hidden())

    # -- judging

    def judge(self) -> None:
        """Hold what is on disk against the promise, seen by several clients, by the command line, and made anew."""
        client = Flow()
        for task in client.tasks(limit=None):
            if task.task_id not in self.known:  # acknowledged, though its submitter died before it could say so
                self.known[task.task_id] = (kind_of(task, KINDS), "")
        tasks = {task_id: client.get_task(task_id) for task_id in self.known}
        first = {task_id: str(task.status) for task_id, task in tasks.items()}
        self._judge_processes()
        self._judge_keys()
        lines = Counter(self.ledger.read_text().splitlines()) if self.ledger.exists() else Counter()
        for line, count in lines.items():
            if count > 1:
                self._wrong(f"{line}: ran {count} times in one attempt")
        for task in tasks.values():
            self._judge_state(task, first)
            for element in units_of(task):
                self._judge_attempts(element, lines)
        self._judge_follower(tasks)
        self._judge_again(first, lines)

    def _judge_processes(self) -> None:
        if not wait_until(lambda: not self._left_over(), seconds=60):
            self._wrong(f"processes stayed behind: {self._left_over()}")

    def _judge_keys(self) -> None:
        records = [json.loads(file.read_bytes()) for file in (self.home / "record").glob("*/record.json")]
        for key, count in Counter(record["idempotency_key"] for record in records).items():
            if key and count > 1:
                self._wrong(f"{key}: {count} tasks were made with one idempotency key")

    def _left_over(self) -> list[str]:
        marked = [str(one) for one in processes_of(self.folder) if self._is_of_a_task(one.pid)]
        return marked + [f"{pid}, without its marks" for pid in self._hidden()]

    def _is_of_a_task(self, pid: int) -> bool:
        try:
            return b"\0FLOW_TASK_ID=task-" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False

    def _hidden(self) -> list[int]:
        """Processes that only their arguments tell: those that took their marks off."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if words[0] == b"sh" and os.fsencode(self.folder) in words and is_alive(int(entry.name)):
                    found.append(int(entry.name))
        return found

    def _judge_state(self, task: Task, states: dict[str, str]) -> None:
        kind, waits = self.known[task.task_id]
        allowed = set(kind.states)
        if waits:
            upstream, _, wanted = waits.partition(":")
            met = wanted in ("ended", "started_or_ended") or (states[upstream] == "completed") == (
                wanted == "completed"
            )
            allowed = allowed if met else {"cancelled"}
        if any(run.attempts and run.attempts[-1].status == "lost" for run in units_of(task)):
            allowed.add("lost")
        if str(task.status) not in allowed:
            self._wrong(f"{task.task_id} {kind.name}: {task.status} ({task.reason}), not {sorted(allowed)}")

    def _judge_attempts(self, task: Task, lines: Counter[str]) -> None:
        attempts = task.attempts
        noted = {tuple(line.split()[1:]) for line in lines if line.split()[0] == task.task_id}
        for attempt in attempts:
            for rank in range(task.plan.nodes):
                folder = self.home / "record" / task.task_id / str(attempt.number) / str(rank)
                report = read_report(folder)
                was_noted = (str(attempt.number), str(rank)) in noted
                if report and report.cause == "exit" and report.code in (0, 3) and not was_noted:
                    self._wrong(f"{folder}: {report}, and the command never ran")
                if was_noted and (report is None or report.started is None):
                    self._wrong(f"{folder}: {report}, and the command ran")
        self.violations += wrong_attempts(task, {int(number) for number, _ in noted})
        self._judge_output(task)

    def _judge_output(self, task: Task) -> None:
        try:
            found = [line.text for line in task.lines(stream="stdout", node=0) if line.attempt == len(task.attempts)]
        except Exception as error:
            self._wrong(f"{task.task_id}: its output cannot be read: {error!r}")
            return
        if task.status == "completed" and found != LINES:
            self._wrong(f"{task.task_id}: completed, and wrote {found}")

    def _judge_follower(self, tasks: dict[str, Task]) -> None:
        """A follower that was not killed saw every line, once."""
        process = self.clients.processes.get("follower")
        if process is None or process.returncode == -signal.SIGKILL:
            return
        text = self.clients.written("follower")
        seen = [re.sub(r"^\[\d+\] ", "", line) for line in text.splitlines()]  # of an array, each has its index
        whole = [line.text.decode() for line in tasks[self.followed].lines(stream="stdout")]
        if sorted(seen) != sorted(whole):
            self._wrong(f"{self.followed}: the follower saw {seen}, written was {whole}")

    def _judge_again(self, first: dict[str, str], lines: Counter[str]) -> None:
        """The same states from the command line, from an index made anew, and from a queue made anew."""
        self._same(first, "by `flow status`", self._by_command_line())
        for path in self.home.glob("index.db*"):
            path.unlink()
        self._same(first, "without its index", {one: str(Flow().get_task(one).status) for one in first})
        if self.random.random() < 0.4:
            for path in self.home.glob("index.db*"):
                path.unlink()
            self._damage_queue()
            with contextlib.redirect_stderr(io.StringIO()):
                self._look()
            client = Flow()
            done = lambda: all(task.status.is_final for task in client.tasks(limit=None))  # noqa: E731
            wait_until(done, seconds=PATIENCE_SECONDS)
            self._same(first, "with its queue damaged", {one: str(Flow().get_task(one).status) for one in first})
        after = Counter(self.ledger.read_text().splitlines()) if self.ledger.exists() else Counter()
        if after != lines:
            self._wrong(f"ran after it had ended: {after - lines}")

    def _damage_queue(self) -> None:
        end([found.pid for found in processes_of(self.folder)])
        path = self.home / "local" / "local.db"
        for log in path.parent.glob("local.db-*"):
            log.unlink()
        path.write_bytes(self.random.choice((b"", b"garbage" * 1000, path.read_bytes()[:4096])))

    def _by_command_line(self) -> dict[str, str]:
        ended = flow("status", "--all", "--json")
        try:
            return {task["task_id"]: task["status"] for task in json.loads(ended.stdout)["tasks"]}
        except (ValueError, LookupError) as error:
            self._wrong(f"`flow status --json`: {error!r} {ended.stdout} {ended.stderr}")
            return {}

    def _same(self, first: dict[str, str], where: str, now: dict[str, str]) -> None:
        for task_id, state in first.items():
            if now.get(task_id) != state:
                self._wrong(f"{task_id} {self.known[task_id][0].name}: was {state}, is {now.get(task_id)} {where}")

    def _wrong(self, what: str) -> None:
        self.violations.append(what)
