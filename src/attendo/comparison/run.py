"""Run the grid: every cell with the same recipe, data order and backbone initialisation, resumable at any moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from attendo._errors import AttendoError, InvalidArgument
from attendo.comparison.cells import build, check_networks, run_here
from attendo.comparison.grid import Cell, Grid
from attendo.comparison.pool import default_jobs, run_in_processes, threads_of
from attendo.comparison.results import CellResult, to_csv, write_atomically
from attendo.comparison.statistics import Summary, summarise, verdict
from attendo.comparison.store import WEIGHTS, Store
from attendo.comparison.watcher import Watcher
from attendo.data import Images
from attendo.data import load as load_images
from attendo.profiling import compare_latency
from attendo.profiling.latencies import is_steady


@dataclass(frozen=True)
class Outcome:
    """A comparison that has been run: its cells, what may be said of them, and the verdict in words."""

    directory: Path
    results: tuple[CellResult, ...]
    summaries: tuple[Summary, ...]
    verdict: str
    weights: tuple[Path, ...]  # of the cells that were finished, in their order

    @property
    def failures(self) -> tuple[CellResult, ...]:
        """The cells that failed."""
        return tuple(result for result in self.results if result.status == "failed")


def compare(
    grid: Grid, out: Path | None = None, *, jobs: int | None = 1, workers: int = 0, watcher: Watcher | None = None
) -> Outcome:
    """Train every cell of the grid that is not finished, and say what the results mean.

    Writes ``results.csv`` into ``out``, and a directory per cell with its result and weights. Interrupted at any
    moment, the same call goes on where it was and ends with the same numbers on the same machine. Every network is
    built once before the first is trained. A cell that fails in training is recorded and does not stop the others; it
    is tried again by the next call.

    Args:
        grid: what is compared.
        out: directory of the results; None takes one for these settings under ``attendo-results``.
        jobs: cells that are trained at once, each in a process with its share of the cores; None decides: one on a
            GPU, else one per core up to 8. A script that passes more than 1 needs ``if __name__ == "__main__":``.
        workers: processes that read images, for each cell.
        watcher: hears of the progress.

    Raises:
        DataError: the data cannot be read.
        InvalidArgument: a network cannot be built.
        ResultsError: ``out`` holds something else, or is in use.
    """
    watcher = watcher or Watcher()
    images = load_images(grid.data, limit=grid.limit, image_size=grid.image_size)
    common = grid.common(images.fingerprint)
    store = Store(out or grid.default_directory(common), common)
    with store.locked():
        cells = list(grid.cells())
        results = {cell: done for cell in cells if (done := store.read(cell)) is not None}
        open_cells = [cell for cell in cells if cell not in results]
        check_networks(open_cells, grid, images)
        jobs = default_jobs(len(open_cells)) if jobs is None else jobs
        seconds = _estimate(grid, images, open_cells, jobs)
        watcher.planned(images, cells, len(results), seconds, store.path)
        if jobs == 1:
            results |= run_here(open_cells, grid, images, store, workers, watcher)
        else:
            results |= run_in_processes(open_cells, grid, images.fingerprint, store, jobs, workers, watcher)
        ordered = sorted(cells, key=lambda c: (grid.models.index(c.model), grid.attention.index(c.attention), c.seed))
        final = _with_latency([results[cell] for cell in ordered], grid, images, store, watcher)
        weights = tuple(store.directory(cell) / WEIGHTS for cell in ordered if results[cell].status == "done")
        write_atomically(store.path / "results.csv", to_csv(final))
    summaries = summarise(final)
    return Outcome(store.path, tuple(final), tuple(summaries), verdict(summaries), weights)


def _estimate(grid: Grid, images: Images, cells: Sequence[Cell], jobs: int) -> float | None:
    """Return about how many seconds these cells will take, from a few training steps of each network."""
    size = (3, images.image_size, images.image_size)
    steps = len(images.train) // grid.recipe.batch_size * grid.recipe.epochs
    kinds: dict[tuple[str, str], int] = {}
    for cell in cells:
        kinds[cell.model, cell.attention] = kinds.get((cell.model, cell.attention), 0) + 1
    total = 0.0
    for (model, attention), number in kinds.items():
        try:
            network = build(Cell(model, attention, 0), replace(grid, pretrained=False), images)
            timed = compare_latency(
                {"": network},
                size,
                grid.recipe.batch_size,
                training=True,
                threads=threads_of(jobs),
                repeats=3,
                min_seconds=0.0,
            )
        except (AttendoError, RuntimeError, TypeError):
            continue  # the cell itself will say what is wrong
        validation = 0.4 * len(images.validation) / max(1, len(images.train))  # forward only costs about 0.4 of a step
        total += number * steps * timed.latencies[""].median_ms / 1000 * (1 + validation)
    return total / min(jobs, max(1, len(cells))) or None


def _with_latency(
    results: list[CellResult], grid: Grid, images: Images, store: Store, watcher: Watcher
) -> list[CellResult]:
    """Add latencies, measured once per network unless the machine was busy.

    Those of one model are measured in turns, so that noise hits all alike.
    """
    costs = store.read_costs()
    size = (3, images.image_size, images.image_size)
    for model in grid.models:
        done = [r for r in results if r.status == "done" and r.model == model]
        kinds = list(dict.fromkeys(r.attention for r in done))
        if len(grid.attention) == 1 and len(grid.models) == 1:
            break  # a single network has nothing to be compared with
        known = [costs.get(f"{model} {attention}") for attention in kinds]
        if all(cost is not None and is_steady(cost["median_ms"], cost["spread_ms"]) for cost in known):
            continue
        watcher.measuring()
        unpretrained = replace(grid, pretrained=False)
        try:
            networks = {kind: build(Cell(model, kind, 0), unpretrained, images) for kind in kinds}
            for kind, timed in compare_latency(networks, size, repeats=15, min_seconds=0.3).latencies.items():
                costs[f"{model} {kind}"] = {"median_ms": timed.median_ms, "spread_ms": timed.iqr_ms}
        except InvalidArgument:  # pragma: no cover - these networks have just been trained on this size
            continue
    store.write_costs(costs)
    return [
        replace(r, latency_ms=cost["median_ms"], latency_spread_ms=cost["spread_ms"])
        if (cost := costs.get(f"{r.model} {r.attention}")) and r.status == "done"
        else r
        for r in results
    ]
