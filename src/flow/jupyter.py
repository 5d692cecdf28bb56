"""A Jupyter server in a running task, reached from here: the one that the task serves, else one of our own."""

from __future__ import annotations

import posixpath
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import IO, TYPE_CHECKING

from flow.access import Place, entering, node_of
from flow.endpoints import Announcement, JupyterLog, announcement, answers
from flow.errors import FlowError, ResourceNotFoundError
from flow.forwarding import LOOPBACK, Forwarding
from flow.machines import Allocation

if TYPE_CHECKING:
    from flow.task import Task

COLAB = "https://colab.research.google.com"  # the origin of its page
COLAB_LABEL = "flow.colab"  # of a task whose command is `serving(COLAB)`
COLAB_PORT = 8888  # here, as Colab proposes it
_IMAGE = "quay.io/jupyter/base-notebook"  # has Jupyter
_NOT_INSTALLED = 69
_LOOK_SECONDS = 0.05
_END_SECONDS = 10  # for a server to end its kernels
# What there is of Jupyter. notebook < 7 names port 0 as its own where it was told to take any, and has an extension for
# old pages of Colab.
_FIND = r"""PATH=$PATH:$HOME/.local/bin
for name in jupyter-lab jupyter-notebook jupyter-server ""; do command -v "$name" >/dev/null && break; done
[ "$name" ] || exit 69
origin=$1 app=ServerApp port=0
set --
if [ "$name" = jupyter-notebook ] && command -v jupyter-serverextension >/dev/null; then
  app=NotebookApp
  port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])') || exit
  [ -z "$origin" ] || set -- "--$app.nbserver_extensions={'jupyter_http_over_ws': True}"
fi
[ -z "$origin" ] || set -- "$@" "--$app.allow_origin=$origin" "--$app.allow_credentials=True"
"""
_LEASH = r"""exec 3<&0
(cat <&3; kill -TERM $$) >/dev/null 2>&1 &
"""
_BEGIN = 'exec "$name" --no-browser --allow-root --ip=127.0.0.1 --port=$port --$app.port_retries=0 "$@" </dev/null 3<&-'
_SERVE = f"unset JUPYTER_TOKEN\n{_FIND}{_BEGIN}"
# Its token comes on standard input, where no list of processes shows it; it ends when that does, with whoever asked.
_START = f"""read -r JUPYTER_TOKEN; export JUPYTER_TOKEN
cd "${{2:-$FLOW_WORKSPACE}}" || exit
{_FIND}{_LEASH}{_BEGIN}"""


def serving(origin: str) -> list[str]:
    """The command of a task that serves notebooks to the page of an origin, with a token that its log tells."""
    return ["sh", "-c", _SERVE, "jupyter", origin]


