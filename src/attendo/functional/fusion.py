"""A whole mechanism in one call of a kernel, for inference."""

from __future__ import annotations

import torch
from torch import Tensor

from attendo.functional.recalibration import overwritten
from attendo.functional.route import Route, route
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
    if not straight(x, residual, tensors):
        given = [tensor for tensor in tensors if tensor is not None]
        if torch.compiler.is_compiling() or route(x, (residual,), given) is not Route.KERNEL:
            return None
    attention = find(x).attention
    if attention is None:
        return None
    spatial = weights.spatial
    if spatial is not None and not spatial.is_contiguous():  # that of a channels_last network
        weights = weights.contiguous()
    return attention(x, weights, residual, relu, overwritten(x) if inplace else None)
