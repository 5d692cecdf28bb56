"""Into a task whose machine is reached through ssh and a cluster's login node."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import flow as flow_module
from flow.errors import FlowError, ResourceNotFoundError
from tests.support.commands import flow
from tests.support.processes import free_port, wait_until
from tests.support.slurm import Cluster
from tests.support.sshd import sshd
from tests.test_forwarding import echoed, serving
from tests.test_jupyter import PATH, names_at
from tests.test_transfer import end, make_tree, running, tree


@pytest.fixture(autouse=True)
def afar(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The login node is another machine, which ssh reaches; without it there are no commands of Slurm here."""
    with sshd(tmp_path / "sshd", slurm.environment()) as server:
        monkeypatch.setenv("FLOW_PROVIDER", "slurm")
        monkeypatch.setenv("FLOW_SLURM_LOGIN", server.name)
        monkeypatch.setenv("FLOW_SLURM_SSH_CONFIG", str(server.config))
        monkeypatch.setenv("FLOW_SLURM_FOLDER", str(tmp_path / "shared"))
        monkeypatch.delenv("SLURM_CONF")
        yield


def test_files_go_there_and_back(project: Path, tmp_path: Path) -> None:
    whole = make_tree(tmp_path / "from here")
    grows = "while :; do echo line; done > grows & sleep 300"
    task = running(f"echo kept > $FLOW_OUTPUT/model; {grows}", num_instances=2)
    task.copy_to(tmp_path / "from here", node=1)
    assert task.shell("test -x 'from here/run.sh'", node=1) == 0
    assert task.copy_from("from here", tmp_path / "back", node=1) == tmp_path / "back"
    assert tree(tmp_path / "back") == whole
    with pytest.raises(ResourceNotFoundError, match="has no `from here`"):
        task.copy_from("from here")
    assert wait_until(lambda: task.shell("test $(wc -c < grows) -gt 100000") == 0)
    assert "grows" in tree(task.copy_from(".", "all"))
    with pytest.raises(FlowError, match=r"`no/such` of .* cannot be copied: .*No such file or directory"):
        task.copy_to(tmp_path / "back" / ".hidden", "no/such")
    big = os.urandom(5_000_000)
    (tmp_path / "big").write_bytes(big)
    task.copy_to(tmp_path / "big", "/tmp/")
    task.copy_to(tmp_path / "big")
    assert task.copy_from("big").read_bytes() == big
    assert task.copy_from("output/model").read_text() == "kept\n"
    end(task)
    assert task.copy_from("output/model").read_text() == "kept\n"
    with pytest.raises(ResourceNotFoundError, match="has no `big`"):
        task.copy_from("big", "gone")


def test_a_port_there_is_a_port_here(project: Path) -> None:
    port = free_port()
    task = serving(port, ports=[port])
    data = os.urandom(1_000_000)
    with task.forward(port) as forwarding:
        assert (forwarding.is_direct, forwarding.address != f"127.0.0.1:{port}") == (False, True)
        assert echoed(forwarding.address, data) == data
    address = task.endpoints[str(port)].removeprefix("http://")
    assert address.startswith("127.0.0.1:")
    assert echoed(address, data) == data
    assert task.endpoints[str(port)] == f"http://{address}"
    end(task)


def test_what_a_connection_is_told_comes_without_waiting_for_a_line(project: Path) -> None:
    port = free_port()
    talk = f"import socket; link = socket.create_server(('127.0.0.1', {port})); print('serves', flush=True)\n"
    talk += "link = link.accept()[0]\nwhile data := link.recv(99): link.sendall(data.upper())"
    task = flow_module.run([sys.executable, "-c", talk], upload_code=False)
    assert next(iter(task.logs(follow=True))) == "serves"
    with task.forward(port) as forwarding:
        host, _, local = forwarding.address.rpartition(":")
        with socket.create_connection((host, int(local)), timeout=60) as link, link.makefile("rb") as answers:
            for word in (b"ping", b"\0\xff\r\n\x04", b"pong"):
                link.sendall(word)
                assert answers.read(len(word)) == word.upper()
    end(task)


def test_who_follows_a_task_has_its_ports(project: Path) -> None:
    port = free_port()
    task = serving(port, ports=[port])
    words = [sys.executable, "-u", "-m", "flow", "logs", "-f", str(task)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        note = process.stderr.readline()
        found = re.fullmatch(rf"note: port {port} of `{task}` is here http://(127\.0\.0\.1:\d+)\n", note)
        assert found, note
        assert echoed(found[1], b"hello") == b"hello"
        end(task)
        assert process.communicate(timeout=30)[0] == "serves\n"
        assert process.returncode == 143


def test_code_is_brought_up_to_date_on_each_node(project: Path, tmp_path: Path) -> None:
    (project / "goes").write_text("1")
    task = running(num_instances=2)
    (project / "goes").unlink()
    (project / "new").write_text("2")
    (project / "new").chmod(0o755)
    ended = flow("upload-code", str(task), "--all-nodes")
    assert ended.stdout == "".join(f"[{rank}] updated  new\n[{rank}] removed  goes\n" for rank in (0, 1)), ended.stderr
    for rank in (0, 1):
        assert tree(task.copy_from(".", tmp_path / str(rank), node=rank)) == {"new": "-rwxr-xr-x2"}
    end(task)


def test_a_jupyter_server_there_is_opened_here_and_ends_with_its_user(project: Path) -> None:
    (project / "notebook.ipynb").write_text("{}")
    task = running(env={"PATH": PATH}, num_instances=2)
    with task.jupyter(node=1) as server:
        assert names_at(server.url) == ["notebook.ipynb"]
    end(task)


def test_a_function_is_kept_there(project: Path) -> None:
    lines = (
        "import os",
        "from flow import FlowApp",
        "app = FlowApp()",
        "@app.function",
        "def f(x): return [x, os.getpid()]",
        "if __name__ == '__main__':",
        "    with app.run(): print(f.remote(1)[0], len({pid for _, pid in f.map(range(100))}))",
    )
    (project / "app.py").write_text("\n".join(lines))
    ran = subprocess.run([sys.executable, "app.py"], capture_output=True, text=True, timeout=120)
    assert ran.stdout == "1 1\n", ran.stderr
