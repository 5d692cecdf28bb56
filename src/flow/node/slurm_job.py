"""The batch step of a task's Slurm job: starts a runner on each of its nodes, attempt after attempt, till it has ended.

Each start by Slurm, the first or after a requeue, comes here. Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import Any

PASSED_ON = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGALRM, signal.SIGINT, signal.SIGQUIT)
TERMINATED = 128 + signal.SIGTERM
TOLD_SECONDS = 0.5  # Slurm tells all processes of a job to end, one after the other: the command may be before this one
ENGINES = ("apptainer", "singularity", "podman", "docker")  # the first that is there runs images
LOST = {"NODE_FAIL": "its node failed", "PREEMPTED": "preempted"}  # by the state that accounting has of that start

_HURRY = """kill -USR1 $(sed -n 's/.*"runner_pid": \\([0-9]*\\).*/\\1/p'"""

_PACKAGE = f"{__package__}." if __package__ else ""  # else they lie beside this file
login, processes, asked = (importlib.import_module(_PACKAGE + one) for one in ("slurm_login", "processes", "asked"))
read_status = login.answers.read_status


def main(base: str) -> None:
    """Run the task of this folder, or the element of it that this job is; exits as its command did."""
    number, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    number = number or os.environ["SLURM_JOB_ID"]
    if not _is_ours(base, number):
        sys.exit(f"job {login.read(base, 'number')} takes this task already")
    job = Job(base, None if index is None else int(index))
    exit_as(job.run())


def _is_ours(base: str, number: str) -> bool:
    """Whether no other job was submitted for the task; if nobody lived to write a number down, this one takes it."""
    login.write(base, "number-" + number, number)
    try:
        os.link(os.path.join(base, "number-" + number), os.path.join(base, "number"))
    except FileExistsError:
        pass
    return login.read(base, "number") == number  # type: ignore[no-any-return]


def exit_as(code: int) -> None:
    """End as the command did: so that Slurm has its exit code, or the signal that killed it."""
    number = code - 128
    if number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL):
        signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
        os.kill(os.getpid(), number)
    sys.exit(code)


class Job:
    """One start of a task's job. `folder`: of the task, or of the element."""

    def __init__(self, base: str, index: int | None) -> None:
        self.base, self.index = base, index
        self.folder = base if index is None else f"{base}_{index}"
        self.task: dict[str, Any] = json.loads(login.read(base, "job.json"))
        self.task.update(task_id=os.path.basename(self.folder), array_index=index)
        self.nodes: int = self.task["nodes"]
        self.runner: Any = None
        self.heard = 0  # of what is asked of the runners
        self.is_told = False  # by SIGTERM, to end
        processes.adopt_orphans(True)
        signal.signal(signal.SIGTERM, lambda *_: self._end())
        for number in PASSED_ON:
            signal.signal(number, lambda number, _: self._pass_on(number))

    def run(self) -> int:
        """All of it; the exit code."""
        ended = login.read(self.folder, "ended")
        if ended:  # Slurm started it once more: it does not run again
            return int(json.loads(ended)["code"])
        self._note_loss()
        last = self._last_folders()
        if last and self._end_of(last)["code"] == 0:  # nothing was left to do but to say so
            login.write(self.folder, "ended", json.dumps({"code": 0}), durably=True)
            return 0
        while True:
            end = self._attempt()
            is_cancelled = self._is_cancelled()
            if end["code"] == TERMINATED and not self.is_told:
                time.sleep(TOLD_SECONDS)
            if (self.is_told or end["cause"] == "cancel") and not is_cancelled:
                self._note_that_slurm_told()
                return TERMINATED
            tried = sum(not one.get("requeued") for one in self._ends())
            if is_cancelled or end["code"] == 0 or end["cause"] == "timeout" or tried > self.task["retries"]:
                break
        login.write(self.folder, "ended", json.dumps({"code": end["code"]}), durably=True)
        shutil.rmtree(os.path.join(self.folder, "inbox"), ignore_errors=True)
        if is_cancelled:  # so that Slurm calls it that, too
            subprocess.run([login.program("scancel"), os.environ["SLURM_JOB_ID"]], check=False)
        return int(end["code"] or 0)

    # -- attempts

    def _attempt(self) -> dict[str, Any]:
        """Run the next attempt; its end: code, 0 only where all went well, and cause."""
        number = (login.attempts(self.folder) or [0])[-1] + 1
        at = os.path.join(self.folder, str(number))
        hosts = self._hosts()
        self._write_tasks(at, number, hosts)
        login.write(at, "nodes", "".join(f"{name} {address}\n" for name, address in hosts))
        if self._is_cancelled():
            self.is_told = True
        if self.task["image"] and not self.task["engine"]:
            missing = (
                f"`image` needs {', '.join(ENGINES[:-1])} or {ENGINES[-1]} on {hosts[0][0]}, and none is there: "
                "load its module, or run without `image`"
            )
            for folder in self._last_folders():
                _write_loss(folder, {"code": 126}, "start", missing)
            return {"code": 126, "cause": "start"}
        words = [sys.executable, os.path.join(os.path.dirname(os.path.abspath(__file__)), "runner.py"), "run"]
        others, self.heard = None, 0
        if not self.is_told:
            others = self._on_others(f"exec {shlex.join(words)}", at, "") if self.nodes > 1 else None
            self.runner = subprocess.Popen([*words, at + "/0"], stdin=subprocess.DEVNULL)
            if self.is_told:
                self.runner.terminate()
            self.runner.wait()
        is_ended = read_status(at + "/0").get("phase") == "ended"
        if others:
            self._wait_for(others, is_ended=is_ended)
        processes.Processes().kill()  # what a runner left that was killed
        folders = self._last_folders()
        self._write_losses(folders)
        return self._end_of(folders)

    def _on_others(self, command: str, at: str, file: str) -> subprocess.Popen[bytes]:
        """A command on each node but this one, which is given the folder of its rank, or that file there."""
        script = f"{command} {shlex.quote(at)}/$((SLURM_PROCID + 1)){file}"
        count = str(self.nodes - 1)
        srun = [
            login.program("srun"),
            "--relative=1",
            "--nodes=" + count,
            "--ntasks=" + count,
            "--ntasks-per-node=1",
            "--overlap",
        ]
        srun += ["--kill-on-bad-exit=0", "--export=ALL", "--cpus-per-task=" + os.environ.get("SLURM_CPUS_ON_NODE", "1")]
        return subprocess.Popen([*srun, "sh", "-c", script], stdin=subprocess.DEVNULL)

    def _wait_for(self, others: subprocess.Popen[bytes], *, is_ended: bool) -> None:
        """Till the other ranks are gone; `is_ended`: rank 0 has, and has heard of the ends of all.

        `srun` waits for ever for one that died without a word. Where its node did, Slurm ends this job, given time.
        """
        if is_ended and not _has_ended(others, seconds=10):
            until = time.monotonic() + _notice_seconds()
            while time.monotonic() < until and not (self.is_told or _has_ended(others, seconds=1)):
                pass
        if others.poll() is None:
            others.terminate()  # it then kills what it started
        if not _has_ended(others, seconds=10):
            others.kill()
        others.wait()

    def _hosts(self) -> list[tuple[str, str]]:
        """Name and address of each node, this one first."""
        names = [os.environ.get("SLURMD_NODENAME") or socket.gethostname()]
        if self.nodes > 1:
            done = subprocess.run(
                [login.program("scontrol"), "show", "hostnames"], stdout=subprocess.PIPE, encoding="utf-8", check=True
            )
            names = done.stdout.split()[: self.nodes]
        return [(name, _address(name)) for name in names]

    def _write_tasks(self, at: str, number: int, hosts: list[tuple[str, str]]) -> None:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("", 0))
            two.bind(("", 0))
            control, master = one.getsockname()[1], two.getsockname()[1]
        task, limit = self.task, self.task["limit_total_seconds"]
        used = sum(one.get("ran_seconds") or 0 for one in self._ends())
        task.update(attempt=number, control_port=control, token=os.urandom(16).hex())
        task.update(peers=[address for _, address in hosts], limit_seconds=limit and max(limit - used, 0.001))
        task["env"] = {"MASTER_PORT": str(master), **task["env"]}
        if task["image"]:
            task["engine"] = next((one for one in ENGINES if shutil.which(one)), None)
        for rank in range(self.nodes):
            folder = os.path.join(at, str(rank))
            os.makedirs(os.path.join(folder, "inbox"), mode=0o700, exist_ok=True)
            for name in task["needs"]:
                shutil.copy(os.path.join(self.base, name), os.path.join(folder, name))
            before = os.path.join(self.folder, str(number - 1), str(rank), "output")
            task.update(rank=rank, previous_output=before if os.path.isdir(before) else None)
            for stream, fd in (("stdout", 1), ("stderr", 2)):
                # a batch script's own output goes where Slurm has opened it for us
                copy = os.readlink(f"/proc/self/fd/{fd}") if task["is_batch"] else self._path(task[stream], rank)
                task[stream + "_copy"] = copy
            login.write(folder, "task.json", json.dumps(task))

    def _path(self, pattern: str | None, rank: int) -> str | None:
        """An output path with Slurm's patterns filled in."""
        known = {"%a": "" if self.index is None else str(self.index), "%j": os.environ["SLURM_JOB_ID"], "%n": str(rank)}
        for name, value in known.items():
            pattern = pattern and pattern.replace(name, value)
        return pattern

    # -- ends

    def _end(self) -> None:
        if self.runner and not self.is_told:
            self.runner.terminate()
        self.is_told = True

    def _pass_on(self, number: int) -> None:
        """To the command itself, as Slurm does with a batch script; or to the runners, where these are asked for it."""
        at = self._last_folders()[0] if self.runner else ""
        lines = len(asked.asked(at)) if at else 0
        if number == signal.SIGUSR1 and lines > self.heard:
            self.heard = lines
            self.runner.send_signal(number)
            if self.nodes > 1:  # through the `srun` that started them all processes there would hear it
                self._on_others(_HURRY, os.path.dirname(at), "/status.json)")
        elif self.runner:
            path = f"/proc/{self.runner.pid}/task/{self.runner.pid}/children"
            try:
                with open(path) as file:
                    for pid in file.read().split():
                        os.kill(int(pid), number)
            except OSError:
                pass

    def _is_cancelled(self) -> bool:
        """Whether the user asked for the end, by whatever client."""
        return any(os.path.exists(os.path.join(folder, "cancel")) for folder in {self.base, self.folder})

    def _note_that_slurm_told(self) -> None:
        """Slurm ends the job, and may run it again: whatever the command made of that was not its own end."""
        for folder in self._last_folders():
            status = read_status(folder)
            if status.get("cause") == "exit":
                _write_loss(folder, status, "cancel", "told to end by Slurm")

    def _note_loss(self) -> None:
        """Slurm starts the job again: what the last attempt came to is a loss, on record before anything runs."""
        folders = [] if self._is_cancelled() else self._last_folders()
        if folders and self._end_of(folders)["code"] != 0:
            state = self._last_state()
            cause = "lost" if state == "NODE_FAIL" else "requeue"
            for folder in folders:
                reason = f"{LOST.get(state, 'requeued')}: Slurm runs it again"
                _write_loss(folder, read_status(folder), cause, reason, requeued=True)

    def _last_state(self) -> str:
        """What accounting has of the start before this one; "" where there is none."""
        words = [login.program("sacct"), "--noheader", "--parsable2", "--allocations", "--duplicates", "--format=State"]
        state = ""
        try:
            done = subprocess.run(
                [*words, "--jobs=" + os.environ["SLURM_JOB_ID"]], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                encoding="utf-8", timeout=10, check=False,
            )  # fmt: skip
            states = [line for line in done.stdout.split() if line not in ("RUNNING", "PENDING")]
            state = states[-1] if states else ""
        except (OSError, subprocess.TimeoutExpired):
            pass
        return state

    def _write_losses(self, folders: list[str]) -> None:
        """An end for each rank that could not write its own."""
        for folder in folders:
            status = read_status(folder)
            if status.get("phase") != "ended":
                cause, reason = (
                    ("cancel", "cancelled") if self.is_told else ("lost", "its runner died without a report")
                )
                _write_loss(folder, status, cause, reason)

    def _ends(self) -> list[dict[str, Any]]:
        """How the attempts so far ended, by their first rank."""
        starts = login.attempts(self.folder)
        return [read_status(os.path.join(self.folder, str(number), "0")) for number in starts]

    def _last_folders(self) -> list[str]:
        """Those of the last attempt, by rank; none before the first."""
        starts = login.attempts(self.folder)
        return [os.path.join(self.folder, str(starts[-1]), str(rank)) for rank in range(self.nodes)] if starts else []

    def _end_of(self, folders: list[str]) -> dict[str, Any]:
        """The end that decides: of the first rank that failed of itself, else of any."""
        ends = [read_status(folder) for folder in folders]
        failed = [one for one in ends if one.get("code") != 0 or one.get("cause") != "exit"]
        own = [one for one in failed if one.get("cause") != "peer"] or failed
        if not own:
            return {"code": 0, "cause": "exit"}
        first = min(own, key=lambda one: float(one.get("ended") or 0))
        return {"code": first.get("code") or 1, "cause": first.get("cause")}


def _write_loss(folder: str, status: dict[str, Any], cause: str, reason: str, **more: Any) -> None:
    facts = {
        "v": 1,
        "started": None,
        "ended": time.time(),
        **status,
        "phase": "ended",
        "cause": cause,
        "reason": reason,
    }
    facts.update(ended=facts["ended"] or time.time(), **more)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    login.write(folder, "status.json", json.dumps(facts), durably=True)


def _has_ended(process: subprocess.Popen[bytes], *, seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _notice_seconds() -> float:
    """How long Slurm takes to see that a node has died, with time to spare."""
    done = subprocess.run(
        [login.program("scontrol"), "show", "config"], stdout=subprocess.PIPE, encoding="utf-8", check=False
    )
    found = re.search(r"SlurmdTimeout\s*=\s*(\d+)", done.stdout)
    return 1.5 * int(found.group(1) if found else 300) + 10


def _address(name: str) -> str:
    """Where the other nodes reach this one; its name where that cannot be told."""
    try:
        found = socket.gethostbyname(name)
    except OSError:
        return name
    return name if found.startswith("127.0.1.") else found  # Debian has a host's own name there


if __name__ == "__main__":
    main(sys.argv[1])
