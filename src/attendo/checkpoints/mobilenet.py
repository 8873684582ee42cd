"""MobileNetV2, plain or with ECA after the projection of every block: torchvision's and ECA-Net's names, as timm's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from attendo.checkpoints.dialects import AFFINE, NORM
from attendo.checkpoints.recipe import Recipe

BASE, NAMED = "mobilenetv2_100", "eca_mobilenetv2"
DEPTHS = (1, 2, 3, 4, 3, 3, 1)  # blocks per stage, after the stem
FIRST = ("conv_dw", "bn1", "conv_pw", "bn2")  # of the first block, which does not expand
OTHERS = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
INSERTED = ".attendo.mechanism.conv.weight"


def rename(key: str) -> str | None:
    """Return our name of an entry, or None if a MobileNetV2 has none such.

    >>> rename("features.2.conv.4.conv.weight")
    'blocks.1.0.bn3.attendo.mechanism.conv.weight'
    """
    if match := re.fullmatch(rf"classifier\.1\.{AFFINE}", key):
        return f"classifier.{match[1]}"
    if match := re.fullmatch(rf"features\.(0|18)\.([01])\.{NORM}", key):
        return f"{(('conv_stem', 'bn1'), ('conv_head', 'bn2'))[match[1] == '18'][int(match[2])]}.{match[3]}"
    match = re.fullmatch(rf"features\.(\d{{1,2}})\.conv\.(\d)(?:\.([01]))?\.{NORM}", key)
    if match is None:
        eca = re.fullmatch(r"features\.(\d{1,2})\.conv\.(\d)\.conv\.weight", key)
        path = _site(int(eca[1])) if eca else None
        return f"{path}{INSERTED}" if path else None
    block, parts = _block(int(match[1])), FIRST if match[1] == "1" else OTHERS
    # a convolution with norm and activation is one entry of the block's Sequential, the last two are one each
    place = 2 * int(match[2]) + int(match[3]) if match[3] else len(parts) // 2 - 1 + int(match[2])
    return f"{block}.{parts[place]}.{match[4]}" if block and place < len(parts) else None


def _block(index: int) -> str | None:
    """Return the path of the block that torchvision counts through all stages."""
    for stage, depth in enumerate(DEPTHS):
        if 1 <= index <= depth:
            return f"blocks.{stage}.{index - 1}"
        index -= depth
    return None


def _site(index: int) -> str | None:
    """Return the path of a block's last norm."""
    block = _block(index)
    return block and f"{block}.{'bn2' if index == 1 else 'bn3'}"


def recipe_of(tensors: Mapping[str, Tensor]) -> tuple[str, Recipe]:
    """Return the mechanism (``"eca"`` or ``"none"``) and the recipe of a MobileNetV2 under our names."""
    kernels = {key.removesuffix(INSERTED): value.shape[-1] for key, value in tensors.items() if key.endswith(INSERTED)}
    channels = {path: len(tensors[f"{path}.weight"]) for path in kernels if f"{path}.weight" in tensors}
    arguments = {"num_classes": len(tensors["classifier.bias"])}
    if not kernels:
        return "none", Recipe(BASE, arguments)
    if len(kernels) == sum(DEPTHS) and all(kernels[path] == (1 if c < 96 else 3) for path, c in channels.items()):
        return "eca", Recipe(NAMED, arguments)
    return "eca", Recipe(BASE, arguments, [_eca(path, channels[path], kernel) for path, kernel in kernels.items()])


def identity(plain: Recipe, tensors: Mapping[str, Tensor]) -> Recipe:
    """Return the recipe of a plain MobileNetV2 with ECA at its places that changes nothing at first."""
    insertions = []
    for path in (_site(index) for index in range(1, sum(DEPTHS) + 1)):
        channels = len(tensors[f"{path}.weight"])
        insertions.append(_eca(str(path), channels, 1 if channels < 96 else 3, "identity"))
    return Recipe(plain.name, plain.arguments, insertions)


def _eca(path: str, channels: int, kernel_size: int, start: str = "paper") -> dict[str, Any]:
    return {
        "path": path,
        "attention": "eca",
        "arguments": [channels],
        "settings": {"kernel_size": kernel_size},
        "start": start,
        "replaces": False,
    }
