"""Bad input and bad surroundings, through the real command line: a clear error or a right answer, and nothing lost."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flow.client import Flow
from flow.durable import take_lock
from flow.providers.local.queue import Queue
from flow.task import Task
from tests.support.components import require
from tests.support.processes import end_scheduler, is_alive, wait_until

ID = re.compile(r"task-[0-9a-z]{14}")
Ended = subprocess.CompletedProcess[str]


pytestmark = pytest.mark.usefixtures("project")


@pytest.fixture
def home() -> Path:
    return Path(os.environ["FLOW_HOME"])


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Mounts something, as `mount` takes it, and unmounts it at the end."""
    if os.uname().sysname != "Linux" or os.getuid() != 0:
        require("mount rights", "a file system is mounted", found=False)
    folders: list[str] = []

    def mount(*words: str) -> None:
        done = subprocess.run(["mount", *words], capture_output=True, text=True)
        if done.returncode:
            require("mount rights", f"a file system is mounted: {done.stderr}", found=False)
        if words[-1] not in folders:
            folders.append(words[-1])

    yield mount
    for folder in folders:
        end_scheduler(Path(folder), tmp_path)
        subprocess.run(["umount", "-l", folder], capture_output=True)


def flow(*words: str) -> Ended:
    """Run a command line to its end, in a process of its own."""
    command = [sys.executable, "-m", "flow", *words]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)


