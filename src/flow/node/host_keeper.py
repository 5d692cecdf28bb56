"""Gives the tasks of one host their turn: CPUs, memory and GPUs, by priority and arrival. `host_keeper.py ROOT`.

Started with the first task, gone ten seconds after the last; one at a time. All that it knows is in files: when it is
killed, the next one goes on. Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import select
import shutil
import signal
import sys
import time
from collections import Counter
from functools import partial
from typing import Any, Callable

_PACKAGE = f"{__package__}." if __package__ else ""
answers, remains, inventory = (importlib.import_module(_PACKAGE + one) for one in ("answers", "remains", "inventory"))
host, host_job, facts = (importlib.import_module(_PACKAGE + one) for one in ("host", "host_job", "host_facts"))
importlib.import_module(_PACKAGE + "runner")  # loaded once for all that are forked

LINGER_SECONDS = 10
LACK_SECONDS = 20.0  # for what a rented machine was bought with to show
LOOK_SECONDS = 1.0  # between looks at runners that another keeper started, and at what waits for a time
SIGN_SECONDS = 60.0  # between two signs of life of what runs, by which it is known when it died with the host
AGAIN_SECONDS = 5.0  # before a start is tried again that came to nothing, as on a full disk


class Unit:
    """A task, or an element of an array, that has not ended."""

    def __init__(self, folder: str, index: int | None, meta: dict[str, Any]) -> None:
        self.folder, self.index, self.meta = folder, index, meta
        self.pid = 0  # of our child that runs it
        self.runs = False
        self.is_broken = False  # its last attempt has died without a report: that is to be noted
        self.gpus: list[int] = []  # that it has while it runs, or something of it may
        self.not_before: float = meta["not_before"]
        self.again_at = 0.0  # after a start that came to nothing

    @property
    def turn(self) -> tuple[int, int, int]:
        """What the order goes by."""
        return (*host.turn(self.meta), self.index or 0)

    def last_rank(self) -> str:
        """The task folder of its last start here; "" before the first."""
        starts = answers.attempts(self.folder)
        return os.path.join(self.folder, str(starts[-1]), str(self.meta["rank"])) if starts else ""

    @property
    def is_to_be_noted(self) -> bool:
        """Whether there is something to write down of it, before its next turn or in place of that."""
        return not self.runs and (self.is_broken or host.is_noted(self.folder, "cancel"))


class Room:
    """What is free of a machine: its CPUs, memory in GB, and GPUs but those of `taken`."""

    def __init__(self, machine: Any, taken: set[int]) -> None:
        self.cpus, self.memory = machine.cpus, machine.memory_gb
        self._cards = [one for one in machine.cards if one.index not in taken]

    def take(self, meta: dict[str, Any]) -> tuple[bool, list[int]]:
        """Keep what a task needs from the next ones: whether that is there, and which GPUs it is."""
        free = [one for one in self._cards if meta["gpu_kind"] in (None, "gpu", one.kind)] if meta["gpus"] else []
        memory, taken = meta["memory_gb"] or 0, free[: meta["gpus"]]
        fits = self.cpus >= meta["cpus"] and self.memory >= memory and len(free) >= meta["gpus"]
        self.cpus, self.memory = self.cpus - meta["cpus"], self.memory - memory
        self._cards = [one for one in self._cards if one not in taken]
        return fits, [one.index for one in taken]


class Keeper:
    """`root` is the folder of the host's tasks; `umask` is that of their commands."""

    def __init__(self, root: str, *, umask: int) -> None:
        self.root, self.umask = root, umask
        self.units: dict[str, Unit] = {}  # by name
        self.tasks: set[str] = set()  # that were read
        self.machine = inventory.read_inventory()
        self.gate = answers.read(root, "gate").strip()  # a file without which nothing starts
        self.lent: set[int] = set()  # GPUs that other users' tasks have
        self.began = self.idle_since = self.signed_at = time.monotonic()
        try:
            os.mkfifo(os.path.join(root, "wake"), 0o600)
        except FileExistsError:
            pass
        self.wake = os.open(os.path.join(root, "wake"), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wake)
        os.set_blocking(self.wake, False)

    def run(self, own: int) -> None:
        """Until there is nothing to do; `own` is the lock that says that it lives."""
        while True:
            self._reap()
            self._see_asked()
            self._look_at_adopted()
            self._sign()
            self._give_turns()
            if self.units:
                self.idle_since = time.monotonic()
            elif time.monotonic() - self.idle_since > LINGER_SECONDS and self._leaves(own):
                return
            self._pause()

    def _pause(self) -> None:
        waits = [max(one.not_before, one.again_at) - time.time() for one in self.units.values() if not one.runs]
        waits += [LOOK_SECONDS for one in self.units.values() if one.runs and not one.pid]
        waits += [LOOK_SECONDS] if self.lent or self.gate else []  # nobody tells when they are given back, or it opens
        waits += [] if self.units else [LINGER_SECONDS]
        waits += [SIGN_SECONDS] if any(one.runs for one in self.units.values()) else []
        soon = [one for one in waits if one > 0]
        select.select([self.wake], [], [], min(soon) if soon else None)
        try:
            os.read(self.wake, 65536)
        except BlockingIOError:
            pass

    def _leaves(self, own: int) -> bool:
        """Go, unless something came at the last moment: who submits looks for us under the same lock."""
        with open(os.path.join(self.root, "start.lock"), "a") as lock:
            answers.lock(lock)
            self._see_asked()
            if self.units:
                return False
            os.close(own)
            return True

    # -- what there is

    def read_all(self) -> None:
        """All that has not ended."""
        for task_id in host.queued(self.root):
            self._read(task_id)

    def _read(self, task_id: str) -> None:
        base = os.path.join(self.root, "tasks", task_id)
        text = answers.read(base, "meta.json")
        is_open = os.path.exists(os.path.join(self.root, "queue", task_id))
        if task_id in self.tasks or not text or not is_open:
            return
        meta = json.loads(text)
        self.tasks.add(task_id)
        for index in meta["indices"] or [None]:
            name = task_id if index is None else f"{task_id}_{index}"
            unit = Unit(os.path.join(self.root, "tasks", name), index, meta)
            if not answers.read(unit.folder, "ended"):
                self.units[name] = unit
                self._adopt(unit)
        self._forget_ended(task_id)

    def _adopt(self, unit: Unit) -> None:
        """One that runs already, or whose processes do."""
        folder = unit.last_rank()
        if folder and remains.is_alive(folder):
            unit.runs, unit.gpus = True, given_gpus(folder)
        elif is_broken(folder):
            unit.is_broken, unit.gpus = True, given_gpus(folder)

    def _see_asked(self) -> None:
        """What clients have left for us: new tasks, and those of which an end or a wait is asked."""
        folder = os.path.join(self.root, "asked")
        for name in answers.listed(folder):
            if "." in name:
                continue
            os.unlink(os.path.join(folder, name))
            self._read(name.partition("_")[0])
            for one in [name] if name in self.units else self._of_array(name):
                unit = self.units[one]
                if unit.runs and host.is_noted(unit.folder, "cancel"):
                    self._tell(unit)
                unit.not_before = 0 if host.is_noted(unit.folder, "cancel") else unit.not_before

    def _of_array(self, task_id: str) -> list[str]:
        return [name for name in self.units if name.partition("_")[0] == task_id]

    def _tell(self, unit: Unit) -> None:
        """SIGTERM to the runner, which ends the command within its grace time."""
        pid = unit.pid or answers.read_status(unit.last_rank()).get("runner_pid")
        if pid and (unit.pid or remains.is_locked(os.path.join(unit.last_rank(), "runner.lock"))):
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                pass

    # -- turns

    def _give_turns(self) -> None:
        """Start what fits, in order: what does not keeps its part from those behind it."""
        if self.gate and not os.path.exists(self.gate):
            return
        room = self._room()
        running = Counter(array_of(name) for name, unit in self.units.items() if unit.runs)
        for unit in self.units.values():
            if unit.again_at <= time.time() and unit.is_to_be_noted:
                self._start(unit, host_job.settle)  # which needs no room but what it has
        for name, unit in sorted(self.units.items(), key=lambda item: item[1].turn):
            if unit.runs or unit.again_at > time.time() or self._waits(unit, running[array_of(name)]):
                continue
            fits, gpus = room.take(unit.meta)
            lacks = "" if fits else self._lacks(unit.meta)
            if fits or lacks:
                unit.gpus = gpus
                given = gpus if self.machine.cards else None
                self._start(unit, partial(host_job.run, gpus=given, umask=self.umask, lacks=lacks))
                running[array_of(name)] += 1
            if room.cpus <= 0:
                break

    def _room(self) -> Room:
        """What nobody has."""
        own = [card for unit in self.units.values() for card in unit.gpus]
        self.lent = set(facts.gpus_taken([one.index for one in self.machine.cards])).difference(own)
        room = Room(self.machine, {*own, *self.lent})
        for unit in self.units.values():
            if unit.runs or unit.is_broken:
                room.take({**unit.meta, "gpus": 0})
        return room

    def _lacks(self, meta: dict[str, Any]) -> str:
        """What a rented machine will never have for its task, so that it is not paid for in vain; "" for none."""
        if not self.gate or Room(self.machine, set()).take(meta)[0]:
            return ""
        self.machine = inventory.read_inventory()  # a driver may come late
        if time.monotonic() - self.began < LACK_SECONDS or Room(self.machine, set()).take(meta)[0]:
            return ""
        memory = f"{meta['memory_gb']:g} GB, " if meta["memory_gb"] else ""
        has = f"{_count(self.machine.cpus, 'CPU')}, {self.machine.memory_gb:g} GB and "
        asked = f"{_count(meta['cpus'], 'CPU')}, {memory}{_count(meta['gpus'], 'GPU')} are asked for"
        return f"the machine has {has}{_count(len(self.machine.cards), 'GPU')}: {asked}"

    def _waits(self, unit: Unit, running: int) -> bool:
        limit = unit.meta["at_once"]
        is_full = limit is not None and running >= limit
        is_kept = host.is_noted(unit.folder, "hold")
        is_kept = is_kept or (unit.meta["is_gang"] and not os.path.exists(os.path.join(unit.folder, "lease")))
        return is_full or is_kept or unit.not_before > time.time()

    def _start(self, unit: Unit, act: Callable[[str, str, int | None], object]) -> None:
        """A process of its own for the attempt, or for a note, which may take long, as it ends what is left."""
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.setsid()
                act(os.path.join(self.root, "tasks"), unit.folder, unit.index)
                code = 0
            except BaseException as error:  # it must not go on as a second keeper
                print(f"{unit.folder}: {error!r}", file=sys.stderr, flush=True)  # noqa: T201
            finally:
                os._exit(code)
        unit.pid, unit.runs = pid, True

    # -- ends

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for name, unit in list(self.units.items()):
                if unit.pid == pid:
                    unit.pid = 0
                    if status == 1 << 8:  # as on a full disk
                        unit.again_at = time.time() + AGAIN_SECONDS
                    self._see_end(name, unit)

    def _look_at_adopted(self) -> None:
        for name, unit in list(self.units.items()):
            if unit.runs and not unit.pid:
                self._see_end(name, unit)

    def _see_end(self, name: str, unit: Unit) -> None:
        """Where nothing of it is alive any more: it has ended, or waits for its next turn."""
        folder = unit.last_rank()
        if folder and remains.is_alive(folder):
            if not remains.is_locked(os.path.join(folder, "runner.lock")):
                remains.kill_left_over(folder)  # it is looked at again
            return
        unit.runs = False
        was_broken, unit.is_broken = unit.is_broken, is_broken(folder)
        if not unit.is_broken:
            unit.gpus = []
        elif not was_broken:
            self._sign_for(folder)
        if answers.read(unit.folder, "ended"):
            del self.units[name]
            self._forget_ended(name.partition("_")[0])

    def _sign(self) -> None:
        """Leave a sign of life with what runs."""
        if time.monotonic() - self.signed_at >= SIGN_SECONDS:
            self.signed_at = time.monotonic()
            for unit in self.units.values():
                if unit.runs and not unit.is_broken:
                    self._sign_for(unit.last_rank())

    def _sign_for(self, folder: str) -> None:
        with contextlib.suppress(OSError):  # it did not begin yet
            os.utime(os.path.join(folder, "runner.lock"))

    def _forget_ended(self, task_id: str) -> None:
        if not self._of_array(task_id):
            self.tasks.discard(task_id)
            shutil.rmtree(os.path.join(self.root, "tasks", task_id, "inbox"), ignore_errors=True)  # secrets
            os.unlink(os.path.join(self.root, "queue", task_id))


def _count(number: float, what: str) -> str:
    return f"{number:g} {what}{'s' * (number != 1)}"


def array_of(name: str) -> str:
    """The task of an element, also where it was given to this host later than others."""
    return remains.task_of(name).partition("_")[0]  # type: ignore[no-any-return]


def is_broken(folder: str) -> bool:
    """Whether the attempt in this task folder, which is not alive, has left no report of its end."""
    return bool(folder) and answers.read_status(folder).get("phase") != "ended"


def given_gpus(folder: str) -> list[int]:
    """The GPUs that the rank in this task folder was given."""
    try:
        return list(json.loads(answers.read(folder, "task.json"))["given_gpus"])
    except (ValueError, LookupError):
        return []


def main(root: str) -> None:
    """Keep the host's tasks, unless another one does."""
    own = os.open(os.path.join(root, "keeper.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    umask = os.umask(0o77)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    keeper = Keeper(root, umask=umask)
    keeper.read_all()
    keeper.run(own)


if __name__ == "__main__":
    main(sys.argv[1])
