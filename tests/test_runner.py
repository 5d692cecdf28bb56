"""The runner, run for real: processes, signals, files. What it promises is in docs/ARCHITECTURE.md."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flow.aws import s3_access
from flow.node import runner
from tests.support.components import require
from tests.support.processes import free_port, is_alive, leaders_of, wait_until
from tests.support.pythons import old_pythons

RUNNER = runner.__file__


class Run:
    """A runner at work in its folder."""

    def __init__(self, folder: Path, task: dict[str, Any], python: str = sys.executable) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        whole = {"v": 1, "task_id": "task-1", "name": "t", "attempt": 1, "rank": 0, "nodes": 1, "env": {}, **task}
        (folder / "task.json").write_text(json.dumps(whole))
        self.process = subprocess.Popen([python, RUNNER, "run", str(folder)], stdin=subprocess.DEVNULL)

    def wait(self, seconds: float = 60) -> dict[str, Any]:
        """The last status, once the runner is gone."""
        assert self.process.wait(seconds) == 0
        return self.status()

    def status(self) -> dict[str, Any]:
        try:
            status: dict[str, Any] = json.loads((self.folder / "status.json").read_text())
        except (FileNotFoundError, ValueError):
            return {"phase": ""}
        return status

    def until(self, text: str) -> None:
        """Wait until the command printed `text`."""
        assert wait_until(lambda: text in self.out()), (self.status(), self.out(), self.err())

    def out(self) -> str:
        return self._read("stdout.log")

    def err(self) -> str:
        return self._read("stderr.log")

    def _read(self, name: str) -> str:
        path = self.folder / name
        return path.read_bytes().decode(errors="replace") if path.exists() else ""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Any]:
    started: list[Run] = []

    def start(*argv: str, at: str = "task", **task: Any) -> Run:
        started.append(Run(tmp_path / at, {"argv": list(argv), **task}))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        for pid in leaders_of(one.folder):  # its runner was killed
            end_group(pid)


def end_group(pgid: int) -> None:
    try:
        os.killpg(pgid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def ended(code: int, number: int | None = None, cause: str = "exit", reason: str = "") -> dict[str, Any]:
    return {"phase": "ended", "code": code, "signal": number, "cause": cause, "reason": reason}


def end_of(status: dict[str, Any]) -> dict[str, Any]:
    return {name: status.get(name) for name in ("phase", "code", "signal", "cause", "reason")}


# -- how a command ends


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("exit 0", ended(0)),
        ("exit 3", ended(3, reason="exit 3")),
        ("exit 255", ended(255, reason="exit 255")),
        ("kill -KILL $$", ended(137, 9, reason="killed by SIGKILL")),
        ("kill -USR1 $$", ended(138, 10, reason="killed by SIGUSR1")),
    ],
)
def test_the_end_is_told_as_a_shell_would(run: Any, script: str, expected: dict[str, Any]) -> None:
    status = run("sh", "-c", script).wait()
    assert end_of(status) == expected
    assert status["started"] <= status["ended"]
    assert status["needs"] == []
    assert 0 <= status["ran_seconds"] < 20


@pytest.mark.parametrize(
    ("argv", "code", "reason"),
    [
        (["no-such-command"], 127, "`no-such-command`: command not found"),
        (["./nowhere"], 127, "`./nowhere`: No such file or directory"),
        (["/etc"], 126, "`/etc`: Permission denied"),
        (["/etc/passwd"], 126, "`/etc/passwd`: Permission denied"),
    ],
)
def test_a_command_that_cannot_be_executed_says_why(run: Any, argv: list[str], code: int, reason: str) -> None:
    assert end_of(run(*argv).wait()) == ended(code, cause="start", reason=reason)


def test_words_that_no_program_can_take_end_the_task_before_it_runs(run: Any) -> None:
    status = run("echo", "a\0b").wait()
    assert (status["code"], status["cause"]) == (126, "start")


def test_a_missing_working_directory_is_named(run: Any, tmp_path: Path) -> None:
    status = run("true", cwd="sub/folder").wait()
    where = tmp_path / "task/workspace/sub/folder"
    assert end_of(status) == ended(126, cause="start", reason=f"`{where}`: no such folder")


def test_words_arrive_as_they_are(run: Any) -> None:
    words = ["a b", "$HOME", "*", "é\n\"'", "", "-x"]
    one = run(sys.executable, "-c", "import sys,json; print(json.dumps(sys.argv[1:]))", *words)
    one.wait()
    assert json.loads(one.out()) == words


# -- what it finds


def test_environment_arrives_unchanged_and_ours_is_added(run: Any, tmp_path: Path) -> None:
    mine = {"QUOTES": "'\"`$x\\", "LINES": "a\nb\n", "ACCENT": "é ☃", "EMPTY": "", "PATH": os.environ["PATH"]}
    script = "import os,json; print(json.dumps(dict(os.environ)))"
    one = run(sys.executable, "-c", script, env=mine, clean_env=True, gpu_ids=[0, 3], attempt=2, array_index=7)
    one.wait()
    seen = json.loads(one.out())
    seen.pop("LC_CTYPE", None)  # Python's own
    folder = tmp_path / "task"
    assert seen == mine | {
        "FLOW_TASK_ID": "task-1",
        "FLOW_TASK_NAME": "t",
        "FLOW_NODE_RANK": "0",
        "FLOW_NODE_COUNT": "1",
        "FLOW_NUM_NODES": "1",
        "FLOW_MAIN_IP": "127.0.0.1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
        "FLOW_OUTPUT": str(folder / "output"),
        "FLOW_WORKSPACE": str(folder / "workspace"),
        "FLOW_ATTEMPT": "2",
        "FLOW_RESUME": "1",
        "CUDA_VISIBLE_DEVICES": "0,3",
        "FLOW_ARRAY_INDEX": "7",
        "SLURM_ARRAY_TASK_ID": "7",
    }
    assert (folder / "env.json").stat().st_mode & 0o777 == 0o600


def test_without_clean_env_the_machines_environment_stays_and_the_port_can_be_chosen(run: Any) -> None:
    one = run("sh", "-c", 'echo "$HOME $MASTER_PORT ${CUDA_VISIBLE_DEVICES-unset}"', env={"MASTER_PORT": "1234"})
    one.wait()
    assert one.out() == f"{os.environ['HOME']} 1234 unset\n"


def test_no_gpus_hides_them_all(run: Any) -> None:
    one = run("sh", "-c", 'echo "[${CUDA_VISIBLE_DEVICES-unset}]"', gpu_ids=[])
    one.wait()
    assert one.out() == "[]\n"


def test_the_command_has_default_signals_no_descriptors_and_no_input(run: Any) -> None:
    script = """
