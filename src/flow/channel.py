"""Channel: how to run a shell command on one machine. An argv prefix; () is this machine."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flow.errors import ProviderError

if TYPE_CHECKING:
    import subprocess

# In an image nobody knows which shells there are.
_ANY_SHELL = 'if command -v bash >/dev/null 2>&1; then exec bash -c "$1"; else exec sh -c "$1"; fi'
UNREACHABLE = 255  # what ssh ends with where it is ssh that failed


@dataclass(frozen=True, slots=True)
class Channel:
    """`prefix` goes before `sh -c SCRIPT`; where the far side joins its words again (ssh), they are quoted for it.

    `terminal`: the prefix for who sits at one. `beyond`: the next machine on the way, as seen from this one. `python`:
    the name of a Python 3.8 or newer there.
    """

    prefix: tuple[str, ...] = ()
    joins_words: bool = False
    terminal: tuple[str, ...] | None = None
    beyond: Channel | None = None
    python: str = "python3"

    @property
    def is_here(self) -> bool:
        """Whether the machine is this one, so that its files can be opened directly."""
        return not self.prefix and self.beyond is None

    def command(self, script: str, *, terminal: bool = False) -> list[str]:
        """The argv that runs `script` by `sh` on the machine."""
        return self._wrapped(["sh", "-c", script], terminal=terminal)

    def python_command(self, program: str, *words: str, terminal: bool = False) -> list[str]:
        """The argv that runs the text of a Python program on the machine: its standard input is the caller's own."""
        python = sys.executable if self.is_here else self.python
        return self.command(shlex.join(["exec", python, "-c", program, *words]), terminal=terminal)

    def through(self, beyond: Channel | None) -> Channel:
        """The channel that goes on from this machine by another."""
        return self if beyond is None else replace(self, beyond=beyond)

    def run(self, script: str, *, stdin: bytes = b"", timeout: float = 60) -> subprocess.CompletedProcess[bytes]:
        """Run `script` to its end; both outputs are captured. Raises subprocess.TimeoutExpired."""
        import subprocess  # the local scheduler imports this module, and pays for `threading` at each of its forks

        return subprocess.run(self.command(script), input=stdin, capture_output=True, timeout=timeout, check=False)

    def ask(self, script: str, *, stdin: bytes = b"", timeout: float = 300) -> subprocess.CompletedProcess[bytes]:
        """The same, of a machine that must answer. Raises ProviderError, with what ssh said, where it does not."""
        import subprocess

        try:
            done = self.run(script, stdin=stdin, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise self.unreachable(f"no answer within {timeout:g} s") from None
        except OSError as error:
            raise self.unreachable(f"`{self.prefix[0]}`: {error.strerror}") from error
        if self.prefix and done.returncode == UNREACHABLE:
            raise self.unreachable(done.stderr.decode(errors="replace"))
        return done

    def hang_up(self) -> None:
        """End the ssh connection that is kept, if there is one: its machine is about to go."""
        import subprocess

        if "--" in self.prefix:
            at = self.prefix.index("--")
            words = [*self.prefix[:at], "-O", "exit", *self.prefix[at:]]
            subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)

    def unreachable(self, said: str) -> ProviderError:
        """The error for a machine that does not answer."""
        last = said.strip().rpartition("\n")[2].strip() or "the connection was cut"
        where = self.prefix[-1] if self.prefix else "this machine"
        if "IDENTIFICATION HAS CHANGED" in said:
            return ProviderError(
                f"`{where}` shows another host key than before: it was installed anew, or is somebody else",
                suggestions=[f"if you know why, forget the old key: `ssh-keygen -R {where.rpartition('@')[2]}`"],
            )
        way = f"try `{shlex.join([self.prefix[0], where])}` yourself" if self.prefix else "try again"
        return ProviderError(f"`{where}` cannot be reached: {last}", suggestions=[way])

    def _wrapped(self, words: list[str], *, terminal: bool) -> list[str]:
        words = self.beyond._wrapped(words, terminal=terminal) if self.beyond else words
        prefix = self.terminal if terminal and self.terminal is not None else self.prefix
        return [*prefix, shlex.join(words)] if self.joins_words else [*prefix, *words]


def ssh(host: str, *, config: str | None = None, options: Sequence[str] = ()) -> Channel:
    """The channel to `host` as the user's own ssh config has it, over one connection that is kept for ten minutes.

    host: as ssh takes it, or with `:port` behind it; its key is pinned on first use. config: another file in its place.
    options: more of ssh's own, `NAME=VALUE`. Asks for nothing where there is nobody to answer.
    """
    address, _, port = host.rpartition(":")
    if not port.isdigit() or (":" in address and not address.endswith("]")):  # it may be IPv6
        address, port = host, ""
    address = address.replace("[", "").replace("]", "")
    options = [
        *options,  # of two, ssh takes the first
        "StrictHostKeyChecking=accept-new",
        "ConnectTimeout=15",
        "ServerAliveInterval=15",
        "ServerAliveCountMax=4",
        "ControlMaster=auto",
    ]
    options += ["ControlPersist=10m", f"ControlPath={_socket_folder()}/%C"]
    options += ["BatchMode=yes"] if not (sys.stdin and sys.stdin.isatty()) else []
    options += [f"Port={port}"] if port else []
    words = [*(["-F", config] if config else []), *(word for one in options for word in ("-o", one))]
    at_terminal = ("ssh", "-t", "-o", "LogLevel=ERROR", *words, "--", address)  # no word on a connection that is shared
    return Channel(("ssh", *words, "--", address), joins_words=True, terminal=at_terminal)


def by_any_shell(command: str) -> tuple[str, ...]:
    """The argv that runs a shell command by bash where there is one, else by sh."""
    return ("sh", "-c", _ANY_SHELL, "sh", command)


def _socket_folder() -> Path:
    """A folder of this user's own with a short path: a socket's has at most 107 characters."""
    folder = Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp", f"flow-{os.getuid()}")
    if len(str(folder)) > 40:
        folder = Path(f"/tmp/flow-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():
        raise ProviderError(f"`{folder}` belongs to somebody else", suggestions=["set XDG_RUNTIME_DIR"])
    return folder
