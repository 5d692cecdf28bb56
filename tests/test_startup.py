"""What a start may import: each module more is time before anything happens, at every call."""

from __future__ import annotations

import subprocess
import sys

import pytest

# The end of a run prints what it loaded beyond a bare Python; `flow` calls sys.exit, so it is told at exit.
PROBE = """
import sys
before = set(sys.modules)
import atexit
atexit.register(lambda: print("loaded:", *sorted(set(sys.modules) - before), file=sys.stderr))
"""
SLOW = {
    "asyncio", "concurrent", "ctypes", "email", "http", "importlib.metadata", "logging", "multiprocessing",
    "pathspec", "pydantic", "rich", "sqlite3", "ssl", "subprocess", "unittest", "urllib", "xml", "yaml",
}  # fmt: skip
if sys.version_info < (3, 11):
    SLOW -= {"subprocess"}  # click loads uuid, uuid loads platform, and that loaded it


def loaded_by(code: str) -> set[str]:
    run = subprocess.run([sys.executable, "-c", PROBE + code], capture_output=True, text=True)
    words = run.stderr.splitlines()[-1].split()
    assert (run.returncode, words[0]) == (0, "loaded:"), run.stderr
    return set(words[1:])


def slow(loaded: set[str]) -> set[str]:
    return SLOW & {name for one in loaded for name in (one, one.partition(".")[0])}


def command(*words: str, package: str = "flow.cli") -> str:
    return f"from {package} import main; sys.exit(main({list(words)!r}))"


def test_import_flow_loads_no_module_of_ours_or_of_others() -> None:
    loaded = loaded_by("import flow")
    assert {name for name in loaded if name.startswith("flow")} == {"flow"}
    assert not slow(loaded)


@pytest.mark.parametrize("word", ["--help", "-h", "--version"])
def test_help_and_version_load_only_click_and_the_command_table(word: str) -> None:
    loaded = loaded_by(command(word))
    others = {name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names | {"click"}}
    assert others <= {"flow", "flow.cli", "flow.cli.group", "flow.errors"}
    assert not slow(loaded)


def test_the_help_of_mithril_loads_no_more() -> None:
    loaded = loaded_by(command("--help", package="flow.mithril_cli"))
    others = {name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names | {"click"}}
    assert others <= {"flow", "flow.cli", "flow.cli.group", "flow.errors", "flow.mithril_cli"}
    assert not slow(loaded)
    # pathlib of some versions has it from urllib
    assert slow(loaded_by(command("bids", "list", "--help", package="flow.mithril_cli"))) <= {"urllib"}


def test_looking_at_tasks_checks_no_task_file() -> None:
    assert not slow(loaded_by(command("status"))) & {"asyncio", "pathspec", "pydantic", "rich", "yaml"}


def test_every_public_name_is_there() -> None:
    code = "import flow; missing = [n for n in flow.__all__ if getattr(flow, n, None) is None]; assert not missing"
    loaded_by(code)


def test_the_scheduler_loads_nothing_that_works_at_each_fork() -> None:
    loaded = loaded_by("import flow.providers.local.scheduler")
    assert not loaded & {"logging", "random", "subprocess", "threading"}
