"""One node's part of a step: starts its tasks, passes on what they print and how they end, and ends them all as soon as
the `srun` that asked for them is gone. `steps.py serve DIR` does that for the `srun` of another node.

Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import importlib
import json
import os
import signal
import socket
import struct
import sys
import time
from typing import Any, Iterator

HEADER = struct.Struct("!cII")  # kind, task, length of what follows
SPEC, STDIN, SIGNAL = b"S", b"I", b"K"  # from srun; the first one is the step itself
STARTED, STDOUT, STDERR, ENDED, TAKEN = b"P", b"O", b"E", b"X", b"A"
ALL = 0xFFFFFFFF  # in place of a task's number
LINE = 1 << 16  # the longest that is kept until it is whole
HELLO_SECONDS = 10  # to say what is wanted, and that one may
TOGETHER_SECONDS = 0.05  # tasks that fail at the same time are told as one
TWICE_SECONDS = 0.5  # in which the runner's SIGTERM and the one that srun passes on are one and the same
VISIBLE_GPUS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK")


def _beside(name: str) -> Any:
    return importlib.import_module(f"{__package__}.{name}" if __package__ else name)


loop, processes, step_task = map(_beside, ("loop", "processes", "step_task"))


def serve(folder: str) -> None:
    """Take steps from the first node until SIGTERM."""
    with open(os.path.join(folder, "task.json"), "rb") as file:
        task = json.load(file)
    _ignore_what_is_for_the_script()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that serve one step
    server = _beside("peers").listening(task["peers"][task["rank"]], task["step_port"])
    while True:
        wire, _ = server.accept()
        if os.fork() == 0:
            server.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            Step(wire, task, folder).run()
        wire.close()


def send(wire: socket.socket, kind: bytes, number: int, data: bytes) -> None:
    """One frame."""
    wire.sendall(HEADER.pack(kind, number, len(data)) + data)


class Frames:
    """Bytes as they come -> frames."""

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
        """Kind, task and content of each that is whole now."""
        self.rest += data
        while len(self.rest) >= HEADER.size:
            kind, number, length = HEADER.unpack_from(self.rest)
            end = HEADER.size + length
            if len(self.rest) < end:
                return
            content, self.rest = self.rest[HEADER.size : end], self.rest[end:]
            yield kind, number, content


class Task:
    """One process of the step, and what is between it and srun."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pid = 0
        self.stdin = -1
        self.waiting = b""  # for room in its stdin
        self.is_fed = False  # nothing follows what waits
        self.open = 0  # streams that it, or what it started, may still write to


