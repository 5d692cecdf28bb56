"""Volumes of a fleet: folders on its hosts, seen by tasks there and, through sshfs, by tasks elsewhere."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flow.client import Flow
from flow.errors import ProviderError, ResourceNotFoundError, StorageError, ValidationError
from flow.machines import Volume
from flow.task import Task
from tests.support.aws import Aws
from tests.support.commands import flow as command
from tests.support.components import require
from tests.support.containers import IMAGE
from tests.support.fleet import Fleet, Host
from tests.support.processes import wait_until


@pytest.fixture
def client(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Flow:
    require("sshfs", "a volume is reached from another host")
    monkeypatch.chdir(tmp_path)
    return client_of(fleet, monkeypatch)


def client_of(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Flow:
    monkeypatch.setenv("FLOW_PROVIDER", "ssh")
    monkeypatch.setenv("FLOW_SSH_HOSTS", ",".join(fleet.hosts))
    monkeypatch.setenv("FLOW_SSH_SSH_CONFIG", str(fleet.config))
    return Flow()


def finished(client: Flow, command: str, **fields: Any) -> Task:
    task = client.run(command, upload_code=False, **fields)
    task.wait(timeout=60)
    return task


def running(client: Flow, command: str, **fields: Any) -> Task:
    task = client.run(command, upload_code=False, **fields)
    assert wait_until(lambda: task.refresh().status == "running", seconds=60), (task.status, task.reason)
    return task


def cancelled(*tasks: Task) -> None:
    for task in tasks:
        task.cancel()
    assert [task.wait(timeout=60) for task in tasks] == ["cancelled"] * len(tasks)


def host_of(task: Task) -> str:
    return task.get_instances()[0].instance_id


def data(host: Host, volume: Volume) -> str:
    return f"{host.home}/.flow-host/volumes/{volume.volume_id}/data"


def left(host: Host) -> str:
    """What is mounted, or was left of a mount; nothing once that has gone."""

    def found() -> str:
        return host.run("grep fuse.sshfs /proc/mounts; ls -A /root/.flow-host/mounts 2>/dev/null", check=False).stdout

    wait_until(lambda: not found(), seconds=60)
    return found()


def is_mounted(host: Host) -> bool:
    return "fuse.sshfs" in host.run("cat /proc/mounts").stdout


# -- making and finding


def test_a_volume_is_a_folder_on_the_host_that_is_named(client: Flow, fleet: Fleet) -> None:
    made = command("volume", "create", "datasets", "--size-gb", "100", "--region", "gpu3")
    (volume,) = client.volumes()
    assert made.stdout == f"{volume.volume_id}  datasets  100 GB  block  gpu3\n"
    folder = data(fleet.hosts["gpu3"], volume)
    assert volume.folder == f"gpu3:{folder}"
    assert f"folder     gpu3:{folder}\n" in command("volume", "info", "datasets").stdout
    fleet.hosts["gpu3"].run(f"test -d {folder}")
    assert client.create_volume(100, "datasets") == volume
    for fields in ({"size_gb": 200}, {"size_gb": 100, "region": "gpu1"}):
        with pytest.raises(ValidationError, match="there is a volume `datasets` already"):
            client.create_volume(name="datasets", **fields)
    with pytest.raises(ValidationError, match="no host `gpu9` in the fleet"):
        client.create_volume(1, "other", region="gpu9")
    client.delete_volume("datasets")
    assert client.volumes() == []
    fleet.hosts["gpu3"].run(f"! test -e {folder}")
    with pytest.raises(ResourceNotFoundError, match=f"there is no volume `{volume.volume_id}`"):
        client.provider().volumes.delete(volume.volume_id)  # type: ignore[union-attr]


def test_a_damaged_volume_is_named_and_its_host_is_not_taken_for_one_that_is_away(client: Flow, fleet: Fleet) -> None:
    volume = client.create_volume(1, "disk", region="gpu2")
    file = data(fleet.hosts["gpu2"], volume)[: -len("data")] + "volume.json"
    fleet.hosts["gpu2"].run(f"echo {{ >{file}")
    with pytest.raises(StorageError, match=f"the volume file `{file}` cannot be read: .*write it again, as"):
        client.volumes()
    assert not (client.home / "ssh/silent/gpu2").exists()


def test_what_was_made_for_a_task_lies_where_it_fits_and_goes_with_it_if_that_was_asked(
    empty_fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_fleet.boot("plain")
    empty_fleet.boot("big", gpus=2)
    client = client_of(empty_fleet, monkeypatch)
    kept = finished(client, "echo 1 > /flow-kept/one", gpu="a100", mounts={"/flow-kept": "volume://kept"})
    assert (kept.status, client.get_volume("kept").region) == ("completed", "big")
    scratch = [{"size_gb": 1, "mount_path": "/flow-scratch", "ephemeral": True}]
    task = finished(client, "touch /flow-scratch/x; test $FLOW_ATTEMPT = 2", retries=1, volumes=scratch)
    assert task.status == "completed"
    assert [one.name for one in client.volumes()] == ["kept"]
    assert (
        empty_fleet.hosts["big"].run("ls /root/.flow-host/volumes").stdout == client.get_volume("kept").volume_id + "\n"
    )


# -- where tasks are put, and what they see


def test_a_task_goes_to_its_volume_and_two_on_two_hosts_see_what_the_other_writes(client: Flow, fleet: Fleet) -> None:
    fleet.acquaint()
    volume = client.create_volume(1, "shared", interface="file", region="gpu3")
    wait = "echo {0} > /data/{0}; until test -s /data/{1}; do sleep 0.05; done; cat /data/{1}; rm /data/{1}"
    until = "; until test -e /data/go; do sleep 0.05; done"
    first = running(client, wait.format("first", "second") + until, gpu="a100:4", volumes={"/data": "shared"})
    second = running(client, wait.format("second", "first") + until, gpu="a100:4", volumes={"/data": "shared"})
    assert host_of(first) == "gpu3" and host_of(second) != "gpu3"
    far = fleet.hosts[host_of(second)]
    assert is_mounted(far) and not is_mounted(fleet.hosts["gpu3"])
    assert client.get_volume("shared").used_by == tuple(sorted((first.task_id, second.task_id)))
    with pytest.raises(ValidationError, match="the volume `shared` is used by"):
        client.delete_volume("shared")
    fleet.hosts["gpu3"].run(f"touch {data(fleet.hosts['gpu3'], volume)}/go")
    assert [task.wait(timeout=60) for task in (first, second)] == ["completed"] * 2
    assert (first.logs(), second.logs()) == ("second\n", "first\n")
    assert wait_until(lambda: left(far) == "")
    client.prune(keep=0)
    fleet.hosts["gpu3"].run(f"touch -d '2 minutes ago' {data(fleet.hosts['gpu3'], volume)}/../holders/*")
    assert client.get_volume("shared").used_by == (), "who is not on record any more"
    assert fleet.hosts["gpu3"].run(f"ls {data(fleet.hosts['gpu3'], volume)}").stdout == "go\n"


def test_nodes_and_elements_share_a_volume_wherever_they_are(client: Flow, fleet: Fleet) -> None:
    fleet.acquaint()
    volume = client.create_volume(1, "shared", interface="file", region="gpu2")
    nodes = finished(client, "hostname > /data/$FLOW_NODE_RANK", num_instances=3, volumes={"/data": "shared"})
    assert nodes.status == "completed", nodes.reason
    written = fleet.hosts["gpu2"].run(f"cd {data(fleet.hosts['gpu2'], volume)}; cat 0 1 2; rm *").stdout.split()
    assert len(set(written)) == 3 and "gpu2" in written
    array = finished(
        client, "hostname > /data/$FLOW_ARRAY_INDEX", gpu="a100:4", array="1-4", volumes={"/data": "shared"}
    )
    assert array.status == "completed", array.reason
    written = fleet.hosts["gpu2"].run(f"cat {data(fleet.hosts['gpu2'], volume)}/*").stdout.split()
    assert len(written) == 4
    assert [left(host) for host in fleet.hosts.values()] == [""] * 4


def test_a_host_that_does_not_get_to_the_volume_is_refused_in_the_words_of_ssh(client: Flow, fleet: Fleet) -> None:
    client.create_volume(1, "disk", region="gpu2")
    with pytest.raises(ValidationError) as refused:
        client.run("true", region="gpu1", volumes={"/data": "disk"}, upload_code=False)
    assert refused.value.message.startswith("`gpu1` cannot have the volume `disk`, which is on gpu2: `ssh root@198.18.")
    assert "Permission denied (publickey" in refused.value.message
    assert "`ssh gpu2`: ssh: Could not resolve hostname gpu2" in refused.value.message
    holder = running(client, "sleep 1000", gpu="a100:4", region="gpu2")
    waits = client.run("true", gpu="a100", volumes={"/data": "disk"}, upload_code=False)
    assert waits.refresh().status == "pending" and waits.reason.startswith("waits for its turn on gpu2")
    cancelled(holder)
    assert waits.wait(timeout=60) == "completed"


def test_what_is_missing_on_a_host_is_told(empty_fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    require("sshfs", "a volume is reached from another host")
    empty_fleet.boot_all("bare", without=("sshfs",))
    empty_fleet.boot_all("gpu1", "gpu2", gpus=1)
    empty_fleet.acquaint()
    empty_fleet.hosts["gpu1"].run("umount /dev/fuse && rm /dev/fuse")
    client = client_of(empty_fleet, monkeypatch)
    client.create_volume(1, "disk", region="gpu2")
    for host, why in (("bare", "`sshfs` is not here: install it"), ("gpu1", "this user has no /dev/fuse here")):
        with pytest.raises(ValidationError, match=f"`{host}` cannot have the volume `disk`, which is on gpu2: {why}"):
            client.run("true", region=host, volumes={"/data": "disk"}, upload_code=False)
    with pytest.raises(ValidationError, match="no host of the fleet has 999 CPUs") as refused:
        client.run("true", cpus=999, volumes={"/data": "disk"}, upload_code=False)
    assert "`sshfs` is not here" in " ".join(refused.value.suggestions)


def test_a_volume_whose_host_is_away_is_known_and_said_to_be_there(client: Flow, fleet: Fleet) -> None:
    client.create_volume(1, "disk", region="gpu2")
    fleet.hosts["gpu2"].run("pkill -9 sshd")
    assert [(one.name, one.region) for one in client.volumes()] == [("disk", "gpu2")]
    for act in (
        lambda: client.run("true", volumes={"/data": "disk"}, upload_code=False),
        lambda: client.delete_volume("disk"),
    ):
        with pytest.raises(ProviderError, match="the volume `disk` is on gpu2: `gpu2` cannot be reached"):
            act()
    with pytest.raises(ProviderError, match="`gpu2` cannot be reached"):
        client.create_volume(1, "other", region="gpu2")
    with pytest.raises(ValidationError, match="there is a volume `disk` already"):
        client.create_volume(2, "disk")
    assert client.create_volume(1, "other").region != "gpu2"
    fleet.hosts["gpu2"].reboot()
    assert finished(client, "true", volumes={"/data": "disk"}).status == "completed"


def test_two_clients_do_not_both_hold_a_block_volume(
    client: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create_volume(1, "disk")
    holder = running(client, "sleep 1000", volumes={"/data": "disk"})
    monkeypatch.setenv("FLOW_HOME", str(tmp_path / ".own" / "other"))
    other = Flow()
    with pytest.raises(ValidationError, match=f"the block volume `disk` is held by `{holder}`"):
        other.run("true", volumes={"/data": "disk"}, upload_code=False)
    after = other.get_volume("disk")
    assert after.used_by == (holder.task_id,)
    cancelled(holder)
    assert finished(other, "true", volumes={"/data": "disk"}).status == "completed"


def test_of_clients_that_make_one_name_at_once_one_does(
    client: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = []
    for number in range(1, 5):
        monkeypatch.setenv("FLOW_HOME", str(tmp_path / ".own" / f"other{number}"))
        clients.append(Flow())
    assert [one.volumes() for one in clients] == [[]] * 4  # all are connected

    def make(number: int, size_gb: int) -> Volume | ValidationError:
        try:
            return clients[number].create_volume(size_gb, f"disk{size_gb}", region=f"gpu{number % 3 + 1}")
        except ValidationError as error:
            return error

    for size_gb in range(1, 6):
        with ThreadPoolExecutor(4) as threads:
            made = list(threads.map(lambda number: make(number, size_gb), range(4)))  # noqa: B023
        kept = {one.volume_id for one in made if isinstance(one, Volume)}
        (there,) = (one for one in client.volumes() if one.name == f"disk{size_gb}")
        assert kept == {there.volume_id}
        assert all(one.message.endswith("already") for one in made if isinstance(one, ValidationError))


_TWIN = """
mkdir -p ~/.flow-host/volumes/vol-2/data ~/.flow-host/volumes/vol-2/holders
echo '{"volume_id": "vol-2", "name": "disk", "size_gb": 1, "created": 1}' > ~/.flow-host/volumes/vol-2/volume.json
"""


def test_a_name_of_two_volumes_names_none(client: Flow, fleet: Fleet) -> None:
    volume = client.create_volume(1, "disk", region="gpu1")
    fleet.hosts["gpu2"].run(_TWIN)  # as by a client whose fleet has that host alone
    told = f"`disk` is the name of 2 volumes: `{volume.volume_id}` (gpu1) and `vol-2` (gpu2)"
    for words in (["info", "disk"], ["delete", "disk", "--yes"]):
        refused = command("volume", *words)
        assert (refused.returncode, refused.stderr) == (2, f"error: {told}\n\nhint: name one by its id\n")
    with pytest.raises(ValidationError, match="is the name of 2 volumes"):
        client.run("true", volumes={"/data": "disk"}, upload_code=False)
    assert command("volume", "delete", "vol-2", "--yes").returncode == 0
    assert client.get_volume("disk") == volume


# -- ends


@pytest.mark.parametrize("end", ["cancel", "runner", "keeper", "both"])
def test_nothing_stays_mounted_however_it_ends(client: Flow, fleet: Fleet, end: str) -> None:
    fleet.acquaint()
    volume = client.create_volume(1, "disk", region="gpu2")
    task = running(client, "echo 1 > /data/one; sleep 1000", region="gpu1", volumes={"/data": "disk"})
    far, written = fleet.hosts["gpu1"], f"test -s {data(fleet.hosts['gpu2'], volume)}/one"
    assert wait_until(lambda: fleet.hosts["gpu2"].run(written, check=False).returncode == 0, seconds=60)
    assert is_mounted(far)
    folder = f"/root/.flow-host/tasks/{task}/1/0"
    if end == "runner":
        far.run(f"kill -9 $(grep -o '\"runner_pid\": [0-9]*' {folder}/status.json | grep -o '[0-9]*$')")
        assert task.wait(timeout=60) == "lost"
    elif end == "keeper":
        far.run("pkill -9 -f '[s]shfs.py keep'")
        assert wait_until(lambda: not is_mounted(far), seconds=60)
        cancelled(task)
    elif end == "both":
        far.run("pkill -9 -f '[s]shfs'")
        cancelled(task)
    else:
        cancelled(task)
    if end in ("keeper", "both"):
        assert finished(client, "cat /data/one", region="gpu1", volumes={"/data": "disk"}).logs() == "1\n"
    assert left(far) == ""
    assert fleet.hosts["gpu2"].run(f"cat {data(fleet.hosts['gpu2'], volume)}/one").stdout == "1\n"


# -- one more, while it runs


def test_running_tasks_are_given_a_volume_on_whatever_host_they_are(client: Flow, fleet: Fleet) -> None:
    fleet.acquaint()
    volume = client.create_volume(1, "late", interface="file", region="gpu1")
    words = "until test -e /mnt/late/go; do sleep 0.05; done; echo x >/mnt/late/$(hostname)"
    near, far = (running(client, words, region=name) for name in ("gpu1", "gpu2"))
    nodes = running(client, words + ".n", num_instances=2)
    for task in (near, far, far, nodes):
        assert client.mount_volume("late", task) == "/mnt/late"
    assert command("mount", "late", far.task_id).stdout == f"{far}  /mnt/late\n"
    fleet.hosts["gpu1"].run(f"touch {data(fleet.hosts['gpu1'], volume)}/go")
    assert [task.wait(timeout=60) for task in (near, far, nodes)] == ["completed"] * 3
    listed = fleet.hosts["gpu1"].run(f"ls {data(fleet.hosts['gpu1'], volume)}").stdout.split()
    assert {"go", "gpu1", "gpu2"} < set(listed) and len(listed) == 5
    assert [left(host) for host in fleet.hosts.values()] == [""] * 4


def test_a_task_is_given_a_volume_of_its_own_provider_wherever_the_command_is_typed(
    client: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create_volume(1, "late", region="gpu1")
    Flow(provider="local").create_volume(1, "late")
    task = running(client, "sleep 1000", region="gpu1")
    monkeypatch.delenv("FLOW_PROVIDER")
    told = command("mount", "late", task.task_id)
    assert (told.returncode, told.stdout) == (0, f"{task}  /mnt/late\n"), told.stderr
    assert client.get_volume("late").used_by == (task.task_id,)
    cancelled(task)


def test_a_running_task_on_a_host_that_cannot_is_told_why_and_holds_nothing(client: Flow, fleet: Fleet) -> None:
    client.create_volume(1, "late", region="gpu1")
    task = running(client, "sleep 1000", region="gpu2")
    with pytest.raises(ValidationError) as refused:
        client.mount_volume("late", task)
    told = refused.value.message
    assert f"`{task}` cannot be given the volume `late`: the volume is on another host, `gpu1`: `sshfs root@" in told
    assert "Permission denied" in told
    assert client.get_volume("late").used_by == ()
    cancelled(task)


# -- users and containers


def test_an_ordinary_user_has_volumes_by_fusermount(empty_fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    require("fusermount3", "an ordinary user reaches a volume from another host")
    empty_fleet.boot_all("gpu1", "gpu2", user="alice")
    empty_fleet.acquaint()
    for host in empty_fleet.hosts.values():
        host.run("umount /dev/fuse && rm /dev/fuse && mknod -m 666 /dev/fuse c 10 229")
    client = client_of(empty_fleet, monkeypatch)
    volume = client.create_volume(1, "shared", interface="file", region="gpu2")
    words = "touch /data/ready-$(hostname) && stat -c %U /data/ready*; until test -e /data/go; do sleep 0.1; done"
    tasks = [running(client, words, region=name, volumes={"/data": "shared"}) for name in ("gpu2", "gpu1")]
    at = data(empty_fleet.hosts["gpu2"], volume)
    assert wait_until(lambda: empty_fleet.hosts["gpu2"].run(f"ls {at} | grep -c ready", check=False).stdout == "2\n")
    far = empty_fleet.hosts["gpu1"]
    assert is_mounted(far)
    assert client.mount_volume(client.create_volume(1, "late", region="gpu2"), tasks[0]) == "/mnt/late"
    other = client.create_volume(1, "other", region="gpu2")
    with pytest.raises(ValidationError, match="a mount does not get into the task of an ordinary user"):
        client.mount_volume(other, tasks[1])
    empty_fleet.hosts["gpu2"].run(f"touch {at}/go")
    assert [task.wait(timeout=60) for task in tasks] == ["completed"] * 2
    assert {*tasks[0].logs().split(), *tasks[1].logs().split()} == {"alice"}
    assert wait_until(lambda: not is_mounted(far), seconds=60)


def test_a_container_has_a_volume_of_another_host(empty_fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    require("sshfs", "a volume is reached from another host")
    empty_fleet.boot_all("gpu1", "gpu2")
    empty_fleet.acquaint()
    empty_fleet.hosts["gpu1"].start_docker()
    client = client_of(empty_fleet, monkeypatch)
    volume = client.create_volume(1, "data", region="gpu2")
    late = client.create_volume(1, "late", region="gpu2")
    words = "echo 1 > /data/one; until test -e /mnt/late/go; do sleep 0.1; done; echo 2 > /mnt/late/two"
    task = running(client, words, image=IMAGE, region="gpu1", volumes={"/data": "data"})
    assert client.mount_volume("late", task) == "/mnt/late"
    gpu2 = empty_fleet.hosts["gpu2"]
    gpu2.run(f"touch {data(gpu2, late)}/go")
    assert (task.wait(timeout=60), task.reason) == ("completed", "")
    assert gpu2.run(f"cat {data(gpu2, volume)}/one {data(gpu2, late)}/two").stdout == "1\n2\n"
    assert left(empty_fleet.hosts["gpu1"]) == ""


def test_objects_of_s3_are_read_on_a_host(
    client: Flow, fleet: Fleet, aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("s3fs", "S3 is mounted")
    aws.bucket("bucket", {"set/a.txt": b"hello\n"})
    for name, value in {**aws.access, "AWS_ENDPOINT_URL": "http://127.0.0.1:9000"}.items():
        monkeypatch.setenv(name, value)
    there = ["ssh", "-F", fleet.config, "-N", "-R", f"9000:{aws.url.rpartition('/')[2]}", "gpu1"]
    with subprocess.Popen(there, stdin=subprocess.DEVNULL) as tunnel:
        asks = "grep -q ':2328 .* 0A' /proc/net/tcp"  # 9000, and that somebody listens
        assert wait_until(lambda: fleet.hosts["gpu1"].run(asks, check=False).returncode == 0, seconds=60)
        task = finished(client, "cat /data/a.txt", region="gpu1", mounts="s3://bucket/set")
        assert (task.status, task.logs()) == ("completed", "hello\n"), task.reason
        tunnel.terminate()
