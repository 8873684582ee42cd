"""What the native functions for whole attentions are told: sizes, flags and addresses, packed as in their structs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attendo.kernels.cpu import library
from attendo.kernels.gates import GateWeights, Norm

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}


class Kept(NamedTuple):
    """What the gradients of a whole attention need of its forward pass, in the number computed with but for ``stats``.

    Attributes:
        norm: scale and shift of the norm before it, and the mean and variance they come from, (4, C).
        means: of what that norm was given, (N, C).
        pooled: statistics of the channels, (N, 1 or 2, C).
        raw: what the ReLU between the fully connected layers was given, (N, 1 or 2, hidden).
        gate: of the channels, (N, C).
        stats: mean and maximum over channels, (N, 2, H, W).
        ties: of that maximum, (N, H, W).
    """

    norm: Tensor | None
    means: Tensor | None
    pooled: Tensor | None
    raw: Tensor | None
    gate: Tensor | None
    stats: Tensor | None
    ties: Tensor | None


class Gradients(NamedTuple):
    """Gradients of a whole attention, None for what it has not or was not asked for.

    Attributes:
        x: of the map.
        residual: of the shortcut.
        norm: of weight and bias of the norm before it, (2, C).
        logits: of what the channel gate's sigmoid was given, (N, C).
        raw: of ``Kept.raw``.
        conv: of the convolution over channels, per sample: (N, kernel size).
        blend: numbers whose sum it is.
    """

    x: Tensor | None
    residual: Tensor | None
    norm: Tensor | None = None
    logits: Tensor | None = None
    raw: Tensor | None = None
    conv: Tensor | None = None
    blend: Tensor | None = None


NOTHING = Kept(*(None,) * len(Kept._fields))


def pack_attention(
    x: Tensor,
    weights: GateWeights,
    norm: Norm | None,
    kept: Kept,
    known: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    out: Tensor | None,
    blend: Tensor | None,
) -> bytes:
    """Pack a call of ``attention``.

    Args:
        x: feature map.
        weights: of the gates, contiguous and of the dtype of x.
        norm: before them.
        kept: where to leave what the gradients need.
        known: the spatial gate, where all that remains is to multiply by it and by ``kept.gate``.
        residual: the shortcut.
        relu: whether to rectify.
        out: where the result goes; None if the call ends with the spatial statistics.
        blend: how much of the recalibrated map to take, one number.
    """
    fc1, conv = weights.fc1, weights.conv
    if norm is None:
        before: tuple[float, ...] = (0, 0, 0, 0, 0.0, 0)
    else:
        weight, bias, mean, var = norm[:4] if norm.momentum is None else (norm.weight, norm.bias, None, None)
        before = (_address(weight), _address(bias), _address(mean), _address(var), norm.eps, 1)
    eps = 0.0 if weights.norm is None else weights.norm.eps
    own: tuple[Tensor | None, ...] = weights.tensors()
    spatial, later = weights.spatial, kept
    if known is not None:  # then neither its weights nor its statistics are asked for
        own, spatial, later = (*own[:5], *[None] * 5), None, kept._replace(stats=None, ties=None)
    return library.ATTENTION.pack(
        *(*x.shape, DTYPES[x.dtype], not x.is_contiguous(), torch.get_num_threads(), relu),
        *(x.data_ptr(), 0 if residual is None else residual.data_ptr(), 0 if out is None else out.data_ptr()),
        *[0 if tensor is None else tensor.data_ptr() for tensor in own],
        *(eps, 0 if fc1 is None else fc1.shape[0], 0 if conv is None else conv.shape[-1]),
        *(0 if spatial is None else spatial.shape[-1], weights.mean, weights.maximum, weights.maximum_first),
        *before,
        *[0 if tensor is None else tensor.data_ptr() for tensor in later],
        *(0 if known is None else known.data_ptr(), 0 if blend is None else blend.data_ptr()),
    )


def pack_backward(
    up: Tensor,
    x: Tensor,
    out: Tensor | None,
    weights: GateWeights,
    eps: float,
    kept: Kept,
    spatial: tuple[Tensor | None, Tensor | None],
    found: Gradients,
    of_spatial: Tensor | None,
    masked: bool,
    blend: Tensor | None,
) -> bytes:
    """Pack a call of ``attention_backward``; the arguments are those of ``Calls.attention_backward``.

    Args:
        up: see there, as are ``x``, ``out``, ``weights``, ``kept`` and ``spatial``.
        x: see there.
        out: see there.
        weights: see there.
        eps: of the norm before.
        kept: see there.
        spatial: see there.
        found: where the gradients go.
        of_spatial: where that of the spatial gate goes; the call ends with it.
        masked: whether ``found.residual`` is known already.
        blend: see there.
    """
    fc1, conv = weights.fc1, weights.conv
    return library.ATTENTION_BACKWARD.pack(
        *(*x.shape, DTYPES[x.dtype], not x.is_contiguous(), torch.get_num_threads()),
        *map(_address, (up, x, out, fc1, weights.fc2, conv, *kept, *spatial, *found[:-1], of_spatial)),
        *(eps, 0 if fc1 is None else fc1.shape[0], 0 if conv is None else conv.shape[-1]),
        *(weights.mean, weights.maximum, masked, _address(blend), _address(found.blend)),
    )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
