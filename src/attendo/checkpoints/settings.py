"""What a mechanism's shapes say about its settings: kernel sizes, widths of bottlenecks, biases, groups.

One function per mechanism, from its entries under our names to the settings that build it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from attendo._errors import CheckpointError
from attendo.layers import layer
from attendo.layers.fca import CHOICES

Own = Mapping[str, Tensor]


def reduction_of(first: Tensor) -> int:
    """Return the reduction whose bottleneck has the shape of this first layer, (hidden, channels, ...).

    Raises:
        CheckpointError: no whole number gives that width.
    """
    hidden, channels = first.shape[:2]
    for reduction in (16, *range(1, channels + 1)):
        if channels // reduction == hidden:
            return reduction
    raise CheckpointError(
        f"a bottleneck of {channels} channels with a hidden width of {hidden}: no reduction gives it; widths are "
        f"channels // reduction. Build the network with such a layer yourself."
    )


def _se(own: Own) -> dict[str, Any]:
    return {"reduction": reduction_of(own["fc1.weight"]), "bias": "fc1.bias" in own}


def _eca(own: Own) -> dict[str, Any]:
    return {"kernel_size": own["conv.weight"].shape[-1]}


def _channel_half(own: Own) -> dict[str, Any]:
    if "conv.weight" in own:
        return {"channel": "eca", "kernel_size": own["conv.weight"].shape[-1]}
    return _se(own)


def _spatial_half(own: Own) -> dict[str, Any]:
    return {"spatial_kernel": own["conv.weight"].shape[-1], "spatial_norm": "norm.weight" in own}


def _cbam(own: Own) -> dict[str, Any]:
    return {**_channel_half(_below("channel.", own)), **_spatial_half(_below("spatial.", own))}


def _bam(own: Own) -> dict[str, Any]:
    return {"reduction": reduction_of(own["channel.0.weight"])}


def _psa(own: Own) -> dict[str, Any]:
    branches = [own[f"spc.branches.{i}.weight"] for i in range(sum(key.startswith("spc.") for key in own))]
    channels = branches[0].shape[0] * len(branches)  # blocks keep their width
    return {
        "kernel_sizes": [branch.shape[-1] for branch in branches],
        "groups": [channels // branch.shape[1] for branch in branches],
        "reduction": reduction_of(own["se.fc1.weight"]),
    }


def _triplet(own: Own) -> dict[str, Any]:
    return {"kernel_size": own["cw.conv.weight"].shape[-1], "no_spatial": "hw.conv.weight" not in own}


def _fca(own: Own) -> dict[str, Any]:
    filters = own["dct"]
    side = list(filters.shape[-2:])
    settings = {"reduction": reduction_of(own["fc1.weight"]), "dct_size": side[0] if side[0] == side[1] else side}
    if len(filters) != own["fc1.weight"].shape[1] or not filters.any():
        return settings
    for frequencies in ("top16", *CHOICES):
        if len(filters) % int(frequencies[3:]) == 0:
            ours: Any = layer("fca", len(filters), frequencies=frequencies, **settings)
            expected = ours.dct.repeat_interleave(len(filters) // len(ours.dct), 0)
            if torch.allclose(expected, filters.to(expected), atol=1e-5):
                return {**settings, "frequencies": frequencies}
    raise CheckpointError("the DCT filters in this checkpoint are none of the official choices of frequencies.")


def _below(prefix: str, own: Own) -> Own:
    return {key.removeprefix(prefix): value for key, value in own.items() if key.startswith(prefix)}


READERS: dict[str, Callable[[Own], dict[str, Any]]] = {
    "se": _se,
    "eca": _eca,
    "cbam": _cbam,
    "cbam_channel": _channel_half,
    "cbam_spatial": _spatial_half,
    "bam": _bam,
    "psa": _psa,
    "simam": lambda own: {},
    "triplet": _triplet,
    "fca": _fca,
}
