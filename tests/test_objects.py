"""An object of S3 is put there whole or not at all, in parts where it is large; so is what a task left."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flow.node import objects, record_copy
from flow.node.objects import PART_BYTES, Failed
from flow.node.s3_place import Place
from tests.support.aws import Aws
from tests.support.processes import wait_until
from tests.support.pythons import old_pythons

KEY = "task/0 é+&.tar.gz"


@pytest.fixture
def bucket(aws: Aws) -> Any:
    return aws.bucket("bucket", {})


@pytest.fixture
def place(aws: Aws, bucket: Any) -> Place:
    return objects.locate("bucket/some/path/", aws.access)


def read(place: Place, aws: Aws) -> bytes:
    with objects.opened(place, aws.access, KEY) as source:
        return bytes(source.read())


def uploads(bucket: Any) -> list[Any]:
    return list(bucket.list_multipart_uploads(Bucket="bucket").get("Uploads", []))


@pytest.mark.parametrize("size", [0, 1000, PART_BYTES, PART_BYTES + 1])
def test_what_is_put_is_read_back_to_the_byte(place: Place, aws: Aws, bucket: Any, size: int) -> None:
    content = os.urandom(1000) * (size // 1000) + b"." * (size % 1000)
    assert not objects.is_there(place, aws.access, KEY)
    objects.put(place, aws.access, KEY, io.BytesIO(content))
    assert objects.is_there(place, aws.access, KEY)
    assert bucket.head_object(Bucket="bucket", Key=f"some/path/{KEY}")["ContentLength"] == size
    assert read(place, aws) == content
    assert uploads(bucket) == []


class Breaks(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        if self.tell() >= PART_BYTES:
            raise Failed("it broke")
        return super().read(size)


def test_of_what_breaks_off_nothing_is_there(place: Place, aws: Aws, bucket: Any) -> None:
    with pytest.raises(Failed, match="it broke"):
        objects.put(place, aws.access, KEY, Breaks(bytes(2 * PART_BYTES)))
    assert (objects.is_there(place, aws.access, KEY), uploads(bucket)) == (False, [])


def test_a_check_leaves_nothing(place: Place, aws: Aws, bucket: Any) -> None:
    objects.check_writable(place, aws.access, KEY)
    assert (objects.opened(place, aws.access, KEY), uploads(bucket)) == (None, [])


def test_what_stands_in_the_way_is_told_in_a_sentence(aws: Aws, bucket: Any) -> None:
    nowhere = {**aws.access, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    with pytest.raises(Failed, match="there is no bucket `nothing` at http"):
        objects.locate("nothing/path", aws.access)
    with pytest.raises(Failed, match="no bucket can be called `-`"):
        objects.locate("-/path", aws.access)
    with pytest.raises(Failed, match=r"cannot reach http://127\.0\.0\.1:9: .*refused"):
        objects.locate("bucket/path", nowhere)
    with pytest.raises(Failed, match=r"cannot reach http://127\.0\.0\.1:9: .*refused"):
        objects.opened(Place("bucket", "", nowhere["AWS_ENDPOINT_URL"], "us-east-1"), nowhere, KEY)


def test_who_may_only_write_need_not_list(aws: Aws, bucket: Any) -> None:
    access = aws.ask_for_signatures("s3:PutObject", "s3:AbortMultipartUpload")
    place = objects.locate("bucket/path", access)
    objects.check_writable(place, access, KEY)
    objects.put(place, access, KEY, io.BytesIO(b"content"))
    with pytest.raises(Failed, match=r"who has these credentials may not read what is in `s3://bucket/path/`"):
        objects.opened(place, access, KEY)


# A machine's part.


@pytest.fixture
def asked(tmp_path: Path, aws: Aws, bucket: Any) -> dict[str, Any]:
    """Of an array of which one element has run twice and one never."""
    tasks = tmp_path / "tasks"
    for name in ("1/0/workspace/code.py", "1/0/output/a b/x", "1/0/inbox/s3.json", "1/0/env.json", "2/0/stdout.log"):
        file = tasks / "task-1_1" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    (tasks / "task-1_1" / "1" / "0" / "output" / "link").symlink_to("a b/x")
    (tasks / "task-2").mkdir()
    (tasks / "task-1_2").mkdir()
    (tasks / "task-1_2" / "ended").write_text("{}")
    (tasks / "task-1").mkdir()
    (tasks / "task-1" / "meta.json").write_text("{}")
    return {
        "tasks": str(tasks),
        "task_id": "task-1",
        "source": "bucket",
        "access": aws.access,
        "names": ["0"],
        "own": 0,
    }


def copy(asked: dict[str, Any], python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    words = [python, "-S", record_copy.__file__]
    return subprocess.run(words, input=json.dumps(asked), capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("python", [sys.executable, *old_pythons()])
def test_what_a_task_left_is_copied_once(asked: dict[str, Any], bucket: Any, python: str) -> None:
    assert copy(asked, python).returncode == 0
    content = bucket.get_object(Bucket="bucket", Key="0")["Body"].read()
    names = subprocess.run(["tar", "-tz"], input=content, capture_output=True, check=True).stdout.decode().split("\n")
    assert sorted(one for one in names if one and not one.endswith("/")) == [
        "task-1/meta.json",
        "task-1_1/1/0/output/a b/x",
        "task-1_1/1/0/output/link",
        "task-1_1/2/0/stdout.log",
        "task-1_2/ended",
    ]
    bucket.delete_object(Bucket="bucket", Key="0")
    assert copy(asked, python).returncode == 0
    assert "Contents" not in bucket.list_objects_v2(Bucket="bucket")


def test_it_is_done_once_all_machines_have(asked: dict[str, Any]) -> None:
    two = {**asked, "names": ["0", "1"]}
    assert copy(two).returncode == record_copy.OTHERS
    (Path(asked["tasks"]) / "task-1" / "copied").unlink()  # as of another machine
    assert copy({**two, "own": 1}).returncode == 0
    assert copy(two).returncode == 0


def test_what_cannot_be_packed_is_not_copied(asked: dict[str, Any], bucket: Any) -> None:
    (Path(asked["tasks"]) / "task-1" / "meta.json").unlink()
    failed = copy(asked)
    assert (failed.returncode, failed.stderr.startswith("what the task left cannot be packed: ")) == (1, True), failed
    assert "Contents" not in bucket.list_objects_v2(Bucket="bucket")


def test_a_copy_that_takes_too_long_leaves_nothing_that_is_billed(
    asked: dict[str, Any], bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the machine's guard ends it, in the middle of an upload in parts."""
    tar = tmp_path / "bin" / "tar"
    tar.parent.mkdir()
    tar.write_text("#!/bin/sh\nhead -c 6000000 /dev/zero; exec sleep 1000\n")
    tar.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tar.parent}:{os.environ['PATH']}")
    node = Path(record_copy.__file__).parent
    script = f"import sys; sys.path.insert(0, {str(node)!r}); import objects, record_copy; objects.PART_BYTES = 5 << 20"
    words = ["timeout", "-k", "10", "1000", sys.executable, "-c", f"{script}; sys.exit(record_copy.main())"]

    def parts() -> list[Any]:
        uploads = bucket.list_multipart_uploads(Bucket="bucket").get("Uploads", [])
        return [bucket.list_parts(Bucket="bucket", Key="0", UploadId=one["UploadId"]).get("Parts") for one in uploads]

    with subprocess.Popen(words, stdin=subprocess.PIPE) as process:
        assert process.stdin
        process.stdin.write(json.dumps(asked).encode())
        process.stdin.close()
        assert wait_until(lambda: any(parts()), seconds=30)
        process.terminate()
    assert parts() == []
