"""A whole mechanism in one call of a kernel: dispatch, and the operator that compilers see in inference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attendo.functional.recalibration import overwritten
from attendo.functional.route import Route, route, symbolic
from attendo.functional.training import attend_training
from attendo.kernels.gates import GateWeights, Norm
from attendo.kernels.selection import find, straight


def attend(
    x: Tensor,
    weights: GateWeights,
    residual: Tensor | None = None,
    relu: bool = False,
    inplace: bool = False,
    norm: Norm | None = None,
    blend: Tensor | None = None,
) -> Tensor | None:
    """Compute the gates that ``weights`` describe and recalibrate x by them, the map coming from memory once.

    Args:
        x: feature map, (N, C, H, W).
        weights: what computes the gates.
        residual: as in ``recalibrate``.
        relu: as in ``recalibrate``.
        inplace: as in ``recalibrate``.
        norm: what x goes through before all this.
        blend: one number, (1): how much of the recalibrated map to take, the rest being the map itself, before the
            residual is added; not together with a norm.

    Returns:
        The result; None where no kernel does this in one call.
    """
    tensors, mixing = weights.tensors(), () if blend is None else (blend,)
    if symbolic(x) or x.ndim != 4 or not weights.fit(x.shape[1]) or (norm is not None and not norm.fit(x.shape[1])):
        return None  # the definition says what is wrong
    if blend is not None and (norm is not None or blend.shape != (1,) or not x.is_cpu):
        return None
    if torch.compiler.is_compiling():
        if torch.is_grad_enabled() or norm is not None or _of_batch(weights.norm) or not x.is_cpu:
            return None
        if route(x, (residual,), (*mixing, *tensors)) is not Route.OPERATOR:
            return None
        eps = 0.0 if weights.norm is None else weights.norm.eps
        flags = weights.mean, weights.maximum, weights.maximum_first
        return torch.ops.attendo.attention(x, tensors, eps, *flags, residual, relu, blend)
    beside = (*mixing, *tensors) if norm is None else (*tensors, *norm[:4])
    if not straight(x, residual, beside):
        match route(x, (residual,), beside):
            case Route.OPERATOR if x.is_cpu and not _too_few(x) and (norm is None or _of_batch(norm)):
                return attend_training(x, weights, residual, relu, norm, blend)
            case Route.DEFINITION | Route.OPERATOR:
                return None
    attention = find(x).attention
    if attention is None or _of_batch(weights.norm) or _of_batch(norm):
        return None
    out = overwritten(x) if inplace else None
    if norm is None and blend is None:
        return attention(x, weights.contiguous(), residual, relu, out)
    return attention(x, weights.contiguous(), residual, relu, out, None if norm is None else norm.contiguous(), blend)


def _too_few(x: Tensor) -> bool:
    """Whether a norm in training has one number only, which PyTorch refuses."""
    return x.shape[0] * x.shape[2] * x.shape[3] == 1


def _of_batch(norm: Norm | None) -> bool:
    """Whether the statistics of the batch count, and not the running ones."""
    return norm is not None and norm.momentum is not None


@torch.library.custom_op("attendo::attention", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def _attention(
    x: Tensor,
    tensors: Sequence[Tensor | None],
    norm_eps: float,
    mean: bool,
    maximum: bool,
    maximum_first: bool,
    residual: Tensor | None,
    relu: bool,
    blend: Tensor | None = None,
) -> Tensor:
    if residual is not None and residual.stride() != x.stride():
        residual = torch.empty_like(x).copy_(residual)
    *_, norm_mean, norm_var = tensors
    norm = None if norm_mean is None else Norm(None, None, norm_mean, norm_var, norm_eps)
    weights = GateWeights(norm=norm, mean=mean, maximum=maximum, maximum_first=maximum_first).holding(tensors)
    return find(x).attention(x, weights.contiguous(), residual, relu, blend=blend)  # type: ignore[misc]


@_attention.register_fake
def _(
    x: Tensor,
    tensors: Sequence[Tensor | None],
    norm_eps: float,
    mean: bool,
    maximum: bool,
    maximum_first: bool,
    residual: Tensor | None,
    relu: bool,
    blend: Tensor | None = None,
) -> Tensor:
    return torch.empty_like(x)
