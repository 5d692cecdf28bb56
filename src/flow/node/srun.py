"""`srun` inside a task, where there is no Slurm: starts a command over the task's nodes, as one step of it.

`srun.py DIR [options] command …`; DIR is the folder of the task's first node. Its options are in srun_options.py, what
it becomes in srun_layout.py, each node's part in steps.py, what steps share in ledger.py.
Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import socket
import sys
import time
from typing import Any

CONNECT_SECONDS = 60  # for a node whose runner starts late
PIECE = 1 << 14  # of stdin; the next one is sent when all tasks took it
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
             signal.SIGCONT, signal.SIGALRM)  # fmt: skip


def _beside(name: str) -> Any:
    return importlib.import_module(f"{__package__}.{name}" if __package__ else name)


layout, loop, options, processes, srun_layout, steps = map(
    _beside, ("layout", "loop", "srun_options", "processes", "srun_layout", "steps")
)
Refused, say = srun_layout.Refused, srun_layout.say


def main(folder: str, argv: list[str]) -> int:
    """Run one step; the exit code of srun."""
    with open(os.path.join(folder, "task.json"), "rb") as file:
        task = json.load(file)
    try:
        asked, given, command = options.read(argv, os.environ)
        if "version" in asked or "help" in asked or "usage" in asked:
            is_version = "version" in asked
            sys.stdout.write("slurm 22.05.8 (flow)\n" if is_version else "Usage: srun [OPTIONS...] command [args...]\n")
            return 0
        step = srun_layout.Layout(task, asked, given, command)
        return Run(step, folder).run()
    except options.UsageError as error:
        sys.stderr.write(f"{error.args[0]}\n")
        return int(error.args[1])
    except Refused as error:
        say(*error.args)
        return int(os.environ.get("SLURM_EXIT_ERROR", "1"))


class Run:
    """The step at work, seen from srun."""

    def __init__(self, step: Any, folder: str) -> None:
        self.step, self.folder = step, folder
        self.number, self.held = step.enter(folder)
        self.name = f"StepId={step.job}.{self.number}"
        self.loop = loop.Loop()
        self.wires: dict[int, socket.socket] = {}
        self.running: dict[int, set[int]] = {}  # each node's tasks that did not end
        self.untaken: set[int] = set()  # nodes that still feed the last piece of input to their tasks
        self.is_input_over = False
        self.code = 0
        self.is_killed = False  # a task was, and did not end by itself
        self.ended: list[int] = []
        self.is_aborted = False
        self.interrupted = 0.0
        self.outputs = {steps.STDOUT: 1, steps.STDERR: 2}
        self.stdin: int | None = 0
        self.grace = step.task.get("grace_seconds", 30)

    def run(self) -> int:
        """From the start of the tasks to the end of all; the exit code."""
        self._open_files()
        self.loop.on_signals(FORWARDED, self._signalled)
        self._start()
        restore = _raw(0) if "pty" in self.step.asked else lambda: None
        try:
            self._limit()
            self._listen_to_stdin()
            while self.wires:
                self.loop.step()
        finally:
            restore()
        if self.is_killed and not self.is_aborted:
            say(f"Force Terminated {self.name}")
        return self.code

    def _open_files(self) -> None:
        for name, kind in (("stdout", steps.STDOUT), ("stderr", steps.STDERR)):
            path = self.step.whole_file(name)
            if path is None:
                continue
            if name == "stderr" and "error" not in self.step.asked:
                self.outputs[kind] = self.outputs[steps.STDOUT]
                continue
            how = os.O_APPEND if self.step.asked.get("open-mode") == "append" else os.O_TRUNC | os.O_APPEND
            self.outputs[kind] = self._open(path, os.O_WRONLY | os.O_CREAT | how, name)
        path = self.step.whole_file("stdin")
        if path is not None:
            self.stdin = self._open(path, os.O_RDONLY, "stdin")
        elif (self.step.asked.get("input") or "").startswith("none"):
            self.stdin = None

    def _open(self, path: str, how: int, name: str) -> int:
        try:
            return os.open(self.step.filled(path, self.number), how, 0o666)
        except OSError as error:
            raise Refused(f"error: Could not open {name} file: {error.strerror}") from None

    # -- the nodes

    def _start(self) -> None:
        names, task = self.step.names, self.step.task
        env = dict(os.environ)
        for place, spec in list(self.step.specs(self.number, self.folder, env, task.get("step_port") or 0)):
            node = spec["node"]
            wire = self._here(spec) if place == task.get("rank", 0) else self._there(names[place], node)
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self.wires[node] = wire
            self.running[node] = {one["number"] for one in spec["tasks"]}
            steps.send(wire, steps.SPEC, node, json.dumps(spec).encode())
            self.loop.on(wire, self._reader(node, wire))

    def _here(self, spec: dict[str, Any]) -> socket.socket:
        """This node's part is a process of its own: it ends the tasks when this one is killed."""
        ours, theirs = socket.socketpair()
        processes.adopt_orphans(True)  # what a killed one of them leaves is found here
        if os.fork() == 0:
            ours.close()
            for wire in self.wires.values():
                wire.close()
            null = os.open(os.devnull, os.O_RDWR)
            for fd in range(3):
                os.dup2(null, fd)
            signal.set_wakeup_fd(-1)
            steps.Step(theirs, self.step.task, self.folder, is_trusted=True).run()
        theirs.close()
        return ours

    def _there(self, host: str, node: int) -> socket.socket:
        deadline = time.monotonic() + CONNECT_SECONDS
        while True:
            try:
                return socket.create_connection((host, self.step.task["step_port"]), timeout=5)
            except OSError as error:
                if time.monotonic() > deadline:
                    raise Refused(
                        f"error: Task launch for {self.name} failed on node {host}: {error.strerror or error}"
                    ) from None
                time.sleep(0.1)

    def _reader(self, node: int, wire: socket.socket) -> Any:
        wire.settimeout(None)
        frames = steps.Frames()

        def read() -> None:
            try:
                data = wire.recv(1 << 16)
            except OSError:
                data = b""
            for kind, number, content in frames.feed(data):
                self._hear(node, kind, number, content)
            if not data:
                self._gone(node, wire)

        return read

    def _hear(self, node: int, kind: bytes, number: int, content: bytes) -> None:
        if kind in self.outputs:
            self._write(kind, content)
        elif kind == steps.ENDED:
            self._tasks_ended(node, number, json.loads(content))
        elif kind == steps.TAKEN:
            self.untaken.discard(node)
            self._read_more()

    def _write(self, kind: bytes, data: bytes) -> None:
        fd = self.outputs[kind]
        try:
            while data and fd >= 0:
                data = data[os.write(fd, data) :]
        except OSError:  # nobody reads it any more
            self.outputs[kind] = -1
            if fd == 1:
                self.code = max(self.code, 128 + signal.SIGPIPE)
                self._abort(signal.SIGKILL)

    def _gone(self, node: int, wire: socket.socket) -> None:
        self.loop.off(wire)
        wire.close()
        del self.wires[node]
        self.untaken.discard(node)
        if self.running[node]:
            self.code = max(self.code, 1)
            say(f"error: Node failure on {self._host(node)}")
            self._abort(signal.SIGKILL)
            processes.Processes().kill()  # if it was this node
        self._read_more()

    def _host(self, node: int) -> str:
        return str(self.step.names[self.step.taken["places"][node]])

    # -- the tasks

    def _tasks_ended(self, node: int, status: int, numbers: list[int]) -> None:
        self.running[node] -= set(numbers)
        is_first, self.ended = not self.ended, self.ended + numbers
        if status:
            say(f"error: {self._host(node)}: {layout.ranks(numbers)}: {_say_end(status)}")
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGTERM):
            self.is_killed = True
        code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        self.code = max(self.code, code)
        left = any(self.running.values())
        if code and left and "kill-on-bad-exit" in self.step.asked and "end" not in self.loop.times:
            say(f"launch/slurm: _step_signal: Terminating {self.name}")
            self._terminate()
        wait = int(self.step.asked.get("wait") or 0)
        if is_first and left and wait:
            self.loop.after(wait, "wait", lambda: self._waited(wait))

    def _waited(self, wait: int) -> None:
        say(f"First task exited {wait}s ago", *self._states())
        say(f"launch/slurm: _step_signal: Terminating {self.name}")
        self._abort(signal.SIGKILL)

    def _states(self) -> list[str]:
        running = [number for numbers in self.running.values() for number in numbers]
        both = ((running, "running"), (self.ended, "exited"))
        return [f"{self.name} {layout.ranks(numbers)}: {state}" for numbers, state in both if numbers]

    def _abort(self, number: int) -> None:
        """End all tasks, and say so once."""
        if not self.is_aborted and any(self.running.values()):
            self.is_aborted = True
            say(f"Job step aborted: Waiting up to {self.grace + 2:g} seconds for job step to finish.")
        if number == signal.SIGKILL:
            self._signal(number)
        else:
            self._terminate()

    def _terminate(self) -> None:
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        self.loop.after(self.grace, "end", self._kill)

    def _kill(self) -> None:
        """What did not end by itself; a step that was cancelled has been told of already."""
        if not self.is_aborted:
            self._tell_cancelled()
        self._signal(signal.SIGKILL)

    def _tell_cancelled(self, why: str = "") -> None:
        when, step = time.strftime("%Y-%m-%dT%H:%M:%S"), self.name.partition("=")[2]
        os.write(2, f"slurmstepd: error: *** STEP {step} ON {self._host(0)} CANCELLED AT {when}{why} ***\n".encode())

    def _signal(self, number: int) -> None:
        for node, wire in self.wires.items():
            try:
                steps.send(wire, steps.SIGNAL, node, bytes([number]))
            except OSError:  # its reader finds out
                pass

    def _limit(self) -> None:
        minutes = _minutes(self.step.asked.get("time", "0"))
        if minutes:
            self.loop.after(minutes * 60, "limit", lambda: self._cancel(" DUE TO TIME LIMIT"))

    def _cancel(self, why: str = "") -> None:
        is_again = self.is_aborted
        self._abort(signal.SIGKILL if is_again else signal.SIGTERM)
        if not is_again:
            self._tell_cancelled(why)

    # -- srun's own signals and input

    def _signalled(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGINT:
                self._interrupt()
            elif number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
                say("forcing job termination")
                self._cancel()
            elif number in FORWARDED:
                self._signal(number)

    def _interrupt(self) -> None:
        now, before = time.monotonic(), self.interrupted
        self.interrupted = now
        if self.is_aborted or "pty" in self.step.asked:
            self._signal(signal.SIGKILL if self.is_aborted else signal.SIGINT)
        elif now - before <= 1 or "disable-status" in self.step.asked:
            say(f"sending Ctrl-C to {self.name}")
            self._signal(signal.SIGINT)
            self._abort(signal.SIGTERM)
        else:
            say("interrupt (one more within 1 sec to abort)", *self._states())

    def _listen_to_stdin(self) -> None:
        """A terminal or a pipe is watched; of a file there is always more."""
        self.is_watched = False
        if self.stdin is not None:
            self._read_more()
        else:
            self._feed(b"")

    def _read_more(self) -> None:
        """The next piece, once all tasks took the last one."""
        while not (self.untaken or self.is_input_over or self.is_watched) and self.wires and self.stdin is not None:
            try:
                self.loop.on(self.stdin, self._read_stdin)
                self.is_watched = True
            except (OSError, ValueError):
                self._read_stdin()

    def _read_stdin(self) -> None:
        if self.is_watched:
            self.loop.off(self.stdin)
            self.is_watched = False
        try:
            data = os.read(self.stdin or 0, PIECE)
        except OSError:  # there is none
            data = b""
        self._feed(data)
        self._read_more()

    def _feed(self, data: bytes) -> None:
        self.is_input_over = not data
        for node, wire in self.wires.items():
            self.untaken.add(node)
            try:
                steps.send(wire, steps.STDIN, steps.ALL, data)
            except OSError:
                self.untaken.discard(node)


def _say_end(status: int) -> str:
    if not os.WIFSIGNALED(status):
        return f"Exited with exit code {os.WEXITSTATUS(status)}"
    text = signal.strsignal(os.WTERMSIG(status)) or f"Signal {os.WTERMSIG(status)}"
    return text + (" (core dumped)" if os.WCOREDUMP(status) else "")


def _minutes(text: str) -> int:
    """A time limit in whole minutes, as Slurm keeps it; 0: none."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not found:
        return 0
    days, *parts = (int(part) if part else 0 for part in found.groups())
    if found[1] is None and found[4] is None:  # minutes, or minutes:seconds
        parts = [0, *parts[:2]]
    return -(-(((days * 24 + parts[0]) * 60 + parts[1]) * 60 + parts[2]) // 60)


def _raw(terminal: int) -> Any:
    """Let the terminal pass every key on; what puts it back."""
    import termios
    import tty

    before = termios.tcgetattr(terminal)
    tty.setraw(terminal)
    return lambda: termios.tcsetattr(terminal, termios.TCSADRAIN, before)


if __name__ == "__main__":
    code = main(sys.argv[1], sys.argv[2:])
    sys.stdout.flush()
    os._exit(code)
