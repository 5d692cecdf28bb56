"""The scheduler: one process, alive while there is work; gives out CPUs and GPUs, starts runners, keeps their ends.

What it imports is paid at each fork: `threading` and `random` (behind `logging`, `subprocess`, `tempfile`) do work in
the child. They are imported where they are needed, if ever.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import signal
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from flow.durable import boot_id, take_lock, unlock
from flow.machines import Report
from flow.mounts import VOLUME
from flow.node.inventory import Inventory, read_inventory
from flow.outbox import empty_outbox
from flow.plan import Plan
from flow.providers.local import burial
from flow.providers.local.queue import Queue, Row, note_damage
from flow.providers.local.rank import new_meeting, rank_folder, write_job
from flow.providers.local.volumes import let_go, volume_path
from flow.providers.local.waiting import Waiting
from flow.providers.local.wake import open_fifo
from flow.providers.local.workers import Workers
from flow.status import TaskStatus, Want, attempt_outcome, read_report

_LINGER_SECONDS = 10.0  # without work, before leaving: the next submit finds it warm
_ADOPTED_POLL_SECONDS = 0.1  # runners that are not our children tell their end by their lock only
_RETRY_START_SECONDS = 2.0  # after a start that failed here (a full disk)
_FULL_POLL_SECONDS = 1.0
_FIRST_LOOK, _LONGEST_LOOK = 16, 4096  # rows of the queue that are tried for what is free
_SPARE_BYTES = 256 * 1024
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_MOST_STARTS = 3  # of one attempt whose runner dies before it runs anything
_STOP_SLACK_SECONDS = 10.0  # over the grace time, before a runner that does not end is killed


@dataclass(slots=True)
class _Attempt:
    """One attempt that runners are working on. `pids` holds those that are ours."""

    row: Row
    plan: Plan
    pids: dict[int, int] = field(default_factory=dict)
    reports: dict[int, Report] = field(default_factory=dict)  # of the ranks that ended
    stop_sent: float | None = None  # monotonic


def run(home: Path, folder: Path, starting: int, *, cpus: float | None = None, gpus: int | None = None) -> None:
    """Serve the queue in `folder` until there is no work; returns soon where another scheduler does.

    `starting`: the descriptor of `start.lock`, to be closed once we listen.
    """
    lock = take_lock(folder / "scheduler.lock", wait_seconds=2.0)
    if lock is None:
        return
    fifo = open_fifo(folder / "wake")
    unlock(starting)
    inventory = read_inventory(cpus=cpus, gpus=gpus)
    try:
        while not _serve(home, folder, inventory, fifo=fifo):
            time.sleep(_FULL_POLL_SECONDS)
            fifo = open_fifo(folder / "wake")
    finally:
        os.close(lock)


def _serve(home: Path, folder: Path, inventory: Inventory, *, fifo: int) -> bool:
    """Serve the queue; False where it is to be tried again: a full disk, a client stopped in the middle of a write.

    Running tasks go on.
    """
    spare = folder / "spare"
    try:
        with contextlib.closing(Scheduler(home, folder, inventory, fifo)) as scheduler:
            _keep_room(spare)
            scheduler.serve()
    except sqlite3.DatabaseError as error:
        _log(f"queue `{folder / 'local.db'}`: {error}")
        note_damage(folder / "local.db", error)
        with contextlib.suppress(OSError):
            spare.unlink(missing_ok=True)
        return not any(word in str(error) for word in ("full", "locked"))  # else the next flow command mends it
    return True


def _keep_room(spare: Path) -> None:
    """Room for the ends of tasks that fill the disk; none is taken while the disk is as good as full."""
    with contextlib.suppress(OSError):
        disk = os.statvfs(spare.parent)
        if not spare.exists() and disk.f_bavail * disk.f_frsize > 4 * _SPARE_BYTES:
            spare.write_bytes(bytes(_SPARE_BYTES))


class Scheduler:
    """What the one scheduler process knows. Single-threaded: it forks."""

    def __init__(self, home: Path, folder: Path, inventory: Inventory, fifo: int) -> None:
        self.home = home
        self.folder = folder
        self.queue = Queue(folder / "local.db")
        self.inventory = inventory
        self.attempts: dict[str, _Attempt] = {}
        self.workers = Workers()
        self.waiting = Waiting(home, self.queue)
        self.by_pid: dict[int, tuple[str, int]] = {}  # the rank that a runner of ours works on
        self.leaving = False
        self.start_again_at = 0.0
        self.unstarted: dict[str, int] = {}
        self.fifo = fifo
        self.signals = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self) -> None:
        """The loop: reap, cancel, release what waited, start; then sleep until something happens."""
        signal.set_wakeup_fd(self.signals[1], warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._leave)
        self._recall_wants()
        self._adopt()
        gc.freeze()  # so that a forked runner's collector leaves our pages shared
        idle_since = time.monotonic()
        while not self.leaving:
            self.tick()
            if self.attempts or self.queue.has_work():
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > _LINGER_SECONDS:
                self._forget_pruned()  # now, while clients can still wake us: it may take a second or two
                self._close_fifo()  # from here on a client that wakes us starts another
                if not self.queue.has_work():
                    return
                self.fifo = open_fifo(self.folder / "wake")
            self._sleep(self._pause())

    def close(self) -> None:
        """Let go of what is open."""
        signal.set_wakeup_fd(-1)
        self.workers.close()
        for descriptor in self.signals:
            os.close(descriptor)
        self._close_fifo()
        self.queue.close()

    def _close_fifo(self) -> None:
        if self.fifo >= 0:
            os.close(self.fifo)
        self.fifo = -1

    def tick(self) -> None:
        """One round: what ended, what is to end, what may start. One commit, then the runners are told."""
        ended = self._ended_attempts()
        with self.queue.transaction():
            for attempt in ended:
                self._settle_or_lose(attempt)
            self._cancel()
            for row, reason in self.waiting.release():
                self._end(row, {}, reason=reason, now=time.time())
            starting = self._choose()
        for attempt in starting:
            self._start(attempt)

    def _forget_pruned(self) -> None:
        try:
            self.queue.forget_pruned(self.home / "record")
        except (OSError, sqlite3.OperationalError) as error:  # no room, or no records: another time
            _log(f"the queue keeps what was pruned: {error}")

    def _leave(self, *_: object) -> None:
        self.leaving = True

    def _sleep(self, seconds: float) -> None:
        wakes = (self.fifo, self.signals[0])
        waiter = select.poll()  # `select` takes no descriptor over 1023
        for descriptor in (*wakes, *self.workers.links()):
            waiter.register(descriptor, select.POLLIN)
        for descriptor, _ in waiter.poll(seconds * 1000):
            if descriptor in wakes:
                try:
                    os.read(descriptor, 65536)
                except BlockingIOError:
                    pass

    def _pause(self) -> float:
        """How long nothing needs us unless we are woken."""
        if self.waiting.has_news:
            return 0.0
        pause = _LINGER_SECONDS / 4
        if any(len(a.pids) < a.plan.nodes - len(a.reports) or a.stop_sent for a in self.attempts.values()):
            pause = _ADOPTED_POLL_SECONDS
        if self.start_again_at:
            pause = min(pause, max(self.start_again_at - time.monotonic(), 0.01))
        later = self.queue.next_time()
        return pause if later is None else min(pause, max(later - time.time(), 0.001))

    # -- attempts under way

    def _recall_wants(self) -> None:
        """Once after each start of the machine: only that can have taken rows back."""
        note = self.folder / "boot"
        boot = boot_id()
        try:
            if boot and note.read_text() == boot:
                return
        except (OSError, ValueError):
            pass
        from flow.providers.local.restore import recall_wants

        recall_wants(self.home, self.queue)
        with contextlib.suppress(OSError):
            note.write_text(boot)

    def _adopt(self) -> None:
        """Take over what an earlier scheduler had started."""
        for row in self.queue.in_state("started"):
            try:
                self.attempts[row.id] = _Attempt(row, self.queue.plan(row.base))
            except (ValueError, TypeError, LookupError) as error:  # a damaged row
                self._lose(row, error)

    def _ended_attempts(self) -> list[_Attempt]:
        """The attempts all of whose ranks have ended, their reports read."""
        touched = self._reap()
        for attempt in self.attempts.values():
            if len(attempt.pids) + len(attempt.reports) < attempt.plan.nodes:
                touched.add(attempt.row.id)
        ended = []
        for task_id in touched:
            attempt = self.attempts[task_id]
            for rank in range(attempt.plan.nodes):
                if rank not in attempt.reports and rank not in attempt.pids:
                    self._look(attempt, rank)
            is_short = any(burial.is_loss(report) for report in attempt.reports.values())
            if is_short and self._start_rest(attempt):
                continue
            if len(attempt.reports) == attempt.plan.nodes:
                ended.append(attempt)
            elif is_short:
                self._stop(attempt)
        return ended

    def _reap(self) -> set[str]:
        """The tasks of which a runner that we forked has ended."""
        touched = set()
        for pid in self.workers.ended():
            task_id, rank = self.by_pid.pop(pid)
            self.attempts[task_id].pids.pop(rank, None)
            touched.add(task_id)
        return touched

    def _look(self, attempt: _Attempt, rank: int) -> None:
        """What became of a rank that is not our living child: still running, ended, or dead without a word."""
        folder = rank_folder(self.home, attempt.row.id, attempt.row.attempt, rank)
        report = burial.last_word(folder, attempt.row.id, attempt.row.attempt, cancelled=attempt.row.cancel is not None)
        if report is not None:
            attempt.reports[rank] = report

    def _settle_or_lose(self, attempt: _Attempt) -> None:
        """What one task left behind must not end the scheduler of all."""
        try:
            self._settle(attempt)
        except (ValueError, TypeError, LookupError, AssertionError) as error:
            self._lose(attempt.row, error)

    def _lose(self, row: Row, error: Exception) -> None:
        _log(f"{row.id}: {error!a}")
        self.attempts.pop(row.id, None)
        self._end(row, {}, reason=f"its end cannot be told: {error!a}", now=time.time())

    def _settle(self, attempt: _Attempt) -> None:
        """An attempt ended: the row ends with it, or is queued for the next one."""
        row, plan, now = attempt.row, attempt.plan, time.time()
        del self.attempts[row.id]
        reports = attempt.reports
        if all(burial.never_ran(report) for report in reports.values()):
            self._start_again(row, reports, now)
            return
        outcome = attempt_outcome(reports, plan.nodes, attempt=row.attempt)
        if outcome is None:  # cannot be: every rank is there and ended
            raise AssertionError(f"{row.id}: {reports}")
        used = row.used_seconds + max((report.ran_seconds for report in reports.values()), default=0.0)
        may_retry = outcome.state in (TaskStatus.FAILED, TaskStatus.LOST) and row.failures < plan.retries
        is_requeued = outcome.state is TaskStatus.PREEMPTED
        if not (may_retry or is_requeued):
            self._end(row, reports, reason=outcome.reason, now=now)
        elif row.cancel is not None:  # as it is where the cancel comes a moment after the retry
            self._end(row, {}, reason="cancelled", now=now)
        elif is_requeued:
            self.queue.requeue(row, reason=f"attempt {row.attempt} requeued; runs again", is_held=self._is_held(row))
        else:
            reason = f"attempt {row.attempt} {outcome.state}: {outcome.reason}; runs again"
            self.queue.retry(row, used_seconds=used, reason=reason, is_held=self._is_held(row))

    def _is_held(self, row: Row) -> bool:
        """Whether the user holds a row that ran, and is to run again; it gives its place in an array away, then."""
        from flow.providers.local.restore import want_of

        is_held = want_of(self.home / "record", row.id, row.base) is Want.HOLD
        if is_held:
            self.waiting.note_hold(row)
        return is_held

    def _start_again(self, row: Row, reports: dict[int, Report], now: float) -> None:
        """Its runners died before they ran anything: the same attempt again, a little later, but not for ever."""
        if row.cancel is not None:
            self._end(row, {}, reason="cancelled", now=now)
            return
        self.unstarted[row.id] = self.unstarted.get(row.id, 0) + 1
        if self.unstarted[row.id] > _MOST_STARTS:
            folders = {rank: rank_folder(self.home, row.id, row.attempt, rank) for rank in reports}
            reports = {rank: burial.give_up(folder) for rank, folder in folders.items()}
            self._end(row, reports, reason=f"its runner died {_MOST_STARTS} times before it could start", now=now)
            return
        self.start_again_at = time.monotonic() + _RETRY_START_SECONDS
        self.queue.take_back(row, "waits: its runner died before it could start")

    def _end(self, row: Row, reports: dict[int, Report], *, reason: str, now: float) -> None:
        self.queue.end(row, reports, reason=reason, now=now)
        self.waiting.note_end(row)
        try:
            self._let_go(row)
        except (OSError, ValueError, TypeError, LookupError, sqlite3.DatabaseError) as error:
            _log(f"{row.id}: what it held stays: {error!a}")

    def _let_go(self, row: Row) -> None:
        """Of a task or array that has ended for good: its secrets, and the volumes that it held."""
        plan = self.queue.plan(row.base)
        if not (plan.mounts or plan.image) or self.queue.is_open(row.base):
            return
        empty_outbox(self.home / "record" / row.base)
        for mount in plan.mounts:
            if mount.kind == VOLUME:
                let_go(volume_path(self.home, mount.source).parent, row.base)

    # -- what users ask

    def _cancel(self) -> None:
        for row in self.queue.cancelled():
            attempt = self.attempts.get(row.id)
            if attempt:
                attempt.row = row
                self._stop(attempt)
            else:
                self._end(row, {}, reason="" if row.attempt else "cancelled before it started", now=time.time())

    def _stop(self, attempt: _Attempt) -> None:
        """Tell the runners to stop; kill those that do not in time. Asked again at every tick."""
        now = time.monotonic()
        late = attempt.stop_sent and now > attempt.stop_sent + attempt.plan.grace_seconds + _STOP_SLACK_SECONDS
        if attempt.stop_sent and not late:
            return
        attempt.stop_sent = now
        for rank in range(attempt.plan.nodes):
            if rank not in attempt.reports:
                folder = rank_folder(self.home, attempt.row.id, attempt.row.attempt, rank)
                self.workers.spoil(attempt.pids.get(rank))
                burial.signal_runner(folder, attempt.pids.get(rank), signal.SIGKILL if late else signal.SIGTERM)

    # -- starting

    def _choose(self) -> list[_Attempt]:
        """The queued rows that what is free can carry, in order; their GPUs given.

        A row that does not fit keeps what it lacks: nothing behind it may take of that, so it is never overtaken for
        ever, while rows that need only other things go on.
        """
        if time.monotonic() < self.start_again_at:
            return []
        self.start_again_at = 0.0
        cpus, memory, cards = self._free()
        chosen: list[_Attempt] = []
        if cpus <= 0:
            return chosen
        for row in self._in_turn():
            try:
                plan = self.queue.plan(row.base)
            except (ValueError, TypeError, LookupError) as error:  # a damaged row
                self._lose(row, error)
                continue
            need_cpus = min(plan.cpus * plan.nodes, self.inventory.cpus)
            need_memory = min((plan.memory_gb or 0.0) * plan.nodes, self.inventory.memory_gb)
            need_cards = min(plan.gpus * plan.nodes, len(self.inventory.cards))
            if need_cpus > cpus or need_memory > memory or need_cards > len(cards):
                cpus, memory = (0 if need_cpus > cpus else cpus), (0 if need_memory > memory else memory)
                cards = [] if need_cards > len(cards) else cards
                if cpus <= 0:
                    break
                continue
            given, cards = cards[:need_cards], cards[need_cards:]
            cpus, memory = cpus - need_cpus, memory - need_memory
            try:
                chosen.append(self._prepared(row, plan, given))
            except OSError as error:
                self._postpone(row, plan, error)
                break
        return chosen

    def _prepared(self, row: Row, plan: Plan, gpu_ids: list[int]) -> _Attempt:
        """The next attempt of a row, its folders made. Raises OSError.

        They are made before the row's start is committed: a folder that is not there later was removed, which is a loss
        and not a start that never was.
        """
        following = replace(row, attempt=row.attempt + 1, gpu_ids=tuple(gpu_ids))
        meeting, has_gpus = new_meeting(), bool(self.inventory.cards)
        for rank in range(plan.nodes):
            if read_report(rank_folder(self.home, row.id, following.attempt, rank)) is None:  # else it was started once
                write_job(self.home, following, plan, rank=rank, meeting=meeting, has_gpus=has_gpus)
        attempt = self.attempts[row.id] = _Attempt(self.queue.start(row, gpu_ids), plan)
        self.waiting.note_start(row)
        return attempt

    def _in_turn(self) -> Iterator[Row]:
        """The first queued rows; not all, so that a long queue of what does not fit costs no more than a short one."""
        yield from self.queue.next_queued(_FIRST_LOOK)
        yield from self.queue.next_queued(_LONGEST_LOOK, skip=_FIRST_LOOK)

    def _free(self) -> tuple[float, float, list[int]]:
        """CPUs, memory in GB and GPU indices that no attempt holds."""
        cpus, memory = self.inventory.cpus, self.inventory.memory_gb
        cards = [card.index for card in self.inventory.cards]
        for attempt in self.attempts.values():
            cpus -= attempt.plan.cpus * attempt.plan.nodes
            memory -= (attempt.plan.memory_gb or 0.0) * attempt.plan.nodes
            cards = [index for index in cards if index not in attempt.row.gpu_ids]
        return max(cpus, 0), max(memory, 0), cards

    def _start(self, attempt: _Attempt) -> None:
        """Give each rank to a runner. What an earlier scheduler started already is left to it."""
        row = attempt.row
        try:
            self._start_ranks(attempt, range(attempt.plan.nodes))
        except OSError as error:
            if attempt.pids:
                return  # one is missing: seen at the next tick
            del self.attempts[row.id]
            with self.queue.transaction():
                self.queue.take_back(row, "")
                queued = replace(row, state="queued", attempt=row.attempt - 1, gpu_ids=())
                self._postpone(queued, attempt.plan, error)

    def _start_ranks(self, attempt: _Attempt, ranks: Iterable[int]) -> None:
        row = attempt.row
        for rank in ranks:
            folder = rank_folder(self.home, row.id, row.attempt, rank)
            lock = take_lock(folder / "runner.lock", note_pid=False)
            if lock is not None:
                attempt.pids[rank] = pid = self.workers.run(folder, lock)
                self.by_pid[pid] = (row.id, rank)

    def _start_rest(self, attempt: _Attempt) -> bool:
        """Whether ranks that never ran, where the others go on or have ended well, were started; not for ever.

        There are such where an earlier scheduler died between two ranks.
        """
        row, reports = attempt.row, attempt.reports
        missing = [rank for rank, report in reports.items() if burial.never_ran(report)]
        goes_on = len(missing) < attempt.plan.nodes and all(reports[rank].code == 0 for rank in {*reports} - {*missing})
        if not missing or not goes_on or attempt.stop_sent or self.unstarted.get(row.id, 0) >= _MOST_STARTS:
            return False
        self.unstarted[row.id] = self.unstarted.get(row.id, 0) + 1
        for rank in missing:
            del reports[rank]
        try:
            self._start_ranks(attempt, missing)
        except OSError as error:  # tried again at the next tick
            _log(f"{row.id}: a node cannot start: {error!a}")
        return True

    def _postpone(self, row: Row, plan: Plan, error: OSError) -> None:
        """A queued row could not be started. What is full is waited for; what cannot be used is tried a few times."""
        reason = error.strerror or ascii(error)
        _log(f"{row.id} cannot start: {error!a}")
        if error.errno not in _PASSING:
            self.unstarted[row.id] = self.unstarted.get(row.id, 0) + 1
        if self.unstarted.get(row.id, 0) > _MOST_STARTS:
            now = time.time()
            failure = Report("ended", code=126, cause="start", reason=f"cannot be started: {reason}", ended=now)
            self._end(row, dict.fromkeys(range(plan.nodes), failure), reason=failure.reason, now=now)
        else:
            self.start_again_at = time.monotonic() + _RETRY_START_SECONDS
            self.queue.set_state(row, "queued", f"waits: {reason}")


def _log(text: str) -> None:
    """A line of scheduler.log, which is our standard error; lost where the disk is full."""
    with contextlib.suppress(OSError):
        os.write(2, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n".encode(errors="replace"))
