"""Where a task is reached: a URL for each of its ports; looking up `jupyter` waits for the server and its token."""

from __future__ import annotations

import contextlib
import http.client
import json
import posixpath
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flow.errors import NoEndpointError, ValidationError, did_you_mean
from flow.status import TaskStatus

if TYPE_CHECKING:
    from flow.task import Task

JUPYTER = "jupyter"
_FIRST_PAUSE, _LAST_PAUSE = 0.05, 1.0  # seconds between looks while waiting
_PROBE_SECONDS = 20.0  # a connection through ssh and a step of Slurm takes seconds on a busy machine
# The line on which a Jupyter server names itself when it begins to serve: a log prefix, or nothing, and the URL
# (jupyter_server, `ServerApp.display_url`). It shows `...` in place of a token that was given to it.
_ANNOUNCED = re.compile(
    r"\s*(?:\[[^\]]*\])?\s*(?:or )?(?P<scheme>https?)://[^\s/]+:(?P<port>\d+)(?P<path>/[^\s?]*)(?:\?token=(?P<token>\S*))?\s*"
)
_ALLOWED = ("Origin", "Credentials")  # headers by which a server lets a page of another origin use it
_IS_JUPYTER = re.compile(r"App\]|\?token=")


@dataclass(frozen=True, slots=True)
class Announcement:
    """The address that a Jupyter server wrote to the task's log."""

    attempt: int
    scheme: str
    port: int
    path: str
    token: str

    def url(self, address: str) -> str:
        """What to open where its port is reached at `address` (host:port)."""
        return f"{self.scheme}://{address}{self.path}" + (f"?token={self.token}" if self.token else "")


class Endpoints(Mapping[str, str]):
    """URL by port (`"8888"`), while the task runs. `["jupyter"]` is that of the Jupyter server on one of its ports.

    Only `[...]` waits, for as long as the task may still come to run and to serve. `jupyter` can be looked up but is
    not listed: whether a server answers is known only when it is asked, and which it is only by the address that it
    writes to the task's log. Looking up what is not there and cannot come raises NoEndpointError.
    """

    def __init__(self, task: Task) -> None:
        self._task = task

    def __iter__(self) -> Iterator[str]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())

    def __contains__(self, name: object) -> bool:
        return name in self._now()

    def __repr__(self) -> str:
        return repr(self._now())

    def get(self, name: str, default: Any = None) -> Any:
        """The URL of a port, or `default` where there is none now. Never waits."""
        return self._now().get(name, default)

    def __getitem__(self, name: str) -> str:
        name = str(name)
        if name == JUPYTER:
            return self._jupyter()
        if name not in map(str, self._task.plan.ports):
            raise NoEndpointError(f"`{self._task.task_id}` has no endpoint `{name}`", suggestions=self._advice(name))
        pause = _pauses()
        while True:
            found = self._now(refresh=True)
            if name in found:
                return f"http://{self._reached(int(name)) or found[name][7:]}"
            self._check_it_may_come(f"port {name}")
            time.sleep(next(pause))

    def _now(self, *, refresh: bool = False) -> dict[str, str]:
        task = self._task.refresh() if refresh else self._task
        host = self._host() if task.status is TaskStatus.RUNNING and task.plan.ports else None
        return {str(port): f"http://{host}:{port}" for port in task.plan.ports} if host else {}

    def _host(self) -> str | None:
        """The address of the first machine, once there is one."""
        machines = self._task.get_instances()
        return machines[0].public_ip or machines[0].private_ip if machines and not self._task.is_array else None

    def _reached(self, port: int) -> str | None:
        """Where a port is forwarded to from now on; None where its machine is reached as it is."""
        with contextlib.suppress(ValidationError):  # it ended just now
            return self._task.reached_at(port)
        return None

    def _advice(self, name: str) -> list[str]:
        ports = [str(port) for port in self._task.plan.ports]
        if not ports:
            return ["name the ports that it serves, as `ports=[8888]`"]
        return [*did_you_mean(name, [JUPYTER]), f"it has {', '.join(ports)}, and `{JUPYTER}` where one of them is that"]

    def _jupyter(self) -> str:
        """The URL of the server that the task's log announces and that answers on one of its ports."""
        if not self._task.plan.ports:
            raise NoEndpointError(
                f"`{self._task.task_id}` serves no port", suggestions=["name the one of the server, as `ports=[8888]`"]
            )
        log, pause = JupyterLog(self._task), _pauses()
        while True:
            self._task.refresh()
            host = self._host() if self._task.status is TaskStatus.RUNNING else None
            announced = log.announced() if host else None
            if host and announced and announced.port not in self._task.plan.ports:
                raise NoEndpointError(
                    f"Jupyter serves port {announced.port}, which is none of the `ports` of `{self._task.task_id}`",
                    suggestions=[
                        f"name it, as `ports=[{announced.port}]`, or have Jupyter use another one by `--port`",
                        "Jupyter takes the next port where its own is in use",
                    ],
                )
            address = announced and host and (self._reached(announced.port) or f"{host}:{announced.port}")
            if announced and address and answers(address, announced):
                return announced.url(address)
            self._check_it_may_come("Jupyter server")
            time.sleep(next(pause))

    def _check_it_may_come(self, what: str) -> None:
        task = self._task
        if task.status.is_final:
            raise NoEndpointError(
                f"`{task.task_id}` ended as {task.status}: there is no {what}",
                suggestions=[f"see why with `flow logs {task.task_id}`"],
            )
        if task.is_held:
            raise NoEndpointError(
                f"`{task.task_id}` is held", suggestions=[f"let it start with `flow resume {task.task_id}`"]
            )
        if task.is_array:
            raise NoEndpointError(f"`{task.task_id}` is an array", suggestions=["ask one of its elements"])


