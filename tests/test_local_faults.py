"""What stands in the local provider's way, or comes between: the queue is rebuilt, and nothing runs that must not."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flow.client import Flow
from flow.durable import NoRoomError, take_lock
from flow.errors import FlowError, ValidationError
from flow.machines import Machines
from flow.node.remains import is_locked
from flow.providers.local import mend
from flow.providers.local.queue import Queue
from flow.providers.local.rank import rank_folder
from flow.record import Records
from flow.task import Task
from tests.support.hardship import small_disk
from tests.support.processes import end, end_scheduler, is_alive, wait_until


@pytest.fixture
def client() -> Flow:
    return Flow(provider="local")


def run(client: Flow, command: str = "true", **fields: Any) -> Task:
    return client.run(command, upload_code=False, **fields)


def until_running(task: Task) -> Task:
    assert wait_until(lambda: task.refresh().status == "running", seconds=60), (task.status, task.reason)
    return task


def kill_scheduler(client: Flow, folder: Path | None = None) -> None:
    folder = folder or client.home / "local"
    assert wait_until(lambda: is_locked(folder / "scheduler.lock") and not is_locked(folder / "start.lock"))
    pid = int((folder / "scheduler.lock").read_text())
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not is_alive(pid))


def lose_queue(client: Flow) -> None:
    kill_scheduler(client)
    for file in (client.home / "local").glob("local.db*"):
        file.unlink()


# -- a cancel that comes between


def test_a_held_task_that_is_cancelled_meanwhile_is_not_resumed(client: Flow) -> None:
    held = run(client, "echo ran", hold=True)
    Flow().get_task(held.task_id).cancel()
    with pytest.raises(ValidationError, match="is not held"):
        held.resume()
    assert held.refresh().status == "cancelled"


def test_a_cancel_before_the_provider_has_the_task_is_seen_by_it(client: Flow) -> None:
    """As when another client cancels after `resume` has looked, and before the queue has a row."""
    held = run(client, "echo ran", hold=True)
    array = run(client, "echo ran", hold=True, array="1-3")
    Flow().get_task(held.task_id).cancel()
    Flow().get_task(f"{array.task_id}_2").cancel()
    for task in (held, array):
        client.provider().allocate(task.plan)
    (allocation,) = client.provider().allocations([held.task_id])
    assert allocation.machines is Machines.GONE
    assert (held.wait(timeout=60), held.attempts) == ("cancelled", [])
    assert array.wait(timeout=60) == "cancelled"
    assert array.elements == {"completed": 2, "cancelled": 1}


# -- damage


def test_a_damaged_intent_does_not_keep_a_task_from_being_cancelled(client: Flow) -> None:
    running = until_running(run(client, "sleep 300"))
    held = run(client, hold=True)
    other = run(client)
    for task in (running, held):
        (client.home / "record" / task.task_id / "intent.json").write_text('{"want": "c')
    assert other.wait(timeout=60) == "completed"
    assert other in Flow().tasks()
    for task in (running, held):
        Flow().get_task(task.task_id).cancel()
        assert Flow().get_task(task.task_id).wait(timeout=60) == "cancelled"


def test_one_task_that_cannot_be_cancelled_does_not_spare_the_others(client: Flow) -> None:
    lost, running = until_running(run(client, "sleep 300")), until_running(run(client, "sleep 300"))
    intent = client.home / "record" / lost.task_id / "intent.json"
    intent.mkdir()
    with pytest.raises(FlowError):
        client.cancel(lost, running)
    assert running.wait(timeout=60) == "cancelled"
    intent.rmdir()
    lost.cancel()
    assert lost.wait(timeout=60) == "cancelled"


@pytest.mark.parametrize("damage", ["replace(plan, 'argv', 'arg')", "CAST(X'7BFF' AS TEXT)"])
def test_a_plan_that_cannot_be_read_is_put_back_by_the_next_command(client: Flow, damage: str) -> None:
    """The scheduler meets it, and the command that comes then would not have looked there."""
    first = until_running(run(client, "sleep 300", cpus=0.1))
    task = run(client, "echo fine", begin=f"{time.time() + 2:.0f}")
    kill_scheduler(client)
    with sqlite3.connect(client.home / "local" / "local.db") as db:
        db.execute(f"UPDATE plan SET plan = {damage} WHERE base = ?", (task.task_id,))
    db.close()
    later = run(client, "echo later")
    assert wait_until(lambda: Flow().get_task(task.task_id).status == "completed", seconds=30)
    assert later.wait(timeout=60) == "completed"
    first.cancel()
    assert first.wait(timeout=60) == "cancelled"


def test_a_locked_queue_is_not_taken_for_a_damaged_one(tmp_path: Path) -> None:
    Queue(tmp_path / "local.db").close()
    assert mend._is_whole(tmp_path / "local.db")
    (tmp_path / "local.db").write_bytes(os.urandom(10_000))
    assert not mend._is_whole(tmp_path / "local.db")
    assert not mend.is_damage(sqlite3.OperationalError("database is locked"))


def test_mending_signals_no_stranger(client: Flow) -> None:
    task = run(client)
    assert task.wait(timeout=60) == "completed"
    lose_queue(client)
    with subprocess.Popen(["sleep", "300"]) as stranger:
        (client.home / "local" / "scheduler.lock").write_text(f"{stranger.pid}\n")
        assert not mend._is_scheduler(stranger.pid, client.home / "local")
        assert Flow().provider().allocations([task.task_id])[0].machines is Machines.GONE
        assert stranger.poll() is None
        stranger.terminate()


# -- what a rebuilt queue knows


def test_a_cleared_state_folder_is_filled_from_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "state" / "queue"
    elsewhere = run(Flow(), "true")
    assert elsewhere.wait(timeout=60) == "completed"
    monkeypatch.setenv("FLOW_LOCAL_STATE_DIR", str(state))
    client = Flow()
    done = run(client, "exit 3")
    assert done.wait(timeout=60) == "failed"
    running = until_running(run(client, f"until [ -e {tmp_path}/go ]; do sleep 0.02; done", cpus=0.1))
    waiting = run(client, "echo waited", depends_on=[running.task_id])
    kill_scheduler(client, state)
    for file in state.iterdir():
        file.unlink()
    state.rmdir()
    fresh = Flow()
    assert [str(fresh.get_task(task.task_id).status) for task in (done, running, waiting)] == [
        "failed", "running", "pending"
    ]  # fmt: skip
    with sqlite3.connect(state / "local.db") as db:
        assert db.execute("SELECT count(*) FROM task WHERE id = ?", (elsewhere.task_id,)).fetchone() == (0,)
    db.close()
    (tmp_path / "go").touch()
    assert fresh.get_task(waiting.task_id).wait(timeout=60) == "completed"
    end_scheduler(state.parent, tmp_path)
    end([int((state / "scheduler.lock").read_text())])


def test_gpus_are_not_given_twice_by_a_rebuilt_queue(
    client: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nfor i in 0 1 2; do echo $i, NVIDIA A100-SXM4-80GB, 81920; done\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    show = "echo $CUDA_VISIBLE_DEVICES; sleep 300"
    first = run(client, show, gpu="a100", num_instances=2, cpus=0.1)
    assert wait_until(lambda: sorted(first.logs().split()) == ["0", "1"], seconds=60), first.refresh().reason
    lose_queue(client)
    second = until_running(run(Flow(), show, gpu="a100", cpus=0.1))
    assert next(iter(second.logs(follow=True))) == "2"
    for task in (first, second):
        task.cancel()
        assert task.wait(timeout=60) == "cancelled"


def test_an_end_that_only_the_queue_knew_survives_it(client: Flow) -> None:
    wrong = run(client, "false")
    never = run(client, "true", depends_on=[wrong.task_id])
    array = run(client, "true", depends_on=[wrong.task_id], array="1-3")
    blocked = run(client, "true", hold=True)
    (client.home / "record" / blocked.task_id / "1").write_text("in the way")
    blocked.resume()
    tasks = (wrong, never, array, blocked)
    states = [str(task.wait(timeout=30)) for task in tasks]
    assert states == ["failed", "cancelled", "cancelled", "failed"]
    reasons = [task.reason for task in tasks]
    (client.home / "record" / blocked.task_id / "1").unlink()
    lose_queue(client)
    for file in client.home.glob("index.db*"):
        file.unlink()
    rebuilt = [Flow().get_task(task.task_id) for task in tasks]
    allocations = Flow().provider().allocations([task.task_id for task in tasks])
    assert {one.machines for one in allocations} == {Machines.GONE}
    assert [str(task.status) for task in rebuilt] == states
    assert [task.reason for task in rebuilt] == reasons
    assert rebuilt[2].elements == {"cancelled": 3}


# -- one scheduler, many clients


_DIES_BEFORE_IT_LISTENS = """
import sys, time
from pathlib import Path
from flow.durable import take_lock
lock = take_lock(Path(sys.argv[1]) / "start.lock")
print("holds", flush=True)
sys.stdin.read()
"""


def test_a_scheduler_that_dies_before_it_listens_is_replaced(client: Flow) -> None:
    folder = client.home / "local"
    folder.mkdir(parents=True)
    program = [sys.executable, "-c", _DIES_BEFORE_IT_LISTENS, str(folder)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as starting:
        assert starting.stdout and starting.stdout.readline() == b"holds\n"
        threading.Timer(0.5, starting.kill).start()
        task = run(client, "echo fine")
    assert is_alive(starting.pid) is False
    db = Queue(folder / "local.db")  # nobody else asks for a scheduler
    assert wait_until(lambda: not db.has_work(), seconds=60)
    db.close()
    assert task.wait(timeout=60) == "completed"


def test_a_node_that_a_dead_scheduler_did_not_come_to_begins_all_the_same(client: Flow) -> None:
    task = run(client, "echo node $FLOW_NODE_RANK", num_instances=2, hold=True)
    second = rank_folder(client.home, task.task_id, 1, 1)
    second.mkdir(parents=True)
    lock = take_lock(second / "runner.lock", note_pid=False)
    assert lock is not None
    task.resume()
    first = rank_folder(client.home, task.task_id, 1, 0)
    assert wait_until(lambda: (first / "status.json").exists() and (second / "task.json").exists(), seconds=60)
    kill_scheduler(client)
    os.close(lock)
    assert task.wait(timeout=60) == "completed", task.reason
    assert sorted(task.logs().splitlines()) == ["node 0", "node 1"]
    assert len(task.attempts) == 1


def test_a_client_is_used_from_any_thread_and_after_a_fork(client: Flow) -> None:
    task = run(client)
    seen: list[str] = []
    threads = [threading.Thread(target=lambda: seen.append(str(run(client).wait(timeout=60)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert seen == ["completed"] * 3
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if run(client).wait(timeout=60) == "completed" else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert task.wait(timeout=60) == "completed"


# -- the disk


def test_a_failed_commit_leaves_no_transaction(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        queue = Queue(disk / "local.db")
        queue.db.execute("CREATE TABLE ballast (bytes BLOB)")
        with pytest.raises(sqlite3.OperationalError):
            for _ in range(100):
                with queue.transaction():
                    queue.db.execute("INSERT INTO ballast VALUES (zeroblob(100000))")
        assert not queue.db.in_transaction
        assert not queue.has_work()
        queue.close()


def test_the_same_key_is_the_same_request_though_the_project_changed(client: Flow, project: Path) -> None:
    first = client.run("echo one", idempotency_key="k")
    (project / "out.log").write_text("one\n")
    assert client.run("echo one", idempotency_key="k") == first
    with pytest.raises(ValidationError, match="used for another request"):
        client.run("echo two", idempotency_key="k")
    assert first.wait(timeout=60) == "completed"


_FIVE_TASKS = """
from flow.client import Flow
client = Flow()
def run(command, **fields):
    return client.run(command, upload_code=False, **fields)
