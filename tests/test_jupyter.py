"""Notebooks in a running task: a real Jupyter server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from flow.errors import ResourceNotFoundError, ValidationError
from tests.support.commands import flow
from tests.support.components import require
from tests.support.processes import free_port, processes_of, wait_until
from tests.test_transfer import end, running

PATH = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"


@pytest.fixture(autouse=True)
def jupyter(monkeypatch: pytest.MonkeyPatch) -> None:
    require("jupyter_server", "a real server is started")
    monkeypatch.setenv("PATH", PATH)


def names_at(url: str) -> list[str]:
    """The files that a server shows at its root."""
    address, _, token = url.partition("?token=")
    root = "/".join(address.split("/")[:3])
    request = urllib.request.Request(f"{root}/api/contents", headers={"Authorization": f"token {token}"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return sorted(one["name"] for one in json.load(response)["content"])


def test_a_server_shows_the_workspace_to_who_has_the_token_and_ends_with_its_user(
    project: Path, tmp_path: Path
) -> None:
    (project / "notebook.ipynb").write_text("{}")
    task = running(num_instances=2)
    for node in (0, 1):
        with task.jupyter(node=node) as server:
            assert server.url.startswith("http://127.0.0.1:")
            assert names_at(server.url) == ["notebook.ipynb"]
            with pytest.raises(urllib.error.HTTPError, match="403"):
                names_at(server.url.partition("?")[0] + "?token=wrong")
            token = server.url.partition("?token=")[2]
            assert len(token) == 48
            assert [one for one in processes_of(tmp_path) if token in one.command] == []
            assert server.is_running
        with pytest.raises(urllib.error.URLError, match="refused"):
            names_at(server.url)
    end(task)
    with pytest.raises(ValidationError, match="is cancelled: a Jupyter server needs a running task"):
        task.jupyter()


def test_the_server_of_the_task_itself_is_opened_and_goes_on(project: Path) -> None:
    port = free_port()
    task = running(f"exec jupyter server --no-browser --allow-root --port={port}", ports=[port])
    url = task.endpoints["jupyter"]
    with task.jupyter() as server:
        assert server.url == url
    assert names_at(url) == []
    end(task)


def test_the_command_prints_the_address_and_ends_with_ctrl_c_or_the_task(project: Path) -> None:
    task = running()
    words = [sys.executable, "-m", "flow", "jupyter", str(task)]
    for send in (lambda process: process.send_signal(signal.SIGINT), lambda process: end(task)):
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout
            url = process.stdout.readline().strip()
            assert names_at(url) == []
            send(process)
            _, said = process.communicate(timeout=60)
        assert (process.returncode, said) in [(130, "\n"), (0, f"`{task}` has ended: cancelled\n")]
        with pytest.raises(urllib.error.URLError, match="refused"):
            names_at(url)
    assert process.returncode == 0


def test_where_there_is_no_jupyter_it_is_said_how_to_come_by_it(project: Path) -> None:
    task = running(env={"PATH": "/usr/bin:/bin"})
    with pytest.raises(ResourceNotFoundError, match="there is no Jupyter where") as raised:
        task.jupyter()
    assert raised.value.suggestions[0].endswith("-- python3 -m pip install jupyterlab`")
    assert flow("jupyter", str(task)).returncode == 4
    end(task)


def test_what_keeps_a_server_from_starting_is_told(project: Path) -> None:
    (project / "bin").mkdir()
    program = project / "bin" / "jupyter-lab"
    program.write_text("#!/bin/sh\necho first >&2; echo the reason >&2; exit 1\n")
    program.chmod(0o755)
    task = running(env={"PATH": f"{project}/bin:/usr/bin:/bin"})
    ended = flow("jupyter", str(task))
    assert (ended.returncode, ended.stderr) == (1, f"error: Jupyter did not start in `{task}`: the reason\n")
    end(task)
    assert wait_until(lambda: not [one for one in processes_of(project) if "cat" in one.command])
