"""Lines out of folders: whole, in order, resumable from any cursor, over several ranks and attempts."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flow.channel import Channel
from flow.errors import ProviderError, ValidationError
from flow.logs import Folder, Line, read_blocks, read_lines
from flow.node.log import Log
from tests.support.processes import wait_until

Pieces = list[tuple[int, bytes]]


def write(folder: Path, pieces: Pieces) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    log = Log(str(folder), [None, None])
    for stream, data in pieces:
        log.append(stream, data)
    for fd in log.files:
        os.close(fd)
    return folder


def end(folder: Path) -> None:
    (folder / "status.tmp").write_text('{"phase": "ended"}')
    (folder / "status.tmp").rename(folder / "status.json")


def here(path: Path, attempt: int = 1, rank: int = 0) -> Folder:
    return Folder(attempt, rank, Channel(), str(path))


def lines(*folders: Folder, final: bool = True, **choice: Any) -> list[Line]:
    return list(read_lines(lambda: folders, is_final=lambda: final, **choice))


def merged(*folders: Folder, final: bool = True, **choice: Any) -> list[tuple[int, bytes]]:
    found = read_blocks(lambda: folders, is_final=lambda: final, **choice)
    return [(block.stream, block.data) for block in found]


def texts(found: Sequence[Line]) -> list[tuple[int, bytes]]:
    return [(line.stream, line.text) for line in found]


# -- lines


def test_lines_stay_whole_and_in_the_order_of_their_ends(tmp_path: Path) -> None:
    pieces = [(0, b"one\ntw"), (1, b"error "), (0, b"o\n"), (1, b"here\n\n"), (0, b"10%\r20%\r"), (0, b"100%\nlast")]
    folder = here(write(tmp_path, pieces))
    found = lines(folder)
    assert texts(found) == [
        (0, b"one"), (0, b"two"), (1, b"error here"), (1, b""), (0, b"10%\r20%\r100%"), (0, b"last"),
    ]  # fmt: skip
    assert [line.is_whole for line in found] == [True] * 5 + [False]
    assert [line.time for line in found] == sorted(line.time for line in found)
    assert {(line.attempt, line.rank) for line in found} == {(1, 0)}
    assert b"".join(data for stream, data in merged(folder) if stream == 0) == b"one\ntwo\n10%\r20%\r100%\nlast"


def test_streams_lines_and_times_can_be_chosen(tmp_path: Path) -> None:
    folder = here(write(tmp_path, [(number % 2, b"line %d\n" % number) for number in range(100)]))
    everything = lines(folder)
    assert texts(lines(folder, stream="stderr")) == [(1, b"line %d" % number) for number in range(1, 100, 2)]
    assert lines(folder, tail=7) == everything[-7:]
    assert lines(folder, tail=0) == []
    assert lines(folder, tail=3, stream="stdout") == [line for line in everything if line.stream == 0][-3:]
    assert lines(folder, grep="[78]$") == [line for line in everything if line.text[-1:] in b"78"]
    assert lines(folder, grep="1", tail=2) == [line for line in everything if b"1" in line.text][-2:]
    assert lines(folder, since=everything[40].time) == everything[40:]
    assert lines(folder, rank=1) == []
    for choice in ({}, {"stream": "stderr"}, {"tail": 7}, {"grep": "[78]$"}, {"since": everything[40].time}):
        expected: dict[int, bytes] = {0: b"", 1: b""}
        for line in lines(folder, **choice):  # type: ignore[arg-type]
            expected[line.stream] += line.text + b"\n"
        found: dict[int, bytes] = {0: b"", 1: b""}
        for stream, data in merged(folder, **choice):
            found[stream] += data
        assert found == expected


@pytest.mark.parametrize("cursor", ["x", "1.0", "1.0.25", "1.0.0-1", "1.0.x", "1.0.0,2"])
def test_what_is_not_a_cursor_is_refused(tmp_path: Path, cursor: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(f"`{cursor}` is not a cursor")):
        lines(here(tmp_path), cursor=cursor)


def test_what_is_not_a_pattern_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="cannot read `\\[` as a pattern"):
        merged(here(tmp_path), grep="[")


def test_endless_output_without_a_newline_is_cut_and_lost_nowhere(tmp_path: Path) -> None:
    data = os.urandom(100).replace(b"\n", b"x") * 32_000
    folder = here(write(tmp_path, [(0, data[at : at + 65536]) for at in range(0, len(data), 65536)]))
    found = lines(folder)
    assert [len(line.text) for line in found] == [1 << 20, 1 << 20, 1 << 20, len(data) - (3 << 20)]
    assert b"".join(line.text for line in found) == data
    assert not any(line.is_whole for line in found)
    for number, line in enumerate(found):
        assert lines(folder, cursor=line.cursor) == found[number + 1 :]
    assert b"".join(data for _, data in merged(folder)) == data


def test_a_line_cut_for_its_length_counts_as_one_of_the_last(tmp_path: Path) -> None:
    long = b"y" * (5 << 20 | 7)
    pieces = [(0, b"before\n"), *((0, long[at : at + 65536]) for at in range(0, len(long), 65536))]
    folder = here(write(tmp_path, [*pieces, (1, b"err\n"), (0, b"\nafter\n")]))
    assert b"".join(data for stream, data in merged(folder, tail=2, stream="stdout")) == long + b"\nafter\n"
    assert texts(lines(folder, tail=1)) == [(0, b"after")]
    assert b"".join(line.text for line in lines(folder, tail=2)) == long + b"after"
    assert lines(folder, tail=4)[0].text == b"before"
    assert texts(lines(folder, tail=1, grep="err|before")) == [(1, b"err")]


def test_of_a_line_of_more_than_16_mib_the_last_lines_hold_the_end(tmp_path: Path) -> None:
    folder = here(write(tmp_path, [(0, b"before\n"), *[(0, b"z" * (1 << 20))] * 40, (0, b"end")]))
    found = lines(folder, tail=1)
    assert 15 << 20 < sum(len(line.text) for line in found) <= 16 << 20
    assert b"".join(line.text for line in found).endswith(b"zend")


def test_a_progress_bar_of_small_pieces_is_read_in_linear_time(tmp_path: Path) -> None:
    folder = here(write(tmp_path, [(1, b"%6d/100000\r" % number) for number in range(50_000)]))
    assert sum(len(line.text) for line in lines(folder)) == 50_000 * 14


# -- cursors

data = st.lists(st.sampled_from([b"\n", b"a", b"bc", b"\r", b"\xff\0", b"\n\n", b"long line "]), max_size=6).map(
    b"".join
)
logs = st.lists(st.tuples(st.integers(0, 1), data.filter(bool)), max_size=12)


@settings(max_examples=150, deadline=None)
@given(logs)
def test_from_every_cursor_exactly_the_following_lines_come(pieces: Pieces) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = here(write(Path(name), pieces))
        found = lines(folder)
        for number, line in enumerate(found):
            assert lines(folder, cursor=line.cursor) == found[number + 1 :]


@settings(max_examples=150, deadline=None)
@given(logs, st.integers(0, 12), st.data())
def test_any_prefix_of_a_log_resumed_gives_the_log(pieces: Pieces, cut: int, choice: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = here(write(Path(name), pieces[:cut]))
        first = lines(folder, final=False)
        first = first[: choice.draw(st.integers(0, len(first)))]
        write(Path(name), pieces[cut:])
        cursor = first[-1].cursor if first else None
        both = first + lines(folder, cursor=cursor)
        for stream in (0, 1):
            whole = b"".join(data for which, data in pieces if which == stream)
            assert b"".join(x.text + b"\n" * x.is_whole for x in both if x.stream == stream) == whole


@settings(max_examples=60, deadline=None)
@given(st.lists(logs, min_size=2, max_size=3), st.data())
def test_merged_ranks_can_be_resumed_from_every_line(by_rank: list[Pieces], choice: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folders = [write_timed(Path(name) / str(rank), pieces, choice) for rank, pieces in enumerate(by_rank)]
        ranks = [here(path, rank=rank) for rank, path in enumerate(folders)]
        found = lines(*ranks)
        assert len(found) == sum(len(lines(one)) for one in ranks)
        for number, line in enumerate(found):
            assert lines(*ranks, cursor=line.cursor) == found[number + 1 :]


@settings(max_examples=60, deadline=None)
@given(logs, st.integers(0, 8))
def test_the_last_lines_are_the_last_lines(pieces: Pieces, tail: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = here(write(Path(name), pieces))
        found = lines(folder)
        assert lines(folder, tail=tail) == (found[-tail:] if tail else [])


def write_timed(folder: Path, pieces: Pieces, choice: st.DataObject) -> Path:
    """As `write`, arrived at drawn times instead of now."""
    write(folder, pieces)
    index = bytearray((folder / "log.idx").read_bytes())
    now = 0
    for at in range(0, len(index), 24):
        now += choice.draw(st.integers(0, 3))
        index[at : at + 8] = now.to_bytes(8, "little")
    (folder / "log.idx").write_bytes(index)
    return folder


# -- ranks and attempts


def test_ranks_are_merged_by_the_times_of_their_lines(tmp_path: Path) -> None:
    first, second = tmp_path / "0", tmp_path / "1"
    for number in range(5):
        write(first, [(0, b"0: %d\n" % number)])
        write(second, [(0, b"1: %d\n" % number)])
    both = [here(first, rank=0), here(second, rank=1)]
    found = lines(*both)
    assert [line.text for line in found] == [b"%d: %d" % (rank, number) for number in range(5) for rank in (0, 1)]
    assert texts(lines(*both, rank=1)) == [(0, b"1: %d" % number) for number in range(5)]
    assert lines(*both, tail=3) == found[-3:]
    assert len(b"".join(data for _, data in merged(*both))) == 50


def test_attempts_come_one_after_the_other(tmp_path: Path) -> None:
    write(tmp_path / "1", [(0, b"a\nb\nunfinished")])
    write(tmp_path / "2", [(0, b"c\n")])
    both = [here(tmp_path / "2", attempt=2), here(tmp_path / "1", attempt=1)]
    found = lines(*both)
    assert [(line.attempt, line.text) for line in found] == [(1, b"a"), (1, b"b"), (1, b"unfinished"), (2, b"c")]
    for number, line in enumerate(found):
        assert lines(*both, cursor=line.cursor) == found[number + 1 :]
    for tail in range(6):
        assert lines(*both, tail=tail) == (found[-tail:] if tail else [])
    assert b"".join(data for _, data in merged(*both)) == b"a\nb\nunfinishedc\n"


def test_each_rank_goes_on_to_its_own_next_attempt(tmp_path: Path) -> None:
    write(tmp_path / "1/0", [(0, b"0 first\n")])
    write(tmp_path / "1/1", [(0, b"1 only\n")])
    write(tmp_path / "2/0", [(0, b"0 again\n")])
    write(tmp_path / "1/2", [(0, b"2 late\n")])
    folders = [here(tmp_path / f"{a}/{r}", a, r) for a, r in ((1, 0), (1, 1), (1, 2), (2, 0))]
    found = lines(*folders)
    assert [line.text for line in found] == [b"0 first", b"1 only", b"0 again", b"2 late"]
    for number, line in enumerate(found):
        assert lines(*folders, cursor=line.cursor) == found[number + 1 :]
    for tail in range(5):
        assert [line.text for line in lines(*folders, tail=tail)] == [line.text for line in found[4 - tail :]]


class Growing:
    """A task whose folders and end the test decides, followed in a thread."""

    def __init__(self, **choice: Any) -> None:
        self.folders: list[Folder] = choice.pop("folders", [])
        self.final = False
        self.found: list[Any] = []
        read = choice.pop("read", read_lines)
        self.lines = read(lambda: list(self.folders), is_final=lambda: self.final, follow=True, **choice)
        self.thread = threading.Thread(target=lambda: self.found.extend(self.lines))
        self.thread.start()

    def until(self, count: int) -> list[bytes]:
        assert wait_until(lambda: len(self.found) >= count), self.found
        return [line.text for line in self.found]

    def end(self) -> list[bytes]:
        self.final = True
        self.thread.join(60)
        assert not self.thread.is_alive()
        return [line.text for line in self.found]


@pytest.fixture
def growing() -> Iterator[Any]:
    made: list[Growing] = []

    def make(**choice: Any) -> Growing:
        made.append(Growing(**choice))
        return made[-1]

    yield make
    for one in made:
        one.final = True
        one.thread.join(60)


def test_following_goes_through_ranks_and_attempts_to_the_end(tmp_path: Path, growing: Any) -> None:
    task = growing()
    task.folders.append(here(tmp_path / "1/0", 1, 0))
    write(tmp_path / "1/0", [(0, b"first\nhal")])
    task.until(1)
    task.folders.append(here(tmp_path / "1/1", 1, 1))
    write(tmp_path / "1/1", [(1, b"other\n")])
    task.until(2)
    write(tmp_path / "1/0", [(0, b"f\n"), (0, b"rest")])
    task.until(3)
    end(tmp_path / "1/1")  # and rank 0 is lost: only the next attempt tells that this one is over
    task.folders.append(here(tmp_path / "2/0", 2, 0))
    task.until(4)
    write(tmp_path / "2/0", [(0, b"again\n")])
    assert task.until(5) == [b"first", b"other", b"half", b"rest", b"again"]
    write(tmp_path / "2/0", [(0, b"no newline")])
    assert task.end()[-1] == b"no newline"


def test_a_rank_that_begins_after_others_ended_or_run_again_is_followed(tmp_path: Path, growing: Any) -> None:
    task = growing()
    task.folders += [here(tmp_path / "1/0", 1, 0), here(tmp_path / "2/0", 2, 0)]
    write(tmp_path / "1/0", [(0, b"0 first\n")])
    write(tmp_path / "2/0", [(0, b"0 again\n")])
    end(tmp_path / "2/0")
    assert task.until(2) == [b"0 first", b"0 again"]
    task.folders.append(here(tmp_path / "1/1", 1, 1))
    write(tmp_path / "1/1", [(0, b"1 first\n")])
    assert task.until(3)[2:] == [b"1 first"]
    write(tmp_path / "1/1", [(0, b"1 more\n")])
    assert task.until(4)[3:] == [b"1 more"]
    assert len(task.end()) == 4


def test_following_from_the_last_lines_shows_them_and_what_comes(tmp_path: Path, growing: Any) -> None:
    write(tmp_path, [(0, b"%d\n" % number) for number in range(100)])
    task = growing(tail=2, folders=[here(tmp_path)])
    task.until(2)
    write(tmp_path, [(0, b"new\n")])
    found = task.until(3)
    assert found[-1] == b"new"
    end(tmp_path)
    task.end()


def test_a_task_that_ends_before_it_had_a_folder_ends_the_following(growing: Any) -> None:
    assert growing().end() == []


# -- over a channel


@pytest.fixture
def far(tmp_path: Path) -> Channel:
    """A channel whose far side is this machine; it is cut where a file `cut` says after how many bytes."""
    script = tmp_path / "hop"
    script.write_text(f"""#!{sys.executable}
