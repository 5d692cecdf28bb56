"""`flow config`: the settings in force and where each comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flow.cli import output
from flow.cli.group import FlowCommand
from flow.cli.output import Column

if TYPE_CHECKING:
    from flow.settings import Setting


@click.command(cls=FlowCommand)
@click.argument("action", type=click.Choice(["show"]), default="show", metavar="[show]")
@click.option("--origin", is_flag=True, help="Also say where each value comes from.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def config(action: str, *, origin: bool, as_json: bool) -> int:
    """Show the settings in force: a flag goes before the environment, the project's file, your own, the default.

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


def _json_value(setting: Setting) -> object:
    plain = not setting.secret and isinstance(setting.value, bool | int | float | None)
    return setting.value if plain else setting.shown
