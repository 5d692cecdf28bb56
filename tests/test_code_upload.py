"""A project that changes while its task runs."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flow.calling import submit
from flow.calls import encode_arguments, target_in
from flow.code_upload import Upload
from flow.errors import FlowError, ValidationError
from flow.node import sync
from tests.support.commands import flow
from tests.support.processes import wait_until
from tests.support.pythons import old_pythons
from tests.test_transfer import end, running, tree


def write(project: Path, **files: str) -> None:
    for name, content in files.items():
        (project / name).write_text(content)


def test_what_changed_travels_and_what_is_gone_is_removed(project: Path, tmp_path: Path) -> None:
    (project / "lib" / "deep").mkdir(parents=True)
    write(project, stays="1", changes="1", goes="1", edited="1", run="echo old", ignored="x")
    (project / "lib/deep/only").write_text("1")
    (project / "link").symlink_to("stays")
    (project / ".flowignore").write_text("ignored\n")
    task = running(
        "echo own > own; echo more >> stays; echo more >> edited; mkdir lib/mine; touch ready; exec sleep 300"
    )
    assert wait_until(lambda: task.shell("test -e ready") == 0)
    assert task.upload_code() == Upload((), (), ())
    write(project, changes="2", new="new\n")
    (project / "run").chmod(0o755)
    for gone in ("goes", "edited", "lib/deep/only", "link"):
        (project / gone).unlink()
    (project / "lib/deep").rmdir()
    (project / "link").symlink_to("new")
    done = task.upload_code(project)
    assert done == Upload(("changes", "link", "new", "run"), ("goes", "lib/deep/only"), ("edited",))
    there = task.copy_from(".", tmp_path / "there")
    assert tree(there) == {
        ".flowignore": "-rw-r--r--ignored\n", "changes": "-rw-r--r--2", "edited": "-rw-r--r--1more\n",
        "lib": "drwxr-xr-x", "lib/mine": "drwxr-xr-x", "link": "-> new", "new": "-rw-r--r--new\n",
        "own": "-rw-r--r--own\n", "ready": "-rw-r--r--", "run": "-rwxr-xr-xecho old", "stays": "-rw-r--r--1more\n",
    }  # fmt: skip
    assert task.upload_code() == Upload((), (), ())
    end(task)
    with pytest.raises(ValidationError, match="is cancelled: an upload needs a running task"):
        task.upload_code()


def test_a_file_becomes_a_folder_and_a_link_a_file(project: Path, tmp_path: Path) -> None:
    write(project, thing="1")
    (project / "link").symlink_to("thing")
    (project / "folder").mkdir()
    (project / "folder/file").write_text("1")
    task = running()
    (project / "thing").unlink()
    (project / "thing").mkdir()
    (project / "thing/file").write_text("2")
    (project / "link").unlink()
    write(project, link="3")
    (project / "folder/file").unlink()
    (project / "folder").rmdir()
    write(project, folder="4")
    done = task.upload_code()
    assert done == Upload(("folder", "link", "thing/file"), ("folder/file", "thing"), ())
    assert tree(task.copy_from(".", tmp_path / "there")) == tree(project)
    assert task.shell("rm folder && mkdir -p folder/mine") == 0
    write(project, folder="5")
    with pytest.raises(FlowError, match=r"the upload is not whole: .*Is a directory"):
        task.upload_code()
    assert task.shell("test -d folder/mine && test ! -e folder.flow-upload") == 0
    end(task)


def test_a_task_without_code_is_given_a_project_and_another_one_after_it(project: Path, tmp_path: Path) -> None:
    task = running(upload_code=False, num_instances=2, name="box")
    write(project, a="1", same="1")
    task.copy_to("same")
    assert task.upload_code() == Upload(("a",), (), ())
    (project / "same").unlink()
    other = tmp_path / "other"
    other.mkdir()
    write(other, b="1")
    ended = flow("upload-code", "box", "--all-nodes", "--source", str(other))
    assert (ended.returncode, ended.stdout) == (
        0,
        "[0] updated  b\n[0] removed  a\n[0] removed  same\n[1] updated  b\n",
    ), ended.stderr
    assert ended.stderr == f"[0] `{task}` has {other} as it is now\n[1] `{task}` has {other} as it is now\n"
    assert flow("upload-code", "box", "--node", "1").stdout == "updated  a\nremoved  b\n"
    assert flow("upload-code", "box", "--node", "1", "--all-nodes").returncode == 2
    end(task)


def test_what_a_function_is_called_by_stays(project: Path) -> None:
    (project / "app.py").write_text("import time\ndef f(): time.sleep(300)\n")
    task = submit(target_in("app.py", "f"), encode_arguments([], {}), {"name": "call"})
    assert wait_until(lambda: task.refresh().status == "running")
    (project / ".flow").mkdir()
    (project / ".flow/config.yaml").write_text("name: mine\n")
    write(project, more="1")
    assert task.upload_code() == Upload((".flow/config.yaml", "more"), (), ())
    assert task.shell("test -e .flow/call/call.json") == 0
    end(task)


def test_a_home_is_not_uploaded(project: Path) -> None:
    task = running()
    with pytest.raises(ValidationError, match="is not a project"):
        task.upload_code(Path.home())
    end(task)


@pytest.mark.parametrize("python", [sys.executable, *old_pythons()])
def test_an_upload_that_is_cut_off_leaves_what_was_there(tmp_path: Path, python: str) -> None:
    (tmp_path / "workspace").mkdir()
    (tmp_path / "workspace/file").write_text("old")
    request = b'{"manifest": {"files": [["file", 420, "0", 9]], "links": [], "dirs": []}, "was": {"file": null}}\n'
    for given, code in ((request + b"half", 1), (request + b"the whole", 0)):
        ended = subprocess.run([python, sync.__file__, tmp_path], input=given, capture_output=True)
        assert ended.returncode == code, ended.stderr
        assert (tmp_path / "workspace/file").read_text() == ("old" if code else "the whole")
        assert [one.name for one in (tmp_path / "workspace").iterdir()] == ["file"]


def test_a_difference_to_what_is_not_there_any_more_is_answered_by_the_whole(tmp_path: Path) -> None:
    def entry(name: str) -> list[object]:
        return [0o644, hashlib.sha256(name.encode()).hexdigest(), 1]

    def answers(*requests: object) -> list[object]:
        given = "".join(json.dumps(one) + "\n" for one in requests[:-1]) + str(requests[-1])
        argv = [sys.executable, sync.__file__, tmp_path]
        ended = subprocess.run(argv, input=given, capture_output=True, text=True, check=True)
        return [json.loads(line) for line in ended.stdout.splitlines()]

    (tmp_path / "workspace").mkdir()
    whole = {"manifest": {"files": [["a", *entry("a")]], "links": [], "dirs": []}, "was": {"a": None}}
    change = {
        "base": sync.digest_of({"a": entry("a")}),
        "changed": {"a": None, "b": entry("b"), "c": "b"},
        "dirs": ["d"],
    }
    assert answers(change, whole, "a") == [None, ["a"], {"updated": ["a"], "removed": [], "kept": []}]
    assert answers(change, "b") == [["b"], {"updated": ["b", "c"], "removed": ["a"], "kept": []}]
    assert {path.name for path in (tmp_path / "workspace").iterdir()} == {"b", "c", "d"}
    assert (
        sync.digest_of({"b": entry("b"), "c": "b"}) == hashlib.sha256((tmp_path / sync.STATE).read_bytes()).hexdigest()
    )


def test_a_project_that_is_put_back_after_an_upload_was_cut_off_is_there_whole(tmp_path: Path) -> None:
    old = {"first": "1", "goes": "1", "same": "1"}
    new = {"added": "22", "first": "22", "last": "22", "same": "1"}
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    assert upload(tmp_path, old, link="first") == {"updated": ["first", "goes", "link", "same"], **NONE}
    (workspace / "same").write_text("the task's own")
    for come in (0, 3, 3):  # bytes, until it was cut off
        assert upload(tmp_path, new, link="last", come=come) is None
    done = upload(tmp_path, old, link="first")
    assert done == {"updated": ["first", "goes", "link"], **NONE, "removed": ["added", "last"]}
    assert {path.name: path.read_text() for path in workspace.iterdir()} == {
        **old,
        "same": "the task's own",
        "link": "1",
    }
    assert not (tmp_path / sync.BEGUN).exists()
    assert upload(tmp_path, old, link="first") == {"updated": [], **NONE}


NONE = {"removed": [], "kept": []}


def upload(folder: Path, files: dict[str, str], *, link: str, come: int | None = None) -> Any:
    """What it said in the end; None where it was cut off after so many bytes."""
    entries = [[name, 0o644, hashlib.sha256(text.encode()).hexdigest(), len(text)] for name, text in files.items()]
    request = {
        "manifest": {"files": entries, "links": [["link", link]], "dirs": []},
        "was": dict.fromkeys([*files, "link"]),
    }
    pipe = subprocess.PIPE
    argv = [sys.executable, sync.__file__, folder]
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        lacked = "".join(files[name] for name in json.loads(process.stdout.readline()))
        process.stdin.write(lacked[:come])
        process.stdin.close()
        said = process.stdout.readline()
    return json.loads(said) if said else None
