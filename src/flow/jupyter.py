"""A Jupyter server in a running task, reached from here: the one that the task serves, else one of our own."""

from __future__ import annotations

import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import IO, TYPE_CHECKING

from flow.access import entering, node_of
from flow.endpoints import Announcement, JupyterLog, announcement, answers
from flow.errors import FlowError, ResourceNotFoundError
from flow.forwarding import LOOPBACK, Forwarding
from flow.machines import Allocation

if TYPE_CHECKING:
    from flow.task import Task

_NOT_INSTALLED = 69
_LOOK_SECONDS = 0.05
_END_SECONDS = 10  # for a server to end its kernels
# Its token comes on standard input, where no list of processes shows it; it ends when that does, with whoever asked.
_START = r"""read -r JUPYTER_TOKEN; export JUPYTER_TOKEN
cd "${1:-$FLOW_WORKSPACE}" || exit
for name in jupyter-lab jupyter-notebook jupyter-server ""; do command -v "$name" >/dev/null && break; done
[ "$name" ] || exit 69
exec 3<&0
(cat <&3; kill -TERM $$) >/dev/null 2>&1 &
exec "$name" --no-browser --allow-root --ip=127.0.0.1 --port=0 </dev/null 3<&-
"""


class Jupyter:
    """A server at `url`, until `close` or the end of its `with` block; one that the task itself serves goes on."""

    def __init__(self, task: Task, find: Callable[[], Allocation | None], *, node: int) -> None:
        """Find or start it, on that node, whose machines `find` gives while the task runs.

        Raises ResourceNotFoundError where Jupyter is not installed there, FlowError where it does not start.
        """
        self._server: subprocess.Popen[bytes] | None = None
        self._forwarding: Forwarding | None = None
        place = node_of(task, find(), node, "a Jupyter server")
        served = JupyterLog(task).announced() if node == 0 else None
        if served:
            self._forwarding = task.forward(served.port)
            self.url = served.url(self._forwarding.address)
            if answers(self._forwarding.address, served):
                return
            self._forwarding.close()
        token = secrets.token_hex(24)
        begin = "." if task.plan.in_place else ""
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # stays open for as long as the server runs
        self._server = subprocess.Popen(
            entering(place, ["sh", "-c", _START, "jupyter", begin]),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            start_new_session=True,  # a Ctrl-C is for us
        )
        try:
            found = self._started(task, token)
            self._forwarding = task.forward(found.port, node=node)
        except BaseException:
            self.close()
            raise
        address = f"{LOOPBACK}:{found.port}" if self._forwarding.is_direct else self._forwarding.address
        self.url = replace(found, token=token).url(address)

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

    def _started(self, task: Task, token: str) -> Announcement:
        """Where our server says that it serves."""
        assert self._server and self._server.stdin
        try:
            self._server.stdin.write(token.encode() + b"\n")
            self._server.stdin.flush()
        except BrokenPipeError:  # it ended; why is what it said
            pass
        while True:
            has_ended = self._server.poll() is not None  # asked before reading, so that nothing said before is missed
            lines = _lines(self._said)
            found = next((one for one in (announcement(line, 0) for line in lines) if one), None)
            if found:
                return found
            if has_ended:
                break
            time.sleep(_LOOK_SECONDS)
        if self._server.returncode == _NOT_INSTALLED:
            raise ResourceNotFoundError(
                f"there is no Jupyter where `{task.task_id}` runs",
                suggestions=[
                    f"install it there: `flow ssh {task.task_id} -- python3 -m pip install jupyterlab`",
                    "or run the task in an image that has it, as `quay.io/jupyter/base-notebook`",
                ],
            )
        raise FlowError(f"Jupyter did not start in `{task.task_id}`: {(lines or ['it ended'])[-1]}")


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
