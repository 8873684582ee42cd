"""Numbers as people read them. What is not known (None, nan, infinite) is an en dash, and a minus is a minus."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from attendo.comparison.statistics import Contrast, Interval, Summary
from attendo.profiling import latencies
from attendo.profiling._format import human

UNKNOWN = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def known(value: float | None) -> bool:
    """Return whether there is a number to show."""
    return value is not None and math.isfinite(value)


def percent(fraction: float | None) -> str:
    """Return a fraction in percent, without the sign that the column's head has.

    >>> percent(0.71234), percent(-0.01)
    ('71.23', '−1.00')
    """
    return UNKNOWN if fraction is None or not known(fraction) else f"{100 * fraction:.2f}".replace("-", MINUS)


def points(fraction: float | None) -> str:
    """Return a difference of two fractions in percentage points, always with its sign.

    >>> points(0.0123), points(-0.0123), points(-0.00001)
    ('+1.23', '−1.23', '0.00')
    """
    if fraction is None or not known(fraction):
        return UNKNOWN
    text = f"{100 * fraction:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", MINUS)


def ends(interval: Interval, signed: bool = False) -> str:
    """Return an interval's two ends in brackets; nothing where one value gives no interval."""
    if not (known(interval.low) and known(interval.high)):
        return ""
    write = points if signed else percent
    return f"[{write(interval.low)}, {write(interval.high)}]"


def p_value(contrast: Contrast) -> str:
    """Return Holm's corrected p-value; nothing where there was no test."""
    p = contrast.p_corrected
    if not known(p):
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def finding(contrast: Contrast) -> str:
    """Return the verdict's words without its numbers: higher, lower, no detectable difference, one seed."""
    return contrast.verdict.partition(":")[0]


def quantity(number: float | None) -> str:
    """Return a count in decimal units, four digits long; 0 parameters or MACs means that nobody counted.

    >>> quantity(25_557_032), quantity(0)
    ('25.56 M', '–')
    """
    return human(number) if number and known(number) else UNKNOWN


def significant(number: float | None) -> str:
    """Return a number with three significant digits, and never an exponent.

    >>> [significant(n) for n in (0.01234, 12.34, 1234.5)]
    ['0.0123', '12.3', '1,234']
    """
    if number is None or not known(number):
        return UNKNOWN
    return f"{number:,.{_decimals(number)}f}"


def measured(median: float, spread: float) -> str:
    """Return a median with three significant digits, and half the spread around it with as many decimals.

    >>> measured(12.34, 0.3), measured(12.34, math.nan)
    ('12.3 ± 0.1', '12.3')
    """
    if not (known(median) and known(spread)):
        return significant(median)
    return f"{significant(median)} ± {spread / 2:,.{_decimals(median)}f}"


def is_busy(summary: Summary) -> bool:
    """Return whether the latency says how busy the machine was, and not how fast the network is."""
    return known(summary.latency_ms) and not latencies.is_steady(summary.latency_ms, summary.latency_spread_ms)


def latency(summary: Summary) -> str:
    """Return a latency and its spread; the word busy where it says nothing of the network."""
    return "busy" if is_busy(summary) else measured(summary.latency_ms, summary.latency_spread_ms)


def latency_change(summary: Summary, base: Summary | None) -> str:
    """Return by how many percent a latency differs from that of no attention; nothing unless both say something."""
    if base is None or is_busy(summary) or is_busy(base):
        return ""
    return change(summary.latency_ms, base.latency_ms)


def busy(summaries: Sequence[Summary]) -> str:
    """Return what is to be known of latencies that say nothing, and how to get others; "" if there are none."""
    several = len({s.model for s in summaries}) > 1
    said = latencies.busy([f"{s.model} {s.attention}" if several else s.attention for s in summaries if is_busy(s)])
    return said and f"{said} The same command does, and trains nothing twice."


def _decimals(number: float) -> int:
    """Return the decimals that give a number three significant digits."""
    return min(max(2 - math.floor(math.log10(abs(number))), 0), 9) if number else 0


def change(number: float | None, base: float | None) -> str:
    """Return by how many percent a cost differs from that of no attention; nothing where either is unknown.

    >>> change(110, 100), change(100, 100), change(1_000_009, 1_000_000)
    ('+10 %', '±0 %', '+0.0009 %')
    """
    if not number or not base or not known(number) or not known(base):
        return ""
    share = float(f"{100 * (number - base) / base:.2g}")
    if share == 0:
        return "±0 %"
    decimals = min(max(1 - math.floor(math.log10(abs(share))), 0), 4)
    return f"{share:+.{decimals}f} %".replace("-", MINUS)


def shortened(name: str, length: int) -> str:
    """Return a name of at most ``length`` characters: its middle is cut, as variants differ in their ends.

    >>> shortened("psa:groups=(1,2,4,4)", 11)
    'psa:g…,4,4)'
    """
    name = " ".join(name.split())
    if len(name) <= length:
        return name
    head = (length - 1) // 2
    return f"{name[:head]}…{name[len(name) - (length - 1 - head) :]}"


def wrapped(name: str, width: int) -> list[str]:
    """Break a name into lines after its commas and colons, or anywhere if a part is longer than a line.

    >>> wrapped("cbam:variant=paper,spatial_kernel=3", 20)
    ['cbam:variant=paper,', 'spatial_kernel=3']
    """
    lines = [""]
    for part in re.split(r"(?<=[,:/ ])(?=\D)", name):
        for piece in (part[i : i + width] for i in range(0, len(part), width)):
            if len(lines[-1]) + len(piece) > width:
                lines.append("")
            lines[-1] += piece
    return lines


def breakable(name: str) -> Markup:
    """Return a name, escaped, that a browser may break after its punctuation, but not within a tuple of numbers."""
    return Markup("<wbr>").join(re.split(r"(?<=[,:/_= ])(?=\D)", name))


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence has them.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def plain(value: Any) -> str:
    """Return a JSON value that is no mapping as text; a list becomes its items."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:g}" if known(value) else UNKNOWN
    return UNKNOWN if value is None else json.dumps(value, ensure_ascii=False, default=str)
