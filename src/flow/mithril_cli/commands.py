"""The commands of `mithril`: list, get, create, update and delete, made for each kind of thing from its data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from flow.cli import output
from flow.cli.confirm import confirmed
from flow.cli.group import Entry, FlowCommand, TaskGroup, UsageError
from flow.cli.shell_start import SHELLS, completion_script
from flow.errors import FlowError
from flow.mithril_cli import resources, show
from flow.mithril_cli.filters import chosen, read_filters
from flow.mithril_cli.lookup import Lookup, Row
from flow.mithril_cli.parameters import body_of, common_options, field_option, references_argument, references_of
from flow.mithril_cli.resources import Resource

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

T = TypeVar("T")

_SIDE_BY_SIDE = 8  # requests
_SYNONYMS = {
    "add": "create", "cancel": "delete", "describe": "get", "info": "get", "ls": "list", "new": "create",
    "remove": "delete", "rm": "delete", "set": "update", "show": "get",
}  # fmt: skip


class ResourceGroup(TaskGroup):
    """`mithril bids`: what can be done to one kind of thing."""

    def __init__(self, resource: Resource) -> None:
        there = {
            "list": True, "get": True, "create": bool(resource.create), "update": bool(resource.update),
            "delete": resource.has_delete,
        }  # fmt: skip
        texts = {
            "list": f"List {resource.many}, or some of them.", "get": f"Everything about one {resource.one}.",
            "create": f"Make a new {resource.one}.", "update": f"Change {resource.many}.",
            "delete": f"Remove {resource.many}.",
        }  # fmt: skip
        super().__init__(
            {name: Entry("", text, "Actions") for name, text in texts.items() if there[name]},
            _SYNONYMS,
            name=resource.name,
            help=f"{resource.many[:1].upper()}{resource.many[1:]}.",
            example=f"mithril {resource.name} list {resource.examples.get('list', '')}".rstrip(),
        )
        self.resource = resource

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Make the command of that name, or None."""
        return _MADE[cmd_name](self.resource, self.table[cmd_name].help) if cmd_name in self.table else None


class ListCommand(FlowCommand):
    """A command that takes `--FIELD VALUE` of any field beside its options."""

    def __init__(self, resource: Resource, **kwargs: Any) -> None:
        super().__init__("list", context_settings={"ignore_unknown_options": True}, **kwargs)
        self.resource = resource

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """click's own, and the fields."""
        from click.shell_completion import CompletionItem

        found = [CompletionItem(one) for one in _filter_options(self.resource) if one.startswith(incomplete or " ")]
        return [*found, *super().shell_complete(ctx, incomplete)]