def told(ended: Ended) -> tuple[int, str, list[str]]:
    """Exit code, first line of the error, hints. Nothing may be on stdout, and no traceback anywhere."""
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr and "internal error" not in ended.stderr
    lines = ended.stderr.splitlines()
    return ended.returncode, lines[0], [line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")]


def states() -> dict[str, str]:
    ended = flow("status", "--all", "--json")
    assert ended.returncode == 0, ended.stderr
    return {task["name"]: task["status"] for task in json.loads(ended.stdout)["tasks"]}


# -- what cannot be meant


def test_an_unknown_instance_type_is_told_with_the_nearest() -> None:
    code, error, hints = told(flow("run", "--gpu", "v1000", "true"))
    assert (code, error) == (2, "error: no instance type `v1000` at local")
    assert hints == ["did you mean `v100`?", "list what there is with `flow offers`"]


def test_malformed_yaml_is_shown_where_it_is(project: Path) -> None:
    (project / "bad.yaml").write_text("name: x\ncommand: [a\nenv: {")
    code, error, _ = told(flow("run", "bad.yaml"))
    assert code == 2
    assert error.startswith("error: bad.yaml:3:4: not YAML: ")


def test_a_yaml_of_another_kind_is_refused(project: Path) -> None:
    (project / "list.yaml").write_text("- a\n- b\n")
    (project / "bytes.yaml").write_bytes(b"\xff\xfe\x00name")
    (project / "folder.yaml").mkdir()
    for name in ("list.yaml", "bytes.yaml", "folder.yaml"):
        code, error, _ = told(flow("run", name))
        assert code in (1, 2, 4)
        assert name in error


def test_a_missing_file_is_not_taken_for_a_command(project: Path) -> None:
    (project / "train.yaml").write_text("command: 'true'\n")
    assert told(flow("run", "trian.yaml")) == (4, "error: no file `trian.yaml`", ["did you mean `train.yaml`?"])
    code, error, _ = told(flow("run", "none.py"))
    assert (code, error) == (4, "error: no file `none.py`")


def test_a_command_that_does_not_exist_fails_as_in_a_shell() -> None:
    ended = flow("run", "--watch", "--", "no-such-program", "a")
    assert ended.returncode == 127
    assert "failed  `no-such-program`: command not found" in ended.stderr
    ended = flow("run", "--watch", "./nothing here")
    assert ended.returncode == 127


def test_a_folder_that_is_gone_cannot_be_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    code, error, hints = told(flow("run", "true"))
    assert (code, error) == (2, "error: the current folder cannot be used: No such file or directory")
    assert hints == ["go to another one, `cd` for example"]
    monkeypatch.chdir(tmp_path)
    assert flow("status").stdout == "No tasks found\n"


def test_a_project_over_the_limit_is_refused_before_anything_is_submitted(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "model.bin").write_bytes(os.urandom(1_500_000))
    (project / "zeros.bin").write_bytes(bytes(5_000_000))
    monkeypatch.setenv("FLOW_UPLOAD_LIMIT_MB", "1")
    code, error, hints = told(flow("run", "true"))
    assert (code, error) == (2, "error: Project size (1.5MB) exceeds limit (1MB)")
    assert "`model.bin`" in hints[0]
    assert states() == {}
    assert flow("run", "--watch", "--no-upload-code", "true").returncode == 0


# -- the disk


def test_a_log_that_fills_the_disk_is_cut_and_the_task_ends(home: Path, mounted: Callable[..., None]) -> None:
    home.mkdir()
    mounted("-t", "tmpfs", "-o", "size=6m", "none", str(home))
    assert flow("run", "--watch", "echo fine").stdout == "fine\n"
    ended = flow("run", "--watch", "--name", "filler", "sleep 1; head -c 20000000 /dev/zero; exit 7")
    assert ended.returncode == 7
    assert "log cut: no space left on device" in ended.stderr
    assert states() == {"echo": "completed", "filler": "failed"}
    assert flow("prune", "--keep", "0", "--yes").returncode == 0
    assert flow("run", "--watch", "echo room again").stdout == "room again\n"


def test_a_full_disk_is_told_and_what_is_there_stays(home: Path, mounted: Callable[..., None]) -> None:
    home.mkdir()
    mounted("-t", "tmpfs", "-o", "size=6m", "none", str(home))
    assert flow("run", "--watch", "--name", "first", "echo fine").returncode == 0
    fill = home / "fill"
    with contextlib.suppress(OSError), fill.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    code, error, hints = told(flow("run", "true"))
    assert (code, error) == (1, f"error: cannot write to Flow's folder `{home}`: no space left on device")
    assert hints == ["make room there: `flow prune` removes what old tasks left"]
    fill.unlink()
    assert flow("run", "--watch", "--name", "second", "echo fine").returncode == 0
    assert {"first": "completed", "second": "completed"}.items() <= states().items()


def test_a_read_only_home_can_be_read(home: Path, tmp_path: Path, mounted: Callable[..., None]) -> None:
    task_id = flow("run", "--watch", "echo kept").stderr.split()[0]
    end_scheduler(home, tmp_path)
    mounted("--bind", str(home), str(home))
    mounted("-o", "remount,ro,bind", str(home))
    code, error, hints = told(flow("run", "true"))
    assert (code, error) == (1, f"error: cannot write to Flow's folder `{home}`: read-only file system")
    assert hints == ["point FLOW_HOME at a folder that you can write to"]
    assert states() == {"echo": "completed"}
    assert flow("logs", task_id).stdout == "kept\n"
    assert flow("info", task_id).returncode == 0


def test_a_file_in_place_of_the_home_is_told(home: Path) -> None:
    home.parent.mkdir(exist_ok=True)
    home.write_text("not a folder")
    for words in (["run", "true"], ["status"], ["info", "x"]):
        code, error, hints = told(flow(*words))
        assert (code, error) == (1, f"error: `{home}` is not a folder")
        assert hints == ["point FLOW_HOME at one, or at nothing yet"]


# -- damage


@pytest.mark.parametrize("damage", ["garbage", "truncated", "emptied", "removed"])
def test_a_damaged_queue_is_rebuilt_and_nothing_is_lost_or_run_again(
    damage: str, home: Path, tmp_path: Path, project: Path
) -> None:
    ledger = tmp_path / "ledger"
    note = f"echo $FLOW_TASK_NAME $FLOW_ATTEMPT >> {ledger}; "
    (project / "held.yaml").write_text(f"command: '{note}'\nhold: true\n")
    (project / "three.yaml").write_text(f"command: '{note}'\narray: 1-3%1\n")
    assert flow("run", "--watch", "--name", "done", note).returncode == 0
    assert flow("run", "--watch", "--name", "failed", "--retries", "1", f"{note} exit 3").returncode == 3
    assert flow("run", "--name", "held", "held.yaml").returncode == 0
    assert flow("run", "--name", "runs", f"{note} until [ -e {tmp_path}/go ]; do sleep 0.02; done").returncode == 0
    assert flow("run", "--name", "dropped", "sleep 300").returncode == 0
    assert flow("cancel", "dropped").returncode == 0
    assert wait_until(lambda: states()["runs"] == "running", seconds=60)

    _kill_scheduler(home)
    path = home / "local" / "local.db"
    for log in path.parent.glob("local.db-*"):
        log.unlink()
    content = {"garbage": os.urandom(30_000), "truncated": path.read_bytes()[:5000], "emptied": b""}
    path.unlink()
    if damage in content:
        path.write_bytes(content[damage])

    seen = states()
    (tmp_path / "go").touch()
    assert seen == {
        "done": "completed", "failed": "failed", "held": "pending", "runs": "running", "dropped": "cancelled"
    }  # fmt: skip
    assert flow("run", "--name", "later", "--watch", "three.yaml").returncode == 0
    assert wait_until(lambda: states()["runs"] == "completed", seconds=60)
    lines = sorted(ledger.read_text().splitlines())
    assert lines == ["done 1", "failed 1", "failed 2", "later 1", "later 1", "later 1", "runs 1"]


def test_damage_of_the_queue_under_a_living_scheduler_loses_nothing(home: Path) -> None:
    assert flow("run", "--name", "long", "sleep 300").returncode == 0
    assert wait_until(lambda: states()["long"] == "running", seconds=60)
    for end in ("", "-wal"):
        (home / "local" / f"local.db{end}").write_bytes(os.urandom(40_000))
    assert flow("run", "--watch", "--name", "next", "echo fine").stdout == "fine\n"
    assert flow("cancel", "long").returncode == 0
    assert states() == {"long": "cancelled", "next": "completed"}


def test_what_a_power_cut_takes_from_the_queue_is_on_record(home: Path, tmp_path: Path) -> None:
    """It takes back the newest rows and marks, and leaves an older queue that is whole."""
    ledger = tmp_path / "ledger"
    client = Flow()
    done = client.run(f"echo done >> {ledger}")
    assert done.wait(timeout=60) == "completed"
    _kill_scheduler(home)
    lock = take_lock(home / "local" / "scheduler.lock")
    assert lock is not None  # no other scheduler works meanwhile
    dropped = client.run(f"echo dropped >> {ledger}")
    dropped.cancel()
    with contextlib.closing(Queue(home / "local" / "local.db")) as queue, queue.transaction():
        queue.db.execute("UPDATE task SET cancel = NULL")
        for table in ("task", "plan"):
            queue.db.execute(f"DELETE FROM {table} WHERE base = ?", (done.task_id,))
    for lost in (home / "record" / done.task_id / "allocated", home / "local" / "boot", *home.glob("index.db*")):
        lost.unlink()
    os.close(lock)
    assert flow("run", "--watch", "--name", "next", "echo fine").stdout == "fine\n"
    client = Flow()
    assert [client.get_task(task.task_id).wait(timeout=60) for task in (done, dropped)] == ["completed", "cancelled"]
    assert ledger.read_text() == "done\n"


def test_a_damaged_record_is_told_of_and_the_others_live(home: Path) -> None:
    first = flow("run", "--watch", "--name", "first", "true").stderr.split()[0]
    assert flow("run", "--watch", "--name", "second", "true").returncode == 0
    file = home / "record" / first / "record.json"
    file.write_text('{"v": 1, "task')
    message = f"`{file}` is damaged: "
    for _ in range(2):
        ended = flow("status")
        assert ended.returncode == 0
        assert ended.stderr.startswith(f"note: {message}")
        assert "second" in ended.stdout and first not in ended.stdout
        for index in home.glob("index.db*"):
            index.unlink()
    code, error, hints = told(flow("info", first))
    assert code == 1
    assert error.startswith(f"error: {message}")
    assert hints == ["the other tasks are not affected"]
    assert flow("run", "--watch", "--name", "third", "true").returncode == 0
    assert flow("cancel", "--all", "--yes").returncode == 0


@pytest.mark.parametrize("junk", ["{", '{"v": 1, "phase": "ended", "code": "x", "ended": "y"}', "[]", ""])
def test_damage_in_the_folder_of_a_dead_task_does_not_stop_the_scheduler(junk: str, home: Path) -> None:
    task_id = flow("run", "--name", "victim", "sleep 300").stdout.split()[0]
    folder = home / "record" / task_id / "1" / "0"
    assert wait_until(lambda: states()["victim"] == "running", seconds=60)
    (folder / "task.json").write_text("{")
    (folder / "status.json").write_text(junk)
    os.kill(int((folder / "runner.lock").read_text()), signal.SIGKILL)
    assert wait_until(lambda: states()["victim"] == "lost", seconds=60)
    assert flow("run", "--watch", "--name", "next", "echo fine").stdout == "fine\n"


def test_a_folder_that_cannot_be_made_fails_that_task_only(home: Path, project: Path) -> None:
    assert flow("run", "--watch", "--name", "warm", "true").returncode == 0
    (project / "held.yaml").write_text("command: 'true'\nhold: true\nname: blocked\n")
    task_id = flow("run", "held.yaml").stdout.split()[0]
    (home / "record" / task_id / "1").write_text("in the way")
    assert flow("resume", task_id).returncode == 0
    assert flow("run", "--watch", "--name", "next", "echo fine").stdout == "fine\n"
    assert wait_until(lambda: states()["blocked"] == "failed", seconds=30)


def test_a_garbage_index_is_made_anew(home: Path) -> None:
    assert flow("run", "--watch", "--name", "kept", "true").returncode == 0
    (home / "index.db").write_bytes(os.urandom(5000))
    ended = flow("status")
    assert "kept" in ended.stdout
    assert ended.stderr.startswith("note: the index of tasks was damaged: made anew from the records")
    assert states() == {"kept": "completed"}


# -- too much


def test_binary_output_without_a_line_end_comes_whole_in_little_memory(home: Path) -> None:
    size = 64_000_000
    task_id = flow("run", f"head -c {size} /dev/zero; sleep 1").stdout.split()[0]
    lock = home / "record" / task_id / "1" / "0" / "runner.lock"
    peak = 0

    def note_peak(pid: str) -> None:
        nonlocal peak
        with contextlib.suppress(OSError, ValueError):
            found = re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{int(pid)}/status").read_text())
            peak = max(peak, int(found[1]) if found else 0)

    def has_ended() -> bool:
        with contextlib.suppress(OSError):
            note_peak(lock.read_text())
        return Flow().get_task(task_id).status.is_final

    assert wait_until(has_ended, seconds=60)
    assert 0 < peak < 100_000  # kB
    reader = subprocess.Popen([sys.executable, "-m", "flow", "logs", task_id], stdout=subprocess.PIPE)
    assert reader.stdout
    count = peak = 0
    while piece := reader.stdout.read(1 << 20):
        note_peak(str(reader.pid))  # not by `wait4`, which counts what this process is, too
        count += len(piece)
    assert (reader.wait(), count - size in (0, 1)) == (0, True)
    assert 0 < peak < 300_000  # kB


def test_ten_thousand_tasks_are_queued_at_once_and_cancelled_at_once(project: Path) -> None:
    (project / "many.yaml").write_text("command: sleep 300\narray: 1-10000\n")
    task_id = flow("run", "--name", "many", "many.yaml").stdout.split()[0]
    assert wait_until(lambda: states()["many"] == "running", seconds=60)
    assert flow("cancel", task_id).returncode == 0
    assert Flow().get_task(task_id).wait(timeout=60) == "cancelled"
    assert Flow().get_task(task_id).elements == {"cancelled": 10_000}


_AT_ONCE = """
import os, sys
from flow.client import Flow
import flow.bundle, flow.config
read, write = os.pipe()
children = []
for number in range(int(sys.argv[1])):
    child = os.fork()
    if child == 0:
        os.close(write)
        os.read(read, 1)
        try:
            Flow().run("echo $FLOW_TASK_ID >> " + sys.argv[2])
        except BaseException as error:
            sys.stderr.write(f"{error!r}\\n")
            os._exit(1)
        os._exit(0)
    children.append(child)
os.close(write)
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""


def test_two_hundred_submissions_at_the_same_instant_are_all_run_once(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    ended = subprocess.run([sys.executable, "-c", _AT_ONCE, "200", str(ledger)], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    client = Flow()
    assert wait_until(lambda: all(task.status.is_final for task in client.tasks(limit=None)), seconds=60)
    tasks = {task.task_id: str(task.status) for task in client.tasks(limit=None)}
    assert (len(tasks), set(tasks.values())) == (200, {"completed"})
    assert sorted(ledger.read_text().split()) == sorted(tasks)


# -- the clock


_CLOCK = """
import sys, time
from pathlib import Path
from flow.providers.local import scheduler
from flow.durable import take_lock
real, begin = time.time, time.monotonic()
jump = float(sys.argv[2])
time.time = lambda: real() + (jump if time.monotonic() > begin + 0.7 else 0.0)
time.time_ns = lambda: int(time.time() * 1e9)
folder = Path(sys.argv[1]) / "local"
folder.mkdir(parents=True)
scheduler.run(Path(sys.argv[1]), folder, take_lock(folder / "start.lock"), cpus=8)
"""


@pytest.mark.parametrize("jump", [-86_400, 86_400])
def test_a_clock_that_jumps_a_day_ends_nothing_early_or_late(jump: int, home: Path) -> None:
    """It jumps for scheduler and runners, while everything runs."""
    with subprocess.Popen([sys.executable, "-c", _CLOCK, str(home), str(jump)]) as scheduler:
        assert wait_until((home / "local" / "wake").exists)
        client = Flow()
        began = time.monotonic()
        limited = client.run("sleep 300", max_run_time_hours=1.5 / 3600)
        patient = client.run("for i in 1 2 3; do echo $i; sleep 0.6; done", max_run_time_hours=20 / 3600)
        again = client.run("sleep 1; [ $FLOW_ATTEMPT = 2 ]", retries=1)
        nodes = client.run("sleep 1; exit $((FLOW_NODE_RANK * 3))", num_instances=2)
        assert limited.wait(timeout=60) == "timed_out"  # and not after a day
        assert time.monotonic() - began > 1.4
        assert (patient.wait(timeout=30), patient.logs()) == ("completed", "1\n2\n3\n")
        assert (again.wait(timeout=30), len(again.attempts)) == ("completed", 2)
        assert (nodes.wait(timeout=30), nodes.exit_code) == ("failed", 3)
        assert all(task.run_seconds is not None and task.run_seconds >= 0 for task in (limited, patient, again))
        scheduler.terminate()


# -- secrets


def test_secrets_are_in_no_output_and_in_private_files_only(home: Path, project: Path) -> None:
    (project / "task.yaml").write_text("command: echo $API_KEY | wc -c\nname: quiet\nenv: {API_KEY: hush-1}\n")
    words = ["task.yaml", "-e", "DB_PASSWORD=hush-2", "-e", "my_token=hush-3", "-e", "PLAIN=shown"]
    outputs = [flow("run", *words, "--dry-run"), flow("run", *words, "--dry-run", "--json"), flow("run", *words, "-w")]
    assert outputs[-1].returncode == 0
    for command in (["info"], ["info", "--json"], ["status"], ["status", "--json"], ["logs"], ["wait"]):
        outputs.append(flow(*command, "quiet"))
    outputs.append(flow("run", *words, "--json"))
    text = "".join(one.stdout + one.stderr for one in outputs)
    assert "hush" not in text
    assert "shown" in text and "***" in text
    holding = [file for file in home.rglob("*") if file.is_file() and b"hush-" in file.read_bytes()]
    assert any(file.name == "task.json" for file in holding)
    closed = [file for file in holding if file.stat().st_mode & 0o77]
    workspaces = [file for file in closed if "workspace" in file.parts]  # the project's own file, as the user has it
    assert closed == workspaces
    assert all(_is_behind_a_closed_folder(file, home) for file in workspaces)


def test_a_secret_in_a_refused_file_is_not_shown(project: Path) -> None:
    (project / "bad.yaml").write_text("command: 'true'\nenv: {API_KEY: [hush]}\nnamee: x\n")
    ended = flow("run", "bad.yaml")
    assert ended.returncode == 2
    assert "hush" not in ended.stdout + ended.stderr


def _is_behind_a_closed_folder(file: Path, home: Path) -> bool:
    return any(parent.stat().st_mode & 0o77 == 0 for parent in file.parents if parent.is_relative_to(home))


# -- bytes that are no text


def test_a_task_of_bytes_that_are_no_text_runs_and_stops_nobody(project: Path) -> None:
    not_text = os.fsdecode(b"\xff")
    command = [sys.executable, "-m", "flow", "run", "--watch", "--name"]
    ended = subprocess.run([*command, "raw", "--", "printf", f"a{not_text}b\n"], capture_output=True)
    assert (ended.returncode, ended.stdout) == (0, b"a\xffb\n")
    assert (
        subprocess.run([*command, "lost", "--working-dir", f"/{not_text}", "true"], capture_output=True).returncode
        == 126
    )
    for task in ("raw", "lost"):
        for more in ([], ["--json"]):
            assert flow("info", task, *more).returncode == 0
    assert states() == {"raw": "completed", "lost": "failed"}
    assert told(flow("status", not_text))[0] == 4
    assert flow("run", "--watch", "echo fine").stdout == "fine\n"


# -- what waits


def test_a_task_may_wait_for_one_that_has_ended_or_is_held() -> None:
    client = Flow()
    done, wrong, held = client.run("true"), client.run("false"), client.run("true", hold=True)
    done.wait(timeout=60)
    wrong.wait(timeout=60)

    def after(task: Task, state: str, **fields: str) -> Task:
        return client.run("true", depends_on=[f"{task.task_id}:{state}"], **fields)

    assert after(done, "completed").wait(timeout=60) == "completed"
    assert after(wrong, "failed").wait(timeout=60) == "completed"
    never = after(wrong, "completed", array="1-3%1")
    assert (never.wait(timeout=60), never.elements) == ("cancelled", {"cancelled": 3})
    waiting, forsaken = after(held, "completed"), after(held, "failed")
    held.resume()
    assert (waiting.wait(timeout=60), forsaken.wait(timeout=60)) == ("completed", "cancelled")


def test_who_waits_for_a_held_task_hears_of_its_cancel() -> None:
    client = Flow()
    held = client.run("true", hold=True)
    waiting = client.run("true", depends_on=[held.task_id])
    held.cancel()
    assert waiting.wait(timeout=60) == "cancelled"


def test_an_array_has_failed_for_who_waits_once_one_element_has() -> None:
    client = Flow()
    array = client.run("exit $((FLOW_ARRAY_INDEX == 2))", array="1-3")
    assert client.run("true", depends_on=[f"{array.task_id}:failed"]).wait(timeout=60) == "completed"


def test_an_array_goes_on_after_a_scheduler_that_died_before_it_gave_the_next_place(home: Path) -> None:
    local = home / "local"
    local.mkdir(parents=True)
    lock = take_lock(local / "scheduler.lock")
    assert lock is not None  # no other scheduler works meanwhile
    client = Flow()
    array = client.run("true", array="1-3%1")
    with contextlib.closing(Queue(local / "local.db")) as queue, queue.transaction():
        queue.end(queue.rows([f"{array.task_id}_1"])[0], {}, reason="", now=time.time())
    os.close(lock)
    assert wait_until(lambda: client.get_task(f"{array.task_id}_3").status == "completed", seconds=30)


def test_a_process_without_flows_marks_does_not_outlive_its_killed_runner(home: Path, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    child = f"env -i setsid sh -c 'echo $$ > {pid_file}; sleep 300' & sleep 300"
    task = Flow().run(child)
    assert wait_until(lambda: pid_file.exists() and bool(pid_file.read_text().strip()), seconds=60)
    pid = int(pid_file.read_text())
    os.kill(int((home / "record" / task.task_id / "1" / "0" / "runner.lock").read_text()), signal.SIGKILL)
    assert task.wait(timeout=60) == "lost"
    assert not is_alive(pid)


def _kill_scheduler(home: Path) -> None:
    pid = int((home / "local" / "scheduler.lock").read_text())
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not is_alive(pid))
