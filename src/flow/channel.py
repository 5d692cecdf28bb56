"""Channel: how to run a shell command on one machine. An argv prefix; () is this machine."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess


@dataclass(frozen=True, slots=True)
class Channel:
    """`prefix` goes before `sh -c SCRIPT`; where the far side joins its words again (ssh), they are quoted for it."""

    prefix: tuple[str, ...] = ()
    joins_words: bool = False

    @property
    def is_here(self) -> bool:
        """Whether the machine is this one, so that its files can be opened directly."""
        return not self.prefix

    def command(self, script: str) -> list[str]:
        """The argv that runs `script` by `sh` on the machine."""
        words = ["sh", "-c", script]
        return [*self.prefix, shlex.join(words)] if self.joins_words else [*self.prefix, *words]

    def run(self, script: str, *, stdin: bytes = b"", timeout: float = 60) -> subprocess.CompletedProcess[bytes]:
        """Run `script` to its end; both outputs are captured. Raises subprocess.TimeoutExpired."""
        import subprocess  # the local scheduler imports this module, and pays for `threading` at each of its forks

        return subprocess.run(self.command(script), input=stdin, capture_output=True, timeout=timeout, check=False)
