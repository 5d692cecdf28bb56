"""The tasks on record as Slurm's commands list them, looked at now; arrays folded, or one line for each element."""

from __future__ import annotations

import json
import pwd
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from flow.cli.listing import no_collection
from flow.cli.slurm.command import Refused, words_of
from flow.errors import FlowError
from flow.node import hostlist
from flow.node.hostlist import fold, names_of
from flow.plan import Plan
from flow.references import split_element
from flow.slurm.jobs import Details, Job, details_of, folded, state_and_reason
from flow.status import Outcome, TaskStatus, Want
from flow.users import username

if TYPE_CHECKING:
    from flow.client import Flow
    from flow.machines import Allocation
    from flow.observe import Look
    from flow.record import Row

_REFERENCE = re.compile(r"(?P<task>task-[\w.-]+?|\d+)(?:_(?P<element>\d+)|_\[(?P<elements>[\d,:-]+)(?:%\d+)?\])?")
_FOLDED_AS = {"Priority": "Resources"}  # an array waits behind its own elements, too
_CANCELLED = Outcome(TaskStatus.CANCELLED)
Chosen = Mapping[str, frozenset[int] | None]  # task id -> which elements of an array; None: all of it


class NotAJob(Exception):  # noqa: N818  # it is what was written, for each command to tell of in its own words
    """A word that cannot name a job."""


def chosen_tasks(client: Flow, words: Iterable[str]) -> tuple[dict[str, frozenset[int] | None], list[str]]:
    """The tasks that `12`, `12_3`, `12_[1-5]` or ids of ours name; and those of the words that name none.

    Raises NotAJob for what is not written like one.
    """
    client.finish_interrupted()
    found: dict[str, frozenset[int] | None] = {}
    unknown = []
    for word in words:
        written = _REFERENCE.fullmatch(word)
        if not written:
            raise NotAJob(word)
        try:
            task_id, own = split_element(client.records.find(written["task"]))
        except FlowError:
            unknown.append(word)
            continue
        some = _indices(written["elements"] or written["element"]) if written[0] != written["task"] else None
        asked = frozenset([own]) if own is not None else some
        before = found.get(task_id, frozenset())
        found[task_id] = None if asked is None or before is None else before | asked
    return found, unknown


def split_list(text: str) -> list[str]:
    """At the commas, but for those in brackets."""
    return re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text)


def users_named(asked: Mapping[str, Any], refusal: str) -> frozenset[str] | None:
    """The users that `--me` and `-u` choose, whom this machine must know; None for all."""
    if asked["me"]:
        return frozenset([username()])
    if asked["user"] is None:
        return None
    found: set[str] = set()
    for name in asked["user"].split(","):
        try:
            found.add(pwd.getpwuid(int(name)).pw_name if name.isdecimal() else pwd.getpwnam(name).pw_name)
        except KeyError:
            if name != username():
                raise Refused(f"{refusal}{name}") from None
            found.add(name)
    return frozenset(found)


def load_jobs(
    client: Flow,
    chosen: Chosen | None = None,
    *,
    unfinished: bool = False,
    expand: bool = False,
) -> list[Job]:
    """The jobs as they are now, newest first; `chosen`: only these, `unfinished`: only what has not ended.

    Those of an array that wait for the same are one, unless `expand`.
    """
    with no_collection():
        return _load(client, chosen, unfinished=unfinished, expand=expand)


