"""`module` and `ml` where the machine has no modules: what they say, and the shell code that changes the environment.

A module is what the task's table says of its name: variables, and folders for PATH.
Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from typing import Any

LOADED = "LOADEDMODULES"
WORDS = {"load": "load", "add": "load", "try-load": "load", "unload": "unload", "del": "unload", "rm": "unload",
         "remove": "unload", "swap": "swap", "switch": "swap", "list": "list", "avail": "avail", "av": "avail",
         "spider": "avail", "purge": "purge", "reset": "purge", "show": "show", "display": "show", "use": "",
         "unuse": "", "save": "", "restore": "", "is-loaded": "is-loaded", "is-avail": "is-avail", "help": "",
         "whatis": "show", "refresh": "", "update": "", "initadd": ""}  # fmt: skip


class Modules:
    """What is loaded now, and the code that makes it otherwise."""

    def __init__(self, table: dict[str, dict[str, Any]], env: dict[str, str]) -> None:
        self.table, self.env = table, env
        self.loaded = [name for name in env.get(LOADED, "").split(":") if name]
        self.code: list[str] = []
        self.said: list[str] = []

    def do(self, word: str, names: list[str]) -> int:
        """One command; the exit code."""
        names = [name for name in names if not name.startswith("-")]
        if word == "load":
            for name in names:
                self.load(name)
        elif word == "unload":
            for name in names:
                self.unload(name)
        elif word == "swap":
            if len(names) > 1:
                self.unload(names[0])
            self.load(names[-1])
        elif word == "purge":
            for name in list(self.loaded):
                self.unload(name)
        elif word in ("list", "avail"):
            shown = self.loaded if word == "list" else sorted(self.table)
            none = "No modules loaded" if word == "list" else "No modules here"
            self.said += [f"  {number}) {name}" for number, name in enumerate(shown, 1)] or [none]
        elif word == "show":
            self.said += [f"{name}: {json.dumps(self.find(name) or {})}" for name in names]
        elif word in ("is-loaded", "is-avail"):
            have = self.loaded if word == "is-loaded" else list(self.table)
            return int(not all(any(_is_named(one, name) for one in have) for name in names))
        return 0

    def load(self, name: str) -> None:
        """Set what the table says; a name that it lacks is told once, and is no failure."""
        if any(_is_named(one, name) for one in self.loaded):
            return
        found = self.find(name)
        if found is None:
            self.said.append(f"module: `{name}` is not in the table of modules here; the script goes on without it")
        else:
            for variable, value in found.get("env", {}).items():
                self.set(variable, str(value))
            for folder in reversed(found.get("path", [])):
                self.set("PATH", f"{folder}:{self.env.get('PATH', '')}")
        self.loaded.append(name)
        self.set(LOADED, ":".join(self.loaded))

    def unload(self, name: str) -> None:
        """Take away what loading it has set."""
        for one in [one for one in self.loaded if _is_named(one, name)]:
            self.loaded.remove(one)
            found = self.find(one) or {}
            for variable in found.get("env", {}):
                self.code.append(f"unset {variable}")
            if found.get("path"):
                kept = [folder for folder in self.env.get("PATH", "").split(":") if folder not in found["path"]]
                self.set("PATH", ":".join(kept))
        self.set(LOADED, ":".join(self.loaded))

    def set(self, variable: str, value: str) -> None:
        """Now, and in the shell that asked."""
        self.env[variable] = value
        self.code.append(f"export {variable}={shlex.quote(value)}")

    def find(self, name: str) -> dict[str, Any] | None:
        """What the table says of a name: `cuda/12.1` by itself, else as `cuda`, which holds for every version."""
        found = self.table.get(name, self.table.get(name.partition("/")[0]))
        if found is None and "/" not in name:  # any version that there is
            found = next((self.table[one] for one in sorted(self.table, reverse=True) if _is_named(one, name)), None)
        return found


def _is_named(whole: str, name: str) -> bool:
    return whole == name or whole.startswith(name + "/")


def main(folder: str, command: str, words: list[str]) -> int:
    """What `module` or `ml` with these words does: shell code on stdout, words for people on stderr."""
    with open(os.path.join(folder, "task.json"), "rb") as file:
        table = json.load(file)["slurm"].get("modules") or {}
    modules = Modules(table, dict(os.environ))
    words = [word for word in words if not word.startswith("--")]
    if command == "ml" and (not words or words[0] not in WORDS):
        names = [word for word in words if not word.startswith("-")]
        code = modules.do("unload", [word[1:] for word in words if word.startswith("-")])
        code = modules.do("load", names) if names else code if words else modules.do("list", [])
    elif not words:
        code = 0
    elif words[0] in WORDS:
        code = modules.do(WORDS[words[0]], words[1:])
    else:
        modules.said.append(f"module: `{words[0]}` is no command of modules that is known here")
        code = 1
    sys.stderr.write("".join(line + "\n" for line in modules.said))
    sys.stdout.write("\n".join([*modules.code, f"(exit {code})\n"]))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
