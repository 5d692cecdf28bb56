"""Keeps a machine that costs money: makes it ready at each boot, heeds its notice, and stops its own bill.

Root, as a unit of systemd. `machine.json` beside it says what the machine is for; `bill.json`, which comes later, how
it ends or pauses what it costs; `collected`, that its task has ended and all it left is elsewhere. Standard library,
Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import glob
import importlib
import json
import os
import pwd
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
RUN = "/run/flow"  # gone after each boot
OPEN = RUN + "/open"  # while it is there, tasks get their turn
LOOK_SECONDS = 1.0
HTTP_SECONDS = 30.0
LIMIT_SECONDS = 3600  # for one program
REFUSED_SECONDS = 60.0  # before it is asked again by a key that was refused
CLIENT_SECONDS = 15.0  # for one that is there to collect what the task left
PORT = 7091  # where the machines of one task tell each other whether they are done
SILENCE_SECONDS = 3600.0  # for which one that does not answer is taken to be at work
WORKS, COMPLETED, FAILED = b"0", b"1", b"2"


class Guard:
    """`home` is the login user's; its tasks lie in `.flow-host` there."""

    def __init__(self) -> None:
        self.machine: dict[str, Any] = _json(os.path.join(HERE, "machine.json"))
        self.user = pwd.getpwnam(self.machine["user"])
        self.root = os.path.join(self.user.pw_dir, ".flow-host")
        self.task = os.path.join(self.root, "tasks", self.machine["task_id"])
        self.since: dict[str, float] = {}  # by the monotonic clock: what was first seen when
        self.is_noticed = self.is_copying = self.is_word_refused = False

    def run(self) -> None:
        """For as long as the machine is up."""
        os.makedirs(RUN, exist_ok=True)
        if self.machine["machines"] > 1:
            threading.Thread(target=self.tell, daemon=True).start()
        if not os.path.exists(OPEN):  # else it was this program that was started again
            try:
                self.note_restart()
                self.prepare()
                _write(OPEN, "")
            except Exception as error:  # then nothing is delivered, and it pauses in the end
                _say(repr(error))
        while True:
            try:
                self.step()
            except Exception as error:  # whatever it is, the machine must not go on costing money unseen
                _say(repr(error))
            time.sleep(LOOK_SECONDS)

    # -- at each boot

    def note_restart(self) -> None:
        """What ran when the machine went away is to run again, and has not failed."""
        for folder in self.ranks():
            if _json(os.path.join(folder, "status.json")).get("phase") == "running":
                self.as_user("sh", "-c", 'echo preempted >> "$0/asked"', folder)

    def prepare(self) -> None:
        """Docker, caches and volumes."""
        if os.path.isdir(self.machine["scratch"]):
            caches = os.path.join(self.machine["scratch"], "cache")
            os.makedirs(caches, exist_ok=True)
            os.chown(caches, self.user.pw_uid, self.user.pw_gid)
        if self.machine["docker"] or self.machine["volumes"]:
            for said in importlib.import_module("guard_setup").prepare(self.machine, self.user, _run):
                _say(said)

    # -- while it is up

    def step(self) -> None:
        """One look at everything."""
        bill = _json(os.path.join(HERE, "bill.json"))
        if os.path.exists(os.path.join(HERE, "collected")):
            self.pay_no_more(bill, "collected")
            return
        if self.heeds_notice():
            return
        if not os.path.exists(os.path.join(self.task, "meta.json")):
            if self.lasts("no task", self.machine["deliver_seconds"]):
                self.pay_no_more(bill, "undelivered")
            return
        self.have_keeper()
        if self.state() == WORKS:
            self.since.pop("ended", None)
            return
        if bill.get("keep"):
            return
        grace = self.machine["grace_seconds"]
        records = bill.get("records")
        if records and self.lasts("ended", min(CLIENT_SECONDS, grace)) and self.has_copied(records):
            self.pay_no_more(bill, "collected")
            return
        if self.lasts("ended", grace):
            states = self.states()
            if b"" not in states:
                self.since.pop("silence", None)
            if WORKS not in states and (b"" not in states or self.lasts("silence", SILENCE_SECONDS)):
                self.pay_no_more(bill, "failed" if FAILED in states else "completed")

    def state(self) -> bytes:
        """What has become of this machine's part of the task."""
        is_open = os.path.exists(os.path.join(self.root, "queue", self.machine["task_id"]))
        if is_open or self.is_copying or not os.path.exists(os.path.join(self.task, "meta.json")):
            return WORKS
        codes = [_json(os.path.join(folder, "status.json")).get("code") for folder in self.ranks()]
        return COMPLETED if codes and all(code == 0 for code in codes) else FAILED  # None: it was lost

    def states(self) -> list[bytes]:
        """The same of all machines of the task, which are paid for and paused as one; b"" where one does not answer."""
        count = self.machine["machines"]
        return [self.ask(number) for number in range(1, count + 1)] if count > 1 else [self.state()]

    def ask(self, number: int) -> bytes:
        """One of them, by the name that its cloud gives it."""
        try:
            with socket.create_connection((f"{self.machine['task_id']}-{number}", PORT), 5) as peer:
                return peer.recv(1)
        except OSError:
            return b""

    def tell(self) -> None:
        """Answer the others."""
        with socket.create_server(("", PORT)) as server:
            while True:
                with contextlib.suppress(OSError), server.accept()[0] as peer:
                    peer.sendall(self.state())

    def heeds_notice(self) -> bool:
        """Whether the machine is about to be taken away: what runs is told to end, once."""
        words = ""
        for path in [*glob.glob(self.machine["notice"]), RUN + "/notice"]:  # the second is a client's own
            with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
                words += file.read().lower()
        is_noticed = any(one in words for one in ("preempting", "relocating", "status_preempt"))
        if is_noticed and not self.is_noticed:
            _say("notice")
            if os.path.exists(OPEN):
                os.unlink(OPEN)
            for folder in self.ranks():
                pid = _json(os.path.join(folder, "status.json")).get("runner_pid")
                if pid and _json(os.path.join(folder, "status.json"))["phase"] != "ended":
                    self.as_user("sh", "-c", 'echo preempted >> "$0/asked"; kill -USR1 "$1"', folder, str(pid))
        elif self.is_noticed and not is_noticed:  # taken back, and given to us again
            _write(OPEN, "")
        self.is_noticed = is_noticed
        return is_noticed

    def have_keeper(self) -> None:
        """Who gives tasks their turn is started by us, with the rights that the login user has by now."""
        tools = self.tools()
        is_open = os.path.exists(os.path.join(self.root, "queue", self.machine["task_id"]))
        if tools and is_open and not _is_locked(os.path.join(self.root, "keeper.lock")):
            question = json.dumps(["keep", self.root]) + "\n"
            self.as_user("python3", os.path.join(tools, "host.py"), given=question)

    def has_copied(self, records: dict[str, Any]) -> bool:
        """Whether the task's record is in S3, from all of its machines; what is not from here is copied now."""
        given = json.dumps({**records, "tasks": os.path.join(self.root, "tasks")})
        self.is_copying = True
        try:
            program = os.path.join(self.tools(), "record_copy.py")
            done = self.as_user("python3", program, given=given, limit_seconds=0)  # it sees to that by itself
        finally:
            self.is_copying = False
        if done.returncode or done.stderr:
            _say(f"copied: {done.returncode} {done.stderr[-300:]}")
        if done.returncode:
            time.sleep(5)
        return done.returncode == 0

    def tools(self) -> str:
        """The newest of what was sent to run tasks with; "" before it is whole."""
        folder = os.path.join(self.root, "node")
        found = [os.path.join(folder, one) for one in _listed(folder)]
        whole = [one for one in found if os.path.exists(os.path.join(one, "whole"))]
        return max(whole, key=os.path.getmtime) if whole else ""

    def lasts(self, what: str, seconds: float) -> bool:
        """Whether that has been so for as long."""
        return time.monotonic() - self.since.setdefault(what, time.monotonic()) >= seconds

    def pay_no_more(self, bill: dict[str, Any], why: str) -> None:
        """End it, or pause it as what the word says; where nobody told how, the machine can only switch itself off."""
        if not bill:
            _say("nothing was delivered")
            _run("poweroff")
            return
        method, url, body = bill["requests"][why]
        if body and self.is_word_refused:
            body = {"paused": True}
        headers = {**bill["headers"], "Content-Type": "application/json"}
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(url, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=HTTP_SECONDS) as answer:
                _say(f"{why}: {answer.status}")
        except urllib.error.HTTPError as error:
            _say(f"{why}: {error.code}")
            self.is_word_refused = error.code in (400, 422)  # as where no bid may be as low any more
            if error.code in (401, 403, 404):  # asked in vain, for ever
                if why in ("completed", "failed"):  # off, nobody could collect from it any more
                    time.sleep(REFUSED_SECONDS)
                else:
                    _run("poweroff")
        time.sleep(5)

    def ranks(self) -> list[str]:
        """The task folder of the last attempt of the task, or of each of its elements."""
        found = []
        tasks = os.path.join(self.root, "tasks")
        for name in _listed(tasks):
            starts = [int(one) for one in _listed(os.path.join(tasks, name)) if one.isdigit()]
            at = os.path.join(tasks, name, str(max(starts))) if starts else ""
            found += [os.path.join(at, rank) for rank in _listed(at) if rank.isdigit()] if at else []
        return found

    def as_user(self, *argv: str, **given: Any) -> subprocess.CompletedProcess[str]:
        """Run as the login user."""
        return _run("runuser", "-u", self.user.pw_name, "--", *argv, **given)


def _is_locked(path: str) -> bool:
    import fcntl

    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _json(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return json.load(file)  # type: ignore[no-any-return]
    except (OSError, ValueError):
        return {}


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _run(*argv: str, given: str = "", limit_seconds: int = LIMIT_SECONDS) -> subprocess.CompletedProcess[str]:
    """It is ended, with all that it started, where it takes too long (0: never); its exit code is not 0 then."""
    pipe, words = subprocess.PIPE, ["timeout", "-k", "10", str(limit_seconds), *argv]
    try:
        return subprocess.run(
            words, input=given, stdout=pipe, stderr=pipe, encoding="utf-8", errors="replace", check=False
        )
    except OSError as error:
        return subprocess.CompletedProcess(argv, 127, "", str(error))


def _say(text: str) -> None:
    sys.stderr.write(f"flow: {text}\n")  # to the journal
    sys.stderr.flush()


if __name__ == "__main__":
    Guard().run()
