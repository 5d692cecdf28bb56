"""The record: acknowledged is on disk, an end is an end, and the index may be lost at any time."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flow.blobs import store_lock
from flow.bundle import make_bundle
from flow.durable import Lock
from flow.errors import StorageError, TaskNotFoundError, ValidationError
from flow.plan import Batch, Dependency, Elements, Plan, SignalBefore
from flow.prune import Limits, choose
from flow.record import Records, Submission, TaskIdTaken, new_task_id
from flow.record_index import Row
from flow.status import Intent, Outcome, TaskStatus, Want
from tests.support.hardship import make_read_only, run_as_nobody, small_disk

DONE = Outcome(TaskStatus.COMPLETED, 0, attempt=1, started=10.0, ended=20.0)
FAILED = Outcome(TaskStatus.FAILED, 3, reason="exit 3", attempt=2, started=10.0, ended=30.0)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "flow"


@pytest.fixture
def records(home: Path) -> Records:
    return Records(home)


def submission(name: str = "train", *, task_id: str | None = None, key: str | None = None, **plan: Any) -> Submission:
    task_id = task_id or new_task_id()
    made = Plan(task_id, name, "local", ("python", "train.py"), **plan)
    return Submission(task_id, made, {"command": "python train.py"}, time.time(), "ann", key)


def names(rows: list[Row]) -> list[str]:
    return [row.name for row in rows]


def test_what_was_submitted_is_read_back_whole(home: Path) -> None:
    whole = submission(
        env={"A": "é\n'\"", "B": ""},
        elements=Elements((1, 2, 7), 2),
        after=(Dependency("task-1", "ended"),),
        signal=SignalBefore(10, 60.0),
        ports=(8080,),
        labels={"team": "x"},
        options={"partition": "gpu"},
        batch=Batch("/home/ann/job.sh", ("--ntasks=2",), {"SLURM_NTASKS": "2"}),
    )
    given, whole = whole, dataclasses.replace(whole, plan=dataclasses.replace(whole.plan, number=1))
    assert Records(home).add(given) == whole
    assert Records(home).get(whole.task_id) == whole
    assert Records(home).get(f"{whole.task_id}_7") == whole
    assert Records(home).intent(whole.task_id) == Intent(Want.RUN, whole.created)


def test_tasks_are_numbered_as_slurm_does_it(home: Path, records: Records) -> None:
    """An array takes a number for each element: the last one has the array's own."""
    first = records.add(submission())
    array = records.add(submission(elements=Elements((3, 5, 9))))
    theirs = records.add(submission(), numbered=False)
    last = records.add(submission())
    assert [one.plan.number for one in (first, array, theirs, last)] == [1, 2, None, 5]
    assert [array.plan.number_of(index) for index in (None, 3, 5, 9)] == [2, 3, 4, 2]
    elements = {"3": f"{array.task_id}_3", "4": f"{array.task_id}_5", "2_9": f"{array.task_id}_9"}
    for reference, task_id in {"1": first.task_id, "2": array.task_id, "5": last.task_id, **elements}.items():
        assert records.find(reference) == task_id
    for unknown in ("0", "6", "2_4"):
        with pytest.raises(TaskNotFoundError):
            records.find(unknown)
    records.mark_allocated(theirs.task_id, 5)
    (home / "index.db").unlink()
    again = Records(home)
    assert theirs.task_id not in again.unallocated()
    assert again.find("5") == last.task_id and "several tasks have the number 5" in again.notes[-1]
    assert [row.number for row in again.rows()] == [5, 5, 2, 1]
    assert again.add(submission()).plan.number == 6


