"""Images to learn from, by name.

digits                   cluttered digits, embedded
<folder>                 <folder>/<class>/*, or <folder>/train/<class>/* and <folder>/val/<class>/*
hfds/<id or directory>   a Hugging Face data set, from the Hub or from a local directory (parquet files too)
torch/<name>             one that torchvision downloads: cifar10, mnist, ... (``vision.SETS``)
"""

from __future__ import annotations

import os
from pathlib import Path

from attendo._errors import UnknownName
from attendo._registry import did_you_mean
from attendo.data.digits import cluttered_digits
from attendo.data.folders import image_folder
from attendo.data.hub import hub_set
from attendo.data.images import FORMS, Images, Request, Split
from attendo.data.reading import read_image
from attendo.data.transforms import evaluation_transform
from attendo.data.vision import SETS, vision_set

__all__ = ["Images", "Split", "evaluation_transform", "load", "read_image"]


def load(
    name: str | os.PathLike[str] = "digits",
    *,
    limit: int | None = None,
    image_size: int | None = None,
    validation: str | float | None = None,
    seed: int = 0,
    flip: bool | None = None,
) -> Images:
    """Return a data set by name, checked: what labels and image headers tell of a later failure is an error here.

    Args:
        name: one of the forms above. ``hfds/`` takes options, as in ``hfds/uoft-cs/cifar100?label=fine_label``.
            A folder called digits is ``./digits``, or a Path.
        limit: training images to keep, all if None or more than there are; validation images are kept in the same
            proportion, but never more than ``limit``, and never fewer than one per class. Classes keep their
            proportions, and a larger limit keeps what a smaller one does.
        image_size: side in pixels that the network sees, at least 8. None takes 40 for digits, the shorter side of
            images that are all of one size up to 64, else 224.
        validation: the split to score on: a folder's or a split's name, or the share of the training images to hold
            out. None takes the data's own, or holds out 0.2 of every class.
        seed: decides what is held out, what a limit keeps, and the digits' images.
        flip: whether a mirrored image keeps its class. None takes no for digits and numbers, yes otherwise.

    Raises:
        UnknownName: ``name`` has none of the forms.
        DataError: the data is missing, damaged, or makes no sense.
        InvalidArgument: an argument that cannot work with it.
        MissingDependency: ``hfds/`` without the package datasets.

    >>> images = load("digits", limit=600)
    >>> images.train, images.validation
    (Split(600 images of 10 classes), Split(188 images of 10 classes))
    >>> picture, label = images.train[0]
    >>> images.transform(training=False)(picture).shape
    torch.Size([3, 40, 40])
    """
    request = Request(os.fspath(name), limit, image_size, validation, seed, flip)
    kind, divided, _ = request.name.partition("/")
    is_path = divided or request.name.startswith(("~", ".")) or isinstance(name, os.PathLike)
    if request.name == "digits" and not is_path:
        return cluttered_digits(request)
    if divided and kind == "hfds":
        return hub_set(request)
    if divided and kind == "torch":
        return vision_set(request)
    if is_path or Path(request.name).exists():
        return image_folder(request)
    hint = did_you_mean(request.name, ["digits", *(f"torch/{key}" for key in SETS)])
    raise UnknownName(
        f"data {request.name!r}: not known, and no folder in {Path.cwd()}; {FORMS}."
        f"{f' {hint}' if hint.startswith('Did') else ' Check the name.'}"
    )
