"""`systemctl` for machines without systemd: services of /etc/systemd/system that are started, kept and enabled.

Of a unit it knows After, Type (oneshot or else), Environment, EnvironmentFile, WorkingDirectory, User, ExecStartPre,
ExecStart, ExecStartPost, ExecStopPost, Restart (no, always, on-failure), RestartSec, TimeoutStopSec, RemainAfterExit
and StandardOutput=append:FILE; what is written otherwise is in /var/log/units/UNIT.log. What is enabled starts at each
boot, when network and sshd are there; nothing is started because another unit wants it. Called as `poweroff`, `halt`,
`shutdown` or `reboot` it ends the services and then the machine. Standard library only: it runs on the machine.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

UNITS = Path("/etc/systemd/system")
WANTED = UNITS / "multi-user.target.wants"
RUNNING = Path("/run/units")
LOGS = Path("/var/log/units")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
POWER_OFF, RESTART = 0x4321FEDC, 0x01234567
BUSY = ("active", "activating")
QUIET = ("daemon-reload", "daemon-reexec", "reset-failed")


def main(called: str, words: list[str]) -> int:
    verb, *names = [word for word in words if not word.startswith("-")] or [""]
    if called != "systemctl" or verb in ("poweroff", "halt", "reboot"):
        restarts = "reboot" in (called, verb) or "-r" in words
        return end_machine(RESTART if restarts else POWER_OFF)
    if verb == "boot":
        return boot()
    if verb not in VERBS:
        return 0 if verb in QUIET else 1
    names = [name if name.endswith(".service") else f"{name}.service" for name in names]
    return max([do(verb, name, now="--now" in words) for name in names], default=0)


def do(verb: str, name: str, *, now: bool) -> int:
    if not (UNITS / name).exists():
        print(f"Failed to {verb} {name}: Unit {name} not found.", file=sys.stderr)
        return {"status": 4, "is-active": 3, "is-enabled": 1}.get(verb, 5)
    code = VERBS[verb](name)
    return VERBS[{"enable": "start", "disable": "stop"}[verb]](name) if now and verb in ("enable", "disable") else code


def boot() -> int:
    """Start all that is enabled, each when those are up that it is to come after."""
    enabled = {one.name for one in WANTED.glob("*.service")}
    for name in enabled:
        if os.fork() == 0:
            after = enabled.intersection(" ".join(parse((UNITS / name).read_text()).get("After", [])).split())
            while any(read(one, "state") in ("", "activating") for one in after):
                time.sleep(0.01)
            os._exit(start(name))
    for _ in enabled:
        os.wait()
    return 0


def enable(name: str) -> int:
    WANTED.mkdir(exist_ok=True)
    if not (WANTED / name).is_symlink():
        (WANTED / name).symlink_to(UNITS / name)
    return 0


def disable(name: str) -> int:
    (WANTED / name).unlink(missing_ok=True)
    return 0


def tell_state(name: str) -> int:
    state = read(name, "state") or "inactive"
    print(state)
    return 0 if state in BUSY else 3


def tell_enabled(name: str) -> int:
    enabled = (WANTED / name).is_symlink()
    print("enabled" if enabled else "disabled")
    return 0 if enabled else 1


def show(name: str) -> int:
    print((UNITS / name).read_text(), end="")
    return 0


def restart(name: str) -> int:
    stop(name)
    return start(name)


def start(name: str) -> int:
    """Returns when it runs; when it is done, if it is of type oneshot."""
    if read(name, "state") in BUSY:
        return 0
    write(name, "state", "activating")
    ready, told = os.pipe()
    if os.fork() == 0:
        os.setsid()
        os.close(ready)
        if os.fork() == 0:
            Keeper(name, told).keep()
        os._exit(0)
    os.close(told)
    os.wait()
    return 0 if os.read(ready, 1) == b"y" else 1


class Keeper:
    """A process that runs a service and, if its unit says so, runs it again, until it is stopped."""

    def __init__(self, name: str, told: int) -> None:
        self.name, self.told = name, told
        self.unit = parse((UNITS / name).read_text())
        self.once = last(self.unit, "Type", "simple") == "oneshot"
        self.child: subprocess.Popen[bytes] | None = None
        self.is_stopped = False

    def keep(self) -> None:
        signal.signal(signal.SIGTERM, self.stop)
        write(self.name, "keeper", str(os.getpid()))
        self.redirect()
        code = self.run()
        while not self.is_stopped and self.comes_again(code):
            time.sleep(float(last(self.unit, "RestartSec", "0.1").rstrip("s")))
            code = code if self.is_stopped else self.run()
        for line in self.unit.get("ExecStopPost", []):
            subprocess.run(split(line), **settings(self.unit))
        stays = self.once and code == 0 and last(self.unit, "RemainAfterExit", "no") in ("yes", "true")
        failed = code and not self.is_stopped
        write(self.name, "state", "active" if stays else "failed" if failed else "inactive")
        self.tell(b"n" if code else b"y")

    def stop(self, *_: object) -> None:
        self.is_stopped = True
        if self.child:
            os.killpg(self.child.pid, signal.SIGTERM)

    def redirect(self) -> None:
        LOGS.mkdir(exist_ok=True)
        sent = last(self.unit, "StandardOutput", "")
        file = sent[len("append:") :] if sent.startswith("append:") else str(LOGS / f"{self.name}.log")
        null, log = os.open(os.devnull, os.O_RDONLY), os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        for number, target in enumerate((null, log, log)):
            os.dup2(target, number)

    def run(self) -> int:
        """All of its commands, until one fails; the code of the last."""
        code = 0
        for line in [*self.unit.get("ExecStartPre", []), *self.unit.get("ExecStart", [])]:
            if not self.is_stopped:
                self.child = subprocess.Popen(split(line), **settings(self.unit))
                if self.is_stopped:  # while it began
                    self.stop()
                write(self.name, "main", str(self.child.pid))
                if not self.once:
                    for then in self.unit.get("ExecStartPost", []):
                        subprocess.run(split(then), **settings(self.unit))
                    write(self.name, "state", "active")
                    self.tell(b"y")
                code = self.child.wait()
                self.child = None
            if code and not line.startswith("-"):
                break
        return code

    def comes_again(self, code: int) -> bool:
        again = last(self.unit, "Restart", "no")
        return again == "always" or (again == "on-failure" and code != 0)

    def tell(self, word: bytes) -> None:
        """To whoever started it, once."""
        if self.told >= 0:
            os.write(self.told, word)
            os.close(self.told)
        self.told = -1


def stop(name: str) -> int:
    keeper, main_process = read(name, "keeper"), read(name, "main")
    unit = parse((UNITS / name).read_text())
    deadline = time.monotonic() + float(last(unit, "TimeoutStopSec", "90").rstrip("s"))
    if keeper and alive(keeper):
        os.kill(int(keeper), signal.SIGTERM)
        while alive(keeper):
            if time.monotonic() > deadline:
                os.killpg(int(main_process), signal.SIGKILL)
            time.sleep(0.01)
    write(name, "state", "inactive")
    return 0


def end_machine(how: int) -> int:
    """Returns at once, as systemd's does; what the services say to it is waited for by a process of its own."""
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for one in RUNNING.glob("*.keeper"):
            stop(one.stem)
        os.sync()
        ctypes.CDLL(None).reboot(how)  # in a PID namespace it ends the first process, and by which signal says how
        os._exit(1)
    return 0


