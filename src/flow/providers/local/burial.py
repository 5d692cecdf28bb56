"""Runners that died without a word: end what they left behind, make sure of it, and write down the loss."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from flow.durable import write_durably
from flow.machines import Report
from flow.node.asked import REQUEUE, asked
from flow.node.remains import is_locked, kill_left_over, remove_container
from flow.status import read_report

NEVER_RAN = Report("ended", cause="never ran", reason="could not be started")


def never_ran(report: Report) -> bool:
    """Whether the rank provably executed nothing."""
    return report.cause == NEVER_RAN.cause


def give_up(folder: Path) -> Report:
    """The loss of a rank that never ran and is not to be tried again, written down where that is possible."""
    try:
        return _write_loss(folder, None, cancelled=False)
    except OSError:
        return NEVER_RAN


def is_loss(report: Report) -> bool:
    """Whether the rank ended without its runner's doing, so that the other ranks wait in vain."""
    return report.cause in ("lost", NEVER_RAN.cause)


def last_word(folder: Path, task_id: str, attempt: int, *, cancelled: bool) -> Report | None:
    """The end of a rank whose runner is not our living child, or None while it is alive or its processes are.

    A runner's lock is free when it is dead; a command's when no process of the attempt holds it any more.
    """
    report = read_report(folder)
    if not (report and report.phase == "ended"):
        if is_locked(folder / "runner.lock"):
            return None
        report = read_report(folder)  # again: it may have ended between the two looks
    if report and report.phase == "ended":
        return report
    if _is_untouched(folder) or (report and report.phase == "waiting"):
        return NEVER_RAN
    if kill_left_over(os.fspath(folder)) or not remove_container(os.fspath(folder)):
        return None  # killed, not gone yet: asked again at the next tick
    try:
        return _write_loss(folder, report, cancelled=cancelled)
    except OSError:  # a full disk: until there is room nobody may say that it ended
        return None


def _is_untouched(folder: Path) -> bool:
    """Whether the runner provably had not come as far as the command: it makes the log, then says that it runs."""
    return (folder / "task.json").exists() and not any((folder / name).exists() for name in ("status.json", "log.idx"))


def signal_runner(folder: Path, pid: int | None, number: signal.Signals) -> None:
    """Signal the runner of a folder: our child `pid`, or the one that its lock proves to be alive."""
    if pid is None:
        if not is_locked(folder / "runner.lock"):
            return
        pid = _runner_pid(folder)
    if pid:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def _runner_pid(folder: Path) -> int | None:
    try:
        return int((folder / "runner.lock").read_text() or 0) or None
    except (OSError, ValueError):
        return None


def _write_loss(folder: Path, report: Report | None, *, cancelled: bool) -> Report:
    """The loss as the folder's last status, so that every later reader sees the same."""
    cause, reason = "lost", "its runner died without a report"
    if cancelled:
        cause, reason = "cancel", "cancelled"
    elif REQUEUE in asked(os.fspath(folder)):
        cause, reason = REQUEUE, "requeued"
    started = report.started if report else None
    loss = Report("ended", cause=cause, reason=reason, started=started, ended=time.time())
    facts = {"cause": cause, "reason": reason, "started": started, "ended": loss.ended}
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # the command may have removed it
    write_durably(folder / "status.json", json.dumps({"v": 1, "phase": "ended", **facts}).encode())
    return loss
