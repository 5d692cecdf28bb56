"""What enters a running task: a shell or a command, one more volume; and how anything else does."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flow.channel import UNREACHABLE, Channel
from flow.errors import FlowError, ValidationError
from flow.log_folders import check_in_reach, check_rank
from flow.machines import Allocation, Machines, Node, Volume
from flow.node import mounts, tail
from flow.providers import VolumeStore
from flow.remote import packed_program

if TYPE_CHECKING:
    from flow.task import Task

_FOR_MOUNTS = ("mount_points", "processes", "remains", "fuse", "sshfs")  # goes along with it to another machine
_HANG_UP = 'read -r _; kill -HUP "$1"'  # when its standard input ends


def shell(
    task: Task,
    allocation: Allocation | None,
    command: Sequence[str] | str | None,
    *,
    node: int,
    capture: bool,
    tell: Callable[[str], None],
) -> int | subprocess.CompletedProcess[str]:
    """What `Task.shell` promises, of a task that has these machines while it runs, or has kept them."""
    if capture and not command:
        raise ValidationError("there is no command to capture", suggestions=["name one, as `nvidia-smi -L`"])
    words = ["sh", "-c", command] if isinstance(command, str) else list(command or ())
    terminal = not capture and sys.stdin.isatty()
    if allocation and task.status.is_final:
        argv = _entering_kept(_kept_node_of(task, allocation, node), words, terminal=terminal)
        tell(cost_of(task, allocation))
    else:
        argv = entering(node_of(task, allocation, node, "a shell"), words, terminal=terminal)
    if not capture:
        return in_front(argv)
    ran = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    texts = [output.decode(errors="replace") for output in (ran.stdout, ran.stderr)]
    return subprocess.CompletedProcess(words, ran.returncode, *texts)


def in_front(argv: Sequence[str]) -> int:
    """Run it before the user to its end: its exit code. Ctrl-C is its own business, and SIGTERM is passed on to it.

    Where this process is killed it is told that nobody is there any more.
    """
    heard: list[int] = []
    running: list[subprocess.Popen[bytes]] = []

    def hear(number: int, _: object) -> None:
        heard.append(number)
        if number != signal.SIGINT:  # which the terminal sends to both
            for one in running:
                one.send_signal(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {one: signal.signal(one, hear) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with subprocess.Popen(argv) as process, _hung_up_with_us(process.pid):
            running.append(process)
            code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if heard and (code < 0 or code == UNREACHABLE):  # ssh's own end
        return 128 + heard[0]
    return code if code >= 0 else 128 - code


@contextmanager
def _hung_up_with_us(pid: int) -> Iterator[None]:
    """SIGHUP for that process when ours ends in between: an ssh would stay, and with it what it runs elsewhere."""
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    words = ["sh", "-c", _HANG_UP, "sh", str(pid)]
    with subprocess.Popen(words, stdin=pipe, stdout=null, stderr=null, start_new_session=True) as watch:
        try:
            yield
        finally:
            watch.kill()


@dataclass(frozen=True, slots=True)
class Place:
    """One machine of a running task, and how to run a command on the machine itself."""

    node: Node
    channel: Channel


def node_of(task: Task, allocation: Allocation | None, node: int, what: str) -> Place:
    """That machine of a task that has these while it runs.

    Raises ValidationError where it cannot have `what`, ProviderError where its machines are out of reach.
    """
    check_in_reach(task.task_id, [allocation] if allocation else [])
    if not allocation or not allocation.nodes_up:
        why = (
            f"an array: {what} needs one of its elements"
            if task.is_array
            else f"{task.status}: {what} needs a running task"
        )
        raise ValidationError(f"`{task.task_id}` is {why}", suggestions=[way_in(task)])
    check_rank(task.task_id, task.plan, node, is_array=False)
    at = allocation.nodes_up[node]
    return Place(at, task.channel(allocation, node).through(at.beyond))


def entering(place: Place, words: Sequence[str], *, terminal: bool = False) -> list[str]:
    """The argv that runs `words`, or a shell, in the task's folder, environment and container."""
    argv = ["enter", place.node.folder, *(["--", *words] if words else [])]
    if place.channel.is_here:
        return [sys.executable, str(Path(tail.__file__)), *argv]
    # its standard input is the user's: the program goes along as a word
    return place.channel.python_command(packed_program(tail, ("mount_points", "mounts")), *argv, terminal=terminal)


