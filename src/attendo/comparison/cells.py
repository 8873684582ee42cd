"""One cell: build its network, train it, keep its weights and its result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from attendo._errors import AttendoError, InvalidArgument
from attendo.checkpoints import load_weights, save
from attendo.comparison.grid import Cell, Grid
from attendo.comparison.results import CellResult, Epoch
from attendo.comparison.store import WEIGHTS, Store
from attendo.comparison.watcher import Watcher
from attendo.data import Images
from attendo.insertion import insert
from attendo.models import create_model, parse_attention
from attendo.models.spec import NONE
from attendo.profiling import count
from attendo.training import fit

SHOWN = 10  # networks that an error message names


def run_here(
    cells: Sequence[Cell], grid: Grid, images: Images, store: Store, workers: int, watcher: Watcher
) -> dict[Cell, CellResult]:
    """Train cells one after the other in this process."""
    results = {}
    for cell in cells:
        watcher.started(cell)
        results[cell] = train(cell, grid, images, store, workers, partial(watcher.stepped, cell))
        watcher.finished(cell, results[cell])
    return results


def build(cell: Cell, grid: Grid, images: Images) -> nn.Module:
    """Build a cell's network; with one seed the backbone starts the same whatever the attention."""
    arguments: dict[str, Any] = {} if grid.stem is None else {"stem": grid.stem}
    torch.manual_seed(cell.seed)
    if not grid.insert:
        arguments |= {"num_classes": len(images.classes), "pretrained": grid.pretrained}
        return create_model(cell.model, attention=cell.attention, **arguments)
    model: Any
    if grid.weights is None:
        model = create_model(cell.model, pretrained=grid.pretrained, **arguments)
    else:
        model = load_weights(cell.model, grid.weights)
    if model.num_classes != len(images.classes):
        torch.manual_seed(cell.seed)  # the fresh classifier is the same whatever was drawn before
        model.reset_classifier(len(images.classes))
    name, settings = parse_attention(cell.attention)
    if name != NONE:
        insert(model, name, input_size=(3, images.image_size, images.image_size), **settings)
    return model


def check_networks(cells: Sequence[Cell], grid: Grid, images: Images) -> None:
    """Build every network of these cells once.

    Raises:
        InvalidArgument: some cannot be built; the message names them all and says why.
    """
    kinds = dict.fromkeys((cell.model, cell.attention) for cell in cells)
    wrong = []
    for model, attention in kinds:
        try:
            build(Cell(model, attention, 0), grid, images)
        except Exception as error:  # noqa: BLE001 - a network of anyone's may refuse in any way
            wrong.append(f"{model} {attention}: {_in_words(error)}")
    if wrong:
        more = [f"and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
        raise InvalidArgument(
            f"networks: {len(wrong)} of {len(kinds)} cannot be built; training begins when all of them can. Change "
            "these, or leave them out.\n  " + "\n  ".join([*wrong[:SHOWN], *more])
        )


def train(
    cell: Cell, grid: Grid, images: Images, store: Store, workers: int, progress: Callable[[int, int], None]
) -> CellResult:
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
            progress=progress,
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
