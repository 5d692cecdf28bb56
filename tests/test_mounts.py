"""What a task sees at its paths where its user has no rights, and may mount in a user namespace only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from flow.access import Place, entering
from flow.channel import Channel
from flow.machines import Node
from flow.node import runner
from tests.support.components import require
from tests.support.processes import wait_until

WHY = "a user without rights mounts volumes"
AS_NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--no-new-privs"]
PYTHON = "/usr/bin/python3"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder of that user, below others that he may pass."""
    require("setpriv", WHY)
    require(PYTHON, WHY, found=Path(PYTHON).exists() and os.getuid() == 0)
    allowed = subprocess.run([*AS_NOBODY, "unshare", "-rm", "true"], capture_output=True).returncode == 0
    require("user namespaces", WHY, found=allowed)
    shutil.copytree(Path(runner.__file__).parent, tmp_path / "node", ignore=shutil.ignore_patterns("__pycache__"))
    closed = [folder for folder in (tmp_path, *tmp_path.parents) if not folder.stat().st_mode & 0o001]
    for folder in closed:
        folder.chmod(folder.stat().st_mode | 0o011)
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 65534, 65534)
    yield tmp_path / "theirs"
    for folder in closed:
        folder.chmod(folder.stat().st_mode & ~0o011)


Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(place: Path) -> Iterator[Start]:
    """Starts a task of that user, whose volume is `place`/volume; ends it at the end."""
    started: list[subprocess.Popen[bytes]] = []
    for name in ("volume", "task"):
        (place / name).mkdir()
        os.chown(place / name, 65534, 65534)

    def run(script: str, target: str, *, before: Sequence[str] = (), **more: Any) -> subprocess.Popen[bytes]:
        mounts = [{"kind": "folder", "source": str(place / "volume"), "target": target}]
        task = {"task_id": "task-x", "argv": ["sh", "-c", script], "env": {"PATH": "/usr/bin:/bin"}, "mounts": mounts}
        (place / "task" / "task.json").write_text(json.dumps({**task, **more}))
        words = node(place, "runner.py", "run", str(place / "task"))
        started.append(subprocess.Popen([*before, *words], env={"PATH": "/usr/bin:/bin"}, cwd="/"))
        return started[-1]

    yield run
    for one in started:
        one.terminate()
        one.wait(30)


def node(place: Path, *words: str) -> list[str]:
    """The command by which that user runs a file of `node/`."""
    return [*AS_NOBODY, PYTHON, str(place.parent / "node" / words[0]), *words[1:]]


def status(place: Path) -> dict[str, Any]:
    path = place / "task" / "status.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"phase": ""}
    return found


def output(place: Path) -> str:
    return (place / "task" / "stdout.log").read_text()


def test_a_path_is_there_for_the_task_though_its_user_could_not_make_it(start: Start, place: Path) -> None:
    script = "echo hello > /flow-data/file; id -u; ls -d /flow-data /etc /workspace; touch /oops 2>/dev/null || echo no"
    assert start(script, "/flow-data").wait(30) == 0
    assert status(place)["code"] == 0, status(place)
    assert output(place) == "65534\n/etc\n/flow-data\n/workspace\nno\n"
    assert (place / "volume" / "file").read_text() == "hello\n"
    assert not Path("/flow-data").exists()


def test_what_lies_beside_the_path_is_as_it_was(start: Start, place: Path) -> None:
    outside = [one.name for one in Path("/opt").iterdir()]
    assert start("ls -A /opt; readlink /bin; cat /proc/self/mountinfo | wc -l", "/opt/flow-data").wait(30) == 0
    assert status(place)["code"] == 0, status(place)
    listed = output(place).split()
    assert listed[: len(outside) + 1] == sorted([*outside, "flow-data"])


def test_a_place_of_the_users_own_is_made_and_taken_away_again(start: Start, place: Path) -> None:
    target = place / "mine" / "data"
    assert start(f"touch {target}/file", str(target)).wait(30) == 0
    assert status(place)["code"] == 0, status(place)
    assert (place / "volume" / "file").exists()
    assert not (place / "mine").exists()


