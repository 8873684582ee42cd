"""A whole attention in one launch, for inference: the map comes from memory once, its further reads from L2.

Every group of samples (``tickets``) goes through phases, each a number of tasks:

    hidden     statistics of channels through the first layer          waits for pool
    look       the spatial gate from the statistics of positions       waits for gather
    pool       mean and maximum of every channel
    excite     the channel gate                                        waits for hidden, or pool where there is no layer
    gather     mean and maximum of every position, gated by channel    waits for excite, if there is a channel gate
    scale      the map times its gates, into the result                waits for the last gate: look or excite

This is their order within a step. ``pool`` has no lag, ``hidden`` and ``excite`` have 1, and so on: whoever waits comes
later, by its lag or within the step. When ``scale`` writes, all reads of its group's maps are over, for each phase has
waited for the one before: the result may lie where the map was.
"""

# ruff: noqa: ANN001, ANN201 - Triton has no types to annotate a kernel with
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from attendo.kernels.gpu.gating import excite, excite_neighbours, hide, look
from attendo.kernels.gpu.pooling import pool
from attendo.kernels.gpu.recalibration import scale
from attendo.kernels.gpu.tickets import EXCITE, GATHER, HIDDEN, LOOK, POOL, Schedule, finish, part, portion, turn, wait


@triton.jit(do_not_specialize=Schedule._fields)
def attention(
    x,
    residual,
    out,
    fc1,
    fc1_bias,
    fc2,
    fc2_bias,
    conv,
    spatial,
    norm_weight,
    norm_bias,
    norm_mean,
    norm_var,
    eps,
    mean,
    maximum,
    sums,
    maxima,
    hidden,
    gate,
    position_mean,
    position_maximum,
    position_sums,
    position_maxima,
    plane,
    counters,
    arrived,
    position_arrived,
    rows,
    columns,
    height,
    width,
    hidden_size,
    taps,
    splits,
    position_splits,
    samples,
    group,
    groups,
    look_units,
    pool_units,
    pool_each,
    gather_units,
    gather_each,
    scale_units,
    scale_each,
    hidden_tasks,
    look_tasks,
    pool_tasks,
    excite_tasks,
    gather_tasks,
    scale_tasks,
    MEAN: tl.constexpr,
    MAXIMUM: tl.constexpr,
    MAXIMUM_FIRST: tl.constexpr,
    RELU: tl.constexpr,
    GATHER_LAG: tl.constexpr,
    SCALE_LAG: tl.constexpr,
    LAST: tl.constexpr,
    KERNEL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SAMPLES: tl.constexpr,
    HIDDEN_BLOCK: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr,
    LENGTH: tl.constexpr,
    HIDDEN_LENGTH: tl.constexpr,
    LOOK_BLOCK: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Take tickets and do their tasks until there are none left."""
    CHANNEL: tl.constexpr = gate is not None
    channels = columns if LAST else rows
    seen_mean = mean if MEAN else None
    seen_maximum = maximum if MAXIMUM else None
    across = plane if LAST else gate
    along = gate if LAST else plane
    step_tickets = hidden_tasks + look_tasks + pool_tasks + excite_tasks + gather_tasks + scale_tasks
    ticket = tl.atomic_add(counters, 1, sem="relaxed")
    while ticket < (groups + SCALE_LAG) * step_tickets:
        step = ticket // step_tickets
        task = ticket % step_tickets
        if fc1 is not None:
            if turn(task, hidden_tasks, step - 1, groups):
                wait(counters, step - 1, POOL, pool_tasks)
                n, valid, first = part(task, hidden_size, step - 1, group, samples, SAMPLES, HIDDEN_BLOCK)
                hide(
                    n,
                    valid,
                    first,
                    seen_mean,
                    seen_maximum,
                    fc1,
                    fc1_bias,
                    hidden,
                    hidden_size,
                    channels,
                    HIDDEN_BLOCK,
                    LENGTH,
                )
                finish(counters, step - 1, HIDDEN)
            task -= hidden_tasks
        if spatial is not None:
            g = step - GATHER_LAG - 1
            if turn(task, look_tasks, g, groups):
                wait(counters, g, GATHER, gather_tasks)
                unit, end = portion(task, 1, look_units, g, group, samples)
                if unit < end:
                    look(
                        unit,
                        position_mean,
                        position_maximum,
                        spatial,
                        norm_weight,
                        norm_bias,
                        norm_mean,
                        norm_var,
                        eps,
                        plane,
                        height,
                        width,
                        KERNEL,
                        MAXIMUM_FIRST,
                        LOOK_BLOCK,
                        WIDE,
                    )
                finish(counters, g, LOOK)
            task -= look_tasks
        if CHANNEL:
            if turn(task, pool_tasks, step, groups):
                first, end = portion(task, pool_each, pool_units, step, group, samples)
                pool(
                    first,
                    end,
                    x,
                    None,
                    mean,
                    maximum,
                    sums,
                    maxima,
                    arrived,
                    rows,
                    columns,
                    splits,
                    ROWS,
                    COLUMNS,
                    0 if LAST else 1,
                    ALIGN,
                    WIDE,
                )
                finish(counters, step, POOL)
            task -= pool_tasks
            if turn(task, excite_tasks, step - 1, groups):
                n, valid, first = part(task, channels, step - 1, group, samples, SAMPLES, CHANNEL_BLOCK)
                if fc1 is not None:
                    wait(counters, step - 1, HIDDEN, hidden_tasks)
                    excite(
                        n,
                        valid,
                        first,
                        hidden,
                        fc2,
                        fc2_bias,
                        gate,
                        hidden_size,
                        channels,
                        MEAN and MAXIMUM,
                        CHANNEL_BLOCK,
                        HIDDEN_LENGTH,
                    )
                else:
                    wait(counters, step - 1, POOL, pool_tasks)
                    excite_neighbours(
                        n, valid, first, seen_mean, seen_maximum, conv, gate, taps, channels, CHANNEL_BLOCK
                    )
                finish(counters, step - 1, EXCITE)
            task -= excite_tasks
        if spatial is not None:
            g = step - GATHER_LAG
            if turn(task, gather_tasks, g, groups):
                if CHANNEL:
                    wait(counters, g, EXCITE, excite_tasks)
                first, end = portion(task, gather_each, gather_units, g, group, samples)
                pool(
                    first,
                    end,
                    x,
                    gate,
                    position_mean,
                    position_maximum,
                    position_sums,
                    position_maxima,
                    position_arrived,
                    rows,
                    columns,
                    position_splits,
                    ROWS,
                    COLUMNS,
                    1 if LAST else 0,
                    ALIGN,
                    WIDE,
                )
                finish(counters, g, GATHER)
            task -= gather_tasks
        g = step - SCALE_LAG
        if turn(task, scale_tasks, g, groups):
            if spatial is not None:
                wait(counters, g, LOOK, look_tasks)
            else:
                wait(counters, g, EXCITE, excite_tasks)
            first, end = portion(task, scale_each, scale_units, g, group, samples)
            for unit in range(first, end):
                scale(
                    x,
                    across,
                    along,
                    residual,
                    out,
                    rows,
                    columns,
                    rows,
                    columns,
                    ROWS,
                    COLUMNS,
                    RELU,
                    ALIGN,
                    WIDE,
                    unit,
                )
        ticket = tl.atomic_add(counters, 1, sem="relaxed")
