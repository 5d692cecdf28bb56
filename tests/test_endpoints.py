"""The URLs of a task: of its ports while it runs, and of a Jupyter server once that answers."""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

import flow
from flow import Task
from flow.errors import NoEndpointError, ResourceNotFoundError
from tests.support.components import require
from tests.support.processes import free_port


@pytest.fixture
def jupyter(monkeypatch: pytest.MonkeyPatch) -> str:
    """The command of a Jupyter server that may be anybody's, root's too."""
    require("jupyter_server", "a real server is looked up by its name")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin")
    return "exec jupyter server --ip=0.0.0.0 --no-browser --ServerApp.allow_root=True"


def served(command: str, **fields: object) -> Task:
    return flow.run(command, upload_code=False, **fields)  # type: ignore[arg-type]


def end(task: Task) -> None:
    task.cancel()
    assert task.wait(60).is_final


def answer(url: str) -> dict[str, object]:
    with urllib.request.urlopen(url, timeout=10) as response:
        found: dict[str, object] = json.load(response)
        return found


def test_a_jupyter_server_is_found_with_its_token(jupyter: str) -> None:
    port = free_port()
    task = served(f"sleep 0.3; {jupyter} --port={port}", ports=[free_port(), port])
    assert (dict(task.endpoints), len(task.endpoints), task.endpoints.get("jupyter")) == ({}, 0, None)
    url = task.endpoints["jupyter"]
    assert re.fullmatch(rf"http://127\.0\.0\.1:{port}/(lab|tree)?\?token=\w+", url)
    token = url.partition("?")[2]
    assert answer(f"http://127.0.0.1:{port}/api/status?{token}")["kernels"] == 0
    assert f"{flow.get_task(str(task)).endpoints['jupyter']}" == url
    end(task)
    with pytest.raises(NoEndpointError, match="ended as cancelled: there is no Jupyter server"):
        task.endpoints["jupyter"]


def test_a_server_below_a_path_whose_token_is_set_is_found_too(jupyter: str) -> None:
    port = free_port()
    options = f"--port={port} --ServerApp.base_url=/deep/er/"
    task = served(f"JUPYTER_TOKEN=mine {jupyter} {options}", ports=port)
    assert task.endpoints["jupyter"].partition("?")[0].startswith(f"http://127.0.0.1:{port}/deep/er/")
    assert "mine" not in task.endpoints["jupyter"]
    end(task)


def test_a_server_that_had_to_take_another_port_is_not_taken_for_that_of_the_port(jupyter: str) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        task = served(f"{jupyter} --port={port}", ports=port)
        with pytest.raises(NoEndpointError, match=r"Jupyter serves port \d+, which is none of the `ports`"):
            task.endpoints["jupyter"]
    end(task)


def test_a_log_that_only_mentions_a_server_is_waited_over() -> None:
    port = free_port()
    wrong = f"[W ServerApp] 404 GET /api/x (@127.0.0.1) 1.00ms referer=http://127.0.0.1:{port}/lab"
    task = served(
        f"echo '{wrong}'; echo http://127.0.0.1:{port}/; printf 'http://127.0.0.1:{port}/?token='", ports=port
    )
    with pytest.raises(NoEndpointError, match="ended as completed: there is no Jupyter server"):
        task.endpoints["jupyter"]


def test_a_port_is_waited_for_until_the_task_runs() -> None:
    first = served("sleep 300")
    task = served("sleep 300", ports=[8888, 6006], depends_on=f"{first}:ended")
    threading.Timer(0.3, first.cancel).start()
    assert task.endpoints["6006"] == "http://127.0.0.1:6006"
    assert (dict(task.endpoints), "8888" in task.endpoints, repr(task.endpoints)) == (
        {"8888": "http://127.0.0.1:8888", "6006": "http://127.0.0.1:6006"},
        True,
        "{'8888': 'http://127.0.0.1:8888', '6006': 'http://127.0.0.1:6006'}",
    )
    assert task.endpoints == {"8888": "http://127.0.0.1:8888", "6006": "http://127.0.0.1:6006"}
    end(task)
    assert dict(task.endpoints) == {}


@pytest.mark.parametrize(
    ("fields", "name", "message", "hint"),
    [
        ({"ports": [8888]}, "jupiter", "has no endpoint `jupiter`", "did you mean `jupyter`?"),
        ({"ports": [8888]}, "8889", "has no endpoint `8889`", "it has 8888, and `jupyter` where one of them is that"),
        ({}, "8888", "has no endpoint `8888`", "name the ports that it serves, as `ports=[8888]`"),
        ({}, "jupyter", "serves no port", "name the one of the server, as `ports=[8888]`"),
        ({"ports": [8888], "hold": True}, "jupyter", "is held", "let it start with `flow resume"),
        ({"ports": [8888], "array": "0-1"}, "8888", "is an array", "ask one of its elements"),
    ],
)
def test_what_can_never_come_is_not_waited_for(fields: dict[str, object], name: str, message: str, hint: str) -> None:
    task = served("sleep 300", **fields)
    began = time.monotonic()
    with pytest.raises(NoEndpointError, match=message) as raised:
        task.endpoints[name]
    assert (isinstance(raised.value, ResourceNotFoundError), isinstance(raised.value, KeyError)) == (True, True)
    assert str(raised.value) == raised.value.message
    assert raised.value.suggestions[0].startswith(hint)
    assert time.monotonic() - began < 60
    end(task)
