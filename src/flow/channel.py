"""Channel: how to run a shell command on one machine. An argv prefix; () is this machine."""

from __future__ import annotations

import glob
import os
import pwd
import re
import shlex
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flow.durable import write_durably
from flow.errors import ProviderError, UnreachableError

if TYPE_CHECKING:
    import subprocess

# In an image nobody knows which shells there are.
_ANY_SHELL = 'if command -v bash >/dev/null 2>&1; then exec bash -c "$1"; else exec sh -c "$1"; fi'
SOON_SECONDS = 4  # after which it is asked whether a machine that says nothing is there at all
_PROBE_SECONDS = 5
_IS_DEAD = re.compile(r"timed out|No route to host|is unreachable|Connection refused|Could not resolve|is down")
UNREACHABLE = 255  # what ssh ends with where it is ssh that failed


@dataclass(frozen=True, slots=True)
class Channel:
    """`prefix` goes before `sh -c SCRIPT`; where the far side joins its words again (ssh), they are quoted for it.

    `terminal`: the prefix for who sits at one. `at_once`: that for bytes which must not wait for the end of a line.
    `beyond`: the next machine on the way, as seen from this one. `python`: the name of a Python 3.8 or newer there.
    """

    prefix: tuple[str, ...] = ()
    joins_words: bool = False
    terminal: tuple[str, ...] | None = None
    at_once: tuple[str, ...] | None = None
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

    def unbuffered(self) -> Channel:
        """The same, for bytes that must not wait on the way."""
        beyond = self.beyond and self.beyond.unbuffered()
        return replace(self, prefix=self.at_once or self.prefix, beyond=beyond)

    def run(self, script: str, *, stdin: bytes = b"", timeout: float = 60) -> subprocess.CompletedProcess[bytes]:
        """Run `script` to its end; both outputs are captured. Raises subprocess.TimeoutExpired."""
        import subprocess  # the local scheduler imports this module, and pays for `threading` at each of its forks

        return subprocess.run(self.command(script), input=stdin, capture_output=True, timeout=timeout, check=False)

    def ask(self, script: str, *, stdin: bytes = b"", timeout: float = 300) -> subprocess.CompletedProcess[bytes]:
        """The same, of a machine that must answer. Raises ProviderError, with what ssh said, where it does not."""
        import subprocess

        pipe, words = subprocess.PIPE, self.command(script)
        try:
            with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe) as process:
                try:
                    out, err = process.communicate(stdin, timeout=SOON_SECONDS)
                except subprocess.TimeoutExpired:
                    self.check_answers()
                    out, err = process.communicate(timeout=timeout)
                finally:
                    process.kill()
        except subprocess.TimeoutExpired:
            raise self.unreachable(f"no answer within {timeout:g} s") from None
        except OSError as error:
            raise self.unreachable(f"`{self.prefix[0]}`: {error.strerror}") from error
        done = subprocess.CompletedProcess(words, process.returncode, out, err)
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

    def unreachable(self, said: str) -> UnreachableError:
        """The error for a machine that does not answer."""
        last = said.strip().rpartition("\n")[2].strip() or "the connection was cut"
        where = self.prefix[-1] if self.prefix else "this machine"
        if "IDENTIFICATION HAS CHANGED" in said:
            return UnreachableError(
                f"`{where}` shows another host key than before: it was installed anew, or is somebody else",
                suggestions=[f"if you know why, forget the old key: `{_forgetting(said, where)}`"],
            )
        way = f"try `{shlex.join([self.prefix[0], where])}` yourself" if self.prefix else "try again"
        return UnreachableError(f"`{where}` cannot be reached: {last}", suggestions=[way])

    def check_answers(self) -> None:
        """Ask over a connection of its own whether the machine is there, as one that is kept is only given up after a
        minute. Raises ProviderError where it is not; questions are then not put to the old connection any more."""
        import subprocess

        if self.prefix[:1] != ("ssh",):
            return
        options = [
            "BatchMode=yes",
            "ControlPath=none",
            f"ConnectTimeout={_PROBE_SECONDS}",
            "PreferredAuthentications=none",
        ]
        probe = ["ssh", *_options(options), *self.prefix[1:], "true"]
        try:  # refused for want of a key is answered, too; and a jump host may take its own time
            done = subprocess.run(
                probe, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_SECONDS + 1, check=False
            )
            said = done.stderr.decode(errors="replace")
        except subprocess.TimeoutExpired:
            said = "connection timed out"
        if _IS_DEAD.search(said):
            subprocess.run([*self.prefix[:-2], "-O", "stop", *self.prefix[-2:]], capture_output=True, check=False)
            raise self.unreachable(said)

    def _wrapped(self, words: list[str], *, terminal: bool) -> list[str]:
        words = self.beyond._wrapped(words, terminal=terminal) if self.beyond else words
        prefix = self.terminal if terminal and self.terminal is not None else self.prefix
        return [*prefix, shlex.join(words)] if self.joins_words else [*prefix, *words]


