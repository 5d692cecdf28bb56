"""Tasks with an image on machines of the stand-in for the Mithril cloud, in a real Docker there."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from flow.client import Flow
from tests.support.aws import Aws
from tests.support.containers import IMAGE
from tests.support.mithril_cloud import Cloud
from tests.support.processes import wait_until
from tests.support.registries import TOKEN, registry


@pytest.fixture
def client(at_mithril: Flow) -> Flow:
    return at_mithril


def test_a_container_has_the_machines_gpus_memory_volumes_and_caches(client: Flow, cloud: Cloud) -> None:
    cloud.give_docker()
    task = client.run(
        "pwd; env | grep -e ^NVIDIA -e ^XDG; busybox readlink /proc/self/ns/ipc; echo kept >/data/kept;"
        "echo a wheel >$XDG_CACHE_HOME/wheel; id -u; until [ -e /data/go ]; do sleep 0.1; done",
        image=IMAGE,
        gpu="8xa100",
        upload_code=False,
        volumes=[{"mount_path": "/data", "size_gb": 1}],
    )
    assert wait_until(lambda: "1000\n" in task.logs(), seconds=120, every=0.2), task.reason
    host = cloud.host(task.task_id)
    seen = host.run(
        "cat /mnt/flow/*/kept /mnt/local/cache/wheel; readlink /proc/self/ns/ipc; touch $(echo /mnt/flow/*)/go"
    )
    kept, wheel, memory = seen.stdout.splitlines()
    assert (kept, wheel) == ("kept", "a wheel")
    assert task.wait(timeout=90) == "completed", (task.reason, task.logs())
    assert sorted(task.logs().splitlines()) == sorted(
        ["/workspace", "NVIDIA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7", "XDG_CACHE_HOME=/mnt/local/cache", memory, "1000"]
    )


def test_caches_lie_on_the_machines_own_disk_unless_the_task_says_otherwise(client: Flow) -> None:
    tasks = [
        client.run("echo $XDG_CACHE_HOME; touch $XDG_CACHE_HOME/x", upload_code=False, env=env)
        for env in ({}, {"XDG_CACHE_HOME": "/tmp"})
    ]
    assert [task.wait(timeout=90) for task in tasks] == ["completed", "completed"]
    assert [task.logs() for task in tasks] == ["/mnt/local/cache\n", "/tmp\n"]


@pytest.fixture
def private_image(
    cloud: Cloud, aws: Aws, podman_variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """One that machines get from Amazon's registry, for whose login there are credentials here."""
    for name, value in aws.access.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "registry").mkdir()
    with registry(tmp_path / "registry", TOKEN, cloud.gateway) as private:
        cloud.give_docker(private.variables)
        yield private.put(IMAGE, "team/app:1", TOKEN, os.environ | podman_variables)


def test_a_private_image_is_pulled_with_a_login_that_nobody_sees(
    client: Flow, cloud: Cloud, private_image: str
) -> None:
    task = client.run("echo from a private image; sleep 1000", image=private_image, upload_code=False)
    assert wait_until(lambda: "from a private image" in task.logs(), seconds=120, every=0.2), task.reason
    host = cloud.host(task.task_id)
    (host.folder / "root/words").write_text(f"{TOKEN}\n{base64.b64encode(f'AWS:{TOKEN}'.encode()).decode()}\n")
    places = "/home /root /opt /tmp /var/log /proc/[0-9]*/cmdline /proc/[0-9]*/environ"
    found = host.run(f"grep -rlF -f /words {places} | xargs stat -c '%a %n'").stdout
    assert found == f"600 /home/ubuntu/.flow-host/tasks/{task}/inbox/registry.json\n", "for its next attempt"
    assert cloud.leaks(TOKEN) == []
    client.cancel(task)
    assert task.wait(timeout=60) == "cancelled"
