"""The docs say what is so: the reference is made from the code, and the examples run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from flow.settings import SETTINGS
from tests.support.reference import FOLDER, PAGES, error_classes

PROJECT = Path(__file__).parents[1]
EXAMPLES = sorted(path.relative_to(PROJECT) for path in (PROJECT / "README.md", *(PROJECT / "docs").rglob("*.md")))
VARIABLE = re.compile(r"\b(?:(?:FLOW|MASTER|SLURM|FCP|MITHRIL)_[A-Z][A-Z0-9_]*[A-Z]|CUDA_VISIBLE_DEVICES|NO_COLOR)\b")
BLOCK = re.compile(
    r"<!-- (?P<what>run|file|prints)(?:: (?P<name>\S+))? -->\n```(?P<language>\w+)\n(?P<text>.*?)^```$", re.S | re.M
)


@pytest.mark.parametrize("page", PAGES)
def test_the_reference_says_what_the_code_says(page: str) -> None:
    told = (FOLDER / page).read_text()
    assert told == PAGES[page](), "out of date: `python -m tests.support.reference` writes it again"


def test_every_environment_variable_is_documented_and_every_documented_one_is_used() -> None:
    used = {name for path in (PROJECT / "src").rglob("*.py") for name in VARIABLE.findall(path.read_text())}
    told = set(VARIABLE.findall((FOLDER / "environment.md").read_text()))
    of_settings = {one.variable for one in SETTINGS}
    assert (used - told - of_settings, told - used) == (set(), set())


def test_every_exit_code_of_an_error_is_documented() -> None:
    page = (FOLDER / "exit-codes.md").read_text()
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.M)}
    assert {kind.exit_code for kind in error_classes()} <= told


def test_links_between_the_docs_lead_somewhere() -> None:
    broken = [
        f"{path}: {target}"
        for path in [*EXAMPLES, Path("CONTRIBUTING.md"), Path("examples/digits/SOURCE.md")]
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", (PROJECT / path).read_text())
        if not (PROJECT / path.parent / target).exists()
    ]
    assert not broken


def test_every_extra_that_is_named_is_there() -> None:
    texts = [path.read_text() for path in (PROJECT / "CHANGELOG.md", *(PROJECT / one for one in EXAMPLES))]
    named = {
        name
        for text in texts
        for name in re.findall(r"(?:pip install '?\S*|flow-compute)\[(\w+)\]|the extra `(\w+)`", text)
    }
    there = re.search(
        r"^\[project\.optional-dependencies\]\n((?:\w.*\n)+)", (PROJECT / "pyproject.toml").read_text(), re.M
    )
    assert there and {one or other for one, other in named} <= set(re.findall(r"^(\w+) =", there[1], re.M))


class Block(NamedTuple):
    """A fenced block with a marker before it: something to run, a file to write, or what the last one printed.

    In what was printed, `…` stands for anything.
    """

    what: str
    name: str | None
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*found.groups()) for found in BLOCK.finditer((PROJECT / page).read_text())]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files of the project, as a clone would have them; what is not committed yet included."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=PROJECT, capture_output=True, check=True).stdout.decode().split("\0")
    folder = tmp_path / "clone"
    for name in filter(None, names):
        if (PROJECT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, folder / name)
    return folder


@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", [page for page in EXAMPLES if blocks(page)], ids=str)
def test_the_examples_of_a_page_run_in_their_order(
    page: Path, clone: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if page.name == "slurm-cluster.md":
        request.getfixturevalue("slurm")
    elif page.name == "ssh.md":
        monkeypatch.setenv("FLOW_SSH_SSH_CONFIG", str(request.getfixturevalue("fleet").config))
    elif page.name in ("mithril-command.md", "mithril.md"):
        cloud = request.getfixturevalue("cloud")
        cloud.machines.pretended = page.parent.name == "guides"
        monkeypatch.setenv("MITHRIL_API_KEY", cloud.key)
        monkeypatch.setenv("FLOW_MITHRIL_API_URL", cloud.url)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    printed = ""
    for block in blocks(page):
        if block.what == "file":
            file = clone / str(block.name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
        elif block.what == "run":
            argv = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
            run = subprocess.run([*argv, block.text], cwd=clone, capture_output=True, text=True)
            assert run.returncode == 0, f"{block.text}\n{run.stdout}\n{run.stderr}"
            printed = run.stdout
        else:
            pattern = re.escape(block.text).replace("…", "(?s:.*)")
            assert re.fullmatch(pattern, printed), f"the page shows\n{block.text}\nbut it printed\n{printed}"