def test_a_home_is_made_when_first_written_to_and_is_private(home: Path, records: Records) -> None:
    assert (records.rows(), records.unallocated(), records.damaged()) == ([], [], [])
    with pytest.raises(TaskNotFoundError):
        records.find("@last")
    assert not home.exists()
    one = records.add(submission())
    records.set_intent(one.task_id, Want.HOLD)
    records.set_final(one.task_id, DONE)
    records.mark_allocated(one.task_id)
    for path in [home, *home.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert records.notes == []


def test_an_id_is_taken_once(records: Records) -> None:
    first = records.add(submission("first", task_id="task-0"))
    with pytest.raises(TaskIdTaken):
        records.add(submission("second", task_id="task-0"))
    assert records.get("task-0") == first


@pytest.mark.parametrize("task_id", ["", "../x", ".hidden", "a/b", "x_1", "a\nb", "-x"])
def test_an_id_that_is_no_name_of_a_folder_is_refused(records: Records, home: Path, task_id: str) -> None:
    records.add(submission())
    with pytest.raises(ValidationError):
        records.add(submission(task_id=f"{task_id}") if task_id else dataclasses.replace(submission(), task_id=""))
    for look in (records.get, records.intent):
        with pytest.raises(TaskNotFoundError):
            look(task_id or "/")


def test_the_same_key_gives_the_earlier_task(records: Records) -> None:
    first = records.add(submission(key="k", not_before=1.0, notes=("a",)))
    assert records.add(submission(key="k", not_before=2.0, notes=("b",))) == first
    assert records.add(submission(key="other")) != first
    with pytest.raises(ValidationError, match=f"used for another request, `{first.task_id}`"):
        records.add(submission(key="k", gpus=1))
    assert len(records.rows()) == 2


def test_the_same_key_from_many_processes_is_one_task(home: Path) -> None:
    code = WITH_RECORDS + "print(records.add(task('sweep', key='once')).task_id)"
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(home)], stdout=subprocess.PIPE, text=True) for _ in range(6)
    ]
    ids = {child.communicate()[0] for child in children}
    assert [row.task_id + "\n" for row in Records(home).rows()] == list(ids)


