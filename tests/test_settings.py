"""Settings: which layer wins, where a value came from, and what is said about mistakes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from flow.errors import ValidationError
from flow.keyring_entries import write_entry
from flow.settings import SETTINGS, Setting, Settings, flow_home


class Machine:
    """A home and a project with settings files, as one user has them."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self.project = root / "home" / "work" / "project"
        self.cwd = self.project / "src" / "deep"
        self.cwd.mkdir(parents=True)
        self.env = {"HOME": str(self.home)}
        self.user_file = self.home / ".flow" / "config.yaml"
        self.project_file = self.project / ".flow" / "config.yaml"

    def write(self, file: Path, text: str) -> None:
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text(text)

    def settings(self, flags: dict[str, object] | None = None, **env: str) -> Settings:
        return Settings.load(flags, env={**self.env, **env}, cwd=self.cwd)

    def refused(self, flags: dict[str, object] | None = None, **env: str) -> ValidationError:
        with pytest.raises(ValidationError) as caught:
            self.settings(flags, **env)
        return caught.value


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_files_everything_is_default(machine: Machine) -> None:
    settings = machine.settings()
    assert [one.value for one in settings.all()] == [known.default for known in SETTINGS]
    assert {one.origin for one in settings.all()} == {"default"}
    assert settings.warnings == ()


def test_each_layer_overrides_the_one_below_and_is_named(machine: Machine) -> None:
    machine.write(machine.user_file, "# mine\nlocal:\n  cpus: 1\n  gpus: 1\nprovider: user\nupload_limit_mb: 1\n")
    settings = machine.settings()
    assert (settings.get("local.cpus"), settings.origin("local.cpus")) == (1, f"{machine.user_file}:3")
    machine.write(machine.project_file, "local.cpus: 2\nprovider: project\nupload_limit_mb: 2\n")
    settings = machine.settings(
        {"provider": "flag", "local.strict": None}, FLOW_UPLOAD_LIMIT_MB="3.5", FLOW_PROVIDER="env"
    )
    assert {
        one.name: (one.value, one.origin) for one in settings.all() if one.name[:3] not in ("dev", "mit", "slu", "ssh")
    } == {
        "provider": ("flag", "--provider"),
        "upload_limit_mb": (3.5, "FLOW_UPLOAD_LIMIT_MB"),
        "records": (None, "default"),
        "local.strict": (False, "default"),
        "local.cpus": (2, f"{machine.project_file}:1"),
        "local.gpus": (1, f"{machine.user_file}:4"),
        "local.state_dir": (None, "default"),
    }


def test_a_list_is_written_in_two_ways(machine: Machine) -> None:
    machine.write(machine.user_file, "ssh:\n  hosts: [gpu1, me@10.0.0.7:2222]\n")
    assert machine.settings().get("ssh.hosts") == ["gpu1", "me@10.0.0.7:2222"]
    assert machine.settings(FLOW_SSH_HOSTS="gpu1, gpu2").get("ssh.hosts") == ["gpu1", "gpu2"]
    machine.write(machine.user_file, "ssh:\n  hosts: [1]\n")
    with pytest.raises(ValidationError, match="is no list of words"):
        machine.settings()


def test_the_nearest_project_file_counts_alone(machine: Machine) -> None:
    machine.write(machine.project_file, "provider: far\nlocal.cpus: 1\n")
    near = machine.project / "src" / ".flow" / "config.yaml"
    machine.write(near, "provider: near\n")
    settings = machine.settings()
    assert (settings.get("provider"), settings.origin("provider")) == ("near", f"{near}:1")
    assert settings.get("local.cpus") is None


def test_the_homes_own_folder_is_no_project(machine: Machine) -> None:
    machine.write(machine.user_file, "provider: user\n")
    elsewhere = machine.home / "elsewhere"
    assert machine.settings().get("provider") == "user"
    assert machine.settings(FLOW_HOME=str(elsewhere)).get("provider") == "local"
    machine.write(elsewhere / "config.yaml", "provider: elsewhere\n")
    assert machine.settings(FLOW_HOME=str(elsewhere)).get("provider") == "elsewhere"


def test_a_key_makes_mithril_the_provider_unless_another_is_named(machine: Machine) -> None:
    machine.write(machine.user_file, "mithril:\n  api_key: hush\n")
    machine.user_file.chmod(0o600)
    settings = machine.settings()
    told = f"default, as mithril.api_key is in {machine.user_file}:2"
    assert (settings.get("provider"), settings.origin("provider")) == ("mithril", told)
    assert settings.warnings == ()
    assert machine.settings(FLOW_PROVIDER="local").get("provider") == "local"
    machine.write(machine.project_file, "provider: slurm\n")
    assert machine.settings().get("provider") == "slurm"


