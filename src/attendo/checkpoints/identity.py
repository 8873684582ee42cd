"""Plain weights for a network with attention: the mechanism where its paper puts it, changing nothing at first."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from attendo._errors import CheckpointError
from attendo.checkpoints.recipe import Recipe, build_on_meta
from attendo.layers._base import LAYERS
from attendo.models.zoo import NAMED

SITES = {
    "block": r"layer\d\.\d+\.bn{last}",  # after the last norm of every block
    "conv": r"layer\d\.\d+\.conv2",
    "stage": r"layer[1-{last}]",  # after all stages but the last
}


def identity_recipe(name: str, mechanism: str, plain: Recipe) -> Recipe:
    """Return how to build a plain network with a mechanism inserted where its paper puts it, with identity start.

    Args:
        name: what was asked for; a named network decides the mechanism's settings.
        mechanism: its name.
        plain: the network that the weights are for.

    Raises:
        CheckpointError: the mechanism replaces convolutions, so that plain weights lack them.
    """
    placement = LAYERS[mechanism].placement
    if placement == "replace":
        raise CheckpointError(
            f"{name}: the checkpoint is {plain}, without attention, and {mechanism!r} replaces its convolutions; no "
            f"start with them leaves the network as it is. Pass {plain.name!r}, or weights with {mechanism!r}."
        )
    model = build_on_meta(plain)
    stages = [child for child in dict(model.named_children()) if re.fullmatch(r"layer\d", child)]
    bottleneck = any(path.endswith(".bn3") for path, _ in model.named_modules())
    last = len(stages) - 1 if placement == "stage" else 3 if bottleneck else 2
    pattern = SITES[placement].replace("{last}", str(last))
    paths = [path for path, _ in model.named_modules() if re.fullmatch(pattern, path)]
    settings = NAMED[name].args.get("attention_args") if name in NAMED else None
    insertions = [
        {
            "path": path,
            "attention": mechanism,
            "arguments": [_channels(model.get_submodule(path))],
            "settings": _at_stage(settings, int(path[len("layer")]) - 1),
            "start": "identity",
            "replaces": False,
        }
        for path in paths
    ]
    return Recipe(plain.name, plain.arguments, insertions)


def _channels(module: nn.Module) -> int:
    """Return the channels that come out of a norm, a convolution or a stage."""
    widths = [
        getattr(child, "num_features", None) or getattr(child, "out_channels", None)
        for path, child in module.named_modules()
        if "downsample" not in path
    ]
    return int([width for width in widths if width][-1])


def _at_stage(settings: Any, stage: int) -> dict[str, Any]:
    if settings is None:
        return {}
    return dict(settings if isinstance(settings, Mapping) else settings[stage])
