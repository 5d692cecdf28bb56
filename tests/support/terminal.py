"""`flow` or `mithril` on a command line at a terminal, typed to by a test."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys

from tests.support.processes import is_asleep, wait_until


class Terminal:
    """A command line with a terminal of 100 columns as its input and outputs."""

    def __init__(self, *words: str, package: str = "flow.cli") -> None:
        self._ours, theirs = pty.openpty()
        environment = {**os.environ, "COLUMNS": "100", "LINES": "30", "TERM": "xterm"}
        program = [sys.executable, "-c", f"import sys; from {package} import main; sys.exit(main())"]
        command = ["setsid", "--ctty", *program, *words]  # Ctrl-C comes from the terminal then
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        self.screen = ""

    def shows(self, text: str) -> bool:
        """Whether `text` appears within a minute."""
        return wait_until(lambda: self._read() or text in self.screen, seconds=60)

    def types(self, text: str) -> None:
        """Once it waits: a Ctrl-C that comes just before Python begins to read is heard only at the next key."""
        assert wait_until(lambda: is_asleep(self.process.pid), seconds=60)
        os.write(self._ours, text.encode())

    def end(self) -> int:
        """Its exit code; the rest of what it wrote is on the screen."""
        assert wait_until(lambda: self._read() or self.process.poll() is not None, seconds=60)
        self._read()
        os.close(self._ours)
        return self.process.returncode

    def _read(self) -> None:
        while select.select([self._ours], [], [], 0)[0]:
            try:
                data = os.read(self._ours, 65536)
            except OSError:  # Linux says so when the other side is closed
                return
            if not data:
                return
            self.screen += data.decode().replace("\r\n", "\n")