class Step:
    """The tasks of one step on this node. What it is told: see `Layout.spec` in srun.py."""

    def __init__(self, wire: socket.socket, task: dict[str, Any], folder: str, *, is_trusted: bool = False) -> None:
        """`is_trusted`: nobody else can be at the other end."""
        self.is_trusted = is_trusted
        self.wire, self.task, self.folder = wire, task, folder
        self.loop = loop.Loop()
        self.frames = Frames()
        self.early: list[tuple[bytes, int, bytes]] = []
        self.spec: dict[str, Any] = {}
        self.tasks: dict[int, Task] = {}
        self.alive: dict[int, Task] = {}  # by pid
        self.failed: dict[int, list[int]] = {}  # by wait status: not told yet
        self.untaken: set[int] = set()  # tasks that did not take all of the last piece of input
        self.is_owed = False  # srun was not told that they did
        self.files: dict[str, int] = {}  # written here, by their paths
        self.is_told = False  # the runner sent SIGTERM to all of us

    def run(self) -> None:
        """To the end of the step, and of this process."""
        try:
            processes.adopt_orphans(True)
            os.setsid()  # Ctrl-C is for srun
            self.loop.on_signals((signal.SIGTERM, signal.SIGCHLD), self._signalled)
            _ignore_what_is_for_the_script()
            self._hello()
            if self.is_trusted or self._is_ours():
                self._start_all()
                while self.alive:
                    self.loop.step()
                self._kill()  # what the tasks left behind
                self._read_rest()
        except (ConnectionError, socket.timeout):  # srun is gone, or never was
            pass
        except Exception:
            sys.excepthook(*sys.exc_info())
        finally:
            self._kill()
            os._exit(0)

    # -- srun's side

    def _hello(self) -> None:
        """The first frame; what came with it is heard later, for there may be no tasks yet."""
        self.wire.settimeout(HELLO_SECONDS)
        while not self.early:
            self.early = list(self.frames.feed(self._receive()))
        self.wire.settimeout(None)
        kind, _, content = self.early.pop(0)
        if kind != SPEC:
            raise ConnectionResetError
        self.spec = json.loads(content)

    def _receive(self) -> bytes:
        data = self.wire.recv(LINE)
        if not data:
            raise ConnectionResetError
        return data

    def _is_ours(self) -> bool:
        return hmac.compare_digest(str(self.spec.get("token")).encode(), self.task["token"].encode())

    def _hear(self) -> None:
        early, self.early = self.early, []
        for kind, number, content in early or self.frames.feed(self._receive()):
            if kind == STDIN:
                self._feed([one for one in self.tasks.values() if number in (ALL, one.number)], content)
            elif kind == SIGNAL:
                self._signal_later(content[0])

    def _signal_later(self, number: int) -> None:
        if number == signal.SIGTERM:
            self.loop.after(TWICE_SECONDS, "term", lambda: None if self.is_told else self._signal(number))
        else:
            self._signal(number)

    def _signal(self, number: int) -> None:
        if number == signal.SIGKILL:
            self._kill()
            return
        for pid in self.alive:
            with contextlib.suppress(OSError):
                os.killpg(pid, number)

    def _kill(self) -> None:
        processes.Processes().kill()

    # -- the tasks

    def _start_all(self) -> None:
        cwd = self._own(self.spec["cwd"])
        for own in self.spec["tasks"]:
            self._start(Task(own["number"]), own, cwd)
        pids = [one.pid for one in self.tasks.values()]
        send(self.wire, STARTED, self.spec["node"], json.dumps(pids).encode())
        if self.early:
            self._hear()
        self.loop.on(self.wire, self._hear)

    def _start(self, task: Task, own: dict[str, Any], cwd: str) -> None:
        theirs, ours = self._streams(task, own)
        env = self._environment(own)
        argv = own["argv"] or self.spec["argv"]
        pid = os.fork()
        if pid == 0:
            step_task.become(theirs, env, argv, cwd, bool(self.spec["size"]))
        for fd in set(theirs):
            os.close(fd)
        task.pid = pid
        self.tasks[task.number] = self.alive[pid] = task
        for fd, kind in ours:
            task.open += 1
            self._listen(task, fd, kind, own)

    def _streams(self, task: Task, own: dict[str, Any]) -> tuple[list[int], list[tuple[int, bytes]]]:
        """Three descriptors for the task, and those that are read here."""
        if self.spec["size"]:
            ours, theirs = os.openpty()
            step_task.set_size(theirs, self.spec["size"])
            task.stdin = os.dup(ours)
            os.set_blocking(task.stdin, False)
            return [theirs] * 3, [(ours, STDOUT)]
        if own["stdin"] is None:
            stdin, task.stdin = os.pipe()
            os.set_blocking(task.stdin, False)
        else:
            stdin = self._open(own["stdin"], os.O_RDONLY, "stdin")
        out, err = (step_task.raw_terminal() if self.spec["unbuffered"] else os.pipe() for _ in range(2))
        return [stdin, out[1], err[1]], [(out[0], STDOUT), (err[0], STDERR)]

    def _listen(self, task: Task, fd: int, kind: bytes, own: dict[str, Any]) -> None:
        """Pass on whole lines; what is no line when the stream ends, too."""
        os.set_blocking(fd, False)
        put = self._putter(task, kind, own["stdout" if kind == STDOUT else "stderr"])
        label = "{:>{}}: ".format(task.number, self.spec["label"]).encode() if self.spec["label"] else b""
        is_raw = bool(self.spec["size"] or self.spec["unbuffered"])
        kept = b""

        def read() -> None:
            nonlocal kept
            try:
                data = os.read(fd, LINE)
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    return
                data = b""  # a terminal whose other end is closed
            whole, newline, kept = (kept + data).rpartition(b"\n")
            if kept and ((is_raw and not label) or not data or len(kept) > LINE):
                whole, newline, kept = whole + newline + kept, b"\n" if label else b"", b""
            if label and (whole or newline):
                whole = b"\n".join(label + line for line in whole.split(b"\n"))
            if whole or newline:
                put(whole + newline)
            if not data:
                self.loop.off(fd)
                os.close(fd)
                task.open -= 1

        self.loop.on(fd, read)

    def _putter(self, task: Task, kind: bytes, path: str | None) -> Any:
        if path is None:
            return lambda data: send(self.wire, kind, task.number, data)
        if path == "":
            return lambda data: None
        if path not in self.files:
            how = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (0 if self.spec["is_appended"] else os.O_TRUNC)
            self.files[path] = self._open(path, how, "stdout" if kind == STDOUT else "stderr")
        fd = self.files[path]
        return lambda data: os.write(fd, data)

    def _open(self, path: str, how: int, what: str) -> int:
        """A descriptor; where the file cannot be opened, srun's user is told, and nothing is read or written."""
        try:
            return os.open(self._own(path), how, 0o666)
        except OSError as error:
            text = f"slurmstepd: error: Could not open {what} file {path}: {error.strerror}\n"
            send(self.wire, STDERR, 0, text.encode())
            return os.open(os.devnull, os.O_RDWR)

    def _feed(self, tasks: list[Task], data: bytes) -> None:
        """Give them a piece of input; an empty one is the last. srun hears when all have taken it."""
        self.is_owed = True
        for task in tasks:
            if data:
                task.waiting += data
            task.is_fed = not data
            self.untaken.add(task.number)
        for task in tasks:
            self._write_stdin(task)
        self._tell_taken()

    def _write_stdin(self, task: Task) -> None:
        """What fits now; the rest when there is room."""
        try:
            while task.waiting and task.stdin >= 0:
                task.waiting = task.waiting[os.write(task.stdin, task.waiting) :]
        except BlockingIOError:
            self.loop.after(0.01, f"stdin {task.number}", lambda: self._write_more(task))
            return
        except OSError:  # it does not want more
            task.waiting = b""
            task.is_fed = True
        self.untaken.discard(task.number)
        if task.is_fed and task.stdin >= 0:
            if self.spec["size"]:
                with contextlib.suppress(OSError):
                    os.write(task.stdin, b"\x04")
            os.close(task.stdin)
            task.stdin = -1

    def _write_more(self, task: Task) -> None:
        self._write_stdin(task)
        self._tell_taken()

    def _tell_taken(self) -> None:
        if self.is_owed and not self.untaken:
            self.is_owed = False
            send(self.wire, TAKEN, ALL, b"")

    # -- their ends

    def _signalled(self, numbers: bytes) -> None:
        self.is_told = self.is_told or signal.SIGTERM in numbers
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            task = self.alive.pop(pid, None)
            if task:
                self.untaken.discard(task.number)
                self.failed.setdefault(status, []).append(task.number)
        if self.failed and (not self.alive or set(self.failed) == {0}):
            self._tell_ends()
        elif self.failed:
            self.loop.after(TOGETHER_SECONDS, "tell", self._tell_ends)
        self._tell_taken()

    def _tell_ends(self) -> None:
        told, self.failed = self.failed, {}
        for status, numbers in told.items():
            send(self.wire, ENDED, status, json.dumps(numbers).encode())

    def _read_rest(self) -> None:
        self._tell_ends()
        deadline = time.monotonic() + 1
        while any(task.open for task in self.tasks.values()) and time.monotonic() < deadline:
            self.loop.step(0.05)
        self.wire.shutdown(socket.SHUT_WR)

    # -- what is this node's own

    def _own(self, path: str) -> str:
        """The place here that is called `path` on srun's node: what lies in the task's folder is in each node's own."""
        theirs = self.spec["folder"]
        if path == theirs or path.startswith(theirs + "/"):
            return self.folder + path[len(theirs) :]
        return os.path.join(self._own(self.spec["cwd"]), path) if not os.path.isabs(path) else path

    def _environment(self, own: dict[str, Any]) -> dict[str, str]:
        spec = self.spec
        env: dict[str, str] = dict(spec["env"])
        bins = (spec["folder"] + "/bin", self.folder + "/bin")
        if "PATH" in env:
            env["PATH"] = ":".join(bins[1] if one == bins[0] else one for one in env["PATH"].split(":"))
        for name in ("FLOW_OUTPUT", "FLOW_WORKSPACE"):
            if name in env:
                env[name] = self._own(env[name])
        if "FLOW_NODE_RANK" in env:
            env["FLOW_NODE_RANK"] = str(self.task.get("rank", 0))
        env.setdefault("TMPDIR", "/tmp")
        env.update(SLURM_PROCID=str(own["number"]), SLURM_LOCALID=str(own["local"]))
        if own["gpus"] is not None:
            given = self.task.get("given_gpus") or []
            ids = ",".join(str(given[place]) for place in own["gpus"] if place < len(given))
            env.update(dict.fromkeys(VISIBLE_GPUS, ids))
            env.pop("SLURM_STEP_GPUS", None)
            if ids:
                env["SLURM_STEP_GPUS"] = ids
        return env


def _ignore_what_is_for_the_script() -> None:
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    serve(sys.argv[2])
