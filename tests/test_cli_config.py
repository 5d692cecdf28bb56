"""`flow config`: what is in force, and changes to the user's own file."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from flow.client import Flow
from flow.errors import AuthenticationError, UnknownProfileError
from flow.settings import user_file
from tests.support.commands import flow
from tests.support.mithril_cloud import Cloud


@pytest.fixture(autouse=True)
def here(project: Path) -> Path:
    return project


def test_a_setting_is_set_got_and_taken_out() -> None:
    file = user_file()
    ended = flow("config", "set", "upload_limit_mb", "10")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", f"`{file}`: `upload_limit_mb` is `10.0`\n")
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == ("upload_limit_mb: 10\n", 0o600)
    assert flow("config", "get", "upload_limit_mb").stdout == "10.0\n"
    assert flow("config", "get", "upload_limit_mb", "--origin").stdout == f"10.0  {file}:1\n"
    ended = flow("config", "unset", "upload_limit_mb")
    assert ended.stderr == f"`{file}`: no `upload_limit_mb`; it is now not set (default)\n"
    assert (file.read_text(), flow("config", "get", "upload_limit_mb").stdout) == ("", "")


def test_what_overrides_the_file_is_said(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / ".flow").mkdir()
    (project / ".flow/config.yaml").write_text("provider: local\n")
    ended = flow("config", "set", "provider", "slurm")
    note = f"note: {project}/.flow/config.yaml:1 overrides it: `provider` is now `local`"
    assert ended.stderr.splitlines() == [f"`{user_file()}`: `provider` is written", note]
    monkeypatch.setenv("FLOW_LOCAL_CPUS", "2")
    assert flow("config", "set", "local.cpus", "4").stderr.endswith(
        "note: FLOW_LOCAL_CPUS overrides it: `local.cpus` is now `2`\n"
    )


def test_a_secret_is_read_from_the_input_and_never_shown() -> None:
    ended = flow("config", "set", "api_key", "-", stdin=b"hush\n")
    assert ended.stderr == f"`{user_file()}`: `mithril.api_key` is `***`\n"
    shown = [flow("config", *words) for words in (("get", "api_key"), ("show", "--origin"), ("--json",))]
    assert shown[0].stdout == "***\n" and not any("hush" in one.stdout + one.stderr for one in shown)
    assert "api_key: hush" in user_file().read_text()


def test_a_profile_is_written_and_used_by_its_name() -> None:
    ended = flow("--profile", "work", "config", "set", "provider", "ssh")
    assert ended.stderr == f"`{user_file()}`, new profile `work`: `provider` is `ssh`\n"
    assert user_file().read_text() == "profiles:\n  work:\n    provider: ssh\n"
    assert flow("config", "get", "provider").stdout == "local\n"
    assert flow("config", "get", "provider", "--profile", "work").stdout == "ssh\n"
    ended = flow("run", "true", "--profile", "wrok")
    assert (ended.returncode, ended.stderr.splitlines()[0]) == (2, "error: no profile `wrok` in the settings")
    assert "hint: did you mean `work`?" in ended.stderr
    assert flow("config", "unset", "provider", "--profile", "work").returncode == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("set", "provider", "slrum"), "unknown provider `slrum`"),
        (("set", "local.cpu", "1"), "no setting `local.cpu`"),
        (("set", "local.cpus", "0"), "local.cpus: `0` is too small"),
        (("set", "local.cpus"), "missing `VALUE`"),
        (("get", "x"), "no setting `x`"),
        (("gte", "x"), "no command `gte`"),
        (("unset", "x"), "no setting `x`"),
        (("set", "provider", "ssh", "--profile", "a b"), "`a b` cannot be the name of a profile"),
    ],
)
def test_what_makes_no_sense_is_refused(words: tuple[str, ...], message: str) -> None:
    ended = flow("config", *words)
    assert (ended.returncode, ended.stderr.splitlines()[0]) == (2, f"error: {message}")
    assert not user_file().exists()


def test_fcp_is_mithril_on_a_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for ended in (flow("offers", "--provider", "fcp"), flow("run", "true", "--provider", "fcp")):
        assert (ended.returncode, ended.stderr.splitlines()[0]) == (5, "error: no API key for Mithril")


def test_a_task_stays_with_the_profile_that_it_was_submitted_by(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOW_MITHRIL_API_URL", cloud.url)
    profiles = f"{{work: {{provider: fcp, api_key: {cloud.key}}}, plain: {{provider: ssh}}}}"
    user_file().parent.mkdir()
    user_file().write_text(f"provider: local\nprofiles: {profiles}\n")
    ended = flow("run", "true", "-i", "a100", "--dry-run", "--json", "--profile", "work")
    assert json.loads(ended.stdout)["provider"] == "mithril@work", ended.stderr
    for profile, name in (("", "local"), ("plain", "ssh"), ("work", "mithril@work")):
        monkeypatch.setenv("FLOW_PROFILE", profile)
        client = Flow()
        assert client.provider().name == name
        assert client.provider("mithril@work").offers()
        with pytest.raises(AuthenticationError):
            client.provider("mithril").offers()
    user_file().write_text("provider: local\n")
    with pytest.raises(UnknownProfileError):
        Flow(provider="local").provider("mithril@work")


def test_a_wrong_value_can_be_put_right() -> None:
    user_file().parent.mkdir()
    user_file().write_text("local: {cpus: many} # ä\n")
    assert flow("status").returncode == 2
    assert flow("config", "set", "local.cpus", "3").returncode == 0
    assert user_file().read_text() == "local: {cpus: 3} # ä\n"


def test_a_file_that_is_no_text_is_told() -> None:
    user_file().parent.mkdir()
    user_file().write_bytes(b"\xff\xfe")
    ended = flow("config", "set", "local.cpus", "1")
    assert (ended.returncode, "is not a text file" in ended.stderr) == (2, True)


def test_a_damaged_file_is_not_written_over() -> None:
    user_file().parent.mkdir()
    user_file().write_text("provider: [\n")
    ended = flow("config", "set", "local.cpus", "1")
    assert (ended.returncode, user_file().read_text()) == (2, "provider: [\n")
    assert f"{user_file()}:2:1: not YAML" in ended.stderr
