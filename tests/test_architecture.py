"""Who may import whom; lazy imports count, those for type checkers do not."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "flow"

# A module imports from its own row and those above it. A package's name stands for all that is in it.
ROWS = (
    "errors masking",
    "gpus mistakes durable detached importing connection operand users aws",
    "machines mounts outbox channel ignore tree blobs bundle registries",
    "plan settings settings_names settings_edit keyring_entries spellings yaml_positions yaml_text field_types "
    "task_fields config slurm",
    "status dependencies boot job conversation remote",
    "secret_files log_feeds log_reading logs references record_index record_format record prune",
    "providers",
    "task_volumes resolve",
    "observe log_folders returned attempts collect patience",
    "attend",
    "task steering access endpoints views forwarding transfer code_upload jupyter ssh_entries",
    "calls upload",
    "client chores shortcuts orphans",
    "warm worker calling functions attendant standing",
    "dev colab",
    "cli",
    "mithril_cli",
    "__main__ pytest_plugin",
)
BASE_DEPENDENCIES = {"click", "pydantic", "pydantic_core", "urllib3", "yaml"}
LOADED_BY_PYTEST = "flow.pytest_plugin"
# What runs on the machine may use these there, inside a function, and does without where they are missing.
ON_THE_MACHINE = {"flow.node.s3_copy": {"boto3", "botocore"}}
# Everyone else reads node/*.py as text.
READS_NODE = (
    "flow.log_feeds",
    "flow.log_reading",
    "flow.logs",
    "flow.access",
    "flow.forwarding",
    "flow.code_upload",
    "flow.collect",
    "flow.cli.slurm",
    "flow.slurm.jobs",
    "flow.providers.local",
    "flow.providers.slurm",
    "flow.providers.rented",
    "flow.providers.rented_sight",
    "flow.providers.rental",
    "flow.providers.copied",
    "flow.secret_files",
    "flow.providers.ssh",
    "flow.remote",
    "flow.attend",
    "flow.slurm",
    "flow.resolve",
    "flow.calls",
    "flow.worker",
    "flow.dev",
)


class Import(NamedTuple):
    """`module` imports `target` at `line`; `lazy` where that is inside a function."""

    module: str
    target: str
    line: int
    lazy: bool


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = ["flow", *path.relative_to(SOURCE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(module: str) -> Iterator[Import]:
    yield from _walk(module, ast.parse(MODULES[module].read_text()), lazy=False)


def _walk(module: str, node: ast.AST, *, lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(module, alias.name, child.lineno, lazy)
        elif isinstance(child, ast.ImportFrom):
            assert not child.level, f"{module}:{child.lineno} imports relatively"
            for alias in child.names:
                whole = f"{child.module}.{alias.name}"
                yield Import(module, whole if whole in MODULES else str(child.module), child.lineno, lazy)
        else:
            yield from _walk(
                module, child, lazy=lazy or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            )


def ours(module: str) -> list[Import]:
    return [one for one in imports_of(module) if package(one.target) == "flow"]


def row(module: str) -> int:
    part = module.split(".")[1]
    return next((number for number, names in enumerate(ROWS) if part in names.split()), -1)


def package(name: str) -> str:
    return name.partition(".")[0]


def broken(claim: list[Import]) -> str:
    return "\n".join(f"{one.module}:{one.line} imports {one.target}" for one in claim)


def placed() -> list[str]:
    """The modules that have a row: all but the package itself and what runs on the machine."""
    return [name for name in MODULES if name != "flow" and not name.startswith("flow.node")]


@pytest.mark.parametrize("module", placed())
def test_a_module_imports_only_from_its_own_row_and_those_above(module: str) -> None:
    assert row(module) >= 0, f"{module} has no place in ROWS yet"
    wrong = [one for one in ours(module) if one.target in placed() and row(one.target) > row(module)]
    assert not wrong, broken(wrong)


def test_imports_hold_no_cycle() -> None:
    edges = {module: {one.target for one in ours(module)} - {module} for module in MODULES}
    while leaves := [module for module, targets in edges.items() if not targets & edges.keys()]:
        for module in leaves:
            del edges[module]
    assert not edges, f"modules of a cycle, or on the way to one: {sorted(edges)}"


def test_the_package_itself_imports_nothing_of_ours_and_only_commands_import_it() -> None:
    assert not ours("flow"), "its names are loaded when first used"
    wrong = [one for name in placed() for one in ours(name) if one.target == "flow" and row(name) < row("flow.cli")]
    assert not wrong, broken(wrong)


def test_nothing_imports_the_command_line() -> None:
    outside = [name for name in MODULES if name.split(".")[1:2] not in (["cli"], ["mithril_cli"], ["__main__"])]
    wrong = [one for name in outside for one in ours(name) if one.target.split(".")[1:2] == ["cli"]]
    assert not wrong, broken(wrong)


def test_commands_do_not_import_each_other() -> None:
    from flow.cli import COMMANDS

    commands = {entry.target.partition(":")[0] for entry in COMMANDS.values()}
    wrong = [one for name in commands & MODULES.keys() for one in ours(name) if one.target in commands - {name}]
    assert not wrong, broken(wrong)


def test_a_provider_imports_only_what_it_is_built_on() -> None:
    # machines are hosts
    base = {
        "rented": {"ssh", "startup", "losses", "copied", "rental", "rented_sight", "holds"},
        "rented_sight": {"ssh", "losses", "copied", "rental", "holds"},
        "losses": {"ssh"},
        "rental": {"ssh"},
    }
    clouds = {"mithril"}

    def provider(module: str) -> str | None:
        parts = module.split(".")
        return parts[2] if parts[1:2] == ["providers"] and len(parts) > 2 and parts[2] != "registry" else None

    wrong = [
        one for name in MODULES for one in ours(name)
        if (own := provider(name)) and (target := provider(one.target)) not in (None, own)
        and target not in base.get(own, {"rented", "rental", "startup"} if own in clouds else ())
    ]  # fmt: skip
    assert not wrong, broken(wrong)


def test_what_runs_on_the_machine_is_standard_library_only() -> None:
    inside = [name for name in MODULES if name.startswith("flow.node")]
    wrong = [
        one for name in inside for one in imports_of(name)
        if package(one.target) not in sys.stdlib_module_names | (ON_THE_MACHINE.get(name, set()) if one.lazy else set())
    ]  # fmt: skip
    assert not wrong, broken(wrong)
    wrong = [
        one for name in placed() for one in ours(name)
        if one.target.startswith("flow.node") and not name.startswith(READS_NODE)
    ]  # fmt: skip
    assert not wrong, broken(wrong)


def test_what_is_not_a_base_dependency_is_imported_inside_a_function() -> None:
    known = BASE_DEPENDENCIES | sys.stdlib_module_names | {"flow"}
    names = MODULES.keys() - {LOADED_BY_PYTEST}
    wrong = [one for name in names for one in imports_of(name) if package(one.target) not in known and not one.lazy]
    assert not wrong, broken(wrong)
