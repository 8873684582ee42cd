"""MobileNetV2, plain or with ECA after the projection of every block, as ECA-Net's authors publish it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from attendo.checkpoints.dialects import NORM
from attendo.checkpoints.recipe import TORCHVISION, Recipe

NAME = "mobilenet_v2"
ECA = r"features\.(\d{1,2})\.conv\.(\d)\.conv\.weight"  # the module stands last in the block's Sequential
OTHERS = (
    rf"features\.\d{{1,2}}\.[01]\.{NORM}",
    rf"features\.\d{{1,2}}\.conv\.\d\.{NORM}",
    rf"features\.\d{{1,2}}\.conv\.\d\.[01]\.{NORM}",
    r"classifier\.1\.(?:weight|bias)",
)


def rename(key: str) -> str | None:
    """Return our name of an entry: torchvision's, and for ECA that of a mechanism inserted at the block's last norm."""
    if match := re.fullmatch(ECA, key):
        return f"{_site(match)}.attendo.mechanism.conv.weight"
    return key if any(re.fullmatch(pattern, key) for pattern in OTHERS) else None


def _site(match: re.Match[str]) -> str:
    return f"features.{match[1]}.conv.{int(match[2]) - 1}"


def mobilenet_of(state: Mapping[str, Tensor]) -> tuple[str, Recipe] | None:
    """Return the mechanism (``"eca"`` or ``"none"``) and the recipe of a MobileNetV2, or None if it is none."""
    if "features.1.conv.0.0.weight" not in state or "classifier.1.weight" not in state:
        return None
    insertions: list[dict[str, Any]] = []
    for key, value in state.items():
        if (match := re.fullmatch(ECA, key)) is None:
            continue
        projection = state.get(f"{_site(match)}.weight")
        insertions.append(
            {
                "path": _site(match),
                "attention": "eca",
                "arguments": [0 if projection is None else len(projection)],
                "settings": {"kernel_size": value.shape[-1]},
                "start": "paper",
                "replaces": False,
            }
        )
    arguments = {"num_classes": len(state["classifier.1.weight"])}
    return "eca" if insertions else "none", Recipe(TORCHVISION + NAME, arguments, insertions)
