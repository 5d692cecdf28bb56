"""How soon a task sees what is on S3: from nothing, and where an earlier task left the mount or the objects.

Against a server on this machine, so that the network's part is none. The floor is the same program's own bare mount
without a check, a cache or a keeper, and the first byte through that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.support.aws import Aws, aws_server

from bench.figures import Figure, median, milliseconds
from bench.place import wait_until
from flow.node import fuse, remains, s3

PROGRAMS = ("rclone", "s3fs")


def measure(*, quick: bool) -> list[Figure]:
    """For each program that is here; nothing where none is, or this user cannot mount."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return []
    root = Path(tempfile.mkdtemp(prefix="flow-bench-s3-"))
    before = dict(os.environ)
    figures: list[Figure] = []
    try:
        with aws_server(root) as aws:
            aws.bucket("bucket", {"data/file": b"x" * 4096})
            for program, path in [(name, shutil.which(name)) for name in PROGRAMS]:
                if path:
                    (root / program / "bin").mkdir(parents=True)
                    (root / program / "bin" / program).symlink_to(path)
                    os.environ["PATH"] = str(root / program / "bin")
                    figures += _measure(program, aws, root / program, rounds=3 if quick else 10)
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(root)
    return figures


def _measure(program: str, aws: Aws, folder: Path, rounds: int) -> list[Figure]:
    first, again, shared, floor = [], [], [], []
    for number in range(rounds):
        cache = folder / f"cache{number}"
        with _Attached(aws, cache) as attached:
            first.append(milliseconds(attached))
        with _Attached(aws, cache) as attached:
            again.append(milliseconds(attached))
            shared.append(milliseconds(attached))
        floor.append(_bare(program, aws, folder / "bare"))
    name = f"bare {program}"
    return [
        Figure(f"S3 by {program}: first byte, first time", median(first), "ms", median(floor), name),
        Figure(f"S3 by {program}: first byte, mounted again", median(again), "ms", median(floor), name),
        Figure(f"S3 by {program}: first byte, mounted still", median(shared), "ms", median(floor), name),
    ]


class _Attached:
    """Calling it attaches and reads; at the end the mount is gone."""

    def __init__(self, aws: Aws, cache: Path) -> None:
        self.aws, self.cache, self.held = aws, cache, list[tuple[str, int]]()
        os.environ["FLOW_S3_LINGER_SECONDS"] = "0"

    def __call__(self) -> None:
        self.held.append(s3.attach("bucket/data", self.aws.access, str(self.cache)))
        (Path(self.held[-1][0]) / "file").read_bytes()

    def __enter__(self) -> _Attached:
        return self

    def __exit__(self, *_: object) -> None:
        keeper = Path(self.held[0][0]).parent / "keeper"
        for _, fd in self.held:
            os.close(fd)
        wait_until(lambda: not remains.is_locked(str(keeper)))


def _bare(program: str, aws: Aws, at: Path) -> float:
    """Milliseconds until the first byte of the program's own mount."""
    at.mkdir(exist_ok=True)
    access = aws.access
    if program == "s3fs":
        argv = ["s3fs", "bucket:/data", str(at), "-f", "-o", f"url={aws.url},use_path_request_style,ro"]
    else:
        argv = ["rclone", "mount", ":s3:bucket/data/", str(at), "--config", "", "--s3-provider", "Other"]
        argv += ["--s3-endpoint", aws.url, "--read-only"]
        access = {name.replace("AWS", "RCLONE_S3"): value for name, value in access.items()}
    env = {"PATH": fuse.SYSTEM_PATH, "HOME": str(at.parent), **access}

    def read() -> None:
        nonlocal running
        running = subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(_seen(at / "file"))
        (at / "file").read_bytes()

    running: subprocess.Popen[bytes] | None = None
    spent = milliseconds(read)
    assert running
    running.terminate()  # as the keeper's programs, it then unmounts
    running.wait(20)
    return spent


def _seen(path: Path) -> Callable[[], bool]:
    def is_there() -> bool:
        try:
            return path.exists()
        except OSError:  # half mounted
            return False

    return is_there
