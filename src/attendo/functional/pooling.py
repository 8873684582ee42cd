"""Mean and maximum over positions, and over channels: dispatch, operators, gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attendo.functional import definition
from attendo.functional.route import Route, differentiable_gradients, route, symbolic
from attendo.kernels.selection import find


def channel_mean(x: Tensor) -> Tensor:
    """Mean over positions: (N, C, H, W) -> (N, C)."""
    eager = not symbolic(x) and not torch.compiler.is_compiling()
    differentiated = eager and torch.is_grad_enabled() and x.requires_grad
    if differentiated and x.ndim == 4 and x.numel() and x.dtype in (torch.float32, torch.float64):
        # The same number (a sum of halves could overflow); but the gradient of a mean is a map, that of a sum is not.
        return x.sum((2, 3)) / (x.shape[2] * x.shape[3])
    return definition.channel_mean(x)


def channel_stats(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and maximum over positions: (N, C, H, W) -> two of (N, C)."""
    match route(x, (), ()):
        case Route.KERNEL:
            return find(x).channel_stats(x)[:2]
        case Route.OPERATOR:
            mean, maximum, _ = torch.ops.attendo.channel_stats(x)
            return mean, maximum
        case _:
            return definition.channel_stats(x)


def spatial_stats(x: Tensor, channel_gate: Tensor | None = None) -> Tensor:
    """Mean and maximum over channels of ``x * channel_gate``: (N, C, H, W) -> (N, 2, H, W), mean first.

    Args:
        x: feature map, (N, C, H, W).
        channel_gate: factor on x, broadcastable to it, usually (N, C, 1, 1).
    """
    if not symbolic(x) and (channel_gate is None or _per_channel(channel_gate, x)):
        match route(x, (), (channel_gate,)):
            case Route.KERNEL:
                return find(x).spatial_stats(x, channel_gate)[0]
            case Route.OPERATOR:
                return torch.ops.attendo.spatial_stats(x, channel_gate)[0]
    return definition.spatial_stats(x, channel_gate)


def _per_channel(gate: Tensor, x: Tensor) -> bool:
    return x.ndim == 4 and gate.shape[1:] == (x.shape[1], 1, 1) and gate.shape[0] in (1, x.shape[0])


def _numbers(x: Tensor, *size: int) -> Tensor:
    return x.new_empty(size, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


@torch.library.custom_op("attendo::channel_stats", mutates_args=())
def _channel_stats(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return find(x).channel_stats(x, ties=True)


@_channel_stats.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    size = x.shape[:2]
    return x.new_empty(size), x.new_empty(size), _numbers(x, *size)


@torch.library.custom_op("attendo::channel_stats_backward", mutates_args=())
def _channel_stats_backward(
    mean_gradient: Tensor | None, maximum_gradient: Tensor | None, x: Tensor, maximum: Tensor, ties: Tensor
) -> Tensor:
    return find(x).channel_stats_backward(mean_gradient, maximum_gradient, x, maximum, ties)


@_channel_stats_backward.register_fake
def _(
    mean_gradient: Tensor | None, maximum_gradient: Tensor | None, x: Tensor, maximum: Tensor, ties: Tensor
) -> Tensor:
    return torch.empty_like(x)


def _save_channel_stats(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)  # a maximum that nothing depends on must not make a NaN of 0 / 0 ties
    ctx.save_for_backward(*inputs, *output[1:])
    ctx.mark_non_differentiable(output[2])


def _differentiate_channel_stats(ctx: Any, mean: Tensor | None, maximum: Tensor | None, _: Any) -> Tensor | None:
    x, top, ties = ctx.saved_tensors
    if torch.is_grad_enabled():
        return differentiable_gradients(definition.channel_stats, [x], [mean, maximum])[0]
    return torch.ops.attendo.channel_stats_backward(mean, maximum, x, top, ties)


_channel_stats.register_autograd(_differentiate_channel_stats, setup_context=_save_channel_stats)


@torch.library.custom_op("attendo::spatial_stats", mutates_args=())
def _spatial_stats(x: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor]:
    return find(x).spatial_stats(x, gate, ties=True)


@_spatial_stats.register_fake
def _(x: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor]:
    samples, _, height, width = x.shape
    return x.new_empty(samples, 2, height, width), _numbers(x, samples, height, width)


@torch.library.custom_op("attendo::spatial_stats_backward", mutates_args=())
def _spatial_stats_backward(
    up: Tensor, x: Tensor, gate: Tensor | None, stats: Tensor, ties: Tensor
) -> tuple[Tensor, Tensor]:
    gradient, gate_gradient = find(x).spatial_stats_backward(up, x, gate, stats, ties)
    return gradient, _numbers(x, 0) if gate_gradient is None else gate_gradient


@_spatial_stats_backward.register_fake
def _(up: Tensor, x: Tensor, gate: Tensor | None, stats: Tensor, ties: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), _numbers(x, *((0,) if gate is None else x.shape[:2]))


def _save_spatial_stats(ctx: Any, inputs: tuple[Tensor, Tensor | None], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate_spatial_stats(ctx: Any, up: Tensor, _: Any) -> tuple[Tensor | None, Tensor | None]:
    x, gate, stats, ties = ctx.saved_tensors
    if torch.is_grad_enabled():
        first, second = differentiable_gradients(lambda *a: (definition.spatial_stats(*a),), [x, gate], [up])
        return first, second
    gradient, per_sample = torch.ops.attendo.spatial_stats_backward(up, x, gate, stats, ties)
    return gradient, None if gate is None else gathered(per_sample, gate)


_spatial_stats.register_autograd(_differentiate_spatial_stats, setup_context=_save_spatial_stats)


def gathered(per_sample: Tensor, gate: Tensor) -> Tensor:
    """Gradient of a gate from the gradients of each sample: in its shape, summed where all samples share it."""
    total = per_sample if gate.shape[0] == per_sample.shape[0] else per_sample.sum(0, keepdim=True)
    return total.to(gate.dtype).view(gate.shape)
