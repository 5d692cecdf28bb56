"""The command of a task in a container: how docker or podman is told to run it, to end it, and what its end means.

Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flow.node.runner import Rank

WORKSPACE = "/workspace"  # where the code lies in every container
ENGINE_FAILED = 125  # of `docker run` and `podman run`: the container was not started
CLIENT_TICKS = 5  # seconds for the engine's client to end by itself once its container was killed
# Variables that the engine's client reads too: they are given by value, the others by name, which nobody else can see.
CLIENT_READS = (
    "PATH",
    "HOME",
    "USER",
    "TMPDIR",
    "LD_",
    "DOCKER_",
    "CONTAINER",
    "XDG_",
    "BUILDAH_",
    "STORAGE_",
    "_PROXY",
)
# Where engines keep their init, which lets a signal end a container's first process.
INITS = "/usr/libexec/{0} /usr/local/libexec/{0} /usr/lib/{0} /usr/local/lib/{0} /usr/bin /usr/local/bin /usr/sbin"


def command(rank: Rank, delivered: dict[str, str]) -> tuple[list[str], dict[str, str], str]:
    """What is executed for a task in a container, in which environment and folder; its image is here then.

    `delivered`: variables that came after the task. Raises ValueError with the reason where there is no image.
    """
    container = Container(rank, variables(rank, delivered))
    rank.beside("processes").adopt_orphans(False)  # what the engine leaves running is its own
    container.pull()
    rank.check_stopped()
    rank.command = container
    rank.write("env.json", container.place())
    return container.argv(), container.client_env(), rank.path("workspace")


def variables(rank: Rank, delivered: dict[str, str]) -> dict[str, str]:
    """All that the command is to find in its environment, but what the image says: the user's own, and ours."""
    env = {name: rank.task["env"][name] for name in rank.task.get("user_env", [])}
    return {**env, **delivered, **rank.own_variables(env), "FLOW_WORKSPACE": WORKSPACE}


