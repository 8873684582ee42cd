"""A whole mechanism in one call of a kernel, for inference."""

from __future__ import annotations

from torch import Tensor

from attendo.functional.route import Route, route
from attendo.kernels.gates import GateWeights
from attendo.kernels.selection import find


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
    if route(x, (residual,), tensors) is not Route.KERNEL or not all(t.is_contiguous() for t in tensors):
        return None
    return find(x).attention(x, weights, residual, relu, x if inplace else None)
