"""Task: the handle a user holds. Its state is derived at each look; what was final once stays so."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from flow.attempts import Attempt, attempt_numbers, attempts_of, moment, ran
from flow.errors import FlowError, QuotaExceededError, TaskFailedError, ValidationError
from flow.machines import Allocation, Machines, Volume
from flow.observe import instances, observe
from flow.patience import Patience
from flow.plan import Plan
from flow.providers import Provider, VolumeStore
from flow.providers.absent import Absent
from flow.record import Records, Submission
from flow.status import HELD, Outcome, TaskStatus, Want

if TYPE_CHECKING:
    import subprocess

    from typing_extensions import Unpack

    from flow.channel import Channel
    from flow.code_upload import Upload
    from flow.config import TaskConfig
    from flow.endpoints import Endpoints
    from flow.forwarding import Forwarding
    from flow.jupyter import Jupyter
    from flow.logs import Block, Folder, Line, LogChoice
    from flow.observe import Instance
    from flow.users import User


class Task:
    """One task, one array, or one element of an array. Times are UTC. Cheap to make; `refresh` looks anew."""

    def __init__(self, submission: Submission, records: Records, provider: Provider, *, task_id: str = "") -> None:
        self.task_id = task_id or submission.task_id
        self.plan: Plan = submission.plan
        self._submission = submission
        self._records = records
        self._provider = provider
        self._elements: dict[str, Outcome] = {}
        self._outcome = Outcome(TaskStatus.PENDING)
        self._patience = Patience()
        self._forwardings: dict[int, Forwarding] = {}  # of `endpoints`

    def __str__(self) -> str:
        return self.task_id

    def __repr__(self) -> str:
        return f"<Task {self.task_id} {self.name} {self.status}>"

    def _repr_html_(self) -> str:
        from flow.views import task_html

        return task_html(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Task) and other.task_id == self.task_id

    def __hash__(self) -> int:
        return hash(self.task_id)

    # -- facts

    @property
    def name(self) -> str:
        """The name given, or one made from the command."""
        return self.plan.name

    @property
    def number(self) -> int | None:
        """What Slurm's commands call it; of an element on a Slurm cluster, what they call its array."""
        index = None if self._index is None else int(self._index)
        return self.plan.number_of(index) or self._records.number(self._submission.task_id)

    @property
    def provider(self) -> str:
        """The name of the provider."""
        return self.plan.provider

    @property
    def config(self) -> TaskConfig:
        """What was asked for."""
        from flow.config import TaskConfig

        return TaskConfig.from_dict(self._submission.config)

    @property
    def status(self) -> TaskStatus:
        """The state as of the last look; compares with and prints as its text."""
        return self._outcome.state

    @property
    def exit_code(self) -> int | None:
        """The command's exit code, once it ended; 128 + n when signal n killed it."""
        return self._outcome.exit_code

    @property
    def signal(self) -> int | None:
        """The signal that killed the command, if one did."""
        return self._outcome.signal

    @property
    def reason(self) -> str:
        """Why it is in this state, where there is more to say."""
        return self._outcome.reason

    @property
    def created_at(self) -> datetime:
        """When it was submitted."""
        return datetime.fromtimestamp(self._submission.created, timezone.utc)

    @property
    def started_at(self) -> datetime | None:
        """When the last attempt started."""
        return moment(self._outcome.started)

    @property
    def ended_at(self) -> datetime | None:
        """When it ended."""
        return moment(self._outcome.ended)

    @property
    def run_seconds(self) -> float | None:
        """How long the last attempt has run, or ran, in seconds."""
        if self._outcome.started is None:
            return None
        return max((self._outcome.ended or time.time()) - self._outcome.started, 0.0)

    @property
    def instance_type(self) -> str:
        """The kind of machine."""
        return self.plan.instance_type

    @property
    def num_instances(self) -> int:
        """How many machines."""
        return self.plan.nodes

    @property
    def price_per_hour(self) -> float | None:
        """US dollars of all machines together, of an element of its own; None where it is not known."""
        price = self.plan.price_per_hour
        return price if price is None or self._index is None else price / self.plan.machines

    @property
    def cost_per_hour(self) -> str:
        """The price as text: `$1.50`."""
        return "" if self.price_per_hour is None else f"${self.price_per_hour:.2f}"

    @property
    def total_cost(self) -> str:
        """What all attempts (of all elements) have cost so far, as text: `$0.40`; "" where nothing is known of it."""
        if not self.price_per_hour:
            return self.cost_per_hour
        each = self.price_per_hour / (self.plan.machines if self.is_array else 1)
        seconds = self._paid_seconds()
        return "" if seconds is None else f"${each * seconds / 3600:.2f}"

    @property
    def is_array(self) -> bool:
        """Whether it is a whole array, not one task or one element."""
        return self.plan.elements is not None and self._index is None

    @property
    def elements(self) -> dict[str, int] | None:
        """Of an array: how many elements are in each state."""
        if not self.is_array:
            return None
        return dict(Counter(str(outcome.state) for outcome in self._element_outcomes()))

    @property
    def is_held(self) -> bool:
        """Whether it waits for `resume`."""
        return self._outcome.reason == HELD or self._records.intent(self.task_id).want is Want.HOLD

    @property
    def endpoints(self) -> Endpoints:
        """URL of each of its `ports`, by port, while the task runs; `["jupyter"]` waits for a Jupyter server on one.

        Listing them never waits, and tells the machine's own address. Looking up one that is not there yet waits for as
        long as it may come; what cannot come raises NoEndpointError. Where this machine reaches the task's only through
        ssh, a port that is looked up is forwarded for as long as this process lives.
        """
        from flow.endpoints import Endpoints

        return Endpoints(self)

    @property
    def shell_command(self) -> str:
        """What to type for a shell in the task."""
        return f"flow ssh {self.task_id}"

    @property
    def attempts(self) -> list[Attempt]:
        """Every start, oldest first, from the record."""
        return attempts_of(self._records, self.task_id, self.plan.nodes, self._outcome)

    @property
    def folder(self) -> Path | None:
        """Where the record of the last attempt lies, once there is one (first node)."""
        numbers = attempt_numbers(self._records, self.task_id)
        return self._records.folder(self.task_id, numbers[-1], 0) if numbers else None

    def record(self) -> dict[str, Any]:
        """The attributes as JSON-ready values, secrets masked: what `--json` prints."""
        from flow.views import task_record

        return task_record(self, self._submission.config)

    # -- looking and acting

    def refresh(self) -> Task:
        """Look again. A final state is kept: it is not asked for twice and never changes."""
        if not self.status.is_final:
            self.see(self._provider.allocations([self.task_id]))
        return self

    def see(self, allocations: Collection[Allocation]) -> None:
        """Take in what the provider said of this task and its elements; a final state stays as it is."""
        outcome, self._elements = observe(
            self._provider, self._records, self.task_id, nodes=self.plan.nodes, allocations=allocations
        )
        if not self.status.is_final:
            self._outcome = outcome
        capabilities = self._provider.capabilities
        if capabilities.moves or capabilities.rents:
            from flow.attend import have_attended

            have_attended(self._records.home, capabilities, self.plan.nodes, outcome, allocations)

    def recall(self, outcome: Outcome, elements: Mapping[str, Outcome] | None = None) -> None:
        """Take a state that the records hold, and those of its elements by their ids."""
        self._outcome, self._elements = outcome, dict(elements or {})

    @property
    def outcome(self) -> Outcome:
        """The state with its facts, as of the last look."""
        return self._outcome

    def wait(self, timeout: float | None = None, *, check: bool = False) -> TaskStatus:
        """Block until the task has ended, at most `timeout` seconds; its final status.

        Raises TimeoutError when the time is up (the task goes on); with `check`, TaskFailedError when it did not
        complete. A task that failed raises nothing otherwise.
        """
        self._patience.wait(self, timeout)
        self._records.note_outcomes({self.task_id: self._outcome})
        if check and self.status is not TaskStatus.COMPLETED:
            raise TaskFailedError(
                f"`{self.task_id}` ended as {self.status}: {self.reason}".removesuffix(": "),
                suggestions=[f"see `flow logs {self.task_id}`"],
            )
        return self.status

    def cancel(self) -> None:
        """Ask for the end of the task and all its processes; durable when it returns. No effect on one that ended."""
        with contextlib.suppress(FlowError):  # what cannot be told is ended all the same
            self.refresh()
        if not self.status.is_final:
            self._records.set_intent(self.task_id, Want.CANCEL)
            self._provider.release(self.task_id)

    def hold(self) -> None:
        """Keep the task, array or element from starting until `resume`; durable when it returns.

        What runs already goes on, and is held should it run again. Raises ValidationError where it has ended.
        """
        from flow.steering import hold

        hold(self, self._records, self._provider)

    def resume(self) -> None:
        """Let a held task, array or element start. Raises ValidationError where it is not held."""
        from flow.steering import resume

        resume(self, self._records, self._provider)

    def requeue(self, *, hold: bool = False) -> None:
        """Stop what runs of it, and let it run again from its beginning: a new attempt, which counts as no failure.

        With `hold` it waits for `resume` first. Raises ValidationError where nothing of it runs, or it may not be.
        """
        from flow.steering import requeue

        requeue(self, self._records, self._provider, hold=hold)

    def send_signal(self, number: int, *, to: str = "all") -> None:
        """Send a signal to the running command and the processes of its group, on every node.

        to: "command" alone, or the "steps" that it started by `srun`. Raises ValidationError where it does not run.
        """
        from flow.steering import send_signal

        send_signal(self, self._provider, number, to=to)

    def allocate(self, attempt: int = 1) -> None:
        """Ask the provider for the machines of a task that is acknowledged, again where that was cut short.

        attempt: with 2 and more, for other ones in the place of those that the attempt before was lost with.
        """
        try:
            number = self._provider.allocate(self.plan, attempt)
        except (ValidationError, QuotaExceededError) as error:  # a definite no: it is not asked again
            self._outcome = self._records.set_final(self.task_id, Outcome(TaskStatus.FAILED, reason=error.message))
            self._records.mark_allocated(self.task_id)
            raise
        self._records.mark_allocated(self.task_id, number)
        if self._records.intent(self.task_id).want is Want.CANCEL:  # by somebody else, with nothing there to release
            self._provider.release(self.task_id)

    def result(self) -> Any:
        """What the command left in `$FLOW_OUTPUT/result.json`, read as JSON; None where it left nothing.

        Of a task that is one call of a function: waits for its end, and gives what the function returned.
        Raises StorageError when the file is not JSON, RemoteError where the function raised an error or did not return.
        """
        from flow.returned import read_json, returned_value

        if self.plan.function:
            self.wait()
            return returned_value(self.plan.function, self.task_id, self.outcome, self.outputs(), self.last_lines)
        path = self.outputs("result.json")
        return path and read_json(path)

    def outputs(self, path: str = "") -> Path | None:
        """A file or folder that the command left under `$FLOW_OUTPUT` of the first node; None where there is none."""
        folder = self.folder
        found = folder and folder / "output" / path
        return found if found and found.exists() else None

    # -- logs

    @overload
    def logs(self, *, follow: Literal[False] = False, tail: int | None = None, stderr: bool = False) -> str: ...
    @overload
    def logs(self, *, follow: Literal[True], tail: int | None = None, stderr: bool = False) -> Iterator[str]: ...
    @overload
    def logs(self, *, follow: bool, tail: int | None = None, stderr: bool = False) -> str | Iterator[str]: ...

    def logs(self, *, follow: bool = False, tail: int | None = None, stderr: bool = False) -> str | Iterator[str]:
        """The output: text, or with `follow` an iterator of lines (without line end) that ends with the task.

        Both streams in the order of their arrival, or `stderr` alone; `tail`: only the last so many lines and, with
        `follow`, those that come after them.
        """
        lines = self.lines(follow=follow, tail=tail, stream="stderr" if stderr else None)
        texts = (line.text.decode(errors="replace") for line in lines)
        return texts if follow else "".join(f"{text}\n" for text in texts)

    def last_lines(self, count: int) -> str:
        """The last lines of the output, as text."""
        return "".join(self.logs(tail=count))

    def lines(self, *, on_look: Callable[[], None] | None = None, **choice: Unpack[LogChoice]) -> Iterator[Line]:
        """The output line by line, each with its attempt, node, stream, time and cursor; see `flow.logs.read_lines`.

        Of an array that of its elements, their index in place of the node. `node`: only that one's. `on_look` is called
        whenever the task was looked at again.
        Raises ValidationError where there is no such node, or for an array of more than 256 elements.
        """
        from flow.logs import read_lines

        chosen: dict[str, Any] = {**choice}
        return read_lines(self._folders(chosen), is_final=partial(self._is_final, on_look), **chosen)

    def blocks(self, *, on_look: Callable[[], None] | None = None, **choice: Unpack[LogChoice]) -> Iterator[Block]:
        """The same, as blocks of whole lines of one stream, in the order of arrival: the fast way."""
        from flow.logs import read_blocks

        chosen: dict[str, Any] = {**choice}
        return read_blocks(self._folders(chosen), is_final=partial(self._is_final, on_look), **chosen)

    # -- access

    @overload
    def shell(
        self,
        command: Sequence[str] | str | None = None,
        *,
        node: int = 0,
        capture: Literal[False] = False,
        tell: Callable[[str], None] = ...,
    ) -> int: ...
    @overload
    def shell(
        self,
        command: Sequence[str] | str,
        *,
        node: int = 0,
        capture: Literal[True],
        tell: Callable[[str], None] = ...,
    ) -> subprocess.CompletedProcess[str]: ...

    def shell(
        self,
        command: Sequence[str] | str | None = None,
        *,
        node: int = 0,
        capture: bool = False,
        tell: Callable[[str], None] = lambda _: None,
    ) -> int | subprocess.CompletedProcess[str]:
        """A shell, or `command`, in the task's folder, environment and container; its exit code.

        With `capture` the `command` reads nothing, and what it wrote comes back beside its `returncode`, as text in
        `stdout` and `stderr`. Of a task that has ended and was run to keep its machine: there, in what is left of the
        folder, with `tell` called with what that costs. Raises ValidationError where it has no such node.
        """
        from flow.access import shell

        return shell(self, self._running() or self._kept(), command, node=node, capture=capture, tell=tell)

    def get_instances(self) -> list[Instance]:
        """Its machines as they are now, by rank; none before there are any, and none once they were let go."""
        mine = [one for one in self._provider.allocations([self.task_id]) if self.is_array or one.task_id == str(self)]
        return [instance for allocation in mine for instance in instances(self._provider, allocation)]

    def get_user(self) -> User:
        """Who submitted it: `username`, and the `email` that git knew in the project then, or ""."""
        from flow.users import User

        return User(self._submission.user, self._submission.email)

    def channel(self, allocation: Allocation, node: int) -> Channel:
        """How to reach the files of one of its machines."""
        return self._provider.channel(allocation, node)

    def reach(self, node: int = 0) -> tuple[Channel, str] | None:
        """The channel to a node, and its folder there; None while it has no such machine that is up."""
        allocation = self._allocation()
        if not allocation or len(allocation.nodes_up) <= node:
            return None
        at = allocation.nodes_up[node]
        return self._provider.channel(allocation, node).through(at.beyond), at.folder

    def forward(
        self, port: int, local: int | None = None, *, node: int = 0, tell: Callable[[str], None] = lambda _: None
    ) -> Forwarding:
        """Make a port of its machine one of this machine's loopback, whose `address` it has, until `close()`.

        local: the port here; None for the same, or the next that is free. A machine that is this one is reached as it
        is. `tell` is called with what goes wrong meanwhile. Raises ValidationError where it does not run, or `local`
        is taken.
        """
        from flow.forwarding import Forwarding

        return Forwarding(self, self._running, port, local, node=node, tell=tell)

    def reached_at(self, port: int) -> str | None:
        """The address here of a port that is forwarded from now on; None where its machine is reached as it is."""
        allocation = self._running()
        if port not in self._forwardings and allocation and allocation.nodes_up:
            if allocation.nodes_up[0].public_address or not self.channel(allocation, 0).prefix:
                return None
            self._forwardings[port] = self.forward(port)
        return self._forwardings[port].address if port in self._forwardings else None

    def copy_from(self, path: str, into: str | Path = ".", *, node: int = 0) -> Path:
        """Copy a file or folder of the task to this machine, as `scp -r` does; where it lies now.

        A relative path begins at its workspace; `output/…` is its `$FLOW_OUTPUT`, also when it has ended. A folder that
        is there takes the copy in; `folder/.` is what is in it. Raises ResourceNotFoundError where there is none.
        """
        from flow.transfer import copy_from

        return copy_from(self, self._running(), self._records, path, into, node=node)

    def copy_to(self, source: str | Path, path: str = "", *, node: int = 0) -> None:
        """Copy a file or folder of this machine to the running task, in the same way; by default to its workspace."""
        from flow.transfer import copy_to

        copy_to(self, self._running(), self._records, source, path, node=node)

    def upload_code(self, source: str | Path = ".", *, node: int = 0) -> Upload:
        """Bring the running task's workspace to the state of the project in `source`, by its ignore file.

        Only what changed there since the last upload travels. What is no longer there is removed, if an upload had put
        it there and nobody changed it since. Raises ValidationError where it does not run, or `source` is no project.
        """
        from flow.code_upload import upload_code

        return upload_code(self, self._running(), self._records.home, Path(source).absolute(), node=node)

    def jupyter(self, *, node: int = 0, origin: str = "", local: int | None = None) -> Jupyter:
        """A Jupyter server in the running task, reached at its `url`: the one that the task serves, else a new one.

        A new one serves the task's workspace, with a token, until `close()` or the end of a `with` block. origin: of a
        page that shall be able to use it, as `https://colab.research.google.com`. local: its port here, which is
        otherwise any. Raises ResourceNotFoundError where Jupyter is not installed in the task.
        """
        from flow.jupyter import Jupyter

        return Jupyter(self, self._running, node=node, origin=origin, local=local)

    def mount(self, volume: Volume, store: VolumeStore) -> str:
        """Give the running task one more volume, on each of its nodes; the path at which it is seen.

        Raises ValidationError where it does not run, the volume is held, or the machine does not allow it.
        """
        from flow.access import mount

        return mount(self, self._running(), volume, store)

    # -- how the above is known

    @property
    def _index(self) -> str | None:
        """The index of an element, as text; None for a whole task or array."""
        return self.task_id.partition("_")[2] or None

    def _allocation(self) -> Allocation | None:
        found = [one for one in self._provider.allocations([self.task_id]) if one.task_id == self.task_id]
        return found[0] if found else None

    def _running(self) -> Allocation | None:
        """The machines of a task that runs: one look tells both."""
        if self.status.is_final:
            return None
        found = self._provider.allocations([self.task_id])
        self.see(found)
        own = (one for one in found if one.task_id == self.task_id)
        return next(own, None) if self.status is TaskStatus.RUNNING else None

    @property
    def has_kept(self) -> bool:
        """Whether it has ended of itself, and was run to keep machines that cost money."""
        has_ended = self.status.is_final and self.status is not TaskStatus.CANCELLED
        return has_ended and self.plan.keep and self._provider.capabilities.rents

    def kept_cost(self) -> str:
        """What the machines that it has kept cost, and how they are given back, as text; "" where there are none."""
        from flow.access import cost_of

        kept = self._kept()
        has_any = kept and (kept.nodes or kept.machines is not Machines.GONE)  # GONE with nodes: nothing runs there
        return cost_of(self, kept) if kept and has_any else ""

    def _kept(self) -> Allocation | None:
        """What is told of the machines that it has kept."""
        return self._allocation() if self.has_kept else None

    def _element_outcomes(self) -> Collection[Outcome]:
        if not self._elements and not isinstance(self._provider, Absent):
            self.see(self._provider.allocations([self.task_id]))
        return self._elements.values()

    def _paid_seconds(self) -> float | None:
        """How long its machines have run, or ran, in all attempts; of an array, the last attempt of each element.

        Of those of which that is known; None: of none.
        """
        if self.is_array:
            spans = [ran(one.state, moment(one.started), moment(one.ended)) for one in self._element_outcomes()]
        else:
            spans = [one.run_seconds for one in self.attempts]
        known = [one for one in spans if one is not None]
        return sum(known) if known else None

    def _folders(self, choice: dict[str, Any]) -> Callable[[], Sequence[Folder]]:
        from flow.log_folders import chosen_folders

        return chosen_folders(self._provider, self._records, self.task_id, self.plan, choice, is_array=self.is_array)

    def _is_final(self, on_look: Callable[[], None] | None) -> bool:
        self._patience.look(self)
        if on_look:
            on_look()
        return self.status.is_final
