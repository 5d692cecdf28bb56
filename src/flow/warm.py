"""Warm functions: processes that have imported a function's module and stay, fed with its calls by one thread."""

from __future__ import annotations

import atexit
import json
import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextlib import suppress

from flow.client import Flow
from flow.errors import FlowError
from flow.returned import ended_error, read_json, remote_error
from flow.status import TaskStatus
from flow.task import Task
from flow.worker import PendingCall, Worker

IDLE_SECONDS = 60  # after which a worker without calls ends; at once where a task waits for its CPUs
_GROW_SECONDS = 0.05  # how long calls wait before another worker is started
_SLOW_SECONDS = 0.001  # a call shorter than this is not made faster by another worker
_STARVED_SECONDS = 0.2
_CLOSE_SECONDS = 10  # how long the ends of the workers are waited for
_BARREN = 3  # so many workers that end before they begin a call are enough
_SOON, _LATER = 0.005, 1.0  # seconds between looks


class Pool:
    """The workers of one function, and the calls that none of them has. `most`: how many workers it may have."""

    def __init__(self, name: str, start: Callable[[], Task]) -> None:
        self.name = name
        self.most = 1
        self.waiting: deque[PendingCall] = deque()
        self.workers: list[Worker] = []
        self.barren = 0
        self._start = start
        self._changed = 0.0

    def start(self) -> None:
        """Start another worker. Raises FlowError where it cannot be submitted."""
        self._changed = time.monotonic()
        self.workers.append(Worker(self._start()))

    @property
    def is_starved(self) -> bool:
        """Whether its calls wait for a worker that gets no CPUs."""
        if not self.waiting or any(worker.link for worker in self.workers):
            return False
        queued = [one for one in self.workers if one.task.status is TaskStatus.PENDING and not one.is_lost]
        return bool(queued) and time.monotonic() - queued[0].since > _STARVED_SECONDS

    @property
    def is_moving(self) -> bool:
        """Whether something of it is to be looked at soon."""
        return bool(self.waiting) or any(worker.link is None for worker in self.workers)

    def is_short(self) -> bool:
        """Whether another worker would help."""
        if not self.waiting or len(self.workers) >= self.most:
            return False
        return not self.workers or (
            time.monotonic() - self._changed > _GROW_SECONDS
            and all(worker.link and worker.busy_seconds() > _SLOW_SECONDS for worker in self.workers)
        )

    def take(self, answers: list[tuple[PendingCall, bytes]], worker: Worker) -> None:
        """Hand the answers on; a failure of a call that may be made again is none yet."""
        if answers or worker.is_begun:
            self.barren = 0
        for call, answer in answers:
            if answer[:1] == b"=":
                call.answer.set_result(answer)
            elif call.retries:
                call.retries -= 1
                self.waiting.append(call)
            else:
                task = worker.task
                call.answer.set_exception(
                    remote_error(self.name, task.task_id, json.loads(answer[1:]), task.last_lines)
                )

    def bury(self, worker: Worker) -> None:
        """Its task has ended: what it had begun has failed, what it had not is for another worker."""
        self.workers.remove(worker)
        task, begun = worker.task, worker.is_begun
        error: FlowError = ended_error(self.name, task.task_id, task.outcome, task.last_lines)
        failure = task.outputs("error.json")
        if failure:  # its module cannot be imported
            error = remote_error(self.name, task.task_id, read_json(failure), task.last_lines)
        if begun and worker.sent:
            call = worker.sent.popleft()
            call.retries -= 1
            if call.retries < 0:
                call.answer.set_exception(error)
            else:
                worker.sent.appendleft(call)
        self.waiting.extendleft(reversed(worker.sent))
        if worker.is_dismissed:
            return
        self.barren += not begun
        if failure or self.barren >= _BARREN or task.status is TaskStatus.CANCELLED:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Nobody will answer what waits."""
        for call in self.waiting:
            if not call.answer.cancelled():
                call.answer.set_exception(error)
        self.waiting.clear()


class Session:
    """The pools of a program, and the thread that feeds them. For any number of threads; `close` ends all workers."""

    def __init__(self, client: Flow) -> None:
        self.client = client
        self._guests: deque[Task] = deque()
        self._look_at = 0.0
        self._pools: dict[Hashable, Pool] = {}
        self._lock = threading.RLock()
        self._selector = selectors.DefaultSelector()
        self._wake: int | None  # None once it is closed
        self._wake, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread: threading.Thread | None = None
        self._is_closed = False
        atexit.register(self._close_at_exit)  # what is left of a map that was not read to its end

    def pool(self, key: Hashable, name: str, start: Callable[[], Task]) -> Pool:
        """The pool of this key, made by what follows where there is none yet."""
        with self._lock:
            return self._pools.setdefault(key, Pool(name, start))

    def submit(self, pool: Pool, call: PendingCall) -> Future[bytes]:
        """Have it answered. Raises FlowError where there is no worker yet, and none can be submitted."""
        with self._lock:
            if self._is_closed:
                raise FlowError(f"`{pool.name}` is called after the end of its app's run")
            if not pool.workers:
                pool.start()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="flow-warm", daemon=True)
                self._thread.start()
            pool.waiting.append(call)
            worker = next((one for one in pool.workers if one.has_room), None)
            if worker:
                worker.send(pool.waiting)
            if len(pool.waiting) == 1 or (worker and worker.out):  # else it will look by itself
                self._rouse()
        return call.answer

    def welcome(self, task: Task) -> None:
        """Let idle workers end where this task waits for their CPUs."""
        with self._lock:
            self._guests.append(task)
            self._rouse()

    def close(self, *, at_once: bool = False) -> None:
        """End every worker, whatever it is at if `at_once`, and wait until they have ended."""
        atexit.unregister(self._close_at_exit)
        with self._lock:
            if self._wake is None:
                return
            self._is_closed = True
            workers = [worker for pool in self._pools.values() for worker in pool.workers]
            for worker in workers:
                self._forget(worker)
                if at_once and not worker.is_lost:
                    worker.task.cancel()
                worker.dismiss()
            for pool in self._pools.values():
                pool.waiting.extend(call for worker in pool.workers for call in worker.sent)
                pool.fail(FlowError(f"`{pool.name}` was ended with its app's run"))
            self._rouse()
        if self._thread:
            self._thread.join()
        deadline = time.monotonic() + _CLOSE_SECONDS
        for worker in workers:
            with suppress(TimeoutError):
                worker.task.wait(max(deadline - time.monotonic(), 0.0))
        self._selector.close()
        os.close(self._wake)
        os.close(self._waker)
        self._wake = None

    def _close_at_exit(self) -> None:
        self.close(at_once=True)

    def _rouse(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._waker, b"!")

    def _run(self) -> None:
        try:
            while not self._is_closed:
                for key, _ in self._selector.select(self._pause()):
                    self._attend(key)
                with self._lock:
                    if not self._is_closed:
                        self._step()
        except BaseException as error:  # whatever it is, nobody must wait for ever
            with self._lock:
                self._is_closed = True
                for pool in self._pools.values():
                    pool.waiting.extend(call for worker in pool.workers for call in worker.sent)
                    pool.fail(error)

    def _pause(self) -> float:
        with self._lock:
            return _SOON if self._guests or any(pool.is_moving for pool in self._pools.values()) else _LATER

    def _attend(self, key: selectors.SelectorKey) -> None:
        """Read what has come."""
        if key.fileobj == self._wake:
            os.read(key.fd, 1 << 16)
            return
        with self._lock:
            pool, worker = key.data
            if worker.link is None:
                return
            answers = worker.receive()
            if answers is None:
                self._forget(worker)
                worker.lose()
                return
            pool.take(answers, worker)
            worker.send(pool.waiting)

    def _step(self) -> None:
        """What time brings: workers that are ready, that have ended, that are wanted, that are not wanted any more."""
        for pool in self._pools.values():
            for worker in list(pool.workers):
                if worker.look():
                    pool.bury(worker)
                elif worker.link:
                    worker.send(pool.waiting)
                    self._listen(pool, worker)
            if pool.is_short():
                try:
                    pool.start()
                except FlowError as error:  # a block volume, say, that one task holds at a time
                    pool.most = len(pool.workers)
                    if not pool.workers:
                        pool.fail(error)
        self._retire_idle()

    def _listen(self, pool: Pool, worker: Worker) -> None:
        assert worker.link
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.out else 0)
        known = self._selector.get_map().get(worker.link)
        if known is None:
            self._selector.register(worker.link, events, (pool, worker))
        elif known.events != events:
            self._selector.modify(worker.link, events, (pool, worker))

    def _forget(self, worker: Worker) -> None:
        if worker.link and worker.link in self._selector.get_map():
            self._selector.unregister(worker.link)

    def _retire_idle(self) -> None:
        if time.monotonic() > self._look_at:
            self._look_at = time.monotonic() + _STARVED_SECONDS
            while self._guests and self._guests[0].refresh().status is not TaskStatus.PENDING:
                self._guests.popleft()
        is_needed = bool(self._guests) or any(pool.is_starved for pool in self._pools.values())
        patience = _STARVED_SECONDS if is_needed else IDLE_SECONDS
        for pool in self._pools.values():
            for worker in pool.workers:
                if worker.is_idle and time.monotonic() - worker.since > patience:
                    self._forget(worker)
                    worker.dismiss()