def test_fcp_is_another_name_of_mithril(machine: Machine) -> None:
    machine.write(machine.user_file, "provider: fcp\nfcp:\n  project: mine\n  price_factor: 2\n")
    settings = machine.settings()
    assert [settings.get(name) for name in ("provider", "mithril.project", "fcp.price_factor")] == [
        "mithril",
        "mine",
        2,
    ]
    assert machine.settings(FLOW_PROVIDER="fcp").get("provider") == "mithril"
    assert machine.settings({"provider": "fcp"}).get("provider") == "mithril"


def test_settings_of_mithril_may_stand_at_the_top_of_a_file(machine: Machine) -> None:
    machine.write(machine.user_file, "api_key: fcp-1\nproject: no\nregion: r\ndefault_ssh_key: k\n")
    settings = machine.settings()
    names = ("mithril.api_key", "mithril.project", "mithril.region", "mithril.ssh_key")
    assert [settings.get(name) for name in names] == ["fcp-1", "no", "r", "k"]
    assert settings.get("project") == "no"
    file = machine.user_file
    assert settings.origin("mithril.project") == f"{file}:2"
    machine.write(file, "project: a\nmithril:\n  project: b\nfcp.project: c\n")
    assert [
        line.partition(": ")[2] for line in machine.refused().message.splitlines() if line.startswith(str(file))
    ] == ["mithril.project: is set twice; keep one of them"] * 2


def test_a_key_that_others_can_read_is_warned_of(machine: Machine) -> None:
    file = machine.user_file
    for text in ("api_key: hush\n", "profiles: {work: {mithril: {api_key: hush}}}\n"):
        machine.write(file, text)
        file.chmod(0o640)
        assert machine.settings().warnings == (f"`{file}` holds a key, and others can read it: `chmod 600 {file}`",)
        file.chmod(0o600)
        assert machine.settings().warnings == ()
    machine.write(file, "api_key: keyring\n")
    file.chmod(0o644)
    assert machine.settings().warnings == ()


def test_where_the_key_is_sent_is_not_up_to_a_projects_file(machine: Machine) -> None:
    machine.write(machine.project_file, "mithril:\n  api_url: https://thief.example\n  project: p\n")
    settings = machine.settings()
    assert (settings.get("mithril.api_url"), settings.get("mithril.project")) == ("https://api.mithril.ai", "p")
    assert settings.warnings[0].startswith(f"{machine.project_file}:2: `mithril.api_url` was passed over")


PROFILES = """\
provider: local
local.cpus: 1
mithril:
  project: own
profiles:
  work:
    provider: fcp
    region: r
    mithril: {project: theirs}
  empty:
"""


def test_a_profile_goes_before_the_files_and_after_the_environment(machine: Machine) -> None:
    machine.write(machine.user_file, PROFILES)
    machine.write(machine.project_file, "provider: slurm\nlocal.cpus: 2\nprofiles.work.local.gpus: 3\n")
    assert machine.settings().get("provider") == "slurm"
    settings = machine.settings(FLOW_PROFILE="work")
    names = ("provider", "mithril.project", "mithril.region", "local.cpus", "local.gpus")
    assert [settings.get(name) for name in names] == ["mithril", "theirs", "r", 2, 3]
    assert settings.origin("mithril.project") == f"{machine.user_file}:9"
    assert machine.settings(FLOW_PROFILE="work", FLOW_PROVIDER="ssh").get("provider") == "ssh"
    assert machine.settings({"provider": "ssh"}, FLOW_PROFILE="work").get("provider") == "ssh"
    assert machine.settings(FLOW_PROFILE="empty").get("provider") == "slurm"
    assert machine.settings(FLOW_PROFILE="").get("provider") == "slurm"


def test_a_profile_that_there_is_not_is_refused(machine: Machine) -> None:
    assert machine.refused(FLOW_PROFILE="work").suggestions == ("make it with `flow --profile work init`",)
    machine.write(machine.user_file, PROFILES)
    error = machine.refused(FLOW_PROFILE="wrok")
    assert (error.message, error.suggestions[0]) == ("no profile `wrok` in the settings", "did you mean `work`?")
    assert machine.refused(FLOW_PROFILE="zzz").suggestions[0] == "there is `empty`, `work`"


def test_mistakes_of_the_chosen_profile_alone_are_told(machine: Machine) -> None:
    machine.write(machine.user_file, "profiles:\n  a: {local: {cpus: many}}\n  b: {provider: x, colour: y}\n  c: 5\n")
    file = machine.user_file
    settings = machine.settings(FLOW_PROFILE="b")
    assert settings.warnings[0].startswith(f"{file}:3: unknown setting `colour`; ")
    assert machine.settings().warnings == ()
    assert f"{file}:2:21: local.cpus: `many` is not a whole number" in machine.refused(FLOW_PROFILE="a").message
    assert f"{file}:4:6: c: has settings, but no value" in machine.refused(FLOW_PROFILE="c").message


