"""Lists of hosts, as `scontrol show hostnames` reads them and `scontrol show hostlist` writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flow.node.hostlist import expand, fold
from tests.support.slurm import Cluster

LISTS = {
    "n[1-3,07-09],127.0.0.[1-2],x": "n1 n2 n3 n07 n08 n09 127.0.0.1 127.0.0.2 x",
    "n[1-2]m[3-4]": "n1m3 n1m4 n2m3 n2m4",
    "n[098-102]": "n098 n099 n100 n101 n102",
    "n[5]": "n5",
    "a,b,a": "a b a",
    "rack1-n[1-2,10]": "rack1-n1 rack1-n2 rack1-n10",
}
FOLDED = {
    "a1,a2,a3,b07,b08,a1": "a[1-3],b[07-08],a1",
    "127.0.0.1,127.0.0.2": "127.0.0.[1-2]",
    "h9,h10,h11,h009": "h[9-11,009]",
    "a,b,c,a": "a,b,c,a",
    "x": "x",
    "n3,n1,n2": "n[3,1-2]",
    "n08,n09,n10": "n[08-10]",
}


@pytest.mark.parametrize(("text", "names"), LISTS.items())
def test_a_list_stands_for_names(text: str, names: str) -> None:
    assert expand(text) == names.split()


@pytest.mark.parametrize(("names", "text"), FOLDED.items())
def test_names_are_written_short(names: str, text: str) -> None:
    assert fold(names.split(",")) == text


@pytest.mark.parametrize("text", ["n[1", "n[1-2]-x", "n[3-1]", "n[a]", "n[]", "n[1-99999999]", "n]"])
def test_what_is_no_list_is_said(text: str) -> None:
    with pytest.raises(ValueError, match=r"n"):
        expand(text)


NAMES = st.from_regex(r"[a-z][a-z.-]{0,3}(0{0,2}[0-9]{1,4})?", fullmatch=True)


@given(st.lists(NAMES, max_size=20))
def test_what_is_folded_expands_to_the_same(names: list[str]) -> None:
    assert expand(fold(names)) == names


def test_slurm_itself_reads_and_writes_them_so(slurm: Cluster) -> None:
    for text, names in LISTS.items():
        assert slurm.run("scontrol", "show", "hostnames", text).stdout.split() == names.split()
    for names, text in FOLDED.items():
        assert slurm.run("scontrol", "show", "hostlist", names).stdout.strip() == text
