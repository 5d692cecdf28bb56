"""`flow init`: by options, at a terminal, again, and with everything that may be wrong."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flow.settings import Settings, user_file
from tests.support.commands import Ended, flow
from tests.support.mithril_cloud import Cloud
from tests.support.mithril_cloud.faults import NO_MEMBER, busy, slow, taken_then_reset
from tests.support.mithril_cloud.records import ApiKey, Project
from tests.support.terminal import Terminal

NOWHERE = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHELL", "/bin/sh")
    return project


@pytest.fixture
def at(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """The cloud, where `flow init` looks for it."""
    monkeypatch.setenv("FLOW_MITHRIL_API_URL", cloud.url)
    return cloud


def by_options(*words: str, key: str) -> Ended:
    return flow("init", "--provider", "mithril", "--api-key", "-", *words, stdin=f"{key}\n".encode())


def add_projects(cloud: Cloud, *names: str) -> list[str]:
    made = [Project(name, cloud.clock.now()) for name in names]
    cloud.projects += made
    return [one.fid for one in made]


def ssh_key(name: str) -> str:
    """A pair of keys in the user's `~/.ssh`: its public half."""
    file = Path.home() / ".ssh" / name
    file.parent.mkdir(exist_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ada", "-f", file], check=True)
    return file.with_suffix(".pub").read_text()


def files() -> dict[str, str]:
    """What lies in Flow's folder and in the home."""
    roots = (user_file().parent, Path.home())
    found = (one for root in roots for one in root.rglob("*") if one.is_file() and one.name != ".config.lock")
    return {str(one): one.read_text(errors="replace") for one in found}


# -- by options alone


def test_options_alone_set_everything_up(at: Cloud) -> None:
    ended = by_options(key=at.key)
    assert (ended.returncode, ended.stdout) == (0, "")
    own = user_file().parent / "mithril" / "id_ed25519"
    assert ended.stderr.splitlines() == [
        "signed in as ada@example.com",
        "project: my-project",
        f"SSH key: `{own}`",
        f"`{user_file()}` is written",
        "hint: `flow offers` shows what there is, and its price",
        "hint: run with `flow run -i a100 'nvidia-smi' --watch`",
    ]
    text = f"provider: mithril\nmithril:\n  api_key: {at.key}\n  project: my-project\n"
    assert (user_file().read_text(), stat.S_IMODE(user_file().stat().st_mode)) == (text, 0o600)
    assert [one.public_key for one in at.spot.ssh_keys.values()] == [own.with_suffix(".pub").read_text().strip()]
    assert stat.S_IMODE(own.stat().st_mode) == 0o600
    assert at.leaks(at.key) == []


def test_a_second_time_it_changes_only_what_is_said(at: Cloud) -> None:
    by_options(key=at.key)
    user_file().write_text(text := "# mine\n" + user_file().read_text() + "local:\n  cpus: 2 # half\n")
    ended = flow("init", "--yes")
    assert (ended.returncode, user_file().read_text()) == (0, text)
    assert f"`{user_file()}` is as it was" in ended.stderr
    assert flow("init", "--region", "us-central1-b", "--yes").returncode == 0
    assert user_file().read_text() == text.replace("my-project\n", "my-project\n  region: us-central1-b\n")
    assert flow("init", "--region", "any", "--yes").returncode == 0
    assert user_file().read_text() == text
    assert at.count("POST /v2/ssh-keys") == 1


def test_a_key_of_the_users_is_sent_once_and_known_again(at: Cloud) -> None:
    public = ssh_key("id_ed25519")
    words = ("--ssh-key", "~/.ssh/id_ed25519")
    assert by_options(*words, key=at.key).returncode == by_options(*words, key=at.key).returncode == 0
    assert [one.public_key for one in at.spot.ssh_keys.values()] == [public.strip()]
    assert Settings.load().get("mithril.ssh_key") == "~/.ssh/id_ed25519"
    assert not (user_file().parent / "mithril" / "id_ed25519").exists()


def test_a_cut_while_the_key_is_sent_makes_no_second_one(at: Cloud) -> None:
    at.faults.play(taken_then_reset(), "POST /v2/ssh-keys")
    assert by_options(key=at.key).returncode == 0
    assert len(at.spot.ssh_keys) == 1


def test_the_environments_key_and_project_are_used_and_not_written(at: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    add_projects(at, "vision")
    monkeypatch.setenv("FCP_API_KEY", at.key)
    monkeypatch.setenv("FCP_PROJECT", "vision")
    assert flow("init", "--yes").returncode == 0
    assert user_file().read_text() == "provider: mithril\n"
    ended = flow("init", "--project", "my-project", "--yes")
    assert ended.stderr.splitlines()[3] == "note: FCP_PROJECT overrides `mithril.project`: it is now `vision`"


def test_a_profile_gets_all_of_it(at: Cloud) -> None:
    user_file().parent.mkdir()
    user_file().write_text("provider: local\n")
    ended = flow("--profile", "work", "init", "--api-key", at.key, "--yes")
    assert ended.returncode == 0
    assert user_file().read_text() == (
        "provider: local\nprofiles:\n  work:\n    provider: mithril\n    mithril:\n"
        f"      api_key: {at.key}\n      project: my-project\n"
    )
    assert flow("config", "get", "provider").stdout == "local\n"
    assert flow("init", "--profile", "plain", "--yes").returncode == 0
    assert flow("config", "get", "provider", "--profile", "plain").stdout == "local\n"


def test_a_profile_has_what_the_file_has_without_it_too(at: Cloud) -> None:
    by_options(key=at.key)
    assert flow("--profile", "work", "init", "--api-key", at.key, "--project", "my-project", "--yes").returncode == 0
    of_profile = f"  work:\n    provider: mithril\n    mithril:\n      api_key: {at.key}\n      project: my-project\n"
    assert user_file().read_text().endswith(of_profile)
    assert "is as it was" in flow("--profile", "work", "init", "--yes").stderr


def test_a_key_that_is_given_is_written_whatever_holds_without_it(at: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MITHRIL_API_KEY", at.key)
    assert flow("--profile", "work", "init", "--api-key", at.key, "--yes").returncode == 0
    assert f"      api_key: {at.key}\n" in user_file().read_text()
    assert by_options(key=at.key).returncode == 0
    assert f"\n  api_key: {at.key}\n" in user_file().read_text()


def test_the_key_may_go_into_the_keyring(at: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "tests.support.keyring.Kept")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    assert by_options("--keyring", key=at.key).returncode == 0
    assert "api_key: keyring\n" in user_file().read_text() and at.key not in user_file().read_text()
    assert Settings.load().get("mithril.api_key") == at.key
    assert "is as it was" in flow("init", "--yes").stderr
    other = ApiKey("other", at.clock.now(), at.clock.now() + 86400)
    at.api_keys[other.fid] = other
    assert flow("--profile", "work", "init", "--api-key", other.secret, "--keyring", "--yes").returncode == 0
    assert "api_key: 'keyring:work'\n" in user_file().read_text()
    assert flow("--profile", "work", "init", "--yes").returncode == 0
    assert Settings.load().get("mithril.api_key") == at.key


@pytest.mark.parametrize("name", ["local", "ssh", "slurm"])
def test_other_providers_need_no_key(name: str) -> None:
    ended = flow("init", "--provider", name, "--yes")
    assert (ended.returncode, user_file().read_text()) == (0, f"provider: {name}\n")
    assert ended.stderr.splitlines()[1].startswith("hint: ")


# -- what may be wrong


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "it is not said where tasks shall run, and there is nobody to ask"),
        (("--provider", "mithril"), "`--api-key` is missing, and there is nobody to ask"),
        (("--project", "x", "--yes"), "`--api-key` is missing, and there is nobody to ask"),
        (("--provider", "mitril"), "unknown provider `mitril`"),
        (("--provider", "local", "--api-key", "x"), "`--api-key` is for `--provider mithril`, not for `local`"),
        (("--api-key", "-"), "no API key came in"),
        (("--api-key", "ä"), "the API key has characters that no key has"),
        (("--provider", "local", "--completion"), "your shell ($SHELL) is neither bash nor zsh nor fish"),
    ],
)
def test_what_is_missing_or_makes_no_sense_is_told(words: tuple[str, ...], message: str) -> None:
    ended = flow("init", *words)
    assert ended.returncode in (2, 5) and ended.stderr.splitlines()[0] == f"error: {message}"
    assert files() == {}


