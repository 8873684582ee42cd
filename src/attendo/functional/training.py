"""A whole mechanism with its gradients: what a training step takes where nothing but autograd watches.

The map is read as often as there are numbers to know first: for channel gates once in either direction, in chunks
that fit the cache; once more where a norm in training must see the whole batch, the one before the gates or that of a
spatial gate. Between the passes PyTorch computes what is small: the spatial convolution, its norm, the gradients of the
weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor

from attendo.functional import definition
from attendo.functional.recalibration import layout_of
from attendo.functional.route import differentiable_gradients
from attendo.kernels.cpu.calls import Calls
from attendo.kernels.cpu.packing import Gradients, Kept
from attendo.kernels.gates import GateWeights, Norm
from attendo.kernels.selection import find

_TENSORS, _KEPT = len(GateWeights().tensors()), len(Kept._fields)
_NAMES = GateWeights._fields[:_TENSORS]
_aten = torch.ops.aten


def attend_training(
    x: Tensor, weights: GateWeights, residual: Tensor | None, relu: bool, norm: Norm | None = None
) -> Tensor:
    """As ``attend``; the caller has made sure that a CPU kernel takes x and everything beside it.

    A norm takes the batch's own statistics.
    """
    affine = (None, None) if norm is None else norm[:2]
    out = _Attention.apply(x, residual, relu, weights[_TENSORS:], norm, *affine, *weights.tensors())
    return cast(Tensor, out)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        relu: bool,
        rest: tuple[Any, ...],
        norm: Norm | None,
        weight: Tensor | None,
        bias: Tensor | None,
        *tensors: Tensor | None,
    ) -> Tensor:
        weights = GateWeights._make((*tensors, *rest)).contiguous()
        calls, before = cast(Calls, find(x)), None if norm is None else norm.contiguous()
        out, kept = calls.attention_kept(x, weights, before, residual, relu)
        spatial: tuple[Tensor, ...] = ()
        if kept.stats is not None:
            with _as_they_are():
                spatial = _spatial_gate(kept.stats, weights)
            out = calls.attention_finished(x, weights, before, kept, spatial[0], residual, relu)
        if norm is not None and kept.norm is not None:
            _follow(norm, kept.norm, x.numel() // x.shape[1])
        if weights.norm_momentum is not None:  # the next batch changes them, and no gradient depends on them
            tensors = weights._replace(norm_mean=None, norm_var=None).tensors()
        ctx.relu, ctx.rest, ctx.calls = relu, rest, calls  # another set rounds otherwise, and ties depend on it
        ctx.norm = None if norm is None else (norm.eps, norm.momentum)
        ctx.save_for_backward(x, out if relu else None, weight, bias, *tensors, *kept, *spatial)
        return cast(Tensor, out)

    @staticmethod
    def backward(ctx: Any, up: Tensor) -> tuple[Any, ...]:
        x, out, weight, bias, *saved = ctx.saved_tensors
        tensors, kept, spatial = saved[:_TENSORS], Kept._make(saved[_TENSORS:][:_KEPT]), saved[_TENSORS + _KEPT :]
        of_x, of_residual, _, _, _, *of_tensors = ctx.needs_input_grad

        def norm_of(weight: Tensor | None, bias: Tensor | None) -> Norm | None:
            return None if ctx.norm is None else Norm(weight, bias, x, x, *ctx.norm)  # no running ones are read

        if torch.is_grad_enabled():
            up = up if out is None else torch.where(out <= 0, torch.zeros_like(up), up)

            def defined(x: Tensor, weight: Tensor | None, bias: Tensor | None, *given: Tensor | None) -> tuple[Tensor]:
                return (definition.attention(x, GateWeights._make((*given, *ctx.rest)), norm_of(weight, bias)),)

            first, *others = differentiable_gradients(defined, [x, weight, bias, *tensors], [up])
            return first, up if of_residual else None, None, None, None, *others
        weights, norm = GateWeights._make((*tensors, *ctx.rest)).contiguous(), norm_of(weight, bias)
        needed = dict(zip(_NAMES, of_tensors[2:], strict=True))
        up = up.contiguous(memory_format=layout_of(x))
        calls, masked, residual = ctx.calls, of_residual and ctx.relu, None
        gradients: dict[str, Tensor | None] = {}
        position: tuple[Tensor | None, Tensor | None] = None, None
        if kept.stats is not None:
            of_gate, residual = calls.spatial_gradient(up, x, out, weights, kept, masked)
            of_stats, gradients = _spatial_gate_backward(of_gate, kept.stats, spatial, weights, needed)
            position = spatial[0], of_stats.contiguous()
        wanted = of_x, masked
        found = calls.attention_backward(up, x, out, weights, norm, kept, position, residual, wanted)
        with _as_they_are():
            gradients |= _channel_gate_weights(found, kept, needed)
        of_affine = (None, None) if found.norm is None else found.norm
        return (
            *(found.x, (found.residual if ctx.relu else up) if of_residual else None, None, None, None),
            *(_as(gradient, tensor) for gradient, tensor in zip(of_affine, (weight, bias), strict=True)),
            *(_as(gradients.get(name), tensor) for name, tensor in zip(_NAMES, tensors, strict=True)),
        )


def _as_they_are() -> AbstractContextManager[None]:
    """Keep autocast from what is computed here: the kernels took the tensors in their own dtype."""
    return torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext()


def _follow(norm: Norm, found: Tensor, size: int) -> None:
    """Update the running statistics of a norm, as PyTorch does, by those of the batch."""
    _, _, mean, var = found
    momentum = cast(float, norm.momentum)
    norm.mean.lerp_(mean.to(norm.mean.dtype), momentum)
    norm.var.lerp_((var * (size / (size - 1))).to(norm.var.dtype), momentum)
    if norm.batches is not None:
        norm.batches.add_(1)


def _as(gradient: Tensor | None, weight: Tensor | None) -> Tensor | None:
    return None if gradient is None or weight is None else gradient.to(weight.dtype).view(weight.shape)


def _seen(stats_N2HW: Tensor, weights: GateWeights) -> Tensor:
    """Return the statistics as the spatial convolution sees them; its own inverse."""
    return stats_N2HW.flip(1) if weights.maximum_first else stats_N2HW


def _spatial_gate(stats: Tensor, weights: GateWeights) -> tuple[Tensor, ...]:
    """Return the gate (N, 1, H, W); with a norm, what that was given, and the mean and deviation it took."""
    logits = definition.convolve(stats, weights)
    if weights.norm_momentum is None and weights.norm_mean is None:
        return (logits.sigmoid_(),)
    running = weights.norm_weight, weights.norm_bias, weights.norm_mean, weights.norm_var
    batch = weights.norm_momentum is not None
    normed, mean, deviation = _aten.native_batch_norm(
        logits, *running, batch, weights.norm_momentum or 0.0, weights.norm_eps
    )
    if batch and weights.norm_batches is not None:
        weights.norm_batches.add_(1)
    return normed.sigmoid_(), logits, mean, deviation


def _spatial_gate_backward(
    of_gate: Tensor, stats: Tensor, spatial: Sequence[Tensor], weights: GateWeights, needed: dict[str, bool]
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Return the gradients of the statistics and of the weights, from that of the gate, (N, H, W)."""
    gate, *norm = spatial
    up = _aten.sigmoid_backward(of_gate.to(gate.dtype).view_as(gate), gate)
    gradients: dict[str, Tensor | None] = {}
    if norm:
        logits, mean, deviation = norm
        running = weights.norm_weight, weights.norm_mean, weights.norm_var
        batch, mask = weights.norm_momentum is not None, [True, needed["norm_weight"], needed["norm_bias"]]
        up, gradients["norm_weight"], gradients["norm_bias"] = _aten.native_batch_norm_backward(
            up, logits, *running, mean, deviation, batch, weights.norm_eps, mask
        )
    size = cast(Tensor, weights.spatial).shape[-1]
    of_stats, gradients["spatial"], _ = _aten.convolution_backward(
        *(up, _seen(stats, weights), weights.spatial, None, [1, 1], [size // 2] * 2, [1, 1], False, [0, 0], 1),
        [True, needed["spatial"], False],
    )
    return _seen(of_stats, weights), gradients


def _channel_gate_weights(found: Gradients, kept: Kept, needed: dict[str, bool]) -> dict[str, Tensor | None]:
    """Return the gradients of the channel half's weights."""
    if found.conv is not None:
        return {"conv": found.conv.sum(0)}
    if found.raw is None or found.logits is None or kept.raw is None or kept.pooled is None:
        return {}
    statistics = kept.raw.shape[1]
    return {
        "fc1": found.raw.flatten(0, 1).t() @ kept.pooled.flatten(0, 1) if needed["fc1"] else None,
        "fc1_bias": found.raw.sum((0, 1)) if needed["fc1_bias"] else None,
        "fc2": found.logits.t() @ kept.raw.relu().sum(1) if needed["fc2"] else None,
        "fc2_bias": found.logits.sum(0) * statistics if needed["fc2_bias"] else None,
    }
