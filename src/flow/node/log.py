"""The command's output on disk, in the order of its arrival. Standard library, Python 3.8 and up."""

from __future__ import annotations

import os
import struct
import time

RECORD = struct.Struct("<QQQ")  # of log.idx: time in ns, end of stdout.log, end of stderr.log


class Log:
    """The command's output on disk: two files of bytes, and an index that keeps the order of their arrival."""

    def __init__(self, folder: str, copies: list[str | None], *, fresh: bool = False, mode: int = 0o600) -> None:
        self.cut = ""  # why output was dropped
        names = ["stdout.log", "stderr.log", "log.idx"]
        self.files = [_append_to(os.path.join(folder, name)) for name in names]
        self.copies = [_append_to(path, fresh=fresh, mode=mode) if path else None for path in copies]
        self.ends = [os.fstat(fd).st_size for fd in self.files]

    def append(self, stream: int, data: bytes) -> None:
        """Never fails: what the disk does not take is dropped and remembered in `cut`."""
        begin, end = self.ends[stream], self.ends[stream] + self._write(self.files[stream], data)
        self.ends[stream] = end
        if end > begin:
            torn = self._write(self.files[2], RECORD.pack(time.time_ns(), self.ends[0], self.ends[1]))
            if torn == RECORD.size:
                self.ends[2] += torn
            else:  # bytes without a record would be taken for the next record's
                self.ends[stream] = begin
                os.ftruncate(self.files[stream], begin)
                os.ftruncate(self.files[2], self.ends[2])
        copy = self.copies[stream]
        if copy is not None:
            self._write(copy, data)

    def _write(self, fd: int, data: bytes) -> int:
        written = 0
        try:
            while written < len(data):
                written += os.write(fd, data[written:])
        except OSError as error:
            self.cut = say(error)
        return written


def _append_to(path: str, *, fresh: bool = False, mode: int = 0o600) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | fresh * os.O_TRUNC, mode)


def say(error: BaseException) -> str:
    """An error in the words of a sentence, with the file that it is about."""
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror[0].lower() + error.strerror[1:]
        return f"`{error.filename}`: {text}" if error.filename else text
    return str(error) or type(error).__name__
