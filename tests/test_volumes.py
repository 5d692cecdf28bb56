"""Volumes: made, found, held by tasks, seen at their path, gone when asked; on the local provider."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flow
from flow.client import Flow
from flow.errors import ResourceNotFoundError, StorageError, ValidationError
from flow.machines import Volume
from flow.node import mounts, tail
from flow.task import Task
from tests.support.components import require
from tests.support.processes import wait_until


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flow:
    monkeypatch.chdir(tmp_path)
    return Flow()


@pytest.fixture
def at(tmp_path: Path) -> Callable[[str], str]:
    """A path to mount at that exists on no other machine, and leaves the root of this one as it is."""
    return lambda name: str(tmp_path / "seen" / name)


def run(client: Flow, command: str, **fields: Any) -> Task:
    return client.run(command, upload_code=False, **fields)


def finished(client: Flow, command: str, **fields: Any) -> Task:
    task = run(client, command, **fields)
    task.wait(timeout=60)
    return task


def running(client: Flow, command: str, **fields: Any) -> Task:
    task = run(client, command, **fields)
    assert wait_until(lambda: task.refresh().status == "running", seconds=30), (task.status, task.reason)
    return task


def cancelled(task: Task) -> None:
    task.cancel()
    assert task.wait(timeout=60) == "cancelled"


def contents(volume: Volume) -> Path:
    return Path(os.environ["FLOW_HOME"]) / "volumes" / volume.volume_id / "data"


# -- making and finding


def test_a_volume_is_made_once_and_found_by_name_and_id(client: Flow) -> None:
    made = client.create_volume(100, "datasets")
    assert (made.name, made.size_gb, made.interface, made.used_by) == ("datasets", 100, "block", ())
    assert client.volumes() == [made]
    assert client.get_volume("datasets") == client.get_volume(made.volume_id) == made


def test_nobody_else_can_look_into_what_is_made_first(client: Flow) -> None:
    client.create_volume(1, "data")
    home = Path(os.environ["FLOW_HOME"])
    assert [oct(folder.stat().st_mode)[-3:] for folder in (home, home / "volumes")] == ["700", "700"]


def test_a_name_that_is_taken_is_refused_unless_it_is_the_same_call_again(client: Flow) -> None:
    made = client.create_volume(100, "datasets")
    assert client.create_volume(100, "datasets") == made  # as after a cut line
    with pytest.raises(ValidationError, match="there is a volume `datasets` already"):
        client.create_volume(200, "datasets")
    (contents(made) / "file").write_text("x")
    with pytest.raises(ValidationError, match="there is a volume `datasets` already"):
        client.create_volume(100, "datasets")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"name": "../x", "size_gb": 1}, "name: `../x` is not allowed"),
        ({"name": "a/b", "size_gb": 1}, "name: `a/b` is not allowed"),
        ({"name": "", "size_gb": 1}, "name: is blank"),
        ({"name": "x" * 129, "size_gb": 1}, "is not allowed"),
        ({"name": "x", "size_gb": 0}, "size_gb: `0` is too small"),
        ({"name": "x", "size_gb": -5}, "size_gb: `-5` is too small"),
        ({"name": "x", "size_gb": 1, "interface": "nfs"}, "interface: `nfs` is not allowed"),
    ],
)
def test_what_cannot_be_a_volume_is_refused(client: Flow, fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as refused:
        client.create_volume(**fields)
    assert told in refused.value.message
    assert client.volumes() == []


def test_a_name_that_there_is_not_is_told_with_the_nearest(client: Flow) -> None:
    client.create_volume(1, "datasets")
    with pytest.raises(ResourceNotFoundError, match="there is no volume `dataset`") as refused:
        run(client, "true", volumes={"/data": "dataset"})
    assert refused.value.suggestions[0] == "did you mean `datasets`?"
    assert client.tasks() == []


def test_many_who_make_the_same_name_at_once_make_one(client: Flow) -> None:
    made: list[Volume] = []
    threads = [threading.Thread(target=lambda: made.append(Flow().create_volume(1, "one"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one.volume_id for one in made}) == 1
    assert len(made) == 8


# -- in a task


def test_a_task_sees_the_volume_at_its_path_and_the_next_one_what_it_wrote(
    client: Flow, at: Callable[[str], str]
) -> None:
    client.create_volume(1, "datasets")
    first = finished(
        client, f"echo hello > {at('data')}/file; pwd > {at('data')}/where", volumes={at("data"): "datasets"}
    )
    assert (first.status, first.reason) == ("completed", "")
    second = finished(client, f"cat {at('other/data')}/file", volumes={at("other/data"): "datasets"})
    assert second.logs() == "hello\n"
    assert not Path(at("data")).exists(), "what was made to mount on is gone, and nobody else ever saw the volume"


def test_an_absolute_path_that_is_not_on_this_machine_is_there_in_the_task(client: Flow) -> None:
    name = f"/flow-test-{os.getpid()}"
    task = finished(
        client, f"touch {name}/file && ls {name}", volumes=[{"size_gb": 1, "mount_path": name, "name": "v"}]
    )
    assert (task.logs(), task.status) == ("file\n", "completed")
    assert not Path(name).exists()


def test_a_volume_without_a_name_is_named_after_the_task_and_kept(client: Flow, at: Callable[[str], str]) -> None:
    volumes = [{"size_gb": 5, "mount_path": at("data")}]
    task = finished(client, f"echo kept > {at('data')}/file", name="train", volumes=volumes)
    assert task.plan.notes == (
        "makes the volume `train-data` of 5 GB at $0.00/month; it is kept: `flow volume delete train-data`",
    )
    (volume,) = client.volumes()
    assert (volume.name, volume.size_gb, (contents(volume) / "file").read_text()) == ("train-data", 5, "kept\n")
    again = finished(client, f"cat {at('data')}/file", name="train", volumes=volumes)
    assert (again.logs(), again.plan.notes) == (
        "kept\n",
        ("the volume `train-data` is there already, and is used again",),
    )


def test_tasks_that_were_given_no_name_do_not_share_a_volume_by_chance(client: Flow, at: Callable[[str], str]) -> None:
    for _ in range(2):
        finished(client, "true", volumes=[{"size_gb": 5, "mount_path": at("data")}])
    assert len(client.volumes()) == 2


def test_an_ephemeral_volume_goes_with_its_task(client: Flow, at: Callable[[str], str]) -> None:
    volumes = [{"size_gb": 1, "mount_path": at("scratch"), "ephemeral": True}]
    task = run(client, f"echo x > {at('scratch')}/file; test $FLOW_ATTEMPT = 2", retries=1, volumes=volumes, name="t")
    assert task.wait(timeout=60) == "completed"
    assert client.volumes() == []
    folder = Path(os.environ["FLOW_HOME"]) / "volumes"
    assert wait_until(lambda: [one.name for one in folder.iterdir()] == [".lock"])
    client.create_volume(1, "kept")
    with pytest.raises(ValidationError, match="the volume `kept` is there already, and `ephemeral` is for a new one"):
        run(client, "true", volumes=[{"name": "kept", "size_gb": 1, "mount_path": at("x"), "ephemeral": True}])


def test_tasks_of_one_name_have_an_ephemeral_volume_each(client: Flow, at: Callable[[str], str]) -> None:
    volumes = [{"size_gb": 1, "mount_path": at("scratch"), "ephemeral": True}]
    tasks = [run(client, "sleep 1000", volumes=volumes, name="t") for _ in range(2)]
    assert len(client.volumes()) == 2
    for task in tasks:
        cancelled(task)
    assert client.volumes() == []


def test_volume_sources_among_the_mounts_are_made_with_100_gb(client: Flow, at: Callable[[str], str]) -> None:
    task = finished(client, f"echo 1 > {at('out')}/one", mounts={at("out"): "volume://results"})
    assert task.status == "completed"
    (volume,) = client.volumes()
    assert (volume.name, volume.size_gb, (contents(volume) / "one").read_text()) == ("results", 100, "1\n")


def test_the_same_key_makes_no_second_volume_and_is_not_refused_its_own(client: Flow, at: Callable[[str], str]) -> None:
    fields: dict[str, Any] = {"volumes": [{"size_gb": 1, "mount_path": at("data")}], "idempotency_key": "k"}
    first = run(client, "sleep 1000", **fields)
    assert run(client, "sleep 1000", **fields) == first
    assert len(client.volumes()) == 1
    cancelled(first)


# -- who holds it


def test_a_block_volume_is_held_by_one_task_at_a_time(client: Flow, at: Callable[[str], str]) -> None:
    volume = client.create_volume(1, "disk")
    holder = running(client, "sleep 1000", volumes={at("disk"): "disk"})
    with pytest.raises(ValidationError, match=f"the block volume `disk` is held by `{holder.task_id}`") as refused:
        run(client, "true", volumes={at("disk"): "disk"})
    assert refused.value.suggestions[0] == f"start after it, with `depends_on: {holder.task_id}:ended`"
    assert client.get_volume("disk").used_by == (holder.task_id,)
    with pytest.raises(ValidationError, match=f"the volume `disk` is used by `{holder.task_id}`"):
        client.delete_volume("disk")
    after = run(client, f"test -w {at('disk')}", volumes={at("disk"): "disk"}, depends_on=f"{holder.task_id}:ended")
    cancelled(holder)
    assert after.wait(timeout=60) == "completed"
    assert client.get_volume("disk") == volume
    client.delete_volume("disk")
    assert client.volumes() == []


def test_a_task_that_waits_or_is_held_has_its_volume_too(client: Flow, at: Callable[[str], str]) -> None:
    client.create_volume(1, "disk")
    held = run(client, "true", hold=True, volumes={at("disk"): "disk"})
    with pytest.raises(ValidationError, match="is held by"):
        run(client, "true", volumes={at("disk"): "disk"})
    held.cancel()
    assert finished(client, "true", volumes={at("disk"): "disk"}).status == "completed"


def test_a_file_volume_is_shared(client: Flow, at: Callable[[str], str]) -> None:
    client.create_volume(1, "shared", interface="file")
    first = running(client, "sleep 1000", volumes={at("s"): "shared"})
    assert finished(client, f"echo two > {at('s')}/two", volumes={at("s"): "shared"}).status == "completed"
    assert first.shell(["test", "-s", f"{at('s')}/two"]) == 0
    cancelled(first)


def test_several_nodes_or_elements_share_a_file_volume_and_are_refused_a_block_one(
    client: Flow, at: Callable[[str], str]
) -> None:
    client.create_volume(1, "disk")
    for fields, whose in (({"num_instances": 2}, "2 nodes"), ({"array": "1-3"}, "several tasks of an array")):
        with pytest.raises(ValidationError, match=f"the block volume `disk` cannot be mounted by {whose}"):
            run(client, "true", volumes={at("x"): "disk"}, **fields)
    assert finished(client, "true", volumes={at("x"): "disk"}, array="1-3%1").status == "completed"
    mounts = {at("out"): "volume://shared"}
    both = finished(client, f"echo $FLOW_NODE_RANK > {at('out')}/$FLOW_NODE_RANK", mounts=mounts, num_instances=2)
    assert both.status == "completed"
    assert sorted(one.name for one in contents(client.get_volume("shared")).iterdir()) == ["0", "1"]


def test_a_task_that_was_killed_holds_its_volume_no_more(client: Flow, at: Callable[[str], str]) -> None:
    client.create_volume(1, "disk")
    task = finished(client, "kill -9 $PPID; sleep 1000", volumes={at("disk"): "disk"})  # its runner
    assert task.status == "lost"
    assert client.get_volume("disk").used_by == ()


# -- places that cannot be


@pytest.mark.parametrize(
    "path",
    ["/", "//", "/.", "/proc/x", "/dev/shm", "/sys", "/usr", "/etc", "data", "/data/../x", "/a:b", "/workspace/"],
)
def test_a_place_where_nothing_may_be_mounted_is_refused(client: Flow, path: str) -> None:
    client.create_volume(1, "there")
    wrong = [{"volumes": [{"size_gb": 1, "mount_path": path}]}, {"volumes": {path: "there"}}]
    for fields in (*wrong, {"mounts": {path: "volume://v"}}):
        with pytest.raises(ValidationError, match="is no place to mount at"):
            run(client, "true", **fields)
    assert [one.name for one in client.volumes()] == ["there"]


def test_nothing_is_mounted_over_flows_own_folder(client: Flow) -> None:
    home = Path(os.environ["FLOW_HOME"])
    for path in (home, home.parent, home / "record"):
        with pytest.raises(ValidationError, match="would hide Flow's own folder"):
            run(client, "true", volumes=[{"size_gb": 1, "mount_path": str(path)}])


def test_a_volume_within_a_volume_is_seen_there_and_two_at_one_place_are_refused(
    client: Flow, at: Callable[[str], str]
) -> None:
    inner, outer = at("data/cache"), at("data")
    task = finished(client, f"touch {inner}/i {outer}/o", mounts={inner: "volume://inner", outer: "volume://outer"})
    assert task.status == "completed"
    assert [one.name for one in contents(client.get_volume("inner")).iterdir()] == ["i"]
    with pytest.raises(ValidationError, match="two things are mounted at"):
        run(client, "true", volumes={outer: "outer"}, mounts={outer: "volume://inner"})


def test_no_link_leads_a_mount_over_flows_own_folder(client: Flow, tmp_path: Path) -> None:
    for folder in (os.environ["FLOW_HOME"], "/"):
        link = tmp_path / "link"
        link.symlink_to(folder)
        with pytest.raises(ValidationError, match=f"`{link}` would hide Flow's own folder"):
            run(client, "true", volumes=[{"size_gb": 1, "mount_path": str(link)}])
        link.unlink()
    folder = tmp_path / "made-later"
    task = client.run("true", volumes=[{"size_gb": 1, "mount_path": str(folder)}], hold=True)
    folder.symlink_to("/")
    task.resume()
    assert task.wait(timeout=60) == "failed"
    assert task.reason == f"a mount at `{folder}` would hide the task's own folder"


def test_a_damaged_volume_is_named_with_what_to_write(client: Flow) -> None:
    volume = client.create_volume(1, "disk")
    (contents(volume) / "file").touch()
    file = contents(volume).with_name("volume.json")
    file.write_text("{")
    with pytest.raises(StorageError, match=f"the volume file `{file}` cannot be read") as refused:
        client.volumes()
    file.write_text(refused.value.suggestions[0].split("`")[1].replace("NAME", "disk"))
    assert client.get_volume("disk").volume_id == volume.volume_id


def test_a_volume_within_the_workspace_is_seen_by_either_path(client: Flow, tmp_path: Path) -> None:
    there = Path("/workspace")
    require("free /workspace", "a task's project is seen there", found=not there.exists() or not any(there.iterdir()))
    volume = client.create_volume(1, "disk")
    (tmp_path / "code.txt").write_text("code\n")
    command = "echo 1 > /workspace/data/one; echo 2 > data/two; cat /workspace/code.txt; touch /workspace/mine; ls"
    task = client.run(command, volumes={"/workspace/data": "disk"})
    assert task.wait(timeout=60) == "completed"
    assert task.logs().split() == ["code", "code.txt", "data", "mine"]
    assert sorted(one.name for one in contents(volume).iterdir()) == ["one", "two"]
    assert not Path("/workspace/mine").exists()


def test_a_place_that_is_a_file_ends_the_task_before_its_command(client: Flow, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    task = finished(client, "echo ran", volumes=[{"size_gb": 1, "mount_path": str(tmp_path / "file")}])
    assert (task.status, task.logs()) == ("failed", "")
    assert task.reason == f"nothing can be mounted at `{tmp_path}/file`: file exists"


def test_docker_s_own_folder_is_never_hidden_on_this_machine(client: Flow) -> None:
    client.create_volume(1, "docker-cache")
    task = finished(client, "ls /var/lib/docker 2>/dev/null; true", volumes={"/var/lib/docker": "docker-cache"})
    assert task.status == "completed"
    assert "`/var/lib/docker` is the machine's own" in task.plan.notes[0]
    assert task.plan.mounts == ()


# -- one more, while it runs


def test_a_running_task_is_given_a_volume_without_a_restart(client: Flow) -> None:
    name = f"late-{os.getpid()}"
    client.create_volume(1, name)
    task = running(client, f"while ! test -e /mnt/{name}/go; do sleep 0.02; done; echo found > /mnt/{name}/answer")
    before = task.shell(["sh", "-c", "ls /mnt > mnt-before"])
    assert flow.mount_volume(name, task.task_id) == f"/mnt/{name}"
    assert flow.mount_volume(name, task) == f"/mnt/{name}", "twice is once"
    client.create_volume(1, "second")
    assert flow.mount_volume("second", task) == "/mnt/second"
    assert task.shell(["sh", "-c", f"ls /mnt | grep -vx -e {name} -e second | cmp - mnt-before"]) == before == 0
    (contents(client.get_volume(name)) / "go").touch()
    assert task.wait(timeout=60) == "completed"
    assert (contents(client.get_volume(name)) / "answer").read_text() == "found\n"
    assert task.attempts[-1].number == 1
    assert not Path("/mnt", name).exists()


def test_a_volume_that_is_mounted_late_covers_what_the_machine_has_of_its_name(client: Flow) -> None:
    names = [f"late-{number}-{os.getpid()}" for number in range(2)]
    task = running(client, "sleep 1000")
    for name in names:
        Path("/mnt", name).mkdir()
    try:
        for name in names:
            client.create_volume(1, name)
            flow.mount_volume(name, task)
            assert task.shell(["touch", f"/mnt/{name}/file"]) == 0
            assert (contents(client.get_volume(name)) / "file").exists()
    finally:
        cancelled(task)
        for name in names:
            Path("/mnt", name).rmdir()  # empty


def test_a_volume_is_mounted_only_where_a_task_runs_and_may_have_it(client: Flow, at: Callable[[str], str]) -> None:
    client.create_volume(1, "disk")
    ended = finished(client, "true")
    with pytest.raises(ValidationError, match=f"`{ended.task_id}` is completed, not running"):
        flow.mount_volume("disk", ended.task_id)
    holder = running(client, "sleep 1000", volumes={at("disk"): "disk"})
    other = running(client, "sleep 1000")
    with pytest.raises(ValidationError, match=f"the block volume `disk` is held by `{holder.task_id}`"):
        flow.mount_volume("disk", other)
    with pytest.raises(ResourceNotFoundError, match="there is no volume `nothing`"):
        flow.mount_volume("nothing", other)
    cancelled(holder)
    cancelled(other)


def test_a_task_that_ends_meanwhile_is_not_taken_for_the_machine_that_its_runner_is_back_on(client: Flow) -> None:
    volume = client.create_volume(1, "late")
    task = finished(client, "true")
    folder = Path(os.environ["FLOW_HOME"], "record", task.task_id, "1", "0")
    told = json.loads((folder / "status.json").read_text())
    for phase in ("ended", "running"):  # running: its runner was killed, say, and the process is another one
        (folder / "status.json").write_text(json.dumps({**told, "phase": phase}))
        add = [sys.executable, mounts.__file__, "add", str(folder), str(contents(volume)), "late"]
        added = subprocess.run(add, capture_output=True, text=True)
        assert (added.returncode, added.stderr) == (1, "it has ended\n")
        enter = [sys.executable, tail.__file__, "enter", str(folder), "--", "true"]
        entered = subprocess.run(enter, capture_output=True, text=True)
        assert (entered.returncode, entered.stderr) == (1, "the task has ended\n")
    assert "/mnt/late " not in Path("/proc/self/mountinfo").read_text()


def test_an_element_of_an_array_holds_a_block_volume_for_itself(client: Flow) -> None:
    name = f"late-{os.getpid()}"
    volume = client.create_volume(1, name)
    array = run(client, "sleep 1000", array="1-2")
    first, second = (client.get_task(f"{array}_{index}") for index in (1, 2))
    assert wait_until(lambda: {first.refresh().status, second.refresh().status} == {"running"}, seconds=30)
    with pytest.raises(ValidationError, match="is an array: a volume is for one of its elements") as refused:
        flow.mount_volume(name, array)
    assert refused.value.suggestions == (f"name an element: `flow mount {name} {array}_1`",)
    assert flow.mount_volume(name, first) == flow.mount_volume(name, first) == f"/mnt/{name}"
    with pytest.raises(ValidationError, match=f"the block volume `{name}` is held by `{first}`"):
        flow.mount_volume(name, second)
    with pytest.raises(ValidationError, match=f"the volume `{name}` is used by `{first}`"):
        client.delete_volume(volume.volume_id)
    cancelled(first)
    assert flow.mount_volume(name, second) == f"/mnt/{name}"
    cancelled(array)
    assert client.get_volume(name).used_by == ()


def test_a_container_sees_its_volumes_and_takes_another_one(client: Flow, containers: str, tmp_path: Path) -> None:
    client.create_volume(1, "in-image")
    client.create_volume(1, "late")
    command = "echo hello > /data/file; until test -e /mnt/late/go; do sleep 0.05; done; echo yes > /mnt/late/seen"
    task = running(client, command, image=containers, volumes={"/data": "in-image"})
    assert flow.mount_volume("late", task) == flow.mount_volume("late", task) == "/mnt/late"
    (contents(client.get_volume("late")) / "go").touch()
    assert (task.wait(timeout=60), task.logs()) == ("completed", "")
    assert (contents(client.get_volume("in-image")) / "file").read_text() == "hello\n"
    assert (contents(client.get_volume("late")) / "seen").read_text() == "yes\n"


def test_a_container_that_ends_meanwhile_is_not_waited_for(client: Flow, containers: str) -> None:
    volume = client.create_volume(1, "late")
    task = finished(client, "true", image=containers)
    folder = Path(os.environ["FLOW_HOME"], "record", task.task_id, "1", "0")
    add = [sys.executable, mounts.__file__, "add", str(folder), str(contents(volume)), "late"]
    added = subprocess.run(add, capture_output=True, text=True, timeout=20)
    assert (added.returncode, added.stderr) == (1, "it has ended\n")


# -- on the command line


def command(*words: str) -> tuple[int, str, str]:
    ended = subprocess.run([sys.executable, "-m", "flow", *words], capture_output=True, text=True)
    return ended.returncode, ended.stdout, ended.stderr


def test_volumes_are_made_listed_and_removed_by_commands(client: Flow) -> None:
    code, made, hint = command("volume", "create", "datasets", "--size-gb", "100")
    (volume,) = client.volumes()
    assert (code, made) == (0, f"{volume.volume_id}  datasets  100 GB  block\n")
    assert hint == "hint: have a task see it at /data: `volumes: {/data: datasets}`\n"
    header, line = command("volume", "list")[1].splitlines()
    assert header == "VOLUME            NAME        SIZE  INTERFACE  REGION  $/MONTH  AGE  USED BY"
    assert re.fullmatch(rf"{volume.volume_id}  datasets  100 GB  block      -             -  [ \d]\ds  -", line), line
    shown = command("volume", "info", ":1")[1]
    assert f"folder     {contents(volume)}\n" in shown
    assert json.loads(command("volume", "list", "--json")[1])["volumes"][0]["name"] == "datasets"
    code, _, told = command("volume", "delete", "datasets")
    assert (code, "say so with `--yes`" in told) == (3, True)
    assert command("volume", "delete", ":1", "--yes")[:2] == (0, f"{volume.volume_id}  datasets  deleted\n")
    assert command("volume", "list")[1] == "No volumes found\n"
    assert command("volume", "info", ":1")[0] == 4


def test_mount_takes_names_ids_and_lines_of_the_last_lists(client: Flow) -> None:
    name = f"late-{os.getpid()}"
    volume = client.create_volume(1, name)
    task = running(client, "sleep 1000", name="train")
    command("volume", "list")
    command("status")
    for words in ((name, "train"), (volume.volume_id, task.task_id), (":1", ":1")):
        assert command("mount", *words)[:2] == (0, f"{task.task_id}  /mnt/{name}\n")
    assert task.shell(["touch", f"/mnt/{name}/file"]) == 0
    assert (contents(volume) / "file").exists()
    cancelled(task)
    code, _, told = command("mount", name, "nothing")
    assert (code, told.splitlines()[0]) == (4, "error: there is no task `nothing`")


def test_a_task_is_given_mounts_on_the_command_line(client: Flow, at: Callable[[str], str]) -> None:
    code, out, told = command("run", f"echo 1 > {at('out')}/one", "--mount", f"{at('out')}=volume://results", "--watch")
    assert (code, out) == (0, ""), told
    assert (contents(client.get_volume("results")) / "one").read_text() == "1\n"
    assert "error: `--mount /x` has no source" in command("run", "true", "--mount", "/x")[2]
    assert "is not allowed" in command("run", "true", "--mount", "ftp://x")[2]
    both = ["--mount", "/x=volume://a", "--mount", "/x=volume://b"]
    assert "error: two things are to be mounted at `/x`" in command("run", "true", *both)[2]


@pytest.mark.parametrize(
    ("task", "target", "name"),
    [
        ("train", "/data", "train-data"),
        ("Train_v2", "/mnt/my.data", "train-v2-my-data"),
        ("8bit", "/x", "volume-8bit-x"),
    ],
)
def test_a_volume_that_is_not_named_has_a_name_that_every_provider_takes(
    project: Path, task: str, target: str, name: str
) -> None:
    plan = Flow().plan(Flow().load("true", name=task, volumes=[{"mount_path": target, "size_gb": 1}]))
    assert [one.name for one in plan.mounts] == [name]
