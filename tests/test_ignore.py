"""Ignore files mean to us what they mean to git."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flow.ignore import Rules, parse_rules

NAMES = st.text(alphabet="ab.-é]!\\ *[x1", min_size=1, max_size=3).filter(lambda name: name not in (".", "..", ".git"))
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
PIECES = ["a", "b", "x1", "é", "*", "**", "a*", "*.b", "/", "?", "\\", "!", "#", " "]
PIECES += ["[a-x]", "[!a]", "[^b]", "[[:alpha:]]", "[]-]", "[", "]"]
PATTERNS = st.one_of(
    st.text(alphabet="ab/*?[]!-\\.^ x1:é#\t\r", max_size=8),
    st.lists(st.sampled_from(PIECES), max_size=6).map("".join),
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    subprocess.run(["git", "init", "-q", str(folder)], check=True, env=quiet_git(folder))
    return folder


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(patterns=st.lists(PATTERNS, max_size=6), paths=st.lists(PATHS, min_size=1, max_size=12))
def test_any_patterns_ignore_what_git_ignores(repository: Path, patterns: list[str], paths: list[str]) -> None:
    content = "\n".join(patterns).encode()
    (repository / ".gitignore").write_bytes(content)
    rules = parse_rules(content)
    asked = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin", "-z"],
        cwd=repository,
        env=quiet_git(repository),
        input=b"".join(path.encode() + b"\0" for path in paths),
        capture_output=True,
    )
    assert asked.returncode in (0, 1), asked.stderr
    assert {path for path in paths if ignores(rules, path)} == set(asked.stdout.decode().split("\0")) - {""}


@pytest.mark.parametrize(
    ("content", "path", "ignored"),
    [
        ("*.pt", "models/best.pt", True),
        ("/data", "data/x", True),
        ("/data", "src/data", False),
        ("build/", "build", False),  # a file of that name
        ("build/", "a/build/x", True),
        ("*\n!*.py", "train.py", False),
        ("*\n!*/\n!*.py", "a/b/train.py", False),
        ("data\n!data/keep", "data/keep", True),  # nothing comes back from below an ignored folder
        ("data/*\n!data/keep", "data/keep", False),
        ("a/**/z", "a/b/c/z", True),
        ("a/**/z", "a/z", True),
        ("\\#notes", "#notes", True),
        ("#notes", "#notes", False),
        ("kept \\ ", "kept  ", True),
        ("log[[:digit:]]", "log7", True),
        ("x[z-a", "x[z-a", False),  # malformed: matches nothing
        ("\ufeff*.pt\r", "a.pt", True),
    ],
)
def test_a_line_means_what_gitignore_says(content: str, path: str, ignored: bool) -> None:
    assert ignores(parse_rules(content.encode()), path) is ignored


def ignores(rules: Rules, path: str) -> bool:
    """Whether a file is left out: walked down to as `verdict` wants it."""
    parts = path.encode().split(b"/")
    for depth in range(1, len(parts)):
        if rules.verdict(b"/".join(parts[:depth]), is_folder=True):
            return True
    return bool(rules.verdict(path.encode(), is_folder=False))


def quiet_git(home: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(home), "GIT_CONFIG_NOSYSTEM": "1"}
