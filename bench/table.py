"""The figures as one table of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.figures import Figure

_HEADER = ("what", "figure", "floor", "ratio", "aim", "met", "peer")


def table(figures: Sequence[Figure], peers: Mapping[str, str]) -> str:
    """A row a figure. `peers`: by a figure's key, what the others take for the same work."""
    rows = [_HEADER, *(_row(figure, peers) for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _row(figure: Figure, peers: Mapping[str, str]) -> tuple[str, ...]:
    sign = "≥" if figure.is_rate else "≤"
    return (
        figure.what,
        f"{_number(figure.value)} {figure.unit}",
        "" if figure.floor is None else f"{_number(figure.floor)} {figure.unit} ({figure.floor_name})",
        "" if figure.ratio is None else f"{figure.ratio:.2g}x" if figure.ratio < 100 else f"{figure.ratio:,.0f}x",
        "" if figure.aim is None else f"{sign} {_number(figure.aim)}",
        {True: "yes", False: "NO", None: ""}[figure.meets_aim],
        peers.get(figure.key, ""),
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