import os, signal
fds = sorted(int(name) for name in os.listdir('/proc/self/fd'))
print([os.readlink(f'/proc/self/fd/{fd}') for fd in fds if fd > 2 and os.path.exists(f'/proc/self/fd/{fd}')])
print(signal.pthread_sigmask(signal.SIG_BLOCK, []), os.read(0, 1), os.getsid(0) == os.getpid())
print(open('/proc/self/status').read().split('SigIgn:')[1].split()[0])
"""
    one = run("env", "-", sys.executable, "-I", "-c", script)
    one.wait()
    fds, others, ignored = one.out().splitlines()
    assert "command.lock" in fds
    assert fds.count("/task/") == 1
    assert others == "set() b'' True"
    # Python itself ignores SIGPIPE and SIGXFSZ; 32 and 33 are glibc's own, which its posix_spawn leaves ignored
    assert int(ignored, 16) & ~(1 << 12 | 1 << 24 | 1 << 31 | 1 << 32) == 0


# -- code


def bundle(at: Path, files: dict[str, tuple[int, bytes]], **more: Any) -> dict[str, str]:
    rows = []
    for name, (mode, data) in files.items():
        digest = hashlib.sha256(data).hexdigest()
        blob = at / "blobs" / digest[:2] / digest
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        rows.append([name, mode, digest, len(data)])
    (at / "manifest.json").write_text(json.dumps({"v": 1, "files": rows, "links": [], "dirs": [], **more}))
    return {"manifest": str(at / "manifest.json"), "blobs": str(at / "blobs")}


def test_code_is_unpacked_as_it_was(run: Any, tmp_path: Path) -> None:
    big = os.urandom(3_000_000)
    files = {"a.txt": (0o644, b"hello"), "bin/go": (0o755, b"#!/bin/sh\ncat a.txt\n"), "big": (0o640, big)}
    code = bundle(tmp_path / "b", files, links=[["deep/link", "../a.txt"], ["out", "/nowhere"]], dirs=["empty/dir"])
    one = run("bin/go", code=code)
    assert end_of(one.wait()) == ended(0)
    assert one.out() == "hello"
    workspace = tmp_path / "task/workspace"
    assert (workspace / "big").read_bytes() == big
    assert (workspace / "big").stat().st_mode & 0o777 == 0o640
    assert str((workspace / "deep/link").readlink()) == "../a.txt"
    assert str((workspace / "out").readlink()) == "/nowhere"
    assert (workspace / "empty/dir").is_dir()


def test_the_workspace_is_an_own_copy(run: Any, tmp_path: Path) -> None:
    code = bundle(tmp_path / "b", {"a": (0o644, b"x" * 100_000)})
    run("sh", "-c", "echo changed > a", code=code).wait()
    digest = json.loads(Path(code["manifest"]).read_text())["files"][0][2]
    assert hashlib.sha256((tmp_path / "b/blobs" / digest[:2] / digest).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", ""])
def test_code_that_leaves_the_workspace_is_refused(run: Any, tmp_path: Path, name: str) -> None:
    status = run("true", code=bundle(tmp_path / "b", {name: (0o644, b"x")})).wait()
    assert end_of(status) == ended(126, None, "start", f"cannot unpack the code: `{name}` leaves the workspace")


def test_nothing_is_written_through_a_link(run: Any, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    code = bundle(tmp_path / "b", {"x/evil": (0o644, b"x")}, links=[["x", str(tmp_path / "outside")]])
    assert run("true", code=code).wait()["cause"] == "start"
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_damaged_blob_is_not_run(run: Any, tmp_path: Path) -> None:
    code = bundle(tmp_path / "b", {"a": (0o644, b"whole")})
    blob = next((tmp_path / "b/blobs").glob("*/*"))
    blob.write_bytes(b"wh")
    status = run("true", code=code).wait()
    reason = f"cannot unpack the code: `{blob}` is shorter than the 5 bytes it should have"
    assert end_of(status) == ended(126, None, "start", reason)


def test_a_retry_finds_the_output_of_the_attempt_before(run: Any, tmp_path: Path) -> None:
    run("sh", "-c", "mkdir $FLOW_OUTPUT/d; echo 1 > $FLOW_OUTPUT/d/checkpoint", at="1").wait()
    before = str(tmp_path / "1/output")
    one = run("sh", "-c", "cat $FLOW_OUTPUT/d/checkpoint; echo 2 > $FLOW_OUTPUT/d/checkpoint", previous_output=before)
    one.wait()
    assert one.out() == "1\n"
    assert (tmp_path / "1/output/d/checkpoint").read_text() == "1\n"


# -- waiting


def test_it_waits_for_what_it_needs_and_takes_secrets_from_the_inbox(run: Any, tmp_path: Path) -> None:
    needs = ["inbox/env.json", str(tmp_path / "manifest.json")]
    code = {"manifest": str(tmp_path / "manifest.json"), "blobs": str(tmp_path / "blobs")}
    one = run("sh", "-c", "cat f; echo $API_TOKEN", needs=needs, code=code, env={"API_TOKEN": "no"})
    assert wait_until(lambda: one.status()["phase"] == "waiting")
    assert one.status()["needs"] == needs
    bundle(tmp_path, {"f": (0o644, b"code ")})
    assert wait_until(lambda: one.status()["needs"] == ["inbox/env.json"])
    (tmp_path / "task/inbox").mkdir()
    (tmp_path / "task/inbox/.env").write_text('{"API_TOKEN": "hush"}')
    (tmp_path / "task/inbox/.env").rename(tmp_path / "task/inbox/env.json")
    status = one.wait()
    assert end_of(status) == ended(0)
    assert status["needs"] == []
    assert one.out() == "code hush\n"


def test_code_that_never_arrives_ends_the_task(run: Any) -> None:
    status = run("true", needs=["inbox/x"], delivery_timeout_seconds=0.1).wait()
    assert end_of(status) == ended(126, cause="start", reason="code never arrived")
    assert status["started"] is None


def test_a_cancel_while_waiting_runs_nothing(run: Any) -> None:
    one = run("touch", "ran", needs=["inbox/x"])
    assert wait_until(lambda: one.status()["phase"] == "waiting")
    one.process.terminate()
    assert end_of(one.wait()) == ended(143, None, "cancel", "cancelled")
    assert not (one.folder / "workspace").exists()


def test_a_cancel_while_its_data_is_out_of_reach_is_a_cancel(run: Any, tmp_path: Path) -> None:
    require("s3fs", "S3 is mounted")
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "r"}
    mount = {"kind": "s3", "source": "bucket", "target": str(tmp_path / "seen"), "cache": str(tmp_path / "cache")}
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        access = s3_access({}, {**keys, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.getsockname()[1]}"})
        (tmp_path / "task" / "inbox").mkdir(parents=True)
        (tmp_path / "task" / "inbox" / "s3.json").write_text(json.dumps(access))
        one = run("touch", "ran", mounts=[mount])
        asked = server.accept()[0]
        one.process.terminate()
    asked.close()
    assert end_of(one.wait()) == ended(143, None, "cancel", "cancelled")


# -- once


@pytest.mark.parametrize("phase", ["running", "ended", "damaged"])
def test_what_ever_ran_is_not_run_again(run: Any, tmp_path: Path, phase: str) -> None:
    (tmp_path / "task").mkdir()
    text = json.dumps({"phase": phase}) if phase != "damaged" else "{"
    (tmp_path / "task/status.json").write_text(text)
    one = run("touch", str(tmp_path / "ran"))
    one.process.wait()
    assert not (tmp_path / "ran").exists()
    assert (tmp_path / "task/status.json").read_text() == text


def test_a_runner_that_only_waited_can_be_replaced(run: Any, tmp_path: Path) -> None:
    code = bundle(tmp_path / "b", {"f": (0o644, b"code")}, links=[["l", "f"]])
    first = run("true", code=code, needs=["inbox/x"])
    assert wait_until(lambda: first.status()["phase"] == "waiting")
    first.process.kill()
    first.process.wait()
    second = run("cat", "l", code=code)
    assert end_of(second.wait()) == ended(0)
    assert second.out() == "code"


def test_two_runners_never_share_a_folder(run: Any) -> None:
    first = run("sh", "-c", "echo up; sleep 30")
    first.until("up")
    second = run("sh", "-c", "echo second")
    second.process.wait(60)
    assert first.process.poll() is None
    first.process.terminate()
    first.wait()
    assert first.out() == "up\n"


def test_running_is_on_disk_before_the_command_is_executed(run: Any) -> None:
    one = run("cat", "../status.json")
    one.wait()
    seen = json.loads(one.out())
    assert seen["phase"] == "running"
    assert seen["runner_pid"] == one.process.pid


def test_a_forked_runner_works_with_the_lock_it_was_given(tmp_path: Path) -> None:
    folder = tmp_path / "task"
    folder.mkdir()
    (folder / "task.json").write_text(json.dumps({"task_id": "t", "argv": ["sh", "-c", "echo $0 hi; kill -TERM $$"]}))
    lock = os.open(folder / "runner.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    pid = os.fork()
    if pid == 0:
        runner.run(str(folder), lock)
        os._exit(0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    os.close(lock)
    with (folder / "runner.lock").open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert os.waitpid(pid, 0)[1] == 0
    assert end_of(json.loads((folder / "status.json").read_text())) == ended(143, 15, reason="killed by SIGTERM")
    with (folder / "runner.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# -- stopping


def test_cancel_ends_the_whole_group(run: Any) -> None:
    one = run("sh", "-c", "sleep 60 & echo $!; sh -c 'echo up; sleep 60'; echo never")
    one.until("up")
    child = int(one.out().split()[0])
    one.process.terminate()
    assert end_of(one.wait()) == ended(143, 15, "cancel", "cancelled")
    assert not is_alive(child)


def test_a_command_has_its_grace_time_to_end_well(run: Any) -> None:
    one = run("sh", "-c", "trap 'echo saved; exit 4' TERM; echo up; while :; do sleep 0.01; done", grace_seconds=20)
    one.until("up")
    one.process.terminate()
    assert end_of(one.wait()) == ended(4, None, "cancel", "cancelled")
    assert one.out() == "up\nsaved\n"


SAVES_SLOWLY = """
import os, signal, time
def save(*_):
    time.sleep(1.5)
    print("saved", flush=True)
    raise SystemExit