class JupyterLog:
    """What a task wrote, read a piece at a time for the newest address that a server announced there."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._cursor: str | None = None
        self._newest: Announcement | None = None

    def announced(self) -> Announcement | None:
        """The last one of the newest attempt that wrote anything."""
        for line in self._task.lines(node=0, cursor=self._cursor):
            if not line.is_whole:
                break  # its end is still to come
            self._cursor = line.cursor
            if self._newest and self._newest.attempt != line.attempt:
                self._newest = None
            text = line.text.decode(errors="replace")
            self._newest = announcement(text, line.attempt) or self._newest
        return self._newest


def announcement(line: str, attempt: int) -> Announcement | None:
    """What a line that a server wrote tells of its address."""
    found = _ANNOUNCED.fullmatch(line) if _IS_JUPYTER.search(line) else None
    if not found:
        return None
    token = found["token"] if found["token"] not in (None, "...") else ""
    return Announcement(attempt, found["scheme"], int(found["port"]), found["path"], token)


def answers(address: str, announced: Announcement, *, origin: str = "") -> bool:
    """Whether a Jupyter server answers there: its `/api` tells its version to anyone, and to pages of `origin`."""
    path = posixpath.join(posixpath.dirname(announced.path), "api")
    connection = _connection(address, announced)
    try:
        # closed at its end, without which a step of Slurm keeps the last line of what is forwarded back
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        if origin and [answer.getheader(f"Access-Control-Allow-{name}") for name in _ALLOWED] != [origin, "true"]:
            return False
        return answer.status == http.client.OK and "version" in json.loads(answer.read(4096))
    except (OSError, ValueError, TypeError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _connection(address: str, announced: Announcement) -> http.client.HTTPConnection:
    if announced.scheme == "http":
        return http.client.HTTPConnection(address, timeout=_PROBE_SECONDS)
    # nothing secret is sent, and such servers sign their own certificates
    unchecked = ssl._create_unverified_context()
    return http.client.HTTPSConnection(address, timeout=_PROBE_SECONDS, context=unchecked)


def _pauses() -> Iterator[float]:
    pause = _FIRST_PAUSE
    while True:
        yield pause
        pause = min(pause * 1.2, _LAST_PAUSE)
