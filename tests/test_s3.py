"""Objects of S3 as a folder: real HTTP, real FUSE mounts, and nothing left of them afterwards."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.server
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flow.boot import boot
from flow.node import s3, s3_folders, s3_request
from flow.node.s3 import CannotMount
from flow.node.s3_place import Place
from tests.support.aws import Aws
from tests.support.components import require
from tests.support.hardship import small_disk
from tests.support.processes import end, is_alive, wait_until
from tests.support.pythons import old_pythons

PROGRAMS = ("rclone", "s3fs")
NODE = Path(s3.__file__).parent
OBJECTS = {
    "data/a.txt": b"one",
    "data/deep/er/b.txt": b"two",
    "data/with space é☃ %20 +&=.txt": b"three",
    "data/quote's\".txt": b"four",
    "data/empty": b"",
    "other/c.txt": b"five",
}
AS_NOBODY = ("/usr/bin/setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
CODE = """
import json, os, sys
sys.path.insert(0, {node!r})
import s3
access = json.load(sys.stdin)
try:
    at, fd = s3.attach({source!r}, access, {cache!r})
except s3.CannotMount as error:
    print("cannot:", error)
else:
    print(sorted(os.listdir(at)), open(at + "/a.txt").read())
"""


class Mounts:
    """`attach` with a cache of the test's own, whose mounts and processes can be looked at."""

    def __init__(self, aws: Aws, cache: Path) -> None:
        self.aws, self.cache, self.held = aws, cache, list[int]()

    def __call__(self, source: str = "bucket/data", **changes: str) -> Path:
        at, fd = s3.attach(source, {**self.aws.access, **changes}, str(self.cache))
        self.held.append(fd)
        return Path(at)

    def let_go(self) -> None:
        while self.held:
            os.close(self.held.pop())

    def mounted(self) -> list[str]:
        """The kinds of file system that are mounted in the cache."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line.split(" - ")[1].split()[0] for line in lines if line.split()[4].startswith(f"{self.cache}/")]

    def keepers(self) -> list[int]:
        return [pid for pid in self.processes() if b"s3_keeper" in _read(pid, "cmdline")]

    def programs(self) -> list[int]:
        return [pid for pid in self.processes() if b"s3_keeper" not in _read(pid, "cmdline")]

    def processes(self) -> list[int]:
        mark = b"FLOW_SCHEDULER=" + os.fsencode(self.cache)
        pids = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
        return [pid for pid in pids if mark in _read(pid, "environ") and is_alive(pid)]

    def is_gone(self) -> bool:
        return not self.mounted() and not self.processes()


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


@pytest.fixture
def attach(aws: Aws, tmp_path: Path) -> Iterator[Mounts]:
    """Mounts that end as soon as nobody holds them; what is left of them then fails the test."""
    mounts = Mounts(aws, tmp_path / "cache")
    yield mounts
    mounts.let_go()
    try:
        assert wait_until(mounts.is_gone, seconds=20), (mounts.mounted(), mounts.processes())
    finally:
        end(mounts.processes())


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make PATH a folder with nothing but the named programs."""

    def act(*programs: str) -> None:
        folder = tmp_path / "only"
        folder.mkdir()
        for name in programs:
            require(name, "S3 is mounted")
            (folder / name).symlink_to(str(shutil.which(name)))
        monkeypatch.setenv("PATH", str(folder))

    return act


@pytest.fixture(params=PROGRAMS)
def program(request: pytest.FixtureRequest, only: Callable[..., None]) -> str:
    require("/dev/fuse", "S3 is mounted", found=os.access("/dev/fuse", os.R_OK | os.W_OK))
    only(request.param)
    return str(request.param)


# -- what a task sees


def test_objects_are_read_through_a_mount(attach: Mounts, aws: Aws, program: str) -> None:
    big = random.Random(1).randbytes(50_000_000)
    aws.bucket("bucket", {**OBJECTS, "data/big": big})
    at = attach()
    assert attach.mounted() == [f"fuse.{program}"]
    found = {str(path.relative_to(at)): path.read_bytes() for path in at.rglob("*") if path.is_file()}
    assert hashlib.sha256(found.pop("big")).digest() == hashlib.sha256(big).digest()
    assert found == {key[5:]: content for key, content in OBJECTS.items() if key.startswith("data/")}