def ssh(host: str, *, config: str | None = None, options: Sequence[str] = ()) -> Channel:
    """The channel to `host` as the user's own ssh config has it, over one connection that is kept for ten minutes.

    host: as ssh takes it, or with `:port` behind it; its key is pinned on first use, unless that config says otherwise.
    config: another file in its place. options: more of ssh's own, `NAME=VALUE`. Asks for nothing where there is nobody
    to answer.
    """
    address, _, port = host.rpartition(":")
    if not port.isdigit() or (":" in address and not address.endswith("]")):  # it may be IPv6
        address, port = host, ""
    address = address.replace("[", "").replace("]", "")
    folder = _own_folder()
    options = [*options, "ConnectTimeout=10", "ServerAliveInterval=15", "ServerAliveCountMax=4"]  # ssh takes the first
    options += ["ControlMaster=auto", "ControlPersist=10m", f"ControlPath={folder}/%C"]
    options += ["BatchMode=yes"] if not (sys.stdin and sys.stdin.isatty()) else []
    options += [f"Port={port}"] if port else []
    words = ["-F", str(_config_file(folder, config)), *_options(options)]
    at_terminal = ("ssh", "-t", "-o", "LogLevel=ERROR", *words, "--", address)  # no word on a connection that is shared
    return Channel(("ssh", *words, "--", address), joins_words=True, terminal=at_terminal)


def by_any_shell(command: str) -> tuple[str, ...]:
    """The argv that runs a shell command by bash where there is one, else by sh."""
    return ("sh", "-c", _ANY_SHELL, "sh", command)


def _options(texts: list[str]) -> list[str]:
    return [word for one in texts for word in ("-o", one)]


def _config_file(folder: Path, config: str | None) -> Path:
    """The user's config, then what holds where it says nothing: of several values ssh takes the first."""
    if config and not Path(config).exists():
        return Path(config)  # ssh says so
    own = Path(config).absolute() if config else _home() / ".ssh" / "config"
    files = [own] if config else [own, Path("/etc/ssh/ssh_config")]
    text = "".join(f'Include "{glob.escape(str(one))}"\n' for one in files)
    content = f"{text}Host *\n  StrictHostKeyChecking accept-new\n".encode()
    file = folder / f"config-{zlib.crc32(content):08x}"
    if not file.exists() or file.read_bytes() != content:
        write_durably(file, content)
    return file


def _home() -> Path:
    """The user's home as ssh knows it, whatever HOME says."""
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:  # ssh says so
        return Path.home()


def _forgetting(said: str, where: str) -> str:
    """The command that forgets the key of a host, as ssh told where it is and under which name."""
    name = re.search(r"Host key for (\S+) has changed", said)
    file = re.search(r"^Offending .* key in (.+):\d+", said, re.MULTILINE)
    words = ["ssh-keygen", *(["-f", file[1]] if file else []), "-R", name[1] if name else where.rpartition("@")[2]]
    return shlex.join(words)


def _own_folder() -> Path:
    """A folder of this user's own with a short path: a socket's has at most 107 characters."""
    folder = Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp", f"flow-{os.getuid()}")
    if len(str(folder)) > 40:
        folder = Path(f"/tmp/flow-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():
        raise ProviderError(f"`{folder}` belongs to somebody else", suggestions=["set XDG_RUNTIME_DIR"])
    return folder
