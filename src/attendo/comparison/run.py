"""Run the grid: every cell with the same recipe, data order and backbone initialisation, resumable at any moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attendo._errors import AttendoError, InvalidArgument
from attendo.checkpoints import save
from attendo.comparison.grid import Cell, Grid
from attendo.comparison.results import CellResult, Epoch, to_csv, write_atomically
from attendo.comparison.statistics import Summary, summarise, verdict
from attendo.comparison.store import Store
from attendo.data import Images
from attendo.data import load as load_images
from attendo.models import create_model
from attendo.profiling import compare_latency, count
from attendo.training import fit

WEIGHTS = "weights.safetensors"


class Watcher:
    """Hears of a comparison's progress; this one ignores it."""

    def planned(
        self, images: Images, cells: Sequence[Cell], finished: int, seconds: float | None, directory: Path
    ) -> None:
        """All cells are known, ``finished`` of them done before; the rest will take about ``seconds``."""

    def started(self, cell: Cell) -> None:
        """A cell begins."""

    def stepped(self, cell: Cell, step: int, steps: int) -> None:
        """A cell has done ``step`` of ``steps``."""

    def finished(self, cell: Cell, result: CellResult) -> None:
        """A cell is done or has failed."""

    def measuring(self) -> None:
        """The cells are done; latencies are measured."""


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


def compare(grid: Grid, out: Path | None = None, *, workers: int = 0, watcher: Watcher | None = None) -> Outcome:
    """Train every cell of the grid that is not finished, and say what the results mean.

    Writes ``results.csv`` into ``out``, and a directory per cell with its result and weights. Interrupted at any
    moment, the same call goes on where it was and ends with the same numbers on the same machine. A cell that fails is
    recorded and does not stop the others; it is tried again by the next call.

    Args:
        grid: what is compared.
        out: directory of the results; None takes one for these settings under ``attendo-results``.
        workers: processes that read images.
        watcher: hears of the progress.

    Raises:
        DataError: the data cannot be read.
        ResultsError: ``out`` holds something else, or is in use.
    """
    watcher = watcher or Watcher()
    images = load_images(grid.data, limit=grid.limit, image_size=grid.image_size)
    common = grid.common(images.fingerprint)
    store = Store(out or grid.default_directory(common), common)
    with store.locked():
        cells = list(grid.cells())
        results = {cell: done for cell in cells if (done := store.read(cell)) is not None}
        seconds = _estimate(grid, images, [cell for cell in cells if cell not in results])
        watcher.planned(images, cells, len(results), seconds, store.path)
        for cell in cells:
            if cell not in results:
                watcher.started(cell)
                results[cell] = _run(cell, grid, images, store, workers, watcher)
                watcher.finished(cell, results[cell])
        ordered = sorted(cells, key=lambda c: (grid.models.index(c.model), grid.attention.index(c.attention), c.seed))
        watcher.measuring()
        final = _with_latency([results[cell] for cell in ordered], grid, images, store)
        weights = tuple(store.directory(cell) / WEIGHTS for cell in ordered if results[cell].status == "done")
        write_atomically(store.path / "results.csv", to_csv(final))
    summaries = summarise(final)
    return Outcome(store.path, tuple(final), tuple(summaries), verdict(summaries), weights)


def build(cell: Cell, grid: Grid, images: Images) -> nn.Module:
    """Build a cell's network; with one seed the backbone starts the same whatever the attention."""
    arguments: dict[str, Any] = {"num_classes": len(images.classes), "pretrained": grid.pretrained}
    if grid.stem is not None:
        arguments["stem"] = grid.stem
    torch.manual_seed(cell.seed)
    return create_model(cell.model, attention=cell.attention, **arguments)


def _run(cell: Cell, grid: Grid, images: Images, store: Store, workers: int, watcher: Watcher) -> CellResult:
    """Train one cell and write its result; a failure becomes a result, too."""
    head = (cell.model, cell.attention, cell.seed)
    try:
        model = build(cell, grid, images)
        counts = count(model, (3, images.image_size, images.image_size))
        trained = fit(
            model,
            images,
            grid.recipe,
            seed=cell.seed,
            directory=store.directory(cell),
            workers=workers,
            progress=lambda step, steps: watcher.stepped(cell, step, steps),
        )
        history = tuple(Epoch(**epoch) for epoch in trained.history)  # type: ignore[arg-type]
        save(
            model,
            store.directory(cell) / WEIGHTS,
            classes=images.classes,
            transform=images.settings(),
            extra={"seed": cell.seed, "data": grid.data, "recipe": grid.recipe.as_dict()},
        )
        result = CellResult(
            *head,
            "done",
            history=history,
            accuracy=history[-1].validation_accuracy,
            parameters=counts.parameters,
            macs=counts.macs,
            train_seconds=trained.seconds,
        )
        store.write(cell, result)
    except Exception as error:  # noqa: BLE001 - a cell may fail in any way, and must not stop the others
        result = CellResult(*head, "failed", error=_in_words(error))
        try:
            store.write(cell, result)
        except OSError as disk:  # a full disk: the result is still shown, and the cell is tried again next time
            result = replace(result, error=f"{result.error}; and {_in_words(disk)}")
    return result


def _in_words(error: Exception) -> str:
    if isinstance(error, AttendoError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _estimate(grid: Grid, images: Images, cells: Sequence[Cell]) -> float | None:
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
                {"": network}, size, grid.recipe.batch_size, training=True, repeats=2, min_seconds=0.0, warm_up=1
            )
        except (AttendoError, RuntimeError, TypeError):
            continue  # the cell itself will say what is wrong
        validation = 0.4 * len(images.validation) / max(1, len(images.train))  # forward only costs about 0.4 of a step
        total += number * steps * timed.latencies[""].median_ms / 1000 * (1 + validation)
    return total or None


def _with_latency(results: list[CellResult], grid: Grid, images: Images, store: Store) -> list[CellResult]:
    """Add latencies, measured once per network, those of one model in turns so that noise hits all alike."""
    costs = store.read_costs()
    size = (3, images.image_size, images.image_size)
    for model in grid.models:
        done = [r for r in results if r.status == "done" and r.model == model]
        kinds = list(dict.fromkeys(r.attention for r in done))
        if all(f"{model} {attention}" in costs for attention in kinds):
            continue
        unpretrained = replace(grid, pretrained=False)
        try:
            networks = {kind: build(Cell(model, kind, 0), unpretrained, images) for kind in kinds}
            for kind, timed in compare_latency(networks, size, repeats=15, min_seconds=0.3).latencies.items():
                low, high = timed.quartiles_ms
                costs[f"{model} {kind}"] = {"median_ms": timed.median_ms, "spread_ms": high - low}
        except InvalidArgument:  # pragma: no cover - these networks have just been trained on this size
            continue
    store.write_costs(costs)
    return [
        replace(r, latency_ms=cost["median_ms"], latency_spread_ms=cost["spread_ms"])
        if (cost := costs.get(f"{r.model} {r.attention}")) and r.status == "done"
        else r
        for r in results
    ]