def test_the_whole_bucket_can_be_mounted_even_an_empty_one(attach: Mounts, aws: Aws, program: str) -> None:
    aws.bucket("bucket", OBJECTS)
    aws.bucket("empty", {})
    assert sorted(path.name for path in attach("bucket").iterdir()) == ["data", "other"]
    assert list(attach("empty/").iterdir()) == []


def test_a_path_is_taken_as_it_is(attach: Mounts, aws: Aws, program: str) -> None:
    odd = 'it\'s é, "so"=100% (+/~!*&)'
    aws.bucket("bucket", {f"{odd}/in/a.txt": b"one"})
    access = aws.ask_for_signatures("s3:*")
    assert (attach(f"bucket/{odd}/in", **access) / "a.txt").read_bytes() == b"one"


def test_nothing_can_be_written(attach: Mounts, aws: Aws, program: str) -> None:
    client = aws.bucket("bucket", OBJECTS)
    at = attach()
    for act in (
        lambda: (at / "new").write_text("x"), (at / "a.txt").unlink, lambda: (at / "a.txt").write_text("x"),
        (at / "d").mkdir, lambda: (at / "a.txt").rename(at / "z"),
    ):  # fmt: skip
        with pytest.raises(OSError) as raised:
            act()
        assert raised.value.errno == errno.EROFS
    assert client.get_object(Bucket="bucket", Key="data/a.txt")["Body"].read() == b"one"


def test_anyone_may_read_what_root_mounted(attach: Mounts, aws: Aws, program: str) -> None:
    client = aws.bucket("bucket", {})
    client.put_object(Bucket="bucket", Key="data/a.txt", Body=b"one", Metadata={"mode": "33152", "uid": "7"})  # 0600
    at = attach()
    for folder in at.parents:  # a container would be shown it without what is above
        if folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(0o755)
    asked = [*AS_NOBODY, "/bin/cat", f"{at}/a.txt"]
    assert subprocess.run(asked, capture_output=True).stdout == b"one"


def test_what_one_task_read_the_next_one_does_not_load_again(attach: Mounts, aws: Aws, program: str) -> None:
    aws.bucket("bucket", {"data/a.txt": b"x" * 100_000, "data/b.txt": b"y"})
    for _ in range(2):
        assert (attach() / "a.txt").read_bytes() == b"x" * 100_000
        attach.let_go()
        assert wait_until(attach.is_gone, seconds=20)
    assert aws.requests("GET /bucket/data/a.txt") == 1


def test_what_changed_meanwhile_is_loaded_again(attach: Mounts, aws: Aws, program: str) -> None:
    client = aws.bucket("bucket", OBJECTS)
    assert (attach() / "a.txt").read_bytes() == b"one"
    second = int(time.time())
    assert wait_until(lambda: int(time.time()) > second)  # S3 tells times in seconds
    client.put_object(Bucket="bucket", Key="data/a.txt", Body=b"ONE")
    attach.let_go()
    assert wait_until(attach.is_gone, seconds=20)
    assert (attach() / "a.txt").read_bytes() == b"ONE"


# -- who shares it, and how long it stays


def test_tasks_share_one_mount_as_long_as_one_of_them_holds_it(attach: Mounts, aws: Aws) -> None:
    aws.bucket("bucket", OBJECTS)
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: attach(), range(8)))
    assert len(folders) == len(attach.mounted()) == len(attach.keepers()) == 1
    inherited = attach.held.pop()
    os.set_inheritable(inherited, True)
    child = subprocess.Popen(["sleep", "60"], pass_fds=[inherited])
    os.close(inherited)
    attach.let_go()
    assert not wait_until(attach.is_gone, seconds=1.5)
    assert (folders.pop() / "a.txt").read_bytes() == b"one"
    end([child.pid])
    child.wait()
    assert wait_until(attach.is_gone, seconds=20)


