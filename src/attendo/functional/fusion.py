"""A whole mechanism in one call of a kernel, for inference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attendo.functional.recalibration import overwritten
from attendo.functional.route import Route, route, symbolic
from attendo.kernels.gates import GateWeights
from attendo.kernels.selection import find, straight


def attend(
    x: Tensor, weights: GateWeights, residual: Tensor | None = None, relu: bool = False, inplace: bool = False
) -> Tensor | None:
    """Compute the gates that ``weights`` describe and recalibrate x by them, the map coming from memory once.

    Args:
        x: feature map, (N, C, H, W).
        weights: what computes the gates.
        residual: as in ``recalibrate``.
        relu: as in ``recalibrate``.
        inplace: as in ``recalibrate``.

    Returns:
        The result; None where no kernel does this in one call, or a gradient is needed.
    """
    tensors = weights.tensors()
    if symbolic(x) or x.ndim != 4 or not weights.fit(x.shape[1]):  # the definition says what is wrong
        return None
    if torch.compiler.is_compiling():
        if torch.is_grad_enabled() or route(x, (residual,), _there(tensors)) is not Route.OPERATOR or not x.is_cpu:
            return None
        return torch.ops.attendo.attention(x, tensors, *weights[len(tensors) :], residual, relu)
    if not straight(x, residual, tensors) and route(x, (residual,), _there(tensors)) is not Route.KERNEL:
        return None
    attention = find(x).attention
    if attention is None:
        return None
    spatial = weights.spatial
    if spatial is not None and not spatial.is_contiguous():  # that of a channels_last network
        weights = weights.contiguous()
    return attention(x, weights, residual, relu, overwritten(x) if inplace else None)


def _there(tensors: tuple[Tensor | None, ...]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


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
) -> Tensor:
    if residual is not None and residual.stride() != x.stride():
        residual = torch.empty_like(x).copy_(residual)
    fields = (*tensors, norm_eps, mean, maximum, maximum_first)
    weights = GateWeights._make(fields).contiguous()
    return find(x).attention(x, weights, residual, relu)  # type: ignore[misc]


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
) -> Tensor:
    return torch.empty_like(x)