def _load(client: Flow, chosen: Chosen | None, *, unfinished: bool, expand: bool) -> list[Job]:
    client.finish_interrupted()
    if chosen is None:
        waiting = client.records.rows(unfinished=True)
    else:
        waiting = [row for row in client.records.rows_of(list(chosen)) if not row.state.is_final]
    looks = client.look_at(waiting)
    if chosen is not None:
        rows = client.records.rows_of(list(chosen))
    elif unfinished:
        rows = waiting
    else:
        rows = client.records.rows()
    rows = [row for row in rows if row.number is not None or not row.state.is_final]  # what Slurm refused is no job
    ended = [row for row in rows if row.elements and row.task_id not in looks]
    looks |= client.look_at(ended) if ended else {}
    maker = _Maker(client, time.time(), username())
    jobs = []
    for row in rows:
        look = looks.get(row.task_id)
        if row.elements and (elements := _elements_of(client, row)):
            some = chosen[row.task_id] if chosen is not None else None
            jobs += maker.elements(row, elements, look, some=some, expand=expand)
        else:
            allocation = look.allocations.get(row.task_id) if look else None
            jobs.append(maker.job(row, look.outcome if look else row.outcome, allocation))
    return [job for job in jobs if not job.is_finished] if unfinished else jobs


def matching(
    jobs: list[Job], asked: Mapping[str, Any], *, states: frozenset[str] | None, users: frozenset[str] | None = None
) -> list[Job]:
    """Those that have the names, partitions, nodes, accounts and so on that a command's options ask for; None: any."""
    names, partitions = words_of(asked["name"]), words_of(asked["partition"])
    for field, some in {"name": names, "partition": partitions, "state": states, "user": users}.items():
        if some is not None:
            jobs = [job for job in jobs if getattr(job, field) in some]
    for option in ("account", "qos"):
        if (some := words_of(asked[option])) is not None:
            jobs = [job for job in jobs if job.details.option(option, "") in some]
    if nodes := words_of(asked.get("nodelist")):
        wanted = {name for part in nodes for name in hostlist.expand(part)}
        jobs = [job for job in jobs if wanted & set(hostlist.expand(job.node_list))]
    return jobs


def queue_lines(jobs: Iterable[Job]) -> list[str]:
    """What squeue prints of these jobs where nothing else is asked for."""
    from flow.slurm.formats import short_layout
    from flow.slurm.job_fields import DEFAULT, LETTERS, ORDER, sorted_jobs

    layout = short_layout(DEFAULT, LETTERS)
    return [layout.header, *layout.lines(sorted_jobs(list(jobs), ORDER))]


