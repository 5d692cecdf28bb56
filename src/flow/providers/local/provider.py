"""The local provider: this machine's CPUs and GPUs, a durable queue, no daemon to install."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, TypeVar

from flow.channel import Channel
from flow.dependencies import ended_before
from flow.durable import is_damage, is_full, leave_to_parent, storage_error, writing
from flow.errors import StorageError
from flow.gpus import Gpu
from flow.machines import Allocation, Capabilities, Machines, Node, Offer
from flow.node.asked import REQUEUE, ask
from flow.node.inventory import read_inventory
from flow.node.remains import is_locked
from flow.plan import Plan
from flow.providers import Option
from flow.providers.local.burial import signal_runner
from flow.providers.local.mend import lacks, mend_queue, needs_mending
from flow.providers.local.queue import WAITS_FOR_USER, Queue, Row, suspect_path
from flow.providers.local.rank import loopback, rank_folder
from flow.providers.local.restore import note_given
from flow.providers.local.volumes import LocalVolumes
from flow.providers.local.wake import start_scheduler, wake_scheduler
from flow.record_format import later_intent, read_intent
from flow.status import HELD, Want

_T = TypeVar("_T")


class Local:
    """Tasks as processes of this machine, as this user. `home` is the folder that holds the records."""

    name: ClassVar[str] = "local"
    options: ClassVar[tuple[Option, ...]] = (
        Option("strict", bool, "refuse instance types this machine does not have, in place of emulating them", False),
        Option("cpus", float, "CPUs to give out; default: all that this process may use"),
        Option("gpus", int, "GPUs to give out; default: all"),
        Option("state_dir", Path, "folder for queue and locks, where FLOW_HOME is on a network file system"),
    )

    def __init__(self, home: Path, options: Mapping[str, object]) -> None:
        self.home = home
        self._strict = bool(options.get("strict"))
        self._cpus = options.get("cpus")
        self._gpus = options.get("gpus")
        self.folder = Path(str(options["state_dir"])) if options.get("state_dir") else home / "local"
        self._mine = threading.local()  # a connection for each thread, and what it was opened on

    @property
    def capabilities(self) -> Capabilities:
        """Everything but what costs money."""
        return Capabilities(
            max_nodes=64,
            same_machine=True,
            volumes=True,
            containers=True,
            shared_folder=True,
            arrays=True,
            dependencies=True,
            divides_machines=True,
            emulates=not self._strict,
            retries=True,
        )

    @property
    def volumes(self) -> LocalVolumes:
        """Folders of this machine."""
        return LocalVolumes(self.home, self._has_ended, self._waits_for)

    @property
    def steering(self) -> Local:
        """Itself: it has the queue."""
        return self

    def hold(self, task_id: str) -> None:
        """Take what has not started out of the queue's order."""
        self._ask(lambda queue: queue.ask([task_id], Want.HOLD))
        self._wake()

    def resume(self, task_id: str) -> None:
        """Put it back; the scheduler says what it waits for."""
        self._ask(lambda queue: queue.ask([task_id], Want.RUN))
        self._wake()

    def requeue(self, task_id: str) -> None:
        """Ask each runner to stop for that; the scheduler queues what stopped so."""
        self._ask_runners(task_id, REQUEUE)

    def send_signal(self, task_id: str, number: int, *, to: str) -> None:
        """Ask each runner to pass it on."""
        self._ask_runners(task_id, f"signal {number} {to}")

    def offers(self, gpu: Gpu | None = None) -> list[Offer]:
        """The machine without its GPUs, and with 1, 2, … of each kind it has. Price 0."""
        inventory = read_inventory(cpus=self._number(self._cpus), gpus=self._whole(self._gpus))
        counts: dict[str, int] = {}
        for card in inventory.cards:
            counts[card.kind] = counts.get(card.kind, 0) + 1
        gpus = [Gpu(kind, n) for kind, count in counts.items() for n in range(1, count + 1)]
        wanted: list[Gpu | None] = [one for one in gpus if gpu is None or one.kind == gpu.kind]
        if gpu is None:
            wanted.insert(0, None)
        return [
            Offer(self.name, str(one or "cpu"), one, inventory.cpus, inventory.memory_gb, 0.0, available=1)
            for one in wanted
        ]

    def allocate(self, plan: Plan, attempt: int = 1) -> None:
        """Queue the plan; later attempts are the scheduler's own doing."""
        self._ask(lambda queue: queue.add(plan, wanted=lambda: self._wanted(plan)))
        note_given(self.home, self.folder, plan.task_id)
        self._wake()

    def allocations(self, task_ids: Collection[str] | None = None) -> list[Allocation]:
        """From the queue's rows; a scheduler that is needed and not alive is started."""
        rows = self._rows(task_ids)
        if not rows:
            return []
        if any(row.state not in ("ended", *WAITS_FOR_USER) or row.cancel for row in rows) and not is_locked(
            self.folder / "scheduler.lock"
        ):
            with contextlib.suppress(OSError):  # no room: what there is can be read all the same
                start_scheduler(self.folder, self.home, self._limits())
        created = self._ask(lambda queue: queue.created({row.base for row in rows}))
        places = self._ask(lambda queue: queue.places(rows))
        return [self._allocation(row, *created[row.base], places.get(row.id, 0)) for row in rows]

    def _rows(self, task_ids: Collection[str] | None) -> list[Row]:
        """The queue's rows; what it has lost of the tasks asked for (its log was removed, say) is put back."""
        may_have = self._has_queue() or (task_ids is None and needs_mending(self.home, self.folder))
        rows = self._ask(lambda queue: queue.rows(task_ids)) if may_have else []
        missing = {one.partition("_")[0] for one in task_ids or ()} - {row.base for row in rows}
        if missing and lacks(self.home, self.folder, missing):
            self._mend()
            rows = self._ask(lambda queue: queue.rows(task_ids))
        return rows

    def release(self, *task_ids: str) -> None:
        """End the tasks and their processes; the scheduler does it, and is woken for it."""
        bases = {task_id.partition("_")[0] for task_id in task_ids}
        missing = bases - (self._ask(lambda queue: queue.created(bases)).keys() if self._has_queue() else set())
        if missing and lacks(self.home, self.folder, missing):
            self._mend()
        elif missing == bases:
            return
        self._ask(lambda queue: queue.ask(task_ids, Want.CANCEL))
        self._wake()

    def channel(self, allocation: Allocation, rank: int = 0) -> Channel:
        """This machine: nothing stands before the command."""
        return Channel()

    def _allocation(self, row: Row, created: float, plan_hash: str, place: int) -> Allocation:
        machines = {"started": Machines.UP, "ended": Machines.GONE}.get(row.state, Machines.QUEUED)
        if _never_starts(row):
            machines, row = Machines.GONE, replace(row, reason=row.reason if row.state == "ended" else "")
        return Allocation(
            task_id=row.id,
            attempt=row.attempt,
            machines=machines,
            nodes=self._nodes(row) if row.state == "started" else (),
            reason=row.reason or self._waiting_reason(row, place),
            created=created,
            price_per_hour=0.0,
            plan_hash=plan_hash,
            reports=row.reports,
        )

    def _nodes(self, row: Row) -> tuple[Node, ...]:
        count = self._ask(lambda queue: queue.plan(row.base)).nodes
        folders = [str(rank_folder(self.home, row.id, row.attempt, rank)) for rank in range(count)]
        return tuple(Node(rank, f"local-{rank}", loopback(rank), folder=at) for rank, at in enumerate(folders))

    def _ask_runners(self, task_id: str, line: str) -> None:
        for row in self._rows([task_id]):
            for node in self._nodes(row) if row.state == "started" and task_id in (row.id, row.base) else ():
                with contextlib.suppress(FileNotFoundError):  # it removed its own folder
                    ask(node.folder, line)
                    signal_runner(Path(node.folder), None, signal.SIGUSR1)

    def _waiting_reason(self, row: Row, place: int) -> str:
        if row.state == "queued":
            return f"queued: {place} ahead"
        if row.state == "throttled":
            return "queued: its array runs as many as it may"
        if row.state == "later" and row.not_before:
            return f"begins {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(row.not_before))}"
        if row.state == "waiting":
            plan = self._ask(lambda queue: queue.plan(row.base))
            return "waits for " + (" or " if plan.after_any else ", ").join(map(str, plan.after))
        if row.state == "held":
            return HELD
        return ""

    def _has_ended(self, task_id: str) -> bool | None:
        """Whether a task, array or element has; None where it is not on record."""
        base = task_id.partition("_")[0]
        if self._has_queue() and self._ask(lambda queue: queue.holds(base)):
            return all(row.state == "ended" or _never_starts(row) for row in self._rows([task_id]))
        record = self.home / "record" / base
        if not (record / "record.json").exists():
            return None
        intent = read_intent(record)
        return (record / "final.json").exists() or bool(intent and intent.want is Want.CANCEL)

    def _waits_for(self, plan: Plan) -> set[str]:
        """The tasks that have ended before this one starts."""
        return ended_before(plan, self._plan_of)

    def _plan_of(self, base: str) -> Plan | None:
        is_here = self._has_queue() and self._ask(lambda queue: queue.holds(base))
        return self._ask(lambda queue: queue.plan(base)) if is_here else None

    def _wanted(self, plan: Plan) -> list[tuple[str, Want]]:
        """What the user has asked of a task or array, or of elements of it, since it was submitted."""
        record, elements = self.home / "record", plan.elements.indices if plan.elements else ()
        touched = [f"{plan.task_id}_{one}" for one in elements if os.path.isdir(f"{record}/{plan.task_id}_{one}")]  # noqa: PTH112  # may be 10,000
        whole = read_intent(record / plan.task_id)
        intents = [(one, later_intent(read_intent(record / one), whole)) for one in touched]
        return [(task_id, intent.want) for task_id, intent in ((plan.task_id, whole), *intents) if intent]

    def _wake(self) -> None:
        with writing(self.home):
            wake_scheduler(self.folder, self.home, self._limits())

    # -- the queue

    def _ask(self, question: Callable[[Queue], _T]) -> _T:
        """Ask the queue; again, if it was replaced meanwhile, and after it was rebuilt where it is damaged."""
        failures = 0
        while True:
            try:
                answer, asked = question(self._open()), self._mine.stamp
                return answer if asked == self._stamp() else question(self._open())
            except sqlite3.DatabaseError as error:
                failures += 1
                if failures > 2 or not self._is_answered(error, is_first=failures == 1):
                    raise self._unusable(error) from error

    def _is_answered(self, error: sqlite3.DatabaseError, *, is_first: bool) -> bool:
        """Whether the same may be asked again."""
        text, stamp = str(error).lower(), getattr(self._mine, "stamp", None)
        self._mine.queue = None
        if "readonly" in text and stamp != self._stamp():  # the file was replaced under us
            return True
        if not is_damage(error) or is_full(self.folder):
            return False
        if "disk i/o" not in text or not is_first:  # those may pass
            self._mend()
        return True

    def _mend(self) -> None:
        self._mine.queue = None
        try:
            mend_queue(self.home, self.folder)
        except sqlite3.DatabaseError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: sqlite3.DatabaseError) -> StorageError:
        if "full" in str(error) or is_full(self.folder):
            return storage_error(self.home, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        return StorageError(
            f"the local queue `{self.folder / 'local.db'}` cannot be used: {error}",
            suggestions=["check the disk's space and the folder's permissions"],
        )

    def _has_queue(self) -> bool:
        return (self.folder / "local.db").exists()

    def _open(self) -> Queue:
        """This thread's connection, on the file that is there now."""
        queue: Queue | None = getattr(self._mine, "queue", None)
        stamp = self._stamp()
        if queue and self._mine.stamp == stamp and not suspect_path(queue.path).exists():
            return queue
        if queue and self._mine.stamp[0] != stamp[0]:
            leave_to_parent(queue.db)
        if needs_mending(self.home, self.folder):
            self._mend()
        with writing(self.home):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        queue = self._mine.queue = Queue(self.folder / "local.db")
        self._mine.stamp = self._stamp()
        return queue

    def _stamp(self) -> tuple[int, int]:
        """Another one when the queue must be opened again: in a forked process, or on a new file."""
        try:
            return os.getpid(), (self.folder / "local.db").stat().st_ino
        except OSError:
            return os.getpid(), 0

    def _limits(self) -> dict[str, float | None]:
        return {"cpus": self._number(self._cpus), "gpus": self._whole(self._gpus)}

    @staticmethod
    def _number(value: object) -> float | None:
        return None if value is None else float(str(value))

    @staticmethod
    def _whole(value: object) -> int | None:
        return None if value is None else int(str(value))


def _never_starts(row: Row) -> bool:
    """Whether it was cancelled before its first attempt: the scheduler looks at that first, whenever it comes to it."""
    return row.cancel is not None and row.attempt == 0
