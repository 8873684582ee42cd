"""Numbers and tables as plain text, and results as plain JSON values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any


def human(number: float) -> str:
    """Return a number in decimal units, four digits long (1 G = 1e9).

    >>> [human(n) for n in (512, 20_232, 25_557_032, 4_089_184_256)]
    ['512', '20.23 k', '25.56 M', '4.089 G']
    """
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= factor:
            return f"{number / factor:.4g} {unit}"
    return f"{number:.4g}"


def megabytes(number: int) -> str:
    """Return bytes as decimal megabytes (1 MB = 1e6 bytes).

    >>> megabytes(102_228_128)
    '102.23 MB'
    """
    return f"{number / 1e6:,.2f} MB"


def by(size: Sequence[int]) -> str:
    """Return a shape as people write it.

    >>> by((3, 224, 224))
    '3 x 224 x 224'
    """
    return " x ".join(map(str, size))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Lay out rows under their header; the first ``left`` columns stand at the left, all others at the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        return "   ".join(cells).rstrip()

    return "\n".join((line(header), "   ".join("-" * width for width in widths), *map(line, rows)))


def plain(value: Any) -> Any:
    """Return a result as dicts, lists, strings, numbers and None, all of which JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
