"""`flow host`: which machines there are, and what they have."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import pytest

from flow.channel import ssh
from flow.client import Flow
from flow.errors import ProviderError, ValidationError
from flow.providers.ssh.fleet import Host, parse_host
from tests.support.commands import flow
from tests.support.fleet import Fleet
from tests.support.processes import wait_until
from tests.support.sshd import sshd


@pytest.mark.parametrize(
    ("text", "name", "target"),
    [
        ("gpu1", "gpu1", "gpu1"),
        ("user@10.0.0.7:2222", "10.0.0.7", "user@10.0.0.7:2222"),
        ("10.0.0.7 as gpu1", "gpu1", "10.0.0.7"),
        (" a.b-c ", "a.b-c", "a.b-c"),
    ],
)
def test_a_host_is_written_as_ssh_has_it(text: str, name: str, target: str) -> None:
    assert parse_host(text) == Host(name, target)


@pytest.mark.parametrize("text", ["", "-oProxyCommand=id", "a b", "a as", "a as b c", "gpu1;id", "a as b/c", "a:b"])
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match=r"is no host|is no name"):
        parse_host(text)


@pytest.mark.parametrize("line", ["what is this", "gpu1 as a/b"])
def test_what_is_no_host_is_told_with_where_it_stands(line: str) -> None:
    file = Flow().home / "hosts"
    file.parent.mkdir(parents=True)
    file.write_text(f"gpu1\n{line}\n")
    listed = flow("host", "list")
    assert listed.returncode == 2 and listed.stderr.splitlines()[0].endswith(f", by {file}")


@pytest.fixture
def ssh_config(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOW_SSH_SSH_CONFIG", str(fleet.config))


@pytest.mark.usefixtures("ssh_config")
def test_hosts_are_added_listed_checked_and_removed(fleet: Fleet, tmp_path: Path) -> None:
    assert "No hosts" in flow("host", "list").stdout
    added = flow("host", "add", "gpu1", "gpu2")
    assert added.stdout.startswith("gpu1  4xa100, ") and "--provider ssh" in added.stderr
    again = flow("host", "add", "gpu1")
    assert again.returncode == 2 and "has a host `gpu1` already" in again.stderr
    assert flow("host", "add", "gpu3", "--as", "big").returncode == 0
    lines = flow("host", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["HOST", "gpu1", "gpu2", "big"]
    fleet.hosts["gpu2"].set_clock(600)
    checked = flow("host", "check", "gpu2")
    assert checked.returncode == 0 and "its clock is 600 s ahead" in checked.stdout
    assert [flow("host", "remove", name).returncode for name in ("big", "gpu2", "gpu2")] == [0, 0, 2]
    assert (Flow().home / "hosts").read_text() == "gpu1\n"


@pytest.mark.usefixtures("ssh_config")
def test_one_machine_has_one_name(fleet: Fleet) -> None:
    assert flow("host", "add", "gpu1", "gpu2").returncode == 0
    address = fleet.hosts["gpu1"].address
    config = fleet.config.read_text()
    fleet.config.write_text(config + config[: config.index("\nHost ", 1) + 1].replace("Host gpu1", f"Host {address}"))
    refused = flow("host", "add", address, "--as", "other")
    fleet.config.write_text(config)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        f"error: `{address}` is the machine that the fleet has as `gpu1`\n\n"
        "hint: to call it otherwise: `flow host remove gpu1`, then add it `--as NAME`\n"
    )
    assert (Flow().home / "hosts").read_text() == "gpu1\ngpu2\n"


@pytest.mark.usefixtures("ssh_config")
def test_a_docker_whose_daemon_does_not_run_is_told_so() -> None:
    assert flow("host", "add", "gpu1").returncode == 0
    assert "docker (its daemon does not run)" in flow("host", "check").stdout


@pytest.mark.usefixtures("ssh_config")
def test_what_lies_on_a_host_is_for_nobody_else(fleet: Fleet) -> None:
    assert flow("host", "add", "gpu1").returncode == 0
    task = Flow("ssh").run("echo mine > secret; pwd", name="mine")
    assert task.wait(timeout=30) == "completed"
    find = "cd /root/.flow-host; find . -maxdepth 2 -type d -perm /077 -printf '%M %p\\n'; stat -c '%A' ."
    assert fleet.hosts["gpu1"].run(find).stdout == "drwx------\n"


@pytest.mark.usefixtures("ssh_config")
def test_a_host_that_does_not_answer_is_not_added_unless_told_to() -> None:
    refused = flow("host", "add", "nowhere")
    assert refused.returncode != 0 and "cannot be reached" in refused.stderr
    assert "No hosts" in flow("host", "list").stdout
    assert flow("host", "add", "nowhere", "--no-check").returncode == 0
    assert flow("host", "check").returncode == 1


def test_a_host_without_python_says_so(empty_fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOW_SSH_SSH_CONFIG", str(empty_fleet.config))
    empty_fleet.boot("bare", without=("python3",))
    refused = flow("host", "add", "bare")
    assert "`python3` does not run on `bare`: " in refused.stderr
    assert "name a Python 3.8 or newer of that machine by `ssh.python`" in refused.stderr


@pytest.mark.usefixtures("ssh_config")
def test_a_host_with_another_key_is_refused(fleet: Fleet) -> None:
    assert flow("host", "add", "gpu1").returncode == 0
    known = next(Path(line.split()[1]) for line in fleet.config.read_text().splitlines() if "KnownHosts" in line)
    address, kind, key = known.read_text().split()[:3]
    known.write_text(f"{address} {kind} {key[:-8]}AAAAAAAA\n")
    held = ssh("gpu1", config=str(fleet.config)).prefix[:-2]
    subprocess.run([*held, "-O", "exit", "gpu1"], capture_output=True, check=True)  # it needs no key any more
    told = flow("host", "check", "gpu1")
    assert told.returncode == 1 and "shows another host key than before" in told.stdout
    advice = re.search(r"forget the old key: `(.*)`", told.stdout)
    assert advice, told.stdout
    subprocess.run(advice[1], shell=True, check=True, capture_output=True)
    assert flow("host", "check", "gpu1").returncode == 0


def test_a_key_that_is_not_at_its_usual_port_is_forgotten_by_its_whole_name(tmp_path: Path) -> None:
    with sshd(tmp_path / "sshd", {}) as server:
        known = tmp_path / "sshd" / "known_hosts"
        known.write_text(known.read_text().strip()[:-8] + "AAAAAAAA\n")
        channel = ssh(server.name, config=str(server.config))
        with pytest.raises(ProviderError, match="shows another host key than before") as refused:
            channel.ask("true")
        command = refused.value.suggestions[0].split("`")[1]
        subprocess.run(command, shell=True, check=True, capture_output=True)
        assert "127.0.0.1]:" in command and channel.ask("echo there").stdout == b"there\n"


@pytest.mark.parametrize(("own", "is_taken"), [("yes", False), ("accept-new", True), ("", True)])
def test_a_key_that_is_new_is_taken_unless_the_users_own_config_is_stricter(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, is_taken: bool
) -> None:
    config = tmp_path / "[own] config"
    lines = [line for line in fleet.config.read_text().splitlines() if "Strict" not in line and "Known" not in line]
    mine = [f"UserKnownHostsFile '{tmp_path}/known'", *([f"StrictHostKeyChecking {own}"] if own else [])]
    config.write_text("\n".join([*mine, *lines]) + "\n")
    monkeypatch.setenv("FLOW_SSH_SSH_CONFIG", str(config))
    with tempfile.TemporaryDirectory(prefix="fl-", dir="/tmp") as sockets:  # no connection is kept from before
        monkeypatch.setenv("XDG_RUNTIME_DIR", sockets)
        told = flow("host", "add", "gpu1")
    assert (told.returncode == 0) is is_taken
    assert is_taken or "Host key verification failed" in told.stderr


@pytest.mark.usefixtures("ssh_config")
def test_a_host_where_tasks_run_is_not_removed(fleet: Fleet) -> None:
    assert flow("host", "add", "gpu1").returncode == 0
    task = Flow("ssh").run("sleep 1000", upload_code=False)
    assert wait_until(lambda: task.refresh().status == "running", seconds=60)
    refused = flow("host", "remove", "gpu1")
    assert refused.returncode == 2 and "`gpu1` has 1 unfinished task" in refused.stderr
    task.cancel()
    assert task.wait(timeout=30) == "cancelled"
    assert flow("host", "remove", "gpu1").returncode == 0
