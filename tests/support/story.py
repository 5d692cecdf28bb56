"""What seeded stories of things that fail have in common: kinds of tasks, surroundings, clients that die, judgement."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from flow.client import Flow
from flow.errors import FlowError
from flow.task import Task

DOOM = Path(__file__).with_name("doom.py")
# What was cut is noticed after two seconds, not after a minute: of an option that is given twice ssh takes the first.
_SSH = """\
#!/bin/sh
exec {ssh} -o ConnectTimeout=2 -o ServerAliveInterval=1 -o ServerAliveCountMax=2 "$@"
"""

Act = tuple[float, Callable[[], object]]  # and its moment, in seconds from the begin


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one story. Each violation begins with what it is about; `seed` tells much the same story again.

    A kill, or another fault, is a word or two; what is known more of it comes after a colon.
    """

    seed: int
    tasks: int
    kills: tuple[str, ...]
    violations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of task: its command after its note that it runs, and the states it ends in where nothing is lost."""

    name: str
    command: str
    states: tuple[str, ...]
    more: dict[str, Any] = field(default_factory=dict)
    is_cancelled: bool = False

    @property
    def fields(self) -> dict[str, Any]:
        """All of a task of this kind but its command."""
        return {"name": self.name.replace(" ", "-").replace(",", ""), "grace_seconds": 0.3, **self.more}


def kind_of(task: Task, kinds: Sequence[Kind]) -> Kind:
    return next(kind for kind in kinds if kind.fields["name"] == task.name)


@contextlib.contextmanager
def surroundings(folder: Path, **more: str) -> Iterator[None]:
    """The environment, with `more` in it, and the current folder of everything in a story."""
    before, here = dict(os.environ), Path.cwd()
    for name in ("home", "tmp", "project"):
        (folder / name).mkdir(parents=True)
    os.environ.update(
        FLOW_HOME=str(folder / "flow"), HOME=str(folder / "home"), TMPDIR=str(folder / "tmp"),
        DEATHS=str(folder / "deaths"), **more,
    )  # fmt: skip
    os.chdir(folder / "project")
    (folder / "project" / "data.txt").write_text("uploaded\n")
    try:
        yield
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def far_surroundings(folder: Path, **more: str) -> Iterator[None]:
    """The same of machines that ssh reaches, with an `ssh` that does not wait long and sockets of its own."""
    (folder / "bin").mkdir(parents=True)
    write_quick_ssh(folder / "bin")
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    with (
        tempfile.TemporaryDirectory(prefix="fl-", dir="/tmp", ignore_cleanup_errors=True) as sockets,
        surroundings(folder, PATH=path, XDG_RUNTIME_DIR=sockets, **more),
    ):
        yield


def write_quick_ssh(folder: Path) -> None:
    """An `ssh` that does not wait long for who does not answer."""
    (folder / "ssh").write_text(_SSH.format(ssh=shutil.which("ssh")))
    (folder / "ssh").chmod(0o755)


def perform(acts: Sequence[Act]) -> None:
    """Do everything at its moment, each in a thread of its own."""
    began = time.monotonic()

    def at(moment: float, act: Callable[[], object]) -> None:
        time.sleep(max(0.0, began + moment - time.monotonic()))
        with contextlib.suppress(FlowError):  # as it does where something is out of reach
            act()

    with ThreadPoolExecutor(len(acts)) as threads:
        for done in [threads.submit(at, *one) for one in acts]:
            done.result()


def deaths(folder: Path) -> list[tuple[str, str]]:
    """Who died by `doom.py`, and where."""
    told = (folder / "deaths").read_text() if (folder / "deaths").exists() else ""
    return [(who, where) for who, _, where in (line.partition(" ") for line in told.splitlines())]


def files_with(secret: str, folder: Path) -> list[Path]:
    """The files below a folder that hold it, whatever kind of file they are; what goes meanwhile does not."""
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and not path.is_symlink() and secret.encode() in path.read_bytes():
                found.append(path)
    return found


class Clients:
    """The processes of a story by name. `fields` has all of a task of a kind; who is killed is written to `kills`.

    What one writes is in `folder`, in `NAME.out` and `NAME.errors`, with `-` for spaces.
    """

    def __init__(self, folder: Path, fields: Callable[[Kind], dict[str, Any]], kills: list[str]) -> None:
        self.folder, self.fields, self.kills = folder, fields, kills
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lasting: set[str] = set()

    def run(self, name: str, kind: Kind, *words: str, dies: object = None) -> None:
        """A `flow run` with its name for idempotency key; dies: see `start`."""
        self.start(name, *self._run_words(name, kind), *words, dies=dies)

    def run_again(self, name: str, kind: Kind) -> list[str]:
        """What a user does whose `flow run` died: the same again; what went wrong."""
        words = [sys.executable, "-m", "flow", *self._run_words(name, kind)]
        ended = subprocess.run(words, capture_output=True, text=True, timeout=120)
        return [f"{name}: `flow run` again ended with {ended.returncode}: {ended.stderr}"] if ended.returncode else []

    def start(self, name: str, *words: str, dies: object = None) -> None:
        """`flow WORDS…`; dies: the line of its code before which it does, as `doom.py` takes it."""
        self._start(name, *(("-m", "flow") if dies is None else (str(DOOM), "client", str(dies))), *words)

    def start_doomed(self, name: str, *words: str) -> None:
        """What else `doom.py` runs, and what nobody waits for."""
        self._lasting.add(name)
        self._start(name, str(DOOM), *words)

    def kill(self, name: str) -> None:
        """If it is there; only the first word of its name is noted."""
        process = self.processes.get(name)
        if process and process.poll() is None:
            process.kill()
            self.kills.append(name.partition(" ")[0])

    def await_ends(self, *, seconds: float) -> list[str]:
        """What does not end by then."""
        late = []
        for name in self.processes.keys() - self._lasting:
            try:
                self.processes[name].wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                late.append(f"{name}: it does not end")
        return late

    def written(self, name: str, what: str = "out") -> str:
        return self._file(name, what).read_text()

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    def _run_words(self, name: str, kind: Kind) -> list[str]:
        """A task file, so that every field can be said; the same one each time for the same name."""
        file = self._file(name, "yaml")
        file.write_text(yaml.safe_dump(self.fields(kind)))
        return ["run", str(file), "--idempotency-key", name]

    def _start(self, name: str, *words: str) -> None:
        with self._file(name, "out").open("wb") as output, self._file(name, "errors").open("wb") as errors:
            self.processes[name] = subprocess.Popen([sys.executable, *words], stdout=output, stderr=errors)

    def _file(self, name: str, what: str) -> Path:
        return self.folder / f"{name.replace(' ', '-')}.{what}"


def units_of(task: Task) -> list[Task]:
    """Itself, or the elements of an array."""
    elements = task.plan.elements
    return [Flow().get_task(f"{task.task_id}_{n}") for n in elements.indices] if elements else [task]


def wrong_attempts(task: Task, ran: set[int]) -> list[str]:
    """What is wrong with the recorded attempts of a task or element whose command ran in those."""
    found = [(one.number, str(one.status)) for one in task.attempts]
    wrong = []
    if len([one for one in found if one[1] != "preempted"]) > task.plan.retries + 1:
        wrong.append(f"{task}: {found} with {task.plan.retries} retries")
    if [one for one in found[:-1] if one[1] not in ("failed", "lost", "preempted")]:
        wrong.append(f"{task}: ran again after {found}")
    if ran - {number for number, _ in found}:
        wrong.append(f"{task} {task.status} ({task.reason}): ran {ran}, recorded are {found}")
    return wrong