def parse(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in re.sub(r"\\\n", " ", text).splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith(("#", ";")):
            found.setdefault(key.strip(), []).append(value.strip())
    return found


def last(unit: dict[str, list[str]], key: str, default: str) -> str:
    return unit.get(key, [default])[-1]


def split(line: str) -> list[str]:
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(line.lstrip("-@+"))]


def settings(unit: dict[str, list[str]]) -> dict[str, Any]:
    """As systemd has it: hardly a variable, for root not even HOME."""
    environment = {"PATH": PATH, "LANG": "C.UTF-8"}
    for path in unit.get("EnvironmentFile", []):
        lines = Path(path.lstrip("-")).read_text().splitlines() if Path(path.lstrip("-")).exists() else []
        environment.update(line.partition("=")[::2] for line in lines if "=" in line and not line.startswith("#"))
    for line in unit.get("Environment", []):
        environment.update(word.partition("=")[::2] for word in shlex.split(line))
    found: dict[str, Any] = {
        "env": environment,
        "cwd": last(unit, "WorkingDirectory", "/"),
        "start_new_session": True,
    }
    if user := last(unit, "User", ""):
        account = pwd.getpwnam(user)
        environment.update(HOME=account.pw_dir, USER=user, LOGNAME=user, SHELL=account.pw_shell)
        found.update(user=account.pw_uid, group=account.pw_gid, extra_groups=os.getgrouplist(user, account.pw_gid))
    return found


def read(name: str, what: str) -> str:
    file = RUNNING / f"{name}.{what}"
    return file.read_text() if file.exists() else ""


def write(name: str, what: str, text: str) -> None:
    RUNNING.mkdir(exist_ok=True)
    new = RUNNING / f"{name}.{what}.new"
    new.write_text(text)
    new.rename(RUNNING / f"{name}.{what}")


def alive(pid: str) -> bool:
    try:
        return b") Z" not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False


VERBS = {
    "start": start,
    "stop": stop,
    "restart": restart,
    "enable": enable,
    "disable": disable,
    "is-active": tell_state,
    "status": tell_state,
    "is-enabled": tell_enabled,
    "cat": show,
}

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[0]).name, sys.argv[1:]))
