"""Reading the output of a folder: in order, from anywhere, while it grows, and after a runner was killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flow.node import tail
from flow.node.log import Log
from flow.node.tail import ALL_FOR_NOW, END_OF_FRAMES, FRAME, Piece, Reader, Start
from tests.support.processes import wait_until


def log_in(folder: Path) -> Log:
    folder.mkdir(exist_ok=True)
    return Log(str(folder), [None, None])


def end(folder: Path) -> None:
    (folder / "status.tmp").write_text('{"phase": "ended"}')
    (folder / "status.tmp").rename(folder / "status.json")


def seen(folder: Path, offset: int = 0) -> list[tuple[int, bytes]]:
    return [(stream, data) for _, _, stream, data in tail.pieces(str(folder), offset)]


def test_pieces_come_in_the_order_of_their_arrival(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    written = [(0, b"1\n"), (1, b"2"), (0, b"3"), (0, b"4\r"), (1, b"\xff\0\n")]
    for stream, data in written:
        log.append(stream, data)
    assert seen(tmp_path) == written
    found = list(tail.pieces(str(tmp_path)))
    assert [piece.next_offset for piece in found] == [24, 48, 72, 96, 120]
    assert [piece.time_ns for piece in found] == sorted(piece.time_ns for piece in found)
    for number in range(5):
        assert seen(tmp_path, 24 * number) == written[number:]


def test_an_offset_amid_a_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="25 is not the beginning of a record"):
        list(tail.pieces(str(tmp_path), 25))
    for text in ("", "x", "24-1", "24-1-2-3", "25", "-24", "24--1-0"):
        with pytest.raises((ValueError, TypeError)):
            tail.start_from(text)


@pytest.mark.parametrize("start", [Start(), Start(48), Start(24, 3, 0), Start(72, 0, 9)])
def test_a_start_is_read_as_it_prints(start: Start) -> None:
    assert tail.start_from(str(start)) == start


def test_a_folder_without_a_log_has_no_output(tmp_path: Path) -> None:
    assert seen(tmp_path) == []
    assert seen(tmp_path / "nowhere") == []


def test_following_waits_for_the_folder_and_ends_with_the_attempt(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    found: list[bytes] = []

    def follow() -> None:
        found.extend(piece.data for piece in tail.pieces(str(folder), follow=True))

    reader = threading.Thread(target=follow)
    reader.start()
    log = log_in(folder)
    for number in range(50):
        log.append(number % 2, b"%d\n" % number)
        if number % 10 == 0:
            assert wait_until(lambda number=number: b"%d\n" % number in found)  # type: ignore[misc]
    assert reader.is_alive()
    end(folder)
    reader.join(60)
    assert found == [b"%d\n" % number for number in range(50)]


def test_following_ends_when_the_caller_knows_of_the_end(tmp_path: Path) -> None:
    log_in(tmp_path).append(0, b"last words")
    assert [p.data for p in tail.pieces(str(tmp_path), follow=True, ended=lambda: True)] == [b"last words"]


def test_bytes_without_a_record_come_last_once_the_attempt_ended(tmp_path: Path) -> None:
    log_in(tmp_path).append(0, b"whole\n")
    with (tmp_path / "stderr.log").open("ab") as file:
        file.write(b"killed amid")
    with (tmp_path / "log.idx").open("ab") as file:
        file.write(b"torn")
    assert seen(tmp_path) == [(0, b"whole\n")]
    end(tmp_path)
    assert seen(tmp_path) == [(0, b"whole\n"), (1, b"killed amid")]
    last = list(tail.pieces(str(tmp_path)))[-1]
    assert seen(tmp_path, last.next_offset) == []


def test_neighbours_of_one_stream_come_together_where_that_is_wanted(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    for _ in range(1000):
        log.append(0, b"x" * 9 + b"\n")
    log.append(1, b"other\n")
    log.append(0, b"x\n")
    found = Reader(str(tmp_path)).read(within_ns=10**18)
    assert [(piece.stream, len(piece.data)) for piece in found] == [(0, 10_000), (1, 6), (0, 2)]


def test_a_big_log_is_read_in_pieces_of_about_a_mib(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    for _ in range(80):
        log.append(0, b"y" * 65536)
    reader = Reader(str(tmp_path))
    sizes = []
    while found := reader.read(within_ns=10**18):
        sizes.append(sum(len(piece.data) for piece in found))
    assert sum(sizes) == 80 * 65536
    assert max(sizes) <= 2 * tail.MOST_BYTES


def test_the_last_lines_are_found_without_reading_all(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    for number in range(200):
        log.append(0, (b"%05d" % number) * 13_000 + b"\n")
        log.append(1, b"note %d\n" % number)
    start, lines = tail.find_last_lines(str(tmp_path), 3, 1)
    assert 3 <= lines <= 16
    assert start.offset >= 24 * (400 - 32)
    assert tail.find_last_lines(str(tmp_path), 10_000, None) == (Start(), 400)
    assert tail.find_last_lines(str(tmp_path), 0, None) == (Start(24 * 400), 0)


def test_the_last_lines_of_a_log_without_lines_are_its_end(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    for _ in range(40):
        log.append(0, bytes(1 << 20))
    start, _ = tail.find_last_lines(str(tmp_path), 1, None)
    assert start.offset > 0


def test_the_beginning_of_a_long_last_line_is_found(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.append(0, b"before\nbegin")
    for _ in range(50):
        log.append(0, b"x" * 65536)
    log.append(0, b"end\n")
    start, lines = tail.find_last_lines(str(tmp_path), 1, None)
    found = Reader(str(tmp_path), start)
    text = b"".join(piece.data for piece in iter_pieces(found))
    assert (lines, text) == (1, b"begin" + b"x" * 65536 * 50 + b"end\n")


def iter_pieces(reader: Reader) -> Iterator[Piece]:
    while found := reader.read():
        yield from found


def test_a_start_amid_a_line_takes_its_beginning_along(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.append(0, b"a\nbegin ")
    log.append(1, b"err ")
    log.append(0, b"middle ")
    log.append(0, b"end\n")
    times = [piece.time_ns for piece in tail.pieces(str(tmp_path))]
    start = tail.find_time(str(tmp_path), times[3])
    assert start == Start(72, len(b"begin middle "), len(b"err "))
    reader = Reader(str(tmp_path), start)
    found = [(piece.stream, piece.data) for piece in [*reader.read(), *reader.read()]]
    assert found == [(0, b"begin middle "), (1, b"err "), (0, b"end\n")]
    assert tail.find_time(str(tmp_path), times[3] + 10**9).offset == 96


# -- as a program


def frames(data: bytes) -> list[tuple[int, int, bytes]]:
    found, at = [], 0
    while at < len(data):
        offset, _, stream, length = FRAME.unpack_from(data, at)
        at += FRAME.size + length
        found.append((offset, stream, data[at - length : at]))
    return found


def program(*words: str, python: str = sys.executable) -> list[str]:
    return [python, tail.__file__, *words]


def test_the_program_writes_frames_and_says_when_all_is_read(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.append(0, b"one\n")
    log.append(1, b"two\n")
    said = subprocess.run(program("tail", str(tmp_path), "0"), stdout=subprocess.PIPE, check=True).stdout
    assert frames(said) == [(24, 0, b"one\n"), (48, 1, b"two\n"), (48, END_OF_FRAMES, b"")]
    said = subprocess.run(program("find-lines", str(tmp_path), "1"), stdout=subprocess.PIPE, check=True).stdout
    assert said == b"0 2\n"


def test_the_following_program_ends_with_the_attempt(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    with subprocess.Popen(program("tail", str(tmp_path), "0", "--follow"), stdout=subprocess.PIPE) as process:
        assert process.stdout
        log.append(0, b"one\n")
        assert process.stdout.read(FRAME.size + 4).endswith(b"one\n")
        log.append(1, b"two\n")
        end(tmp_path)
        sent = [frame for frame in frames(process.stdout.read()) if frame[1] != ALL_FOR_NOW]
        assert sent == [(48, 1, b"two\n"), (48, END_OF_FRAMES, b"")]


def test_the_following_program_ends_when_nobody_reads_it(tmp_path: Path) -> None:
    read, write = os.pipe()
    process = subprocess.Popen(program("tail", str(tmp_path), "0", "--follow"), stdout=write)
    os.close(write)
    os.close(read)
    assert process.wait(60) is not None


# -- entering a task


def entered(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        program("enter", str(folder), *words), capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def test_a_command_is_run_where_the_task_runs(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    env = {"PATH": os.environ["PATH"], "NAME": "it's\né"}
    (tmp_path / "env.json").write_text(json.dumps({"env": env, "cwd": str(tmp_path / "work")}))
    done = entered(tmp_path, "--", "sh", "-c", 'pwd; echo "$NAME"; exit 3')
    assert (done.returncode, done.stdout) == (3, f"{tmp_path}/work\nit's\né\n")
    assert entered(tmp_path).returncode == 0  # a shell, with nothing to do
    assert entered(tmp_path, "--", "no-such").stderr == "no-such: No such file or directory\n"


def test_a_task_that_has_not_started_cannot_be_entered(tmp_path: Path) -> None:
    done = entered(tmp_path)
    assert (done.returncode, done.stderr) == (1, "the task has not started\n")
