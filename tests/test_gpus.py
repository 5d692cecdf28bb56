"""Spellings of GPUs: many are read, one is printed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flow.errors import ValidationError
from flow.gpus import MEMORY_GB, Gpu, is_known_kind, parse_gpu, unknown_kind

KINDS = st.sampled_from([*MEMORY_GB, "gpu"])


@pytest.mark.parametrize(
    ("text", "kind", "count"),
    [
        ("a100", "a100", None),
        ("A100", "a100", None),
        ("1xa100", "a100", 1),
        ("8xa100", "a100", 8),
        ("8x A100", "a100", 8),
        (" 8 x a100 ", "a100", 8),
        ("a100:8", "a100", 8),
        ("a100x8", "a100", 8),
        ("A100-80GB", "a100", None),
        ("A100-80GB:8", "a100", 8),
        ("8xA100-80GB", "a100", 8),
        ("a100-80gbx8", "a100", 8),
        ("rtx4090", "rtx4090", None),
        ("RTX 4090", "rtx4090", None),
        ("2xrtx4090", "rtx4090", 2),
        ("rtx4090x2", "rtx4090", 2),
        ("rtx4090:2", "rtx4090", 2),
        ("gtx1080", "gtx1080", None),
        ("mi300x", "mi300x", None),
        ("8xmi300x", "mi300x", 8),
        ("mi300x:8", "mi300x", 8),
        ("mi300xx8", "mi300x", 8),
        ("nvidia-a100", "a100", None),
        ("NVIDIA A100-SXM4-80GB", "a100", None),
        ("Tesla V100-PCIE-16GB:2", "v100", 2),
        ("nvidia-tesla-t4:2", "t4", 2),
        ("gpu", "gpu", None),
        ("gpu:4", "gpu", 4),
        ("4xgpu", "gpu", 4),
        ("4", "gpu", 4),
        ("1024xh100", "h100", 1024),
    ],
)
def test_every_spelling_is_read(text: str, kind: str, count: int | None) -> None:
    assert parse_gpu(text) == Gpu(kind, count)


@pytest.mark.parametrize("text", ["rtx9990", "rtx9990:1", "gtx777"])
def test_a_card_newer_than_the_table_is_not_taken_for_thousands(text: str) -> None:
    assert parse_gpu(text).count in (1, None)
    assert parse_gpu(text).kind == text.partition(":")[0]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "8x",
            "x8",
            "x",
            ":8",
            "a100:",
            "a100:x",
            "8xx8",
            "-1xa100",
            "1.5xa100",
            "a100,h100",
            "a100/8",
            "ä100",
        ),
        *("a100:0", "0xa100", "a100x0", "0", "1025xa100", "9" * 5000, "9" * 5000 + "xa100", "a100:" + "9" * 5000, "²"),
    ],
)
def test_what_is_no_gpu_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ValidationError) as refused:
        parse_gpu(text)
    assert f"`{text}`" in refused.value.message
    assert refused.value.suggestions


@pytest.mark.parametrize(
    ("gpu", "text"), [(Gpu("a100", 8), "8xa100"), (Gpu("a100"), "a100"), (Gpu("a100", None), "a100")]
)
def test_one_spelling_is_printed(gpu: Gpu, text: str) -> None:
    assert str(gpu) == text


@given(KINDS, st.integers(2, 1024))
def test_every_spelling_of_kind_and_count_means_the_same(kind: str, count: int) -> None:
    spelled = (f"{count}x{kind}", f"{kind}:{count}", f"{kind}x{count}", f"{kind.upper()}-80GB:{count}")
    assert {parse_gpu(text) for text in spelled} == {Gpu(kind, count)}


@given(KINDS, st.none() | st.integers(1, 1024))
def test_what_is_printed_is_read_back(kind: str, count: int | None) -> None:
    assert str(parse_gpu(str(Gpu(kind, count)))) == str(Gpu(kind, count))


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read = parse_gpu(text)
    except ValidationError:
        return
    assert parse_gpu(f"{read.kind}:{read.count or 1}").kind == read.kind


def test_every_kind_in_the_table_is_known_and_spelled_as_it_is_read() -> None:
    for kind, memory in MEMORY_GB.items():
        assert is_known_kind(kind)
        assert parse_gpu(kind).kind == kind
        assert 1 <= memory <= 1024


def test_an_unknown_kind_is_told_with_the_nearest() -> None:
    error = unknown_kind("a1000")
    assert error.message == "unknown GPU `a1000`"
    assert error.suggestions[0] == "did you mean `a100`?"
