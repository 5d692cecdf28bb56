"""`flow config set` and `flow init` change the lines that they must, and leave a user's file as it was otherwise."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flow.errors import StorageError, ValidationError
from flow.settings import SETTINGS, Settings, is_text, known_setting, user_file, value_of
from flow.settings_edit import change_settings, changed
from flow.settings_names import entries
from flow.yaml_positions import parse_document

MINE = """\
# what I like — ä
provider: local   # for now

local: # this machine
  cpus: 2   # of 4
  # more to come
mithril:
    project: 'a b'
ssh:
  hosts:
    - gpu1
    - gpu2 # the slow one
upload_limit_mb:
"""


@pytest.mark.parametrize(
    ("name", "value", "old", "new"),
    [
        ("provider", "slurm", "provider: local   # for now", "provider: slurm   # for now"),
        ("local.cpus", "3", "  cpus: 2   # of 4", "  cpus: 3   # of 4"),
        ("local.strict", "yes", "  cpus: 2   # of 4", "  cpus: 2   # of 4\n  strict: yes"),
        ("fcp.project", "x", "'a b'", "x"),
        ("mithril.region", "no", "'a b'", "'a b'\n    region: 'no'"),
        ("upload_limit_mb", "1e3", "upload_limit_mb:", "upload_limit_mb: 1e3"),
        ("ssh.hosts", "a, b", "\n    - gpu1\n    - gpu2", " [a, b]"),
        ("ssh.folder", "~/x # y", "the slow one\n", "the slow one\n  folder: '~/x # y'\n"),
        ("dev.image", "a: b", "upload_limit_mb:\n", "upload_limit_mb:\ndev:\n  image: 'a: b'\n"),
        ("provider", None, "provider: local   # for now\n", ""),
        ("local.cpus", None, "local: # this machine\n  cpus: 2   # of 4\n", ""),
        ("ssh.hosts", None, "ssh:\n  hosts:\n    - gpu1\n    - gpu2 # the slow one\n", ""),
        ("slurm.login", None, "", ""),
        ("upload_limit_mb", None, "upload_limit_mb:\n", ""),
    ],
)
def test_only_the_line_of_the_setting_changes(name: str, value: str | None, old: str, new: str) -> None:
    assert changed(MINE, name, value) == MINE.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "name", "value", "new"),
    [
        ("", "provider", "ssh", "provider: ssh\n"),
        ("# nothing yet", "mithril.project", "x", "# nothing yet\nmithril:\n  project: x\n"),
        ("api_key: a", "project", "x", "api_key: a\nproject: x\n"),
        ("api_key: a\n", "mithril.ssh_key", "x", "api_key: a\ndefault_ssh_key: x\n"),
        ("api_key: a\n", "mithril.api_url", "http://x", "api_key: a\nmithril:\n  api_url: 'http://x'\n"),
        ("fcp:\n  region: a\n", "mithril.project", "x", "fcp:\n  region: a\n  project: x\n"),
        ("fcp.region: a\n", "mithril.region", "x", "fcp.region: x\n"),
        ("mithril: {project: a}\n", "mithril.region", "x", "mithril: {project: a, region: x}\n"),
        ("mithril: {}\n", "mithril.region", "x", "mithril: {region: x}\n"),
        ("mithril: {project: a, region: b}\n", "mithril.project", None, "mithril: {region: b}\n"),
        ("mithril: {project: a, region: b}\n", "mithril.region", None, "mithril: {project: a}\n"),
        ("mithril: {project: a} # x\nprovider: b\n", "mithril.project", None, "provider: b\n"),
        ("{provider: a}\n", "provider", None, "{}\n"),
        ("{provider: a}\n", "mithril.region", "x", "{provider: a, mithril: {region: x}}\n"),
        ("mithril:\nprovider: a\n", "mithril.region", "x", "mithril:\n  region: x\nprovider: a\n"),
        ("local.cpus: 1\nlocal:\n  gpus: 1\n", "local.cpus", "2", "local.cpus: 2\nlocal:\n  gpus: 1\n"),
        ("provider: |\n  a\n", "provider", "b", "provider: b\n"),
        ("provider: &p a # b\n", "provider", "c", "provider: c # b\n"),
        ("provider: ''\n", "provider", "c", "provider: c\n"),
    ],
)
def test_a_file_may_be_written_in_many_ways(text: str, name: str, value: str | None, new: str) -> None:
    assert changed(text, name, value) == new


def test_a_profile_is_a_section() -> None:
    text = changed("provider: local # here\n", "provider", "mithril", profile="work")
    assert text == "provider: local # here\nprofiles:\n  work:\n    provider: mithril\n"
    text = changed(text, "mithril.project", "p", profile="work")
    assert text.endswith("  work:\n    provider: mithril\n    mithril:\n      project: p\n")
    other = changed(text, "api_key", "k", profile="other")
    assert other == text + "  other:\n    mithril:\n      api_key: k\n"
    emptied = changed(other, "api_key", None, profile="other")
    assert emptied == text + "  other:\n"
    assert changed(emptied, "api_key", "k", profile="other") == other
    assert changed(text, "mithril.project", None, profile="other") == text


@pytest.mark.parametrize(
    "text",
    ["a: &x {project: a}\nmithril: *x\n", "provider: a\n...\n", "mithril: # x\n  {project: a\n  }\n"],
)
def test_what_cannot_be_changed_safely_is_left_to_the_user(text: str) -> None:
    try:
        new = changed(text, "mithril.project", "new")
    except ValidationError as error:
        assert error.message.endswith("`mithril.project` cannot be changed in") or "not YAML" in error.message
    else:
        assert "project: new" in new


_VALUES: dict[type, st.SearchStrategy[Any]] = {
    str: st.text(
        st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="\ufeff\ufffe\uffff"), min_size=1
    ),
    Path: st.sampled_from(["/x", "~/y", "/a b"]),
    int: st.integers(1, 99),
    float: st.sampled_from([1, 2.5, "3"]),
    bool: st.booleans(),
    list: st.lists(st.sampled_from(["a", "b:2", "no"]), min_size=1),
}
_CHANGES = st.sampled_from(SETTINGS).flatmap(
    lambda known: st.tuples(st.just(known.name), st.none() | _VALUES[known.kind], st.sampled_from([None, "a", "b"]))
)


@given(st.lists(_CHANGES, max_size=6), st.sampled_from(["", MINE, "api_key: a # b\nprofiles: {a: {provider: x}}\n"]))
def test_any_change_is_read_back_and_nothing_else_changes(changes: list[tuple[str, Any, Any]], text: str) -> None:
    def said() -> dict[tuple[str | None, str], Any]:
        found = [one for one in entries(parse_document(text, "x", is_text).values) if one.value is not None]
        return {(one.profile, one.name): value_of(known_setting(one.name), one.value) for one in found}

    wanted = said()
    for name, value, profile in changes:
        text = changed(text, name, value, profile=profile)
        wanted.pop((profile, name), None)
        if value is not None:
            wanted[profile, name] = value_of(known_setting(name), value)
    assert said() == wanted


def test_what_is_not_allowed_is_not_written() -> None:
    user_file().parent.mkdir()
    user_file().write_text(MINE)
    with pytest.raises(ValidationError, match=r"local\.cpus: `many` is not a whole number"):
        change_settings({"provider": "ssh", "local.cpus": "many"})
    with pytest.raises(ValidationError, match=r"no setting `local\.cpu`"):
        change_settings({"provider": "ssh", "local.cpu": "1"})
    assert user_file().read_text() == MINE


def test_the_file_is_the_users_alone_and_a_link_stays_one(tmp_path: Path) -> None:
    real = tmp_path / "dotfiles.yaml"
    real.write_text("provider: ssh\n")
    real.chmod(0o644)
    user_file().parent.mkdir()
    user_file().symlink_to(real)
    assert change_settings({"mithril.api_key": "hush"}) == user_file()
    assert user_file().is_symlink() and stat.S_IMODE(real.stat().st_mode) == 0o600
    assert Settings.load().get("mithril.api_key") == "hush"


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLOW_HOME", str(tmp_path / "file"))
    with pytest.raises(StorageError):
        change_settings({"provider": "ssh"})