def test_a_key_may_be_in_the_keyring(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "tests.support.keyring.Kept")
    machine.write(machine.user_file, "api_key: keyring\nprofiles: {work: {api_key: 'keyring:work'}}\n")
    settings = machine.settings()
    assert (settings.get("provider"), settings.setting("mithril.api_key").shown) == ("mithril", "***")
    with pytest.raises(ValidationError) as caught:
        settings.get("mithril.api_key")
    assert caught.value.message == "`mithril.api_key` is not in the keyring"
    assert caught.value.suggestions == ("put it there with `keyring set flow mithril.api_key`",)
    for profile, secret in ((None, "hush"), ("work", "psst")):
        write_entry("mithril.api_key", secret, profile)
    assert settings.get("mithril.api_key") == "hush"
    assert machine.settings(FLOW_PROFILE="work").get("mithril.api_key") == "psst"


def test_without_the_package_the_keyring_is_told_of(machine: Machine) -> None:
    script = """
import sys
sys.modules["keyring"] = None
from flow.settings import Settings
try:
    Settings.load(env={"HOME": "/nonexistent", "FCP_API_KEY": "keyring"}).get("mithril.api_key")
except Exception as error:
    print(error, *error.suggestions)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=machine.cwd)
    assert done.stdout == "the keyring needs the package `keyring` install Flow with the extra `keyring`\n"


def test_a_key_without_a_value_and_an_empty_variable_say_nothing(machine: Machine) -> None:
    machine.write(machine.user_file, "provider: user\n")
    machine.write(machine.project_file, "provider:\nlocal:\n")
    assert machine.settings({"provider": None}, FLOW_PROVIDER="").get("provider") == "user"
    machine.write(machine.project_file, "# nothing yet\n")
    assert machine.settings().get("provider") == "user"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, True) for text in ("true", "True", "1", "yes", "on")),
        *((text, False) for text in ("false", "FALSE", "0", "no", "off")),
    ],
)
def test_truth_is_written_in_many_ways(machine: Machine, text: str, value: bool) -> None:
    machine.write(machine.project_file, f"local.strict: {text}\n")
    assert machine.settings().get("local.strict") is value
    machine.write(machine.project_file, f"local.strict: '{text}'\n")
    assert machine.settings().get("local.strict") is value
    assert machine.settings(FLOW_LOCAL_STRICT=text).get("local.strict") is value
    assert machine.settings({"local.strict": value}).get("local.strict") is value


def test_names_and_paths_are_taken_as_written(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(machine.home))
    machine.write(machine.project_file, "provider: no\nlocal.state_dir: ~/state\n")
    assert machine.settings().get("provider") == "no"
    assert machine.settings().get("local.state_dir") == machine.home / "state"
    assert machine.settings(FLOW_LOCAL_STATE_DIR="/x").get("local.state_dir") == Path("/x")


def test_all_mistakes_of_a_file_are_told_with_their_place(machine: Machine) -> None:
    machine.write(
        machine.project_file,
        """\
provider: [a]
local:
  cpus: many
  gpus: -1
  strict: true
local.strict: false
local.state_dir: relative
upload_limit_mb: .inf
""",
    )
    file = machine.project_file
    assert (
        machine.refused().message
        == f"""\