def _list_command(resource: Resource, text: str) -> click.Command:
    def act(*, words: Sequence[str], most: int | None, as_json: bool, ids: bool = False, **where: str | None) -> int:
        from itertools import islice

        wanted = read_filters(resource, words)
        lookup = _lookup(**where)
        show.rows(islice(chosen(lookup, resource, wanted), most), resource, lookup, as_json=as_json, only_ids=ids)
        return 0

    def states(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
        after = ctx.params["words"][-1:] == ("--status",)
        return [one for one in resources.STATES.get(resource.name, ()) if after and one.startswith(incomplete)]

    filters = click.Argument(
        ["words"], nargs=-1, type=click.UNPROCESSED, metavar="[--FIELD VALUE]...", shell_complete=states
    )
    return ListCommand(
        resource,
        help=f"{text} `--FIELD VALUE` keeps those whose field has this value: several with commas between them, "
        f"patterns as `train-*`, `none` for nothing.\n\nThe fields are {', '.join(_filter_options(resource))}."
        f"{_example(resource, 'list', '')}",
        params=[
            filters,
            click.Option(["-n", "--limit", "most"], type=click.IntRange(min=1), metavar="N", help="The first N only."),
            *common_options(resource),
        ],
        callback=act,
    )


def _get_command(resource: Resource, text: str) -> click.Command:
    def act(*, references: Sequence[str], as_json: bool, ids: bool = False, **where: str | None) -> int:
        lookup = _lookup(**where)
        for at, word in enumerate(references_of(references)):
            found = lookup.one(resource, word)
            if at and not (as_json or ids):
                click.echo()
            show.facts(found, as_json=as_json, only_ids=ids)
        return 0

    return FlowCommand(
        "get",
        help=f"{text} `-` reads names or ids from standard input.{_example(resource, 'get', 'NAME')}",
        params=[references_argument(resource), *common_options(resource)],
        callback=act,
    )


def _create_command(resource: Resource, text: str) -> click.Command:
    def act(*, as_json: bool, ids: bool = False, project: str | None = None, api_url: str | None, **given: Any) -> int:
        lookup = _lookup(project, api_url)
        body = body_of(lookup, resource.create, given)
        if resource.of_project:
            body["project"] = lookup.account.project
        with _advice(resource, given):
            made = lookup.account.api.create(resource.path, body)
        show.facts(made, as_json=as_json, only_ids=ids, secrets=resource.secrets)
        if made.get(resource.secrets):
            output.note(f"the {resource.secrets.replace('_', ' ')} is shown this once")
        return 0

    return FlowCommand(
        "create",
        help=f"{text}{_example(resource, 'create', '')}",
        # with ids alone a secret would never be seen
        params=[*map(field_option, resource.create), *common_options(resource, with_ids=not resource.secrets)],
        callback=act,
    )


def _update_command(resource: Resource, text: str) -> click.Command:
    def act(
        *, references: Sequence[str], as_json: bool, ids: bool = False, project: str | None = None,
        api_url: str | None, **given: Any,
    ) -> int:  # fmt: skip
        lookup = _lookup(project, api_url)
        body = body_of(lookup, resource.update, given)
        if not body:
            options = ", ".join(field_option(one).opts[0] for one in resource.update)
            raise UsageError("there is nothing to change", suggestions=[f"give one of {options}"])
        found = [lookup.id(resource, word) for word in references_of(references)]

        api, afterwards = lookup.account.api, Lookup(lookup.account)

        def change(fid: str) -> Row:
            with _advice(resource, given):
                return api.update(f"{resource.path}/{fid}", body) or afterwards.one(resource, fid)

        code, changed = 0, list[Row]()
        if resource.together:
            api.update(resource.path, {resource.together: found, **body})
            changed = [afterwards.one(resource, fid) for fid in found]
        else:
            code = _each(found, change, lambda _, row: changed.append(row), as_json=as_json)
        if changed:
            show.rows(changed, resource, lookup, as_json=as_json, only_ids=ids)
        return code

    return FlowCommand(
        "update",
        help=f"{text} `-` reads names or ids from standard input.{_example(resource, 'update', 'NAME')}",
        params=[
            references_argument(resource),
            *map(field_option, resource.update),
            *common_options(resource),
        ],
        callback=act,
    )


def _delete_command(resource: Resource, text: str) -> click.Command:
    def act(*, references: Sequence[str], yes: bool, as_json: bool, ids: bool = False, **where: str | None) -> int:
        lookup = _lookup(**where)
        words = list(references_of(references))
        found = [lookup.id(resource, word) for word in words]  # all, before any is gone
        what = (
            f"the {resource.one} `{words[0]}`"
            if len(words) == 1
            else f"{len(words)} {resource.many}: {', '.join(words)}"
        )
        # whoever wrote ids into a pipe has chosen them, and cannot be asked through it
        if found and "-" not in references and not confirmed(f"Delete {what}?", yes=yes):
            return 1

        def remove(fid: str) -> bool:
            return lookup.account.api.delete(f"{resource.path}/{fid}")

        def tell(fid: str, was_there: bool) -> None:
            if as_json:
                output.print_json_line({"fid": fid, "deleted": was_there})
            else:
                click.echo(fid if ids else f"{fid}  {'deleted' if was_there else 'gone already'}")

        return _each(found, remove, tell, as_json=as_json)

    return FlowCommand(
        "delete",
        help=f"{text} What is gone already is fine. `-` reads names or ids from standard input, and nothing is asked."
        f"{_example(resource, 'delete', 'NAME')}",
        params=[
            references_argument(resource),
            click.Option(["-y", "--yes"], is_flag=True, help="Do not ask."),
            *common_options(resource),
        ],
        callback=act,
    )


def _price_command(resource: Resource, text: str) -> click.Command:
    """Of an instance type in a region: it has no id of its own."""

    def act(*, instance_type: str, region: str, as_json: bool, **where: str | None) -> int:
        lookup = _lookup(**where)
        fid = lookup.id(resources.INSTANCE_TYPES, instance_type, region=region)
        found = lookup.account.api.one("/v2/pricing/current", instance_type=fid, region=region)
        show.facts(found, as_json=as_json)
        return 0

    return FlowCommand(
        "get",
        help=f"What one machine costs now, in cents for an hour.{_example(resource, 'get', '')}",
        params=[click.Argument(["instance_type"]), click.Argument(["region"]), *common_options(resource)],
        callback=act,
    )


_MADE: Mapping[str, Callable[[Resource, str], click.Command]] = {
    "list": _list_command,
    "get": lambda resource, text: (_price_command if resource is resources.PRICING else _get_command)(resource, text),
    "create": _create_command,
    "update": _update_command,
    "delete": _delete_command,
}


@click.command(cls=FlowCommand)
@click.option("--json", "as_json", is_flag=True, help="Print the API's JSON.")
@click.option("--api-url", metavar="URL", help="Where the API is.")
def me(*, as_json: bool, api_url: str | None) -> int:
    """Tell who the API key belongs to.

    Example:
      mithril me
    """
    show.facts(_lookup(None, api_url).account.api.one("/v2/me"), as_json=as_json)
    return 0


@click.command(cls=FlowCommand)
@click.argument("shell", type=click.Choice(SHELLS), metavar="bash|zsh|fish")
def completion(shell: str) -> int:
    """Print the completion script of a shell. `flow completion SHELL --install` installs it too.

    Example:
      eval "$(mithril completion bash)"
    """
    click.echo(completion_script(shell, "mithril"), nl=False)
    return 0


projects = ResourceGroup(resources.PROJECTS)
quotas = ResourceGroup(resources.QUOTAS)
api_keys = ResourceGroup(resources.API_KEYS)
ssh_keys = ResourceGroup(resources.SSH_KEYS)
instance_types = ResourceGroup(resources.INSTANCE_TYPES)
regions = ResourceGroup(resources.REGIONS)
availability = ResourceGroup(resources.AVAILABILITY)
pricing = ResourceGroup(resources.PRICING)
bids = ResourceGroup(resources.BIDS)
instances = ResourceGroup(resources.INSTANCES)
volumes = ResourceGroup(resources.VOLUMES)
reservations = ResourceGroup(resources.RESERVATIONS)


def _lookup(project: str | None = None, api_url: str | None = None) -> Lookup:
    from flow.providers.mithril.account import Account  # no help needs it
    from flow.settings import Settings

    settings = Settings.load({"mithril.api_url": api_url})
    output.notes(settings.warnings)
    return Lookup(Account.of(settings, project=project))


def _filter_options(resource: Resource) -> list[str]:
    names = (*resource.fields.split(), *resource.parameters.split())
    return [f"--{name.replace('_', '-')}" for name in names if name != "project"]


def _example(resource: Resource, action: str, default: str) -> str:
    return f"\n\nExample:\n  mithril {resource.name} {action} {resource.examples.get(action, default)}".rstrip()


@contextmanager
def _advice(resource: Resource, given: Mapping[str, Any]) -> Iterator[None]:
    """What to do about an error of a request, in the words of this command."""
    from flow.providers.mithril.api import NotKnownError, PriceTooLowError

    try:
        yield
    except NotKnownError as error:
        look = f"mithril {resource.name} list --name {given['name']}"
        error.suggestions = (f"see whether it is there before you ask again: `{look}`",)
        raise
    except PriceTooLowError as error:
        where = f"{given['instance_type']} {given['region']}" if "region" in given else "INSTANCE_TYPE REGION"
        error.suggestions = (f"raise `--limit-price`; `mithril pricing get {where}` tells the prices",)
        raise


def _each(ids: Sequence[str], do: Callable[[str], T], tell: Callable[[str, T], None], *, as_json: bool) -> int:
    """Do it to each, some at a time, and tell what came of it, in their order; the exit code is the first error's."""
    from concurrent.futures import ThreadPoolExecutor

    def done(fid: str) -> T | FlowError:
        try:
            return do(fid)
        except FlowError as error:
            return error

    code = 0
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        for fid, result in zip(ids, pool.map(done, ids), strict=True):
            if not isinstance(result, FlowError):
                tell(fid, result)
            elif len(ids) == 1:
                raise result
            else:
                code = code or result.exit_code
                if as_json:
                    output.print_json_line({"fid": fid, "error": {"code": result.code, "message": result.message}})
                else:
                    output.say(f"error: `{fid}`: {result.message}")
    return code
