"""`flow config`: the settings in force, where each comes from, and changes to them."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from flow.cli import output
from flow.cli.group import Entry, FlowCommand, TaskGroup
from flow.cli.output import Column

if TYPE_CHECKING:
    from flow.settings import Setting

_SECTION = "Settings"


class _ConfigGroup(TaskGroup):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """click's own; without a command of its own, `flow config` shows."""
        is_bare = not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names)
        return super().parse_args(ctx, ["show", *args] if is_bare else args)


config = _ConfigGroup(
    {
        "show": Entry("flow.cli.config:show", "All settings in force.", _SECTION),
        "get": Entry("flow.cli.config:get", "The value of one.", _SECTION),
        "set": Entry("flow.cli.config:set_", "Write one into your own settings file.", _SECTION),
        "unset": Entry("flow.cli.config:unset", "Take one out of it.", _SECTION),
    },
    {"list": "show", "ls": "show", "rm": "unset", "delete": "unset", "remove": "unset", "add": "set", "edit": "set"},
    name="config",
    help="Show and change the settings: where tasks run, keys, projects, defaults.",
    example="flow config set mithril.region us-central1-b",
)


@click.command("show", cls=FlowCommand)
@click.option("--origin", is_flag=True, help="Also say where each value comes from.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def show(*, origin: bool, as_json: bool) -> int:
    """Show the settings in force: a flag goes before the environment, a profile, the project's file, your own.

    Example:
      flow config show --origin
    """
    from flow.settings import Settings

    settings = Settings.load()
    output.notes(settings.warnings)
    if as_json:
        found = [{"name": one.name, "value": _json_value(one), "origin": one.origin} for one in settings.all()]
        output.print_json({"settings": found})
        return 0
    columns = [Column("SETTING"), Column("VALUE", least=12), *([Column("FROM")] if origin else [])]
    rows = [(one.name, one.shown or output.NOTHING, *([one.origin] if origin else [])) for one in settings.all()]
    click.echo("\n".join(output.table(columns, rows)))
    return 0


@click.command("get", cls=FlowCommand)
@click.argument("name")
@click.option("--origin", is_flag=True, help="Also say where it comes from.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def get(name: str, *, origin: bool, as_json: bool) -> int:
    """Print the value of the setting NAME, or nothing where it has none; of a secret, `***`.

    Example:
      flow config get provider
    """
    from flow.settings import Settings

    settings = Settings.load()
    output.notes(settings.warnings)
    found = settings.setting(name)
    if as_json:
        output.print_json({"name": found.name, "value": _json_value(found), "origin": found.origin})
    elif found.shown or origin:
        click.echo(output.GAP.join([found.shown, *([found.origin] if origin else [])]))
    return 0


@click.command("set", cls=FlowCommand)
@click.argument("name")
@click.argument("value")
def set_(name: str, value: str) -> int:
    """Write the setting NAME into your own settings file, or with `--profile` into that profile of it.

    VALUE `-` is read from the standard input, and not shown as it is typed: keys stay out of your shell's history.
    Comments and the order of the file are kept; only you may read it.

    Example:
      flow config set provider slurm
    """
    from flow.providers.registry import provider_target
    from flow.settings import known_setting, value_of

    known = known_setting(name)
    given = _read(known.name) if value == "-" else value
    if known.name == "provider":
        provider_target(str(value_of(known, given)).partition("@")[0])
    _write(known.name, given)
    return 0


@click.command("unset", cls=FlowCommand)
@click.argument("name")
def unset(name: str) -> int:
    """Take the setting NAME out of your own settings file, or with `--profile` out of that profile.

    Example:
      flow config unset mithril.region
    """
    from flow.settings import known_setting

    _write(known_setting(name).name, None)
    return 0


def _read(name: str) -> str:
    if output.is_terminal(sys.stdin):
        return str(click.prompt(name, hide_input=True, err=True))
    return sys.stdin.readline().strip()


def _write(name: str, value: str | None) -> None:
    """Change the file, and say what is now so, and what overrides it."""
    from flow.settings import Settings
    from flow.settings_edit import change_settings

    profile = os.environ.get("FLOW_PROFILE") or None
    is_new = _is_new_profile()
    file = change_settings({name: value}, profile)
    where = f"`{file}`" + (f", {'new ' * is_new}profile `{profile}`" if profile else "")
    settings = Settings.load()
    output.notes(settings.warnings)
    now = settings.setting(name)
    if value is None:
        output.say(f"{where}: no `{name}`; it is now {_told(now)} ({now.origin})")
        return
    is_from_file = now.origin.rpartition(":")[0] == str(file)
    output.say(f"{where}: `{name}` is {_told(now) if is_from_file else 'written'}")
    if not is_from_file:
        output.note(f"{now.origin} overrides it: `{name}` is now {_told(now)}")


def _is_new_profile() -> bool:
    from flow.errors import UnknownProfileError, ValidationError
    from flow.settings import Settings

    try:
        Settings.load()
    except UnknownProfileError:
        return True
    except ValidationError:  # maybe that is what the change puts right
        pass
    return False


def _told(setting: Setting) -> str:
    return f"`{setting.shown}`" if setting.shown else "not set"


def _json_value(setting: Setting) -> object:
    plain = not setting.secret and isinstance(setting.value, bool | int | float | None)
    return setting.value if plain else setting.shown