def test_one_enters_the_task_and_finds_what_it_sees(start: Start, place: Path) -> None:
    start("sleep 1000", "/flow-data")
    (place / "volume" / "file").write_text("seen")
    assert wait_until(lambda: status(place)["phase"] == "running", seconds=30), status(place)
    enter = node(place, "tail.py", "enter", str(place / "task"), "--", "cat", "/flow-data/file")
    assert subprocess.run(enter, capture_output=True, text=True).stdout == "seen"
    elsewhere = Place(Node(0, "box", "box", folder=str(place / "task")), Channel(tuple(AS_NOBODY), python=PYTHON))
    from_afar = entering(elsewhere, ["cat", "/flow-data/file"])  # the program goes along
    assert subprocess.run(from_afar, capture_output=True, text=True).stdout == "seen"


def test_a_running_task_is_given_one_more_folder(start: Start, place: Path) -> None:
    (place / "late").mkdir()
    os.chown(place / "late", 65534, 65534)
    one = start("until test -e /mnt/flow-late/go; do sleep 0.02; done; touch /mnt/flow-late/seen", "/flow-data")
    assert wait_until(lambda: status(place)["phase"] == "running", seconds=30), status(place)
    add = node(place, "mounts.py", "add", str(place / "task"), str(place / "late"), "flow-late")
    told = subprocess.run(add, capture_output=True, text=True)
    assert (told.returncode, told.stderr) == (0, "")
    (place / "late" / "go").touch()
    assert one.wait(30) == 0
    assert (place / "late" / "seen").exists()
    assert not Path("/mnt/flow-late").exists()


def test_one_without_mounts_of_its_own_is_given_none_and_told_why(start: Start, place: Path) -> None:
    start("sleep 1000", "", mounts=[])
    assert wait_until(lambda: status(place)["phase"] == "running", seconds=30), status(place)
    add = node(place, "mounts.py", "add", str(place / "task"), str(place / "volume"), "v")
    told = subprocess.run(add, capture_output=True, text=True)
    assert told.returncode == 1
    assert "it has no mounts of its own" in told.stderr and "private_mounts" in told.stderr


def test_where_no_namespace_is_allowed_the_reason_says_what_to_do(start: Start, place: Path) -> None:
    (place / "root").mkdir()
    # in a changed root nobody may make user namespaces
    script = f'mount --rbind / {place}/root && exec /usr/sbin/chroot {place}/root "$@"'
    assert start("echo ran", "/flow-data", before=["unshare", "-m", "sh", "-c", script, "sh"]).wait(30) == 0
    assert (status(place)["cause"], status(place)["code"]) == ("start", 126)
    assert "allows no mounts of its own to a task" in status(place)["reason"]
    assert "give it an `image`" in status(place)["reason"]


@pytest.mark.parametrize("target", ["{place}", "{place}/task", "{place.parent}"])
def test_nothing_hides_the_folder_of_the_task_itself(start: Start, place: Path, target: str) -> None:
    target = target.format(place=place)
    assert start("echo ran", target).wait(30) == 0
    assert status(place)["reason"] == f"a mount at `{target}` would hide the task's own folder"


def test_a_volume_that_is_gone_ends_the_task_before_its_command(start: Start, place: Path) -> None:
    mounts = [{"kind": "folder", "source": str(place / "nothing"), "target": "/flow-data"}]
    assert start("echo ran", "", mounts=mounts).wait(30) == 0
    assert status(place)["reason"] == f"the folder `{place}/nothing` is not there"
    assert not (place / "task" / "stdout.log").exists()


def test_what_is_read_only_in_a_volume_goes_with_it(place: Path) -> None:
    program = """if True:
        from pathlib import Path
        from flow.client import Flow
        client = Flow()
        folder = Path(client.create_volume(1, "v").folder, "read-only")
        folder.mkdir()
        (folder / "file").touch()
        folder.chmod(0o500)
        client.delete_volume("v")
    """
    theirs = {**os.environ, "HOME": str(place), "FLOW_HOME": str(place / "flow")}
    seen = subprocess.run([*AS_NOBODY, sys.executable, "-c", "import flow.client"], cwd=place, env=theirs)
    require("a Python that any user can start", WHY, found=seen.returncode == 0)
    done = subprocess.run([*AS_NOBODY, sys.executable, "-c", program], cwd=place, env=theirs, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert wait_until(lambda: [one.name for one in (place / "flow" / "volumes").iterdir()] == [".lock"])
