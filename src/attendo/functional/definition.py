"""What the primitives compute, in plain PyTorch: the truth that every kernel is compared with.

It also runs wherever no kernel does: other devices and dtypes, exports, transforms. Maxima use ``amax``, which shares
the gradient among ties and is deterministic on every device; the adaptive pools of official code are not (their CUDA
backward adds atomically).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from attendo.functional.route import symbolic
from attendo.kernels.gates import GateWeights, Norm


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


def blended(x: Tensor, recalibrated: Tensor, blend: Tensor | None) -> Tensor:
    """Mix the map with what was made of it: ``x + blend * (recalibrated - x)``; all of the latter without a blend."""
    if blend is None:
        return recalibrated
    return torch.lerp(x, _like(recalibrated, x), _like(blend, x))


def _like(tensor: Tensor, x: Tensor) -> Tensor:
    # a cast that does nothing is an alias, at which, of a parameter, the ONNX exporter of torch 2.11 stops
    return tensor.type_as(x) if symbolic(x) or tensor.dtype != x.dtype else tensor


def attention(x: Tensor, weights: GateWeights, norm: Norm | None = None, blend: Tensor | None = None) -> Tensor:
    """The map, or what ``norm`` makes of it, times the gates that ``weights`` describe, blended with the map.

    Running statistics are left as they are.
    """
    first = x = normalise(x, norm)
    if weights.mean or weights.maximum:
        seen = [pool(x) for pool, wanted in ((channel_mean, weights.mean), (channel_max, weights.maximum)) if wanted]
        logits_NC = torch.stack([_excite(z_NC, weights) for z_NC in seen]).sum(0)
        x = x * torch.sigmoid(logits_NC)[:, :, None, None]
    if weights.spatial is not None:
        x = x * torch.sigmoid(normalise(convolve(spatial_stats(x), weights), weights.norm))
    return blended(first, x, blend)


def convolve(stats_N2HW: Tensor, weights: GateWeights) -> Tensor:
    """Convolve mean and maximum over channels: (N, 2, H, W), mean first -> (N, 1, H, W)."""
    spatial = weights.spatial
    if spatial is None:
        raise ValueError("attendo.functional: these weights have no spatial half")
    return F.conv2d(ordered(stats_N2HW, weights), spatial, padding=spatial.shape[-1] // 2)


def ordered(stats_N2HW: Tensor, weights: GateWeights) -> Tensor:
    """Return the statistics in the order in which the spatial convolution sees them; its own inverse."""
    return stats_N2HW.flip(1) if weights.maximum_first else stats_N2HW


def normalise(x: Tensor, norm: Norm | None) -> Tensor:
    """Apply a norm, if there is one; its running statistics are left as they are."""
    if norm is None:
        return x
    training = norm.momentum is not None
    mean, var = (None, None) if training else (norm.mean, norm.var)
    return F.batch_norm(x, mean, var, norm.weight, norm.bias, training=training, eps=norm.eps)


def _excite(z_NC: Tensor, weights: GateWeights) -> Tensor:
    if weights.fc1 is not None and weights.fc2 is not None:
        return F.linear(F.relu(F.linear(z_NC, weights.fc1, weights.fc1_bias)), weights.fc2, weights.fc2_bias)
    if weights.conv is None:
        raise ValueError("attendo.functional: these weights have no channel half")
    return F.conv1d(z_NC[:, None], weights.conv, padding=weights.conv.shape[-1] // 2)[:, 0]
