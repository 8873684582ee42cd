"""The Triton kernels with a whole attention in one launch: how it is cut, and the memory it works in.

NOT MEASURED YET, and never run on a device, where programs really wait for one another (``attention`` says why they
may). Until ``benchmarks/gpu.py`` has shown what it is worth, ``kernels.use("persistent")`` has to ask for it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from attendo.kernels.gates import GateWeights, Norm
from attendo.kernels.gpu import attention, launch
from attendo.kernels.gpu.calls import Calls
from attendo.kernels.gpu.launch import Cut, View, ceil, cut, device_of, power
from attendo.kernels.gpu.tickets import LINE, PHASES, Schedule

# of products with weights: tl.dot takes 16 at least, and larger blocks do not fit the registers. With 64 and 128 each
# thread had 3232 bytes of stack for 2048 channels on sm_90, with 16 and 32 it has none (from the cubin of Triton 3.9)
SAMPLES, HIDDEN_BLOCK, CHANNEL_BLOCK, LENGTH = 16, 16, 16, 32
LOOK_BLOCK = 256  # positions


class PersistentCalls(Calls):
    """The primitives, and a whole attention in one launch."""

    def attention(
        self,
        x: Tensor,
        weights: GateWeights,
        residual: Tensor | None,
        relu: bool,
        out: Tensor | None = None,
        norm: Norm | None = None,
    ) -> Tensor:
        """A whole attention in one launch, of x or of what ``norm`` makes of it in a launch before.

        The tensors of ``weights`` and ``norm`` are contiguous and of the dtype of x.
        """
        view = View.of(x)
        if norm is not None:
            layout = torch.channels_last if view.last else torch.contiguous_format
            x = F.batch_norm(x, norm.mean, norm.var, norm.weight, norm.bias, eps=norm.eps)
            x = x.contiguous(memory_format=layout)
            out = x if out is None else out
        out = torch.empty_like(x) if out is None else out
        pool, gather = (
            cut("attention", view, x.element_size(), looped, each=launch.TABLE.task)
            for looped in ((0, 1) if view.last else (1, 0))
        )
        scale = cut("attention", view, x.element_size(), None, whole=False)
        processors, cache = launch.multiprocessors_and_cache(x)
        group = max(1, min(len(x), cache // launch.TABLE.share * len(x) // x.nbytes))
        plan = schedule(x, weights, group, pool, gather, scale)
        gather_lag = 2 if plan.pool_tasks else 0
        scale_lag = gather_lag + 1 if plan.gather_tasks else 2
        tickets = (plan.groups + scale_lag) * plan.step
        eps = 0.0 if weights.norm is None else weights.norm.eps
        hidden, taps = _extent(weights.fc1, 0), _extent(weights.conv, -1)
        with device_of(x):
            attention.attention[(min(tickets, processors * launch.TABLE.residents),)](
                *(x, residual, out, *weights.tensors(), eps, *_memory(x, plan, hidden, pool, gather)),
                *(view.rows, view.columns, *x.shape[2:], hidden, taps, pool.splits, gather.splits, *plan),
                MEAN=weights.mean,
                MAXIMUM=weights.maximum,
                MAXIMUM_FIRST=weights.maximum_first,
                RELU=relu,
                LAST=view.last,
                GATHER_LAG=gather_lag,
                SCALE_LAG=scale_lag,
                KERNEL=_extent(weights.spatial, -1),
                SAMPLES=SAMPLES,
                HIDDEN_BLOCK=HIDDEN_BLOCK,
                CHANNEL_BLOCK=_block(x.shape[1], CHANNEL_BLOCK),
                LENGTH=_block(x.shape[1], LENGTH),
                HIDDEN_LENGTH=_block(hidden, LENGTH),
                LOOK_BLOCK=LOOK_BLOCK,
                num_stages=1,
                **scale.constants,
            )
        return out


def schedule(x: Tensor, weights: GateWeights, group: int, pool: Cut, gather: Cut, scale: Cut) -> Schedule:
    """Count groups, units of a sample, units of a task, and tasks of a group; phases that are not there have no tasks.

    Args:
        x: the map.
        weights: what there is to do.
        group: samples of a group.
        pool: how the statistics of channels are cut into units.
        gather: how those of positions are.
        scale: how the products are: a tile to each unit.
    """
    channel, spatial = weights.fc1 is not None or weights.conv is not None, weights.spatial is not None
    tiles, parts = scale.blocks * scale.splits, ceil(group, SAMPLES)
    pool_units, gather_units = pool.blocks * pool.splits, gather.blocks * gather.splits
    pool_each, gather_each = (max(1, launch.TABLE.task * units // tiles) for units in (pool_units, gather_units))
    look_units = ceil(x.shape[2] * x.shape[3], LOOK_BLOCK)
    return Schedule(
        samples=len(x),
        group=group,
        groups=ceil(len(x), group),
        look_units=look_units,
        pool_units=pool_units,
        pool_each=pool_each,
        gather_units=gather_units,
        gather_each=gather_each,
        scale_units=tiles,
        scale_each=launch.TABLE.task,
        hidden_tasks=parts * ceil(_extent(weights.fc1, 0), HIDDEN_BLOCK),
        look_tasks=spatial * group * look_units,
        pool_tasks=channel * ceil(group * pool_units, pool_each),
        excite_tasks=channel * parts * ceil(x.shape[1], _block(x.shape[1], CHANNEL_BLOCK)),
        gather_tasks=spatial * ceil(group * gather_units, gather_each),
        scale_tasks=ceil(group * tiles, launch.TABLE.task),
    )


def _memory(x: Tensor, plan: Schedule, hidden: int, pool: Cut, gather: Cut) -> list[Tensor | None]:
    """Allocate what phases leave to one another, and the counters: all zero, for every launch anew.

    So a launch that was captured in a graph, or that runs beside another one on a second stream, has its own.
    """
    samples = plan.samples
    channels = samples * x.shape[1] if plan.pool_tasks else 0
    positions = samples * x.shape[2] * x.shape[3] if plan.gather_tasks else 0
    parts = channels * pool.splits if pool.splits > 1 else 0
    position_parts = positions * gather.splits if gather.splits > 1 else 0
    return [
        *_pieces(torch.empty, torch.float32, x, channels, channels, parts, parts, samples * hidden, channels),
        *_pieces(torch.empty, torch.float32, x, *(positions, positions, position_parts, position_parts, positions)),
        *_pieces(
            torch.zeros,
            torch.int32,
            x,
            LINE.value + PHASES.value * plan.groups,
            samples * pool.blocks if parts else 0,
            samples * gather.blocks if position_parts else 0,
        ),
    ]


def _pieces(make: Callable[..., Tensor], dtype: torch.dtype, x: Tensor, *sizes: int) -> list[Tensor | None]:
    """Allocate tensors at once, each beginning at a cache line; None for one of size 0."""
    whole = [ceil(size, LINE.value) * LINE.value for size in sizes]
    pieces = make(sum(whole), dtype=dtype, device=x.device).split(whole)
    return [piece if size else None for piece, size in zip(pieces, sizes, strict=True)]


def _extent(weight: Tensor | None, dim: int) -> int:
    """Return a size of a weight, 0 where there is none."""
    return 0 if weight is None else weight.shape[dim]


def _block(size: int, most: int) -> int:
    return min(most, max(16, power(size)))
