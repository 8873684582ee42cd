"""What PSA needs besides: wide kernels over few channels per group, and branches joined without a copy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from attendo.functional.route import Route, route, symbolic
from attendo.kernels.selection import find, straight

# Outputs per group up to which the native kernel wins. EPSANet-50's branches at 16 images, ours / oneDNN's time:
# 1 output 0.06 (56 x 56), 2 outputs 0.11 and 0.12, 4 outputs 0.64 to 0.83, 8 outputs 1.3 to 2.2 (AMD EPYC with AVX-512,
# 2 threads, torch 2.15, 2026-11-21). Kernels of 3 are left to oneDNN, which has its own for many groups.
_FEW, _WIDE = 4, 5


def grouped_conv(x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
    """Convolve without bias, padded so that stride 1 keeps the size: (N, C, H, W) -> (N, K, H / stride, W / stride).

    Args:
        x: feature map.
        weight: (K, C / groups, k, k), k odd.
        stride: of both directions.
        groups: of channels.
    """
    kernel = weight.shape[2]
    if not symbolic(x) and x.is_cpu and x.dtype is torch.float32 and _fits(x, weight, groups):
        if torch.compiler.is_compiling():
            if not torch.is_grad_enabled() and route(x, (), (weight,)) is Route.OPERATOR:
                return torch.ops.attendo.grouped_conv(x, weight, stride, groups)
        elif straight(x, None, (weight,)):
            return find(x).grouped_conv(x, weight, stride, groups)  # type: ignore[union-attr]
    return F.conv2d(x, weight, None, stride, kernel // 2, 1, groups)


def _fits(x: Tensor, weight: Tensor, groups: int) -> bool:
    outputs, inputs, kernel, width = weight.shape
    few = outputs <= _FEW * groups and _WIDE <= kernel < 64
    return few and kernel == width and outputs % groups == 0 and x.ndim == 4 and x.shape[1] == inputs * groups


def join(maps: Sequence[Tensor], gates: Sequence[Tensor]) -> Tensor:
    """Multiply each map by its gate and concatenate over channels: S of (N, C, H, W) -> (N, S C, H, W).

    Each product is written straight into its place where no gradient is needed.
    """
    first = maps[0]
    if not straight(first, None, maps) or not straight(first, None, gates):
        return torch.cat([x * gate for x, gate in zip(maps, gates, strict=True)], 1)
    samples, channels, height, width = first.shape
    kind = torch.contiguous_format if first.is_contiguous() else torch.channels_last
    size = (samples, len(maps) * channels, height, width)
    out = torch.empty(size, dtype=first.dtype, device=first.device, memory_format=kind)
    for x, gate, place in zip(maps, gates, out.split(channels, 1), strict=True):
        torch.mul(x, gate, out=place)
    return out


@torch.library.custom_op("attendo::grouped_conv", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def _grouped_conv(x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
    return find(x).grouped_conv(x, weight, stride, groups)  # type: ignore[union-attr]


@_grouped_conv.register_fake
def _(x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
    samples, _, height, width = x.shape
    kind = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    size = (samples, weight.shape[0], (height - 1) // stride + 1, (width - 1) // stride + 1)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=kind)
