"""Runners as forked processes that take one task after the other: a fork costs more than a short task.

A worker is told a folder over its link, with the descriptor that holds the folder's lock, says when it is done with it,
and ends when the link does. It is not told another task when anything of the last one could be left in it.
"""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

from flow.node import runner

_DONE = b"!"
_MOST_IDLE = 16


@dataclass(slots=True)
class _Worker:
    pid: int
    link: socket.socket
    is_spoiled: bool = False  # a signal is on its way to it, which must not hit another task


class Workers:
    """The runners forked by this process, which must be single-threaded and not ignore SIGCHLD."""

    def __init__(self) -> None:
        self._idle: list[_Worker] = []
        self._busy: dict[int, _Worker] = {}

    def run(self, folder: Path, lock: int) -> int:
        """Have the task of `folder` run; the pid that stands for it until `ended` names it. Takes `lock` over.

        Raises OSError where no process can be made.
        """
        try:
            worker = self._told_idle(folder, lock) or self._forked(folder, lock)
        finally:
            os.close(lock)  # the worker holds it now: the lock is on the open file, not on us
        self._busy[worker.pid] = worker
        return worker.pid

    def links(self) -> list[int]:
        """What becomes readable when a task may have ended."""
        return [worker.link.fileno() for worker in self._busy.values()]

    def ended(self) -> list[int]:
        """The pids whose task has ended since it was asked last, or which died."""
        ended = []
        for worker in list(self._busy.values()):
            said = _said(worker.link)
            if said is None:
                continue
            del self._busy[worker.pid]
            ended.append(worker.pid)
            if said == _DONE and not worker.is_spoiled and len(self._idle) < _MOST_IDLE:
                self._idle.append(worker)
            else:
                worker.link.close()
        _reap()
        return ended

    def spoil(self, pid: int | None) -> None:
        """Give this one no other task after the one that it has."""
        if pid in self._busy:
            self._busy[pid].is_spoiled = True

    def close(self) -> None:
        """Let them go: idle ones end, busy ones when their task has."""
        for worker in (*self._idle, *self._busy.values()):
            worker.link.close()

    def _told_idle(self, folder: Path, lock: int) -> _Worker | None:
        while self._idle:
            worker = self._idle.pop()
            try:
                socket.send_fds(worker.link, [os.fsencode(folder)], [lock])
            except OSError:  # it was killed meanwhile
                worker.link.close()
                continue
            return worker
        return None

    def _forked(self, folder: Path, lock: int) -> _Worker:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        signal.pthread_sigmask(signal.SIG_BLOCK, runner.OURS)  # held back until the runner can answer them
        try:
            pid = os.fork()
            if pid == 0:
                _serve(theirs, os.fspath(folder), lock)
        except OSError:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, runner.OURS)
            theirs.close()
        ours.setblocking(False)
        return _Worker(pid, ours)


def _said(link: socket.socket) -> bytes | None:
    """What the worker says; b"" where it is gone, None where it says nothing."""
    try:
        return link.recv(1)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _serve(link: socket.socket, folder: str, lock: int) -> None:
    """In the child: run tasks and do nothing else; never returns."""
    try:
        signal.set_wakeup_fd(-1)
        os.setsid()
        task: tuple[str, int] | None = (folder, lock)
        while task:
            _run(link, *task)
            task = _next_task(link)
    except BaseException:
        import traceback

        os.write(2, f"runner {os.getpid()}: {traceback.format_exc()}".encode())
    finally:
        os._exit(0)


def _run(link: socket.socket, folder: str, lock: int) -> None:
    """Run one task; exits where something of it may be left."""
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    if not runner.run(folder, lock, link.fileno()):
        os._exit(0)
    link.send(_DONE)


def _next_task(link: socket.socket) -> tuple[str, int] | None:
    """The folder and the locked descriptor that come over the link; None when it ends."""
    data, descriptors, _, _ = socket.recv_fds(link, 8192, 1)
    if not data:
        return None
    os.set_inheritable(descriptors[0], False)  # the command must not hold its runner's lock
    return os.fsdecode(data), descriptors[0]
