"""Which images are for training, which for validation, and which of them a limit keeps; decided by a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import RandomState

from attendo._errors import DataError, InvalidArgument
from attendo.data.images import SMALLEST, Images, Indices, Request, Split
from attendo.data.transforms import IMAGENET_MEAN, IMAGENET_STD, SMALL

HELD_OUT = 0.2


def assemble(
    request: Request, classes: tuple[str, ...], train: Split, validation: Split | None, flip: bool = True
) -> Images:
    """Return the data set of two splits, or of one that is divided here, after every check.

    Args:
        request: what the user asked for.
        classes: names of the labels.
        train: split to learn from.
        validation: split to score on; None holds out a part of ``train``.
        flip: whether mirrored images keep their class, unless the user says.

    Raises:
        DataError: no images, one class, a class that one split lacks, or a picture whose header cannot be read.
        InvalidArgument: a limit smaller than the number of classes.
    """
    name = request.name
    for split in (train, validation):
        if split is not None and not len(split):
            raise DataError(f"data {name!r}: no images; a data set needs some of every class. Look at its files.")
    present = np.unique(train.labels)
    if len(present) < 2:
        raise DataError(
            f"data {name!r}: all {len(train)} images are of class {classes[present[0]]!r}; "
            f"telling classes apart needs two. Give every class its own folder or label."
        )
    if validation is None:
        fraction = HELD_OUT if request.validation is None else float(request.validation)
        kept, held = held_out(train.labels, fraction, request.seed, name, classes)
        train, validation = train.take(kept), train.take(held)
    _check_same_classes(name, classes, train, validation)
    learned, scored = limited(train.labels, validation.labels, request.limit, request.seed, name)
    train, validation = train.take(learned), validation.take(scored)
    size = _common_size(train, validation)
    if request.image_size is not None:
        image_size = request.image_size
    else:
        image_size = max(SMALLEST, min(size)) if size is not None and max(size) <= SMALL else 224
    small = image_size <= SMALL
    return Images(
        name=name,
        classes=classes,
        train=train,
        validation=validation,
        image_size=image_size,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        flip=flip if request.flip is None else request.flip,
        crop_fraction=1.0 if small else 0.875,
        augmentation="shift" if small else "resized-crop",
    )


def held_out(
    labels: Indices, fraction: float, seed: int, name: str, classes: tuple[str, ...] | None = None
) -> tuple[Indices, Indices]:
    """Divide items at random, each class in the same proportion.

    Returns:
        Items to train on and items held out, each sorted; at least one of every class in both.

    Raises:
        DataError: a class with a single item.
    """
    random = RandomState(seed)
    held = []
    for label in np.unique(labels):
        items = random.permutation(np.flatnonzero(labels == label))
        if len(items) < 2:
            raise DataError(
                f"data {name!r}: class {classes[label] if classes else label!r} has a single image; holding out a "
                f"validation part needs two of every class. Add images, or give a validation split."
            )
        held.append(items[: min(max(1, round(fraction * len(items))), len(items) - 1)])
    chosen = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def limited(train: Indices, validation: Indices, limit: int | None, seed: int, name: str) -> tuple[Indices, Indices]:
    """Return which items to keep of two splits, given by their labels.

    Of the training items ``limit``, of the validation items the same proportion, but never more than ``limit``; both
    keep every class, and the proportion of classes. What a smaller limit keeps, a larger one keeps too.

    Raises:
        InvalidArgument: a limit smaller than the number of classes.
    """
    if limit is None or limit >= len(train):
        return np.arange(len(train)), np.arange(len(validation))
    classes = len(np.unique(train))
    if limit < classes:
        raise InvalidArgument(
            f"data {name!r}: limit={limit} leaves some of its {classes} classes without an image; "
            f"every class needs one. Take limit={classes} or more."
        )
    share = round(limit * len(validation) / len(train))
    count = min(limit, len(validation), max(classes, share))
    return np.sort(stratified_order(train, seed)[:limit]), np.sort(stratified_order(validation, seed)[:count])


def stratified_order(labels: Indices, seed: int) -> Indices:
    """Return a random order of the items in which every beginning has the classes in proportion, each at least once."""
    random = RandomState(seed)
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        items = np.flatnonzero(labels == label)
        rank[items] = random.permutation(len(items)) / len(items)
    return np.lexsort((labels, rank))


def sampled(indices: Sequence[int] | Indices, count: int) -> list[int]:
    """Return up to ``count`` of the indices, spread evenly."""
    count = min(count, len(indices))
    return [int(indices[i * len(indices) // count]) for i in range(count)]


def _check_same_classes(name: str, classes: tuple[str, ...], train: Split, validation: Split) -> None:
    learned, scored = set(train.labels.tolist()), set(validation.labels.tolist())
    for here, there, where in ((learned, scored, "training"), (scored, learned, "validation")):
        if alone := sorted(here - there):
            names = ", ".join(repr(classes[label]) for label in alone[:5]) + (" ..." if len(alone) > 5 else "")
            raise DataError(
                f"data {name!r}: {len(alone)} of its classes are only in the {where} images: {names}; both splits need "
                f"the same classes. Add the missing images, or hold out a part of the training images with "
                f"validation={HELD_OUT}."
            )


def _common_size(train: Split, validation: Split) -> tuple[int, int] | None:
    """Width and height if all images have the same, else None; looks at ``probes`` headers, spread evenly."""
    sizes = set()
    for split in (train, validation):
        for index in sampled(split.indices, split.source.probes):
            sizes.add(split.source.size(index))
    return sizes.pop() if len(sizes) == 1 else None
