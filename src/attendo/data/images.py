"""An image classification data set with its two splits, and how its images become tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from attendo._errors import InvalidArgument

if TYPE_CHECKING:
    from PIL.Image import Image

Indices = NDArray[np.int64]
SMALLEST = 8  # pixels of a side: the network of the default comparison halves it three times, most do more often
FORMS = "data is 'digits', an image folder, hfds/<Hub id or directory> or torch/<name>"


class Source(Protocol):
    """Where pictures come from: a folder, a Hugging Face data set, memory."""

    @property
    def probes(self) -> int:
        """How many headers per split are worth opening before training starts."""

    def read(self, index: int) -> Image | Tensor:
        """Return a picture: PIL RGB, or uint8 (3, H, W). Raises DataError, naming the picture, if it cannot be read."""

    def size(self, index: int) -> tuple[int, int]:
        """Width and height in pixels, from the picture's header where there is one. Raises DataError likewise."""

    def identity(self, indices: Sequence[int]) -> bytes:
        """Return what changes when one of these pictures changes; need not read all of them."""


class Split(Sequence[tuple[Any, int]]):
    """Pictures with their labels: item i is ``(picture, label)``, read when asked for.

    Args:
        source: where the pictures come from.
        labels: class of each item, (N,).
        indices: which picture of the source each item is; None for all, in order.
        boxes: left, top, right, bottom of what the label names, in pixels of an evaluation image, (N, 4), where known.
    """

    def __init__(
        self,
        source: Source,
        labels: Sequence[int] | Indices,
        indices: Indices | None = None,
        boxes: Tensor | None = None,
    ) -> None:
        self.source = source
        self.labels: Indices = np.asarray(labels, dtype=np.int64)
        self.indices = np.arange(len(self.labels)) if indices is None else indices
        self.boxes = boxes

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> tuple[Any, int]: ...
    @overload
    def __getitem__(self, index: slice) -> Split: ...
    def __getitem__(self, index: int | slice) -> tuple[Any, int] | Split:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return self.source.read(int(self.indices[index])), int(self.labels[index])

    def take(self, items: Indices) -> Split:
        """Return the split that has only these items, in this order."""
        boxes = None if self.boxes is None else self.boxes[items]
        return Split(self.source, self.labels[items], self.indices[items], boxes)

    def __repr__(self) -> str:
        return f"Split({len(self)} images of {len(np.unique(self.labels))} classes)"


@dataclass(frozen=True)
class Images:
    """An image classification data set.

    To change how its images are shown to a network, ``dataclasses.replace(images, flip=False)``.

    Args:
        name: as the user named it.
        classes: their names; a label is an index into them.
        train: split to learn from.
        validation: split to score on.
        image_size: side in pixels of what the network sees.
        mean: per channel, red, green, blue, of values in [0, 1]; what the network sees is ``(value - mean) / std``.
        std: per channel.
        flip: whether a mirrored image keeps its class.
        crop_fraction: an evaluation image is the central ``image_size`` pixels of the image resized so that its shorter
            side is ``image_size / crop_fraction``.
        augmentation: of training images. ``"shift"``: padded by an eighth of the side, cropped at random.
            ``"resized-crop"``: timm's default, a random part of the area and aspect ratio, and colour jitter.
            Both mirror every second image if ``flip``.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flip: bool
    crop_fraction: float
    augmentation: Literal["shift", "resized-crop"]

    def settings(self) -> dict[str, Any]:
        """Return what ``evaluation_transform`` needs, fit for JSON; saved weights carry it."""
        return {
            "image_size": self.image_size,
            "crop_fraction": self.crop_fraction,
            "interpolation": "bilinear",
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def transform(self, training: bool) -> Callable[[Any], Tensor]:
        """Return what turns a picture into float32 (3, image_size, image_size), normalised.

        Args:
            training: augment at random. Random numbers come from the global generators of torch and, for
                ``"resized-crop"``, Python: seed them and the result is decided.
        """
        from attendo.data.transforms import evaluation_transform, training_transform

        if training:
            return training_transform(self.settings(), self.augmentation, self.flip)
        return evaluation_transform(self.settings())

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with the classes, labels, pictures or settings; not with the path.

        Pictures of a folder count by file name and size, digits by their pixels, others by a sample of their bytes.
        """
        shown = {**self.settings(), "flip": self.flip, "augmentation": self.augmentation}
        digest = hashlib.sha256(json.dumps([self.classes, shown], sort_keys=True).encode())
        for split in (self.train, self.validation):
            digest.update(split.labels.astype("<i8").tobytes())
            digest.update(hashlib.sha256(split.source.identity(split.indices.tolist())).digest())
        return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Request:
    """What the caller of ``load`` asked for, checked; the fields are its arguments.

    Raises:
        InvalidArgument: a value that no data set can satisfy.
    """

    name: str
    limit: int | None = None
    image_size: int | None = None
    validation: str | float | None = None
    seed: int = 0
    flip: bool | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and not _is_integer(self.limit, 1):
            raise InvalidArgument(
                f"data {self.name!r}: limit={self.limit!r}; it must be a positive integer. Leave it out for all images."
            )
        if self.image_size is not None and not _is_integer(self.image_size, SMALLEST):
            raise InvalidArgument(
                f"data {self.name!r}: image_size={self.image_size!r}; it must be an integer of at least {SMALLEST}, as "
                f"even small networks make one pixel of {SMALLEST} x {SMALLEST}. Leave it out for the size that fits "
                f"the data."
            )
        if not _is_integer(self.seed, 0) or self.seed >= 2**31:
            raise InvalidArgument(
                f"data {self.name!r}: seed={self.seed!r}; it must be an integer from 0 to {2**31 - 1}. Take 0."
            )
        if isinstance(self.validation, (int, float)) and not 0 < self.validation < 1:
            raise InvalidArgument(
                f"data {self.name!r}: validation={self.validation!r}; a share of the training images lies between 0 "
                f"and 1. Take 0.2, or give the name of a split."
            )

    def no_validation_choice(self, why: str) -> None:
        """Raise InvalidArgument if a split was asked for by name: this kind of data has no names to choose from."""
        if isinstance(self.validation, str):
            raise InvalidArgument(f"data {self.name!r}: validation={self.validation!r}; {why}. Leave it out.")


def _is_integer(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
