"""Cluttered digits: the default data, made from a seed, without a download.

scikit-learn's 1,797 real handwritten digits of 8 x 8 pixels (Alpaydin and Kaynak, "Optical Recognition of Handwritten
Digits", UCI, 1998), each placed at a random position and scale on a 40 x 40 canvas among fragments of other digits. It
is the test of where a network looks that Mnih, Heess, Graves, Kavukcuoglu, "Recurrent Models of Visual Attention",
NIPS 2014, made with MNIST. The digit's box is known, so attention maps can be scored.

Training and validation images come from different handwritten digits, their fragments too. The same seed gives the same
bytes on every machine: random numbers come from numpy's RandomState, whose stream is frozen, and pixels are summed in
whole numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import NDArray
from torch import Tensor

from attendo._errors import InvalidArgument
from attendo.data.images import Images, Indices, Request, Split
from attendo.data.splitting import HELD_OUT, held_out, limited

SIDE = 40
SIZES = {"train": 3200, "validation": 1000}
MEAN, STD = 0.14, 0.26  # of the training images with seed 0, rounded

SOURCE_SIDE = 8
DIGIT_SIDES = (15.0, 25.0)  # pixels that the 8 x 8 grid of a digit, or of a fragment's digit, takes
FRAGMENTS = 3  # then 6 epochs of SGD take ResNet-8 to 81 % and ResNet-14, widths 16/32/64, to 92 % (CPU, 2026-11-20)
FRAGMENT_SIDES = (3, 5)  # cells of the 8 x 8 grid that a fragment keeps
UNIT = 64  # interpolation weights are whole multiples of 1 / UNIT


class CanvasSource:
    """Canvases in memory: (N, 1, 40, 40) uint8, shown as three equal channels."""

    probes = 0

    def __init__(self, canvases: Tensor) -> None:
        self.canvases = canvases

    def read(self, index: int) -> Tensor:
        """Return a picture (3, 40, 40), a view."""
        return self.canvases[index].expand(3, -1, -1)

    def size(self, index: int) -> tuple[int, int]:
        """Width and height in pixels."""
        return SIDE, SIDE

    def identity(self, indices: Sequence[int]) -> bytes:
        """Return all pixels of the pictures: 10 MB at most."""
        return self.canvases[torch.as_tensor(indices)].numpy().tobytes()


def cluttered_digits(request: Request) -> Images:
    """Return 3,200 training and 1,000 validation images of ten classes, or a stratified part of them.

    Both splits have ``boxes``: (N, 4) float32, left, top, right, bottom of the digit's ink in pixels of an evaluation
    image.

    Image i of a seed is the same whatever the limit. The seed decides everything random: the split of the handwritten
    digits, scales, positions and fragments.

    Raises:
        InvalidArgument: a validation split was asked for, or a limit below ten.
    """
    from sklearn.datasets import load_digits

    if request.validation is not None:
        raise InvalidArgument(
            f"digits: validation={request.validation!r}; their validation images are drawn from handwritten digits of "
            f"their own. Leave it out."
        )
    sources = load_digits()
    inks, labels = sources.images.astype(np.float32), sources.target.astype(np.int64)
    train, validation = held_out(labels, HELD_OUT, request.seed, "digits")
    image_size = SIDE if request.image_size is None else request.image_size
    streams = [RandomState([request.seed, stream]) for stream in range(2)]
    targets = [random.permutation(np.arange(SIZES[split]) % 10) for random, split in zip(streams, SIZES, strict=True)]
    kept = limited(targets[0], targets[1], request.limit, request.seed, request.name)
    splits = []
    for own, classes, items, random in zip((train, validation), targets, kept, streams, strict=True):
        canvases, boxes = compose(inks[own], labels[own], classes, random, items)
        splits.append(Split(CanvasSource(canvases), classes[items], boxes=boxes * (image_size / SIDE)))
    return Images(
        name=request.name,
        classes=tuple(str(digit) for digit in range(10)),
        train=splits[0],
        validation=splits[1],
        image_size=image_size,
        mean=(MEAN,) * 3,
        std=(STD,) * 3,
        flip=bool(request.flip),
        crop_fraction=1.0,
        augmentation="shift",
    )


def compose(
    inks: NDArray[np.float32], labels: Indices, targets: Indices, random: RandomState, items: Indices
) -> tuple[Tensor, Tensor]:
    """Draw canvases from handwritten digits.

    Random numbers are drawn for all canvases, so that one does not depend on which others are wanted.

    Args:
        inks: the digits, (M, 8, 8), ink from 0 to 16.
        labels: their classes, (M,).
        targets: class of each canvas, (N,).
        random: where every random number comes from.
        items: which canvases are wanted, (K,).

    Returns:
        Canvases (K, 1, 40, 40) uint8 and boxes (K, 4) in pixels.
    """
    count = len(targets)
    chosen = np.empty(count, dtype=np.int64)
    for digit in range(10):
        chosen[targets == digit] = random.choice(np.flatnonzero(labels == digit), int((targets == digit).sum()))
    digits = inks[chosen]
    zoom = random.uniform(*DIGIT_SIDES, (count, 1)) / SOURCE_SIDE
    first, last = _ink_ends(digits)
    extent = (last - first) * zoom
    corner = random.uniform(0, 1, (count, 2)) * (SIDE - extent)  # all of the ink is on the canvas
    canvas = _placed(digits[items], (corner - first * zoom)[items], zoom[items])
    for _ in range(FRAGMENTS):
        pieces = inks[random.randint(len(inks), size=count)[items]]
        side = random.randint(FRAGMENT_SIDES[0], FRAGMENT_SIDES[1] + 1, (count, 1))
        cell = (random.uniform(0, 1, (count, 2)) * (SOURCE_SIDE - side + 1)).astype(np.int64)
        zoom = random.uniform(*DIGIT_SIDES, (count, 1)) / SOURCE_SIDE
        centre = random.uniform(0, SIDE, (count, 2))
        origin = centre - (cell + side / 2) * zoom
        square = _square(cell[items], side[items])
        np.maximum(canvas, _placed(pieces * square, origin[items], zoom[items]), out=canvas)
    pixels = np.minimum(canvas.astype(np.int32) * 255 // (16 * UNIT * UNIT), 255).astype(np.uint8)
    boxes = np.concatenate((corner, corner + extent), 1)[items].astype(np.float32)
    return torch.from_numpy(pixels)[:, None], torch.from_numpy(boxes)


def _ink_ends(digits: NDArray[np.float32]) -> tuple[Indices, Indices]:
    """First cell with ink and the one after the last, each as x and y: (N, 8, 8) -> two of (N, 2)."""
    inked = [np.any(digits > 0, axis=axis) for axis in (1, 2)]  # over rows leaves x, over columns leaves y
    first = np.stack([line.argmax(1) for line in inked], 1)
    return first, SOURCE_SIDE - np.stack([line[:, ::-1].argmax(1) for line in inked], 1)


def _square(cell: Indices, side: Indices) -> NDArray[np.float32]:
    """1 in a square of cells, 0 around it: first cell x, y (N, 2) and side (N, 1) -> (N, 8, 8)."""
    cells = np.arange(SOURCE_SIDE)
    x, y = ((cells >= cell[:, [axis]]) & (cells < cell[:, [axis]] + side) for axis in (0, 1))
    return (y[:, :, None] & x[:, None, :]).astype(np.float32)


def _placed(digits: NDArray[np.float32], origin: NDArray[np.float64], zoom: NDArray[np.float64]) -> NDArray[np.float32]:
    """Draw each digit (N, 8, 8), enlarged ``zoom`` times bilinearly, with its grid's corner (x, y) at ``origin``.

    A placement is separable: rows @ digit @ columns, two matrices (N, 40, 8) of hat functions. Their entries are whole
    multiples of 1 / UNIT, so float32 holds every product and sum exactly, in whatever order a machine adds.

    Returns:
        (N, 40, 40), ink times UNIT * UNIT.
    """
    cells = np.arange(SOURCE_SIDE, dtype=np.float32) + 0.5
    hats = []
    for axis in (0, 1):
        places = ((np.arange(SIDE) + 0.5 - origin[:, [axis]]) / zoom).astype(np.float32)
        hats.append(np.rint(UNIT * np.maximum(0, 1 - np.abs(places[:, :, None] - cells))))
    columns, rows = hats
    return np.matmul(np.matmul(rows, digits), columns.transpose(0, 2, 1))