def test_other_credentials_or_another_path_are_another_mount(attach: Mounts, aws: Aws) -> None:
    aws.bucket("bucket", OBJECTS)
    first, second, third = attach(), attach(AWS_ACCESS_KEY_ID="AKIAOTHER"), attach("bucket/other")
    assert len({first, second, third}) == len(attach.mounted()) == 3
    assert [path.joinpath("a.txt").read_bytes() for path in (first, second)] == [b"one", b"one"]


def test_a_mount_lingers_for_the_next_task(attach: Mounts, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    aws.bucket("bucket", OBJECTS)
    monkeypatch.setenv("FLOW_S3_LINGER_SECONDS", "600")
    at = attach()
    keepers = attach.keepers()
    attach.let_go()
    assert not wait_until(attach.is_gone, seconds=1.5)
    assert attach() == at
    assert attach.keepers() == keepers
    os.kill(keepers[0], signal.SIGTERM)  # as on shutdown
    assert wait_until(attach.is_gone, seconds=20)


def test_the_keeper_is_no_part_of_the_task(attach: Mounts, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    aws.bucket("bucket", OBJECTS)
    monkeypatch.setenv("FLOW_TASK_ID", "task-1")
    monkeypatch.setenv("FLOW_OUTPUT", "/somewhere")
    attach()
    pids = [*attach.keepers(), *attach.programs()]
    assert len(pids) == 2  # both are marked as the scheduler is
    assert [word for pid in pids for word in _read(pid, "environ").split(b"\0") if word.startswith(b"FLOW_")] == [
        b"FLOW_SCHEDULER=" + os.fsencode(attach().parent)
    ] * 2
    assert os.getsid(attach.keepers()[0]) == attach.keepers()[0]


def test_a_runner_does_not_wait_for_the_keeper(attach: Mounts, aws: Aws, tmp_path: Path) -> None:
    aws.bucket("bucket", OBJECTS)
    code = f"""
import json, os, sys, time
sys.path.insert(0, {str(NODE)!r})
import processes, s3
command = processes.Processes()
at, fd = s3.attach("bucket/data", json.load(sys.stdin), {str(attach.cache)!r})
command.start(["true"], dict(os.environ), "/", lock=os.open({str(tmp_path / "lock")!r}, os.O_RDWR | os.O_CREAT))
while command.wait_status is None:
    command.reap()
    time.sleep(0.01)
print(command.has_leftovers(), command.childless)
"""
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, input=json.dumps(aws.access), capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False False\n", "")


def test_what_nobody_used_for_a_week_is_removed(attach: Mounts, aws: Aws) -> None:
    aws.bucket("bucket", OBJECTS)
    (attach() / "a.txt").read_bytes()
    attach.let_go()
    assert wait_until(attach.is_gone, seconds=20)
    used = attach("bucket/other")
    for folder in attach.cache.iterdir():
        os.utime(folder / "lock", (0, 0))
    assert len(list(attach.cache.iterdir())) == 4
    attach()
    attach.let_go()
    attach.held.append(s3.attach("bucket/other", aws.access, str(attach.cache))[1])
    assert wait_until(lambda: len(attach.keepers()) == 1, seconds=20)
    assert (used / "c.txt").read_bytes() == b"five"
    s3_folders.remove_old(str(attach.cache))
    assert len(list(attach.cache.iterdir())) == 4
    for folder in attach.cache.iterdir():
        os.utime(folder / "lock", (0, 0))
    s3_folders.remove_old(str(attach.cache))
    assert {path.name.partition("-")[0] for path in attach.cache.iterdir()} == {"mount", "objects"}
    assert len(list(attach.cache.iterdir())) == 2
    assert (used / "c.txt").read_bytes() == b"five"


def test_credentials_are_on_no_command_line_and_in_no_file(attach: Mounts, aws: Aws, program: str) -> None:
    aws.bucket("bucket", OBJECTS)
    secrets = {"AWS_SECRET_ACCESS_KEY": "hush-hush-secret", "AWS_SESSION_TOKEN": "hush-hush-token"}
    (attach(**secrets) / "a.txt").read_bytes()
    assert not [pid for pid in attach.processes() if b"hush" in _read(pid, "cmdline")]
    files = [path for path in attach.cache.rglob("*") if path.is_file() and attach() not in path.parents]
    assert not [path for path in files if b"hush" in path.read_bytes()]
    assert attach.cache.stat().st_mode & 0o777 == 0o700


# -- what is wrong is said before the command starts


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nobucket/x", "there is no bucket `nobucket` at http://127.0.0.1:"),
        ("bucket/none", "there is nothing at that path in the bucket `bucket`"),
        ("bucket/dat", "there is nothing at that path in the bucket `bucket`"),
        ("bucket/data/a.txt", "that is an object, not a folder; mount `s3://bucket/data` and read it there"),
        ("-o/x", "no bucket can be called `-o`"),
        ("b,allow_root/x", "no bucket can be called `b,allow_root`"),
    ],
)  # fmt: skip
def test_a_wrong_source_is_said(attach: Mounts, aws: Aws, source: str, says: str) -> None:
    aws.bucket("bucket", OBJECTS)
    with pytest.raises(CannotMount) as raised:
        attach(source)
    assert str(raised.value).startswith(f"cannot mount `s3://{source}`: {says}")


