"""Reads a task's output in the order of its arrival, from any point of its index, and on while it grows.

As a program it writes it as frames, says where the last lines begin, or enters the task. Standard library, Python 3.8
and up; the formats are in docs/ARCHITECTURE.md.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import struct
import sys
import time
from typing import Callable, Iterator, NamedTuple, Sequence

RECORD = struct.Struct("<QQQ")  # of log.idx: time in ns, end of stdout.log, end of stderr.log
FRAME = struct.Struct("<QQBI")  # before a piece's bytes: next offset, time in ns, stream, length
ALL_FOR_NOW = 254  # as a stream: all that was there has been sent, once
END_OF_FRAMES = 255  # all was sent, the connection was not cut
LOGS = ("stdout.log", "stderr.log")
MOST_BYTES = 1 << 20  # of one piece
LONGEST_LINE = 1 << 24  # how far back the beginning of a line is looked for
MOST_RECORDS = 4096  # of one look at the index


class Piece(NamedTuple):
    """Bytes that arrived together. `next_offset` is where in the index reading goes on after them."""

    next_offset: int
    time_ns: int
    stream: int  # 0 stdout, 1 stderr
    data: bytes


class Span(NamedTuple):
    """Where the bytes of a piece lie in their stream's file."""

    next_offset: int
    time_ns: int
    stream: int
    begin: int
    end: int


class Start(NamedTuple):
    """A point in the output: an offset in the index, and how many bytes before it each stream has still to give."""

    offset: int = 0
    owed_out: int = 0
    owed_err: int = 0

    def __str__(self) -> str:
        return "-".join(map(str, self if self.owed_out or self.owed_err else self[:1]))


def start_from(text: str) -> Start:
    """The Start that prints as `text`; raises ValueError on anything else."""
    numbers = [int(part) for part in text.split("-")]
    start = Start(*numbers[:3])
    if len(numbers) not in (1, 3) or start.offset % RECORD.size:
        raise ValueError(f"`{text}` is not a place in a log")
    return start


def pieces(
    folder: str,
    offset: int = 0,
    follow: bool = False,
    ended: Callable[[], bool] | None = None,
    poll_seconds: float = 0.01,
) -> Iterator[Piece]:
    """The output from `offset` on; following, until the attempt ended and everything of it was read."""
    reader = Reader(folder, Start(offset))
    while True:
        # asked before reading, so that nothing written before the end is missed
        is_over = has_ended(folder) or (ended is not None and ended())
        found = reader.read(is_over=is_over)
        yield from found
        if not found:
            if is_over or not follow:
                return
            time.sleep(poll_seconds)