@dataclass(frozen=True)
class _Maker:
    """Makes jobs of rows."""

    client: Flow
    now: float
    user: str

    def job(
        self,
        row: Row,
        outcome: Outcome,
        allocation: Allocation | None,
        *,
        task_id: str = "",
        number: int | None = None,
        element: str = "",
    ) -> Job:
        """One line, of a task or of an element."""
        task_id = task_id or row.task_id
        partition, node_list = self._place(row, task_id, outcome, allocation)
        state, reason = state_and_reason(
            outcome.state.value, outcome.reason, exit_code=outcome.exit_code, signal=outcome.signal
        )
        return Job(
            task_id=task_id,
            number=(number if element else row.number) or 0,
            array=row.number if element else None,
            element=element,
            name=row.job_name or row.name,
            user=self.user,
            partition=partition or row.partition or row.provider,
            state=state,
            reason=reason,
            nodes=row.nodes,
            node_list=node_list,
            submitted=row.created,
            started=outcome.started,
            ended=outcome.ended,
            exit_code=outcome.exit_code or 0,
            signal=outcome.signal or 0,
            attempt=outcome.attempt,
            asked_priority=row.priority,
            now=self.now,
            load=partial(_details, self.client, task_id),
        )

    def elements(
        self, row: Row, plan: Plan, look: Look | None, *, some: frozenset[int] | None, expand: bool
    ) -> list[Job]:
        """The lines of an array: the elements that wait together as one, and each of the others."""
        indices_of_all, at_once = (plan.elements.indices, plan.elements.at_once) if plan.elements else ((), None)
        whole = look.outcome if look else row.outcome
        jobs = []
        alike: dict[str, tuple[Outcome, list[int]]] = {}  # of those that wait, by the reason
        for index in indices_of_all:
            if some is not None and index not in some:
                continue
            task_id = f"{row.task_id}_{index}"
            outcome = look.elements.get(task_id) if look else None
            if outcome is None:  # nothing of it was given to its provider yet
                outcome = _CANCELLED if self._is_cancelled(task_id) else whole
            if outcome.state is TaskStatus.PENDING and not expand:
                alike.setdefault(outcome.reason, (outcome, []))[1].append(index)
            else:
                jobs.append(self._element(row, plan, look, outcome, index))
        waiting: dict[str, tuple[Job, list[int]]] = {}
        for outcome, indices in alike.values():
            job = self._element(row, plan, look, outcome, indices[0])
            waiting.setdefault(_FOLDED_AS.get(job.reason, job.reason), (job, []))[1].extend(indices)
        for job, indices in waiting.values():
            element = str(indices[0]) if some is not None and len(some) == 1 else folded(sorted(indices), at_once)
            jobs.append(job._replace(number=row.number or 0, element=element))
        return jobs

    def _element(self, row: Row, plan: Plan, look: Look | None, outcome: Outcome, index: int) -> Job:
        task_id = f"{row.task_id}_{index}"
        allocation = look.allocations.get(task_id) if look else None
        number = plan.number_of(index) or row.number
        return self.job(row, outcome, allocation, task_id=task_id, number=number, element=str(index))

    def _is_cancelled(self, task_id: str) -> bool:
        """Whether an element was cancelled on its own: then it has a folder of its own."""
        records = self.client.records
        return records.folder(task_id, 0, 0).parents[1].is_dir() and records.intent(task_id).want is Want.CANCEL

    def _place(self, row: Row, task_id: str, outcome: Outcome, allocation: Allocation | None) -> tuple[str, str]:
        """The partition, "" where that is not known, and the list of nodes, after the end by the record."""
        partition = allocation.partition if allocation else ""
        if outcome.started is None:
            return partition, ""
        if self._is_here(row.provider):
            return partition, nodes_here(row.nodes)
        folder = self.client.records.folder(task_id, outcome.attempt, 0)
        try:
            env = json.loads((folder / "env.json").read_bytes())["env"]
            return partition or env["SLURM_JOB_PARTITION"], env["SLURM_JOB_NODELIST"]
        except (OSError, ValueError, LookupError):
            nodes = allocation.nodes if allocation else ()
            return partition, (allocation and allocation.node_list) or fold([node.instance_id for node in nodes])

    def _is_here(self, provider: str) -> bool:
        try:
            return self.client.provider(provider).capabilities.same_machine
        except FlowError:  # a provider that is not set up any more
            return False


@cache
def nodes_here(count: int) -> str:
    """The names of a task's nodes on this machine, as `SLURM_JOB_NODELIST` has them."""
    from flow.providers.local.rank import loopback

    return fold(names_of({"peers": [loopback(rank) for rank in range(count)]}))


def _details(client: Flow, task_id: str) -> Details:
    """What the record tells beside the row; kept for the next field of the same line."""
    base, index = split_element(task_id)
    return _details_once(client, base, index)


@cache
def _details_once(client: Flow, base: str, index: int | None) -> Details:
    return details_of(_plan(client, base), index, partial(_number_text, client))


@cache
def _plan(client: Flow, base: str) -> Plan:
    try:
        return client.records.get(base).plan
    except FlowError:  # pruned in between, or damaged: the other fields of its line are known
        return Plan(base, "", "", ())


def _elements_of(client: Flow, row: Row) -> Plan | None:
    """The plan of an array; None, with a note, where its record is damaged."""
    try:
        return client.records.get(row.task_id).plan
    except FlowError as error:
        client.notes.append(error.message)
        return None


def _number_text(client: Flow, task_id: str) -> str:
    base, index = split_element(task_id)
    rows = client.records.rows_of([base])
    number = str(rows[0].number) if rows and rows[0].number else base
    return number if index is None else f"{number}_{index}"


def _indices(text: str) -> frozenset[int]:
    """Of `3` or `1-5,7`."""
    found: set[int] = set()
    for part in text.split(","):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        found.update(range(int(first), int(last or first) + 1, int(step or 1)))
    return frozenset(found)
