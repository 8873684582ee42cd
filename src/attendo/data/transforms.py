"""From a picture to what the network sees, and back from a saved setting to the same transform.

Small images (up to 64 pixels) are shifted at random with a few tensor operations: 20 us an image where torchvision's v2
pipeline takes 140 us (40 x 40, one thread, 2026-11-20), and the default comparison reads half a million. Large ones go
through timm's training transform.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.v2 import functional as tv

from attendo._errors import InvalidArgument
from attendo.data.reading import to_rgb

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SMALL = 64  # the largest side, in pixels, that is shifted rather than cropped and resized


class EvaluationTransform:
    """Resize the shorter side, crop the centre, normalise: the same picture always gives the same tensor.

    Args:
        image_size: side of what comes out.
        crop_fraction: the shorter side is resized to ``image_size / crop_fraction``.
        mean: per channel, of values in [0, 1].
        std: per channel.

    Shape:
        PIL image of any mode, or uint8 (3, H, W) -> float32 (3, image_size, image_size)
    """

    def __init__(self, image_size: int, crop_fraction: float, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.image_size = image_size
        self.resized = math.floor(image_size / crop_fraction)
        self.scale = torch.tensor([1 / (255 * s) for s in std]).view(3, 1, 1)
        self.offset = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(3, 1, 1)

    def __call__(self, image: Image | Tensor) -> Tensor:
        """Fit and normalise."""
        return self.normalise(self.fit(image))

    def fit(self, image: Image | Tensor) -> Tensor:
        """Bring a picture to uint8 (3, image_size, image_size)."""
        if isinstance(image, Image):
            image = to_rgb(image)
            width, height = image.size
        else:
            height, width = image.shape[-2:]
        if min(width, height) != self.resized:
            image = tv.resize(image, [self.resized], antialias=True)
        if not (self.resized == self.image_size and width == height):
            image = tv.center_crop(image, [self.image_size])
        return tv.pil_to_tensor(image) if isinstance(image, Image) else image

    def normalise(self, image: Tensor) -> Tensor:
        """(value / 255 - mean) / std, in one pass: uint8 (3, H, W) -> float32."""
        return torch.addcmul(self.offset, image.float(), self.scale)


class ShiftTransform(EvaluationTransform):
    """An evaluation image, shifted by up to an eighth of its side, black moving in, and mirrored every second time.

    Args:
        flip: whether to mirror.
        settings: those of EvaluationTransform.
    """

    def __init__(self, flip: bool, **settings: Any) -> None:
        super().__init__(**settings)
        self.flip = flip
        self.margin = self.image_size // 8

    def __call__(self, image: Image | Tensor) -> Tensor:
        """Fit, shift, mirror and normalise."""
        across, down, mirror = torch.rand(3).tolist()
        image = pad(self.fit(image), (self.margin,) * 4)
        left, top = (int(share * (2 * self.margin + 1)) for share in (across, down))
        image = image[:, top : top + self.image_size, left : left + self.image_size]
        return self.normalise(image.flip(2) if self.flip and mirror < 0.5 else image)


def evaluation_transform(settings: dict[str, Any]) -> Callable[[Any], Tensor]:
    """Return the transform that ``Images.settings()`` describes; takes a PIL image or uint8 (3, H, W).

    Raises:
        InvalidArgument: a setting is missing or of no use, as in weights that another program saved.
    """
    return EvaluationTransform(**_checked(settings))


def training_transform(settings: dict[str, Any], augmentation: str, flip: bool) -> Callable[[Any], Tensor]:
    """Return the random transform of training images; see ``Images`` for its two kinds."""
    checked = _checked(settings)
    if augmentation == "shift":
        return ShiftTransform(flip, **checked)
    if augmentation == "resized-crop":
        from timm.data import create_transform

        return create_transform(
            checked["image_size"],
            is_training=True,
            hflip=0.5 if flip else 0.0,
            interpolation="bilinear",
            mean=checked["mean"],
            std=checked["std"],
        )
    raise InvalidArgument(
        f"images: augmentation={augmentation!r} is not one of its choices. Take 'shift' or 'resized-crop'."
    )


def _checked(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of EvaluationTransform."""
    kinds: dict[str, Callable[[Any], bool]] = {
        "image_size": lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 1,
        "crop_fraction": lambda value: isinstance(value, (int, float)) and 0 < value <= 1,
        "interpolation": lambda value: value == "bilinear",
        "mean": _three_numbers,
        "std": lambda value: _three_numbers(value) and min(value) > 0,
    }
    for name, fits in kinds.items():
        if name not in settings or not fits(settings[name]):
            raise InvalidArgument(
                f"image settings: {name}={settings.get(name)!r}; they need image_size (a positive integer), "
                f"crop_fraction (above 0, at most 1), interpolation ('bilinear'), mean and std (three numbers each). "
                f"Take those of Images.settings()."
            )
    if unknown := sorted(settings.keys() - kinds.keys()):
        raise InvalidArgument(
            f"image settings: {', '.join(unknown)} unknown; only {', '.join(kinds)} are understood. "
            f"Remove it, or use the attendo version that wrote it."
        )
    return {name: value for name, value in settings.items() if name != "interpolation"}


def _three_numbers(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 3
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in value)
    )
