"""Files to and from a task: on this machine while it runs and when it has ended."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

import flow as flow_module
from flow import Task
from flow.errors import FlowError, ResourceNotFoundError, ValidationError
from tests.support.commands import flow
from tests.support.processes import wait_until


def running(command: str = "sleep 300", **fields: object) -> Task:
    task = flow_module.run(command, **fields)  # type: ignore[arg-type]
    assert wait_until(lambda: task.refresh().status == "running", seconds=30), task.reason
    return task


def with_sub() -> Task:
    """One with a folder `sub`."""
    task = running("mkdir sub; exec sleep 300")
    assert wait_until(lambda: task.shell("test -d sub") == 0)
    return task


def end(task: Task) -> None:
    task.cancel()
    assert task.wait(60).is_final


def tree(folder: Path) -> dict[str, str]:
    """What is in a folder: mode and content of files, targets of links."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = stat.filemode(path.lstat().st_mode)
        name = str(path.relative_to(folder))
        found[name] = (
            f"-> {path.readlink()}" if path.is_symlink() else mode + (path.read_text() if path.is_file() else "")
        )
    return found


def make_tree(folder: Path) -> dict[str, str]:
    (folder / "a b" / "-deep").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "a b" / "-deep" / "new\nline").write_text("one")
    (folder / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (folder / "run.sh").chmod(0o755)
    (folder / ".hidden").write_text("two")
    (folder / "link").symlink_to("run.sh")
    (folder / "nowhere").symlink_to("/not/there")
    return tree(folder)


def test_a_folder_goes_there_and_back_as_it_is(project: Path, tmp_path: Path) -> None:
    whole = make_tree(tmp_path / "from here")
    task = running()
    task.copy_to(tmp_path / "from here")
    assert task.shell("test -x 'from here/run.sh' && 'from here/link'", capture=True).stdout == "ran\n"
    assert task.copy_from("from here", tmp_path / "back") == tmp_path / "back"
    assert tree(tmp_path / "back") == whole
    (tmp_path / "into").mkdir(mode=0o700)
    assert task.copy_from("/workspace/from here", f"{tmp_path}/into") == tmp_path / "into" / "from here"
    assert tree(tmp_path / "into" / "from here") == whole
    assert task.copy_from("from here/.", tmp_path / "into") == tmp_path / "into"
    assert tree(tmp_path / "into") == {
        **whole,
        **{f"from here/{k}": v for k, v in whole.items()},
        "from here": "drwxr-xr-x",
    }
    assert stat.S_IMODE((tmp_path / "into").stat().st_mode) == 0o700
    task.copy_to(f"{tmp_path}/from here/.", "other")
    assert tree(task.copy_from("other", tmp_path / "other")) == whole
    end(task)


def test_a_file_is_named_as_asked_and_replaces_what_is_there(project: Path, tmp_path: Path) -> None:
    task = with_sub()
    (tmp_path / "-x y.sh").write_text("echo old")
    (tmp_path / "-x y.sh").chmod(0o755)
    (tmp_path / "link").symlink_to("-x y.sh")
    for path in ("", "sub", "sub/named", "sub/named"):
        task.copy_to(tmp_path / "link", path)
    task.copy_to(tmp_path / "-x y.sh", "./")
    assert task.shell("ls -A . sub; sh ./'-x y.sh'; test -x sub/named && test ! -h link", capture=True).stdout == (
        ".:\n-x y.sh\nlink\nsub\n\nsub:\nlink\nnamed\nold\n"
    )
    (project / "named").write_text("older")
    assert task.copy_from("sub/named") == Path("named")
    assert ((project / "named").read_text(), os.access("named", os.X_OK)) == ("echo old", True)
    assert task.copy_from("sub/named", "else") == Path("else")
    assert sorted(path.name for path in project.iterdir()) == ["else", "named"]
    end(task)


def test_what_a_task_left_is_there_when_it_has_ended(project: Path, tmp_path: Path) -> None:
    task = running("echo kept > $FLOW_OUTPUT/model; echo w > w; exec sleep 300")
    assert wait_until(lambda: task.shell("test -s w") == 0)
    assert task.copy_from("output/model", tmp_path / "m").read_text() == "kept\n"
    end(task)
    assert task.copy_from("output/model", tmp_path / "after").read_text() == "kept\n"
    assert tree(task.copy_from("output", tmp_path / "all")) == {"model": "-rw-r--r--kept\n"}
    assert task.copy_from("w").read_text() == "w\n"
    with pytest.raises(ValidationError, match="has ended: of its files those are left"):
        task.copy_from("/etc/passwd")
    with pytest.raises(ValidationError, match="has ended: nothing can be copied to it"):
        task.copy_to("w")


def test_each_node_has_its_own_files(project: Path) -> None:
    task = running(
        "echo $FLOW_NODE_RANK > $FLOW_OUTPUT/rank; echo $FLOW_NODE_RANK > rank; exec sleep 300", num_instances=2
    )
    assert wait_until(lambda: task.shell("test -s rank", node=1) == 0)
    assert task.copy_from("rank", "r", node=1).read_text() == "1\n"
    with pytest.raises(ValidationError, match="has no node `2`"):
        task.copy_from("rank", node=2)
    end(task)
    assert task.copy_from("output/rank", node=1).read_text() == "1\n"
    with pytest.raises(ValidationError, match="has no node `2`"):
        task.copy_from("rank", node=2)


def test_a_file_that_is_written_to_meanwhile_is_copied(project: Path) -> None:
    task = running("while :; do echo line; done > grows & sleep 300")
    assert wait_until(lambda: task.shell("test $(wc -c < grows) -gt 100000") == 0)
    assert set(task.copy_from("grows").read_text().splitlines()[:-1]) == {"line"}
    assert "grows" in tree(task.copy_from(".", "all"))
    end(task)


def test_what_cannot_be_copied_is_told_and_nothing_is_left(project: Path, tmp_path: Path) -> None:
    (project / "here").write_text("here")
    task = with_sub()
    told: list[tuple[type[FlowError], str, object]] = [
        (ResourceNotFoundError, "has no `missing`", lambda: task.copy_from("missing")),
        (ResourceNotFoundError, "there is no folder `no/such` here", lambda: task.copy_from("here", "no/such/file")),
        (ResourceNotFoundError, "there is no folder `no/` here", lambda: task.copy_from("here", "no/")),
        (ValidationError, "`here` is a file, and a copy", lambda: task.copy_from("sub", "here")),
        (ResourceNotFoundError, "there is no `gone` here", lambda: task.copy_to("gone")),
        (FlowError, "`no/such` of `.*` cannot be copied: .*No such file", lambda: task.copy_to("here", "no/such")),
        (
            FlowError,
            "`here` of `.*` cannot be copied: .*File exists",
            lambda: task.copy_to(tmp_path / "folder", "here"),
        ),
    ]
    (tmp_path / "folder").mkdir()
    for kind, message, use in told:
        with pytest.raises(kind, match=message):
            use()  # type: ignore[operator]
    assert task.shell("ls -A", capture=True).stdout == "here\nsub\n"
    assert [path.name for path in project.iterdir()] == ["here"]
    end(task)


def test_the_command_tells_a_task_from_a_file(project: Path) -> None:
    (project / "new.txt").write_text("new")
    task = running(name="train")
    ended = flow("cp", "new.txt", "train:copy.txt")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "`new.txt` is copied to `train:copy.txt`\n")
    assert flow("cp", "@last:copy.txt", "./a:b").stderr == "`a:b` is here now\n"
    assert (project / "a:b").read_text() == "new"
    flow("status")
    assert flow("cp", ":1:copy.txt", "c").returncode == 0
    printed = flow("cp", "train:copy.txt", "-")
    assert (printed.returncode, printed.stdout, printed.stderr) == (0, Path("c").read_text(), "")
    assert "error: a folder cannot be written to the standard output" in flow("cp", "train:", "-").stderr
    assert not Path("-").exists()
    for words, code, message in [
        (("a", "b"), 2, "neither is of a task"),
        (("train:a", "train:b"), 2, "both are of a task"),
        (("train:a", "."), 4, f"`{task}` has no `a`"),
        (("nobody:a", "."), 4, "nobody"),
    ]:
        ended = flow("cp", *words)
        assert (ended.returncode, bool(re.search(message, ended.stderr))) == (code, True), ended.stderr
    end(task)