signal.signal(signal.SIGTERM, save)
os.write(1, b"up\\n")  # a signal that comes within `print` finds its buffer in use
while True:
    signal.pause()
"""


def test_a_program_below_a_shell_has_the_grace_time_too(run: Any, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SAVES_SLOWLY)
    one = run("sh", "-c", f"{sys.executable} {tmp_path}/train.py; echo never")
    one.until("up\n")  # unbuffered, Python writes the line end by itself
    one.process.terminate()
    assert end_of(one.wait()) == ended(143, 15, "cancel", "cancelled")
    assert one.out() == "up\nsaved\n"


STUBBORN = "trap '' TERM; echo up; while :; do sleep 0.01; done"


def test_who_ignores_the_stop_is_killed_after_the_grace_time(run: Any) -> None:
    one = run("sh", "-c", STUBBORN, grace_seconds=0.2)
    one.until("up")
    one.process.terminate()
    assert end_of(one.wait()) == ended(137, 9, "cancel", "cancelled")


def test_a_second_cancel_kills_at_once(run: Any) -> None:
    one = run("sh", "-c", STUBBORN, grace_seconds=1000)
    one.until("up")
    one.process.terminate()
    (pid,) = leaders_of(one.folder)

    def is_killed() -> bool:
        one.process.terminate()  # again and again: two that arrive together count as one
        return not is_alive(pid)

    assert wait_until(is_killed)
    assert end_of(one.wait()) == ended(137, 9, "cancel", "cancelled")


def test_the_time_limit_is_kept(run: Any) -> None:
    status = run("sleep", "60", limit_seconds=0.36).wait()
    assert end_of(status) == ended(143, 15, "timeout", "time limit 0.0001 h reached")
    assert 0.36 <= status["ran_seconds"] < 20


def test_a_time_limit_may_be_years(run: Any) -> None:
    assert end_of(run("true", limit_seconds=9e8).wait()) == ended(0, None, "exit", "")


def test_a_warning_signal_comes_before_the_limit(run: Any) -> None:
    script = "trap 'echo warned' USR1; trap 'echo asked; exit 7' TERM; echo up; while :; do sleep 0.01; done"
    one = run("sh", "-c", script, limit_seconds=5, signal={"number": 10, "before_seconds": 2})
    assert end_of(one.wait())["code"] == 7
    assert one.out() == "up\nwarned\nasked\n"


def test_what_the_command_left_behind_is_ended(run: Any) -> None:
    script = "sleep 60 & echo $!; setsid sleep 61 & echo $!; setsid sh -c 'sleep 62 & sleep 63' & echo $!; exit 5"
    one = run("sh", "-c", script)
    assert end_of(one.wait()) == ended(5, reason="exit 5")
    assert [pid for pid in map(int, one.out().split()) if is_alive(pid)] == []


def test_what_ignores_sigterm_is_left_behind_by_nobody(run: Any) -> None:
    one = run("sh", "-c", "setsid sh -c \"trap '' TERM; echo up; while :; do sleep 0.01; done\" & echo $!; sleep 0.3")
    assert end_of(one.wait()) == ended(0)
    assert [pid for pid in one.out().split() if pid != "up" and is_alive(int(pid))] == []


def test_the_lock_of_the_command_is_free_when_the_command_of_a_killed_runner_is_gone(run: Any) -> None:
    one = run("sh", "-c", "echo $$; exec sleep 60")
    one.until("\n")
    with (one.folder / "command.lock").open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    one.process.kill()
    one.process.wait()
    with (one.folder / "runner.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert is_alive(int(one.out()))
    os.kill(int(one.out()), signal.SIGKILL)
    with (one.folder / "command.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
    assert one.status()["phase"] == "running"


def test_a_process_of_a_killed_runner_still_holds_the_lock_of_the_command(run: Any) -> None:
    one = run("sh", "-c", "setsid sleep 60 & echo $!; wait")
    one.until("\n")
    pid = int(one.out())
    one.process.kill()
    one.process.wait()
    with (one.folder / "command.lock").open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not is_alive(pid))


# -- output

READ = {name: f"until [ -s $FLOW_OUTPUT/../{name}.log ]; do sleep 0.01; done" for name in ("stdout", "stderr")}


def test_both_streams_are_kept_apart_and_in_order(run: Any) -> None:
    one = run("sh", "-c", f"echo 1; {READ['stdout']}; echo 2 >&2; {READ['stderr']}; printf 3")
    one.wait()
    assert (one.out(), one.err()) == ("1\n3", "2\n")
    index = (one.folder / "log.idx").read_bytes()
    records = [struct.unpack_from("<QQQ", index, at) for at in range(0, len(index), 24)]
    assert [ends for _, *ends in records] == [[2, 0], [2, 2], [3, 2]]
    assert [when for when, *_ in records] == sorted(when for when, *_ in records)


def test_endless_output_without_a_newline_is_kept_whole(run: Any) -> None:
    size = 50 << 20
    one = run("sh", "-c", f"head -c {size} /dev/zero")
    assert end_of(one.wait(60)) == ended(0)
    assert (one.folder / "stdout.log").stat().st_size == size


def test_a_second_copy_of_both_streams_can_go_to_one_file(run: Any, tmp_path: Path) -> None:
    copy = str(tmp_path / "slurm.out")
    script = f"echo 1; {READ['stdout']}; echo 2 >&2; {READ['stderr']}; echo 3"
    one = run("sh", "-c", script, stdout_copy=copy, stderr_copy=copy)
    one.wait()
    assert Path(copy).read_text() == "1\n2\n3\n"
    assert one.out() == "1\n3\n"


def test_a_copy_that_cannot_be_written_ends_the_task_before_it_runs(run: Any) -> None:
    status = run("true", stdout_copy="/nowhere/x").wait()
    reason = "cannot write `/nowhere/x`: no such file or directory"
    assert end_of(status) == ended(126, None, "start", reason)


def test_a_full_disk_cuts_the_log_and_not_the_task(run: Any, small_disk: Path) -> None:
    one = run("sh", "-c", "head -c 3000000 /dev/zero; exit 6", at="disk/task")
    assert end_of(one.wait()) == ended(6, reason="exit 6; log cut: no space left on device")
    index = (one.folder / "log.idx").read_bytes()
    assert len(index) % 24 == 0
    assert 500_000 < len(one.out()) < 1_100_000


def test_a_task_that_fills_the_disk_itself_is_still_reported(run: Any, small_disk: Path) -> None:
    one = run("sh", "-c", "cat /dev/zero > big; echo gone; exit 0", at="disk/task")
    status = one.wait()
    assert (status["phase"], status["code"]) == ("ended", 0)


# -- several ranks


@pytest.fixture
def ranks(run: Any) -> Any:
    port = free_port()

    def start(*scripts: str, **task: Any) -> list[Run]:
        peers = [f"127.0.0.{number + 1}" for number in range(len(scripts))]
        shared = {"nodes": len(scripts), "peers": peers, "control_port": port, "token": "tok", **task}
        return [run("sh", "-c", text, at=f"r{number}", rank=number, **shared) for number, text in enumerate(scripts)]

    return start


def test_ranks_know_their_places_and_all_may_succeed(ranks: Any) -> None:
    all_three = ranks(*["echo $FLOW_NODE_RANK $FLOW_NODE_COUNT $FLOW_NUM_NODES $MASTER_ADDR $FLOW_MAIN_IP"] * 3)
    assert [end_of(one.wait()) for one in all_three] == [ended(0)] * 3
    assert [one.out() for one in all_three] == [f"{rank} 3 3 127.0.0.1 127.0.0.1\n" for rank in range(3)]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_the_first_rank_that_fails_stops_the_others(ranks: Any, failing: int) -> None:
    scripts = ["echo up; sleep 60"] * 3
    scripts[failing] = "sleep 0.3; exit 3"
    all_three = ranks(*scripts)
    ends = [end_of(one.wait()) for one in all_three]
    stopped = ended(143, 15, "peer", f"stopped: node {failing}: exit 3")
    assert ends == [ended(3, reason="exit 3") if rank == failing else stopped for rank in range(3)]


def test_rank_0_waits_for_the_others_to_end(ranks: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    first, second = ranks("true", f"read x < {tmp_path}/go; exit 9")
    assert wait_until(lambda: first.status()["phase"] == "ended")
    assert wait_until(lambda: second.status()["phase"] == "running")
    assert first.process.poll() is None
    (tmp_path / "go").write_text("\n")
    assert end_of(second.wait()) == ended(9, reason="exit 9")
    assert end_of(first.wait()) == ended(0, None, "peer", "stopped: node 1: exit 9")  # so that both run again


@pytest.mark.parametrize("failing", [0, 2])
def test_a_rank_that_has_ended_waits_to_hear_how_the_others_did(ranks: Any, tmp_path: Path, failing: int) -> None:
    os.mkfifo(tmp_path / "go")
    scripts = ["true"] * 3
    scripts[failing] = f"read x < {tmp_path}/go; exit 9"
    all_three = ranks(*scripts)
    well = [one for rank, one in enumerate(all_three) if rank != failing]
    assert wait_until(lambda: [one.status()["phase"] for one in well] == ["ended"] * 2)
    assert [one.process.poll() for one in all_three] == [None] * 3
    (tmp_path / "go").write_text("\n")
    assert end_of(all_three[failing].wait()) == ended(9, reason="exit 9")
    stopped = ended(0, None, "peer", f"stopped: node {failing}: exit 9")
    assert [end_of(one.wait()) for one in well] == [stopped] * 2


def test_a_rank_that_never_got_its_code_stops_the_others(ranks: Any, tmp_path: Path) -> None:
    (tmp_path / "r0/inbox").mkdir(parents=True)
    (tmp_path / "r0/inbox/x").touch()
    first, second = ranks("sleep 60", "true", needs=["inbox/x"], delivery_timeout_seconds=0.3)
    assert end_of(second.wait()) == ended(126, None, "start", "code never arrived")
    assert end_of(first.wait()) == ended(143, 15, "peer", "stopped: node 1: code never arrived")


def test_a_rank_whose_runner_was_killed_is_lost_and_stops_the_others(ranks: Any) -> None:
    first, second = ranks("sleep 60", "echo up; sleep 60", delivery_timeout_seconds=20)  # killed before it was heard
    assert wait_until(lambda: first.status()["phase"] == "running")
    second.until("up")
    second.process.kill()
    assert end_of(first.wait(30)) == ended(143, 15, "peer", "stopped: node 1: lost")


def test_a_wrong_token_is_heard_by_nobody(ranks: Any, run: Any) -> None:
    first, second = ranks("sleep 60", "sleep 60")
    assert wait_until(lambda: second.status()["phase"] == "running" and first.status()["phase"] == "running")
    task = json.loads((first.folder / "task.json").read_text())
    with socket.create_connection(("127.0.0.1", task["control_port"])) as wire:
        wire.sendall(b'{"token": "guess", "rank": 1}\n{"ended": 1}\n')
        assert wire.recv(10) == b""
    with socket.create_connection(("127.0.0.1", task["control_port"])) as wire:
        wire.sendall(b"x" * 10_000)
        try:
            assert wire.recv(10) == b""
        except ConnectionResetError:
            pass
    assert first.status()["phase"] == second.status()["phase"] == "running"
    first.process.terminate()
    assert end_of(first.wait()) == ended(143, 15, "cancel", "cancelled")
    assert end_of(second.wait()) == ended(143, 15, "cancel", "cancelled")


def test_a_rank_ends_soon_after_rank_0_was_killed(run: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        shared = {"nodes": 2, "peers": ["127.0.0.1", "127.0.0.2"], "control_port": port, "token": "tok"}
        second = run("sh", "-c", "sleep 60", rank=1, **shared)
        wire = server.accept()[0]
        with wire, wire.makefile("r") as said:
            assert json.loads(said.readline()) == {"token": "tok", "rank": 1}
            assert wait_until(lambda: second.status()["phase"] == "running")
    assert end_of(second.wait(30)) == ended(143, 15, "peer", "node 0 is gone")


def test_a_taken_port_ends_the_task_with_its_reason(ranks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        (first,) = ranks("true", nodes=2, peers=["127.0.0.1", "127.0.0.2"], control_port=port)
        status = first.wait()
    assert (status["cause"], status["reason"]) == ("start", "address already in use")


# -- other Pythons


@pytest.mark.parametrize("python", old_pythons())
def test_old_pythons_run_it_too(tmp_path: Path, python: str) -> None:
    code = bundle(tmp_path / "b", {"a": (0o644, b"hello" * 50_000)})
    one = Run(tmp_path / "task", {"argv": ["sh", "-c", "wc -c < a; setsid sleep 60 & exit 3"], "code": code}, python)
    assert end_of(one.wait()) == ended(3, reason="exit 3")
    assert one.out().split() == ["250000"]
