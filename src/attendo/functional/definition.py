"""What the primitives compute, in plain PyTorch: the truth that every kernel is compared with.

It also runs wherever no kernel does: other devices and dtypes, exports, transforms. Maxima use ``amax``, which shares
the gradient among ties and is deterministic on every device; the adaptive pools of official code are not (their CUDA
backward adds atomically).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def channel_mean(x: Tensor) -> Tensor:
    """Mean over positions: (N, C, H, W) -> (N, C)."""
    return x.mean((2, 3))


def channel_max(x: Tensor) -> Tensor:
    """Maximum over positions: (N, C, H, W) -> (N, C)."""
    return x.amax((2, 3))


def channel_stats(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and maximum over positions: (N, C, H, W) -> two of (N, C)."""
    return channel_mean(x), channel_max(x)


def spatial_stats(x: Tensor, channel_gate: Tensor | None = None) -> Tensor:
    """Mean and maximum over channels of ``x * channel_gate``: (N, C, H, W) -> (N, 2, H, W), mean first.

    Args:
        x: feature map, (N, C, H, W).
        channel_gate: factor on x, broadcastable to it, usually (N, C, 1, 1).
    """
    gated = x if channel_gate is None else x * channel_gate
    return torch.stack((gated.mean(1), gated.amax(1)), 1)


def recalibrate(x: Tensor, gates: Iterable[Tensor], residual: Tensor | None = None, relu: bool = False) -> Tensor:
    """Multiply x by its gates; optionally add a shortcut and rectify, as the end of a residual block does.

    Args:
        x: feature map, (N, C, H, W).
        gates: factors, each broadcastable to x.
        residual: the block's shortcut, the shape of x, added after the gates.
        relu: rectify last.
    """
    for gate in gates:
        x = x * gate
    if residual is not None:
        x = x + residual
    return x.relu() if relu else x
