"""Spellings of GPUs: "8xa100", "a100:8", "a100x8", "A100-80GB:8" and "a100" <-> Gpu(kind, count)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flow.errors import ValidationError, did_you_mean

# Memory of one GPU in GB, as the vendors' data sheets give it; where a kind was sold in two sizes, the larger.
MEMORY_GB = {
    # NVIDIA, data centre
    "a10": 24, "a100": 80, "a10g": 24, "a16": 16, "a2": 16, "a30": 24, "a40": 48, "a800": 80, "b100": 192, "b200": 180,
    "b300": 288, "gb200": 186, "gb300": 288, "gh200": 96, "h100": 80, "h20": 96, "h200": 141, "h800": 80, "k80": 12,
    "l2": 24, "l20": 48, "l4": 24, "l40": 48, "l40s": 48, "m60": 8, "p100": 16, "p4": 8, "p40": 24, "t4": 16, "t4g": 16,
    "v100": 32,
    # NVIDIA, workstation
    "a2000": 12, "a4000": 16, "a4500": 20, "a5000": 24, "a5500": 24, "a6000": 48, "rtx4000": 8, "rtx4000ada": 20,
    "rtx5000": 16, "rtx5000ada": 32, "rtx6000": 48, "rtx6000ada": 48, "rtx8000": 48, "rtxpro6000": 96, "titanrtx": 24,
    "titanv": 12, "titanxp": 12,
    # NVIDIA, desktop
    "gtx1060": 6, "gtx1070": 8, "gtx1080": 8, "gtx1080ti": 11, "rtx2060": 6, "rtx2070": 8, "rtx2080": 8,
    "rtx2080ti": 11, "rtx3060": 12, "rtx3070": 8, "rtx3080": 10, "rtx3080ti": 12, "rtx3090": 24, "rtx3090ti": 24,
    "rtx4060": 8, "rtx4060ti": 16, "rtx4070": 12, "rtx4070ti": 12, "rtx4080": 16, "rtx4090": 24, "rtx5060": 8,
    "rtx5060ti": 16, "rtx5070": 12, "rtx5070ti": 16, "rtx5080": 16, "rtx5090": 32,
    # AMD
    "mi100": 32, "mi210": 64, "mi250": 128, "mi250x": 128, "mi300a": 128, "mi300x": 192, "mi325x": 256, "mi350x": 288,
    "mi355x": 288,
}  # fmt: skip

_KIND = r"(?P<kind>(?!x[0-9])[a-z][a-z0-9]+{})(?:-(?P<memory>[0-9]+)gb)?"
_COUNT_FIRST = r"(?P<count>[0-9]{1,9})x" + _KIND.format("")
_KIND_FIRST = _KIND.format("") + r"(?::(?P<count>[0-9]{1,9}))?"
_KIND_X_COUNT = _KIND.format("?") + r"x(?P<count>[0-9]{1,9})"
_VENDOR = r"^((nvidia|amd|tesla|geforce)[-_]?)+"
_SOCKET = r"-(sxm[0-9]?|pcie|nvl)(?![a-z0-9])"  # as `nvidia-smi` names them: A100-SXM4-80GB
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
    asked = re.sub(r"\s+", "", text.lower())
    if re.fullmatch(r"[0-9]{1,9}", asked):
        return _checked(Gpu("gpu", int(asked)), text)
    asked = re.sub(_SOCKET, "", re.sub(_VENDOR, "", asked))
    found = re.fullmatch(_COUNT_FIRST, asked) or _kind_first(asked)
    if not found:
        raise ValidationError(
            f"cannot read `{text}` as GPUs",
            suggestions=["write a kind and a count, as `8xa100`, `a100:8` or `a100`"],
        )
    return _checked(Gpu(found["kind"], int(found["count"]) if found["count"] else None), text)


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
    whole = re.fullmatch(_KIND_FIRST, asked)
    if whole and is_known_kind(whole["kind"]):
        return whole
    split = re.fullmatch(_KIND_X_COUNT, asked)
    if split and split["kind"] in ("rt", "gt"):  # a card of those series newer than the table
        return whole
    return split or whole


def _checked(gpu: Gpu, text: str) -> Gpu:
    if gpu.count is not None and not 1 <= gpu.count <= _MOST:
        raise ValidationError(f"`{text}` asks for {gpu.count} GPUs a machine", suggestions=[f"ask for 1 to {_MOST}"])
    return gpu
