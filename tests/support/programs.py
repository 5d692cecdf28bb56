"""Small projects of a user's: files in a folder, and programs run there as the user would run them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Project:
    """A folder of Python files."""

    folder: Path

    def write(self, files: Mapping[str, str] | None = None, /, **modules: str) -> None:
        """Files by their path; `app="…"` is app.py."""
        for name, text in {**(files or {}), **{f"{name}.py": text for name, text in modules.items()}}.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))

    def start(self, *words: str) -> subprocess.Popen[str]:
        """`python words…` in the folder, its output in pipes."""
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, *words], cwd=self.folder, stdout=pipe, stderr=pipe, text=True)

    def run(self, *words: str, code: int = 0) -> str:
        """What `python words…` prints, of stderr where it is to fail; asserts its exit code."""
        program = self.start(*words)
        try:
            out, err = program.communicate(timeout=60)
        finally:
            program.kill()
        assert program.returncode == code, f"{out}\n{err}"
        return err if code else out
