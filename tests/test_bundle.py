"""A project folder becomes a bundle: what is taken, what is left out, and what a disk or a user may do meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flow import blobs, tree
from flow.blobs import blob_path, collect_garbage, manifest_path, store_lock
from flow.bundle import Bundle, check_upload_limit, compressed_megabytes, make_bundle, read_manifest
from flow.errors import StorageError, ValidationError
from tests.support.hardship import run_as_nobody, small_disk
from tests.test_ignore import NAMES, PATTERNS, quiet_git

MAKE = "from flow.bundle import make_bundle\nfrom pathlib import Path\n"  # for a process of its own


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_a_project_is_taken_whole(project: Path, store: Path) -> None:
    write(project, {"train.py": "print(1)", "src/model/net.py": "x", "data/é.txt": "y", "run.sh": "#!/bin/sh"})
    (project / "run.sh").chmod(0o755)
    (project / "secret").write_text("s")
    (project / "secret").chmod(0o600)
    (project / "logs").mkdir()
    (project / "latest").symlink_to("src/model")
    bundle = make_bundle(project, store)
    assert (bundle.files, bundle.bytes, bundle.notes) == (5, 20, ())
    assert read_manifest(store, bundle.id) == {
        "v": 1,
        "files": [
            ["data/é.txt", 0o644, sha("y"), 1],
            ["run.sh", 0o755, sha("#!/bin/sh"), 9],
            ["secret", 0o600, sha("s"), 1],
            ["src/model/net.py", 0o644, sha("x"), 1],
            ["train.py", 0o644, sha("print(1)"), 8],
        ],
        "links": [["latest", "src/model"]],
        "dirs": ["logs"],
    }
    for path, _, digest, _ in read_manifest(store, bundle.id)["files"]:
        assert blob_path(store, digest).read_bytes() == (project / path).read_bytes()
    assert {stat.S_IMODE(path.stat().st_mode) for path in store.rglob("*") if path.is_file()} == {0o600}


def test_the_same_content_has_the_same_id_wherever_it_lies(project: Path, store: Path, tmp_path: Path) -> None:
    write(project, {"a.py": "1", "b/c.py": "2"})
    copy = tmp_path / "copy"
    shutil.copytree(project, copy)
    assert make_bundle(copy, store).id == make_bundle(project, store).id


def test_an_empty_project_is_a_bundle(project: Path, store: Path) -> None:
    bundle = make_bundle(project, store)
    assert read_manifest(store, bundle.id) == {"v": 1, "files": [], "links": [], "dirs": []}
    assert make_bundle(project, store) == bundle


def test_a_root_that_is_a_link_is_the_folder_it_points_to(project: Path, store: Path, tmp_path: Path) -> None:
    write(project, {"a.py": "1"})
    (tmp_path / "link").symlink_to(project)
    assert make_bundle(tmp_path / "link", store).id == make_bundle(project, store).id


@pytest.mark.parametrize(
    ("ignore_files", "taken"),
    [
        ({}, ["a.log", "a.py", "data/x.bin", "data/keep.txt", "src/b.log"]),
        ({".gitignore": "*.log\n"}, ["a.py", "data/x.bin", "data/keep.txt"]),
        ({".gitignore": "*.log\n", "src/.gitignore": "!b.log\n"}, ["a.py", "data/x.bin", "data/keep.txt", "src/b.log"]),
        ({".gitignore": "data/*\n!data/keep.txt\n"}, ["a.log", "a.py", "data/keep.txt", "src/b.log"]),
        ({".gitignore": "data\n!data/keep.txt\n", "data/.gitignore": "!*\n"}, ["a.log", "a.py", "src/b.log"]),
        ({".flowignore": "data/\n", ".gitignore": "*.log\n"}, ["a.log", "a.py", "src/b.log"]),
        ({".flowignore": "", "src/.gitignore": "*"}, ["a.log", "a.py", "data/x.bin", "data/keep.txt", "src/b.log"]),
        ({".flowignore": "", "src/.flowignore": "*"}, ["a.log", "a.py", "data/x.bin", "data/keep.txt"]),
        ({"src/.flowignore": "*"}, ["a.log", "a.py", "data/x.bin", "data/keep.txt", "src/b.log"]),
    ],
)
def test_the_ignore_files_rule(project: Path, store: Path, ignore_files: dict[str, str], taken: list[str]) -> None:
    write(project, dict.fromkeys(("a.log", "a.py", "data/x.bin", "data/keep.txt", "src/b.log"), ""))
    write(project, ignore_files)
    names = [path for path in paths_of(store, make_bundle(project, store)) if "ignore" not in path]
    assert names == sorted(taken)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    paths=st.lists(st.lists(NAMES, min_size=1, max_size=4).map("/".join), max_size=15),
    rules=st.lists(st.tuples(st.lists(NAMES, max_size=2).map("/".join), st.lists(PATTERNS, max_size=4)), max_size=3),
)
def test_any_tree_is_taken_as_git_takes_it(
    tmp_path_factory: pytest.TempPathFactory, paths: list[str], rules: list[tuple[str, list[str]]]
) -> None:
    folder = tmp_path_factory.mktemp("tree")
    project = folder / "project"
    project.mkdir()
    for path in paths:
        write_where_possible(project, path, "x")
    for path, patterns in rules:
        write_where_possible(project, f"{path}/.gitignore" if path else ".gitignore", "\n".join(patterns))
    taken = paths_of(folder / "home", make_bundle(project, folder / "home"))
    subprocess.run(["git", "init", "-q", str(project)], check=True, env=quiet_git(folder))
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--others", "--exclude-per-directory=.gitignore"],
        cwd=project,
        env=quiet_git(folder),
        check=True,
        capture_output=True,
    )
    assert set(taken) == set(listed.stdout.decode().split("\0")) - {""}
    shutil.rmtree(folder)


def test_what_is_no_part_of_a_project_is_always_left_out(project: Path, store: Path) -> None:
    write(project, {".git/config": "", "a/.hg/x": "", ".svn/y": "", "a/__pycache__/a.pyc": "", "a/b.py": "1"})
    write(project, {"env/pyvenv.cfg": "", "env/bin/python": "", "cache/CACHEDIR.TAG": "", "cache/x": ""})
    write(project, {"a/.git": "gitdir: elsewhere", ".gitignore": "!__pycache__/\n!.git/\n"})
    assert paths_of(store, make_bundle(project, store)) == [".gitignore", "a/b.py"]


def test_a_virtual_environment_that_appears_or_goes_is_noticed(project: Path, store: Path) -> None:
    write(project, {"env/x.py": "1"})
    first = make_bundle(project, store)
    write(project, {"env/pyvenv.cfg": ""})
    assert paths_of(store, make_bundle(project, store)) == []
    (project / "env/pyvenv.cfg").unlink()
    assert make_bundle(project, store).id == first.id


def test_the_store_inside_the_project_is_left_out(project: Path) -> None:
    write(project, {"a.py": "1", "private/b.py": "2", "c/private/d.py": "3"})
    store = project / ".flow"
    for _ in range(2):
        bundle = make_bundle(project, store, exclude=[project / "private"])
        assert paths_of(store, bundle) == ["a.py", "c/private/d.py"]
    assert paths_of(store, make_bundle(project, store)) == ["a.py", "c/private/d.py", "private/b.py"]


def test_links_are_kept_and_never_followed(project: Path, store: Path, tmp_path: Path) -> None:
    write(tmp_path, {"outside/secret.txt": "secret"})
    (project / "outside").symlink_to(tmp_path / "outside")
    (project / "up").symlink_to("../outside/secret.txt")
    (project / "loop").symlink_to("loop")
    bundle = make_bundle(project, store)
    assert read_manifest(store, bundle.id)["files"] == []
    assert read_manifest(store, bundle.id)["links"] == [
        ["loop", "loop"],
        ["outside", str(tmp_path / "outside")],
        ["up", "../outside/secret.txt"],
    ]
    (project / "up").unlink()
    (project / "up").symlink_to("loop")
    assert ["up", "loop"] in read_manifest(store, make_bundle(project, store).id)["links"]


def test_what_is_no_file_is_left_out_with_a_note(project: Path, store: Path) -> None:
    write(project, {"a.py": "1"})
    os.mkfifo(project / "pipe")
    server = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(project)  # the path of a socket must be short
    try:
        server.bind("control")
    finally:
        os.chdir(here)
        server.close()
    for _ in range(2):
        bundle = make_bundle(project, store)
        assert paths_of(store, bundle) == ["a.py"]
        assert bundle.notes == (
            "`control` is not uploaded: it is neither a file, a folder nor a link",
            "`pipe` is not uploaded: it is neither a file, a folder nor a link",
        )


def test_names_that_are_not_utf8_survive(project: Path, store: Path) -> None:
    name = b"caf\xe9\n\\ .txt"
    Path(os.fsdecode(os.fsencode(project) + b"/" + name)).write_text("1")
    for _ in range(2):
        assert [os.fsencode(path) for path in paths_of(store, make_bundle(project, store))] == [name]


def test_a_changed_file_changes_the_bundle_and_nothing_else_is_read(
    project: Path, store: Path, opened: Callable[[], list[str]]
) -> None:
    write(project, {f"src/{number}.py": str(number) for number in range(50)})
    age(project)
    opened()
    make_bundle(project, store)
    assert len(opened()) == 50
    assert make_bundle(project, store).new_files == 0
    assert opened() == []
    write(project, {"src/7.py": "seven", "src/new.py": "new"})
    opened()
    second = make_bundle(project, store)
    assert (second.files, second.new_files, second.new_bytes) == (51, 2, 8)
    assert {Path(path).name for path in opened()} == {"7.py", "new.py"}
    assert manifest_digests(store, second)["src/7.py"] == sha("seven")


def test_a_file_rewritten_in_the_same_instant_is_read_again(project: Path, store: Path) -> None:
    """git's racily clean: the size and every time are as they were, the content is not."""
    ids = set()
    for number in range(100, 150):
        (project / "a.py").write_text(str(number))
        bundle = make_bundle(project, store)
        assert manifest_digests(store, bundle) == {"a.py": sha(str(number))}
        ids.add(bundle.id)
    assert len(ids) == 50


