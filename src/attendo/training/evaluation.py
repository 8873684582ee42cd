"""What a trained network knows: accuracy on labelled images, and the classes of single ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_confusion_matrix

from attendo._errors import InvalidArgument
from attendo.training.loading import plain_loader


@dataclass(frozen=True)
class Evaluation:
    """Results on labelled images.

    ``loss`` is the mean cross-entropy in nats, ``confusion`` counts images by (true class, answer), ``per_class`` is
    the share of each class's images answered right (nan for a class without images).
    """

    images: int
    accuracy: float
    loss: float
    per_class: tuple[float, ...]
    confusion: tuple[tuple[int, ...], ...]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode without gradients, and its mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def evaluate(
    model: nn.Module,
    images: Sequence[tuple[Any, int]],
    transform: Callable[[Any], Tensor],
    *,
    classes: int,
    batch_size: int = 64,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure a network on labelled images, on the device it is on.

    Raises:
        InvalidArgument: the network answers with another number of classes.
    """
    device = next(model.parameters()).device
    matrix = torch.zeros(classes, classes, dtype=torch.int64)
    loss, done = 0.0, 0
    with evaluating(model):
        for batch, labels in plain_loader(images, transform, batch_size=batch_size, workers=workers):
            logits = model(batch.to(device)).float().cpu()
            if logits.shape[1:] != (classes,):
                raise InvalidArgument(
                    f"evaluate: the network answers with shape {tuple(logits.shape[1:])}, the data has {classes} "
                    f"classes; they must agree. Evaluate on the data the network was trained for."
                )
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            matrix += multiclass_confusion_matrix(logits.argmax(1), labels, classes)
            done += len(labels)
            if progress:
                progress(done, len(images))
    right = matrix.diagonal().double()
    return Evaluation(
        images=done,
        accuracy=float(right.sum() / matrix.sum()),
        loss=loss / done,
        per_class=tuple((right / matrix.sum(1)).tolist()),
        confusion=tuple(tuple(row) for row in matrix.tolist()),
    )


def predict(
    model: nn.Module, images: Iterable[Any], transform: Callable[[Any], Tensor], classes: Sequence[str], top: int = 5
) -> list[list[tuple[str, float]]]:
    """Return the likeliest classes of every image with their probabilities, likeliest first."""
    device = next(model.parameters()).device
    answers = []
    with evaluating(model):
        for image in images:
            probabilities = model(transform(image)[None].to(device)).float().softmax(1)[0]
            best = probabilities.topk(min(top, len(classes)))
            answers.append([(classes[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)])
    return answers