def test_wrong_credentials_are_said(attach: Mounts, aws: Aws, program: str) -> None:
    aws.bucket("bucket", OBJECTS)
    access = aws.ask_for_signatures("s3:*")
    assert (attach(**access) / "a.txt").read_bytes() == b"one"
    for wrong, says in (
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "AWS_SECRET_ACCESS_KEY is not the secret of the key in AWS_ACCESS_KEY_ID"),
        ({"AWS_ACCESS_KEY_ID": "AKIAUNKNOWN"}, f"{aws.url} does not know the key in AWS_ACCESS_KEY_ID"),
    ):
        with pytest.raises(CannotMount, match=f"cannot mount `s3://bucket/data`: {says}"):
            attach(**{**access, **wrong})


def test_a_user_who_may_not_list_is_told_which_permission_is_missing(attach: Mounts, aws: Aws) -> None:
    aws.bucket("bucket", OBJECTS)
    access = aws.ask_for_signatures("s3:GetObject")
    with pytest.raises(CannotMount, match=r"credentials may not list `s3://bucket/data/` \(permission s3:ListBucket\)"):
        attach(**access)


def test_a_user_who_may_only_list_is_told_too(attach: Mounts, aws: Aws) -> None:
    aws.bucket("bucket", OBJECTS)
    access = aws.ask_for_signatures("s3:ListBucket")
    with pytest.raises(CannotMount, match=r"may not read what is in `s3://bucket/data/` \(permission s3:GetObject\)"):
        attach(**access)


