"""Ports of a task as ports of this machine: on this machine, and from afar through ssh."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import flow as flow_module
from flow import Task
from flow.errors import ValidationError
from tests.support.commands import flow
from tests.support.processes import free_port, wait_until

# echoes what it is sent once that has come to its end
ECHO = """\
import socket, sys, threading
def serve(link):
    parts = []
    while parts[-1:] != [b""]:
        parts.append(link.recv(65536))
    link.sendall(b"".join(parts))
    link.close()
listener = socket.create_server((sys.argv[2], int(sys.argv[1])))
print("serves", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],)).start()
"""


def serving(port: int, address: str = "127.0.0.1", **fields: object) -> Task:
    command = [sys.executable, "-c", ECHO, str(port), address]
    task = flow_module.run(command, upload_code=False, **fields)  # type: ignore[arg-type]
    assert next(iter(task.logs(follow=True))) == "serves"
    return task


def end(task: Task) -> None:
    task.cancel()
    assert task.wait(60).is_final


def echoed(address: str, data: bytes) -> bytes:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as link:
        sender = threading.Thread(target=lambda: (link.sendall(data), link.shutdown(socket.SHUT_WR)))
        sender.start()
        parts = [b"-"]
        while parts[-1]:
            parts.append(link.recv(65536))
        sender.join()  # it may still have to say that it has sent all
        return b"".join(parts[1:])


def test_connections_go_both_ways_side_by_side_and_are_ended() -> None:
    port, local = free_port(), free_port()
    task = serving(port)
    with task.forward(port, local) as forwarding:
        assert (forwarding.address, forwarding.is_direct) == (f"127.0.0.1:{local}", False)
        data = os.urandom(3_000_000)
        assert echoed(forwarding.address, data) == data
        answers: list[bytes] = []
        threads = [
            threading.Thread(target=lambda n=n: answers.append(echoed(forwarding.address, b"%d" % n))) for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers) == [b"%d" % n for n in range(8)]
        left = socket.create_connection(("127.0.0.1", local))
    assert left.recv(1) == b""
    left.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", local))
    end(task)


def test_a_port_of_this_machine_is_left_to_its_server() -> None:
    port = free_port()
    task = flow_module.run("sleep 300", upload_code=False, num_instances=2)
    assert wait_until(lambda: task.refresh().status == "running")
    with task.forward(port) as first, task.forward(port, node=1) as second:
        assert (first.address, first.is_direct) == (f"127.0.0.1:{port}", True)
        assert second.address == f"{task.get_instances()[1].private_ip}:{port}"
        socket.create_server(("127.0.0.1", port)).close()
    end(task)


def test_a_port_that_is_taken_is_refused_and_what_does_not_answer_is_told() -> None:
    task = serving(free_port())
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ValidationError, match=r"port \d+ of this machine is taken"),
    ):
        task.forward(8888, taken.getsockname()[1])
    told: list[str] = []
    silent = free_port()
    with task.forward(silent, 0, tell=told.append) as forwarding:
        assert echoed(forwarding.address, b"") == b""
        assert wait_until(lambda: told == [f"nothing answers at port {silent} of `{task}` yet"])
    end(task)
    with pytest.raises(ValidationError, match="is cancelled: a forwarded port needs a running task"):
        task.forward(silent)


@pytest.fixture
def started(project: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command line as a process, its outputs on pipes; it is killed at the end."""
    processes: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-u", "-m", "flow", *words]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_the_command_forwards_until_the_task_ends(started: Callable[..., subprocess.Popen[str]]) -> None:
    port, local = free_port(), free_port()
    task = serving(port, ports=[port])
    process = started("forward", str(task), f"{port}:{local}", str(port))
    assert process.stdout
    assert [process.stdout.readline() for _ in range(2)] == [
        f"{port}  http://127.0.0.1:{local}\n", f"{port}  http://127.0.0.1:{port}\n",
    ]  # fmt: skip
    assert echoed(f"127.0.0.1:{local}", b"hello") == b"hello"
    interrupted = started("forward", str(task))
    assert interrupted.stdout and interrupted.stdout.readline() == f"{port}  http://127.0.0.1:{port}\n"
    interrupted.send_signal(signal.SIGINT)
    assert interrupted.wait(30) == 130
    end(task)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, f"`{task}` has ended: cancelled\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "which port? "),
        (["0"], "`0` is no port"),
        (["8888:70000"], "`8888:70000` is no port"),
        (["http"], "`http` is no port"),
        ([":9000"], "`:9000` is no port"),
    ],
)
def test_what_is_no_port_is_told(project: Path, words: list[str], message: str) -> None:
    task = flow_module.run("sleep 300", upload_code=False)
    ended = flow("forward", str(task), *words)
    assert (ended.returncode, message in ended.stderr) == (2, True), ended.stderr
    end(task)