def _kept_node_of(task: Task, kept: Allocation, node: int) -> Place:
    """That machine of a task that has ended, and kept them. Raises ValidationError where it is not there."""
    check_in_reach(task.task_id, [kept])
    check_rank(task.task_id, task.plan, node, is_array=False)
    if not kept.nodes:
        why = "is gone" if kept.machines is Machines.GONE else f"cannot be entered: {kept.reason}"
        raise ValidationError(
            f"`{task.task_id}` is {task.status}, and the machine that it kept {why}",
            suggestions=[f"see its output with `flow logs {task.task_id}`"],
        )
    return Place(kept.nodes[node], task.channel(kept, node))


def _entering_kept(place: Place, words: Sequence[str], *, terminal: bool) -> list[str]:
    """The argv that runs `words`, or a shell, on the machine itself: the task and its container are gone."""
    folder = shlex.quote(f"{place.node.folder}/workspace")
    run = shlex.join(words) if words else '"${SHELL:-sh}"'
    return place.channel.command(f"cd {folder} 2>/dev/null; exec {run}", terminal=terminal)


def cost_of(task: Task, kept: Allocation) -> str:
    """What there is to know of machines that a task which has ended has kept."""
    price = "an unknown price" if kept.price_per_hour is None else f"${kept.price_per_hour:.2f}/h"
    costs = "machines cost" if task.plan.machines > 1 else "machine costs"
    base = task.task_id.partition("_")[0]
    return f"`{task.task_id}` is {task.status}; its {costs} {price} until `flow orphans {base} --yes`"


def mount(task: Task, allocation: Allocation | None, volume: Volume, store: VolumeStore) -> str:
    """What `Task.mount` promises, of a task that has these machines while it runs."""
    if volume.interface == "block" and task.plan.nodes > 1:
        raise ValidationError(
            f"the block volume `{volume.name}` cannot be mounted by {task.plan.nodes} nodes",
            suggestions=["use a volume made with `--interface file`"],
        )
    check_in_reach(task.task_id, [allocation] if allocation else [])
    if not allocation or not allocation.nodes_up:
        if task.is_array and task.plan.elements:
            way = f"name an element: `flow mount {volume.name} {task.task_id}_{task.plan.elements.indices[0]}`"
            what = "an array: a volume is for one of its elements"
            raise ValidationError(f"`{task.task_id}` is {what}", suggestions=[way])
        raise not_running(task)
    source = store.attach(volume.volume_id, replace(task.plan, task_id=task.task_id))  # an element's own
    is_bound = volume.volume_id in [one.source for one in task.plan.mounts]
    try:
        for node in allocation.nodes_up:
            _bind(task.task_id, Place(node, task.channel(allocation, node.rank)), source, volume.name)
            is_bound = True
    except FlowError:
        if not is_bound:
            store.detach(volume.volume_id, task.task_id)
        raise
    return f"/mnt/{volume.name}"


def not_running(task: Task) -> ValidationError:
    """That a task cannot have a volume more, as it waits or has ended."""
    return ValidationError(f"`{task.task_id}` is {task.status}, not running", suggestions=[way_in(task)])


def way_in(task: Task) -> str:
    """What to do where a task that does not run cannot be entered."""
    one = f"{task.task_id}_{task.plan.elements.indices[0]}" if task.is_array and task.plan.elements else task.task_id
    if task.has_kept:
        return f"its machine was kept: `flow ssh {one}` opens a shell on it"
    if task.status.is_final:
        return f"see its output with `flow logs {task.task_id}`"
    if task.is_held:
        return f"it is held: let it start with `flow resume {task.task_id}`"
    if task.is_array:
        return f"name an element: `flow ssh {one}`"
    return f"wait until it runs: `flow status {task.task_id} --watch`"


def _bind(task_id: str, place: Place, source: str, name: str) -> None:
    words = ["add", place.node.folder, source, name]
    if place.channel.is_here:
        argv = [sys.executable, str(Path(mounts.__file__)), *words]
    else:
        argv = place.channel.python_command(packed_program(mounts, _FOR_MOUNTS), *words)
    told = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if told.returncode == UNREACHABLE and not place.channel.is_here:
        raise place.channel.unreachable(told.stderr)
    if told.returncode:
        raise ValidationError(f"`{task_id}` cannot be given the volume `{name}`: {told.stderr.strip()}")
