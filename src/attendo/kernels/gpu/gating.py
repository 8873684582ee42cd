"""The gates of an attention from its statistics, a block of them at a time: what ``GateWeights`` describes.

Statistics, hidden numbers and gates are float32, (samples, numbers of a sample) each.
"""

# ruff: noqa: ANN001, ANN201 - Triton has no types to annotate a kernel with
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from attendo.kernels.gpu.tiles import indices


@triton.jit
def product(vectors, matrix, n, valid, i, size, length, LENGTH: tl.constexpr):
    """Return the vectors (samples, length) of samples n times the rows i of a matrix (size, length)."""
    total = tl.zeros([n.shape[0], i.shape[0]], tl.float32)
    for start in range(0, length, LENGTH):
        j = start + tl.arange(0, LENGTH)
        v = tl.load(vectors + n[:, None] * length + j[None, :], mask=valid[:, None] & (j < length)[None, :], other=0.0)
        inside = (i < size)[None, :] & (j < length)[:, None]
        m = tl.load(matrix + i[None, :].to(tl.int64) * length + j[:, None], mask=inside, other=0.0)
        total = tl.dot(v, m.to(tl.float32), total, input_precision="ieee")
    return total


@triton.jit
def rectified(v, bias, i, size):
    """Add the bias of the numbers i, if there is one, and rectify; NaN stays."""
    if bias is not None:
        v += tl.load(bias + i, mask=i < size, other=0.0).to(tl.float32)[None, :]
    return tl.where(v < 0.0, 0.0, v)


@triton.jit
def hide(
    n, valid, first, mean, maximum, fc1, fc1_bias, hidden, size, channels, BLOCK: tl.constexpr, LENGTH: tl.constexpr
):
    """Write a block of hidden numbers: the second layer is linear, so the statistics may pass through it as a sum."""
    i = first + tl.arange(0, BLOCK)
    total = tl.zeros([n.shape[0], BLOCK], tl.float32)
    if mean is not None:
        total += rectified(product(mean, fc1, n, valid, i, size, channels, LENGTH), fc1_bias, i, size)
    if maximum is not None:
        total += rectified(product(maximum, fc1, n, valid, i, size, channels, LENGTH), fc1_bias, i, size)
    tl.store(hidden + n[:, None] * size + i[None, :], total, mask=valid[:, None] & (i < size)[None, :])


@triton.jit
def excite(
    n,
    valid,
    first,
    hidden,
    fc2,
    fc2_bias,
    gate,
    size,
    channels,
    BOTH: tl.constexpr,
    BLOCK: tl.constexpr,
    LENGTH: tl.constexpr,
):
    """Write a block of channel gates from the hidden numbers; ``BOTH``: the bias counts for two statistics."""
    c = first + tl.arange(0, BLOCK)
    total = product(hidden, fc2, n, valid, c, channels, size, LENGTH)
    if fc2_bias is not None:
        bias = tl.load(fc2_bias + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
        total += bias * 2.0 if BOTH else bias
    tl.store(
        gate + n[:, None] * channels + c[None, :], tl.sigmoid(total), mask=valid[:, None] & (c < channels)[None, :]
    )


@triton.jit
def excite_neighbours(n, valid, first, mean, maximum, conv, gate, taps, channels, BLOCK: tl.constexpr):
    """Write a block of channel gates, each from the statistics of its neighbours."""
    c = first + tl.arange(0, BLOCK)
    total = tl.zeros([n.shape[0], BLOCK], tl.float32)
    for j in range(taps):
        tap = tl.load(conv + j).to(tl.float32)
        i = c + j - taps // 2
        inside = valid[:, None] & ((i >= 0) & (i < channels))[None, :]
        where = n[:, None] * channels + i[None, :]
        if mean is not None:
            total += tap * tl.load(mean + where, mask=inside, other=0.0)
        if maximum is not None:
            total += tap * tl.load(maximum + where, mask=inside, other=0.0)
    tl.store(
        gate + n[:, None] * channels + c[None, :], tl.sigmoid(total), mask=valid[:, None] & (c < channels)[None, :]
    )


@triton.jit
def look(
    unit,
    mean,
    maximum,
    spatial,
    norm_weight,
    norm_bias,
    norm_mean,
    norm_var,
    eps,
    plane,
    height,
    width,
    KERNEL: tl.constexpr,
    MAXIMUM_FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Write a block of the spatial gate: statistics of positions convolved, normalised, through the sigmoid."""
    positions = height * width
    blocks = tl.cdiv(positions, BLOCK)
    p = indices(unit % blocks * BLOCK, BLOCK, WIDE)
    at = (unit // blocks).to(tl.int64) * positions + p
    h, w = p // width, p % width
    of_mean = tl.zeros([BLOCK], tl.float32)
    of_maximum = tl.zeros([BLOCK], tl.float32)
    to_mean = spatial + (KERNEL * KERNEL if MAXIMUM_FIRST else 0)
    to_maximum = spatial + (0 if MAXIMUM_FIRST else KERNEL * KERNEL)
    for i in range(KERNEL):
        down = i - KERNEL // 2
        there = (p < positions) & (h + down >= 0) & (h + down < height)
        for j in tl.static_range(0, KERNEL):
            right = j - KERNEL // 2
            inside = there & (w + right >= 0) & (w + right < width)
            where = at + down * width + right
            of_mean += tl.load(mean + where, mask=inside, other=0.0) * tl.load(to_mean + i * KERNEL + j).to(tl.float32)
            tap = tl.load(to_maximum + i * KERNEL + j).to(tl.float32)
            of_maximum += tl.load(maximum + where, mask=inside, other=0.0) * tap
    v = of_mean + of_maximum
    if norm_mean is not None:
        scale = 1.0 / tl.sqrt(tl.load(norm_var).to(tl.float32) + eps)
        shift = -tl.load(norm_mean).to(tl.float32) * scale
        if norm_weight is not None:
            factor = tl.load(norm_weight).to(tl.float32)
            scale *= factor
            shift = shift * factor + tl.load(norm_bias).to(tl.float32)
        v = v * scale + shift
    tl.store(plane + at, tl.sigmoid(v), mask=p < positions)
