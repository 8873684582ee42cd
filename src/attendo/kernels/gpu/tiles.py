"""What all kernels share: how a map is cut into tiles, and a maximum that keeps NaN.

A map is ``samples`` matrices of ``rows`` times ``columns``, columns adjacent in memory: rows are channels and columns
positions in the contiguous layout, the other way round in channels_last. Every program stays with one sample and one
block of its rows or columns (the fixed axis) and goes along the other (the looped axis), all of it or one split. Which
axis is looped is a constant of the kernel: ``LOOPED`` = 0 for rows, 1 for columns. So one kernel serves both layouts.

What a program computes depends on the shape alone, nothing is added atomically, and what several programs share they
write apart, for ``combine`` to add in order: results are the same bits every time.
"""

# ruff: noqa: ANN001, ANN201 - Triton has no types to annotate a kernel with
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def place(unit, fixed, splits, FIXED_BLOCK: tl.constexpr):
    """Say which sample, split and first index of the fixed axis a unit of work has; None: that of this program."""
    if unit is None:
        unit = tl.program_id(0)
    blocks = tl.cdiv(fixed, FIXED_BLOCK)
    rest = unit // blocks
    return (rest // splits).to(tl.int64), rest % splits, unit % blocks * FIXED_BLOCK


@triton.jit
def axes(rows, columns, LOOPED: tl.constexpr, ALIGN: tl.constexpr):
    """Return sizes and strides of the fixed and of the looped axis.

    Triton notices by itself only that a number is a multiple of 16; 14 x 14 = 4 x 49 would be read one by one.
    """
    columns = columns // ALIGN * ALIGN
    if LOOPED == 1:
        return rows, columns, columns, 1
    else:  # noqa: RET505 - Triton needs it
        return columns, rows, 1, columns


@triton.jit
def span(looped, split, splits, LOOPED_BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """Say where a split of the looped axis begins and ends."""
    if WIDE:
        split = split.to(tl.int64)
    steps = tl.cdiv(tl.cdiv(looped, LOOPED_BLOCK), splits)
    begin = split * steps * LOOPED_BLOCK
    return begin, tl.minimum(begin + steps * LOOPED_BLOCK, looped)


@triton.jit
def indices(first, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """Count from ``first``, in 64 bits where a sample has 2^31 elements or more."""
    i = tl.arange(0, BLOCK)
    if WIDE:
        i = i.to(tl.int64)
    return first + i


@triton.jit
def before(j, end, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    """Say which indices of a step come before the end; ``EVEN``: all, and the compiler drops what asks."""
    if EVEN:
        return tl.full([BLOCK], True, tl.int1)
    else:  # noqa: RET505 - Triton needs it
        return j < end


@triton.jit
def larger(a, b):
    """Return the larger of two, NaN being larger than all."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def largest(v, AXIS: tl.constexpr):
    """Maximum along an axis, NaN where there is one: ``tl.max`` by itself drops it."""
    return tl.reduce(v, AXIS, larger)


@triton.jit
def counted(sums, best, counts, total, top, count, valid, COUNT: tl.constexpr):
    """Take further sums, maxima and their counts into the running ones, NaN being the largest of all.

    A count belongs to its maximum; where the maximum is NaN it means nothing.
    """
    new = larger(best, top)
    if COUNT:
        kept = tl.where(best == new, counts, 0.0)
        # NaN equals nothing: 12.4 instructions per element instead of the 14.8 of "and" (sm_90, Triton 3.9, 14 x 14)
        equal = tl.where(valid, top, float("nan")) == new
        counts = kept + tl.where(equal, count, 0.0)
    return sums + total, new, counts