class Jupyter:
    """A server at `url`, until `close` or the end of its `with` block; one that the task itself serves goes on."""

    def __init__(
        self,
        task: Task,
        find: Callable[[], Allocation | None],
        *,
        node: int,
        origin: str = "",
        local: int | None = None,
    ) -> None:
        """Find or start it, on that node, whose machines `find` gives while the task runs.

        origin: of a page that shall be able to use it; it is then at `localhost`. local: its port here.
        Raises ResourceNotFoundError where Jupyter is not installed there, FlowError where it does not start.
        """
        self._task, self._find, self._node, self._origin, self._local = task, find, node, origin, local
        self._server: subprocess.Popen[bytes] | None = None
        self._forwarding: Forwarding | None = None
        if COLAB_LABEL in task.plan.labels:
            self._await()
            return
        place = node_of(task, find(), node, "a Jupyter server")
        served = JupyterLog(task).announced() if node == 0 else None
        if not served or not self._join(served):
            self._start(place)

    @property
    def is_own(self) -> bool:
        """Whether it ends with this object."""
        return self._server is not None

    @property
    def is_direct(self) -> bool:
        """Whether nothing is needed to reach it."""
        return self._forwarding is not None and self._forwarding.is_direct

    @property
    def is_running(self) -> bool:
        """Whether our own server has not ended; of the task's, whether the task runs tells more."""
        return self._server is None or self._server.poll() is None

    def __enter__(self) -> Jupyter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End our own server with its kernels, and the forwarding."""
        if self._forwarding:
            self._forwarding.close()
        if self._server:
            _end(self._server)
            self._said.close()

    def _await(self) -> None:
        """Join the server that is the task's command."""
        log = JupyterLog(self._task)
        while not self._task.refresh().status.is_final:
            served = log.announced()
            if served and self._join(served):
                return
            time.sleep(_LOOK_SECONDS)
        if self._task.exit_code == _NOT_INSTALLED:
            raise ResourceNotFoundError(
                f"there is no Jupyter where `{self._task}` ran",
                suggestions=[
                    "install it on that machine: `python3 -m pip install jupyterlab`",
                    f"or use an image that has it: `--image {_IMAGE}`",
                ],
            )
        raise FlowError(
            f"`{self._task}` has ended: {self._task.reason or self._task.status}",
            suggestions=[f"see what it said with `flow logs {self._task}`"],
        )

    def _join(self, served: Announcement) -> bool:
        """Whether the server that the task serves is one to use from here; it can be from now on."""
        self._forwarding = self._forward(served.port)
        is_fit = bool(served.token) or not self._origin
        if is_fit and answers(self._forwarding.address, served, origin=self._origin):
            self._be_at(self._forwarding.address, served)
            return True
        self._forwarding.close()
        return False

    def _start(self, place: Place) -> None:
        token = secrets.token_hex(24)
        begin = "." if self._task.plan.in_place else ""
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # stays open for as long as the server runs
        self._server = subprocess.Popen(
            entering(place, ["sh", "-c", _START, "jupyter", self._origin, begin]),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            start_new_session=True,  # a Ctrl-C is for us
        )
        try:
            found = replace(self._started(token), token=token)
            self._forwarding = self._forward(found.port)
            address = f"{LOOPBACK}:{found.port}" if self.is_direct else self._forwarding.address
            while not answers(address, found):  # it names its address a moment before it listens there
                if not self.is_running:
                    raise self._failure()
                time.sleep(_LOOK_SECONDS)
        except BaseException:
            self.close()
            raise
        self._be_at(address, found)

    def _forward(self, port: int) -> Forwarding:
        near = COLAB_PORT if self._origin else port
        return Forwarding(self._task, self._find, port, self._local, near=near, node=self._node)

    def _be_at(self, address: str, served: Announcement) -> None:
        """It answers at `address`. Pages of others are told to look at `localhost`, and not for a page of its own."""
        self.port = served.port
        if self._origin:
            address = f"localhost:{address.rpartition(':')[2]}"
            served = replace(served, path=posixpath.join(posixpath.dirname(served.path), ""))
        self.url = served.url(address)

    def _started(self, token: str) -> Announcement:
        """Where our server says that it serves."""
        assert self._server and self._server.stdin
        try:
            self._server.stdin.write(token.encode() + b"\n")
            self._server.stdin.flush()
        except BrokenPipeError:  # it ended; why is what it said
            pass
        while True:
            has_ended = self._server.poll() is not None  # asked before reading, so that nothing said before is missed
            found = next((one for one in (announcement(line, 0) for line in _lines(self._said)) if one), None)
            if found:
                return found
            if has_ended:
                raise self._failure()
            time.sleep(_LOOK_SECONDS)

    def _failure(self) -> FlowError:
        """Why our server has ended."""
        assert self._server
        if self._server.returncode != _NOT_INSTALLED:
            return FlowError(f"Jupyter did not start in `{self._task}`: {(_lines(self._said) or ['it ended'])[-1]}")
        return ResourceNotFoundError(
            f"there is no Jupyter where `{self._task}` runs",
            suggestions=[
                f"install it there: `flow ssh {self._task} -- python3 -m pip install jupyterlab`",
                f"or run the task in an image that has it, as `{_IMAGE}`",
            ],
        )


def _lines(said: IO[bytes]) -> list[str]:
    """Its whole lines, but for what Slurm adds where a command ends with another code than 0."""
    said.seek(0)
    lines = said.read().rpartition(b"\n")[0].decode(errors="replace").splitlines()
    return [line for line in lines if not line.startswith("srun: error:")]


def _end(server: subprocess.Popen[bytes]) -> None:
    assert server.stdin
    try:
        server.stdin.close()
        server.wait(_END_SECONDS)
    except (BrokenPipeError, subprocess.TimeoutExpired):
        server.kill()
        server.wait()
