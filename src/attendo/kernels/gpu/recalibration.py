"""The map times its gates, plus a shortcut, rectified; and all its gradients, each map read or written once.

A gate lies along the rows or along the columns of the map (``tiles``); either may be absent. Whatever a step reads is
asked for before it stores: the device keeps a program's loads and stores in the order they are written in, and what
stands behind a store would wait for memory a second time.
"""

# ruff: noqa: ANN001, ANN201 - Triton has no types to annotate a kernel with
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from attendo.kernels.gpu.tiles import axes, indices, place, span


@triton.jit
def scale(
    x,
    across,
    along,
    residual,
    out,
    rows,
    columns,
    across_sample,
    along_sample,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RELU: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    unit=None,
):
    """Write x times ``across`` (one factor a row) and ``along`` (one a column), plus residual, rectified."""
    columns = columns // ALIGN * ALIGN
    n, split, first = place(unit, columns, tl.cdiv(rows, ROWS), COLUMNS)
    i, j = indices(split * ROWS, ROWS, WIDE), indices(first, COLUMNS, WIDE)
    where = n * rows * columns + i[:, None] * columns + j[None, :]
    valid = (i < rows)[:, None] & (j < columns)[None, :]
    v = tl.load(x + where, mask=valid, other=0.0).to(tl.float32)
    if residual is not None:
        more = tl.load(residual + where, mask=valid, other=0.0).to(tl.float32)
    if across is not None:
        v *= tl.load(across + n * across_sample + i, mask=i < rows, other=0.0).to(tl.float32)[:, None]
    if along is not None:
        v *= tl.load(along + n * along_sample + j, mask=j < columns, other=0.0).to(tl.float32)[None, :]
    if residual is not None:
        v += more
    if RELU:
        v = tl.where(v < 0.0, 0.0, v)  # NaN stays
    tl.store(out + where, v, mask=valid)


@triton.jit
def scale_backward(
    up,
    x,
    fixed_gate,
    looped_gate,
    out,
    gradient,
    fixed_gradient,
    looped_gradient,
    residual_gradient,
    rows,
    columns,
    fixed_sample,
    looped_sample,
    splits,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LOOPED: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Write the gradients that have somewhere to go.

    That of the gate along the fixed axis comes in parts (samples, splits, fixed), that of the other in parts
    (samples, blocks of the fixed axis, looped). ``out`` is the result, where it was rectified.
    """
    FIXED_BLOCK: tl.constexpr = ROWS if LOOPED == 1 else COLUMNS
    LOOPED_BLOCK: tl.constexpr = COLUMNS if LOOPED == 1 else ROWS
    fixed, looped, fixed_stride, looped_stride = axes(rows, columns, LOOPED, ALIGN)
    n, split, first = place(None, fixed, splits, FIXED_BLOCK)
    begin, end = span(looped, split, splits, LOOPED_BLOCK, WIDE)
    f = indices(first, FIXED_BLOCK, WIDE)
    there = tl.expand_dims(f < fixed, LOOPED)
    from_fixed = n * rows * columns + tl.expand_dims(f * fixed_stride, LOOPED)
    if fixed_gate is not None:
        g = tl.load(fixed_gate + n * fixed_sample + f, mask=f < fixed, other=0.0).to(tl.float32)
        factor = tl.expand_dims(g, LOOPED)
    if fixed_gradient is not None:
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(begin, end, LOOPED_BLOCK):
        j = indices(start, LOOPED_BLOCK, WIDE)
        inside = j < end
        where = from_fixed + tl.expand_dims(j * looped_stride, 1 - LOOPED)
        valid = there & tl.expand_dims(inside, 1 - LOOPED)
        u = tl.load(up + where, mask=valid, other=0.0).to(tl.float32)
        if fixed_gradient is not None or looped_gradient is not None:
            v = tl.load(x + where, mask=valid, other=0.0).to(tl.float32)
        if looped_gate is not None:
            other = tl.load(looped_gate + n * looped_sample + j, mask=inside, other=0.0).to(tl.float32)
        if out is not None:
            u = tl.where(tl.load(out + where, mask=valid, other=0.0).to(tl.float32) <= 0.0, 0.0, u)
        if residual_gradient is not None:
            tl.store(residual_gradient + where, u, mask=valid)
        passed = u
        if looped_gate is not None:
            passed = u * tl.expand_dims(other, 1 - LOOPED)
        if gradient is not None:
            scaled = passed
            if fixed_gate is not None:
                scaled = passed * factor
            tl.store(gradient + where, scaled, mask=valid)
        if fixed_gradient is not None:
            total += passed * v
        if looped_gradient is not None:
            product = u * v
            if fixed_gate is not None:
                product = product * factor
            block = n * tl.cdiv(fixed, FIXED_BLOCK) + first // FIXED_BLOCK
            tl.store(looped_gradient + block * looped + j, tl.sum(product, 1 - LOOPED), mask=inside)
    if fixed_gradient is not None:
        to = n * splits * fixed + split * fixed + f
        tl.store(fixed_gradient + to, tl.sum(total, LOOPED), mask=f < fixed)