def test_a_file_with_its_old_times_put_back_is_read_again(project: Path, store: Path) -> None:
    write(project, {"a.py": "old"})
    age(project)
    make_bundle(project, store)
    before = (project / "a.py").stat()
    (project / "a.py").write_text("new")
    os.utime(project / "a.py", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert manifest_digests(store, make_bundle(project, store)) == {"a.py": sha("new")}


@pytest.mark.parametrize(
    "change",
    [
        lambda project: (project / "src/.gitignore").write_text("*.txt\n"),
        lambda project: (project / ".gitignore").write_text("*.txt\n"),
        lambda project: (project / ".flowignore").write_text("*.txt\n"),
        lambda project: (project / "src/deep/b.txt").unlink(),
        lambda project: (project / "src/deep").rename(project / "src/deeper"),
        lambda project: (project / "src/deep/b.txt").rename(project / "src/deep/c.txt"),
        lambda project: (project / "a.txt").chmod(0o755),
        lambda project: shutil.rmtree(project / "src"),
        lambda project: (project / "src/deep/new").mkdir(),
        lambda project: (shutil.rmtree(project / "src"), (project / "src").write_text("a file now")),
        lambda project: (project / ".gitignore").unlink(),
    ],
)
def test_a_second_look_sees_what_a_first_one_would(
    project: Path, store: Path, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    write(project, {"a.txt": "1", "src/deep/b.txt": "2", "src/b.log": "3", ".gitignore": "*.log\n"})
    age(project)
    make_bundle(project, store)
    change(project)
    again, fresh = make_bundle(project, store), make_bundle(project, tmp_path / "other")
    assert read_manifest(store, again.id) == read_manifest(tmp_path / "other", fresh.id)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_history_of_changes_ends_in_what_is_there(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("history")
    project = folder / "project"
    project.mkdir()
    path = st.sampled_from(["a", "b.log", "d/a", "d/b.log", "d/e/a", "d/.gitignore", ".gitignore", "d/e/f"])
    content = st.sampled_from(["", "1", "22", "*.log\n", "e/\n", "a\n", "!b.log\n"])
    for number in range(data.draw(st.integers(2, 5))):
        for _ in range(data.draw(st.integers(0, 3))):
            target = project / data.draw(path)
            if data.draw(st.booleans()):
                write_where_possible(project, str(target.relative_to(project)), data.draw(content))
            elif target.is_file():
                target.unlink()
        bundle = make_bundle(project, folder / "home")
        fresh = make_bundle(project, folder / f"fresh-{number}")
        assert bundle.id == fresh.id
    shutil.rmtree(folder)


def test_a_damaged_or_foreign_index_is_passed_over(project: Path, store: Path) -> None:
    write(project, {"a.py": "1"})
    first = make_bundle(project, store)
    (index,) = (store / "bundles-index").iterdir()
    whole = index.read_bytes()
    for content in (b"", b"\xff\x00", whole[:-9], b"[1,2,3]", b'{"v":1}', b'[1,["x",1,1],[[1,2]]]', b"[999,[],[]]"):
        index.write_bytes(content)
        assert make_bundle(project, store).id == first.id


def test_contents_that_were_removed_are_stored_again(project: Path, store: Path) -> None:
    write(project, {"a.py": "1", "b.py": "2"})
    age(project)
    first = make_bundle(project, store)
    with store_lock(store, shared=False):
        assert collect_garbage(store, []) > 0
    assert not list((store / "blobs").rglob("?" * 64))
    again = make_bundle(project, store)
    assert (again.id, again.new_files) == (first.id, 2)
    assert blob_path(store, sha("1")).read_text() == "1"


def test_garbage_is_what_no_kept_bundle_names(project: Path, store: Path, tmp_path: Path) -> None:
    write(project, {"a.py": "1", "common.py": "c"})
    kept = make_bundle(project, store)
    write(project, {"a.py": "22"})
    dropped = make_bundle(project, store)
    (store / "incoming").mkdir(exist_ok=True)
    (store / "incoming/left-by-a-crash").write_text("333")
    expected = manifest_path(store, dropped.id).stat().st_size + 2 + 3
    with store_lock(store, shared=False):
        assert collect_garbage(store, {kept.id}, dry_run=True) == expected
        assert collect_garbage(store, {kept.id}) == expected
        assert collect_garbage(store, {kept.id}) == 0
    assert read_manifest(store, kept.id)
    assert {path.name for path in (store / "blobs").rglob("?" * 64)} == {sha("1"), sha("c")}


def test_contents_stay_when_a_kept_manifest_is_damaged(project: Path, store: Path) -> None:
    write(project, {"a.py": "1"})
    kept = make_bundle(project, store)
    manifest_path(store, kept.id).write_text("{")
    with store_lock(store, shared=False):
        collect_garbage(store, {kept.id})
    assert blob_path(store, sha("1")).exists()
    with pytest.raises(StorageError, match="is damaged"):
        read_manifest(store, kept.id)


def test_nothing_is_removed_while_someone_submits(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "_LOCK_SECONDS", 0.05)
    in_use = pytest.raises(StorageError, match="is in use by a task being submitted")
    with store_lock(store), store_lock(store), in_use, store_lock(store, shared=False):
        pass
    with store_lock(store, shared=False):
        pass


def test_a_file_that_is_written_to_all_the_time_is_an_error_that_names_it(project: Path, store: Path) -> None:
    write(project, {"a.py": "1", "logs/run.log": "x" * 20_000_000})
    code = (
        f"f = open({str(project / 'logs/run.log')!r}, 'r+b', 0); print(1, flush=True)\nwhile f.write(b'y'): f.seek(0)"
    )
    argv = [sys.executable, "-c", code]
    writers = [subprocess.Popen(argv, stdout=subprocess.PIPE) for _ in range(3)]  # one alone may not get its turn
    try:
        assert all(one.stdout and one.stdout.readline() for one in writers)
        with pytest.raises(ValidationError, match=r"`logs/run.log` of the project keeps changing") as failure:
            make_bundle(project, store)
    finally:
        for one in writers:
            one.kill()
            one.communicate()
    assert failure.value.suggestions[0] == "leave it out by a line `/logs/run.log` in the project's `.gitignore`"
    assert not list((store / "incoming").iterdir())
    assert make_bundle(project, store).files == 2


def test_files_that_come_and_go_are_no_error(project: Path, store: Path) -> None:
    write(project, {"a.py": "1"})
    done = threading.Event()

    def churn() -> None:
        while not done.is_set():
            write(project, {"work/x/tmp": "x"})
            shutil.rmtree(project / "work")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(200):
            assert "a.py" in paths_of(store, make_bundle(project, store))
    finally:
        done.set()
        thread.join()
    assert paths_of(store, make_bundle(project, store)) == ["a.py"]


def test_a_missing_project_is_a_clear_error(project: Path, store: Path) -> None:
    with pytest.raises(ValidationError, match=r"`.*nowhere` does not exist"):
        make_bundle(project / "nowhere", store)
    write(project, {"a.py": ""})
    with pytest.raises(ValidationError, match=r"`.*a.py` is not a folder"):
        make_bundle(project / "a.py", store)


@pytest.mark.parametrize(
    ("path", "named"), [("data/secret.key", "data/secret.key"), ("data", "data"), ("sub/.gitignore", "sub/.gitignore")]
)
def test_what_cannot_be_read_is_named_with_what_to_do(
    project: Path, store: Path, path: str, named: str, tmp_path: Path
) -> None:
    write(project, {"a.py": "1", "data/secret.key": "k", "sub/.gitignore": "*.log", "sub/x.py": ""})
    (project / path).chmod(0)
    store.mkdir(mode=0o777)
    store.chmod(0o777)
    try:
        printed = run_as_nobody(
            f"{MAKE}from flow.errors import ValidationError\n"
            f"try: make_bundle(Path({str(project)!r}), Path({str(store)!r}))\n"
            "except ValidationError as e: print(e, e.suggestions[0], sep='|')",
            tmp_path,
        )
    finally:
        (project / path).chmod(0o755)
    assert printed == (
        f"`{named}` of the project cannot be read: permission denied|"
        f"leave it out by a line `/{named}` in the project's `.gitignore`\n"
    )


def test_a_project_that_cannot_be_read_is_named(project: Path, store: Path, tmp_path: Path) -> None:
    project.chmod(0)
    store.mkdir()
    store.chmod(0o777)
    code = f"{MAKE}from flow.errors import ValidationError\n"
    code += f"try: make_bundle(Path({str(project)!r}), Path({str(store)!r}))\nexcept ValidationError as e: print(e)"
    assert run_as_nobody(code, tmp_path) == f"the project `{project}` cannot be read: permission denied\n"


def test_an_unreadable_file_that_is_ignored_does_not_matter(project: Path, store: Path, tmp_path: Path) -> None:
    write(project, {"a.py": "1", "data/secret.key": "k", ".gitignore": "/data\n"})
    (project / "data").chmod(0)
    store.mkdir()
    store.chmod(0o777)
    code = f"{MAKE}print(make_bundle(Path({str(project)!r}), Path({str(store)!r})).files)"
    assert run_as_nobody(code, tmp_path) == "2\n"


def test_a_rules_file_that_is_a_link_is_refused_or_passed_over_as_git_does(
    project: Path, store: Path, tmp_path: Path
) -> None:
    write(tmp_path, {"rules": "*.py"})
    write(project, {"a.py": "1"})
    (project / ".gitignore").symlink_to(tmp_path / "rules")
    assert paths_of(store, make_bundle(project, store)) == ["a.py"]
    (project / ".flowignore").symlink_to(tmp_path / "rules")
    with pytest.raises(ValidationError, match=r"`.flowignore` is a link"):
        make_bundle(project, store)


def test_a_home_that_is_a_file_is_a_clear_error(project: Path, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(StorageError, match=r"cannot write to Flow's folder `.*home`"):
        make_bundle(project, tmp_path / "home")


@pytest.mark.parametrize("sizes", [[100_000] * 20, [3_000_000], [50_000] * 4 + [1_500_000]])
def test_a_full_disk_leaves_nothing_half_written(project: Path, tmp_path: Path, sizes: list[int]) -> None:
    for number, size in enumerate(sizes):
        (project / f"{number}.bin").write_bytes(os.urandom(size))
    with small_disk(tmp_path / "disk") as disk:
        home = disk / "home"
        with pytest.raises(StorageError, match="no space left on device") as failure:
            make_bundle(project, home)
        assert "flow prune" in failure.value.suggestions[0]
        assert not list((home / "incoming").iterdir())
        assert not (home / "manifests").exists()
        for blob in home.glob("blobs/*/*"):
            assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
        shutil.rmtree(project)
        write(project, {"a.py": "1"})
        assert make_bundle(project, home).files == 1


def test_a_kill_at_any_moment_leaves_no_damaged_content(project: Path, store: Path) -> None:
    for number in range(300):
        (project / f"{number}.bin").write_bytes(os.urandom(3000))
    code = f"{MAKE}print(1, flush=True)\nmake_bundle(Path({str(project)!r}), Path({str(store)!r}))"
    for delay in (0.0, 0.005, 0.01, 0.02, 0.04, 0.08):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert child.stdout
        child.stdout.readline()
        time.sleep(delay)  # any moment will do
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        for blob in store.glob("blobs/*/*"):
            assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
        for manifest in store.glob("manifests/*.json"):
            assert hashlib.sha256(manifest.read_bytes()).hexdigest() == manifest.stem
    bundle = make_bundle(project, store)
    for digest in manifest_digests(store, bundle).values():
        assert hashlib.sha256(blob_path(store, digest).read_bytes()).hexdigest() == digest


def test_what_a_killed_submitter_left_is_swept_up_by_the_next(project: Path, store: Path) -> None:
    write(project, {"a.py": "1"})
    make_bundle(project, store)
    (store / "incoming/left").write_text("large")
    with store_lock(store):
        assert not (store / "incoming/left").exists()
        (store / "incoming/at-work").write_text("large")
        make_bundle(project, store)
        assert (store / "incoming/at-work").exists()


def test_several_submit_the_same_project_at_once(project: Path, store: Path) -> None:
    for number in range(100):
        write(project, {f"{number}.py": str(number)})
    code = f"{MAKE}print(make_bundle(Path({str(project)!r}), Path({str(store)!r})).id)"
    children = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(8)]
    ids = {child.communicate()[0].strip() for child in children}
    assert ids == {make_bundle(project, store).id}


def test_a_large_file_takes_little_memory(project: Path, store: Path) -> None:
    with (project / "large.bin").open("wb") as file:
        file.truncate(200_000_000)
        file.write(b"end")
    code = (
        f"{MAKE}import tracemalloc\ntracemalloc.start()\n"
        f"print(make_bundle(Path({str(project)!r}), Path({str(store)!r})).bytes)\n"
        "print(tracemalloc.get_traced_memory()[1])"
    )
    size, peak = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert int(size) == 200_000_000
    assert int(peak) < 10_000_000


def test_a_project_over_the_limit_is_told_what_to_do(project: Path, store: Path) -> None:
    write(project, {"train.py": "1", "zeros": "0" * 5_000_000})
    (project / "data").mkdir()
    (project / "data/a.bin").write_bytes(os.urandom(700_000))
    (project / "data/b.bin").write_bytes(os.urandom(500_000))
    (project / "model.bin").write_bytes(os.urandom(400_000))
    bundle = make_bundle(project, store)
    assert 1.6 < compressed_megabytes(store, bundle.id) < 1.7
    check_upload_limit(store, bundle, 10)
    check_upload_limit(store, bundle, 2)
    with pytest.raises(ValidationError) as failure:
        check_upload_limit(store, bundle, 1)
    assert failure.value.message == "Project size (1.6MB) exceeds limit (1MB)"
    assert failure.value.suggestions[0] == (
        "leave out what the task does not need by `.flowignore`; the largest here: "
        "`zeros` (5.0MB), `data/` (1.2MB), `model.bin` (0.4MB)"
    )
    assert len(failure.value.suggestions) == 6


def test_the_size_far_beyond_the_limit_is_estimated(project: Path, store: Path) -> None:
    for number in range(4):
        (project / f"{number}.bin").write_bytes(os.urandom(2_000_000))
    bundle = make_bundle(project, store)
    assert compressed_megabytes(store, bundle.id, enough=0.1) == pytest.approx(8, rel=0.1)


def test_bundling_loads_nothing_heavy() -> None:
    code = "import sys, flow.bundle; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert not {"pydantic", "yaml", "click", "rich", "sqlite3"} & set(loaded)


def write(folder: Path, contents: dict[str, str]) -> None:
    for path, content in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)


def write_where_possible(folder: Path, path: str, content: str) -> None:
    try:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content, newline="")
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        pass


def age(folder: Path) -> None:
    """Wait until nothing of the folder is so new that it must be read again."""
    newest = max(path.lstat().st_ctime_ns for path in [folder, *folder.rglob("*")])
    while time.time_ns() < newest + 2 * tree._TICK_NS:
        time.sleep(0.001)


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def paths_of(store: Path, bundle: Bundle) -> list[str]:
    return [path for path, *_ in read_manifest(store, bundle.id)["files"]]


def manifest_digests(store: Path, bundle: Bundle) -> dict[str, str]:
    return {path: digest for path, _, digest, _ in json.loads(manifest_path(store, bundle.id).read_text())["files"]}


@pytest.fixture
def opened(project: Path) -> Callable[[], list[str]]:
    """Which files of the project were opened since it was last asked."""
    seen: list[str] = []

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and str(arguments[0]).startswith(f"{project}/"):
            seen.append(str(arguments[0]))

    sys.addaudithook(note)  # cannot be taken away again: it sees nothing of other tests' folders

    def taken() -> list[str]:
        paths = list(seen)
        seen.clear()
        return paths

    return taken