def test_a_script_that_runs_in_place_has_its_folder(project: Path) -> None:
    (project / "job.slurm").write_text("#!/bin/sh\necho kept > $FLOW_OUTPUT/o; echo in > file; exec sleep 300\n")
    task = running("job.slurm")
    assert wait_until(lambda: task.shell("test -s file") == 0)
    assert task.copy_from("file", "copy").read_text() == "in\n"
    assert task.copy_from("output/o").read_text() == "kept\n"
    with pytest.raises(ValidationError, match="runs in the folder it was submitted from"):
        task.upload_code()
    end(task)


def test_files_of_a_container_are_copied_in_it(project: Path, containers: str) -> None:
    task = running("echo out > $FLOW_OUTPUT/o; echo in > /tmp/inside; exec sleep 300", image=containers)
    assert wait_until(lambda: task.shell("test -s /tmp/inside", capture=True).returncode == 0, seconds=60)
    assert task.copy_from("/tmp/inside").read_text() == "in\n"
    whole = make_tree(project / "folder")
    task.copy_to("folder", "/tmp/folder")
    task.copy_to("inside", "/workspace/file")
    assert tree(task.copy_from("/tmp/folder", "back")) == whole
    assert task.shell("cat /workspace/file", capture=True).stdout == "in\n"
    assert task.copy_from("output/o").read_text() == "out\n"
    with pytest.raises(ResourceNotFoundError):
        task.copy_from("/not/there")
    end(task)
