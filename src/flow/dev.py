"""The development machine: a task that holds one, found again by its name and label; shells and commands on it."""

from __future__ import annotations

import json
import math
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flow import standing
from flow.access import Place, in_front, node_of
from flow.channel import Channel, by_any_shell
from flow.client import Flow
from flow.errors import FlowError, ProviderError, ResourceNotFoundError, ValidationError
from flow.errors import TimeoutError as FlowTimeoutError
from flow.machines import Allocation, Machines, Offer
from flow.node import session
from flow.remote import NODE, packed_program
from flow.status import TaskStatus, Want

if TYPE_CHECKING:
    from flow.code_upload import Reading, Upload
    from flow.task import Task

NAME, LABEL = "dev", "flow.dev"  # the label's value: how many seconds it may be idle, 0 for ever
NAMED = "flow.dev.named"  # a label of one whose kind of machine was asked for
IDLE_SECONDS = 7200.0  # where machines cost money
_MODULES = ("tail", "processes", "mount_points", "mounts", "container")  # that `session.py` uses
# Counts how long nobody was there; each session leaves a file, which only this removes, so that none is missed.
_HOLD = """cd .. && mkdir -p sessions && idle=0 || exit
is_alive() {
  note=$2
  [ -e /proc/self/stat ] || { kill -0 "$1" 2>/dev/null; return; }
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return
  set -- ${stat##*)}
  grep -q "\\"began\\": \\"${20}\\"" "$note"
}
while sleep "$2"; do
  idle=$((idle + $2))
  for one in sessions/*; do
    [ -e "$one" ] || continue
    idle=0
    is_alive "${one##*/}" "$one" || rm -f "$one"
  done
  [ "$1" -eq 0 ] || [ "$idle" -lt "$1" ] || exit 0
done"""
_LOOK_SECONDS = 30  # between its looks
_END_SECONDS = 10  # that are waited for its end
_AGAIN_SECONDS = 1.0  # before a project that could not be read is read again
_POLL_SECONDS = 0.1  # between looks at the project, while it is watched
_ANOTHER = ["end it first with `flow dev --stop`", "or leave that option out"]


@dataclass(frozen=True, slots=True)
class Session:
    """A shell or a command on the machine. `is_fresh`: a command in a container, or with a /tmp, of its own."""

    pid: int
    what: str
    is_fresh: bool
    started: float


