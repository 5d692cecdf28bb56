"""A stand-in for apptainer, which is in no package here: it takes the words of `apptainer exec` and does the work.

As apptainer does, it shows the image read-only in a mount namespace of its own, has the command as a child whose end
it imitates, passes on each signal that reaches it, and keeps a process that holds the image mounted. Needs root.
Sources: `apptainer exec --help`; what the processes are to each other is that of apptainer 1.5, run without a PID
namespace.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NoReturn

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
TOLD = "the image is not mounted any more"  # what it says where the process that holds it is told to end
NEW_MOUNTS = 0x20000  # CLONE_NEWNS of unshare(2)


def stand_in(folder: Path, image: str, archive: bytes, *, name: str = "apptainer") -> Path:
    """A folder with the program, which knows one image by its name of docker's."""
    root = folder / "image"
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(root)
    program = folder / "bin" / name
    program.parent.mkdir()
    words = [sys.executable, "-ES", __file__, f"docker://{image}", str(root)]
    program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    program.chmod(0o755)
    return program.parent


def main(known: str, root: str, argv: list[str]) -> NoReturn:
    """`apptainer [--quiet] exec [options…] IMAGE COMMAND…`, of the options those that Flow gives."""
    parser = argparse.ArgumentParser("apptainer", allow_abbrev=False)
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("verb", choices=["exec"])
    for flag in ("--contain", "--cleanenv", "--nv"):
        parser.add_argument(flag, action="store_true")
    for option in ("--workdir", "--pwd"):
        parser.add_argument(option)
    parser.add_argument("--bind", action="append", default=[])
    parser.add_argument("image")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    asked = parser.parse_args(argv)
    if asked.image not in (known, root):
        fail(f"Unable to handle {asked.image} uri: no such image")
    assert asked.contain, "what it shows of the machine otherwise is not done here"
    assert asked.cleanenv, "what it lets in otherwise is not done here"
    holder = hold()
    child = os.fork()
    if child == 0:
        enter(asked, root)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, _: os.kill(child, number))
    status = os.waitpid(child, 0)[1]
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


def fail(reason: str) -> NoReturn:
    print("FATAL:  ", reason, file=sys.stderr, flush=True)
    os._exit(255)


def hold() -> int:
    """Start what has the image mounted, in a group of its own."""
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, lambda *_: fail(TOLD))
        while True:
            signal.pause()
    return pid


def enter(asked: argparse.Namespace, root: str) -> NoReturn:
    """Become the command, in the image."""
    home = str(Path.home())
    if ctypes.CDLL(None).unshare(NEW_MOUNTS):
        fail("Failed to create a mount namespace")
    mount("--make-rslave", "/")
    at = Path(root).parent / "session"
    at.mkdir(exist_ok=True)
    mount("-t", "tmpfs", "session", at)
    shutil.copytree(root, at, symlinks=True, dirs_exist_ok=True)
    for name in DEVICES:
        bind(Path("/dev") / name, at / "dev" / name)
    bind(Path("/proc"), at / "proc")
    for name, target in (("tmp", "/tmp"), ("var_tmp", "/var/tmp"), ("home", home)):
        (Path(asked.workdir) / name).mkdir(exist_ok=True)
        bind(Path(asked.workdir) / name, at / target[1:])
    for one in asked.bind:
        source, target, *options = one.split(":")
        bind(Path(source), at / target[1:], *options)
    mount("-o", "remount,ro", at)
    os.chroot(at)
    try:
        os.chdir(asked.pwd)
    except OSError as error:
        fail(f"failed to set working directory: {error}")
    environment = {"PATH": PATH, "HOME": home, "LANG": "C", "APPTAINER_CONTAINER": asked.image}
    environment.update({name: os.environ[name] for name in ("TERM",) if name in os.environ})
    os.environ["PATH"] = PATH
    os.execvpe(asked.command[0], asked.command, environment)


def bind(source: Path, target: Path, *options: str) -> None:
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    mount("--bind", source, target)
    if options:
        mount("-o", f"remount,bind,{options[0]}", target)


def mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
