"""Which ResNet a state dict is, from its shapes alone: depth, stem, widths, groups, classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from timm.models.resnet import Bottleneck

from attendo._errors import CheckpointError
from attendo.models.zoo import BASES

Shapes = Mapping[str, tuple[int, ...]]


def resnet_of(shapes: Shapes) -> tuple[str, dict[str, Any]]:
    """Return the name of the plain ResNet under these (our) names, and its arguments.

    Args:
        shapes: shape of each entry; those of mechanisms may be among them.

    Raises:
        CheckpointError: not a ResNet, or one that has no name here.
    """
    layers = _layers(shapes)
    bottleneck = "layer1.0.conv3.weight" in shapes
    fitting = [
        name
        for name, network in BASES.items()
        if network.layers == layers and issubclass(network.block, Bottleneck) == bottleneck
    ]
    if not fitting:
        known = ", ".join(f"{name} {network.layers}" for name, network in BASES.items())
        raise CheckpointError(
            f"a ResNet of {'bottleneck' if bottleneck else 'basic'} blocks, {layers} per stage: no network here has "
            f"this depth. Known: {known}."
        )
    arguments = {"num_classes": shapes["fc.weight"][0] if "fc.weight" in shapes else 0}
    arguments |= _stem(shapes, cifar=len(layers) == 3)
    if bottleneck:
        arguments |= _widths(shapes)
    return fitting[0], arguments


def _layers(shapes: Shapes) -> tuple[int, ...]:
    """Blocks of each stage."""
    blocks = {match.groups() for key in shapes if (match := re.match(r"layer(\d)\.(\d{1,4})\.", key))}
    stages = sorted({stage for stage, _ in blocks})
    if not stages or stages != [str(number) for number in range(1, len(stages) + 1)]:
        raise CheckpointError("not a ResNet: it has no stages layer1, layer2 ... of blocks.")
    return tuple(sum(stage == number for stage, _ in blocks) for number in stages)


def _stem(shapes: Shapes, cifar: bool) -> dict[str, Any]:
    if "conv1.0.weight" in shapes:
        first, second = shapes["conv1.0.weight"], shapes["conv1.3.weight"]
        tiered = first[0] != second[0]
        stem = {"stem_type": "deep_tiered" if tiered else "deep", "stem_width": second[0]}
        return _inputs(first) | stem | _average_shortcut(shapes)
    shape = shapes.get("conv1.weight", ())
    if len(shape) != 4 or shape[-1] not in (3, 7):
        raise CheckpointError(
            f"a ResNet whose first convolution has shape {list(shape)}: neither the 7x7 of ImageNet stems nor the 3x3 "
            f"of CIFAR stems; it has no counterpart here."
        )
    small = {"stem": "cifar"} if shape[-1] == 3 and not cifar else {}
    return _inputs(shape) | small | _average_shortcut(shapes)


def _inputs(shape: tuple[int, ...]) -> dict[str, Any]:
    return {} if shape[1] == 3 else {"in_chans": shape[1]}


def _average_shortcut(shapes: Shapes) -> dict[str, Any]:
    """ResNet-D averages before the shortcut's convolution, which moves that to index 1."""
    return (
        {"avg_down": True}
        if "layer2.0.downsample.1.weight" in shapes and len(shapes["layer2.0.downsample.1.weight"]) == 4
        else {}
    )


def _widths(shapes: Shapes) -> dict[str, Any]:
    """Groups and width of the middle convolution, as ResNeXt, Wide ResNet and EPSANet's large networks change them."""
    width, planes = shapes["layer1.0.conv1.weight"][0], shapes["layer1.0.conv3.weight"][0] // 4
    middle = shapes.get("layer1.0.conv2.weight", shapes.get("layer1.0.conv2.0.weight"))
    groups = 1 if middle is None else width // middle[1]
    base_width = width * 64 // (planes * groups)
    return ({} if groups == 1 else {"cardinality": groups}) | ({} if base_width == 64 else {"base_width": base_width})
