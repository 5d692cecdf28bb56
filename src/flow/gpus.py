"""Spellings of GPUs: "8xa100", "a100:8", "a100x8", "A100-80GB:8" and "a100" <-> Gpu(kind, count)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flow.errors import ValidationError, did_you_mean

# Memory of one GPU in GB, as the vendors' data sheets give it; where a kind was sold in two sizes, the larger.
MEMORY_GB = {
    "a10": 24, "a100": 80, "a10g": 24, "a16": 16, "a2": 16, "a30": 24, "a40": 48, "a4000": 16, "a5000": 24, "a6000": 48,
    "b200": 180, "b300": 288, "gb200": 186, "gh200": 96, "gtx1080": 8, "gtx1080ti": 11, "h100": 80, "h200": 141,
    "h800": 80, "k80": 12, "l4": 24, "l40": 48, "l40s": 48, "mi250": 128, "mi300x": 192, "p100": 16, "p4": 8,
    "rtx2080ti": 11, "rtx3090": 24, "rtx4090": 24, "rtx5090": 32, "rtx6000": 48, "t4": 16, "titanv": 12, "v100": 32,
}  # fmt: skip

_COUNT_FIRST = re.compile(r"(?P<count>\d+)x(?P<kind>[a-z][a-z0-9]*)(?:-(?P<memory>\d+)gb)?")
_KIND_FIRST = re.compile(r"(?P<kind>[a-z][a-z0-9]*)(?:-(?P<memory>\d+)gb)?(?::(?P<count>\d+))?")
_KIND_X_COUNT = re.compile(r"(?P<kind>[a-z][a-z0-9]*?)(?:-(?P<memory>\d+)gb)?x(?P<count>\d+)")
_MOST = 1024  # GPUs of one machine; more is a slip of the hand


@dataclass(frozen=True, slots=True)
class Gpu:
    """GPUs of one machine. `count` is None where only the kind was said, and the offers decide."""

    kind: str
    count: int | None = 1

    def __str__(self) -> str:
        """The one spelling that is printed: `a100`, `8xa100`."""
        return self.kind if self.count in (None, 1) else f"{self.count}x{self.kind}"


def parse_gpu(text: str) -> Gpu:
    """The Gpu that `text` spells; a bare number ("4") means any kind (`gpu`). Raises ValidationError."""
    asked = text.strip().lower()
    if asked.isdigit():
        return _checked(Gpu("gpu", int(asked)), text)
    found = _COUNT_FIRST.fullmatch(asked) or _kind_first(asked)
    if not found:
        raise ValidationError(
            f"cannot read `{text}` as GPUs",
            suggestions=["write a kind and a count, as `8xa100`, `a100:8` or `a100`"],
        )
    kind = found["kind"].removeprefix("nvidia")
    return _checked(Gpu(kind, int(found["count"]) if found["count"] else None), text)


def is_known_kind(kind: str) -> bool:
    """Whether `kind` is a GPU that we know, or `gpu`, which stands for any."""
    return kind in MEMORY_GB or kind == "gpu"


def unknown_kind(kind: str) -> ValidationError:
    """The error for a GPU kind that nobody makes, with the nearest that somebody does."""
    return ValidationError(
        f"unknown GPU `{kind}`", suggestions=[*did_you_mean(kind, MEMORY_GB), "list what there is with `flow offers`"]
    )


def _kind_first(asked: str) -> re.Match[str] | None:
    """`a100x8` is 8 a100, but `rtx4090` is one card: what is a known kind as it stands is not split."""
    whole = _KIND_FIRST.fullmatch(asked)
    if whole and is_known_kind(whole["kind"]):
        return whole
    return _KIND_X_COUNT.fullmatch(asked) or whole


def _checked(gpu: Gpu, text: str) -> Gpu:
    if gpu.count is not None and not 1 <= gpu.count <= _MOST:
        raise ValidationError(f"`{text}` asks for {gpu.count} GPUs a machine", suggestions=[f"ask for 1 to {_MOST}"])
    return gpu