large = "head -c 100000 /dev/zero > $FLOW_OUTPUT/large"
ended = [run(large, array="1-3"), run(large), run("exit 1", retries=1)]
for task in ended:
    task.wait(timeout=60)
print(*ended, run("true", hold=True), run("true", depends_on=[ended[1].task_id], hold=True))
"""


def test_prune_makes_room_on_a_disk_without_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(tmp_path / "disk", megabytes=6) as disk:
        home = disk / "flow"
        monkeypatch.setenv("FLOW_HOME", str(home))
        array, awaited, again, *open_ = subprocess.check_output([sys.executable, "-c", _FIVE_TASKS], text=True).split()
        end_scheduler(home, tmp_path)
        assert not list(home.glob("*.db-*"))  # SQLite has to make its files again
        (home / "local" / "spare").unlink()
        fill(disk / "ballast")
        with pytest.raises(NoRoomError):
            Records(home).rows()
        assert Flow().prune(keep=0, dry_run=True).task_ids == (array, again)
        pruned = Flow().prune(keep=0)
        assert (pruned.task_ids, pruned.bytes > 300_000) == ((array, again), True)
        assert {task.task_id for task in Flow().tasks()} == {awaited, *open_}
        assert run(Flow(), "echo room").wait(timeout=60) == "completed"
        end_scheduler(home, tmp_path)


def test_what_runs_is_listed_and_ended_on_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(tmp_path / "disk", megabytes=6) as disk:
        home = disk / "flow"
        monkeypatch.setenv("FLOW_HOME", str(home))
        flow = (sys.executable, "-m", "flow")
        submit = (*flow, "sbatch", "--parsable", "--output=/dev/null", "--wrap", "sleep 60")
        running, held = (subprocess.check_output([*submit, *more], text=True).strip() for more in ((), ("--hold",)))
        assert wait_until(lambda: Flow().get_task(running).refresh().status == "running")
        fill(disk / "ballast")
        assert subprocess.check_output([*flow, "squeue", "-h", "-o", "%i %t"], text=True) == f"{held} PD\n{running} R\n"
        subprocess.run([*flow, "scancel", running, held], check=True)
        assert wait_until(lambda: subprocess.check_output([*flow, "squeue", "-h"]) == b"")
        end_scheduler(home, tmp_path)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
