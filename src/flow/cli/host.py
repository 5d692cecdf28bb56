"""`flow host`: the machines of the SSH provider."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import click

from flow.cli import output
from flow.cli.group import Entry, FlowCommand, TaskGroup
from flow.cli.output import Column
from flow.errors import FlowError

if TYPE_CHECKING:
    from flow.providers.ssh.fleet import Fleet

_COLUMNS = (
    Column("HOST"),
    Column("GPUS"),
    Column("CPUS", right=True),
    Column("MEMORY", right=True),
    Column("RUNNING", right=True),
    Column("WAITING", right=True),
    Column("ADDRESS", least=12),
)
_CLOCK_SECONDS = 5.0  # by which a host's clock may differ without a word

host = TaskGroup(
    {
        "add": Entry("flow.cli.host:add", "Add machines, as ssh knows them.", "Machines"),
        "list": Entry("flow.cli.host:list_", "List the machines and what runs on them.", "Machines"),
        "check": Entry("flow.cli.host:check", "Everything that machines have, and what is missing.", "Machines"),
        "remove": Entry("flow.cli.host:remove", "Take machines out of the list.", "Machines"),
    },
    {"ls": "list", "show": "check", "rm": "remove", "delete": "remove"},
    name="host",
    help="The machines of the SSH provider: any that you can `ssh` to.",
    example="flow host add gpu1 user@10.0.0.7:2222",
)


@click.command("add", cls=FlowCommand)
@click.argument("targets", nargs=-1, required=True, metavar="HOST...")
@click.option("--as", "name", metavar="NAME", help="What to call it here; of one HOST only.")
@click.option("--no-check", is_flag=True, help="Add it though it may not answer now.")
def add(targets: tuple[str, ...], *, name: str | None, no_check: bool) -> int:
    """Add machines to run tasks on: each HOST as ssh knows it, or `user@address:port`.

    Example:
      flow host add gpu1 gpu2 user@10.0.0.7:2222
    """
    from flow.errors import ValidationError
    from flow.providers.ssh.fleet import parse_host

    if name and len(targets) > 1:
        raise ValidationError("`--as` names one host", suggestions=["add them one by one"])
    fleet = _fleet()
    known = {} if no_check else fleet.ask_each(list(fleet.hosts), lambda _, remote: remote.ask("facts"))
    machines = {one["machine"]: host for host, one in known.items() if not isinstance(one, FlowError)}
    for target in targets:
        made = parse_host(f"{target} as {name}" if name else target)
        fleet.add(made)
        told = {} if no_check else fleet.ask_each([made.name], lambda _, remote: remote.ask("facts"))
        answer = told.get(made.name)
        if isinstance(answer, FlowError):
            fleet.remove(made.name)
            answer.suggestions += (f"add it all the same with `flow host add {target} --no-check`",)
            raise answer
        twin = machines.setdefault(answer["machine"], made.name) if answer else made.name
        if twin != made.name:
            fleet.remove(made.name)
            raise ValidationError(
                f"`{target}` is the machine that the fleet has as `{twin}`",
                suggestions=[f"to call it otherwise: `flow host remove {twin}`, then add it `--as NAME`"],
            )
        click.echo(f"{made.name}{output.GAP}{_has(answer) if answer else 'not asked'}")
    output.hint("run there with `flow run --provider ssh`, or for good with `provider: ssh` in the settings")
    return 0


@click.command("list", cls=FlowCommand)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def list_(*, as_json: bool) -> int:
    """List the machines and what runs on them.

    Example:
      flow host list
    """
    fleet = _fleet()
    facts = _ask(fleet, list(fleet.hosts))
    if as_json:
        output.print_json({"hosts": [_document(fleet, name, answer) for name, answer in facts.items()]})
    elif facts:
        click.echo("\n".join(output.table(_COLUMNS, [_row(fleet, name, answer) for name, answer in facts.items()])))
        for answer in facts.values():
            if isinstance(answer, FlowError):
                output.note(answer.message)
    else:
        click.echo("No hosts")
        output.hint("add one with `flow host add gpu1`, as ssh knows it")
    return 0


@click.command("check", cls=FlowCommand)
@click.argument("names", nargs=-1, metavar="[HOST...]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def check(names: tuple[str, ...], *, as_json: bool) -> int:
    """Ask machines, by default all, what they have and tell what is missing; exits with 1 where one does not answer.

    Example:
      flow host check gpu1
    """
    fleet = _fleet()
    facts = _ask(fleet, list(names or fleet.hosts))
    if as_json:
        output.print_json({"hosts": [_document(fleet, name, answer) for name, answer in facts.items()]})
    for name, answer in () if as_json else facts.items():
        click.echo(f"{name}: {answer.message if isinstance(answer, FlowError) else _has(answer)}")
        lacks = answer.suggestions if isinstance(answer, FlowError) else _lacks(answer)
        for line in lacks:
            click.echo(f"  {line}")
    return int(any(isinstance(answer, FlowError) for answer in facts.values()))


@click.command("remove", cls=FlowCommand)
@click.argument("names", nargs=-1, required=True, metavar="HOST...")
@click.option("--force", is_flag=True, help="Even one where tasks have not ended: they are never heard of again.")
def remove(names: tuple[str, ...], *, force: bool) -> int:
    """Take machines out of the list; nothing on them is touched.

    Example:
      flow host remove gpu2
    """
    from flow.errors import ValidationError

    fleet = _fleet()
    for name in names:
        answer = _ask(fleet, [name])[name] if name in fleet.hosts and not force else {}
        if isinstance(answer, FlowError):
            answer.suggestions += (f"take it out all the same with `flow host remove {name} --force`",)
            raise answer
        count = sum(one["count"] for key in ("running", "waiting") for one in answer.get(key, ()))
        if count:
            raise ValidationError(
                f"`{name}` has {count} unfinished task{'s' * (count > 1)}",
                suggestions=["cancel them, or wait for them, first", f"or `flow host remove {name} --force`"],
            )
        click.echo(f"removed {fleet.remove(name).name}")
    return 0


def _fleet() -> Fleet:
    from flow.client import Flow
    from flow.providers.ssh.provider import Ssh

    return cast("Ssh", Flow().provider("ssh")).fleet


def _ask(fleet: Fleet, names: Sequence[str]) -> Mapping[str, dict[str, Any] | FlowError]:
    return fleet.ask_each(names, lambda _, remote: {**remote.ask("facts"), "asked": time.time()}) if names else {}


def _gpus(facts: Mapping[str, Any]) -> str:
    kinds = [one["kind"] for one in facts["gpus"]]
    return ", ".join(f"{kinds.count(kind)}x{kind}" for kind in dict.fromkeys(kinds))


def _has(facts: Mapping[str, Any]) -> str:
    from flow.providers.ssh.placing import cpu_text

    engines = [f"{one} ({fault})" if fault else one for one, fault in facts["engines"].items()]
    parts = [
        _gpus(facts),
        cpu_text(facts["cpus"]),
        f"{facts['memory_gb']:g} GB",
        f"{facts['disk_free_gb']:g} GB free",
    ]
    return ", ".join(part for part in [*parts, *engines, f"python {facts['python']}"] if part)


def _lacks(facts: Mapping[str, Any]) -> list[str]:
    """What a user should know of it."""
    ahead = facts["now"] - facts["asked"]
    found = {
        "no GPU that `nvidia-smi` knows": not facts["gpus"],
        "no docker, podman or apptainer that works: tasks with an `image` fail there": all(facts["engines"].values()),
        f"its clock is {abs(ahead):.0f} s {'ahead' if ahead > 0 else 'behind'}": abs(ahead) > _CLOCK_SECONDS,
        "less than 5 GB of disk are free": facts["disk_free_gb"] < 5,
    }
    return [text for text, holds in found.items() if holds]


def _row(fleet: Fleet, name: str, facts: Mapping[str, Any] | FlowError) -> tuple[str, ...]:
    target = fleet.hosts[name].target
    if isinstance(facts, FlowError):
        return (name, *(output.NOTHING,) * 5, target)
    running, waiting = (sum(one["count"] for one in facts[key]) for key in ("running", "waiting"))
    sizes = (f"{facts['cpus']:g}", f"{facts['memory_gb']:.0f} GB", str(running), str(waiting))
    return (name, _gpus(facts) or output.NOTHING, *sizes, target)


def _document(fleet: Fleet, name: str, facts: Mapping[str, Any] | FlowError) -> dict[str, object]:
    if isinstance(facts, FlowError):
        return {"name": name, "target": fleet.hosts[name].target, "error": facts.message}
    return {"name": name, "target": fleet.hosts[name].target, **facts}
