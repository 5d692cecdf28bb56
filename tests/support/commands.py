"""`flow` and `mithril` on a command line, run to their end in a fork of the test's process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from flow import client, config
from flow.cli import main
from flow.mithril_cli import main as mithril_main

LOADED = (client, config)  # so that a fork need not load them
Ended = subprocess.CompletedProcess[str]
Program = Callable[[Sequence[str]], int]


def flow(*words: str, stdin: bytes = b"") -> Ended:
    """Run a command line to its end in a fork of this process: as a process of its own, without a start of Python."""
    return _run(main, words, stdin)


def mithril(*words: str, stdin: bytes = b"") -> Ended:
    """The same of `mithril`."""
    return _run(mithril_main, words, stdin)


def _run(program: Program, words: tuple[str, ...], stdin: bytes) -> Ended:
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        given.write(stdin)
        given.seek(0)
        pid = os.fork()
        if pid == 0:
            _become(program, words, given.fileno(), stdout.fileno(), stderr.fileno())
        _, status = os.waitpid(pid, 0)
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read().decode())
    return Ended(words, os.waitstatus_to_exitcode(status), *texts)


@contextmanager
def started(*words: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A command line as a process that goes on, until Ctrl-C in the end, and the first line that it prints."""
    argv = [sys.executable, "-m", "flow", *words]
    with subprocess.Popen(argv, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout  # without a buffer, so that the next lines are left for whoever wants them
        try:
            yield process, process.stdout.readline().decode()
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def _become(program: Program, words: tuple[str, ...], stdin: int, stdout: int, stderr: int) -> None:
    code = 70
    try:
        for file, number in ((stdin, 0), (stdout, 1), (stderr, 2)):
            os.dup2(file, number)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        code = program(words)
    finally:
        os._exit(code)