6 mistakes in `{file}`
{file}:1:11: provider: a list is not text; write text
    provider: [a]
              ^
{file}:3:9: local.cpus: `many` is not a whole number; write a whole number
      cpus: many
            ^
{file}:4:9: local.gpus: `-1` is too small; write 0 or more
      gpus: -1
            ^
{file}:6:15: local.strict: is set twice; keep one of them
    local.strict: false
                  ^
{file}:7:18: local.state_dir: `relative` is a relative path; write an absolute path, or one from `~`
    local.state_dir: relative
                     ^
{file}:8:18: upload_limit_mb: `inf` is not a number; write a number
    upload_limit_mb: .inf
                     ^"""
    )


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("FLOW_LOCAL_CPUS", "many", "FLOW_LOCAL_CPUS: `many` is not a whole number"),
        ("FLOW_LOCAL_CPUS", "0", "FLOW_LOCAL_CPUS: `0` is too small"),
        ("FLOW_LOCAL_CPUS", "1.5", "FLOW_LOCAL_CPUS: `1.5` is not a whole number"),
        ("FLOW_LOCAL_STRICT", "2", "FLOW_LOCAL_STRICT: `2` is neither true nor false"),
        ("FLOW_UPLOAD_LIMIT_MB", "nan", "FLOW_UPLOAD_LIMIT_MB: `nan` is not a number"),
        ("FLOW_LOCAL_STATE_DIR", "~nobody-of-this-name/x", "is a relative path"),
    ],
)
def test_a_wrong_variable_is_named(machine: Machine, variable: str, value: str, told: str) -> None:
    error = machine.refused(**{variable: value})
    assert told in error.message
    assert error.suggestions


def test_a_wrong_flag_is_named(machine: Machine) -> None:
    assert machine.refused({"local.state_dir": "x"}).message == "--local-state-dir: `x` is a relative path"


def test_unknown_settings_are_passed_over_with_a_warning(machine: Machine) -> None:
    machine.write(machine.project_file, "provder: slurm\nlocal:\n  cpu: 3\ncolour: hush\n")
    settings = machine.settings()
    file = machine.project_file
    assert settings.get("provider") == "local"
    assert settings.warnings[:2] == (
        f"{file}:1: unknown setting `provder`; did you mean `provider`?",
        f"{file}:3: unknown setting `local.cpu`; did you mean `local.cpus`?",
    )
    assert settings.warnings[2].startswith(f"{file}:4: unknown setting `colour`; the settings are provider, ")
    assert "hush" not in str(settings.warnings)


def test_an_unknown_setting_asked_for_is_an_error(machine: Machine) -> None:
    for ask in (machine.settings().get, machine.settings().origin):
        with pytest.raises(ValidationError) as caught:
            ask("local.cpu")
        assert caught.value.message == "no setting `local.cpu`"
        assert caught.value.suggestions == ("did you mean `local.cpus`?",)


@pytest.mark.parametrize("text", ["a: [1\n", "- a\n", "local: 5\n", "a: 1\na: 2\n", "\x00", "a: b: c\n"])
def test_a_damaged_file_is_told_with_its_name(machine: Machine, text: str) -> None:
    machine.write(machine.user_file, text)
    assert str(machine.user_file) in machine.refused().message


def test_a_file_that_cannot_be_read_is_told(machine: Machine) -> None:
    machine.user_file.mkdir(parents=True)
    assert machine.refused().message == f"`{machine.user_file}` is a folder"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
def test_a_project_file_of_another_user_is_passed_over() -> None:
    script = """
import os, sys
from pathlib import Path
from flow.settings import Settings
os.setgid(23456)
os.setuid(23456)
settings = Settings.load(env={"HOME": "/nonexistent"}, cwd=Path(sys.argv[1]))
print(settings.get("provider"), *settings.warnings)
"""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # every user can look into it, unlike pytest's
    try:
        file = folder / ".flow" / "config.yaml"
        file.parent.mkdir()
        file.write_text("provider: theirs\n")
        folder.chmod(0o755)
        os.chown(file, 12345, 12345)
        done = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, check=False)
        assert done.stdout == f"local `{file}` was passed over: it belongs to another user\n", done.stderr
        folder.chmod(0o700)
        done = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, check=False)
        assert done.stdout == "local\n", done.stderr
    finally:
        shutil.rmtree(folder)


def test_a_folder_that_is_gone_has_no_project_file(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(machine.cwd)
    machine.cwd.rmdir()
    settings = Settings.load(env=machine.env)
    assert settings.get("provider") == "local"
    with pytest.raises(ValidationError):
        flow_home({"FLOW_HOME": "relative"})


def test_flow_home_is_absolute(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(machine.cwd)
    monkeypatch.setenv("HOME", str(machine.home))
    assert flow_home(machine.env) == machine.home / ".flow"
    assert flow_home({**machine.env, "FLOW_HOME": ""}) == machine.home / ".flow"
    assert flow_home({**machine.env, "FLOW_HOME": "/x/y"}) == Path("/x/y")
    assert flow_home({**machine.env, "FLOW_HOME": "~/y"}) == machine.home / "y"
    assert flow_home({**machine.env, "FLOW_HOME": "here"}) == machine.cwd / "here"


def test_what_is_shown_of_a_setting() -> None:
    def shown(value: object, *, secret: bool = False) -> str:
        return Setting("x", value, "default", "", secret).shown

    assert [shown(True), shown(None), shown(2), shown(Path("/x"))] == ["true", "", "2", "/x"]
    assert shown("hush", secret=True) == "***"
    assert shown(None, secret=True) == ""


def test_reading_settings_imports_nothing_heavy(machine: Machine) -> None:
    script = """
import sys
from flow.settings import Settings
Settings.load({}, env={"HOME": "/nonexistent"})
heavy = {"yaml", "pydantic", "dataclasses", "inspect", "subprocess", "click", "rich", "sqlite3"} & set(sys.modules)
print(sorted(heavy))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=machine.cwd)
    assert done.stdout == "[]\n"
