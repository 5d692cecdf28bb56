"""A task's image from a registry that asks for a login: pulled with one that is on the machine only meanwhile.

Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flow.node.runner import Rank

LOGIN = "inbox/registry.json"  # {"registry": host, "username": …, "password": …}
GRACE_SECONDS = 5  # for the engine's client to end once the task was stopped
# What would be asked before the login in the same file, or holds logins to other registries.
OF_LOGINS = ("auths", "credsStore", "credHelpers")


class CannotPull(ValueError):  # noqa: N818  # what is wrong is the image, or the login
    """Why an image cannot be had: the engine's own words."""


def pull(rank: Rank) -> None:
    """Have the task's image on this machine, unless the task is stopped meanwhile. Raises CannotPull.

    An image that is here is not asked for again. The login is in no command line; the engine's copy of it is gone when
    this returns.
    """
    engine, image = rank.task["engine"], rank.task["image"]
    folder = rank.path("inbox", "login")
    try:
        shutil.rmtree(folder, ignore_errors=True)  # of a runner that was killed here
        os.mkdir(folder, 0o700)
        if _run(rank, [engine, "image", "inspect", image], dict(os.environ))[0] == 0 or rank.stopped:
            return
        with open(rank.path(LOGIN), encoding="utf-8") as file:
            _write_login(folder, json.load(file))
        # in which docker and podman find the login, whatever the user's own say
        env = {**os.environ, "DOCKER_CONFIG": folder, "REGISTRY_AUTH_FILE": os.path.join(folder, "config.json")}
        code, said = _run(rank, [engine, "pull", image], env)
        if code and not rank.stopped:
            raise CannotPull(said or f"`{engine}` could not pull `{image}`")
    except (OSError, LookupError, TypeError, json.JSONDecodeError) as error:
        raise CannotPull(f"cannot pull `{image}`: {error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_login(folder: str, login: dict[str, str]) -> None:
    """The user's docker configuration with this login instead of all others: contexts and certificates hold."""
    users = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    config: dict[str, Any] = {}
    path = os.path.join(users, "config.json")
    with contextlib.suppress(OSError, ValueError, AttributeError), open(path, encoding="utf-8") as file:
        config = {name: value for name, value in json.load(file).items() if name not in OF_LOGINS}
    with contextlib.suppress(OSError):
        for name in set(os.listdir(users)) - {"config.json"}:
            os.symlink(os.path.join(os.path.abspath(users), name), os.path.join(folder, name))
    word = base64.b64encode("{username}:{password}".format(**login).encode()).decode()
    config["auths"] = {login["registry"]: {"auth": word}}
    fd = os.open(os.path.join(folder, "config.json"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        json.dump(config, file)


def _run(rank: Rank, argv: list[str], env: dict[str, str]) -> tuple[int, str]:
    """Run the engine's client to its end, which a stop of the task hastens: exit code and last words."""
    with open(rank.path("inbox", "login", "said"), "w+b") as said:
        null = subprocess.DEVNULL
        client = subprocess.Popen(
            argv,
            env=env,
            stdin=null,
            stdout=null,
            stderr=said,
            start_new_session=True,
            preexec_fn=rank.beside("processes").end_with_parent,  # noqa: PLW1509  # a runner has no threads
        )
        code = _await(rank, client.pid)
        said.seek(max(0, os.fstat(said.fileno()).st_size - 4096))
        lines = said.read().decode(errors="replace").strip().splitlines()
    words = [line for line in lines if line and not line.startswith(("See '", "Run '"))]  # where to read help
    return code, words[-1].strip() if words else ""


def _await(rank: Rank, pid: int) -> int:
    """The exit code of a child; 128 or more where a signal ended it. The runner reaps it, like all of its children."""
    others = rank.processes.others
    others[pid] = None
    is_told = False
    while True:
        status = others[pid]
        if status is not None:
            del others[pid]
            rank.loop.times.pop("client", None)
            return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
        if rank.stopped and not is_told:
            is_told = True
            _signal(pid, signal.SIGTERM)
            rank.loop.after(GRACE_SECONDS, "client", lambda: _signal(pid, signal.SIGKILL))
        rank.loop.step()


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(group, number)
