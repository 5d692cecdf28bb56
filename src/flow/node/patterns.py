"""Slurm's patterns in the names of output files: `slurm-%A_%a.out`, `%4j`, `%%`. Source: sbatch(1), and trials.

Standard library, Python 3.8 and up.
"""

from __future__ import annotations

import os
import re
from typing import Mapping

# What sbatch calls the files where nothing is said of them.
DEFAULT = "slurm-%j.out"
DEFAULT_OF_ARRAY = "slurm-%A_%a.out"
NO_INDEX = 2**32 - 2  # what `%a` is where there is no array

_PATTERN = re.compile(r"%(?:%|(\d*)([A-Za-z]?))")
_NUMBERS = "AajJnst"  # may be filled up with zeros, to ten digits
_WIDEST = 10


def fill_pattern(pattern: str, values: Mapping[str, str | int]) -> str:
    r"""The file name, with `values` by their letters; letters without one are left as they are.

    With a backslash in it nothing is filled in, and a backslash stands for what follows it.
    """
    if "\\" in pattern:
        return re.sub(r"\\(.?)", r"\1", pattern, flags=re.DOTALL)

    def filled(found: re.Match[str]) -> str:
        width, letter = found.groups()
        if width is None:
            return "%"
        if not letter:
            return width or "%"
        if letter not in values:
            return found[0]
        value = str(values[letter])
        return (
            value.rjust(min(int(width), _WIDEST), "0") if width and letter in _NUMBERS and value.isdecimal() else value
        )

    return _PATTERN.sub(filled, pattern)


def absolute_pattern(folder: str, pattern: str) -> str:
    """The pattern below a folder, of whose own name nothing is filled in; `none` is no file at all."""
    if pattern.startswith("/") or pattern == "none":
        return pattern if pattern != "none" else os.devnull
    kept = re.sub(r"\\", r"\\\\", folder) if "\\" in pattern else folder.replace("%", "%%")
    return f"{kept}/{pattern}"
