"""A session on a development machine: a shell, or a command in a fresh container or with a /tmp of its own.

`session.py VERB FOLDER …` (of the task that holds the machine): `run` becomes one; `list`, `end` and `prepare` are for
who looks after them. Each has a file in `sessions/`, named by its process, that says what it is and when that began.
Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import glob
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import Any, Callable

END_SECONDS = 10  # between what asks a command to end and SIGKILL
OURS = (
    "FLOW_TASK_ID",
    "FLOW_TASK_NAME",
    "FLOW_OUTPUT",
    "PYTHONUNBUFFERED",
)  # of the machine's environment, what a container gets
CLIENT_READS = ("DOCKER_", "CONTAINER", "XDG_")  # docker and podman: where their daemon and images are
ASKS = (signal.SIGTERM, signal.SIGHUP)
_LACKS = "{} cannot give this machine's GPUs to containers"
_REMEDY = {
    "docker": "install the NVIDIA Container Toolkit, then restart docker",
    "podman": "install the NVIDIA Container Toolkit, then `nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`",
}


def _beside(name: str) -> Any:
    return importlib.import_module(f"{__package__}.{name}" if __package__ else name)


def prepare(folder: str, environment: str) -> str:
    """The folder of a named environment, in which a project is kept as in the task's own; made where it is not there.

    Its `synced.json` says that nothing was uploaded yet.
    """
    if not environment:
        return folder
    own = os.path.join(folder, "environments", environment)
    os.makedirs(os.path.join(own, "workspace"), exist_ok=True)
    with contextlib.suppress(FileExistsError):
        fd = os.open(os.path.join(own, "synced.json"), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.write(fd, b"{}")
        os.close(fd)
    return own


def sessions(folder: str) -> list[dict[str, Any]]:
    """Those that are alive: `pid`, `what` it is, `is_fresh` where it is a command of its own, `started`."""
    found, began = [], _beside("tail").began
    place = os.path.join(folder, "sessions")
    for name in sorted(os.listdir(place)) if os.path.isdir(place) else ():
        path = os.path.join(place, name)
        with contextlib.suppress(OSError, ValueError, KeyError):
            with open(path, encoding="utf-8") as file:
                told = json.load(file)
            if told.pop("began") == (began(int(name)) or None):  # else the number is another process's by now
                found.append({**told, "pid": int(name), "started": os.stat(path).st_mtime})
    return found


def end(folder: str, *, only_fresh: bool) -> int:
    """End them, and remove what containers are left; how many there were. Returns when they have ended."""
    found = [one for one in sessions(folder) if one["is_fresh"] or not only_fresh]
    for one in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one["pid"], signal.SIGTERM if one["is_fresh"] else signal.SIGHUP)
    deadline = time.monotonic() + END_SECONDS + 1
    pids = {one["pid"] for one in found}
    while time.monotonic() < deadline and pids & {one["pid"] for one in sessions(folder)}:
        time.sleep(0.02)
    removed = 0
    engine = _engine()
    if engine:
        named = [engine, "ps", "--all", "--quiet", "--filter", f"name=^{_container_name(folder, '')}"]
        left = subprocess.run(named, stdout=subprocess.PIPE, check=False).stdout.decode().split()
        removed = len(left)
        if left:
            subprocess.run([engine, "rm", "--force", *left], stdout=subprocess.DEVNULL, check=False)
    return max(len(found), removed)


def run(folder: str, asked: dict[str, Any]) -> int:
    """Become a shell, or run `command`; in `image`, where one is asked. Its exit code.

    leash: standard input is not the command's: its end is that of the command. needs_gpu: the user named the GPUs,
    and is not to go without. tells: of what is done without being asked for.
    """
    tail = _beside("tail")
    if tail.has_ended(folder):
        _say("error: the development machine has just ended")
        return 125
    os.makedirs(os.path.join(folder, "sessions"), exist_ok=True)  # the machine's task may just be about to
    engine_env = {name: os.environ[name] for name in os.environ if name.startswith(CLIENT_READS)}
    environment = tail.go_in(folder, [asked["what"]])
    os.environ.clear()
    os.environ.update({**environment, **(engine_env if asked["image"] else {})})
    own = prepare(folder, asked["environment"])
    os.environ["FLOW_WORKSPACE"] = workspace = os.path.join(own, "workspace")
    os.chdir(workspace)
    if not _is_terminal(asked["leash"]):
        os.environ.setdefault("PYTHONUNBUFFERED", "1")  # its output is looked at as it comes
    argv, image = asked["argv"], asked["image"]
    engine = _engine() if image else None
    why = "no image is named"
    if image and not engine:
        why = "neither docker nor podman answers on this machine"
        if asked["needs_image"]:
            _say(f"error: {why}, and `{image}` needs one of them")
            return 125
        why += f", which `{image}` needs"
    tail.note_session(folder, asked["what"], is_fresh=bool(argv or engine))
    if engine:
        gpus = _gpus()
        lacks = bool(gpus) and not _gives_gpus(engine)
        if lacks and not asked["needs_gpu"]:
            gpus = []
            if asked["tells"]:
                _say(f"note: {_LACKS.format(engine)}: this runs without a GPU")
        task = {"task_id": "", "engine": engine, "image": image, "argv": argv or ["sh"], "gpu_ids": gpus}
        code = _in_container(folder, own, task, asked["leash"])
        if lacks and gpus and code == _beside("container").ENGINE_FAILED:
            _say(f"error: {_LACKS.format(engine)}: {_REMEDY[engine]}")
        return code
    if argv:
        return _with_own_tmp(folder, own, argv, asked["leash"], why if asked["tells"] else "")
    shell = os.environ.get("SHELL") or "/bin/sh"
    os.execvp(shell, [shell])
    return 127


class _Place:
    """What `container.Container` asks of a rank."""

    def __init__(self, folder: str, own: str, task: dict[str, Any]) -> None:
        self.task = task
        self.binds: list[Any] = []
        id_file = os.path.join(folder, f"container-{os.getpid()}.id")
        self.paths = {
            "workspace": os.path.join(own, "workspace"),
            "output": os.path.join(folder, "output"),
            "container.id": id_file,
        }

    def path(self, name: str) -> str:
        return self.paths[name]


def _in_container(folder: str, own: str, task: dict[str, Any], leash: bool) -> int:
    place = _Place(folder, own, task)
    container = _beside("container").Container(place, {name: os.environ[name] for name in OURS if name in os.environ})
    container.env["FLOW_WORKSPACE"] = "/workspace"
    container.name = _container_name(folder, os.getpid())
    words: list[str] = container.argv()
    words[2:2] = ["-it"] if _is_terminal(leash) else ["-i"]
    code, was_stopped = _attend(words, container.client_env(), leash=leash, is_contained=True)
    if was_stopped:
        subprocess.run(
            [task["engine"], "rm", "--force", container.name],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    with contextlib.suppress(FileNotFoundError):
        os.unlink(place.path("container.id"))
    return code


def _with_own_tmp(folder: str, own: str, argv: list[str], leash: bool, why: str) -> int:
    """As root /tmp itself is its own; elsewhere TMPDIR is, as in a user namespace there would be no `sudo`.

    `why` it has no container is told.
    """
    tmp = os.path.join(folder, f"tmp-{os.getpid()}")
    os.mkdir(tmp)
    os.chmod(tmp, 0o1777)
    leave = _show_tmp(tmp, folder, own)
    os.environ["TMPDIR"] = "/tmp" if leave else tmp
    if why:
        _say(f"note: {why}: this runs as a plain process, with a {'/tmp' if leave else 'TMPDIR'} of its own")
    try:
        return _attend(argv, dict(os.environ), leash=leash, is_contained=False)[0]
    finally:
        if leave:
            leave()
        shutil.rmtree(tmp, ignore_errors=True)


def _show_tmp(tmp: str, folder: str, own: str) -> Callable[[], Any] | None:
    """Have `tmp` seen at /tmp, and the workspace at /workspace; what undoes it, or None where that cannot be."""
    if os.geteuid() != 0 or (os.path.realpath(own) + "/").startswith("/tmp/"):
        return None
    mounts = _beside("mounts")
    try:
        space = mounts.Namespace()
        space.bind(tmp, "/tmp")
    except (OSError, mounts.CannotMount):
        return None
    with contextlib.suppress(OSError):
        there, workspace = mounts.WORKSPACE, os.path.join(own, "workspace")
        if not os.path.exists(there) or not os.listdir(there) or os.path.samefile(there, f"{folder}/workspace"):
            space.show_workspace(workspace)
    return space.leave  # type: ignore[no-any-return]


def _attend(argv: list[str], env: dict[str, str], *, leash: bool, is_contained: bool) -> tuple[int, bool]:
    """Run it to its end: its exit code, and whether it was told to end. Of what it started nothing is left.

    At a terminal it is of our process group, so that Ctrl-C is its own. Elsewhere it is told when nobody reads its
    output any more, as when ssh was cut off or ended by Ctrl-C.
    """
    processes = _beside("processes")
    command = processes.Processes()
    processes.adopt_orphans(not is_contained)  # what an engine leaves running is its own
    at_terminal = _is_terminal(leash)
    heard, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    for one in (signal.SIGCHLD, signal.SIGINT, signal.SIGQUIT, *ASKS):
        signal.signal(one, lambda *_: None)
    files = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)] if leash else []
    choice: dict[str, Any] = {"file_actions": files, "setsigdef": processes.IGNORED, "setsigmask": []}
    spawn = os.posix_spawn if at_terminal else processes.spawn
    command.pid = spawn(shutil.which(argv[0]) or argv[0], argv, env, **choice)
    ends = select.poll()
    ends.register(heard, select.POLLIN)
    if not at_terminal:
        ends.register(1, 0)
    if leash:
        ends.register(0, select.POLLIN)
    kill_at: float | None = None
    while command.wait_status is None:
        for fd, _ in ends.poll(None if kill_at is None else 200):
            asked = list(os.read(heard, 512)) if fd == heard else [signal.SIGTERM if leash else signal.SIGINT]
            if fd != heard:
                ends.unregister(fd)
            if fd != heard or set(asked) & {*ASKS}:
                kill_at = kill_at or time.monotonic() + END_SECONDS
            for number in asked:
                if number in ASKS or (number != signal.SIGCHLD and not at_terminal):
                    _send(command.pid, number, to_group=not at_terminal)
        if kill_at and time.monotonic() > kill_at:
            command.kill()
        command.reap()
    if not is_contained:
        command.kill()
    status = command.wait_status
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
    return code, kill_at is not None


def _send(pid: int, number: int, *, to_group: bool) -> None:
    with contextlib.suppress(ProcessLookupError):
        (os.killpg if to_group else os.kill)(pid, number)


def _gpus() -> list[str]:
    """Those of the task that holds the machine."""
    return [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]


def _gives_gpus(engine: str) -> bool:
    """Whether containers can have GPUs. Docker takes them by a hook that it finds on PATH, a runtime or CDI."""
    if any(glob.glob(f"{folder}/*nvidia*") for folder in ("/etc/cdi", "/var/run/cdi")):
        return True
    if engine == "podman":
        return False
    if shutil.which("nvidia-container-runtime-hook"):
        return True
    asked = ["docker", "info", "--format", "{{json .Runtimes}} {{.OperatingSystem}}"]  # a desktop's are elsewhere
    told = subprocess.run(asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False).stdout.decode()
    return "nvidia" in told or "Docker Desktop" in told


def _is_terminal(leash: bool) -> bool:
    return not leash and os.isatty(0) and os.isatty(1)


def _container_name(folder: str, session: object) -> str:
    return f"flow-dev-{folder.rsplit('/', 3)[1]}-{session}"


def _engine() -> str | None:
    """The one that answers: docker's daemon may be down."""
    if shutil.which("docker") and ("DOCKER_HOST" in os.environ or _listens("/var/run/docker.sock")):
        return "docker"
    return "podman" if shutil.which("podman") else None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as one:
        return one.connect_ex(path) == 0


def main(verb: str, folder: str, *words: str) -> None:
    """`run DIR JSON`, `prepare DIR NAME`, `list DIR`, `end DIR [fresh]`: the answer is JSON."""
    if verb == "run":
        sys.exit(run(folder, json.loads(words[0])))
    if verb == "prepare":
        print(json.dumps(prepare(folder, *words)))  # noqa: T201
    elif verb == "list":
        print(json.dumps(sessions(folder)))  # noqa: T201
    else:
        print(json.dumps(end(folder, only_fresh="fresh" in words)))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
