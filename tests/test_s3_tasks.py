"""`mounts: s3://…` of a task, from submission to its end, against an S3 over HTTP and with real FUSE mounts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from flow.client import Flow
from flow.errors import ValidationError
from flow.task import Task
from tests.support.aws import Aws
from tests.support.components import require
from tests.support.processes import processes_of, wait_until

SECRET = "wJalr-a-secret-that-nobody-may-see"


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aws: Aws) -> Iterator[Flow]:
    require("s3fs", "S3 is mounted")
    for name, value in {**aws.access, "AWS_SECRET_ACCESS_KEY": SECRET}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    aws.bucket("bucket", {"set/train/a.txt": b"hello\n", "set/b.txt": b"more\n"})
    yield Flow()
    assert wait_until(lambda: not keepers(tmp_path), seconds=30), keepers(tmp_path)


def keepers(folder: Path) -> list[str]:
    return [one.command for one in processes_of(folder) if "s3_keeper" in one.command]


def finished(client: Flow, command: str, **fields: object) -> Task:
    task = client.submit(command, upload_code=False, **fields)  # type: ignore[arg-type]
    task.wait(timeout=90)
    return task


def test_a_source_alone_is_seen_at_data_and_can_only_be_read(client: Flow) -> None:
    had_one = Path("/data").exists()
    task = finished(client, "cat /data/train/a.txt /data/b.txt; echo x > /data/c", mounts="s3://bucket/set")
    assert task.logs() == "hello\nmore\n" + task.logs(stderr=True)
    assert "Read-only file system" in task.logs(stderr=True)
    assert Path("/data").exists() == had_one


def test_each_source_of_a_mapping_is_seen_at_its_own_path(client: Flow, tmp_path: Path) -> None:
    a, b, out = (str(tmp_path / "seen" / name) for name in ("a", "b", "out"))
    mounts = {a: "s3://bucket/set/train/", b: "s3://bucket", out: "volume://results"}
    task = finished(client, f"cat {a}/a.txt {b}/set/b.txt | tee {out}/both", mounts=mounts)
    assert (task.status, task.logs()) == ("completed", "hello\nmore\n")
    assert task.plan.mounts[0].kind == "s3"


def test_credentials_are_nowhere_but_in_the_hands_of_the_mount(client: Flow, tmp_path: Path) -> None:
    words = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '; env; sleep 0.3"
    task = finished(client, words, mounts={str(tmp_path / "seen"): "s3://bucket/set"})
    assert task.status == "completed"
    assert SECRET not in task.logs()
    home = Path(os.environ["FLOW_HOME"])
    assert wait_until(lambda: not (keepers(tmp_path) or list(home.glob("record/*/outbox"))), seconds=30)
    holders = [path for path in home.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert holders == []


def test_a_retry_has_its_data_again(client: Flow, tmp_path: Path) -> None:
    seen = str(tmp_path / "seen")
    task = finished(client, f"cat {seen}/b.txt; test $FLOW_ATTEMPT = 2", mounts={seen: "s3://bucket/set"}, retries=1)
    assert (task.status, task.logs()) == ("completed", "more\nmore\n")


def test_two_nodes_and_the_tasks_of_an_array_read_one_mount(client: Flow, tmp_path: Path) -> None:
    seen = str(tmp_path / "seen")
    both = finished(client, f"cat {seen}/b.txt", mounts={seen: "s3://bucket/set"}, num_instances=2)
    assert (both.status, both.logs()) == ("completed", "more\nmore\n")
    array = finished(client, f"cat {seen}/b.txt", mounts={seen: "s3://bucket/set"}, array="1-3")
    assert array.status == "completed"


def test_a_container_reads_it_too(client: Flow, containers: str) -> None:
    task = finished(client, "cat /data/b.txt; echo x > /data/c", image=containers, mounts="s3://bucket/set")
    assert task.logs().startswith("more\n") and "Read-only" in task.logs()


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("s3://nothing/set", "there is no bucket `nothing`"),
        ("s3://bucket/nothing", "there is nothing at that path in the bucket `bucket`"),
    ],
)
def test_what_is_not_there_is_told_before_the_command_starts(
    client: Flow, tmp_path: Path, source: str, told: str
) -> None:
    task = finished(client, "echo ran", mounts={str(tmp_path / "seen"): source})
    assert (task.status, task.exit_code, task.logs()) == ("failed", 126, "")
    assert task.reason.startswith(f"cannot mount `{source}`: ") and told in task.reason


def test_wrong_credentials_are_told_before_the_command_starts(client: Flow, tmp_path: Path, aws: Aws) -> None:
    good = aws.ask_for_signatures("s3:*")
    seen = str(tmp_path / "seen")
    task = finished(client, f"cat {seen}/b.txt", mounts={seen: "s3://bucket/set"}, env=good)
    assert (task.status, task.logs()) == ("completed", "more\n"), "those of the task's own `env` come first"
    task = finished(client, "echo ran", mounts={seen: "s3://bucket/set"}, env={**good, "AWS_SECRET_ACCESS_KEY": "no"})
    assert (task.status, task.logs()) == ("failed", "")
    assert "AWS_SECRET_ACCESS_KEY is not the secret of the key" in task.reason


def test_without_credentials_nothing_is_submitted(client: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ValidationError, match="no AWS credentials"):
        client.submit("true", mounts="s3://bucket/set")
    assert client.tasks() == []


def test_nothing_is_mounted_within_what_can_only_be_read(client: Flow) -> None:
    with pytest.raises(ValidationError, match="lies within `/data`, which can only be read"):
        client.submit("true", mounts={"/data": "s3://bucket/set", "/data/out": "volume://out"})
    assert client.volumes() == []
