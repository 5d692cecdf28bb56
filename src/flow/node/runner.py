"""Runs one rank of one attempt of one task in its folder, and tells what became of it in that folder's files.

`python3 runner.py run DIR`, or `run(DIR)` in a process of its own. Standard library, Python 3.8 and up; the formats are
in docs/ARCHITECTURE.md. The command runs at most once: `running` is on disk before it is executed. What only some tasks
need (code, several nodes, an image) lies in files beside this one.
"""

from __future__ import annotations

import errno
import fcntl
import importlib
import json
import os
import signal
import sys
import time
from typing import Any, Callable

OURS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1)
FULL = (errno.ENOSPC, errno.EDQUOT)
LAST_WORD_SECONDS = 3  # how long a cancelled rank tries to reach the others
AGAIN_SECONDS = 2  # a second signal that comes sooner is the same one: Slurm may send it twice
LEFTOVER_SECONDS = 1  # what processes left behind by the command have between SIGTERM and SIGKILL


def _beside(name: str) -> Any:
    """The module of that name beside this one, loaded when first needed."""
    return importlib.import_module(f"{__package__}.{name}" if __package__ else name)


log, loop, processes = map(_beside, ("log", "loop", "processes"))
if __package__:  # a scheduler forks one runner after the other: what most tasks need is loaded once
    _beside("unpack")
    _beside("mounts")


def run(folder: str, lock_fd: int | None = None, keep: int | None = None) -> bool:
    """Run the task of `folder` to its end; returns at once when another runner has it, or it ever ran.

    Must be alone in its process: it takes over signals, children and descriptors. `lock_fd`: a descriptor that holds
    the lock on `runner.lock` already. `keep`: a descriptor of the caller's, left open. True where nothing is left of
    the task in this process, so that it may run another.
    """
    close_inherited({lock_fd, keep})
    lock_fd = _locked(os.path.join(folder, "runner.lock")) if lock_fd is None else lock_fd
    if lock_fd is None or _phase(folder) in ("running", "ended"):
        return False
    rank = Rank(os.path.abspath(folder))
    try:
        rank.run()
    except Ended as end:
        rank.end(*end.args)
    except Exception as error:  # whatever it is, the task must not stay "running" for ever
        rank.command.kill()
        rank.end(126, None, "lost" if rank.started else "start", log.say(error))
    rank.see_peers_end()
    return rank.close(keep)


class Ended(Exception):  # noqa: N818  # an end is not always an error
    """The task ends before its command runs: code, signal, cause, reason."""


