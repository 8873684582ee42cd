"""The three figures of a comparison: differences to no attention, accuracy against cost, learning curves.

Each is a list of panels, small enough to be read on a phone, that the page sets side by side where there is room. An
attention has one colour and one marker in all of them; no attention is grey.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from attendo.comparison.results import CellResult
from attendo.comparison.statistics import BASELINE, Summary
from attendo.report.layout import Limits, apart, axes, number_ticks, padded
from attendo.report.svg import FONT_SIZE, INK, PAPER, QUIET, RULE, SERIES, Drawing
from attendo.report.wording import ends, finding, is_busy, known, percent, points, shortened, significant, wrapped

MARKERS = "osD^vPX*"
WIDTH = 360  # of a panel; a learning curve has half of it
LINE = FONT_SIZE + 3
CHARACTERS = 48  # that a panel holds in one line, in the widest of the fonts that the page may get


@dataclass(frozen=True)
class Panel:
    """One drawing and the heading above it, which the page writes."""

    title: str
    svg: Markup


class Looks:
    """Colour and marker of every attention, the same in all figures.

    Args:
        attentions: all of the comparison, in order.
    """

    def __init__(self, attentions: Iterable[str]) -> None:
        others = [name for name in dict.fromkeys(attentions) if name != BASELINE]
        self._looks = {  # the ninth has the first one's colour and another marker
            name: (SERIES[i % len(SERIES)], MARKERS[(i + i // len(SERIES)) % len(MARKERS)])
            for i, name in enumerate(others)
        }

    def colour(self, attention: str) -> str:
        """Return the colour of an attention."""
        return self._looks.get(attention, (QUIET, ""))[0]

    def marker(self, attention: str) -> dict[str, Any]:
        """Return matplotlib's words for the marker of an attention."""
        colour, shape = self._looks.get(attention, (QUIET, "o"))
        return {"marker": shape, "color": colour, "markersize": 7 if shape in "PX*v^" else 6}


def difference_panels(summaries: Sequence[Summary], looks: Looks) -> list[Panel]:
    """Draw, per model, each attention's mean difference to none with its interval and the seeds it comes from."""
    models = {
        model: [s for s in group if s.baseline is not None and known(s.baseline.difference.mean)]
        for model, group in by_model(summaries).items()
    }
    numbers = [0.0]
    for d in (s.baseline.difference for group in models.values() for s in group if s.baseline is not None):
        numbers += [100 * value for value in (d.mean, d.low, d.high, *d.values) if known(value)]
    limits = padded(numbers, least=0.5)
    return [
        Panel(model, _differences(model, group, looks, limits, f"difference-{i}"))
        for i, (model, group) in enumerate(models.items())
        if group
    ]


def _differences(model: str, summaries: Sequence[Summary], looks: Looks, limits: Limits, name: str) -> Markup:
    rows = []
    for s in summaries:
        if s.baseline is not None:
            d = s.baseline.difference
            lines, numbers = wrapped(shortened(s.attention, 68), 34), f"{points(d.mean)} {ends(d, signed=True)}".strip()
            if len(lines[-1]) + len(numbers) > CHARACTERS:
                lines.append("")
            rows.append((s.attention, s.baseline, lines, numbers))
    height = sum(len(lines) * LINE + 34 for _, _, lines, _ in rows)
    drawing = Drawing(WIDTH, height + 48)
    ax = axes(drawing, left=8, right=8, top=6, bottom=42)
    ax.set_xlim(*limits)
    ax.set_ylim(height, 0)
    ax.set_yticks([])
    ax.grid(axis="x", color=RULE, linewidth=1)
    ax.axvline(0, color=INK, linewidth=1)
    number_ticks(ax, "x", signed=True)
    ax.set_xlabel(drawing.text(f"difference to {BASELINE}, percentage points"), color=QUIET)
    across = ax.get_yaxis_transform()
    y = 0.0
    for attention, contrast, lines, numbers in rows:
        d, look, colour = contrast.difference, looks.marker(attention), looks.colour(attention)
        # the lines of the grid, zero above all, end where a row's words and numbers stand
        ax.axhspan(y + LINE - FONT_SIZE, y + LINE * len(lines) + 4, facecolor=PAPER, linewidth=0, zorder=2.5)
        for line in lines:
            y += LINE
            ax.text(0, y, drawing.text(line), transform=across, color=INK)
        ax.text(1, y, drawing.text(numbers), transform=across, ha="right", color=QUIET)
        y += 12
        if known(d.low) and known(d.high):
            ax.plot([100 * d.low, 100 * d.high], [y, y], color=colour, linewidth=2, solid_capstyle="round")
        detected = finding(contrast) in ("higher", "lower")
        ax.plot(100 * d.mean, y, linestyle="", **look, markerfacecolor=colour if detected else PAPER, mew=1.5)
        if len(d.values) > 1:
            seeds = [100 * value for value in d.values if known(value)]
            ax.plot(seeds, [y + 9] * len(seeds), "o", color=colour, markersize=4, alpha=0.7, mew=0)
        y += 22
    said = "; ".join(f"{attention} {numbers}, {finding(contrast)}" for attention, contrast, _, numbers in rows)
    return drawing.svg(name, f"{model}: accuracy minus that of {BASELINE}, in percentage points. {said}.")


