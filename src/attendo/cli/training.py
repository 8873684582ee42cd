"""``attendo train``, ``attendo evaluate``, ``attendo predict``: one network, from images to answers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from attendo._errors import CheckpointError, DataError, InvalidArgument
from attendo.checkpoints import Metadata, load, read_metadata
from attendo.cli.comparing import Screen
from attendo.cli.options import RecipeOptions
from attendo.comparison import MODELS, Grid
from attendo.comparison import compare as run
from attendo.comparison.store import WEIGHTS
from attendo.data import evaluation_transform, read_image
from attendo.data import load as load_images
from attendo.training import evaluate as measure
from attendo.training import predict as answer


def train(
    data: str = "digits",
    *,
    model: str = MODELS[0],
    attention: str = "none",
    seed: int = 0,
    limit: int | None = None,
    image_size: int | None = None,
    stem: str | None = None,
    pretrained: Annotated[bool, Parameter(negative="")] = False,
    out: Path | None = None,
    workers: int = 0,
    recipe: RecipeOptions = RecipeOptions(),  # noqa: B008 - frozen
) -> int:
    """Train one network and save its weights, with its name, attention, classes and transforms in the file.

    It is a comparison of a single network: killed at any moment, the same command goes on where it was.

    Args:
        data: digits (embedded), an image folder, hfds/ID-OR-DIRECTORY, or torch/NAME. Give it first.
        model: A network: resnet18 ..., see attendo list.
        attention: A mechanism, with settings after a colon: se:reduction=8.
        seed: Decides initialisation, order and augmentation.
        limit: Training images to keep.
        image_size: Side in pixels of what the network sees; by default what fits the data.
        stem: imagenet, stride2 or cifar; by default the network's own.
        pretrained: Start from timm's weights of the plain network.
        out: Directory of weights and results; by default one for these settings under attendo-results.
        workers: Processes that read images.
        recipe: How the network is trained.
    """
    grid = Grid(
        data=data,
        models=(model,),
        attention=(attention,),
        seeds=(seed,),
        recipe=recipe.recipe(),
        limit=limit,
        image_size=image_size,
        stem=stem,
        pretrained=pretrained,
    )
    console = Console()
    with Screen(console, grid) as screen:
        outcome = run(grid, out, workers=workers, watcher=screen)
    (result,) = outcome.results
    if result.accuracy is None:
        return 1
    console.print(f"validation accuracy {100 * result.accuracy:.2f} %")
    weights = outcome.directory / WEIGHTS
    shutil.copyfile(outcome.weights[0], weights)
    console.print(f"weights: {escape(str(weights))}", soft_wrap=True)
    return 0


def evaluate(weights: Path, data: str, *, limit: int | None = None, batch_size: int = 64, workers: int = 0) -> int:
    """Measure saved weights on the validation images of a data set.

    Args:
        weights: A file written by attendo train or attendo compare.
        data: digits, an image folder, hfds/ID-OR-DIRECTORY, or torch/NAME.
        limit: As in attendo compare: keeps a part of the data.
        batch_size: Images per step.
        workers: Processes that read images.
    """
    model, metadata = _load(weights)
    images = load_images(data, limit=limit)
    if images.classes != metadata.classes:
        raise DataError(
            f"data {data!r} has the classes {_some(images.classes)}, {weights} was trained on "
            f"{_some(metadata.classes)}; they must be the same, in the same order. Evaluate on data with "
            f"the classes of the training."
        )
    found = measure(
        model,
        images.validation,
        evaluation_transform(metadata.transform),
        classes=len(images.classes),
        batch_size=batch_size,
        workers=workers,
    )
    console = Console()
    console.print(
        f"{metadata.name} on {found.images:,} images: accuracy {100 * found.accuracy:.2f} %, loss {found.loss:.4f}"
    )
    table = Table("class", "images", "right", "most often taken for", title="By class", title_justify="left")
    for i, name in enumerate(images.classes):
        row = found.confusion[i]
        wrong = max((count, j) for j, count in enumerate(row) if j != i)
        share = "" if sum(row) == 0 else f"{100 * found.per_class[i]:.1f} %"
        table.add_row(
            escape(name), str(sum(row)), share, f"{images.classes[wrong[1]]} ({wrong[0]})" if wrong[0] else ""
        )
    console.print(table)
    return 0


def predict(weights: Path, *images: Path, top: int = 3) -> int:
    """Name the likeliest classes of images. Exits with 1 if some cannot be read; the others are named all the same.

    Args:
        weights: A file written by attendo train or attendo compare.
        images: Image files.
        top: How many classes to name.
    """
    if not images:
        raise InvalidArgument("predict: no image given. Name one or more image files after the weights.")
    model, metadata = _load(weights)
    transform = evaluation_transform(metadata.transform)
    console = Console()
    unreadable = []
    for path in images:
        try:
            picture = read_image(path)
        except DataError as error:
            unreadable.append(str(error))
            continue
        (answers,) = answer(model, [picture], transform, metadata.classes, top)
        words = ", ".join(f"{escape(name)} {100 * share:.1f} %" for name, share in answers)
        console.print(f"{escape(str(path))}: {words}", soft_wrap=True)
    if unreadable:
        errors = Console(stderr=True, soft_wrap=True, highlight=False)
        errors.print(f"[bold red]error[/] {len(unreadable)} of {len(images)} images cannot be read:")
        for line in unreadable:
            errors.print(f"  {line}", markup=False)
    return 1 if unreadable else 0


def _load(weights: Path) -> tuple[torch.nn.Module, Metadata]:
    metadata = read_metadata(weights)
    if not metadata.classes or not metadata.transform:
        raise CheckpointError(
            f"{weights}: the file does not say its classes and transforms, so images cannot be shown to it. Use "
            f"weights written by attendo train or compare, or save them with classes= and transform=."
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return load(weights).to(device), metadata


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f" ... ({len(names)})" if len(names) > 5 else "")
