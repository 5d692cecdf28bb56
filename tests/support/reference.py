"""The pages of docs/reference that are made from the code: `python -m tests.support.reference` writes them again."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

import flow
from flow.cli.group import TaskGroup
from flow.errors import FlowError
from tests.support.error_examples import ELSEWHERE, Example, run_examples

FOLDER = Path(__file__).parents[2] / "docs" / "reference"
_WORDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true` or `false`"}
_MADE = "<!-- Made from the code by `python -m tests.support.reference`; change it there. -->"


def cli_page() -> str:
    """Every command with its usage, options and example, by section of `flow --help`."""
    from flow.cli import flow as program

    return _program_page(program, "Commands")


def mithril_page() -> str:
    """The same of `mithril`."""
    from flow.mithril_cli import mithril

    return _program_page(mithril, "The `mithril` command")


def _program_page(program: TaskGroup, title: str) -> str:
    lines = [f"# {title}", "", _MADE, ""]
    told = f"`{program.name} COMMAND -h` shows the same on the screen. Data goes to stdout, everything else to stderr."
    lines += [told, ""]
    rows = [
        (f"[`{program.name} {name}`](#{program.name}-{name})", entry.section, entry.help)
        for name, entry in program.table.items()
    ]
    lines += _table(("command", "for", "what it does"), rows)
    context = click.Context(program, info_name=program.name, **program.context_settings)
    for name in program.table:
        command = program.get_command(context, name)
        assert command is not None
        lines += _command(command, click.Context(command, info_name=name, parent=context), level=2)
    return "\n".join(lines) + "\n"


def _command(command: click.Command, context: click.Context, *, level: int) -> list[str]:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    lines = ["", f"{'#' * level} {context.command_path}", "", "```text", usage, "```", "", *_paragraphs(command.help)]
    options = [param for param in command.get_params(context) if isinstance(param, click.Option)]
    if records := [record for option in options if (record := option.get_help_record(context))]:
        rows = [(f"`{names}`", " ".join(text.split())) for names, text in records]
        lines += ["", *_table(("option", "what it does"), rows)]
    if example := getattr(command, "example", None):
        lines += ["", "```bash", *([example] if isinstance(example, str) else example), "```"]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            lines += _command(inner, click.Context(inner, info_name=name, parent=context), level=level + 1)
    return lines


def task_page() -> str:
    """Every field of a task file, from its JSON schema."""
    from flow.config import task_schema

    schema = task_schema()
    lines = ["# Task files", "", _MADE, ""]
    lines += [
        "A task is a YAML file with these fields, none of them required; `flow.TaskConfig` and `flow.run` take",
        "",
    ]
    lines[-1:] = ["the same by keyword. `flow schema task` prints the JSON schema, for editors.", ""]
    lines += _fields(schema["properties"])
    for name, part in sorted(schema["$defs"].items()):
        lines += ["", f"## {name}", "", *_paragraphs(part.get("description")), "", *_fields(part["properties"])]
    return "\n".join(lines) + "\n"


def _fields(properties: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = []
    for name, field in properties.items():
        default = field.get("default")
        shown = "" if default in (None, [], {}) else f"`{_yaml(default)}`"
        rows.append((f"`{name}`", _kind(field), shown, field.get("description", "")))
    return _table(("field", "value", "default", "what it says"), rows)


def _kind(schema: Mapping[str, Any]) -> str:
    """A JSON schema in few words; None goes without saying, since every field can be left out."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in schema:
        return " or ".join(f"`{one}`" for one in schema["enum"])
    if "anyOf" in schema:
        kinds = [_kind(one) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if schema.get("type") == "array":
        inner = _kind(schema.get("items", {}))
        return f"list of ({inner})" if " or " in inner else f"list of {inner}"
    if schema.get("type") == "object":
        return "mapping"
    kinds = schema.get("type", "anything")
    names = [kinds] if isinstance(kinds, str) else [kind for kind in kinds if kind != "null"]
    return " or ".join(_WORDS.get(name, name) for name in names)


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def errors_page() -> str:
    """Every error class, below the one that it is a kind of."""
    lines = ["# Errors", "", _MADE, ""]
    lines += [
        "Every error that Flow raises is a `flow.errors.FlowError` with `message` (one sentence) and `suggestions`",
        "(things to do). The command line prints them to stderr as `error: …` and `hint: …` and ends with the exit",
        'code; with `--json`, stdout is `{"error": {"code": …, "message": …, "suggestions": […]}}`. A traceback is',
        "shown only with `FLOW_DEBUG=1`.",
        "",
    ]
    rows = []
    for kind in error_classes():
        parent = kind.__mro__[1]
        above = f"`{parent.__name__}`" if issubclass(parent, FlowError) else ""
        rows.append((f"`{kind.__name__}`", above, f"`{kind.code}`", str(kind.exit_code), _one_line(kind)))
    lines += _table(("error", "a kind of", "code", "exit code", "when"), rows)
    lines += ["", "An error that is none of these has the code `internal`; it is a mistake of ours.", ""]
    lines += ["## Examples", "", "Each was run as it stands, and printed the error and its suggestions as shown."]
    examples = run_examples()
    for kind in error_classes():
        lines += ["", f"### {kind.__name__}", ""]
        example = examples.get(kind.__name__)
        assert example or kind.__name__ in ELSEWHERE, f"error_examples.py has no example of {kind.__name__}"
        lines += _example(example) if example else [ELSEWHERE[kind.__name__]]
    return "\n".join(lines) + "\n"


def _example(example: Example) -> list[str]:
    code = [f"```{example.language}", example.code, "```"]
    return [*code, "", "```text", example.printed.rstrip(), "```"]


def error_classes() -> list[type[FlowError]]:
    """FlowError and everything that derives from it, wherever it is defined; parents first."""
    for module in pkgutil.walk_packages(flow.__path__, "flow."):
        if not module.name.endswith(("__main__", ".start")):  # these run when imported
            importlib.import_module(module.name)
    return list(_with_kinds(FlowError))


def _with_kinds(kind: type[FlowError]) -> Iterator[type[FlowError]]:
    yield kind
    for one in sorted(kind.__subclasses__(), key=lambda each: each.__name__):
        yield from _with_kinds(one)


def settings_page() -> str:
    """Every setting, with the environment variable that sets it."""
    from flow.settings import SETTINGS

    lines = ["# Settings", "", _MADE, ""]
    lines += [
        "A setting comes from, in this order: the option of the command, its environment variable, the chosen profile,",
        "`.flow/config.yaml` in the nearest folder that has one, upwards from here, `$FLOW_HOME/config.yaml`, the",
        "default. `flow config show --origin` tells which it was; `flow config set` writes your own file.",
        "",
    ]
    rows = [
        (f"`{one.name}`", f"`{one.variable}`", "" if one.default is None else f"`{_yaml(one.default)}`", one.help)
        for one in SETTINGS
    ]
    lines += _table(("setting", "variable", "default", "what it does"), rows)
    return "\n".join(lines) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    return [line(header), line(["---"] * len(header)), *map(line, rows)]


def _one_line(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())


def _paragraphs(text: str | None) -> list[str]:
    return re.sub(r"^\b$|\x08", "", inspect.cleandoc(text or ""), flags=re.M).split("\n")


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli_page,
    "mithril.md": mithril_page,
    "task.md": task_page,
    "errors.md": errors_page,
    "settings.md": settings_page,
}


if __name__ == "__main__":
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page())