def test_temporary_credentials_are_taken(attach: Mounts, aws: Aws, program: str) -> None:
    aws.bucket("bucket", OBJECTS)
    role = aws.client("iam").create_role(RoleName="reader", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    aws.client("iam").put_role_policy(RoleName="reader", PolicyName="all", PolicyDocument=json.dumps(policy))
    given = aws.client("sts").assume_role(RoleArn=role, RoleSessionName="session")["Credentials"]
    aws.ask_for_signatures("s3:*")
    access = {
        "AWS_ACCESS_KEY_ID": given["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": given["SecretAccessKey"],
        "AWS_SESSION_TOKEN": given["SessionToken"],
    }  # fmt: skip
    assert (attach(**access) / "a.txt").read_bytes() == b"one"
    with pytest.raises(CannotMount):
        attach(**{**access, "AWS_SESSION_TOKEN": ""})


def test_a_public_bucket_is_read_without_credentials(attach: Mounts, aws: Aws, program: str) -> None:
    aws.bucket("bucket", {}).put_object(Bucket="bucket", Key="data/a.txt", Body=b"one", ACL="public-read")
    anonymous = {"AWS_ENDPOINT_URL": aws.url, "AWS_NO_SIGN_REQUEST": "1"}
    at, fd = s3.attach("bucket/data", anonymous, str(attach.cache))
    attach.held.append(fd)
    assert (Path(at) / "a.txt").read_bytes() == b"one"


def test_an_endpoint_that_is_not_there_or_not_s3_is_said(attach: Mounts) -> None:
    with pytest.raises(CannotMount, match=r"cannot reach http://127\.0\.0\.1:9: \[Errno 111\] Connection refused"):
        attach(AWS_ENDPOINT_URL="http://127.0.0.1:9")
    with pytest.raises(CannotMount, match=r"cannot reach http://no\.such\.host\.invalid: .*Name or service not known"):
        attach(AWS_ENDPOINT_URL="http://no.such.host.invalid")
    with (
        answering(lambda path: (200, {}, b"<html>hello</html>")) as url,
        pytest.raises(CannotMount, match="not answer"),
    ):
        attach(AWS_ENDPOINT_URL=url)


@contextlib.contextmanager
def answering(answer: Callable[[str], tuple[int, dict[str, str], bytes]]) -> Iterator[str]:
    """A server that gives `answer(path and authorization)`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_GET(self) -> None:
            status, headers, body = answer(f"{self.path} {self.headers['Authorization']}")
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_bucket_elsewhere_is_found_in_its_region() -> None:
    listing = b"<ListBucketResult xmlns='x'><Contents><Key>data/a</Key></Contents></ListBucketResult>"

    def answer(asked: str) -> tuple[int, dict[str, str], bytes]:
        if "/eu-west-1/s3/" in asked:
            return 200, {}, listing
        return (
            301,
            {"x-amz-bucket-region": "eu-west-1", "Location": "/elsewhere"},
            b"<Error><Code>Permanent</Code></Error>",
        )

    with answering(answer) as url:
        access = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "s"}
        assert s3_request.find("bucket/data", access) == Place("bucket", "data/", url, "eu-west-1")


def test_a_busy_server_is_asked_again() -> None:
    answers = [(503, b"<Error><Code>SlowDown</Code></Error>"), (200, b"<ListBucketResult/>")]

    def answer(_: str) -> tuple[int, dict[str, str], bytes]:
        status, body = answers.pop(0)
        return status, {}, body

    with answering(answer) as url:
        assert s3_request.find("bucket", {"AWS_ENDPOINT_URL": url, "AWS_NO_SIGN_REQUEST": "1"}).bucket == "bucket"


def test_without_an_endpoint_the_hosts_are_those_of_aws() -> None:
    hosts = {
        ("bucket", "eu-west-1"): "https://bucket.s3.eu-west-1.amazonaws.com/?",
        ("with.dots", "eu-west-1"): "https://s3.eu-west-1.amazonaws.com/with.dots?",
        ("bucket", "cn-north-1"): "https://bucket.s3.cn-north-1.amazonaws.com.cn/?",
    }
    for (bucket, region), begin in hosts.items():
        url = s3_request.list_url(Place(bucket, "", "", region), "a b/")
        assert url == begin + "list-type=2&max-keys=1&prefix=a%20b%2F"


# -- where nothing can mount


def test_without_a_program_the_objects_are_copied(attach: Mounts, aws: Aws, only: Callable[..., None]) -> None:
    only()
    client = aws.bucket("bucket", {**OBJECTS, "data/x": b"", "data/x/y": b"six", "data/../up": b"", "data//z": b""})
    at = attach()
    wanted = {key[5:]: content for key, content in OBJECTS.items() if key.startswith("data/")}
    assert _files(at) == {**wanted, "x/y": b"six"}
    assert {path.stat().st_mode & 0o222 for path in at.rglob("*") if path.is_file()} == {0}
    client.put_object(Bucket="bucket", Key="data/a.txt", Body=b"another")
    client.delete_object(Bucket="bucket", Key="data/x/y")
    with (at / "a.txt").open() as file:
        assert attach() == at
        assert file.read() == "one"  # who reads it goes on with what there was
    assert _files(at) == {**wanted, "x": b"", "a.txt": b"another"}
    assert aws.requests("GET /bucket/data/deep/er/b.txt") == 1
    assert not attach.mounted()


def test_a_copy_can_be_given_up(attach: Mounts, aws: Aws, only: Callable[..., None]) -> None:
    only()
    client = aws.bucket("bucket", {"data/a.txt": b"one", "data/big": b"x" * 100_000_000})
    calls = iter(range(3))

    def check() -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        s3.attach("bucket/data", aws.access, str(attach.cache), check)
    assert not list(attach.cache.rglob("files/big"))
    client.delete_object(Bucket="bucket", Key="data/big")
    assert _files(attach()) == {"a.txt": b"one"}


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_copy_that_would_not_fit_is_not_begun(attach: Mounts, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    aws.bucket("bucket", {"data/a": b"x" * 3_000_000})
    with small_disk(attach.cache, megabytes=1), monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        with pytest.raises(CannotMount, match=r"a copy needs 2 MB, and [01] MB are free at"):
            attach()
        assert aws.requests("GET /bucket/data/a ") == 0


def test_a_program_that_fails_says_why_where_nothing_else_is_there(attach: Mounts, aws: Aws, tmp_path: Path) -> None:
    aws.bucket("bucket", OBJECTS)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/s3fs").write_text("#!/bin/sh\necho 'fuse: something is amiss' >&2\nexit 1\n")
    (tmp_path / "bin/s3fs").chmod(0o755)
    said = run_apart(attach, "/usr/bin/python3", PATH=str(tmp_path / "bin"))
    assert said == "cannot: cannot mount `s3://bucket/data`: s3fs did not mount it: fuse: something is amiss\n"


def test_without_program_and_library_it_is_said_what_to_install(attach: Mounts, aws: Aws) -> None:
    aws.bucket("bucket", OBJECTS)
    said = run_apart(attach, "/usr/bin/python3", PATH="/nowhere")
    assert said == (
        "cannot: cannot mount `s3://bucket/data`: no program that mounts S3 is on this machine: install `s3fs`, "
        "`rclone` or `mount-s3`, or for a copy the Python package boto3\n"
    )


def run_apart(attach: Mounts, python: str, *prefix: str, node: Path = NODE, **environment: str) -> str:
    """What a process of its own prints that attaches `bucket/data` and ends."""
    code = CODE.format(node=str(node), source="bucket/data", cache=str(attach.cache))
    env = {**os.environ, **environment}
    argv = [*prefix, python, "-c", code]
    done = subprocess.run(argv, input=json.dumps(attach.aws.access), capture_output=True, text=True, env=env)
    return done.stdout + done.stderr


def test_an_ordinary_user_mounts_with_fusermount(attach: Mounts, aws: Aws, tmp_path: Path) -> None:
    require("fusermount", "who is not root mounts by it")
    aws.bucket("bucket", {"data/a.txt": b"one"})
    attach.cache.mkdir()
    os.chown(attach.cache, 65534, 65534)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(folder.stat().st_mode | 0o005)
    (tmp_path / "node").mkdir()
    for path in NODE.glob("*.py"):
        shutil.copy(path, tmp_path / "node")
    device = tmp_path / "fuse"  # as udev would make it
    os.mknod(device, stat.S_IFCHR | 0o666, Path("/dev/fuse").stat().st_rdev)
    device.chmod(0o666)
    within = ["unshare", "--mount", "sh", "-c", f'mount --bind {device} /dev/fuse; exec "$@"', "sh"]
    said = run_apart(attach, "/usr/bin/python3", *within, *AS_NOBODY, node=tmp_path / "node", HOME="/", TMPDIR="/tmp")
    assert said == "['a.txt'] one\n"
    assert wait_until(attach.is_gone, seconds=20)


def test_an_old_python_mounts_with_what_the_boot_script_brings(attach: Mounts, aws: Aws, tmp_path: Path) -> None:
    aws.bucket("bucket", {"data/a.txt": b"one"})
    mounts = [{"target": "/data", "kind": "s3", "source": "bucket/data"}]
    task = {"task_id": "task-1", "attempt": 1, "rank": 0, "nodes": 1, "env": {}, "argv": ["true"], "mounts": mounts}
    (tmp_path / "node").mkdir()
    for name, text in boot([task], "/root", most_bytes=4000).inbox[0].items():
        (tmp_path / "node" / name).write_text(text)
    assert run_apart(attach, old_pythons()[0], node=tmp_path / "node") == "['a.txt'] one\n"
    assert wait_until(attach.is_gone, seconds=20)


# -- what breaks midway


def test_a_bucket_that_vanishes_gives_errors_and_no_hang(attach: Mounts, aws: Aws, program: str) -> None:
    aws.bucket("bucket", OBJECTS)
    at = attach()
    assert (at / "a.txt").read_bytes() == b"one"
    aws.reset()
    begin = time.monotonic()
    with pytest.raises(OSError):
        (at / "deep/er/b.txt").read_bytes()
    assert time.monotonic() - begin < 120


def test_a_keeper_that_was_killed_leaves_nothing_and_the_next_task_mounts_anew(
    attach: Mounts, aws: Aws, program: str
) -> None:
    aws.bucket("bucket", OBJECTS)
    held = os.open(attach() / "a.txt", os.O_RDONLY)  # so that the program cannot quite let go
    keeper = attach.keepers()[0]
    os.kill(keeper, signal.SIGKILL)
    assert wait_until(lambda: not is_alive(keeper))
    assert (attach() / "a.txt").read_bytes() == b"one"
    with contextlib.suppress(OSError):
        os.close(held)
    assert len(attach.keepers()) == len(attach.programs()) == len(attach.mounted()) == 1
    os.kill(attach.keepers()[0], signal.SIGKILL)
    assert wait_until(lambda: not attach.programs(), seconds=20)


def test_a_mount_whose_processes_were_all_killed_is_cleared_away_in_time(attach: Mounts, aws: Aws) -> None:
    aws.bucket("bucket", OBJECTS)
    at = attach()
    for pid in attach.processes():
        os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not attach.processes())
    attach.let_go()
    os.utime(at.parent / "lock", (0, 0))

    def is_cleared() -> bool:  # not at once: threads of a killed program hold its lock for a moment more
        s3_folders.remove_old(str(attach.cache))
        return not attach.mounted()

    assert wait_until(is_cleared)
    assert [path.name.partition("-")[0] for path in attach.cache.iterdir()] == ["objects"]


def test_a_program_that_died_fails_the_reading_and_is_cleared_away(attach: Mounts, aws: Aws, program: str) -> None:
    aws.bucket("bucket", OBJECTS)
    at = attach()
    os.kill(attach.programs()[0], signal.SIGKILL)
    with pytest.raises(OSError):
        (at / "a.txt").read_bytes()
    assert (attach() / "a.txt").read_bytes() == b"one"
    os.kill(attach.programs()[0], signal.SIGKILL)
    assert wait_until(attach.is_gone, seconds=20)


def test_who_waits_can_give_up(attach: Mounts, aws: Aws) -> None:
    class CancelledError(Exception):
        pass

    def check() -> None:
        raise CancelledError

    aws.bucket("bucket", OBJECTS)
    with pytest.raises(CancelledError):  # while it is being mounted; that goes on, and ends for want of a user
        s3.attach("bucket/data", aws.access, str(attach.cache), check)
    assert (attach() / "a.txt").read_bytes() == b"one"


def test_who_was_killed_while_it_was_mounted_leaves_nothing(attach: Mounts, aws: Aws) -> None:
    aws.bucket("bucket", OBJECTS)
    code = CODE.format(node=str(NODE), source="bucket/data", cache=str(attach.cache))
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert child.stdin
    child.stdin.write(json.dumps(aws.access).encode())
    child.stdin.close()
    assert wait_until(lambda: bool(attach.keepers()))
    child.kill()
    child.wait()
    assert (attach() / "a.txt").read_bytes() == b"one"
    assert len(attach.keepers()) == 1
