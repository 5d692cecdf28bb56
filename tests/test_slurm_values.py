"""What is written for an option of sbatch, well or malformed: each was submitted to Slurm 22.05.8."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from flow.errors import ValidationError
from flow.node.patterns import fill_pattern
from flow.slurm.moments import parse_moment
from flow.slurm.values import After, Gpus, Nodes, parse_value

REFUSED = "refused"


def value(name: str, text: str) -> Any:
    try:
        return parse_value(name, text)
    except ValidationError:
        return REFUSED


TIMES = {
    "5": 5, "5:30": 6, "1:2:3": 63, "1-2": 1560, "1-2:3": 1563, "1-2:3:4": 1564, "0": None, "UNLIMITED": None,
    "infinite": None, "-1": None, "1-": 1440, "1-24:00:00": 2880, "99:99": 101, "0:30": 1, "0:0:1": 1, "1:60:61": 122,
    "00:00": None, "4294967295": None, "9999999999": None,
    **dict.fromkeys(
        ("-", "1:2:3:4", "1-2:3:4:5", "5m", "soon", "1.5", "", "+5", "  5", "1 -2", "1--2", "-1:00", "1-2-3", ":30",
         "5:", "1::2"),
        REFUSED,
    ),
}  # fmt: skip
MEMORY = {
    "64G": 65536, "64GB": 65536, "64gb": 65536, "2048": 2048, "2048M": 2048, "1K": 1, "1T": 1048576, "0": None,
    "0G": None, **dict.fromkeys(("1.5G", "lots", "-1", "64X", "", "1P", "64Gi", "64GiB", "4096 M", "5B"), REFUSED),
}  # fmt: skip
NODES = {
    "2": Nodes(2), "2-4": Nodes(2, 4), "0": None, "1k": Nodes(1024), "2k-3k": Nodes(2048, 3072), "1m": Nodes(1048576),
    **dict.fromkeys(("2,4", "4-2", "two", "2-", "1.5", "", "2-4-6", "2:4", "0x2", "1-3:2"), REFUSED),
}  # fmt: skip
COUNTS = {"4": 4, **dict.fromkeys(("0", "-1", "x", "4.5", "1k", "", "99999999999"), REFUSED)}
GPUS = {
    "4": (Gpus("", 4),), "a100:4": (Gpus("a100", 4),), "a100": (Gpus("a100", 1),), "0": (), "a100:0": (), "": (),
    "a100:2,v100:1": (Gpus("a100", 2), Gpus("v100", 1)), "1k": (Gpus("", 1024),),
    **dict.fromkeys(("4.5", "gpu:a100:4", "a100:x", "a100:"), REFUSED),
}  # fmt: skip
GRES = {
    "gpu:a100:4": (Gpus("a100", 4),), "gpu:4": (Gpus("", 4),), "gpu": (Gpus("", 1),), "gpu:a100": (Gpus("a100", 1),),
    "gpu:0": (), "gres:gpu:2": (Gpus("", 2),), "gpu:a100=2": (Gpus("a100", 2),), "none": (), "license:1": (),
    **dict.fromkeys(("gres/gpu:2", "", "gpu:x:y", "gpu:-1", "gpu:", "gpu:a100:", "gpu:a100:4(S:0)"), REFUSED),
}  # fmt: skip
ARRAYS = {
    "1-10": "1-10", "0-99:4%8": "0-99:4%8", "1,3,5-9:2": "1,3,5-9:2", "7": "7", "0-1000": "0-1000", "1-10%0": "1-10",
    "1-10%": "1-10", "": None, "[1-3]": "1-3", "1-10%5%6": "1-10%5",
    "1-9:3%2,20": "1-9:3,20%2", "[1-2]%0,[4-5]%3": "1-2,4-5", "1-9%x": "1-9", "1,,2": "1,2", "1,": "1",
    "1-10:20": "1-10:20",
    **dict.fromkeys(("1-1000000", "0-999999", "10-1", "x", "1-", "-5", "1-5:0", "1 - 3", "0x1-3"), REFUSED),
}  # fmt: skip
OK = ("1", "completed", 0)
DEPENDENCIES = {
    "afterok:1": After((OK,)), "afterok:1:2": After((OK, ("2", "completed", 0))), "1": After((("1", "ended", 0),)),
    "afterok:1,afterany:2": After((OK, ("2", "ended", 0))), "AFTEROK:1": After((OK,)),
    "afterok:1?afterany:2": After((OK, ("2", "ended", 0)), any=True), "singleton": After(singleton=True), "": None,
    "after:1+5": After((("1", "started_or_ended", 5),)), "afternotok:1_2": After((("1_2", "failed", 0),)),
    "after:1+5:2": After((("1", "started_or_ended", 5), ("2", "started_or_ended", 5))),
    "aftercorr:1": After((("1", "corresponding", 0),)), "afterok:train-1": After((("train-1", "completed", 0),)),
    "singleton,afterok:1(failed)": After((OK,), singleton=True),
    **dict.fromkeys(("afterok", "afterok:", "nope:1", "afterok:1,", "afterok:1:afterok:2", "1:2", "expand:1"), REFUSED),
}  # fmt: skip
SIGNALS = {
    "USR1": "USR1", "USR1@90": "USR1@90", "B:USR1@90": "USR1@90", "R:USR1": "USR1", "RB:10@5": "10@5", "b:usr1": "usr1",
    "SIGTERM@60": "SIGTERM@60", "USR1@": "USR1",
    **dict.fromkeys(("R:B:USR1", "USR1@70000", "NOPE", "0", "", "B:", "USR1@x"), REFUSED),
}  # fmt: skip
OTHERS = {
    "nice": {"": 100, "5": 5, "-5": -5, "99999999999": REFUSED},
    "priority": {"5": 5, "TOP": 10**9, "-1": REFUSED},
    "mail-type": {"END": "END", "end,fail": "end,fail", "NOPE": REFUSED, "": REFUSED, "END,NOPE": "END,NOPE"},
    "open-mode": {"append": "append", "t": "truncate", "x": REFUSED, "": REFUSED},
    "exclusive": {"": "", "user": "user", "mcs": "mcs", "x": REFUSED},
    "no-kill": {"": "", "off": "off", "x": REFUSED},
    "wait-all-nodes": {"0": "0", "1": "1", "2": REFUSED},
    "kill-on-invalid-dep": {"yes": "yes", "no": "no", "x": REFUSED},
    "distribution": {"block": "block", "plane=2": "plane=2", "block:cyclic,Pack": "block:cyclic,Pack", "x": REFUSED},
    "comment": {"": "", "any thing": "any thing"},
}


@pytest.mark.parametrize(
    ("name", "forms"),
    [
        ("time", TIMES), ("mem", MEMORY), ("mem-per-cpu", MEMORY), ("nodes", NODES), ("ntasks", COUNTS), ("gpus", GPUS),
        ("gpus-per-node", GPUS), ("gres", GRES), ("array", ARRAYS), ("dependency", DEPENDENCIES), ("signal", SIGNALS),
        *OTHERS.items(),
    ],
)  # fmt: skip
def test_each_form_of_a_value_is_read_as_slurm_reads_it(name: str, forms: dict[str, Any]) -> None:
    assert {text: value(name, text) for text in forms} == forms


NOW = datetime(2026, 11, 26, 6, 55, 51)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("now", "2026-11-26T06:55:51"),
        ("now+1hour", "2026-11-26T07:55:51"),
        ("now +60", "2026-11-26T06:56:51"),
        ("now+2days", "2026-11-28T06:55:51"),
        ("now-1hour", "2026-11-26T05:55:51"),
        ("16:00", "2026-11-26T16:00:00"),
        ("06:00", "2026-11-27T06:00:00"),
        ("16:00:30", "2026-11-26T16:00:30"),
        ("4:30pm", "2026-11-26T16:30:00"),
        ("12:30AM", "2026-11-27T00:30:00"),
        ("noon", "2026-11-26T12:00:00"),
        ("midnight", "2026-11-27T00:00:00"),
        ("fika", "2026-11-26T15:00:00"),
        ("teatime", "2026-11-26T16:00:00"),
        ("today", "2026-11-26T06:55:51"),
        ("tomorrow", "2026-11-27T00:00:00"),
        ("2030-01-20", "2030-01-20T00:00:00"),
        ("2030-01-20T12:34", "2030-01-20T12:34:00"),
        ("2030-01-20T12:34:56", "2030-01-20T12:34:56"),
        ("2030-01-20 12:34", "2030-01-20T12:34:00"),
        ("0120", "2027-01-20T00:00:00"),
        ("012030", "2030-01-20T00:00:00"),
        ("01/20/30", "2030-01-20T00:00:00"),
        ("01/20", "2027-01-20T00:00:00"),
        ("01.20.30", "2030-01-20T00:00:00"),
        ("01/20/30-10:00", "2030-01-20T10:00:00"),
        ("20:00 01/20/30", "2030-01-20T20:00:00"),
        ("1999-01-01", "1999-01-01T00:00:00"),
        *(
            (text, REFUSED)
            for text in ("4PM", "soon", "", "1893456000", "now+1fortnight", "12:61", "25:00", "2030-1-2")
        ),
        *((text, REFUSED) for text in ("now+1month", "uptime", "2030-01-20T12", "tomorrow+1hour", "2030-02-31")),
    ],
)
def test_a_moment_is_named_in_many_ways(text: str, moment: str) -> None:
    try:
        found = datetime.fromtimestamp(parse_moment(text, NOW.timestamp())).isoformat()
    except ValidationError:
        found = REFUSED
    assert found == moment


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("slurm-%j.out", "slurm-508.out"),
        ("%x.%j.%A.%a", "na me.508.508.4294967294"),
        ("%J|%s|%t|%n|%N|%u", "508|batch|0|0|vm|root"),
        ("%4j-%6a-%4t-%5n-%8s-%8x-%5N-%12J", "0508-4294967294-0000-00000-batch-na me-vm-0000000508"),
        ("a%%j", "a%j"),
        ("%%j%j", "%j508"),
        ("a\\%j", "a%j"),
        ("a\\\\%j.%%", "a\\%j.%%"),
        ("%q%b%z%", "%q%b%z%"),
        ("a%5", "a5"),
        ("%5%j", "5508"),
        ("%20j", "0000000508"),
        ("%04j%0j", "0508508"),
        ("%-4j", "%-4j"),
    ],
)
def test_a_pattern_is_filled_in_as_slurm_fills_it_in(pattern: str, path: str) -> None:
    values = {"j": 508, "A": 508, "a": 2**32 - 2, "J": 508, "s": "batch", "t": 0, "n": 0, "N": "vm", "u": "root"}
    assert fill_pattern(pattern, {**values, "x": "na me"}) == path
