"""The start of a task with an image on a new machine: onto a blank volume at /var/lib/docker, and with what that kept.

Machines of namespaces with a real Docker, which pulls from a registry beside it: elsewhere a pull takes what the
network takes. Needs root, and what ./test installs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

from tests.support.containers import image_archive, podman
from tests.support.machines import Machine, disk
from tests.support.registries import HOST, registry

from bench.figures import Figure
from flow.node import runner

_LOGIN = {"registry": HOST, "username": "AWS", "password": "word"}


def measure(*, quick: bool) -> list[Figure]:
    """Seconds from the runner's start to the end of a task that does nothing; mounts, and Docker's start, included."""
    megabytes = 50 if quick else 500
    with ExitStack() as after:
        folder = Path(after.enter_context(tempfile.TemporaryDirectory(prefix="flow-bench-")))
        (folder / "registry").mkdir()
        variables = after.enter_context(podman(folder / "podman"))
        private = after.enter_context(registry(folder / "registry", _LOGIN["password"]))
        _make_image(folder / "image", megabytes, os.environ | variables)
        image = private.put("large", "large:1", _LOGIN["password"], os.environ | variables)
        device = after.enter_context(disk(folder / "disk", size_mb=10 * megabytes))
        mounts = [{"kind": "device", "source": device, "target": "/var/lib/docker"}]
        first, _ = _start(folder / "first", {"image": image, "mounts": mounts}, private.variables)
        second, alone = _start(folder / "second", {"image": image, "mounts": mounts}, private.variables)
    floor = {"floor": alone, "floor_name": "docker run alone"}
    return [
        Figure(f"start of a {megabytes} MB image, blank volume", first, "s", **floor),
        Figure("again, on another machine with that volume", second, "s", aim=3, **floor),
    ]


def _make_image(file: Path, megabytes: int, environment: dict[str, str]) -> None:
    """A large image called `large`, which cannot be compressed."""
    file.write_bytes(image_archive())
    with tarfile.open(file, "a") as tar:
        for number in range(megabytes // 10):
            part = tarfile.TarInfo(f"data{number}")
            part.size = 10_000_000
            tar.addfile(part, BytesIO(os.urandom(part.size)))
    subprocess.run(["podman", "import", file, "large"], check=True, capture_output=True, env=environment)


def _start(folder: Path, task: dict[str, Any], variables: dict[str, str]) -> tuple[float, float]:
    """Seconds of the task on a new machine, and of the same container afterwards; the machine is gone then."""
    (folder / "task/inbox").mkdir(parents=True)
    (folder / "task/inbox/registry.json").write_text(json.dumps(_LOGIN))
    whole = {
        "task_id": "task-06f3k2m9q7xw1d",
        "argv": ["true"],
        "env": {},
        "clean_env": True,
        "engine": "docker",
        **task,
    }
    (folder / "task/task.json").write_text(json.dumps({**whole, "needs": ["inbox/registry.json"]}))
    machine = Machine(folder / "machine", variables)
    try:
        machine.start_docker()
        took = _seconds(machine, sys.executable, runner.__file__, "run", str(folder / "task"))
        status = (folder / "task/status.json").read_text()
        assert json.loads(status)["code"] == 0, status
        alone = _seconds(machine, "docker", "run", "--rm", "--network", "host", task["image"], "true")
        machine.run("sync")
    finally:
        machine.end()
    return took, alone


def _seconds(machine: Machine, *argv: str) -> float:
    begin = time.perf_counter()
    machine.run(*argv)
    return time.perf_counter() - begin
