"""The startup script by the real cloud-init, under the real systemd, on a machine with a kernel of its own (qemu).

`./test -m slow` runs it: 65 s once for the machine's disk, which pytest's cache keeps, and a minute a boot where
nothing else is at work; on two busy cores both tests took 15 minutes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from flow.client import Flow
from flow.errors import ProviderError
from flow.task import Task
from tests.support.aws import Aws
from tests.support.containers import IMAGE
from tests.support.mithril_cloud import Cloud
from tests.support.processes import no_attendant, wait_until
from tests.support.registries import HOST, TOKEN, Registry, registry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
_BOOT = "cat /proc/sys/kernel/random/boot_id"
_PATIENCE = {"seconds": 900, "every": 1.0}


@pytest.fixture
def cache(pytestconfig: pytest.Config) -> Path:
    """A folder that is there the next time, too."""
    assert pytestconfig.cache
    return pytestconfig.cache.mkdir("debian")


def test_a_task_survives_a_reboot_and_its_machine_pauses_when_nobody_comes(
    at_mithril: Flow, cloud: Cloud, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.give_kernels(cache)
    monkeypatch.setenv("FLOW_MITHRIL_GRACE_MINUTES", "0.05")
    client = Flow()
    task = client.run(
        "echo attempt $FLOW_ATTEMPT; cat /data/kept; echo kept >/data/kept;"
        "[ $FLOW_ATTEMPT != 1 ] || exec sleep 10000; until [ -e /tmp/go ]; do sleep 0.2; done",
        upload_code=False,
        volumes=[{"mount_path": "/data", "size_gb": 1}],
    )
    cloud.await_bid(task.task_id, "Allocated", seconds=600)
    assert wait_until(lambda: "attempt 1\n" in _logs(task), **_PATIENCE)
    host = cloud.host(task.task_id)
    assert wait_until(lambda: "done" in host.run("cloud-init status", check=False).stdout, **_PATIENCE)
    first = host.run(_BOOT).stdout
    host.run("(sleep 1; systemctl reboot) >/dev/null 2>&1 &")
    assert wait_until(lambda: "attempt 2\n" in _logs(task), **_PATIENCE)
    assert host.run(_BOOT).stdout != first
    assert wait_until(lambda: "done" in host.run("cloud-init status", check=False).stdout, **_PATIENCE)
    host.run("grep -c 'Running command.*part-001' /var/log/cloud-init.log | grep -qx 1")  # the script, once

    with no_attendant(client.home):
        host.run("touch /tmp/go")
        cloud.await_bid(task.task_id, "Paused", seconds=600)
    assert client.tasks(refresh=True)[0].reason.startswith("completed, and not collected yet")
    assert task.wait(timeout=900) == "completed"
    lines = [line for line in task.logs().splitlines() if "No such file" not in line]
    assert lines == ["attempt 1", "attempt 2", "kept"]
    assert [str(one.status) for one in task.attempts] == ["preempted", "completed"]
    assert wait_until(lambda: client.held() == [], seconds=60)


def _logs(task: Task) -> str:
    with suppress(ProviderError):  # while it boots
        return task.logs()
    return ""


@pytest.fixture
def private(cloud: Cloud, aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """Amazon's registry, for whose login there are credentials here."""
    for name, value in aws.access.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "registry").mkdir()
    with registry(tmp_path / "registry", TOKEN, cloud.gateway) as one:
        yield one


def test_a_machine_without_docker_is_given_one_and_pulls_a_private_image(
    at_mithril: Flow, cloud: Cloud, cache: Path, private: Registry, podman_variables: dict[str, str]
) -> None:
    image = private.put(IMAGE, "team/app:1", TOKEN, os.environ | podman_variables)
    proxy = private.variables["HTTP_PROXY"]
    files = {
        "/etc/docker/daemon.json": json.dumps({"insecure-registries": [HOST]}),
        "/etc/systemd/system/docker.service.d/proxy.conf": f"[Service]\nEnvironment=HTTP_PROXY={proxy}\n",
        "/usr/bin/nvidia-container-runtime-hook": "#!/bin/sh\n",  # as where NVIDIA's toolkit is
    }
    cloud.give_kernels(cache, files)
    task = at_mithril.run("env | grep ^NVIDIA; echo from a container", image=image, upload_code=False)
    assert task.wait(timeout=3000) == "completed", (task.reason, task.logs())
    assert task.logs() == "NVIDIA_VISIBLE_DEVICES=0\nfrom a container\n"
