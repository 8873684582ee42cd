"""Mean, maximum and ties of the maximum along one axis of a map, one read; and their gradients, one read and write.

Along positions this is ``channel_stats``, along channels ``spatial_stats``: the looped axis of ``tiles``, which a gate
may scale. Running numbers are float32 and as large as the tile, so that threads meet once, at the end; where the looped
axis is one step (``ONCE``) there are none.
"""

# ruff: noqa: ANN001, ANN201 - Triton has no types to annotate a kernel with
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from attendo.kernels.gpu.tiles import axes, before, counted, indices, largest, place, span


@triton.jit
def step(
    from_fixed,
    gate,
    there,
    start,
    end,
    looped_stride,
    LOOPED: tl.constexpr,
    LOOPED_BLOCK: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Return the numbers of a step in float32, times their gate; the same for their maximum; and whether they count."""
    j = indices(start, LOOPED_BLOCK, WIDE)
    inside = before(j, end, LOOPED_BLOCK, EVEN)
    valid = tl.expand_dims(inside, 1 - LOOPED)
    v = tl.load(from_fixed + tl.expand_dims(j * looped_stride, 1 - LOOPED), mask=there & valid, other=0.0)
    if gate is not None:
        g = tl.load(gate + j, mask=inside, other=0.0).to(tl.float32)
        # as PyTorch would store the product: ties of the maximum depend on it
        v = (v.to(tl.float32) * tl.expand_dims(g, 1 - LOOPED)).to(v.dtype)
    v = v.to(tl.float32)
    return v, tl.where(valid, v, float("-inf")), valid


@triton.jit
def statistics(
    x,
    gate,
    mean,
    maximum,
    ties,
    rows,
    columns,
    gate_sample,
    out_sample,
    ties_sample,
    splits,
    divisor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LOOPED: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    ONCE: tl.constexpr,
    EVEN: tl.constexpr,
    STAGES: tl.constexpr,
    unit=None,
):
    """Write mean, maximum and ties of every index of the fixed axis; their parts, a split each, where splits > 1.

    ``ONCE``: a tile holds the whole looped axis. ``EVEN``: steps fill that axis to its end. ``STAGES``: steps whose
    loads are on their way.
    """
    FIXED_BLOCK: tl.constexpr = ROWS if LOOPED == 1 else COLUMNS
    LOOPED_BLOCK: tl.constexpr = COLUMNS if LOOPED == 1 else ROWS
    COUNT: tl.constexpr = ties is not None
    fixed, looped, fixed_stride, looped_stride = axes(rows, columns, LOOPED, ALIGN)
    n, split, first = place(unit, fixed, splits, FIXED_BLOCK)
    f = indices(first, FIXED_BLOCK, WIDE)
    there = tl.expand_dims(f < fixed, LOOPED)
    from_fixed = x + n * rows * columns + tl.expand_dims(f * fixed_stride, LOOPED)
    if gate is not None:
        gate += n * gate_sample
    if ONCE:
        sums, best, valid = step(from_fixed, gate, there, 0, looped, looped_stride, LOOPED, LOOPED_BLOCK, EVEN, WIDE)
        counts = tl.broadcast_to(tl.where(valid, 1.0, 0.0), [ROWS, COLUMNS])
    else:
        begin, end = span(looped, split, splits, LOOPED_BLOCK, WIDE)
        sums = tl.zeros([ROWS, COLUMNS], tl.float32)
        best = tl.full([ROWS, COLUMNS], float("-inf"), tl.float32)
        counts = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in tl.range(begin, end, LOOPED_BLOCK, num_stages=STAGES):
            v, top, valid = step(from_fixed, gate, there, start, end, looped_stride, LOOPED, LOOPED_BLOCK, EVEN, WIDE)
            sums, best, counts = counted(sums, best, counts, v, top, 1.0, valid, COUNT)
    top = largest(best, LOOPED)
    to = n * out_sample + split * fixed + f
    tl.store(mean + to, tl.sum(sums, LOOPED) / divisor, mask=f < fixed)
    tl.store(maximum + to, top, mask=f < fixed)
    if COUNT:
        count = tl.sum(tl.where(best == tl.expand_dims(top, LOOPED), counts, 0.0), LOOPED)
        tl.store(ties + n * ties_sample + split * fixed + f, count, mask=f < fixed)


@triton.jit
def combine(
    sums,
    maxima,
    counts,
    mean,
    maximum,
    ties,
    parts,
    fixed,
    out_sample,
    ties_sample,
    divisor,
    PARTS_BLOCK: tl.constexpr,
    FIXED_BLOCK: tl.constexpr,
    unit=None,
):
    """Join parts (samples, parts, fixed) in their order; of sums alone where there are no maxima."""
    COUNT: tl.constexpr = counts is not None
    n, _, first = place(unit, fixed, 1, FIXED_BLOCK)
    f = first + tl.arange(0, FIXED_BLOCK)
    total = tl.zeros([PARTS_BLOCK, FIXED_BLOCK], tl.float32)
    best = tl.full([PARTS_BLOCK, FIXED_BLOCK], float("-inf"), tl.float32)
    count = tl.zeros([PARTS_BLOCK, FIXED_BLOCK], tl.float32)
    for start in range(0, parts, PARTS_BLOCK):
        part = start + tl.arange(0, PARTS_BLOCK)
        valid = (part < parts)[:, None] & (f < fixed)[None, :]
        where = n * parts * fixed + part[:, None] * fixed + f[None, :]
        more = tl.load(sums + where, mask=valid, other=0.0)
        if maxima is None:
            total += more
        else:
            top = tl.load(maxima + where, mask=valid, other=float("-inf"))
            ones = 0.0
            if COUNT:
                ones = tl.load(counts + where, mask=valid, other=0.0)
            total, best, count = counted(total, best, count, more, top, ones, valid, COUNT)
    to = n * out_sample + f
    tl.store(mean + to, tl.sum(total, 0) / divisor, mask=f < fixed)
    if maxima is not None:
        top = largest(best, 0)
        tl.store(maximum + to, top, mask=f < fixed)
        if COUNT:
            tied = tl.sum(tl.where(best == top[None, :], count, 0.0), 0)
            tl.store(ties + n * ties_sample + f, tied, mask=f < fixed)


@triton.jit
def pool(
    first,
    end,
    x,
    gate,
    mean,
    maximum,
    sums,
    maxima,
    arrived,
    rows,
    columns,
    splits,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LOOPED: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Write mean and maximum for the units from first to end, beside other programs of the same launch.

    Where the looped axis is split, ``sums`` and ``maxima`` are there for the parts. Who brings the last part of a block
    joins them: ``arrived`` counts the parts of each block, from 0.
    """
    FIXED_BLOCK: tl.constexpr = ROWS if LOOPED == 1 else COLUMNS
    fixed, looped, _, _ = axes(rows, columns, LOOPED, ALIGN)
    PARTS: tl.constexpr = sums is not None
    to_mean = sums if PARTS else mean
    to_maximum = maxima if PARTS else maximum
    to_sample = splits * fixed if PARTS else fixed
    divisor = 1 if PARTS else looped
    for unit in range(first, end):
        statistics(
            x,
            gate,
            to_mean,
            to_maximum,
            None,
            rows,
            columns,
            looped,
            to_sample,
            0,
            splits,
            divisor,
            ROWS,
            COLUMNS,
            LOOPED,
            ALIGN,
            WIDE,
            False,
            False,
            1,
            unit,
        )
        if PARTS:
            blocks = tl.cdiv(fixed, FIXED_BLOCK)
            block = unit // (blocks * splits) * blocks + unit % blocks
            tl.debug_barrier()
            if tl.atomic_add(arrived + block, 1, sem="acq_rel") == splits - 1:
                PARTS_BLOCK: tl.constexpr = ROWS * COLUMNS // FIXED_BLOCK
                combine(
                    sums,
                    maxima,
                    None,
                    mean,
                    maximum,
                    None,
                    splits,
                    fixed,
                    fixed,
                    0,
                    looped,
                    PARTS_BLOCK,
                    FIXED_BLOCK,
                    block,
                )


@triton.jit
def statistics_backward(
    mean_gradient,
    maximum_gradient,
    x,
    gate,
    maximum,
    ties,
    gradient,
    gate_gradient,
    rows,
    columns,
    gate_sample,
    out_sample,
    ties_sample,
    splits,
    divisor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LOOPED: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Write the gradient of the map, and of the gate (samples, splits, fixed), where there is one.

    Here the gate lies along the fixed axis, and what was pooled along the looped one. The mean shares its gradient
    among all, the maximum among those that reach it. Where the maximum is NaN nothing equals it, and 0 ties make the
    gradient NaN, as in PyTorch: hence a product and not a choice.
    """
    FIXED_BLOCK: tl.constexpr = ROWS if LOOPED == 1 else COLUMNS
    LOOPED_BLOCK: tl.constexpr = COLUMNS if LOOPED == 1 else ROWS
    fixed, looped, fixed_stride, looped_stride = axes(rows, columns, LOOPED, ALIGN)
    n, split, first = place(None, fixed, splits, FIXED_BLOCK)
    begin, end = span(looped, split, splits, LOOPED_BLOCK, WIDE)
    f = indices(first, FIXED_BLOCK, WIDE)
    there = tl.expand_dims(f < fixed, LOOPED)
    from_fixed = n * rows * columns + tl.expand_dims(f * fixed_stride, LOOPED)
    if gate is not None:
        g = tl.load(gate + n * gate_sample + f, mask=f < fixed, other=0.0).to(tl.float32)
        factor = tl.expand_dims(g, LOOPED)
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(begin, end, LOOPED_BLOCK):
        j = indices(start, LOOPED_BLOCK, WIDE)
        inside = j < end
        of = n * out_sample + j
        count = tl.load(ties + n * ties_sample + j, mask=inside, other=1.0)
        flat = tl.zeros([LOOPED_BLOCK], tl.float32)
        share = tl.zeros([LOOPED_BLOCK], tl.float32)
        if mean_gradient is not None:
            flat = tl.load(mean_gradient + of, mask=inside, other=0.0).to(tl.float32) / divisor
        if maximum_gradient is not None:
            share = tl.load(maximum_gradient + of, mask=inside, other=0.0).to(tl.float32) / count
        top = tl.load(maximum + of, mask=inside, other=0.0).to(tl.float32)
        where = from_fixed + tl.expand_dims(j * looped_stride, 1 - LOOPED)
        valid = there & tl.expand_dims(inside, 1 - LOOPED)
        v = tl.load(x + where, mask=valid, other=0.0).to(tl.float32)
        gated = v
        if gate is not None:
            gated = (v * factor).to(x.dtype.element_ty).to(tl.float32)
        reached = (gated == tl.expand_dims(top, 1 - LOOPED)).to(tl.float32)
        up = tl.expand_dims(flat, 1 - LOOPED) + reached * tl.expand_dims(share, 1 - LOOPED)
        if gate is not None:
            total += up * v
            up = up * factor
        tl.store(gradient + where, up, mask=valid)
    if gate is not None:
        to = n * splits * fixed + split * fixed + f
        tl.store(gate_gradient + to, tl.sum(total, LOOPED), mask=f < fixed)
