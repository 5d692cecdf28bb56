"""Uses of the public API as a type checker sees them; never run. A line is right unless it names the mistake in it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import flow
from flow import Flow, Task, TaskConfig, TaskStatus, Volume, errors


def submitting() -> None:
    task: Task = flow.run("python train.py", instance_type="a100", max_run_time_hours=12)
    task = flow.run(["python", "train.py"], gpu="a100:8", env={"LR": 0.1, "NAME": "x"}, retries=2, ports=8888)
    task = flow.run(Path("task.yaml"), name="other", idempotency_key="monday")
    task = flow.run(TaskConfig(name="x", volumes=[{"size_gb": 100, "mount_path": "/data"}]), env={"A": "1"})
    task = flow.submit("true", depends_on=task, begin=datetime.now())
    flow.run(command="true")
    flow.run("true", instance="a100")  # error: call-arg
    flow.run("true", retries="twice")  # error: arg-type
    flow.run(7)  # error: arg-type
    flow.run("true", "a100")  # error: call-arg
    TaskConfig(num_instances="four")  # error: arg-type
    TaskConfig(comand="true")  # error: call-arg
    with Flow() as client:
        task = client.submit("python train.py --data /data", gpu="a100", mounts="s3://my-bucket/imagenet")
        task = client.run(None, name="box", gpu="a100")
        client.submit("true", mount="s3://b")  # error: call-arg
        client.run("true", image=3)  # error: arg-type


def storing(task: Task) -> None:
    volume: Volume = flow.create_volume(size_gb=1000, name="datasets")
    several: list[Volume] = Flow().volumes()
    path: str = flow.mount_volume(volume, task)
    flow.run("true", volumes=[{"volume_id": volume.volume_id, "mount_path": "/data"}])
    flow.create_volume("1000")  # error: arg-type
    flow.mount_volume(7, task)  # error: arg-type
    print(several, path)


def finding() -> None:
    some: list[Task] = flow.tasks(states=["running", TaskStatus.PENDING], limit=None, name_pattern="dev-*")
    flow.cancel("train", *some)
    flow.get_task("train").cancel()
    flow.tasks(state="running")  # error: call-arg
    flow.get_task(7)  # error: arg-type
    flow.cancel(some)  # error: arg-type


def a_task(task: Task, follow: bool) -> None:
    text: str = task.logs(tail=100)
    lines: Iterator[str] = task.logs(follow=True, stderr=True)
    either: str | Iterator[str] = task.logs(follow=follow)
    text = task.logs(follow=True)  # error: assignment
    lines = task.logs()  # error: assignment
    lines = (line.text.decode() for line in task.lines(follow=True, stream="stderr", node=1))
    task.lines(stream="both")  # error: arg-type
    code: int = task.shell("nvidia-smi", node=1)
    ran: subprocess.CompletedProcess[str] = task.shell(["ls", "-l"], capture=True)
    task.shell(capture=True)  # error: call-overload
    status: TaskStatus = task.wait(timeout=3600, check=True)
    created: datetime = task.created_at
    url: str = task.endpoints["jupyter"]
    address: str | None = task.get_instances()[0].public_ip
    who: str = task.get_user().email
    copied: Path = task.copy_from("output/model.pt", node=1)
    task.copy_to(copied, "model.pt")
    updated: tuple[str, ...] = task.upload_code("project").updated
    with task.forward(8888, 9000) as port, task.jupyter() as server:
        print(port.address + server.url)
    task.status = status  # error: misc
    print(text, lines, either, code, ran, created, url, address, who, updated)


def an_error(error: errors.FlowError) -> str:
    suggestions: tuple[str, ...] = error.suggestions
    return error.message + error.code + "".join(suggestions)
