"""What the figures' drawings share: margins, ticks, limits, and places for what would lie on top of each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from attendo.report.svg import QUIET, Drawing
from attendo.report.wording import MINUS

Limits = tuple[float, float]


def axes(drawing: Drawing, left: float, right: float, top: float, bottom: float) -> Axes:
    """Return axes with margins in units of the drawing, and a bottom line only."""
    w, h = drawing.width, drawing.height
    ax = drawing.figure.add_axes((left / w, bottom / h, (w - left - right) / w, (h - top - bottom) / h))
    ax.patch.set_visible(False)
    ax.set_axisbelow(True)
    for side in ("left", "right", "top"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color(QUIET)
    ax.tick_params(length=0, pad=4, color=QUIET, labelcolor=QUIET)
    return ax


def number_ticks(ax: Axes, which: str, count: int = 5, signed: bool = False) -> None:
    """Put at most ``count`` steps on an axis, written with the decimals that tell them apart and a real minus."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    locator = MaxNLocator(count, steps=[1, 2, 2.5, 5, 10])
    ticks = locator.tick_values(*(ax.get_xlim() if which == "x" else ax.get_ylim()))
    step = float(ticks[1] - ticks[0])
    decimals = next((d for d in range(9) if math.isclose(step, round(step, d), rel_tol=1e-6)), 9)
    axis.set_major_locator(locator)
    form = f"{{:{'+' if signed else ''}.{decimals}f}}"
    axis.set_major_formatter(
        FuncFormatter(lambda v, _: "0" if abs(v) < step / 1e6 else form.format(v).replace("-", MINUS))
    )


def padded(numbers: Sequence[float], least: float, share: float = 0.06) -> Limits:
    """Return limits that hold all numbers with room around them, at least ``least`` apart."""
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    room = max((least - (high - low)) / 2, share * (high - low))
    return low - room, high + room


def apart(wanted: Sequence[float], gap: float, end: float) -> list[float]:
    """Return positions from 0 to ``end``, at least ``gap`` apart; a bunch that is too close keeps its centre."""
    bunches: list[tuple[list[int], float]] = []  # members in order, position of the first
    for i in sorted(range(len(wanted)), key=lambda i: wanted[i]):
        bunch, start = [i], min(max(wanted[i], 0), end)
        while bunches and bunches[-1][1] + gap * len(bunches[-1][0]) > start:
            bunch = bunches.pop()[0] + bunch
            length = gap * (len(bunch) - 1)
            start = max(min(sum(wanted[i] for i in bunch) / len(bunch) - length / 2, end - length), 0)
        bunches.append((bunch, start))
    placed = {i: start + gap * rank for bunch, start in bunches for rank, i in enumerate(bunch)}
    return [placed[i] for i in range(len(wanted))]