class Rank:
    """One rank: its task, its command's processes, and what is known of their end."""

    beside = staticmethod(_beside)

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.task: dict[str, Any] = {}
        self.status: dict[str, Any] = {"v": 1, "phase": "", "code": None, "signal": None, "cause": "", "reason": ""}
        self.status.update(needs=[], started=None, ended=None, ran_seconds=0, runner_pid=os.getpid())
        self.loop = loop.Loop()
        self.log: Any = None
        self.peers: Any = None
        self.binds: list[Any] = []  # folders of this machine, and where the command sees them
        self.namespace: Any = None
        self.processes = processes.Processes()
        self.command = self.processes  # or the container: what can be told to end
        self.terminated: float | None = None  # when a signal first told the runner to end, by the monotonic clock
        self.stopped: tuple[str, str] | None = None  # cause and reason
        self.heard = 0  # lines of `asked`
        self.kills_of_leftovers = 0
        self.started = 0.0  # by the monotonic clock
        self.loop.on_signals(OURS, self._signalled)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])

    # -- the course of it

    def run(self) -> None:
        """All of it; raises Ended, always."""
        with open(self.path("task.json"), "rb") as file:
            self.task = json.load(file)
        if self.task.get("nodes", 1) > 1:
            self.peers = _beside("peers").join(self)
        self._await_needs()
        self._unpack()
        self._mount()
        self._start()
        while self.processes.wait_status is None or self._has_leftovers():
            self.loop.step()
        self._read_rest()
        raise Ended(*self._outcome())

    def _await_needs(self) -> None:
        deadline = time.monotonic() + self.task.get("delivery_timeout_seconds", 1800)
        needs = self.task.get("needs", [])
        while True:
            missing = [need for need in needs if not os.path.exists(self.path(need))]
            self.check_stopped()
            if not missing:
                break
            if missing != self.status["needs"]:
                self.report("waiting", needs=missing)
            if time.monotonic() > deadline:
                raise Ended(126, None, "start", "code never arrived")
            self.loop.step(0.05)
        self.status["needs"] = []

    def _unpack(self) -> None:
        """Fill `workspace/` with the code, and `output/` with what an earlier attempt left."""
        try:
            os.makedirs(self.path("workspace"), exist_ok=True)
            os.makedirs(self.path("output"), exist_ok=True)
            if self.task.get("previous_output"):
                import shutil

                shutil.copytree(self.task["previous_output"], self.path("output"), symlinks=True, dirs_exist_ok=True)
            code = self.task.get("code")
            if code:
                with open(self.path(code["manifest"]), encoding="utf-8") as file:
                    manifest = json.load(file)
                _beside("unpack").unpack(manifest, self.path(code["blobs"]), self.path("workspace"), self.check_stopped)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Ended(126, None, "start", "cannot unpack the code: " + log.say(error)) from None
        self.check_stopped()

    def _mount(self) -> None:
        """Make what the command is to see at paths of its own choice; in a container that is left to the engine."""
        if self.task.get("mounts") or (self.task.get("private_mounts") and not self.task.get("image")):
            try:
                self.binds, self.namespace = _beside("mounts").arrange(self.task, self.folder, self.check_stopped)
            except ValueError:
                self.check_stopped()  # it was cancelled first, while an answer was waited for
                raise
            self.check_stopped()

    def _start(self) -> None:
        """Execute the command, once `running` is on disk."""
        argv, env, cwd = self._command()
        self._remove_secrets()
        try:
            copies = [self.task.get("stdout_copy"), self.task.get("stderr_copy")]
            self.log = output = log.Log(
                self.folder, copies, fresh=bool(self.task.get("fresh_copies")), mode=self.task.get("copies_mode", 0o600)
            )
        except OSError as error:
            raise Ended(126, None, "start", "cannot write " + log.say(error)) from None
        held = _locked(self.path("command.lock"))
        if held is None:
            raise Ended(126, None, "start", "a process of this attempt is alive already")
        self.report("running", started=time.time())
        self.started = time.monotonic()
        try:
            stdout, stderr = self.processes.start(argv, env, cwd, lock=held)
        except processes.CannotStart as error:
            code, reason = error.args
            raise Ended(code, None, "start", reason) from None
        self._listen(stdout, lambda data: output.append(0, data))
        self._listen(stderr, lambda data: output.append(1, data))
        self._set_limits()

    def _command(self) -> tuple[list[str], dict[str, str], str]:
        """What is executed, in which environment and folder; also left in `env.json`, for who enters the task."""
        delivered = self._delivered_variables()
        if self.task.get("image"):
            is_container = self.task["engine"] in ("docker", "podman")
            return _beside("container" if is_container else "apptainer").command(self, delivered)  # type: ignore[no-any-return]
        env = {} if self.task.get("clean_env") else dict(os.environ)
        env.update(self.task.get("env", {}))
        env.update(delivered)
        env.update(self.own_variables(env))
        if self.task.get("gpu_ids") is not None:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, self.task["gpu_ids"]))
        cwd = self.path("workspace", self.task.get("cwd") or "")
        argv = self.task["argv"]
        if self.task.get("slurm"):
            argv = _beside("batch").prepare(self, env)
        self.write("env.json", {"env": env, "cwd": cwd, "namespace_of": self.namespace and self.namespace.owner})
        return argv, env, cwd

    def _set_limits(self) -> None:
        limit, early = self.task.get("limit_seconds"), self.task.get("signal")
        if limit is not None:
            total = self.task.get("limit_total_seconds") or limit  # of which earlier attempts took their part
            self.loop.after(limit, "limit", lambda: self.stop("timeout", "time limit %g h reached" % (total / 3600)))
            if early:
                wait = max(0, limit - early["before_seconds"])
                send = _beside("asked").pass_on
                self.loop.after(wait, "signal", lambda: send(self, early["number"], early.get("to", "all")))

    def stop(self, cause: str, reason: str) -> None:
        """SIGTERM, the grace time, SIGKILL. The first stop counts, and none after the command's own end."""
        self._reap()
        if self.stopped or self.processes.wait_status is not None:
            return
        self.stopped = (cause, reason)
        if self.peers:
            self.peers.own_stop(cause, reason)
        if self.processes.pid:
            self.command.terminate()
            self.loop.after(self.task.get("grace_seconds", 30), "kill", self._kill)

    def _kill(self) -> None:
        """SIGKILL, again each second: what cannot be killed is waited for, if it is the command itself."""
        self.command.kill()
        self.kills_of_leftovers += self.processes.wait_status is not None
        self.loop.after(1, "kill", self._kill)

    def _outcome(self) -> tuple[int, int | None, str, str]:
        """Code, signal, cause and reason of a command that ended."""
        self._hear_asked()
        status = self.processes.wait_status or 0
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        code = os.WEXITSTATUS(status) if number is None else 128 + number
        cause, reason = self.stopped or ("exit", f"exit {code}" if code else "")
        if number and not self.stopped:
            reason = f"killed by {_signal_name(number)}"
        failure = self.command.clean_up(code, was_stopped=bool(number or self.stopped))
        if failure and not self.stopped:
            return code, None, "start", failure
        return code, number, cause, reason

    def end(self, code: int, number: int | None, cause: str, reason: str) -> None:
        """Write the last report, however long a full disk resists; then tell the other ranks."""
        self._remove_secrets()
        if cause == "over":  # it only helped rank 0, which has ended well
            code, number, cause = 0, None, "exit"
        cut = f"log cut: {self.log.cut}" if self.log and self.log.cut else ""
        reason = "; ".join(part for part in (reason, cut) if part)
        ran = time.monotonic() - self.started if self.started else 0
        facts = {"code": code, "signal": number, "cause": cause, "reason": reason, "ran_seconds": round(ran, 6)}
        while True:
            try:
                self.report("ended", ended=time.time(), **facts)
                break
            except FileNotFoundError:  # the command removed its own folder
                os.makedirs(self.folder, mode=0o700)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                time.sleep(0.5)  # to leave now would make a loss of it, and the command might run again
        if self.peers:
            self.peers.own_end(code or int(cause == "requeue"), reason)

    def see_peers_end(self) -> None:
        """Stay until the ends of all ranks are known; SIGTERM shortens that.

        Where another one has failed, this one has been stopped by that, as whoever tries again asks it.
        """
        while self.peers and not self.peers.is_done():
            if self.terminated is not None and "leave" not in self.loop.times:
                self.loop.after(LAST_WORD_SECONDS, "leave", lambda: os._exit(0))
            self.loop.step()
        failure = self.peers.failure if self.peers else ""
        if failure and (self.status["code"], self.status["cause"]) == (0, "exit"):
            try:
                self.report("ended", cause="peer", reason=failure)
            except OSError:  # it counts as it ended
                pass

    def close(self, keep: int | None) -> bool:
        """Let go of everything but `keep`; whether nothing is left, of a task simple enough to be sure of that."""
        signal.pthread_sigmask(signal.SIG_BLOCK, OURS)
        signal.set_wakeup_fd(-1)
        self.loop.selector.close()
        is_outside = self.namespace is None or self.namespace.leave()
        close_inherited({keep})
        return is_outside and self.peers is None and self.command is self.processes and self.processes.childless

    def _has_leftovers(self) -> bool:
        """Whether processes of the attempt outlive the command; when first seen, they are told to end."""
        if not self.command.has_leftovers():
            return False
        if self.kills_of_leftovers == 0:
            self.command.terminate()
            if "kill" not in self.loop.times:
                self.loop.after(LEFTOVER_SECONDS, "kill", self._kill)
        return self.kills_of_leftovers < 5

    def _reap(self) -> None:
        self.processes.reap()
        if self.processes.wait_status is not None:
            self.loop.times.pop("limit", None)
            self.loop.times.pop("signal", None)

    def check_stopped(self) -> None:
        """Raise Ended where a stop came before the command runs."""
        self.loop.step(0)
        if self.stopped:
            raise Ended(128 + signal.SIGTERM, None, *self.stopped)

    def _signalled(self, numbers: bytes) -> None:
        has_ended = self.processes.wait_status is not None
        self._reap()
        if signal.SIGUSR1 in numbers:
            self._hear_asked()
        if set(numbers) - {signal.SIGCHLD, signal.SIGUSR1}:
            now = time.monotonic()
            if self.terminated is None:
                self.terminated = now
            elif now - self.terminated > AGAIN_SECONDS:
                self._kill()
            if not (self.task.get("cancel_notes") and _beside("host_job").hears_shutdown(self, has_ended)):
                self.stop("cancel", "cancelled")

    def _hear_asked(self) -> None:
        if os.path.exists(self.path("asked")):
            _beside("asked").hear(self)

    # -- what it reads and writes

    def path(self, *parts: str) -> str:
        """A file of the task folder; an absolute one stays what it is."""
        return os.path.join(self.folder, *parts)

    def _remove_secrets(self) -> None:
        """What was delivered has been used, or never will be."""
        for need in self.task.get("needs", []):
            if need.startswith("inbox/") and need.endswith(".json"):
                _quietly(os.unlink, self.path(need))

    def _delivered_variables(self) -> dict[str, str]:
        if "inbox/env.json" not in self.task.get("needs", []):
            return {}
        with open(self.path("inbox/env.json"), "rb") as file:
            variables: dict[str, str] = json.load(file)
        return variables

    def own_variables(self, env: dict[str, str]) -> dict[str, str]:
        """What every task finds in its environment besides its own `env`."""
        task = self.task
        main = (task.get("peers") or ["127.0.0.1"])[0]
        own = {"FLOW_TASK_ID": task["task_id"], "FLOW_TASK_NAME": task.get("name") or "", "FLOW_MAIN_IP": main}
        own.update(FLOW_OUTPUT=self.path("output"), FLOW_WORKSPACE=self.path("workspace"), MASTER_ADDR=main)
        own.update(FLOW_NODE_RANK=str(task.get("rank", 0)), FLOW_ATTEMPT=str(task.get("attempt", 1)))
        own["FLOW_NODE_COUNT"] = own["FLOW_NUM_NODES"] = str(task.get("nodes", 1))
        own["MASTER_PORT"] = env.get("MASTER_PORT") or task.get("env", {}).get("MASTER_PORT", "29500")
        if task.get("attempt", 1) > 1:
            own["FLOW_RESUME"] = "1"
        if task.get("array_index") is not None:
            own["FLOW_ARRAY_INDEX"] = own["SLURM_ARRAY_TASK_ID"] = str(task["array_index"])
        return own

    def _listen(self, fd: int, hear: Callable[[bytes], None]) -> None:
        os.set_blocking(fd, False)

        def read() -> None:
            data = os.read(fd, 65536)
            if data:
                hear(data)
            else:
                self.loop.off(fd)
                os.close(fd)

        self.loop.on(fd, read)

    def _read_rest(self) -> None:
        """What the pipes still hold; a process that escaped us and writes on is not waited for."""
        deadline = time.monotonic() + LEFTOVER_SECONDS
        before = None
        assert self.log
        while self.log.ends != before and time.monotonic() < deadline:
            before = list(self.log.ends)
            self.loop.step(0)

    def report(self, phase: str, **facts: Any) -> None:
        """Put a whole new status.json in place, durably."""
        self.status.update(phase=phase, **facts)
        try:
            self.write("status.json", self.status, durably=True)
        except OSError as error:
            if error.errno not in FULL or not _overwrite(self.path("status.json"), json.dumps(self.status).encode()):
                raise

    def write(self, name: str, value: Any, *, durably: bool = False) -> None:
        """Put a whole new file in place: what is read is never half of one."""
        path = self.path(name)
        fd = os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            data = json.dumps(value).encode()
            while data:
                data = data[os.write(fd, data) :]
            if durably:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(path + ".tmp", path)
        if durably:
            fd = os.open(self.folder, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)


