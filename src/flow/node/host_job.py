"""One turn of a task on its host: what its last attempt came to, and the next one. Standard library, Python 3.8 and up.

Everything it decides is read off the files, so that it may be killed at any time and called again.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import shutil
import socket
import sys
import time
from typing import Any

_PACKAGE = f"{__package__}." if __package__ else ""
answers, remains, facts = (importlib.import_module(_PACKAGE + one) for one in ("answers", "remains", "host_facts"))
runner, host, asked = (importlib.import_module(_PACKAGE + one) for one in ("runner", "host", "asked"))

SHUTDOWN = "its runner was ended, as by a shutdown"
TELL_SECONDS = 5.0  # that another machine may take to hear of a loss


def settle(tasks: str, folder: str, index: int | None) -> Turn | None:
    """Note how the last attempt ended whose runner died, and that the task or element in `folder` has ended where none
    follows; None then, else what is to have its turn. Needs no room."""
    if answers.read(folder, "ended"):
        return None
    job = Turn(tasks, folder, index)
    job.note_loss()
    return None if job.note_end() else job


def run(tasks: str, folder: str, index: int | None, *, gpus: list[int] | None, umask: int, lacks: str = "") -> None:
    """The same, and run the next attempt.

    gpus: those it is to see; None where the host has none. umask: that of its command. lacks: why it cannot run here.

    Must be alone in its process.
    """
    job = settle(tasks, folder, index)
    if job:
        job.attempt(gpus, umask=umask, lacks=lacks)
        job.note_end()


def hears_shutdown(rank: Any, has_ended: bool) -> bool:
    """Whether SIGTERM came from no user, who would have left a note first: then the rank is to run again.

    has_ended: whether the command had before that.
    """
    if any(map(os.path.exists, rank.task["cancel_notes"])):
        return False
    rank.stop(asked.REQUEUE, SHUTDOWN)
    if not has_ended:  # it was told to end as well, and may have been faster
        rank.stopped = rank.stopped or (asked.REQUEUE, SHUTDOWN)
    return True


class Turn:
    """`tasks` holds the folders of all tasks; `folder` is that of the task or element."""

    def __init__(self, tasks: str, folder: str, index: int | None) -> None:
        self.folder, self.index = folder, index
        self.base = os.path.join(tasks, os.path.basename(folder).partition("_")[0])
        self.task: dict[str, Any] = json.loads(answers.read(self.base, "job.json"))
        self.rank: int = self.task["rank"]

    def folders(self) -> list[str]:
        """The task folder of each start, oldest first."""
        starts = answers.attempts(self.folder)
        return [os.path.join(self.folder, str(number), str(self.rank)) for number in starts]

    def last(self) -> dict[str, Any]:
        """How the last attempt ended; {} before the first."""
        found = self.folders()
        return answers.read_status(found[-1]) if found else {}

    def is_over(self) -> bool:
        """Whether no attempt follows those that there were; a folder that holds no end yet counts for none."""
        ends = [answers.read_status(one) for one in self.folders()]
        if host.is_noted(self.folder, "cancel"):
            return not ends or ends[-1].get("phase") == "ended"
        if not ends or ends[-1].get("phase") != "ended":
            return False
        counted = [one for one in ends if one.get("cause") != asked.REQUEUE]
        end = ends[-1]
        if end["cause"] == asked.REQUEUE:
            return False
        is_done = end["cause"] == "exit" and end["code"] == 0
        free = self.task.get("free_attempts", {}).get("" if self.index is None else str(self.index), 0)
        before = self.task["first_attempt"] - 1 - free  # those that were lost elsewhere count
        return is_done or end["cause"] in ("timeout", "cancel") or before + len(counted) > self.task["retries"]

    def note_end(self) -> bool:
        """Whether no attempt follows: that is on record then."""
        if not self.is_over():
            return False
        os.makedirs(self.folder, mode=0o700, exist_ok=True)  # of an element that never had a turn
        answers.write(self.folder, "ended", json.dumps({"code": self.last().get("code")}), durably=True)
        return True

    def note_loss(self) -> None:
        """Of an attempt whose runner died: that is on record before anything runs again."""
        folder = self.folders()[-1] if self.folders() else ""
        if not folder or self.last().get("phase") == "ended":
            return
        is_begun = self.last().get("phase", "waiting") != "waiting" or os.path.exists(folder + "/log.idx")
        if not answers.read(folder, "task.json") or not is_begun:
            shutil.rmtree(os.path.dirname(folder))  # it has provably run nothing: the same attempt starts again
            return
        while remains.kill_left_over(folder) or not remains.remove_container(folder):
            time.sleep(0.1)
        cause, reason = "lost", "its runner died without a report"
        if host.is_noted(self.folder, "cancel"):
            cause, reason = "cancel", "cancelled"
        elif why := asked.why_requeued(asked.asked(folder)):
            cause, reason = asked.REQUEUE, why
        facts = {"v": 1, "started": None, "code": None, "signal": None, **self.last()}
        facts.update(phase="ended", cause=cause, reason=reason, ended=max(_last_sign(folder), facts["started"] or 0))
        answers.write(folder, "status.json", json.dumps(facts), durably=True)
        if self.rank and cause == "lost":
            _tell_main(json.loads(answers.read(folder, "task.json")), reason)

    def attempt(self, gpus: list[int] | None, *, umask: int, lacks: str) -> None:
        """Run it, in this process."""
        number = (answers.attempts(self.folder) or [self.task["first_attempt"] - 1])[-1] + 1
        folder = os.path.join(self.folder, str(number), str(self.rank))
        gpu_locks = self._lock_gpus(gpus)
        own_lock = None
        if self.task["nodes"] == 1:
            meeting: dict[str, Any] = {"ports": [_free_port() for _ in range(3)]}
        else:
            os.makedirs(os.path.join(folder, "inbox"), mode=0o700)
            own_lock = os.open(os.path.join(folder, "runner.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(own_lock, fcntl.LOCK_EX)
            runner.close_inherited({own_lock, gpu_locks})  # as the keeper's: this may take long, and outlive it
            meeting = self._meet(folder)
            if not meeting:
                return
            if meeting["attempt"] != number:  # another node has had one that never began here
                os.rename(os.path.join(self.folder, str(number)), os.path.join(self.folder, str(meeting["attempt"])))
                number = meeting["attempt"]
                folder = os.path.join(self.folder, str(number), str(self.rank))
        self._write_task(folder, number, gpus, meeting)
        if lacks:
            end = {"v": 1, "phase": "ended", "cause": "start", "reason": lacks, "code": 126, "signal": None}
            answers.write(
                folder, "status.json", json.dumps({**end, "started": None, "ended": time.time()}), durably=True
            )
            return
        os.umask(umask)  # what the runner makes has modes of its own, or lies where nobody else gets to
        runner.run(folder, lock_fd=own_lock, keep=gpu_locks)

    def _meet(self, folder: str) -> dict[str, Any]:
        """Where all nodes of the task meet, told once all have their turn; {} where that is taken back."""
        own = {"address": facts.address(), "ports": [_free_port() for _ in range(3)]}
        status = {"v": 1, "phase": "waiting", "needs": ["inbox/peers.json"], "runner_pid": os.getpid(), **own}
        answers.write(folder, "status.json", json.dumps(status))
        while not host.is_noted(self.folder, "cancel"):
            told = answers.read(folder, "inbox/peers.json")
            if told:
                return json.loads(told)  # type: ignore[no-any-return]
            if not host.is_noted(self.folder, "lease"):  # looked at last: the others may have begun with the same
                break
            time.sleep(0.03)
        shutil.rmtree(os.path.dirname(folder))
        return {}

    def _lock_gpus(self, gpus: list[int] | None) -> int | None:
        """Held for as long as this process lives, against other users' tasks. Raises OSError where one has them."""
        if not gpus:
            return None
        try:
            fd = os.open(facts.GPU_LOCKS, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            fd = os.open(facts.GPU_LOCKS, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            os.fchmod(fd, 0o666)  # whatever the umask says
        for one in gpus:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, one)
        return fd

    def _write_task(self, folder: str, number: int, gpus: list[int] | None, meeting: dict[str, Any]) -> None:
        task, limit = dict(self.task), self.task["limit_total_seconds"]
        used = sum(answers.read_status(one).get("ran_seconds") or 0 for one in self.folders())
        before = os.path.join(self.folder, str(number - 1), str(self.rank), "output")
        task.update(task_id=remains.task_of(os.path.basename(self.folder)), array_index=self.index, attempt=number)
        task.update(limit_seconds=limit and max(limit - used, 0.001), given_gpus=gpus or [])
        task.update(previous_output=before if os.path.isdir(before) else None)
        master, task["control_port"], task["step_port"] = meeting["ports"]
        task.update(peers=meeting.get("peers", []), token=meeting.get("token"))
        task["env"] = {"MASTER_PORT": str(master), **task["env"]}
        task["cancel_notes"] = host.notes(self.folder, "cancel")
        if task["slurm"] and self.index is not None:
            task["slurm"]["number"] = task["numbers"][str(self.index)]
        if task.get("scratch") and os.path.isdir(task["scratch"]):
            _use_scratch(task)
        if gpus is not None and "CUDA_VISIBLE_DEVICES" not in task["env"]:
            task["gpu_ids"] = gpus
        task["private_mounts"] = os.geteuid() == 0 or task.get("private_mounts", False)
        for mount in task.get("mounts", []):
            if mount["kind"] == "s3":
                mount["cache"] = os.path.join(os.path.dirname(os.path.dirname(self.base)), "cache")
        if task["image"]:
            task["engine"] = facts.engine()
        os.makedirs(os.path.join(folder, "inbox"), mode=0o700, exist_ok=True)
        for name in task["needs"]:
            shutil.copy(os.path.join(self.base, name), os.path.join(folder, name))
        answers.write(folder, "task.json", json.dumps(task))


def _use_scratch(task: dict[str, Any]) -> None:
    """Have what the command's programs keep for later on a disk of the machine's own."""
    task["env"] = {"XDG_CACHE_HOME": os.path.join(task["scratch"], "cache"), **task["env"]}
    task["user_env"] = ["XDG_CACHE_HOME", *task["user_env"]]
    if task["image"]:
        task["mounts"] = [*task["mounts"], {"kind": "folder", "source": task["scratch"], "target": task["scratch"]}]


def _last_sign(folder: str) -> float:
    """When something of an attempt was last seen alive: it wrote, or its keeper saw it (see `host_keeper.py`)."""
    with os.scandir(folder) as entries:
        return max(one.stat(follow_symlinks=False).st_mtime for one in entries)


def _tell_main(task: dict[str, Any], reason: str) -> None:
    """Rank 0's runner, see peers.py, of the end of this rank: it may not have been connected yet, to notice."""
    words = [{"token": task["token"], "rank": task["rank"]}, {"ended": 1, "reason": reason}]
    try:
        with socket.create_connection((task["peers"][0], task["control_port"]), timeout=TELL_SECONDS) as main:
            main.sendall("".join(json.dumps(one) + "\n" for one in words).encode())
            main.recv(64)  # that it was heard
    except OSError:  # it has ended too, or finds out by itself
        pass


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        return int(one.getsockname()[1])


if __name__ == "__main__":
    sys.exit("called by host_keeper.py")