def test_a_wrong_key_is_refused_at_once(at: Cloud) -> None:
    ended = by_options(key="fkey_wrong")
    assert ended.returncode == 5
    assert ended.stderr.startswith("error: the API key is not accepted: Invalid API key")
    assert "fkey_wrong" not in ended.stderr and files() == {}
    assert "flow init" not in ended.stderr and "hint: get a new one from " in ended.stderr


def test_a_key_without_rights_is_told(at: Cloud) -> None:
    at.faults.play(NO_MEMBER, "GET /v2/ssh-keys", times=9)
    ended = by_options(key=at.key)
    assert (ended.returncode, f"not allowed in the project `{at.project}`: Not a member" in ended.stderr) == (5, True)
    assert not user_file().exists()


def test_without_a_network_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOW_MITHRIL_API_URL", NOWHERE)
    ended = by_options(key="fkey_x")
    assert (ended.returncode, ended.stderr.startswith(f"error: {NOWHERE} cannot be reached: ")) == (6, True)
    assert files() == {}


def test_a_busy_and_slow_server_is_waited_for(at: Cloud) -> None:
    at.faults.play(busy(1), "GET /v2/me")
    at.faults.play(slow(0.3), "GET /v2/projects")
    assert by_options(key=at.key).returncode == 0


def test_projects_are_told_where_one_must_be_named(at: Cloud) -> None:
    ids = add_projects(at, "vision", "twice", "twice")
    ended = by_options(key=at.key)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[1:] == [
        "error: `--project` is missing, and there is nobody to ask",
        "",
        "hint: the projects are my-project, vision, twice, twice",
        "hint: say it all: `flow init --provider mithril --api-key KEY --project NAME --yes`",
    ]
    ended = by_options("--project", "visoin", key=at.key)
    assert (ended.returncode, "hint: did you mean `vision`?" in ended.stderr) == (2, True)
    ended = by_options("--project", "proj_none", key=at.key)
    assert (ended.returncode, "error: no project `proj_none`" in ended.stderr) == (2, True)
    ended = by_options("--project", "twice", key=at.key)
    assert (ended.returncode, f"hint: give an id: {ids[1]}, {ids[2]}" in ended.stderr) == (2, True)
    assert not user_file().exists()
    assert by_options("--project", ids[2], key=at.key).returncode == 0
    assert Settings.load().get("mithril.project") == ids[2]
    at.projects.clear()
    assert "error: this account has no project" in by_options(key=at.key).stderr


