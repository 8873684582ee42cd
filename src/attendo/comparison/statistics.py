"""From cells to statements: means with intervals, paired differences, and a verdict that may be "no difference".

Cells of one seed share data order and backbone initialisation, so differences are taken seed by seed (paired), tested
with the paired t-test and corrected for the number of comparisons after Holm (1979).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from attendo.comparison.results import CellResult

LEVEL = 0.95
BASELINE = "none"
CONTROL = "static"


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % t-interval; both ends are nan where there is one value only."""

    mean: float
    low: float
    high: float
    values: tuple[float, ...]


@dataclass(frozen=True)
class Contrast:
    """The paired difference of accuracy to another attention, as a fraction (0.01 is one point).

    ``p_corrected`` is Holm's; nan where fewer than two seeds are shared.
    """

    against: str
    difference: Interval
    p_value: float
    p_corrected: float = math.nan

    @property
    def verdict(self) -> str:
        """Return the finding in words, in percentage points."""
        d = self.difference
        if math.isnan(self.p_value):
            return f"one seed: {_points(d.mean)} against {self.against}, and no way to tell it from chance"
        spread = f"{_points(d.mean)} [{_points(d.low)}, {_points(d.high)}] against {self.against}"
        if self.p_corrected >= 1 - LEVEL:
            return f"no detectable difference: {spread}"
        return f"{'higher' if d.mean > 0 else 'lower'}: {spread}"


@dataclass(frozen=True)
class Summary:
    """One line of the final table: a model with an attention, over its seeds."""

    model: str
    attention: str
    accuracy: Interval
    parameters: int
    macs: int
    latency_ms: float
    latency_spread_ms: float
    train_seconds: float
    failed: int
    baseline: Contrast | None  # against none; None for none itself
    control: Contrast | None  # against the static gate, if it was run


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of values and its 95 % t-interval."""
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    if len(array) < 2:
        return Interval(mean, math.nan, math.nan, tuple(values))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(array) - 1) * stats.sem(array))
    return Interval(mean, mean - half, mean + half, tuple(values))


def paired(values: dict[int, float], reference: dict[int, float], against: str) -> Contrast | None:
    """Compare two attentions over the seeds that both have; None where they share no seed."""
    seeds = sorted(values.keys() & reference.keys())
    if not seeds:
        return None
    differences = [values[seed] - reference[seed] for seed in seeds]
    if len(seeds) < 2:
        p_value = math.nan
    elif np.ptp(differences) < 1e-12:  # equal to the image: a coincidence of few images or seeds, not certainty
        p_value = 1.0
    else:
        p_value = float(stats.ttest_1samp(differences, 0).pvalue)
    return Contrast(against, interval(differences), p_value, p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down corrected p-values; nan stays nan and does not count."""
    corrected = [math.nan] * len(p_values)
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    highest = 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        corrected[i] = highest
    return corrected


def summarise(results: Sequence[CellResult]) -> list[Summary]:
    """Return one summary per model and attention with at least one finished cell, in the order of the results."""
    groups: dict[tuple[str, str], list[CellResult]] = {}
    for result in results:
        groups.setdefault((result.model, result.attention), []).append(result)
    accuracy = {
        key: {cell.seed: cell.accuracy for cell in cells if cell.status == "done" and cell.accuracy is not None}
        for key, cells in groups.items()
    }
    keys = [key for key in groups if accuracy[key]]
    contrasts = {against: _contrasts(keys, accuracy, against) for against in (BASELINE, CONTROL)}
    return [
        _summary(key, groups[key], accuracy[key], contrasts[BASELINE].get(key), contrasts[CONTROL].get(key))
        for key in keys
    ]


def _contrasts(
    keys: list[tuple[str, str]], accuracy: dict[tuple[str, str], dict[int, float]], against: str
) -> dict[tuple[str, str], Contrast]:
    """Compare every attention with one of its model (with or without settings), corrected as one family."""
    found = {}
    reference = {model: accuracy[model, attention] for model, attention in reversed(keys) if _is(attention, against)}
    for model, attention in keys:
        if not _is(attention, BASELINE) and not _is(attention, against):
            contrast = paired(accuracy[model, attention], reference.get(model, {}), against)
            if contrast is not None:
                found[model, attention] = contrast
    corrected = holm([contrast.p_value for contrast in found.values()])
    return {
        key: Contrast(against, contrast.difference, contrast.p_value, p)
        for (key, contrast), p in zip(found.items(), corrected, strict=True)
    }


def _summary(
    key: tuple[str, str],
    cells: list[CellResult],
    accuracy: dict[int, float],
    baseline: Contrast | None,
    control: Contrast | None,
) -> Summary:
    done = [cell for cell in cells if cell.status == "done"]

    def median(values: Sequence[float | None]) -> float:
        known = [value for value in values if value is not None]
        return float(np.median(known)) if known else math.nan

    return Summary(
        model=key[0],
        attention=key[1],
        accuracy=interval([accuracy[seed] for seed in sorted(accuracy)]),
        parameters=done[0].parameters or 0,
        macs=done[0].macs or 0,
        latency_ms=median([cell.latency_ms for cell in done]),
        latency_spread_ms=median([cell.latency_spread_ms for cell in done]),
        train_seconds=median([cell.train_seconds for cell in done]),
        failed=len(cells) - len(done),
        baseline=baseline,
        control=control,
    )


def verdict(summaries: Sequence[Summary]) -> str:
    """Return the whole finding in a few plain sentences."""
    contrasts = [(s, s.baseline) for s in summaries if s.baseline is not None]
    if not contrasts:
        return "Nothing to compare: a network without attention and one with it are needed on the same seed."
    several = len({s.model for s in summaries}) > 1
    lines = []
    for word, sentence in (("higher", "raised accuracy"), ("lower", "lowered accuracy")):
        found = [_name(s, several) for s, c in contrasts if c.verdict.startswith(word)]
        if found:
            lines.append(f"{', '.join(found)} {sentence} over no attention.")
    silent = [_name(s, several) for s, c in contrasts if c.verdict.startswith("no detectable")]
    if silent:
        lines.append(f"No detectable difference to no attention: {', '.join(silent)}.")
    single = [_name(s, several) for s, c in contrasts if math.isnan(c.p_value)]
    if single:
        lines.append(f"One seed is no evidence either way: {', '.join(single)}. Run more seeds.")
    halves = [c.difference.high - c.difference.mean for _, c in contrasts if not math.isnan(c.p_value)]
    if halves and float(np.median(halves)) < 1e-9:
        lines.append("The seeds do not differ at all: these networks have hardly been trained, or on too few images.")
    elif halves:
        counts = {len(c.difference.values) for _, c in contrasts if not math.isnan(c.p_value)}
        seeds = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{max(counts)}"
        lines.append(
            f"With {seeds} seeds the differences are known to about ±{100 * float(np.median(halves)):.1f} points; "
            f"smaller ones need more seeds."
        )
    tested = [(s, s.control) for s in summaries if s.control is not None and not math.isnan(s.control.p_value)]
    beyond = [_name(s, several) for s, control in tested if control.verdict.startswith("higher")]
    if tested:
        lines.append(
            f"Better than a static gate with SE's parameters: {', '.join(beyond)}."
            if beyond
            else "None is detectably better than a static gate with SE's parameters, which never looks at the image."
        )
    return " ".join(lines)


def _is(attention: str, name: str) -> bool:
    return attention.partition(":")[0] == name


def _name(summary: Summary, with_model: bool) -> str:
    return f"{summary.model} {summary.attention}" if with_model else summary.attention


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.1f}"