def test_two_hundred_submit_at_the_same_instant(home: Path) -> None:
    code = WITH_RECORDS + FORK_200
    done = subprocess.run([sys.executable, "-c", code, str(home)], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("200\n", "")
    assert len(Records(home).rows()) == 200
    assert len({row.task_id for row in Records(home).rows()}) == 200


def test_an_intent_holds_until_it_is_changed_and_a_cancel_for_ever(records: Records) -> None:
    task_id = records.add(submission(), Want.HOLD).task_id
    assert records.intent(task_id).want is Want.HOLD
    assert records.unallocated() == []
    released = records.set_intent(task_id, Want.RUN)
    assert records.intent(task_id) == released
    assert records.unallocated() == [task_id]
    assert records.set_intent(task_id, Want.RUN) == released
    cancelled = records.set_intent(task_id, Want.CANCEL)
    assert records.set_intent(task_id, Want.RUN) == cancelled
    assert Records(records.home).intent(task_id) == cancelled


def test_an_element_has_its_own_intent_until_its_array_is_cancelled(records: Records) -> None:
    task_id = records.add(submission(elements=Elements((0, 1)))).task_id
    records.set_intent(f"{task_id}_1", Want.HOLD)
    assert [records.intent(f"{task_id}_{index}").want for index in (0, 1)] == [Want.RUN, Want.HOLD]
    assert records.intent(task_id).want is Want.RUN
    records.set_intent(task_id, Want.HOLD)
    records.set_intent(f"{task_id}_1", Want.HOLD)
    records.set_intent(task_id, Want.RUN)
    assert [records.intent(f"{task_id}_{index}").want for index in (0, 1)] == [Want.RUN, Want.RUN]
    records.set_intent(task_id, Want.CANCEL)
    assert [records.intent(f"{task_id}_{index}").want for index in (0, 1)] == [Want.CANCEL, Want.CANCEL]
    with pytest.raises(TaskNotFoundError):
        records.set_intent(f"{task_id}_2", Want.CANCEL)
    assert not (records.home / "record" / f"{task_id}_2").exists()


def test_the_first_final_state_wins_and_a_contradiction_is_kept(records: Records) -> None:
    task_id = records.add(submission()).task_id
    assert records.final(task_id) is None
    assert records.set_final(task_id, FAILED) == FAILED
    assert records.set_final(task_id, DONE) == FAILED
    assert records.set_final(task_id, FAILED) == FAILED
    assert Records(records.home).final(task_id) == FAILED
    (kept,) = (records.home / "record" / task_id).glob("final-contradicted-*.json")
    assert json.loads(kept.read_text())["state"] == "completed"
    with pytest.raises(ValueError, match="not a final state"):
        records.set_final(task_id, Outcome(TaskStatus.RUNNING))


def test_of_many_that_record_an_end_at_once_one_wins(records: Records) -> None:
    task_id = records.add(submission()).task_id
    outcomes = [Outcome(TaskStatus.FAILED, code) for code in range(8)]
    won: list[Outcome] = []
    threads = [
        threading.Thread(target=lambda outcome=outcome: won.append(records.set_final(task_id, outcome)))
        for outcome in outcomes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert set(won) == {records.final(task_id)}
    assert len(won) == 8


def test_lists_show_the_newest_first_and_what_was_asked_for(records: Records) -> None:
    tasks = {name: records.add(at(submission(name), float(age))) for age, name in enumerate(("a1", "b1", "a2", "b2"))}
    records.note_outcomes({tasks["a1"].task_id: DONE, tasks["b2"].task_id: Outcome(TaskStatus.RUNNING, started=5.0)})
    assert names(records.rows()) == ["b2", "a2", "b1", "a1"]
    assert names(records.rows(limit=2)) == ["b2", "a2"]
    assert names(records.rows(states=[TaskStatus.PENDING])) == ["a2", "b1"]
    assert names(records.rows(states=[TaskStatus.RUNNING, TaskStatus.COMPLETED], limit=5)) == ["b2", "a1"]
    assert names(records.rows(unfinished=True, limit=2)) == ["b2", "a2"]
    assert names(records.rows(unfinished=True, states=[TaskStatus.COMPLETED])) == []
    assert names(records.rows(name_pattern="a*")) == ["a2", "a1"]
    assert names(records.rows(name_pattern="[!a]?", unfinished=True)) == ["b2", "b1"]
    assert names(records.rows(since=2.0)) == ["b2", "a2"]
    assert records.rows(limit=0) == []


def test_a_row_tells_what_a_list_needs(records: Records) -> None:
    task = records.add(submission(instance_type="8xa100", price_per_hour=1.5, nodes=2, elements=Elements((1, 2, 3))))
    records.note_outcomes({task.task_id: FAILED, "task-unknown": DONE})
    assert records.rows() == [
        Row(
            task_id=task.task_id,
            name="train",
            provider="local",
            created=task.created,
            instance_type="8xa100",
            price_per_hour=1.5,
            nodes=2,
            elements=3,
            number=1,
            state=TaskStatus.FAILED,
            exit_code=3,
            signal=None,
            reason="exit 3",
            attempt=2,
            started=10.0,
            ended=30.0,
            partition="local",
        )
    ]


def test_a_final_state_in_the_list_never_changes(records: Records) -> None:
    task_id = records.add(submission()).task_id
    records.note_outcomes({task_id: DONE})
    records.note_outcomes({task_id: Outcome(TaskStatus.RUNNING)})
    records.note_outcomes({task_id: FAILED})
    assert records.rows()[0].state is TaskStatus.COMPLETED


def test_what_was_not_handed_to_a_provider_is_known(records: Records) -> None:
    first, second, third = (records.add(submission()).task_id for _ in range(3))
    records.mark_allocated(second)
    records.note_outcomes({third: DONE})
    assert records.unallocated() == [first]
    (records.home / "index.db").unlink()
    assert Records(records.home).unallocated() == [first, third]  # that one's end was never recorded


def test_a_task_is_found_by_what_users_call_it(records: Records) -> None:
    old = records.add(at(submission("train", task_id="task-0aaaa1"), 1.0)).task_id
    new = records.add(at(submission("train", task_id="task-0aaaa2"), 2.0)).task_id
    other = records.add(at(submission("exp_3", task_id="task-0bbbb1"), 3.0)).task_id
    array = records.add(at(submission("sweep", task_id="task-0cccc1", elements=Elements((1, 2))), 4.0)).task_id
    records.save_listing([other, old])
    for reference, found in {
        old: old,
        ":1": other,
        ":2": old,
        "@last": array,
        "task-0b": other,
        "0bbbb": other,
        "train": new,
        "exp_3": other,
        f"{array}_2": f"{array}_2",
        "sweep_1": f"{array}_1",
        "@last_1": f"{array}_1",
    }.items():
        assert records.find(reference) == found, reference
    assert records.notes == [f"2 tasks are named `train`: this is the newest, `{new}`"]


@pytest.mark.parametrize(
    ("reference", "message", "suggestion"),
    [
        ("trian", "there is no task `trian`", "did you mean `train`?"),
        ("task-0aaaa9", "there is no task `task-0aaaa9`", "did you mean `task-0aaaa2`?"),
        ("task-0aaaa2_1", "there is no task `task-0aaaa2_1`", "list them with `flow status --all`"),
        (":7", "the last list has no line `:7`", "list them with `flow status`"),
        ("", "there is no task ``", "list them with `flow status --all`"),
        ("a", "there is no task `a`", "list them with `flow status --all`"),
    ],
)
def test_what_is_not_found_is_said_with_the_nearest(
    records: Records, reference: str, message: str, suggestion: str
) -> None:
    records.add(submission("train", task_id="task-0aaaa2"))
    with pytest.raises(TaskNotFoundError) as failure:
        records.find(reference)
    assert (failure.value.message, failure.value.suggestions[0]) == (message, suggestion)


def test_a_beginning_that_several_ids_have_is_refused(records: Records) -> None:
    for number in range(7):
        records.add(submission(task_id=f"task-0aaaa{number}"))
    with pytest.raises(ValidationError) as failure:
        records.find("task-0a")
    assert failure.value.message == (
        "several tasks begin with `task-0a`: `task-0aaaa6`, `task-0aaaa5`, `task-0aaaa4`, `task-0aaaa3`, "
        "`task-0aaaa2`, …"
    )


@pytest.mark.parametrize(
    ("damage", "note"),
    [
        (lambda index: index.unlink(), "was missing: made anew from 3 records"),
        (lambda index: index.write_bytes(b""), "was damaged: made anew"),
        (lambda index: index.write_bytes(b"junk" * 5000), "was damaged: made anew"),
        (lambda index: index.write_bytes(index.read_bytes()[:5000]), "was damaged: made anew"),
        (lambda index: sqlite3.connect(index).execute("DROP TABLE tasks"), "was damaged: made anew"),
        (lambda index: sqlite3.connect(index).execute("PRAGMA user_version = 99"), "was damaged: made anew"),
    ],
)
@pytest.mark.parametrize("already_open", [True, False])
def test_an_index_that_is_lost_is_made_anew(
    records: Records, home: Path, damage: Callable[[Path], object], note: str, already_open: bool
) -> None:
    pending = records.add(submission("pending"))
    held = records.add(submission("held", key="k"), Want.HOLD)
    ended = records.add(submission("ended"))
    records.set_final(ended.task_id, FAILED)
    records.mark_allocated(ended.task_id)
    if not already_open:
        del records
        records = Records(home)
    sqlite3.connect(home / "index.db").execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    damage(home / "index.db")
    fresh = Records(home)
    assert names(fresh.rows()) == ["ended", "held", "pending"]
    assert [row.state for row in fresh.rows(states=[TaskStatus.FAILED])] == [TaskStatus.FAILED]
    assert len(fresh.notes) == 1
    assert note in fresh.notes[0]
    assert fresh.unallocated() == [pending.task_id]
    assert fresh.add(submission("held", key="k")) == held
    assert names(records.rows(limit=1)) == ["ended"]
    added = records.add(submission("added"))
    assert fresh.find("added") == added.task_id
    assert bool(list(home.glob("index.db.damaged-*"))) == ("damaged" in note)


def test_a_damaged_record_is_reported_and_the_others_live(records: Records, home: Path) -> None:
    good, bad, worse = (records.add(submission(name)) for name in ("good", "bad", "worse"))
    (home / "record" / bad.task_id / "record.json").write_text('{"v": 1, "task')
    (home / "record" / worse.task_id / "final.json").write_text("\0\0\0")
    (home / "index.db").unlink()
    fresh = Records(home)
    assert names(fresh.rows()) == ["worse", "good"]
    assert fresh.get(good.task_id) == good
    with pytest.raises(StorageError, match=f"`.*{bad.task_id}/record.json` is damaged"):
        fresh.get(fresh.find(bad.task_id))
    with pytest.raises(StorageError, match=f"`.*{worse.task_id}/final.json` is damaged"):
        fresh.final(worse.task_id)
    assert {task_id: why.split("`")[1] for task_id, _, why in fresh.damaged()} == {
        bad.task_id: str(home / "record" / bad.task_id / "record.json"),
        worse.task_id: str(home / "record" / worse.task_id / "final.json"),
    }
    fresh.add(submission("new"))
    assert fresh.prune(keep=0).task_ids == ()


def test_a_record_damaged_behind_the_index_is_reported_once_it_was_read(records: Records, home: Path) -> None:
    bad = records.add(submission("bad")).task_id
    (home / "record" / bad / "record.json").write_text("[]")
    with pytest.raises(StorageError):
        records.get(bad)
    assert [task_id for task_id, _, _ in Records(home).damaged()] == [bad]


def test_a_record_removed_by_hand_is_no_task_any_more_and_half_of_one_is_damaged(records: Records, home: Path) -> None:
    gone, half = records.add(submission("gone")).task_id, records.add(submission("half")).task_id
    shutil.rmtree(home / "record" / gone)
    (home / "record" / half / "record.json").unlink()
    with pytest.raises(TaskNotFoundError):
        records.get(gone)
    with pytest.raises(StorageError, match="no such file"):
        records.get(half)
    assert names(records.rows()) == ["half"]
    assert [task_id for task_id, _, _ in records.damaged()] == [half]


def test_after_the_machine_went_down_the_newest_rows_are_found_in_the_records(records: Records, home: Path) -> None:
    lost = records.add(submission("lost"))
    with sqlite3.connect(home / "index.db") as index:
        index.execute("DELETE FROM tasks")
        index.execute("UPDATE meta SET value = 'an earlier start of the machine'")
    index.close()
    assert [row.task_id for row in Records(home).rows()] == [lost.task_id]


def test_a_submitter_killed_at_any_moment_leaves_a_whole_task_or_none(home: Path) -> None:
    code = WITH_RECORDS + "print(1, flush=True)\nwhile True: print(records.add(task()).task_id, flush=True)"
    acknowledged: list[str] = []
    for delay in (0.001, 0.003, 0.01, 0.02, 0.03, 0.05):
        child = subprocess.Popen([sys.executable, "-c", code, str(home)], stdout=subprocess.PIPE, text=True)
        assert child.stdout
        child.stdout.readline()
        time.sleep(delay)  # any moment will do
        child.kill()
        acknowledged += [line for line in child.communicate()[0].split("\n") if len(line) == len(new_task_id())]
    after = Records(home).add(submission("after")).task_id
    rows = {row.task_id for row in Records(home).rows()}
    assert {*acknowledged, after} <= rows
    assert len(rows) <= len(acknowledged) + 1 + 6  # one each that was whole before it could be told
    (home / "index.db").unlink()
    assert {row.task_id for row in Records(home).rows()} == rows
    assert set(Records(home).unallocated()) == rows
    assert all(Records(home).get(task_id) for task_id in rows)


def test_a_task_left_whole_by_a_killed_submitter_is_run_by_the_next_command(records: Records, home: Path) -> None:
    left = records.add(submission("left"))
    with sqlite3.connect(home / "index.db") as index:
        index.execute("DELETE FROM tasks")
    index.close()
    (home / "record/.lock").write_text(left.task_id)
    assert Records(home).unallocated() == [left.task_id]
    assert (home / "record/.lock").read_text() == ""


def test_a_task_left_half_by_a_killed_submitter_never_was(records: Records, home: Path) -> None:
    records.add(submission("whole"))
    half = home / "record/task-half"
    half.mkdir()
    (half / ".record.json.1-2-3").write_text('{"v"')
    (home / "record/.lock").write_text("task-half")
    assert len(Records(home).unallocated()) == 1
    assert not half.exists()


def test_a_record_survives_a_fork(records: Records) -> None:
    parents = records.add(submission("parent's"))
    pid = os.fork()
    if pid == 0:
        try:
            records.add(submission("child's"))
            os._exit(0 if names(records.rows()) == ["child's", "parent's"] else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert records.get(parents.task_id) == parents
    assert names(records.rows()) == ["child's", "parent's"]


def test_a_process_forked_meanwhile_keeps_no_lock(records: Records, home: Path) -> None:
    """Forked by one thread while another has the lock. What is forked can take it, though that thread is not there."""
    records.add(submission())
    lock = Lock(home / "record" / ".lock")
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with lock, store_lock(home):
            held.set()
            go.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(30)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)
        with lock:
            os._exit(0)
    os.close(read)
    go.set()
    thread.join(30)
    with store_lock(home, shared=False):
        records.add(submission())
    os.close(write)
    assert os.waitpid(pid, 0)[1] == 0


def test_threads_share_a_record(records: Records, home: Path) -> None:
    def work() -> None:
        for _ in range(10):
            task = records.add(submission())
            records.set_final(task.task_id, DONE)
            records.rows(limit=3)

    threads = [threading.Thread(target=work) for _ in range(6)]
    records.add(submission())
    (home / "index.db").unlink()  # one of them makes it anew while the others write
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(records.rows(states=[TaskStatus.COMPLETED])) == 60


def test_a_read_only_home_can_be_read(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", megabytes=4) as disk:
        home = disk / "flow"
        records = Records(home)
        task = records.add(submission())
        records.save_listing([task.task_id])
        make_read_only(disk)
        for reader in (records, Records(home)):
            assert names(reader.rows()) == ["train"]
            assert reader.find(":1") == reader.find("train") == task.task_id
            assert reader.get(task.task_id) == task
            assert reader.unallocated() == [task.task_id]
            reader.note_outcomes({task.task_id: DONE})
            reader.save_listing([])
            with pytest.raises(StorageError, match="read-only file system"):
                reader.add(submission())
            with pytest.raises(StorageError, match="read-only file system"):
                reader.set_final(task.task_id, DONE)
            with pytest.raises(StorageError, match="read-only file system"):
                reader.set_intent(task.task_id, Want.CANCEL)
        del records, reader


def test_a_read_only_home_without_an_index_can_be_read(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", megabytes=4) as disk:
        task = Records(disk / "flow").add(submission())
        for left in (disk / "flow").glob("index.db*"):
            left.unlink()
        make_read_only(disk)
        reader = Records(disk / "flow")
        assert [row.task_id for row in reader.rows()] == [task.task_id]
        assert reader.find("train") == task.task_id
        del reader


def test_a_home_that_cannot_be_written_to_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write to Flow's folder `.*/file`: not a directory|file exists"):
        Records(tmp_path / "file").add(submission())
    assert Records(tmp_path / "file").rows() == []
    (tmp_path / "closed").mkdir(mode=0o755)
    code = WITH_RECORDS.replace("sys.argv[1]", repr(str(tmp_path / "closed")))
    code += "from flow.errors import StorageError\ntry: records.add(task())\nexcept StorageError as e: print(e)"
    printed = run_as_nobody(code, tmp_path)
    assert printed == f"cannot write to Flow's folder `{tmp_path / 'closed'}`: permission denied\n"


def test_a_full_disk_acknowledges_nothing_it_cannot_keep(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", megabytes=2) as disk:
        records = Records(disk / "flow")
        first = records.add(submission("first"))
        acknowledged = [first.task_id]
        with pytest.raises(StorageError, match="no space left on device"):
            for number in range(1000):
                acknowledged.append(records.add(submission(env={"LARGE": "x" * 3000 * (1 + number % 3)})).task_id)
        assert len(acknowledged) > 10
        for task_id in acknowledged:
            assert records.get(task_id).task_id == task_id
        assert sorted(row.task_id for row in records.rows()) == sorted(acknowledged)
        del records


def test_prune_removes_what_ended_and_never_what_is_not_final(records: Records, home: Path, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project/a.py").write_text("1")
    dropped_bundle = make_bundle(tmp_path / "project", home)
    (tmp_path / "project/a.py").write_text("2")
    kept_bundle = make_bundle(tmp_path / "project", home)
    ended = records.add(submission("ended", bundle=dropped_bundle.id, elements=Elements((1, 2))))
    running = records.add(submission("running", bundle=kept_bundle.id))
    for element in (1, 2):
        output = records.folder(f"{ended.task_id}_{element}", 1, 0) / "output"
        output.mkdir(parents=True)
        (output / "model.bin").write_bytes(b"x" * 5000)
        output.chmod(0o500)
    records.set_final(ended.task_id, DONE)
    records.note_outcomes({running.task_id: DONE})  # the index may say what it likes
    records.save_listing([running.task_id, ended.task_id])
    planned = records.prune(keep=0, dry_run=True)
    assert records.get(ended.task_id)
    pruned = records.prune(keep=0)
    assert pruned == planned
    assert pruned.task_ids == (ended.task_id,)
    assert 10_000 < pruned.bytes < 15_000
    assert sorted(path.name for path in (home / "record").iterdir()) == [".lock", running.task_id]
    assert [row.task_id for row in records.rows()] == [running.task_id]
    assert records.find(":1") == running.task_id
    with pytest.raises(TaskNotFoundError):
        records.find(":2")
    assert [path.stem for path in (home / "manifests").iterdir()] == [kept_bundle.id]
    assert records.prune(keep=0).task_ids == ()


def test_prune_keeps_what_another_task_waits_for(records: Records) -> None:
    first = records.add(submission("first"))
    second = records.add(submission("second", after=(Dependency(first.task_id),)))
    records.set_final(first.task_id, DONE)
    assert records.prune(keep=0).task_ids == ()
    records.set_final(second.task_id, DONE)
    assert records.prune(keep=0).task_ids == (first.task_id, second.task_id)


def test_prune_without_a_limit_removes_only_what_no_task_names(records: Records) -> None:
    records.set_final(records.add(submission()).task_id, DONE)
    assert records.prune().task_ids == ()


def test_prune_and_those_who_submit_do_not_wait_for_each_other_for_ever(records: Records, home: Path) -> None:
    records.set_final(records.add(submission()).task_id, DONE)
    began = threading.Event()

    def prune() -> None:
        began.set()
        Records(home).prune(keep=0)

    thread = threading.Thread(target=prune)
    with store_lock(home):
        thread.start()
        began.wait(10)
        for _ in range(20):
            records.add(submission("submitted"))
    thread.join(20)
    assert not thread.is_alive()
    assert {row.name for row in records.rows()} == {"submitted"}


def test_prune_sweeps_up_after_one_that_was_killed(records: Records, home: Path) -> None:
    records.add(submission())
    left = home / "record/.pruned-task-0/1/0"
    left.mkdir(parents=True)
    (left / "stdout.log").write_text("x")
    records.prune()
    assert not (home / "record/.pruned-task-0").exists()


def test_prune_removes_what_writers_left_that_were_killed(records: Records, home: Path) -> None:
    """By the name that only they give, once it is old: one may be at it now."""
    task_id = records.add(submission()).task_id
    (home / "mithril/held").mkdir(parents=True)
    killed = "import os, sys; from flow import durable; from pathlib import Path; "
    killed += "os.fsync = lambda _: os.kill(os.getpid(), 9); durable.write_durably(Path(sys.argv[1]), b'')"
    names = [f"mithril/held/{task_id}", f"record/{task_id}/intent.json", "config.yaml"]
    for name in names:
        subprocess.run([sys.executable, "-c", killed, home / name])
    left = [path for name in names for path in (home / name).parent.glob(f".{Path(name).name}.*")]
    others = [home / "mithril/held/.task-1.12-ab.tmp", home / f"record/{task_id}/.mine-1-2-3"]
    for path in (*left[1:], *others):
        path.touch()
        os.utime(path, (0, 0))
    records.prune(dry_run=True)
    assert [path.exists() for path in left] == [True, True, True]
    records.prune()
    assert [path.exists() for path in (*left, *others)] == [True, False, False, True, True]


@pytest.mark.parametrize(
    ("limits", "doomed"),
    [
        (Limits(), []),
        (Limits(older_than_seconds=55), ["a", "b"]),
        (Limits(keep=1), ["a", "b", "c"]),
        (Limits(keep=9), []),
        (Limits(max_bytes=1000), []),
        (Limits(max_bytes=999), ["a"]),
        (Limits(max_bytes=750), ["a", "b", "c"]),
        (Limits(max_bytes=0), ["a", "b", "c", "d"]),
        (Limits(keep=2, max_bytes=900), ["a", "b"]),
        (Limits(keep=3, older_than_seconds=35, max_bytes=10_000), ["a", "b", "c"]),
    ],
)
def test_which_tasks_go(limits: Limits, doomed: list[str]) -> None:
    """Four ended 60, 56, 40 and 30 seconds ago, of 100 bytes each; other records take 600."""
    ends = {"d": 970.0, "c": 960.0, "b": 944.0, "a": 940.0}
    ended = [
        (Row(name, name, "local", 0.0, "", None, 1, 0, None, TaskStatus.COMPLETED), end) for name, end in ends.items()
    ]
    assert choose(ended, dict.fromkeys(ends, 100), 1000, limits=limits, now=1000.0) == doomed


def test_ids_sort_by_time_and_hold_no_doubtful_character() -> None:
    ids = [new_task_id(1_735_689_600.0 + second) for second in (0, 0.001, 1, 3600, 1e6, 1e8, 1e9)]
    assert ids == sorted(ids)
    assert all(len(task_id) == len("task-") + 14 for task_id in ids)
    assert not set("".join(ids).replace("task-", "")) - set("0123456789abcdefghjkmnpqrstvwxyz")
    assert len({new_task_id(0.0) for _ in range(1000)}) == 1000


def test_the_record_loads_nothing_heavy() -> None:
    loaded = subprocess.check_output([sys.executable, "-c", "import sys, flow.record; print(*sys.modules)"], text=True)
    assert not {"pydantic", "yaml", "click", "rich", "pathspec"} & set(loaded.split())


def at(made: Submission, created: float) -> Submission:
    return dataclasses.replace(made, created=created)


WITH_RECORDS = """
import os, sys, time
from pathlib import Path
from flow.plan import Plan
from flow.record import Records, Submission, new_task_id

def task(name="train", key=None):
    task_id = new_task_id()
    return Submission(task_id, Plan(task_id, name, "local", ("true",)), {}, time.time(), "ann", key)

records = Records(Path(sys.argv[1]))
"""
FORK_200 = """
read, write = os.pipe()
children = []
for number in range(200):
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)  # until all have been started
        try:
            records.add(task(str(number)))
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    children.append(pid)
os.close(write)
print(sum(os.waitpid(pid, 0)[1] == 0 for pid in children))
"""


def test_secret_files_are_private_and_go_when_the_task_is_cancelled_or_has_ended(home: Path) -> None:
    records = Records(home)
    for end in ("cancel", "final"):
        task_id = records.add(submission(), outbox={"s3.json": b"secret"}).task_id
        file = home / "record" / task_id / "outbox" / "s3.json"
        assert (file.read_bytes(), file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (
            b"secret",
            0o600,
            0o700,
        )
        if end == "cancel":
            records.set_intent(task_id, Want.CANCEL)
        else:
            records.set_final(task_id, Outcome(TaskStatus.COMPLETED, 0))
        assert not file.parent.exists()