class Reader:
    """Reads one folder's output piece by piece, never waiting. The folder need not exist yet."""

    def __init__(self, folder: str, start: Start = Start()) -> None:  # noqa: B008  # immutable
        if start.offset % RECORD.size:
            raise ValueError(f"{start.offset} is not the beginning of a record")
        self.folder = folder
        self.offset = start.offset
        self.owed = list(start[1:])
        self.ends = [0, 0]
        self.index = -1
        self.logs = [-1, -1]

    def read(self, *, is_over: bool = False, within_ns: int = 0) -> list[Piece]:
        """The next pieces, about a MiB at most; [] when there are none now.

        is_over: the runner writes no more, so bytes that it did not get into the index any more come too.
        within_ns: bytes of one stream that arrived within so much of each other may come as one piece.
        """
        if self.index < 0 and not self._open():
            return []
        if any(self.owed):
            return self._read_owed()
        raw = os.pread(self.index, RECORD.size * MOST_RECORDS, self.offset)
        spans = self._spans(raw, within_ns)
        if spans:
            return self._read_spans(spans)
        return self._read_rest() if is_over else []

    def close(self) -> None:
        """Let go of the files."""
        for fd in [self.index, *self.logs]:
            if fd >= 0:
                os.close(fd)
        self.index, self.logs = -1, [-1, -1]

    def _open(self) -> bool:
        try:
            # in this order: the runner makes the index last
            self.index = os.open(os.path.join(self.folder, "log.idx"), os.O_RDONLY)
            self.logs = [os.open(os.path.join(self.folder, name), os.O_RDONLY) for name in LOGS]
        except FileNotFoundError:
            self.close()
            return False
        self.ends = self._ends_before(self.offset)
        return True

    def _ends_before(self, offset: int) -> list[int]:
        """How far each stream was when the record before `offset` was written."""
        size = self._index_size()
        last = min(offset, size)
        ends = list(RECORD.unpack(os.pread(self.index, RECORD.size, last - RECORD.size))[1:]) if last else [0, 0]
        for stream in range((offset - last) // RECORD.size):  # bytes without a record count as if each had one
            ends[min(stream, 1)] = os.fstat(self.logs[min(stream, 1)]).st_size
        return ends

    def _index_size(self) -> int:
        size = os.fstat(self.index).st_size
        return size - size % RECORD.size

    def _read_owed(self) -> list[Piece]:
        before = max(0, min(self.offset, self._index_size()) - RECORD.size)
        when = struct.unpack("<Q", os.pread(self.index, 8, before) or bytes(8))[0]
        found = []
        for stream, size in enumerate(self.owed):
            begin = max(0, self.ends[stream] - size)
            found.append(
                Piece(self.offset, when, stream, os.pread(self.logs[stream], self.ends[stream] - begin, begin))
            )
        self.owed = [0, 0]
        # whole lines last: the cursor after them counts what the other stream is owed
        return sorted((piece for piece in found if piece.data), key=lambda piece: b"\n" in piece.data)

    def _spans(self, raw: bytes, within_ns: int) -> list[Span]:
        """What the records say: (next offset, time, stream, begin, end), neighbours of one stream joined."""
        spans: list[Span] = []
        ends, offset, total = list(self.ends), self.offset, 0
        for when, *new in RECORD.iter_unpack(raw[: len(raw) - len(raw) % RECORD.size]):
            offset += RECORD.size
            stream = 0 if new[0] != ends[0] else 1
            begin, end = ends[stream], new[stream]
            ends = new
            total += end - begin
            if spans and within_ns:
                _, since, before, first, _ = spans[-1]
                if before == stream and when - since <= within_ns and end - first <= MOST_BYTES:
                    spans[-1] = Span(offset, since, stream, first, end)
                    continue
            spans.append(Span(offset, when, stream, begin, end))
            if total >= MOST_BYTES:
                break
        return spans

    def _read_spans(self, spans: Sequence[Span]) -> list[Piece]:
        begins = list(self.ends)
        for _, _, stream, _, end in spans:
            self.ends[stream] = max(end, begins[stream])
        blocks = [os.pread(fd, self.ends[s] - begins[s], begins[s]) for s, fd in enumerate(self.logs)]
        self.offset = spans[-1][0]
        return [
            Piece(offset, when, stream, blocks[stream][begin - begins[stream] : end - begins[stream]])
            for offset, when, stream, begin, end in spans
        ]

    def _read_rest(self) -> list[Piece]:
        """What a runner wrote that was killed before it wrote the record: one read of it at most."""
        size = self._index_size()
        when = RECORD.unpack(os.pread(self.index, RECORD.size, size - RECORD.size))[0] if size else 0
        for stream, fd in enumerate(self.logs):
            offset = size + RECORD.size * (stream + 1)
            end = os.fstat(fd).st_size
            if self.offset < offset and end > self.ends[stream]:
                data = os.pread(fd, end - self.ends[stream], self.ends[stream])
                self.offset, self.ends[stream] = offset, end
                return [Piece(offset, when, stream, data)]
        return []


def has_ended(folder: str) -> bool:
    """Whether the attempt of `folder` was reported to have ended."""
    try:
        with open(os.path.join(folder, "status.json"), encoding="utf-8") as file:
            return bool(json.load(file)["phase"] == "ended")
    except (OSError, ValueError, KeyError, TypeError):
        return False


class Found(NamedTuple):
    """Where to start reading, and how many lines (of the stream asked for) follow at least."""

    start: Start
    lines: int


def find_last_lines(folder: str, lines: int, stream: int | None = None) -> Found:
    """Where the last `lines` lines begin, or a little before; reads backwards, and only what it must.

    Of a line longer than 16 MiB only that much is looked for.
    """
    reader = Reader(folder)
    if not reader._open():
        return Found(Start(), 0)
    offset, count, total, records = reader._index_size(), 0, 0, 2
    while offset and count < lines and total <= lines * LONGEST_LINE:
        begin, records = max(0, offset - RECORD.size * records), min(records * 2, MOST_RECORDS)
        reader.offset, reader.ends = begin, reader._ends_before(begin)
        while reader.offset < offset:
            raw = os.pread(reader.index, offset - reader.offset, reader.offset)
            for piece in reader._read_spans(reader._spans(raw, MOST_BYTES)):
                if stream in (None, piece.stream):
                    count += piece.data.count(b"\n")
                    total += len(piece.data)
        offset = begin
    start = _at_line_begin(reader, offset, LONGEST_LINE)
    reader.close()
    return Found(start, count)


def find_time(folder: str, time_ns: int) -> Start:
    """Where the lines begin that were ended at `time_ns` or later."""
    reader = Reader(folder)
    if not reader._open():
        return Start()
    size = reader._index_size()
    for offset in range(0, size, RECORD.size):
        if struct.unpack("<Q", os.pread(reader.index, 8, offset))[0] >= time_ns:
            break
    else:
        offset = size
    start = _at_line_begin(reader, offset, MOST_BYTES)
    reader.close()
    return start


def _at_line_begin(reader: Reader, offset: int, most_bytes: int) -> Start:
    """The Start for `offset`, with what the lines that are unfinished there began with, if that is not too much."""
    owed = []
    for fd, end in zip(reader.logs, reader._ends_before(offset)):
        line = _line_begin(fd, end, most_bytes)
        owed.append(0 if line is None else end - line)
    return Start(offset, *owed)


def _line_begin(fd: int, end: int, most_bytes: int) -> int | None:
    """Where the line begins that is unfinished at `end` of a file; None where that is more than `most_bytes` before."""
    least, at = max(0, end - most_bytes), end
    while at > least:
        begin = max(least, at - MOST_BYTES)
        found = os.pread(fd, at - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        at = begin
    return 0 if at == 0 else None


def _write_frames(folder: str, start: Start, *, follow: bool) -> None:
    """To standard output, until all is read or nobody reads any more."""
    reader, out = Reader(folder, start), sys.stdout.buffer
    gone = select.poll()
    gone.register(1, 0)  # errors only: the other end of the pipe was closed
    is_told = False
    while True:
        is_over = has_ended(folder)  # asked before reading, so that nothing written before the end is missed
        found = reader.read(is_over=is_over)
        for piece in found:
            out.write(FRAME.pack(piece.next_offset, piece.time_ns, piece.stream, len(piece.data)) + piece.data)
        out.flush()
        if not found:
            if is_over or not follow:
                break
            if not is_told:
                out.write(FRAME.pack(reader.offset, 0, ALL_FOR_NOW, 0))
                out.flush()
                is_told = True
            if gone.poll(10):
                return
    out.write(FRAME.pack(reader.offset, 0, END_OF_FRAMES, 0))
    out.flush()


def _enter(folder: str, argv: Sequence[str]) -> None:
    """Become `argv`, or a shell, where the task's command runs: in its folder, environment and container."""
    env = go_in(folder, argv)
    words = list(argv) or [env.get("SHELL") or "/bin/sh"]
    try:
        os.execvpe(words[0], words, env)
    except OSError as error:
        print(f"{words[0]}: {error.strerror}", file=sys.stderr)  # noqa: T201
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)


def go_in(folder: str, argv: Sequence[str]) -> dict[str, str]:
    """Bring this process to where the task's command runs, its environment; or become `argv` there, where that is not
    possible otherwise."""
    try:
        with open(os.path.join(folder, "env.json"), encoding="utf-8") as file:
            place = json.load(file)
    except FileNotFoundError:
        sys.exit("the task has not started")
    if os.path.isdir(os.path.join(folder, "sessions")):  # of a development machine, which is in use now
        note_session(folder, " ".join(argv) or "a shell", is_fresh=False)
    if place.get("container"):
        terminal = ["-it"] if os.isatty(0) and os.isatty(1) else ["-i"]
        engine, name = place["container"]
        os.execvp(engine, [engine, "exec", *terminal, "-w", place["cwd"], name, *(argv or ["sh"])])
    if place.get("prefix"):
        os.execvp(place["prefix"][0], [*place["prefix"], *(argv or ["sh"])])
    if place.get("namespace_of"):
        mounts = importlib.import_module("mounts")  # beside this file, which runs as a program here, or came along
        try:
            mounts.join_task(folder, *place["namespace_of"])
        except ProcessLookupError:
            sys.exit("the task has ended")
    os.chdir(place["cwd"])
    return dict(place["env"], **{name: os.environ[name] for name in ("TERM", "COLORTERM") if name in os.environ})


def note_session(folder: str, what: str, *, is_fresh: bool) -> None:
    """Say that this process is on the development machine."""
    told = {"what": what, "is_fresh": is_fresh, "began": began(os.getpid())}
    place, name = os.path.join(folder, "sessions"), str(os.getpid())
    with open(os.path.join(place, f".{name}"), "w", encoding="utf-8") as file:
        json.dump(told, file)
    os.rename(os.path.join(place, f".{name}"), os.path.join(place, name))


def began(pid: int) -> str:
    """When a process began, as this machine counts: tells it from a later one of that number. "" where it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[19].decode()
    except OSError:
        if os.path.exists("/proc/self/stat"):
            return ""
    import subprocess  # no /proc, as on macOS

    words, plain = ["ps", "-o", "lstart=", "-p", str(pid)], {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
    return subprocess.run(words, stdout=subprocess.PIPE, env=plain, check=False).stdout.decode().strip()


def main(argv: Sequence[str]) -> None:
    """`tail DIR START [--follow]`, `find-lines DIR N [STREAM]`, `find-time DIR NS`, `enter DIR [-- ARGV]`."""
    if argv[0] == "enter":
        return _enter(argv[1], argv[3:])
    verb, folder, value, *more = argv
    if verb == "tail":
        _write_frames(folder, start_from(value), follow="--follow" in more)
    elif verb == "find-lines":
        start, lines = find_last_lines(folder, int(value), int(more[0]) if more else None)
        print(start, lines)  # noqa: T201
    elif verb == "find-time":
        print(find_time(folder, int(value)))  # noqa: T201
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