class DevMachine:
    """The one of a client's provider. `environment` names one of several workspaces on it.

    Each method that needs it to run raises ResourceNotFoundError where there is none.
    """

    def __init__(self, client: Flow | None = None, *, environment: str = "") -> None:
        if environment and not re.fullmatch(r"\w[\w.-]{0,63}", environment):
            raise ValidationError(
                f"`{environment}` cannot be the name of an environment", suggestions=["use letters, digits, - and _"]
            )
        self.client = client or Flow()
        self.environment = environment
        self.is_new = False  # whether `start` started it
        self._is_named = False  # whether that was asked for a kind of machine
        self._provider = self.client.provider()
        self._task: Task | None = None
        self._allocation: Allocation | None = None
        self._reading: Reading | None = None

    # -- the machine

    def find(self) -> Task | None:
        """The task that holds it, as it is now; None where there is none."""
        found = standing.find(self.client, NAME, LABEL)
        if found is None:
            return None
        self._task, self._allocation = found
        return self._task

    def start(
        self,
        *,
        instance_type: str | None = None,
        region: str | None = None,
        idle_stop_seconds: float | None = None,
        upload: bool = True,
    ) -> Task:
        """The task that holds it, started where there is none, by one of those who ask at once; it may still wait.

        instance_type: by default the setting `dev.instance_type`, else h100 where there are any, else the cheapest with
        a GPU, else any. region: of the provider, or a host of a fleet; by default the setting `dev.region`, else any.
        idle_stop_seconds: it ends when nobody was there for so long; by default two hours where it costs money, and
        never (0) elsewhere. upload: with a copy of the current folder.
        Raises ValidationError where it is there, and is another than what is asked for.
        """
        self._is_named = bool(instance_type)
        with standing.alone(self.client, NAME):
            task = self.find()
            if task is None:
                self._task = task = self._submit(instance_type, region, idle_stop_seconds, upload)
                self._allocation, self.is_new = None, True
            else:
                self.is_new = False
        if not self.is_new:
            _check_same(task, instance_type, idle_stop_seconds)
            self._check_where(task, region)
        return task

    def stop(self) -> Task:
        """End the machine, and all that runs on it; the task that held it, which has ended, or is told to.

        One that is out of reach is told so by the first `flow` command that finds it to answer again.
        """
        task = self.task
        self.client.records.set_intent(task.task_id, Want.CANCEL)  # who is on it sees why
        if self.is_silent:
            with suppress(ProviderError):
                self._provider.release(task.task_id)
            return task
        with suppress(FlowError):  # it may wait still, or be out of reach
            self._ask("end")
        task.cancel()
        with suppress(FlowTimeoutError):
            task.wait(_END_SECONDS)
        return task

    def reset(self) -> int:
        """End the commands that run on it and remove their containers; how many. Files and shells stay."""
        self._found()
        count: int = self._ask("end", "fresh")
        return count

    def sessions(self) -> list[Session]:
        """What runs on it, besides; nothing while it waits itself."""
        if self._found().status is not TaskStatus.RUNNING:
            return []
        keys = ("pid", "what", "is_fresh", "started")
        return [Session(*(one[key] for key in keys)) for one in self._ask("list")]

    @property
    def task(self) -> Task:
        """The task that holds it, as of the last look."""
        return self._task or self._found()

    @property
    def is_silent(self) -> bool:
        """Whether it was out of reach at the last look."""
        return self._allocation is not None and self._allocation.machines is Machines.SILENT

    @property
    def host(self) -> str:
        """What its provider calls the machine."""
        return self._place().node.instance_id

    # -- on the machine

    def read_ahead(self, source: str | Path = ".") -> None:
        """Begin to read the project while the machine is looked for: the next `sync` of it brings it as it is now."""
        from flow.code_upload import Reading

        if self.client.records.rows(unfinished=True, name_pattern=NAME):  # else it is submitted, and read for that
            self._reading = Reading(Path(source).absolute(), self.client.home)
            self._reading.start()

    def sync(self, source: str | Path = ".") -> Upload:
        """Bring its workspace to the state of the project in `source`, as `Task.upload_code` does."""
        from flow.code_upload import upload_code

        place, allocation = self._place(), self._allocation
        assert allocation
        if self.environment:
            own = self._ask("prepare", self.environment)
            allocation = replace(allocation, nodes=(replace(place.node, folder=own), *allocation.nodes[1:]))
        source = Path(source).absolute()
        reading, self._reading = self._reading, None
        reading = reading if reading and reading.source == source else None
        return upload_code(self.task, allocation, self.client.home, source, node=0, reading=reading)

    def run(self, command: str | None = None, *, image: str | None = None) -> int:
        """A shell command, or a shell, in the workspace before the user, to its end: its exit code.

        A command has a container of its own where there is an image (by default that of the setting `dev.image`), else
        a /tmp of its own, which it says. A container goes without the machine's GPUs where its engine cannot give them,
        unless the kind of machine was asked for.
        """
        return in_front(self._argv(command, image))

    def watch(self, command: str, *, image: str | None = None, tell: Callable[[str], None]) -> None:
        """Run the command, ended and begun again at each change to the current folder, until it is interrupted."""
        from flow.bundle import make_bundle

        here, home = Path.cwd(), self.client.home
        self.sync(here)  # refuses what is no project
        is_first = True
        while True:
            self._found()
            try:
                bundle = make_bundle(here, home).id
                self.sync(here)
            except FlowError as error:  # as while a file is being saved
                tell(error.message)
                time.sleep(_AGAIN_SECONDS)
                continue
            argv, is_first = self._argv(command, image, leash=True, tells=is_first), False
            # apart from our group: it is ended by the end of its input, so that its end is waited for wherever it runs
            with subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True) as process:
                assert process.stdin
                is_told = False
                try:
                    while _bundle_of(here, home, bundle) == bundle:
                        if not is_told and process.poll() is not None:
                            tell(f"exit {process.returncode}; runs again at the next change")
                            is_told = True
                        time.sleep(_POLL_SECONDS)
                finally:
                    process.stdin.close()
                    process.wait()

    def _argv(self, command: str | None, image: str | None, *, leash: bool = False, tells: bool = True) -> list[str]:
        place = self._place()
        default = self.client.settings.get("dev.image") if command else None
        asked = {
            "argv": by_any_shell(command) if command else (),
            "what": command or "a shell",
            "environment": self.environment,
            "image": image or default,
            "needs_image": bool(image),
            "needs_gpu": self._is_named or NAMED in self.task.plan.labels,
            "leash": leash,
            "tells": tells,
        }
        terminal = not leash and sys.stdin.isatty() and sys.stdout.isatty()
        words = ["run", place.node.folder, json.dumps(asked)]
        if place.channel.is_here:
            return [*_program(place.channel), *words]
        return place.channel.command(shlex.join(["exec", *_program(place.channel), *words]), terminal=terminal)

    # -- how the above is known

    def _found(self) -> Task:
        task = self.find()
        if task is None:
            raise ResourceNotFoundError(
                f"there is no development machine at {self._provider.name}", suggestions=["start one with `flow dev`"]
            )
        return task

    def _look(self, task: Task) -> None:
        allocations = self._provider.allocations([task.task_id])
        task.see(allocations)
        self._task, self._allocation = task, next(iter(allocations), None)

    def _place(self) -> Place:
        """Where it is, as of the last look at which it ran."""
        task = self.task
        if self._allocation is None or self._allocation.machines not in (Machines.UP, Machines.SILENT):
            self._look(task)
        found = self._allocation
        if found and found.machines is Machines.SILENT:
            raise ProviderError(
                f"the development machine is out of reach: {found.reason}",
                suggestions=["try again later", "or give it up with `flow dev --stop --yes`"],
            )
        return node_of(task, found, 0, "the development machine")

    def _ask(self, verb: str, *words: str) -> Any:
        """What `session.py` says there."""
        place = self._place()
        program = shlex.join([*_program(place.channel), verb, place.node.folder, *words])
        done = place.channel.ask(f"exec {program}")
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise FlowError(f"the development machine failed: {said}", suggestions=["try again"])
        return json.loads(done.stdout)

    def _submit(
        self, instance_type: str | None, region: str | None, idle_stop_seconds: float | None, upload: bool
    ) -> Task:
        settings = self.client.settings
        named = instance_type or settings.get("dev.instance_type")
        region = region or settings.get("dev.region")
        config = self.client.load(
            name=NAME,
            instance_type=named or _default_type(self._provider.offers(), region),
            region=region,
            upload_code=upload,
            provider=self._provider.name,
        )
        if idle_stop_seconds is None:
            idle_stop_seconds = 0 if self.client.plan(config).price_per_hour == 0 else IDLE_SECONDS
        idle = math.ceil(idle_stop_seconds)
        look = min(_LOOK_SECONDS, idle or _LOOK_SECONDS)
        command = ["sh", "-c", _HOLD, "hold", str(idle), str(look)]
        labels = {LABEL: str(idle), **({NAMED: ""} if named else {})}
        return self.client.run(config.copy_with(command=command, labels=labels))

    def _check_where(self, task: Task, region: str | None) -> None:
        """Raises ValidationError where the machine is elsewhere than asked for."""
        nodes = self._allocation.nodes if self._allocation else ()
        where = [*([task.plan.region] if task.plan.region else []), *(one.instance_id for one in nodes)]
        if region and region not in where:
            raise ValidationError(
                f"the development machine is {f'in `{where[-1]}`' if where else 'anywhere'}, not in `{region}`",
                suggestions=_ANOTHER,
            )