def cost_panels(summaries: Sequence[Summary], looks: Looks) -> list[Panel]:
    """Draw, per model, accuracy against MACs and against latency, as far as they were measured."""
    panels: list[Panel] = []
    for model, group in by_model(summaries).items():
        biggest = max((s.macs for s in group), default=0)
        factor, unit = next(((f, u) for f, u in ((1e9, " (G)"), (1e6, " (M)"), (1e3, " (k)")) if biggest >= f), (1, ""))
        costs = {
            f"MACs of one image{unit}": [(s, s.macs / factor, 0.0) for s in group if s.macs],
            "latency (ms)": [(s, s.latency_ms, s.latency_spread_ms) for s in group if s.latency_ms and not is_busy(s)],
        }
        for axis, measured in costs.items():
            shown = [(s, x, spread) for s, x, spread in measured if known(x) and known(s.accuracy.mean)]
            if shown:
                panels.append(Panel(model, _cost(model, axis, shown, looks, f"cost-{len(panels)}")))
    return panels


def _cost(model: str, axis: str, shown: list[tuple[Summary, float, float]], looks: Looks, name: str) -> Markup:
    width, height = WIDTH - 158, max(200, LINE * len(shown))
    drawing = Drawing(WIDTH, height + 60)
    ax = axes(drawing, left=40, right=118, top=8, bottom=52)
    accuracies = [value for s, _, _ in shown for value in (s.accuracy.mean, s.accuracy.low, s.accuracy.high)]
    low, high = padded([100 * value for value in accuracies if known(value)], least=0.5)
    costs = [cost for _, cost, _ in shown]
    reach = [cost + sign * spread / 2 for _, cost, spread in shown if known(spread) for sign in (-1, 1)]
    left, right = padded([*costs, *reach], least=0.02 * max(costs), share=0.12)
    ax.set_xlim(left, right)
    ax.set_ylim(low, high)
    ax.grid(color=RULE, linewidth=1)
    number_ticks(ax, "x")
    number_ticks(ax, "y")
    ax.set_xlabel(drawing.text(axis), color=QUIET)
    ax.set_ylabel(drawing.text("accuracy (%)"), color=QUIET)
    across, up = (right - left) / width, (high - low) / height  # of one unit of the drawing
    xs = [left + across * unit for unit in apart([(cost - left) / across for cost in costs], 9, width)]
    levels = apart([(high - 100 * s.accuracy.mean) / up for s, _, _ in shown], LINE, height)
    for (s, _, spread), x, level in zip(shown, xs, levels, strict=True):
        y, look = 100 * s.accuracy.mean, looks.marker(s.attention)
        line: dict[str, Any] = {"color": looks.colour(s.attention), "linewidth": 1.5}
        label = high - up * level
        ax.plot([x, right + 4 * across], [y, label], **{**line, "linewidth": 0.7}, alpha=0.6, clip_on=False)
        if known(s.accuracy.low) and known(s.accuracy.high):
            ax.plot([x, x], [100 * s.accuracy.low, 100 * s.accuracy.high], **line)
        if known(spread) and spread > 0:
            ax.plot([x - spread / 2, x + spread / 2], [y, y], **line)
        ax.plot([x, right + 10 * across], [y, label], linestyle="", **look, mew=0, clip_on=False)
        name_here = drawing.text(shortened(s.attention, 15))
        ax.text(right + 18 * across, label, name_here, va="center_baseline", color=INK)
    said = "; ".join(f"{s.attention} {percent(s.accuracy.mean)} % at {significant(cost)}" for s, cost, _ in shown)
    return drawing.svg(name, f"{model}: accuracy against {axis}. {said}.")


