"""A program behind a channel that answers one question after the other, so that none waits for its start."""

from __future__ import annotations

import json
import os
import select
import shlex
import subprocess
import threading
import time
import weakref
from typing import Any

from flow.channel import SOON_SECONDS, Channel

_SECONDS = 300  # within which something is said
_WORD_BYTES = 8_000  # of a question that may be a word: with what surrounds it, it is to fit the first packets
_LACKS = {"lacks": "program"}


class Conversation:
    """Questions and answers are lines of JSON. The program starts with the first, in each process anew, and ends with
    this object; one that was cut off is started again.

    program: what `script` is sent, as a line of JSON, where it answers {"lacks": "program"}; then it is asked again.
    """

    def __init__(self, channel: Channel, script: str, program: str = "") -> None:
        self._channel, self._script, self._program = channel, script, program
        self._begin()

    def ask(self, question: Any, *, is_public: bool = False) -> dict[str, Any] | subprocess.CompletedProcess[bytes]:
        """The answer, or how the program ended in place of one. Raises ProviderError where nobody can be reached.

        is_public: others may see the question. As the first one it then is a word of the program's, which saves a round
        trip: what is written to a new program waits until its start is acknowledged (by TCP, after Nagle).
        """
        if self._owner != os.getpid():  # the parent's are not for us
            self._begin()
        with self._lock:
            was_there = self._process is not None
            answer = self._exchange(question, is_public=is_public)
            if was_there and isinstance(answer, subprocess.CompletedProcess):
                answer = self._exchange(question, is_public=is_public)
            return answer

    def _begin(self) -> None:
        self._owner, self._lock = os.getpid(), threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._heard = b""
        self._check_at = 0.0  # by the monotonic clock: when it is asked again whether the machine is there

    def close(self) -> None:
        """End the program now, as where its machine is about to go; it would start again with the next question."""
        if self._process:
            _end(self._process, self._owner)
        self._process, self._heard = None, b""

    def _exchange(self, question: Any, *, is_public: bool) -> dict[str, Any] | subprocess.CompletedProcess[bytes]:
        text = json.dumps(question)
        is_word = self._process is None and is_public and len(text) < _WORD_BYTES
        process = self._process = self._process or self._start(*([text] if is_word else []))
        try:
            if not is_word:
                _write(process, question)
            while line := self._line(process):
                told = answer_in(line)
                if told == _LACKS:
                    _write(process, self._program)
                    _write(process, question)
                elif told:  # a login node may greet first
                    return told
        except BrokenPipeError:
            pass
        except BaseException:  # as Ctrl-C: what it would answer is not to be taken for an answer to the next
            self._process, self._heard = None, b""
            process.kill()
            raise
        self._process, self._heard = None, b""
        out, err = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        argv = self._channel.command(" ".join([self._script, *map(shlex.quote, words)]))
        try:
            pipe = subprocess.PIPE
            process = subprocess.Popen(argv, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe)
        except OSError as error:
            raise self._channel.unreachable(f"`{argv[0]}`: {error.strerror}") from error
        weakref.finalize(self, _end, process, os.getpid())
        return process

    def _line(self, process: subprocess.Popen[bytes]) -> bytes:
        """The next line; nothing where the program has ended."""
        assert process.stdout
        said = select.poll()
        said.register(process.stdout, select.POLLIN)
        while b"\n" not in self._heard:
            if not said.poll(SOON_SECONDS * 1000):
                if time.monotonic() > self._check_at:  # seldom: to some machines, who does not come in is an attacker
                    self._channel.check_answers()
                    self._check_at = time.monotonic() + _SECONDS
                if not said.poll(_SECONDS * 1000):
                    raise self._channel.unreachable(f"no answer within {_SECONDS} s")
            part = process.stdout.read(1 << 20)
            if not part:
                return b""
            self._heard += part
        line, _, self._heard = self._heard.partition(b"\n")
        return line + b"\n"


def answer_in(line: bytes) -> dict[str, Any] | None:
    """The answer that a line of output is; None where it is something else."""
    try:
        told = json.loads(line)
    except ValueError:
        return None
    return told if isinstance(told, dict) else None


def _write(process: subprocess.Popen[bytes], value: Any) -> None:
    assert process.stdin
    left = json.dumps(value).encode() + b"\n"
    while left:
        left = left[process.stdin.write(left) :]


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    """What it reads from is closed, and it ends; nobody waits until that is known here, as a kept connection would."""
    if process.returncode is None and owner == os.getpid():
        process.kill()
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe
            pipe.close()
        process.wait()
