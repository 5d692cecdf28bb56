"""The command of a task in an image without a daemon: `apptainer exec`, or `singularity exec`, before its words.

What it runs are processes below the runner, as without an image. Of the machine it sees what `docker run` would show:
the image, its own folders and mounts, the network; /tmp and the home lie beside the task until it ends. Standard
library, Python 3.8 and up. Sources: `apptainer exec --help`; "Bind Paths and Mounts", "Environment and Metadata" and
"Making use of private images from Docker Hub" of the Apptainer user guide.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flow.node.runner import Rank

ENGINES = ("apptainer", "singularity")
FILES = (".sif", ".sqsh", ".img")
# The variables come in a file: of the `APPTAINERENV_` kind, they are evaluated as a shell does, and HOME is refused.
BEGIN = '. "$0"; exec "$@"'
NAME = "[A-Za-z_][A-Za-z0-9_]*"  # what a shell can export
OF_SHELLS = ("UID", "EUID", "PPID", "SHELLOPTS", "BASHOPTS")  # to set them is an error
GPU_LIBRARIES = "/.singularity.d/libs"  # where `--nv` puts the machine's
FAILED, SAID = 255, "FATAL:"  # its exit code and its last line where the command was not started


def command(rank: Rank, delivered: dict[str, str]) -> tuple[list[str], dict[str, str], str]:
    """What is executed for a task in an image, in which environment and folder.

    `delivered`: variables that came after the task.
    """
    env = rank.beside("container").variables(rank, delivered)
    gpus = ",".join(map(str, rank.task.get("gpu_ids") or [])) or os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus:
        env.setdefault("CUDA_VISIBLE_DEVICES", gpus)
    rank.command = inside = Inside(rank)
    os.makedirs(inside.own, mode=0o700, exist_ok=True)
    fd = os.open(inside.exports, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(exports(env))
    prefix = inside.prefix(cwd=os.path.join(env["FLOW_WORKSPACE"], rank.task.get("cwd") or ""), with_gpus=bool(gpus))
    rank.write("env.json", {"env": env, "prefix": prefix})
    return [*prefix, *rank.task["argv"]], {**os.environ, **_login(rank)}, rank.path("workspace")


def exports(env: dict[str, str]) -> str:
    """Lines of a shell that export each variable whose name a shell can export."""
    lines = []
    for name, value in env.items():
        if re.fullmatch(NAME, name) and name not in OF_SHELLS:
            whole = f"{value}:{GPU_LIBRARIES}" if name == "LD_LIBRARY_PATH" else value
            lines.append(f"export {name}={shlex.quote(whole)}\n")
    return "".join(lines)


def source(image: str, folder: str) -> str:
    """An image as apptainer takes it: a URI as it is, a file seen from `folder`, else a name of docker's."""
    if "://" in image:
        return image
    if image.startswith(("/", "./", "../", "~")) or image.endswith(FILES):
        return os.path.join(folder, os.path.expanduser(image))
    return "docker://" + image


class Inside:
    """What runs in the image of one rank.

    It is told of signals by itself: apptainer passes on each that reaches it, so that one to all of its group would
    come twice; and the processes that may hold the image mounted are not to be told.
    """

    def __init__(self, rank: Rank) -> None:
        self.rank = rank
        self.own = rank.path("inside")  # /tmp, /var/tmp and the home
        self.exports = rank.path("exports")

    def prefix(self, *, cwd: str, with_gpus: bool) -> list[str]:
        """The words before those of a command that is to run in it."""
        rank, engine = self.rank, self.rank.task["engine"]
        seen = [(rank.path("workspace"), rank.beside("container").WORKSPACE), (rank.path("output"),) * 2]
        seen += [(self.exports, f"{self.exports}:ro")]
        seen += [(one["source"], one["target"] + (":ro" if one.get("read_only") else "")) for one in rank.binds]
        words = [shutil.which(engine) or engine, "--quiet", "exec", "--contain", "--cleanenv"]
        words += ["--workdir", self.own, "--pwd", cwd, *(f"--bind={outside}:{target}" for outside, target in seen)]
        words += ["--nv"] if with_gpus and os.path.exists("/dev/nvidiactl") else []
        return [*words, source(rank.task["image"], rank.path("workspace")), "sh", "-c", BEGIN, self.exports]

    def terminate(self) -> None:
        """SIGTERM to each that was not sent it; to apptainer where nothing runs in it yet."""
        found = self._pids()
        if not found:
            self.rank.processes.terminate()
        self._send(signal.SIGTERM, [pid for pid in found if pid not in self.rank.processes.told])
        self.rank.processes.told.update(found)

    def kill(self) -> None:
        """SIGKILL to all, with what holds the image mounted."""
        self.rank.processes.kill()

    def send(self, number: int) -> None:
        """Send a signal to all that runs in it."""
        self._send(number, self._pids())

    def has_leftovers(self) -> bool:
        """Whether some are left, the command having ended."""
        return bool(self.rank.processes.has_leftovers())

    def clean_up(self, code: int, *, was_stopped: bool) -> str:
        """Remove its /tmp and home; why apptainer did not start the command, or ""."""
        shutil.rmtree(self.own, ignore_errors=True)
        said: str = self.rank.beside("container").last_words(self.rank) if code == FAILED else ""
        return said[len(SAID) :].strip() if said.startswith(SAID) else ""

    def _send(self, number: int, pids: list[int]) -> None:
        for pid in pids:
            self.rank.beside("processes").send(pid, number)

    def _pids(self) -> list[int]:
        """Its processes, parents first, by the variables that the command was started with."""
        processes, mark = self.rank.beside("processes"), b"FLOW_TASK_ID=" + self.rank.task["task_id"].encode()
        return [pid for pid in processes.descendants() if processes.has_variable(pid, mark)]


def _login(rank: Rank) -> dict[str, str]:
    """What apptainer logs in to the image's registry with, where a login was delivered."""
    if "inbox/registry.json" not in rank.task.get("needs", []):
        return {}
    with open(rank.path("inbox", "registry.json"), encoding="utf-8") as file:
        login = json.load(file)
    kind = rank.task["engine"].upper()
    return {f"{kind}_DOCKER_USERNAME": login["username"], f"{kind}_DOCKER_PASSWORD": login["password"]}