def test_an_ssh_key_that_is_not_there_is_told(at: Cloud) -> None:
    ended = by_options("--ssh-key", "laptop", key=at.key)
    assert (ended.returncode, "error: the project has no SSH key `laptop`" in ended.stderr) == (2, True)
    ended = by_options("--ssh-key", "~/.ssh/none", key=at.key)
    assert (ended.returncode, f"error: there is no SSH key `{Path.home()}/.ssh/none`" in ended.stderr) == (2, True)
    assert not user_file().exists()


def test_a_region_that_is_none_is_refused_and_one_without_machines_noted(at: Cloud) -> None:
    ended = by_options("--region", "us-central1-c", key=at.key)
    assert (ended.returncode, user_file().exists()) == (2, False)
    assert "error: no region `us-central1-c`\n\nhint: did you mean `us-central1-b`?\nhint: there is: eu" in ended.stderr
    at.regions["us-central1-c"] = replace(at.regions["us-central1-b"], name="us-central1-c")
    ended = by_options("--region", "us-central1-c", key=at.key)
    assert ended.returncode == 0
    assert "note: there are no machines in `us-central1-c` now; did you mean `us-central1-b`?" in ended.stderr


# -- at a terminal


def test_at_a_terminal_everything_is_asked(at: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/bash")
    (Path.home() / ".bashrc").write_text("export MINE=1")
    public = ssh_key("id_ed25519")
    ids = add_projects(at, "twice", "twice")
    terminal = Terminal("init")
    assert terminal.shows("Provider [1]: ")
    terminal.types("mythril\n")
    assert terminal.shows("`mythril` is none of them: type a number from 1 to 4\nProvider [1]: ")
    terminal.types("fcp\n")
    assert terminal.shows("API key, from https://app.mithril.ai/account/api-keys: ")
    terminal.types("fkey_wrong\n")
    assert terminal.shows("the API key is not accepted: Invalid API key")
    assert terminal.shows("/api-keys\nAPI key, from https://app.mithril.ai/account/api-keys: ")
    terminal.types(f"{at.key}\n")
    assert terminal.shows(f"signed in as ada@example.com\n  1  my-project\n  2  {ids[0]}")
    assert terminal.shows("Project: ")
    terminal.types("3\n")
    assert terminal.shows("Regions with machines now: ")
    assert terminal.shows("Region (`any`: wherever it is cheapest) [any]: ")
    terminal.types("us-west\n")
    assert terminal.shows("no region `us-west`; there is: eu-central1-a, us-central1-b, us-central5-a\nRegion (")
    terminal.types("us-central1-b\n")
    assert terminal.shows("  2  ~/.ssh/id_ed25519  is sent there\nSSH key [1]: ")
    terminal.types("2\n")
    assert terminal.shows("Complete `flow` commands in bash? [Y/n]: ")
    before = files()
    assert not user_file().exists() and at.count("POST") == 0
    terminal.types("\n")
    assert terminal.end() == 0, terminal.screen
    assert user_file().read_text() == (
        f"provider: mithril\nmithril:\n  api_key: {at.key}\n  project: {ids[1]}\n  region: us-central1-b\n"
        "  ssh_key: ~/.ssh/id_ed25519\n"
    )
    assert [(one.project, one.public_key) for one in at.spot.ssh_keys.values()] == [(ids[1], public.strip())]
    assert "fkey" not in terminal.screen and at.key not in terminal.screen
    assert (Path.home() / ".bashrc").read_text().startswith("export MINE=1\n[ -r ")
    assert files().keys() > before.keys()


def test_a_bare_enter_keeps_what_is_there(at: Cloud) -> None:
    add_projects(at, "vision")
    by_options("--project", "vision", key=at.key)
    before = files()
    terminal = Terminal("init")
    key_question = f"API key (Enter keeps that of {user_file()}:3): "
    for question in ("Provider [1]: ", key_question, "Project [2]: ", "[any]: ", "SSH key [1]: "):
        assert terminal.shows(question), terminal.screen
        terminal.types("\n")
    assert (terminal.end(), files()) == (0, before)
    assert "is as it was" in terminal.screen


def test_a_bare_enter_leaves_a_shell_alone_that_was_set_up_before(monkeypatch: pytest.MonkeyPatch) -> None:
    assert flow("init", "--provider", "local", "--yes").returncode == 0
    monkeypatch.setenv("SHELL", "/bin/bash")
    before = files()
    terminal = Terminal("init", "--provider", "local")
    assert terminal.shows("Complete `flow` commands in bash? [y/N]: "), terminal.screen
    terminal.types("\n")
    assert (terminal.end(), flow("init", "--yes").returncode, files()) == (0, 0, before)


def test_ctrl_c_leaves_everything_as_it_was(at: Cloud) -> None:
    user_file().parent.mkdir()
    user_file().write_text("provider: local # mine\n")
    before = files()
    terminal = Terminal("init", "--provider", "mithril", "--api-key", at.key)
    assert terminal.shows("Region ")
    terminal.types("\x03")
    assert (terminal.end(), files(), at.count("POST")) == (130, before, 0)


def test_keys_that_are_there_are_offered(at: Cloud) -> None:
    public = ssh_key("id_ed25519")
    by_options("--ssh-key", "~/.ssh/id_ed25519", key=at.key)
    theirs = ssh_key("theirs")
    by_options("--ssh-key", "~/.ssh/theirs", key=at.key)
    name = next(one for one in at.spot.ssh_keys.values() if one.public_key == theirs.strip())
    name.name = "colleague"
    (Path.home() / ".ssh" / "theirs").unlink()
    terminal = Terminal("init", "--region", "any")
    assert terminal.shows("Enter keeps that of")
    terminal.types("\n")
    assert terminal.shows("  2  ~/.ssh/id_ed25519  known there as `flow-")
    assert terminal.shows("  3  colleague          is there; its private part must be known to your ssh")
    assert terminal.shows("SSH key [4]: ")
    terminal.types("colleague\n")
    assert terminal.end() == 0, terminal.screen
    assert Settings.load().get("mithril.ssh_key") == "colleague"
    assert len(at.spot.ssh_keys) == 2 and public


# -- completion


COMPLETES = {
    "bash": 'COMP_WORDS=(flow comp); COMP_CWORD=1; _flow_completion flow; echo "offered: ${COMPREPLY[*]}"',
    "zsh": "whence -w _flow_completion; echo offered: $_comps[flow]",
    "fish": "echo offered: (complete -C 'flow comp')",
}


@pytest.mark.parametrize("shell", list(COMPLETES))
def test_a_shell_completes_once_it_was_installed(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not any((Path(folder) / shell).exists() for folder in os.environ["PATH"].split(":")):
        pytest.skip(f"needs {shell}")
    monkeypatch.setenv("SHELL", f"/bin/{shell}")
    own = Path(__file__).parents[1]
    folder = Path.home() / "bin"
    folder.mkdir()
    (folder / "flow").write_text(f'#!/bin/sh\nPYTHONPATH={own}/src exec {sys.executable} -m flow "$@"\n')
    (folder / "flow").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    assert flow("init", "--provider", "local", "--yes").returncode == 0
    before = files()
    assert flow("init", "--provider", "local", "--yes").returncode == 0
    assert flow("completion", shell, "--install").returncode == 0
    assert files() == before
    done = subprocess.run([shell, "-ic", COMPLETES[shell]], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert "offered: " in done.stdout and "completion" in done.stdout, done
    assert "no matches" not in done.stderr and "not found" not in done.stderr


def test_yes_leaves_the_shell_alone_where_it_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/bash")
    assert flow("init", "--provider", "local", "--yes", "--no-completion").returncode == 0
    assert flow("init", "--provider", "ssh").returncode == 0
    assert not (Path.home() / ".bashrc").exists()