import os, subprocess, sys
cut = {str(tmp_path / "cut")!r}
if not os.path.exists(cut):
    os.execvp("sh", ["sh", "-c", " ".join(sys.argv[1:])])
with open(cut) as file:
    size = int(file.read())
os.unlink(cut)
process = subprocess.Popen(["sh", "-c", " ".join(sys.argv[1:])], stdout=subprocess.PIPE)
while size:
    data = os.read(process.stdout.fileno(), size)
    os.write(1, data)
    size -= len(data)
process.kill()
process.wait()
""")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return Channel((str(script),), joins_words=True)


def test_a_far_log_reads_as_one_here(tmp_path: Path, far: Channel) -> None:
    path = write(tmp_path / "it's $HOME", [(number % 2, b"line %d\nand" % number) for number in range(300)])
    there = Folder(1, 0, far, str(path))
    found = lines(here(path))
    assert lines(there) == found
    assert lines(there, tail=5) == found[-5:]
    assert lines(there, since=found[100].time) == found[100:]
    assert lines(there, cursor=found[7].cursor) == found[8:]


def test_a_far_log_is_followed_across_a_cut(tmp_path: Path, far: Channel, growing: Any) -> None:
    path = write(tmp_path / "task", [(0, b"%d\n" % number) for number in range(50)])
    (tmp_path / "cut").write_text("500")
    task = growing()
    task.folders.append(Folder(1, 0, far, str(path)))
    task.until(50)
    write(path, [(0, b"more\n")])
    task.until(51)
    end(path)
    assert task.end() == [b"%d" % number for number in range(50)] + [b"more"]


def test_a_far_follower_ends_with_the_task_though_no_end_was_reported(
    tmp_path: Path, far: Channel, growing: Any
) -> None:
    path = write(tmp_path / "task", [(0, b"a\n"), (0, b"b")])
    task = growing()
    task.folders.append(Folder(1, 0, far, str(path)))
    task.until(1)
    assert task.end() == [b"a", b"b"]


def test_a_far_follower_waits_for_the_machine_of_an_attempt_before_the_last(tmp_path: Path, growing: Any) -> None:
    first, second = write(tmp_path / "1/0", [(0, b"a\n")]), write(tmp_path / "2/0", [(0, b"b\n")])
    tried, back = tmp_path / "tried", tmp_path / "back"
    away = Channel(
        ("sh", "-c", f'echo >> {tried}; test -e {back} || exit 255; exec sh -c "$1"', "sh"), joins_words=True
    )
    task = growing()
    task.folders += [Folder(number, 0, away, str(path)) for number, path in ((1, first), (2, second))]
    assert wait_until(lambda: tried.exists() and len(tried.read_text()) > 7, seconds=60)
    back.touch()
    task.until(2)
    assert task.end() == [b"a", b"b"]


def test_a_machine_out_of_reach_is_an_error(tmp_path: Path) -> None:
    there = Folder(1, 0, Channel(("sh", "-c", "echo no route to host >&2; exit 255")), str(tmp_path))
    with pytest.raises(ProviderError, match=r"cannot read the logs of node 0 over .*: no route to host"):
        lines(there, tail=3)


def test_a_line_is_ready_for_json(tmp_path: Path) -> None:
    (line,) = lines(here(write(tmp_path, [(1, b"x\n")])))
    fields = line._asdict() | {"text": line.text.decode()}
    assert json.loads(json.dumps(fields)) == fields
    assert line.cursor == "1.0.24"
