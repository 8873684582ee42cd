"""The map times its gates, plus a shortcut, rectified: dispatch, operator, gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from attendo.functional import definition
from attendo.functional.pooling import gathered
from attendo.functional.route import Route, differentiable_gradients, route, symbolic
from attendo.kernels.selection import find


def recalibrate(
    x: Tensor,
    gates: Iterable[Tensor],
    residual: Tensor | None = None,
    relu: bool = False,
    inplace: bool = False,
    blend: Tensor | None = None,
) -> Tensor:
    """Multiply x by its gates; optionally add a shortcut and rectify, as the end of a residual block does.

    Args:
        x: feature map, (N, C, H, W).
        gates: factors, each broadcastable to x.
        residual: the block's shortcut, the shape of x, added after the gates.
        relu: rectify last.
        inplace: x is not needed any more, and the result may take its memory; done where no gradient is needed.
        blend: one number, (1): how much of the recalibrated map to take, the rest being x itself, before the residual
            is added: ``x + blend * (recalibrated - x)``. None takes all of it.
    """
    gates = tuple(gates)
    if blend is not None and len(gates) > 1:
        x, gates = definition.blended(x, recalibrate(x, gates), blend), ()
        if residual is None and not relu:
            return x
    if blend is not None:  # in the gate, which is small
        gates = tuple(definition.blended(torch.ones_like(gate), gate, blend) for gate in gates)
    pair = _pair(x, gates)
    if pair is not None:
        channel, spatial = pair
        match route(x, (residual,), gates):
            case Route.KERNEL:
                return find(x).recalibrate(x, channel, spatial, residual, relu, overwritten(x) if inplace else None)
            case Route.OPERATOR:
                return torch.ops.attendo.recalibrate(x, channel, spatial, residual, relu)
    return definition.recalibrate(x, gates, residual, relu)


def _pair(x: Tensor, gates: tuple[Tensor, ...]) -> tuple[Tensor | None, Tensor | None] | None:
    """Return (channel gate, spatial gate) if gates are one of each at most, else None."""
    if symbolic(x) or x.ndim != 4:
        return None
    samples, channels, height, width = x.shape
    channel = spatial = None
    for gate in gates:
        shape = gate.shape
        if len(shape) != 4 or shape[0] not in (1, samples):
            return None
        if channel is None and shape[1:] == (channels, 1, 1):
            channel = gate
        elif spatial is None and shape[1:] == (1, height, width):
            spatial = gate
        else:
            return None
    return channel, spatial


def overwritten(x: Tensor) -> Tensor:
    """Return x, whose numbers are about to change: autograd must know, should it have saved them."""
    if not x.is_inference():
        torch.autograd.graph.increment_version(x)
    return x


def layout_of(x: Tensor) -> torch.memory_format:
    """Return the layout of a dense map: contiguous, or channels_last."""
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def _gated(x: Tensor, channel: Tensor | None, spatial: Tensor | None) -> Tensor:
    return definition.recalibrate(x, [gate for gate in (channel, spatial) if gate is not None])


@torch.library.custom_op("attendo::recalibrate", mutates_args=())
def _recalibrate(
    x: Tensor, channel: Tensor | None, spatial: Tensor | None, residual: Tensor | None, relu: bool
) -> Tensor:
    return find(x).recalibrate(x, channel, spatial, residual, relu)


@_recalibrate.register_fake
def _(x: Tensor, channel: Tensor | None, spatial: Tensor | None, residual: Tensor | None, relu: bool) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("attendo::recalibrate_backward", mutates_args=())
def _recalibrate_backward(
    up: Tensor, x: Tensor, channel: Tensor | None, spatial: Tensor | None, out: Tensor | None, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    first, second, third, fourth = wanted
    up = up.contiguous(memory_format=layout_of(x))
    found = find(x).recalibrate_backward(up, x, channel, spatial, out, (first, second, third, fourth))
    a, b, c, d = (x.new_empty(0) if gradient is None else gradient for gradient in found)
    return a, b, c, d


@_recalibrate_backward.register_fake
def _(
    up: Tensor, x: Tensor, channel: Tensor | None, spatial: Tensor | None, out: Tensor | None, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    samples, channels, height, width = x.shape
    numbers = torch.float64 if x.dtype == torch.float64 else torch.float32
    return (
        torch.empty_like(x) if wanted[0] else x.new_empty(0),
        x.new_empty(samples, channels, dtype=numbers) if wanted[1] else x.new_empty(0),
        x.new_empty(samples, height, width, dtype=numbers) if wanted[2] else x.new_empty(0),
        torch.empty_like(x) if wanted[3] else x.new_empty(0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, channel, spatial, _, ctx.relu = inputs
    ctx.save_for_backward(x, channel, spatial, output if ctx.relu else None)  # the result for the ReLU's mask


def _differentiate(ctx: Any, up: Tensor) -> tuple[Tensor | None, ...]:
    x, channel, spatial, out = ctx.saved_tensors
    if torch.is_grad_enabled():
        up = up if out is None else torch.where(out <= 0, torch.zeros_like(up), up)
        given = [x, channel, spatial]
        gradients = differentiable_gradients(lambda *tensors: (_gated(*tensors),), given, [up])
        return (*gradients, up if ctx.needs_input_grad[3] else None, None)
    need = ctx.needs_input_grad
    wanted = [need[0], need[1], need[2], need[3] and ctx.relu]
    first, second, third, fourth = torch.ops.attendo.recalibrate_backward(up, x, channel, spatial, out, wanted)
    return (
        first if wanted[0] else None,
        gathered(second, channel) if wanted[1] else None,
        gathered(third, spatial) if wanted[2] else None,
        (fourth if ctx.relu else up) if need[3] else None,
        None,
    )


_recalibrate.register_autograd(_differentiate, setup_context=_save)
