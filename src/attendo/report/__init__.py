"""The result of a comparison as one HTML page that needs nothing else: no network, no script, no font.

    write_report    write the page to a file
    render          return it as a string

The same results give the same page, byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from attendo.comparison.results import CellResult, write_atomically
from attendo.comparison.statistics import BASELINE, CONTROL, summarise, verdict
from attendo.report import wording
from attendo.report.figures import Looks, by_model, cost_panels, curve_panels, difference_panels
from attendo.report.svg import settings

__all__ = ["render", "write_report"]

# Control characters, which HTML forbids, as the pictures of themselves; an error text may hold a terminal's colours.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}


def write_report(
    results: Sequence[CellResult], spec: Mapping[str, Any], environment: Mapping[str, Any], path: str | Path
) -> None:
    """Write the page to ``path``, whole or not at all; see ``render``."""
    write_atomically(Path(path), render(results, spec, environment))


def render(results: Sequence[CellResult], spec: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        results: all cells, finished or failed, in the order in which attentions and models are to be shown.
        spec: what was asked for, as JSON values. ``data`` stands in the heading and ``command`` in a box of its own.
        environment: where it ran, as JSON values: versions, device, threads, commit, date.
    """
    summaries = summarise(results)
    looks = Looks(result.attention for result in results)
    with settings():
        figures = {
            "differences": difference_panels(summaries, looks),
            "costs": cost_panels(summaries, looks),
            "curves": curve_panels(results, looks),
        }
    page = _template().render(
        results=results,
        finished=[result for result in results if result.status == "done"],
        failed=[result for result in results if result.status != "done"],
        failures=_failures(results),
        summaries=summaries,
        models=by_model(summaries),
        bases={s.model: s for s in summaries if s.attention == BASELINE},
        verdict=verdict(summaries) if summaries else "No cell finished, so there is nothing to compare.",
        comparisons=sum(wording.known(s.baseline.p_value) for s in summaries if s.baseline is not None),
        busy=wording.busy(summaries),
        single=any(len(s.accuracy.values) == 1 for s in summaries),
        intervals=any(len(s.accuracy.values) > 1 for s in summaries),
        controlled=any(s.control is not None for s in summaries),
        command=spec.get("command"),
        tables={
            "Configuration": ("What was asked for.", {key: spec[key] for key in spec if key != "command"}),
            "Environment": ("Where it ran.", environment),
        },
        baseline=BASELINE,
        control=CONTROL,
        **_about(results, spec),
        **figures,
    )
    page = page.replace("\r\n", "\n").translate(_PICTURES)
    return page.encode("utf-8", "backslashreplace").decode("utf-8")  # a path may hold bytes that are no text


def _about(results: Sequence[CellResult], spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the comparison is about, from the cells themselves as far as they know."""
    data = spec.get("data")
    if isinstance(data, Mapping):
        data = data.get("name", data)
    return {
        "data": "" if data is None else wording.plain(data),
        "networks": list(dict.fromkeys(result.model for result in results)),
        "attentions": list(dict.fromkeys(result.attention for result in results)),
        "seeds": sorted({result.seed for result in results}),
        "epochs": max((len(result.history) for result in results if result.status == "done"), default=0),
        "first_epoch": min((epoch.epoch for result in results for epoch in result.history), default=0),
        "batches": sorted({result.latency_batch for result in results if wording.known(result.latency_ms)}),
    }


def _failures(results: Sequence[CellResult]) -> list[tuple[str, str, str, list[int]]]:
    """Return model, attention, error and seeds of the failed cells; an attention often fails alike on every seed."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for result in results:
        if result.status != "done":
            found.setdefault((result.model, result.attention, result.error.strip()), []).append(result.seed)
    return [(*key, sorted(seeds)) for key, seeds in found.items()]


def _template() -> Any:
    """Return the page's template; what it shows is escaped, and what it does not know is an error."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    for function in (
        wording.percent,
        wording.points,
        wording.ends,
        wording.p_value,
        wording.finding,
        wording.quantity,
        wording.significant,
        wording.latency,
        wording.latency_change,
        wording.change,
        wording.breakable,
        wording.listed,
        wording.plain,
    ):
        environment.filters[function.__name__] = function
    environment.tests["known"] = wording.known
    return environment.from_string(files(__name__).joinpath("page.html").read_text("utf-8"))