def idle_stop_seconds(task: Task) -> int:
    """After how long without anybody the machine that this task holds ends; 0: never."""
    return int(task.plan.labels[LABEL])


def _default_type(offers: Sequence[Offer], region: str | None = None) -> str | None:
    """The cheapest h100, else the cheapest with a GPU, else any; what is taken now only where there is no other."""
    offers = [one for one in offers if region in (None, one.region, *one.hosts)]
    ranks = [(one.gpu is None, one.gpu is not None and one.gpu.kind != "h100", one.available == 0) for one in offers]
    best = min(range(len(offers)), key=lambda at: ranks[at], default=None)  # the first of its rank is the cheapest
    return None if best is None else offers[best].instance_type


def _check_same(task: Task, instance_type: str | None, idle: float | None) -> None:
    """Raises ValidationError where the machine is there already, and another than what is asked for."""
    if instance_type and not standing.is_kind(task, instance_type):
        raise ValidationError(
            f"the development machine is of type `{task.instance_type}`, not `{instance_type}`", suggestions=_ANOTHER
        )
    if idle is not None and math.ceil(idle) != idle_stop_seconds(task):
        told = f"after {idle_stop_seconds(task)} idle seconds" if idle_stop_seconds(task) else "never"
        raise ValidationError(f"the development machine was started to stop by itself {told}", suggestions=_ANOTHER)


def _bundle_of(project: Path, home: Path, before: str) -> str:
    """What the project is now; as before while its files cannot be read whole, as when one is being saved."""
    from flow.bundle import make_bundle

    try:
        return make_bundle(project, home).id
    except FlowError:
        return before


def _program(channel: Channel) -> list[str]:
    """The argv of `session.py` on the machine; where it is another one, with all that it uses in one word."""
    if channel.is_here:
        return [sys.executable, str(NODE / "session.py")]
    return [channel.python, "-c", packed_program(session, _MODULES)]
