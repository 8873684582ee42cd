"""The Triton kernels on tensors: each allocates its results and launches, without waiting for the device.

The caller has made sure that a tensor is on a device with kernels, of a dtype they take, not empty, and dense in one of
the two layouts (``attendo.kernels.selection``). Gradients of gates, and counts of ties, come in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attendo.kernels.gpu import pooling, recalibration
from attendo.kernels.gpu.launch import OPTIONS, View, cut, device_of


class Calls:
    """The primitives."""

    attention: Callable[..., Tensor] | None = None  # no whole attention in one call: primitive by primitive

    def channel_stats(self, x: Tensor, ties: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, maximum and ties of the maximum over positions, (N, C) each; ties are empty unless asked for."""
        size = x.shape[:2]
        mean, maximum, count = x.new_empty(size), x.new_empty(size), _numbers(x, *(size if ties else (0,)))
        view = View.of(x)
        _statistics(x, view, None, mean, maximum, count if ties else None, size[1], 0 if view.last else 1)
        return mean, maximum, count

    def channel_stats_backward(
        self,
        mean_gradient: Tensor | None,
        maximum_gradient: Tensor | None,
        x: Tensor,
        maximum: Tensor,
        ties: Tensor,
    ) -> Tensor:
        """Gradient of the map; None stands for a gradient of zeros."""
        gradient = torch.empty_like(x)
        mean_gradient = None if mean_gradient is None else mean_gradient.contiguous()
        maximum_gradient = None if maximum_gradient is None else maximum_gradient.contiguous()
        ups = mean_gradient, maximum_gradient
        view = View.of(x)
        _statistics_backward(*ups, x, view, None, maximum, ties, gradient, None, x.shape[1], 1 if view.last else 0)
        return gradient

    def spatial_stats(self, x: Tensor, gate: Tensor | None, ties: bool = False) -> tuple[Tensor, Tensor]:
        """Mean and maximum over channels of x times gate, (N, 2, H, W), and the ties (N, H, W) of the maximum."""
        samples, _, height, width = x.shape
        stats = x.new_empty(samples, 2, height, width)
        count = _numbers(x, *((samples, height, width) if ties else (0,)))
        gate = None if gate is None else gate.contiguous()
        view = View.of(x)
        outputs = stats, stats[:, 1], count if ties else None
        _statistics(x, view, gate, *outputs, 2 * height * width, 1 if view.last else 0)
        return stats, count

    def spatial_stats_backward(
        self, stats_gradient: Tensor, x: Tensor, gate: Tensor | None, stats: Tensor, ties: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Gradients of the map and of the gate, the latter per sample: (N, C)."""
        gradient, up = torch.empty_like(x), stats_gradient.contiguous()
        gate = None if gate is None else gate.contiguous()
        gate_gradient = None if gate is None else _numbers(x, *x.shape[:2])
        view = View.of(x)
        saved = x, view, gate, stats[:, 1], ties
        _statistics_backward(
            up, up[:, 1], *saved, gradient, gate_gradient, 2 * x.shape[2] * x.shape[3], 0 if view.last else 1
        )
        return gradient, gate_gradient

    def recalibrate(
        self,
        x: Tensor,
        channel: Tensor | None,
        spatial: Tensor | None,
        residual: Tensor | None,
        relu: bool,
        out: Tensor | None = None,
    ) -> Tensor:
        """Multiply x by its gates, add residual, rectify; written into ``out`` if it is given, which may be x."""
        out = torch.empty_like(x) if out is None else out
        view = View.of(x)
        across, along = _across_and_along(channel, spatial, view)
        plan = cut("scale", view, x.element_size(), None, whole=False)
        with device_of(x):
            recalibration.scale[plan.grid](
                *(x, across, along, residual, out, view.rows, view.columns),
                *(_stride(across, view.rows), _stride(along, view.columns)),
                RELU=relu,
                **plan.constants,
            )
        return out

    def recalibrate_backward(
        self,
        up: Tensor,
        x: Tensor,
        channel: Tensor | None,
        spatial: Tensor | None,
        out: Tensor | None,
        wanted: tuple[bool, bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of x, of the gates per sample ((N, C) and (N, H, W)), and of the residual.

        Args:
            up: gradient of the result, in the layout of x.
            x: what was recalibrated.
            channel: its channel gate.
            spatial: its spatial gate.
            out: the result, where it was rectified.
            wanted: which of the four gradients to compute.
        """
        samples, channels, height, width = x.shape
        gradients = (
            torch.empty_like(x) if wanted[0] else None,
            _numbers(x, samples, channels) if wanted[1] else None,
            _numbers(x, samples, height, width) if wanted[2] else None,
            torch.empty_like(x) if wanted[3] else None,
        )
        view = View.of(x)
        across, along = _across_and_along(channel, spatial, view)
        across_gradient, along_gradient = (gradients[2], gradients[1]) if view.last else (gradients[1], gradients[2])
        # sums along the fixed axis are free, those along the other meet at every step: adjacent columns are fixed,
        # where a row lies within a warp, unless only the sums of rows are wanted
        looped = 1 if across_gradient is not None and along_gradient is None else 0
        fixed_gate, looped_gate = (across, along) if looped else (along, across)
        fixed_gradient = across_gradient if looped else along_gradient
        looped_gradient = along_gradient if looped else across_gradient
        plan = cut("scale_backward", view, x.element_size(), looped, whole=fixed_gradient is not None)
        extents = view.extents(looped)
        fixed_parts = _parts(fixed_gradient, x, samples, plan.splits, extents[0])
        looped_parts = _parts(looped_gradient, x, samples, plan.blocks, extents[1])
        with device_of(x):
            recalibration.scale_backward[plan.grid](
                *(up, x, fixed_gate, looped_gate, out, gradients[0], fixed_parts, looped_parts, gradients[3]),
                *(view.rows, view.columns),
                *(_stride(fixed_gate, extents[0]), _stride(looped_gate, extents[1]), plan.splits),
                **plan.constants,
            )
            _add(fixed_parts, fixed_gradient)
            _add(looped_parts, looped_gradient)
        return gradients


def _statistics(
    x: Tensor,
    view: View,
    gate: Tensor | None,
    mean: Tensor,
    maximum: Tensor,
    ties: Tensor | None,
    out_sample: int,
    looped: int,
) -> None:
    plan = cut("statistics", view, x.element_size(), looped)
    fixed, along = view.extents(looped)
    to, strides, divisor = (mean, maximum, ties), (out_sample, fixed), along
    if plan.splits > 1:
        size = view.samples, plan.splits, fixed
        to = _numbers(x, *size), _numbers(x, *size), None if ties is None else _numbers(x, *size)
        strides, divisor = (plan.splits * fixed, plan.splits * fixed), 1
    with device_of(x):
        pooling.statistics[plan.grid](
            *(x, gate, *to, view.rows, view.columns, _stride(gate, along)),
            *(*strides, plan.splits, divisor),
            **plan.constants,
        )
        if plan.splits > 1:
            _combine(to, (mean, maximum, ties), (out_sample, fixed), along)


def _statistics_backward(
    mean_gradient: Tensor | None,
    maximum_gradient: Tensor | None,
    x: Tensor,
    view: View,
    gate: Tensor | None,
    maximum: Tensor,
    ties: Tensor,
    gradient: Tensor,
    gate_gradient: Tensor | None,
    out_sample: int,
    looped: int,
) -> None:
    plan = cut("statistics_backward", view, x.element_size(), looped, whole=gate is not None)
    fixed, along = view.extents(looped)
    parts = _parts(gate_gradient, x, view.samples, plan.splits, fixed)
    with device_of(x):
        pooling.statistics_backward[plan.grid](
            *(mean_gradient, maximum_gradient, x, gate, maximum, ties, gradient, parts),
            *(view.rows, view.columns, _stride(gate, fixed)),
            *(out_sample, along, plan.splits, fixed),
            **plan.constants,
        )
        _add(parts, gate_gradient)


def _parts(gradient: Tensor | None, x: Tensor, samples: int, parts: int, size: int) -> Tensor | None:
    """Return where parts of a gate's gradient go: (samples, parts, size), or the gradient itself if there is one."""
    return gradient if gradient is None or parts == 1 else _numbers(x, samples, parts, size)


def _add(parts: Tensor | None, gradient: Tensor | None) -> None:
    if parts is not None and gradient is not None and parts is not gradient:
        _combine((parts, None, None), (gradient, None, None), (parts.shape[2], 0), 1)


def _combine(
    parts: tuple[Tensor, Tensor | None, Tensor | None],
    to: tuple[Tensor, Tensor | None, Tensor | None],
    strides: tuple[int, int],
    divisor: int,
) -> None:
    samples, count, size = parts[0].shape
    block = 32
    pooling.combine[(samples * -(-size // block),)](
        *(*parts, *to, count, size, *strides, divisor), PARTS_BLOCK=32, FIXED_BLOCK=block, num_warps=4, **OPTIONS
    )


def _across_and_along(
    channel: Tensor | None, spatial: Tensor | None, view: View
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gates that vary over rows and over columns."""
    channel = None if channel is None else channel.contiguous()
    spatial = None if spatial is None else spatial.contiguous()
    return (spatial, channel) if view.last else (channel, spatial)


def _stride(gate: Tensor | None, size: int) -> int:
    """Elements from a gate of one sample to that of the next; 0 where all share it."""
    return 0 if gate is None or gate.shape[0] == 1 else size


def _numbers(x: Tensor, *size: int) -> Tensor:
    return x.new_empty(size, dtype=torch.float32)