def curve_panels(results: Sequence[CellResult], looks: Looks) -> dict[str, list[Panel]]:
    """Draw, per model, each attention's validation accuracy by epoch: mean and range of its seeds, and none's mean."""
    panels: dict[str, list[Panel]] = {}
    groups: dict[str, dict[str, Curve]] = {}
    for cell in results:
        groups.setdefault(cell.model, {}).setdefault(cell.attention, Curve()).add(cell)
    for i, (model, group) in enumerate(groups.items()):
        curves = {attention: curve for attention, curve in group.items() if len(curve.epochs) > 1}
        limits = (
            padded([float(epoch) for curve in curves.values() for epoch in curve.epochs], least=2, share=0.03),
            padded([100 * value for curve in curves.values() for value in curve.all], least=1),
        )
        panels[model] = [
            Panel(attention, _curve(model, attention, curves, looks, limits, f"curve-{i}-{j}"))
            for j, attention in enumerate(curves)
        ]
    return {model: found for model, found in panels.items() if found}


class Curve:
    """Validation accuracy by epoch, over the seeds of one attention."""

    def __init__(self) -> None:
        self._values: dict[int, list[float]] = {}

    def add(self, cell: CellResult) -> None:
        """Take in a finished cell; a failed one is left out, as it is in the table."""
        for epoch in cell.history if cell.status == "done" else ():
            if known(epoch.validation_accuracy):
                self._values.setdefault(epoch.epoch, []).append(epoch.validation_accuracy)

    @property
    def epochs(self) -> list[int]:
        """The epochs with at least one value."""
        return sorted(self._values)

    @property
    def all(self) -> list[float]:
        """Every value."""
        return [value for values in self._values.values() for value in values]

    def percent(self, reduce: Any) -> list[float]:
        """Return one number per epoch."""
        return [100 * float(reduce(self._values[epoch])) for epoch in self.epochs]


def _curve(
    model: str, attention: str, curves: dict[str, Curve], looks: Looks, limits: tuple[Limits, Limits], name: str
) -> Markup:
    curve, baseline = curves[attention], curves.get(BASELINE)
    drawing = Drawing(WIDTH / 2, 128)
    ax = axes(drawing, left=30, right=8, top=6, bottom=20)
    ax.set_xlim(*limits[0])
    ax.set_ylim(*limits[1])
    ax.grid(axis="y", color=RULE, linewidth=1)
    number_ticks(ax, "y")
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    colour = looks.colour(attention)
    if baseline is not None and attention != BASELINE:
        ax.plot(baseline.epochs, baseline.percent(np.mean), color=QUIET, linewidth=1.2, dashes=(3, 2))
    ax.fill_between(curve.epochs, curve.percent(min), curve.percent(max), color=colour, alpha=0.25, linewidth=0)
    mean = curve.percent(np.mean)
    ax.plot(curve.epochs, mean, color=colour, linewidth=1.8)
    return drawing.svg(
        name,
        f"{model}, {attention}: validation accuracy from {mean[0]:.1f} % in epoch {curve.epochs[0]} "
        f"to {mean[-1]:.1f} % in epoch {curve.epochs[-1]}.",
    )


def by_model(summaries: Sequence[Summary]) -> dict[str, list[Summary]]:
    """Return the summaries of each model, in order."""
    models: dict[str, list[Summary]] = {}
    for s in summaries:
        models.setdefault(s.model, []).append(s)
    return models