def _locked(path: str) -> int | None:
    """A descriptor that holds the lock on `path`, or None where another one does."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _phase(folder: str) -> str:
    try:
        with open(os.path.join(folder, "status.json"), encoding="utf-8") as file:
            return str(json.load(file)["phase"])
    except FileNotFoundError:
        return ""
    except (ValueError, KeyError, TypeError):  # damaged: nobody can say that it did not run
        return "running"


def close_inherited(keep: set[int | None]) -> None:
    """Nothing of who started us stays open, and 0, 1, 2 are."""
    try:
        open_now = [int(name) for name in os.listdir("/dev/fd")]
    except OSError:
        open_now = list(range(256))
    for fd in open_now:
        if fd > 2 and fd not in keep:
            _quietly(os.close, fd)
    while True:
        fd = os.open(os.devnull, os.O_RDWR)
        if fd > 2:
            return os.close(fd)


def _overwrite(path: str, data: bytes) -> bool:
    """Put `data` where the file's content is, on a disk that has no room for another file; whether it fitted there."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        size = os.fstat(fd).st_size
        written = os.pwrite(fd, data.ljust(size), 0)  # one write within a block that is there: all or nothing
        os.fsync(fd)
        return written >= len(data)
    except OSError:
        return False
    finally:
        os.close(fd)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _quietly(act: Callable[..., Any], *args: Any) -> bool:
    try:
        act(*args)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "run":
        sys.exit("usage: runner.py run DIR")
    run(sys.argv[2])
    os._exit(0)  # at once: a late SIGTERM must not turn a reported end into another
