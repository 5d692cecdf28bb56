"""What is mounted where, and why something cannot be. Standard library, Python 3.8 and up."""

from __future__ import annotations

import os
import re
from collections import namedtuple


class CannotMount(ValueError):  # noqa: N818  # what is wrong is what was asked for, or this machine
    """Why something cannot be mounted, in one sentence for the user."""


class MountPoint(namedtuple("MountPoint", ("path", "number", "kind", "source"))):
    """A mount: where it is seen, the number of its device ("8:1"), its file system's kind, what it was made from."""


def mounted() -> list[MountPoint]:
    """Every mount that this process sees; of two at one path the later hides the earlier.

    Source: proc_pid_mountinfo(5), which writes a space as \\040.
    """
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            words = line.split()
            path = re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), words[4])
            kind = words.index(b"-") + 1
            found.append(MountPoint(*map(os.fsdecode, (path, words[2], words[kind], words[kind + 1]))))
    return found
