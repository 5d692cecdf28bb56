"""What is to be run, as it was given: a task file, a script, or a shell command."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
from pathlib import Path

from flow.errors import FlowError, ResourceNotFoundError, ValidationError
from flow.mistakes import shown_value

TASK_FILES = (".yaml", ".yml")
_SLURM_FILES = (".slurm", ".sbatch")
_SCRIPTS = (".py", ".sh")
_PEEK_BYTES = 65536  # #SBATCH lines stand at the top


def read_operand(given: str | os.PathLike[str]) -> str | Path:
    """The task file or script that `given` names, or `given` itself: a shell command. A path object is a file.

    Raises ResourceNotFoundError for a file that is not there, ValidationError for a folder, or nothing.
    """
    if not isinstance(given, (str, os.PathLike)) or not str(given).strip():
        raise ValidationError(f"{shown_value(given)} is nothing to run", suggestions=["give a shell command or a file"])
    text, path = os.fspath(given), Path(given)
    is_path = not isinstance(given, str)
    mode = _mode(path)
    if stat.S_ISDIR(mode) and (is_path or "/" in text or not shutil.which(text)):
        raise _is_folder(path, text)
    if stat.S_ISREG(mode):
        is_file = is_path or path.suffix in (*TASK_FILES, *_SCRIPTS) or is_slurm(path)
        return path if is_file else text
    if is_path or _looks_like_a_file(text):
        raise _no_file(path, text)
    return text


def script_argv(path: Path) -> list[str]:
    """The command that runs a script: by python3 where its name ends with `.py`, else by sh."""
    return ["python3" if path.suffix == ".py" else "sh", str(path)]


def _looks_like_a_file(text: str) -> bool:
    return Path(text).suffix in (*TASK_FILES, *_SLURM_FILES, *_SCRIPTS) and not any(c.isspace() for c in text)


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except (OSError, ValueError):  # a long command is no path at all
        return 0


def is_slurm(path: Path) -> bool:
    """Whether the file is a Slurm script: by its name, or by an `#SBATCH` line."""
    if path.suffix in _SLURM_FILES:
        return True
    if path.suffix in TASK_FILES:
        return False
    try:
        with path.open("rb") as file:
            return any(line.startswith(b"#SBATCH") for line in file.read(_PEEK_BYTES).splitlines())
    except OSError:
        return False


def _is_folder(path: Path, text: str) -> FlowError:
    inside = [*sorted(path.glob("*.y*ml")), *sorted(path.glob("*.py"))]
    meant = [f"did you mean `{shlex.quote(str(inside[0]))}`?"] if inside else []
    return ValidationError(f"`{text}` is a folder", suggestions=meant)


def _no_file(path: Path, text: str) -> FlowError:
    """The error, with the file of the same kind whose name is nearly the same."""
    import difflib  # 5 ms, and most commands make no mistake

    kinds = next((kinds for kinds in (TASK_FILES, _SLURM_FILES, _SCRIPTS) if path.suffix in kinds), (path.suffix,))
    try:
        names = {entry.stem: entry.name for entry in path.parent.iterdir() if entry.suffix in kinds}
    except OSError:
        return ResourceNotFoundError(f"no file `{text}`: there is no folder `{path.parent}`")
    near = difflib.get_close_matches(path.stem, names, n=1)
    meant = [f"did you mean `{path.parent / names[stem]}`?" for stem in near]
    return ResourceNotFoundError(f"no file `{text}`", suggestions=meant)
