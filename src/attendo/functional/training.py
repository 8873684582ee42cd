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
from attendo.kernels.gates import TENSORS, GateWeights, Norm
from attendo.kernels.selection import find

_WEIGHTS, _KEPT = len(TENSORS), len(Kept._fields)
_ABSENT = (None,) * _WEIGHTS
_aten = torch.ops.aten


def attend_training(
    x: Tensor, weights: GateWeights, residual: Tensor | None, relu: bool, norm: Norm | None, blend: Tensor | None
) -> Tensor:
    """As ``attend``; the caller has made sure that a CPU kernel takes x and everything beside it.

    A norm takes the batch's own statistics.
    """
    affine = (None, None) if norm is None else norm[:2]
    out = _Attention.apply(x, residual, relu, weights.holding(_ABSENT), norm, *affine, blend, *weights.tensors())
    return cast(Tensor, out)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        relu: bool,
        frame: GateWeights,
        norm: Norm | None,
        weight: Tensor | None,
        bias: Tensor | None,
        blend: Tensor | None,
        *tensors: Tensor | None,
    ) -> Tensor:
        weights = frame.holding(tensors).contiguous()
        calls, before = cast(Calls, find(x)), None if norm is None else norm.contiguous()
        out, kept = calls.attention_kept(x, weights, before, residual, relu, blend)
        spatial: tuple[Tensor, ...] = ()
        if kept.stats is not None:
            with _as_they_are():
                spatial = _spatial_gate(kept.stats, weights)
            out = calls.attention_finished(x, weights, before, kept, spatial[0], residual, relu, blend)
        if norm is not None and kept.norm is not None:
            _follow(norm, kept.norm, x.numel() // x.shape[1])
        if weights.norm is not None and weights.norm.momentum is not None:
            tensors = *tensors[:-2], None, None  # the next batch changes these two, and no gradient depends on them
        ctx.relu, ctx.frame, ctx.calls = relu, frame, calls  # another set rounds otherwise, and ties depend on it
        ctx.norm = None if norm is None else (norm.eps, norm.momentum)
        ctx.save_for_backward(x, out if relu else None, weight, bias, blend, *tensors, *kept, *spatial)
        return cast(Tensor, out)

    @staticmethod
    def backward(ctx: Any, up: Tensor) -> tuple[Any, ...]:
        x, out, weight, bias, blend, *saved = ctx.saved_tensors
        tensors, kept, spatial = saved[:_WEIGHTS], Kept._make(saved[_WEIGHTS:][:_KEPT]), saved[_WEIGHTS + _KEPT :]
        of_x, of_residual, _, _, _, *of_tensors = ctx.needs_input_grad

        def norm_of(weight: Tensor | None, bias: Tensor | None) -> Norm | None:
            return None if ctx.norm is None else Norm(weight, bias, None, None, *ctx.norm)

        if torch.is_grad_enabled():
            up = up if out is None else torch.where(out <= 0, torch.zeros_like(up), up)

            def defined(x: Tensor, *given: Tensor | None) -> tuple[Tensor]:
                weight, bias, blend, *others = given
                return (definition.attention(x, ctx.frame.holding(others), norm_of(weight, bias), blend),)

            first, *others = differentiable_gradients(defined, [x, weight, bias, blend, *tensors], [up])
            return first, up if of_residual else None, None, None, None, *others
        weights, norm = ctx.frame.holding(tensors).contiguous(), norm_of(weight, bias)
        needed = dict(zip(TENSORS, of_tensors[3:], strict=True))
        up = up.contiguous(memory_format=layout_of(x))
        calls, masked, known = ctx.calls, of_residual and ctx.relu, Gradients(None, None)
        gradients: dict[str, Tensor | None] = {}
        position: tuple[Tensor | None, Tensor | None] = None, None
        if kept.stats is not None:
            of_gate, known = calls.spatial_gradient(up, x, out, weights, kept, masked, spatial[0], blend is not None)
            of_gate = of_gate if blend is None else of_gate * blend
            of_stats, gradients = _spatial_gate_backward(of_gate, kept.stats, spatial, weights, needed)
            position = spatial[0], of_stats.contiguous()
        wanted = of_x, masked
        found = calls.attention_backward(up, x, out, weights, norm, kept, position, known, wanted, blend)
        with _as_they_are():
            gradients |= _channel_gate_weights(found, kept, needed)
        of_affine = (None, None) if found.norm is None else found.norm
        return (
            *(found.x, (found.residual if ctx.relu else up) if of_residual else None, None, None, None),
            *(_as(gradient, tensor) for gradient, tensor in zip(of_affine, (weight, bias), strict=True)),
            _as(None if found.blend is None else found.blend.sum(), blend),
            *(_as(gradients.get(name), tensor) for name, tensor in zip(TENSORS, tensors, strict=True)),
        )


def _as_they_are() -> AbstractContextManager[None]:
    """Keep autocast from what is computed here: the kernels took the tensors in their own dtype."""
    return torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext()


def _follow(norm: Norm, found: Tensor, size: int) -> None:
    """Update the running statistics of a norm, as PyTorch does, by those of the batch."""
    _, _, mean, var = found
    momentum = cast(float, norm.momentum)
    running_mean, running_var = cast(Tensor, norm.mean), cast(Tensor, norm.var)
    running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    running_var.lerp_((var * (size / (size - 1))).to(running_var.dtype), momentum)
    if norm.batches is not None:
        norm.batches.add_(1)


def _as(gradient: Tensor | None, weight: Tensor | None) -> Tensor | None:
    return None if gradient is None or weight is None else gradient.to(weight.dtype).view(weight.shape)


def _spatial_gate(stats: Tensor, weights: GateWeights) -> tuple[Tensor, ...]:
    """Return the gate (N, 1, H, W); with a norm, what that was given, and the mean and deviation it took."""
    logits = definition.convolve(stats, weights)
    norm = weights.norm
    if norm is None:
        return (logits.sigmoid_(),)
    batch = norm.momentum is not None
    normed, mean, deviation = _aten.native_batch_norm(logits, *norm[:4], batch, norm.momentum or 0.0, norm.eps)
    if batch and norm.batches is not None:
        norm.batches.add_(1)
    return normed.sigmoid_(), logits, mean, deviation


def _spatial_gate_backward(
    of_gate: Tensor, stats: Tensor, spatial: Sequence[Tensor], weights: GateWeights, needed: dict[str, bool]
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Return the gradients of the statistics and of the weights, from that of the gate, (N, H, W)."""
    (gate, *normed), norm = spatial, weights.norm
    up = _aten.sigmoid_backward(of_gate.to(gate.dtype).view_as(gate), gate)
    gradients: dict[str, Tensor | None] = {}
    if norm is not None:
        logits, mean, deviation = normed
        batch, mask = norm.momentum is not None, [True, needed["norm_weight"], needed["norm_bias"]]
        up, gradients["norm_weight"], gradients["norm_bias"] = _aten.native_batch_norm_backward(
            up, logits, norm.weight, norm.mean, norm.var, mean, deviation, batch, norm.eps, mask
        )
    seen, size = definition.ordered(stats, weights), cast(Tensor, weights.spatial).shape[-1]
    of_stats, gradients["spatial"], _ = _aten.convolution_backward(
        *(up, seen, weights.spatial, None, [1, 1], [size // 2] * 2, [1, 1], False, [0, 0], 1),
        [True, needed["spatial"], False],
    )
    return definition.ordered(of_stats, weights), gradients


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
