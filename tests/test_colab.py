"""A machine behind Google Colab's page: what is started, what it answers, what is printed."""

from __future__ import annotations

import re
import shlex
import signal
import urllib.request
from pathlib import Path

import pytest

import flow as flow_module
from flow.jupyter import COLAB
from tests.support.commands import flow, started
from tests.support.processes import free_port
from tests.test_jupyter import (
    jupyter,  # noqa: F401  # a fixture
    names_at,
)
from tests.test_transfer import end, running

GOES_ON = r"note: `(task-\w+)` goes on for 3h5\dm at most\nhint: end it with `flow cancel \1`\n"


def allowed(url: str) -> list[str | None]:
    """The origin to whose pages a server answers, and whether with cookies."""
    with urllib.request.urlopen(f"http://{url.split('/')[2]}/api", timeout=30) as answer:
        return [answer.headers[f"Access-Control-Allow-{name}"] for name in ("Origin", "Credentials")]


def url_of(printed: str) -> str:
    found = re.match(r"url     (http://localhost:\d+/\?token=[0-9a-f]{48})\n", printed)
    assert found, printed
    return found[1]


def test_one_machine_serves_colab_until_it_is_cancelled(project: Path) -> None:
    first = flow("colab", "connect")
    url = url_of(first.stdout)
    assert re.fullmatch(rf"task-\w+  colab  cpu  local\nhint: in Colab choose .*\n{GOES_ON}", first.stderr)
    assert allowed(url) == [COLAB, "true"]
    assert names_at(url) == []
    (project / "tools.py").touch()
    assert flow("upload-code", "colab").returncode == 0
    assert names_at(url) == ["tools.py"]
    assert flow("colab", "connect", "--hours", "4", "--print").stdout == first.stdout

    other = flow("colab", "connect", "--hours", "5")
    assert other.returncode == 2
    assert re.match(r"error: `task-\w+` serves Colab already, and ends after 4 hours\n", other.stderr)
    assert "and runs in `no image`" in flow("colab", "connect", "--image", "busybox").stderr
    assert "and is of type `cpu`" in flow("colab", "connect", "-i", "a100").stderr

    assert flow("cancel", "colab").returncode == 0
    again = flow("colab", "connect", "--hours", "0.5")
    assert url_of(again.stdout) != url
    assert "goes on for 29m" in again.stderr or "goes on for 30m" in again.stderr
    assert flow("cancel", "colab").returncode == 0


def test_a_port_of_ones_choice_is_a_tunnel_here(project: Path) -> None:
    port = free_port()
    with started("colab", "connect", "--port", str(port)) as (process, line):
        url = url_of(line)
        assert url.startswith(f"http://localhost:{port}/")
        assert allowed(url) == [COLAB, "true"]
        taken = flow("colab", "connect", "--port", str(port))
        assert (taken.returncode, f"port {port} of this machine is taken" in taken.stderr) == (2, True)
        process.send_signal(signal.SIGINT)
        tunnel, said = (text.decode() for text in process.communicate(timeout=60))
    assert re.fullmatch(rf"tunnel  flow forward task-\w+ \d+:{port}\n", tunnel)
    assert re.search(rf"\n\n{GOES_ON}", said)
    assert process.returncode == 130
    assert flow("cancel", "colab").returncode == 0


def jupyter_task(*options: str) -> flow_module.Task:
    """A task that serves Jupyter, and lets Colab's page in."""
    port = free_port()
    words = ["--no-browser", "--allow-root", f"--port={port}", f"--ServerApp.allow_origin={COLAB}", *options]
    task = running(f"exec jupyter server --ServerApp.allow_credentials=True {shlex.join(words)}", ports=[port])
    assert task.endpoints["jupyter"]
    return task


def test_a_task_whose_server_is_open_to_anybody_gets_one_which_ends_with_the_command(project: Path) -> None:
    task = jupyter_task("--IdentityProvider.token=")
    with started("colab", "connect", str(task)) as (process, line):
        url = url_of(line)
        assert allowed(url) == [COLAB, "true"]
        process.send_signal(signal.SIGINT)
        process.wait(60)
    with pytest.raises(OSError, match="refused"):
        allowed(url)
    assert "ends with this command" in flow("colab", "connect", str(task), "--print").stderr
    assert "nothing of its machine can be chosen" in flow("colab", "connect", str(task), "--hours", "1").stderr
    end(task)


def test_the_server_of_a_task_that_lets_the_page_in_is_used(project: Path) -> None:
    task = jupyter_task()
    with task.jupyter(origin=COLAB) as server:
        assert (server.is_own, server.url.rpartition("=")[2]) == (False, task.endpoints["jupyter"].rpartition("=")[2])
    with task.jupyter(origin="https://other.example.com") as server:
        assert server.is_own
    end(task)


def test_where_there_is_no_jupyter_it_is_said_how_to_come_by_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    ended = flow("colab", "connect")
    task = flow_module.get_task("colab")
    assert (ended.returncode, task.status, task.exit_code) == (4, "failed", 69)
    assert ended.stderr.partition("\n")[2] == (
        f"error: there is no Jupyter where `{task}` ran\n\n"
        "hint: install it on that machine: `python3 -m pip install jupyterlab`\n"
        "hint: or use an image that has it: `--image quay.io/jupyter/base-notebook`\n"
    )


def test_what_ends_it_is_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(project, "jupyter-lab", "echo the reason >&2; exit 3")
    monkeypatch.setenv("PATH", f"{project}/bin:/usr/bin:/bin")
    ended = flow("colab", "connect")
    assert ended.returncode == 1
    assert re.search(r"error: `(task-\w+)` has ended: .*\n\nhint: see what it said with `flow logs \1`\n", ended.stderr)


def test_a_notebook_before_7_has_its_own_options_and_an_extension(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(project, "jupyter-notebook", 'printf "%s\\n" "$@" >&2; exit 3')
    program(project, "jupyter-serverextension", "exit 1")  # which there is for those alone
    monkeypatch.setenv("PATH", f"{project}/bin:/usr/bin:/bin")
    flow("colab", "connect")
    *first, port, own, extension, origin, credentials = flow_module.get_task("colab").logs(stderr=True).splitlines()
    assert first == ["--no-browser", "--allow-root", "--ip=127.0.0.1"]
    assert int(port.removeprefix("--port=")) > 0
    assert own == "--NotebookApp.port_retries=0"
    assert extension == "--NotebookApp.nbserver_extensions={'jupyter_http_over_ws': True}"
    assert [origin, credentials] == [
        f"--NotebookApp.allow_origin={COLAB}",
        "--NotebookApp.allow_credentials=True",
    ]


def program(project: Path, name: str, script: str) -> None:
    """A program on the PATH of tests that put `bin` there."""
    path = project / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
