"""The completion of our commands in a shell: its script, and the line of a start file that loads it."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import click

SHELLS = ("bash", "zsh", "fish")
_PROGRAMS = ("flow", "mithril")
_ZSH_FIRST = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }\n"


def completion_script(shell: str, program: str = "flow") -> str:
    """What the shell runs to complete the commands of one of our programs."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    return kind(click.Command(program), {}, program, f"_{program}_COMPLETE".upper()).source() + "\n"


def users_shell() -> str | None:
    """The user's login shell, if it is one that can complete our commands."""
    name = Path(os.environ.get("SHELL", "")).name
    return name if name in SHELLS else None


def is_installed(shell: str) -> bool:
    """Whether each start of the shell loads it."""
    file = start_file(shell)
    return file.exists() and (shell == "fish" or _line(shell) in file.read_text(errors="replace"))


def install(shell: str) -> Path:
    """Have each start of the shell load the completion; a second time it is only brought up to date. The start file.

    The script is written into Flow's folder, and run from there: a start of the shell does not wait for a start of
    ours, and goes on as ever when Flow is gone. Raises OSError.
    """
    from flow.durable import write_durably

    file, texts = start_file(shell), {one: completion_script(shell, one) for one in _PROGRAMS}
    if shell == "fish":
        file.parent.mkdir(parents=True, exist_ok=True)
        for program, text in texts.items():
            write_durably(file.with_name(f"{program}.fish"), text.encode())
        return file
    script = _script(shell)
    script.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_durably(script, ((_ZSH_FIRST if shell == "zsh" else "") + "".join(texts.values())).encode())
    if not is_installed(shell):
        before = file.read_text(errors="replace") if file.exists() else ""
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as start:
            start.write(("\n" if before and not before.endswith("\n") else "") + _line(shell))
    return file


def _line(shell: str) -> str:
    quoted = shlex.quote(str(_script(shell)))
    return f"[ -r {quoted} ] && . {quoted} # completion of flow\n"


def _script(shell: str) -> Path:
    from flow.settings import flow_home

    return flow_home() / f"completion.{shell}"


def start_file(shell: str) -> Path:
    """The file that the shell reads when it starts, for its user to type in."""
    if shell == "fish":
        return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "fish/completions/flow.fish"
    if shell == "zsh":
        return Path(os.environ.get("ZDOTDIR") or Path.home()) / ".zshrc"
    return Path.home() / (".bash_profile" if sys.platform == "darwin" else ".bashrc")  # macOS opens login shells