def last_words(rank: Rank) -> str:
    """The last line of what was said on stderr, but for hints at where to read help; or ""."""
    with open(rank.path("stderr.log"), "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
        lines = file.read().decode(errors="replace").strip().splitlines()
    said = [line for line in lines if line and not line.startswith(("See '", "Run '"))]
    return said[-1] if said else ""


class Container:
    """The container of one rank. The runner's child is the engine's client, which ends as the container does."""

    def __init__(self, rank: Rank, env: dict[str, str]) -> None:
        """`env`: all that the command is to find there."""
        task = rank.task
        self.rank = rank
        self.engine: str = task["engine"]
        self.name = f"flow-{task['task_id']}-{task.get('attempt', 1)}-{task.get('rank', 0)}"
        self.id_file = rank.path("container.id")
        self.env = env
        self.cwd = os.path.join(WORKSPACE, task.get("cwd") or "")
        self.command: list[str] = task["argv"]
        self.seen = [f"{rank.path('workspace')}:{WORKSPACE}"]
        if task.get("slurm"):
            batch = rank.beside("batch")
            self.command = batch.prepare_inside(rank, self.env)
            ours = os.path.dirname(batch.__file__)
            self.seen += [f"{rank.folder}:{rank.folder}", f"{ours}:{ours}:ro"]
        else:
            output = rank.path("output")
            self.seen.append(f"{output}:{output}")
        self.has_init = _has_init(self.engine)
        self.kills = 0
        self.asked: list[subprocess.Popen[bytes]] = []

    def pull(self) -> None:
        """Have the image here, where a login to its registry was delivered. Raises ValueError with the reason."""
        if "inbox/registry.json" in self.rank.task.get("needs", []):  # else `run` pulls what is missing
            self.rank.beside("pull").pull(self.rank)

    def argv(self) -> list[str]:
        """The engine's command line."""
        task = self.rank.task
        words = [self.engine, "run", "--rm", "--name", self.name, "--cidfile", self.id_file]
        words += ["--init"] if self.has_init else []
        words += ["--network", "host", "--ipc", "host", "--security-opt", "label=disable", "--workdir", self.cwd]
        words += [word for place in self.seen for word in ("-v", place)]
        for bind in self.rank.binds:
            words += ["-v", f"{bind['source']}:{bind['target']}{':ro' if bind.get('read_only') else ''}"]
        words += self._user() + self._gpus()
        for name in self.env:
            words += ["-e", f"{name}={self.env[name]}" if _is_read_by_client(name) else name]
        return [*words, "--entrypoint", self.command[0], task["image"], *self.command[1:]]

    def client_env(self) -> dict[str, str]:
        """The environment of the engine's client, which holds the values of what is given by name."""
        return {**os.environ, **{name: self.env[name] for name in self.env if not _is_read_by_client(name)}}

    def place(self) -> dict[str, Any]:
        """How to enter it, as `tail.py` reads it."""
        return {"env": self.env, "cwd": self.cwd, "container": [self.engine, self.name]}

    def terminate(self) -> None:
        """SIGTERM to all in the container; to the client where there is no container yet."""
        everyone = '"$0" exec "$1" sh -c "kill -TERM -1"'
        first = '"$0" kill --signal TERM "$1"'
        # without an init the command is the first process, which `kill -1` leaves out
        how = f"{everyone} || {first}" if self.has_init else f"{everyone}; {first}"
        client = '! [ -e "$3" ] && kill -TERM "$2"'
        # one that is made and does not hear is about to start, or has just ended: its client goes on to tell with what
        again = f'until {{ {how}; }} || {{ {client}; }}; do kill -0 "$2" || break; sleep 0.2; done'
        self._spawn("sh", "-c", again, self.engine, self.name, str(self.rank.processes.pid), self.id_file)

    def kill(self) -> None:
        """SIGKILL to all in it; asked again each second, to the client too."""
        self.kills += 1
        self._spawn(self.engine, "kill", "--signal", "KILL", self.name)
        if self.kills > CLIENT_TICKS and self.rank.processes.wait_status is None:
            os.kill(self.rank.processes.pid, 9)

    def send(self, number: int) -> None:
        """Send a signal to the command."""
        self._spawn(self.engine, "kill", "--signal", str(number), self.name)

    def has_leftovers(self) -> bool:
        """None of its processes outlives a container."""
        return False

    def clean_up(self, code: int, *, was_stopped: bool) -> str:
        """Make sure that the container is gone; why the engine did not start it, or ""."""
        if was_stopped:  # its client may not have come to remove it
            self._remove()
        if code != ENGINE_FAILED or os.path.exists(self.id_file):
            return ""
        return last_words(self.rank) or f"`{self.engine}` could not run `{self.rank.task['image']}`"

    def _remove(self) -> None:
        for word in ("kill", "rm"):  # podman's `rm --force` alone would ask it for 10 seconds to end
            self._spawn(self.engine, word, *(["--force"] if word == "rm" else []), self.name)
            for client in self.asked:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    client.wait(60)

    def _user(self) -> list[str]:
        """Files that the command makes belong to who runs it."""
        if os.getuid() == 0:
            return []
        if self.engine == "podman":
            return ["--userns", "keep-id"]
        return ["--user", f"{os.getuid()}:{os.getgid()}"]

    def _gpus(self) -> list[str]:
        ids = self.rank.task.get("gpu_ids")
        if ids is None:  # Slurm gives them: in a step of several nodes each has its own
            ids = (os.environ.get("SLURM_STEP_GPUS") or os.environ.get("SLURM_JOB_GPUS") or "").split(",")
        ids = [str(one) for one in ids if one != ""]
        if not ids:
            return []
        if self.engine == "podman":
            return [word for one in ids for word in ("--device", f"nvidia.com/gpu={one}")]
        return ["--gpus", '"device={}"'.format(",".join(ids))]

    def _spawn(self, *argv: str) -> None:
        """Run it beside the command; the runner reaps it like any other child."""
        null = subprocess.DEVNULL
        self.asked.append(subprocess.Popen(argv, start_new_session=True, stdin=null, stdout=null, stderr=null))


def _has_init(engine: str) -> bool:
    name = "catatonit" if engine == "podman" else "docker-init"
    return any(os.access(f"{folder}/{name}", os.X_OK) for folder in INITS.format(engine).split())


def _is_read_by_client(name: str) -> bool:
    return name.upper().startswith(CLIENT_READS[:-1]) or name.upper().endswith(CLIENT_READS[-1])
