"""The native functions on tensors: each allocates its results and passes pointers.

The caller has made sure that a tensor is on the CPU, of a dtype in ``DTYPES``, not empty, and dense in one of the two
layouts (``attendo.kernels.selection``). Gradients of gates, and counts of ties, come in the number computed with:
float32, or float64 for float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attendo.kernels.cpu import library
from attendo.kernels.cpu.packing import DTYPES, NOTHING, Gradients, Kept, pack_attention, pack_backward
from attendo.kernels.gates import GateWeights, Norm


class Calls:
    """The primitives in one instruction set.

    Args:
        table: its functions.
    """

    def __init__(self, table: library.Table) -> None:
        self.table = {name: getattr(table, name) for name in library.SIGNATURES}
        self.native_attention, self._attention_backward = self.table["attention"], self.table["attention_backward"]

    def channel_stats(self, x: Tensor, ties: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, maximum and ties of the maximum over positions, (N, C) each; ties are empty unless asked for."""
        size = x.shape[:2]
        mean, maximum, count = x.new_empty(size), x.new_empty(size), _numbers(x, *(size if ties else (0,)))
        where = count.data_ptr() if ties else None
        self.table["channel_stats"](_shape(x), x.data_ptr(), mean.data_ptr(), maximum.data_ptr(), where)
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
        self.table["channel_stats_backward"](
            _shape(x),
            *map(_pointer, (mean_gradient, maximum_gradient, x, maximum, ties, gradient)),
        )
        return gradient

    def spatial_stats(self, x: Tensor, gate: Tensor | None, ties: bool = False) -> tuple[Tensor, Tensor]:
        """Mean and maximum over channels of x times gate, (N, 2, H, W), and the ties (N, H, W) of the maximum."""
        samples, _, height, width = x.shape
        stats = x.new_empty(samples, 2, height, width)
        count = _numbers(x, *((samples, height, width) if ties else (0,)))
        gate = None if gate is None else gate.contiguous()
        where = count.data_ptr() if ties else None
        self.table["spatial_stats"](_shape(x), x.data_ptr(), _pointer(gate), _samples(gate), stats.data_ptr(), where)
        return stats, count

    def spatial_stats_backward(
        self, stats_gradient: Tensor, x: Tensor, gate: Tensor | None, stats: Tensor, ties: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Gradients of the map and of the gate, the latter per sample: (N, C)."""
        gradient, stats_gradient = torch.empty_like(x), stats_gradient.contiguous()
        gate = None if gate is None else gate.contiguous()
        gate_gradient = None if gate is None else _numbers(x, *x.shape[:2])
        self.table["spatial_stats_backward"](
            _shape(x),
            *(stats_gradient.data_ptr(), x.data_ptr(), _pointer(gate), _samples(gate), stats.data_ptr()),
            *(ties.data_ptr(), gradient.data_ptr(), _pointer(gate_gradient)),
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
        channel = None if channel is None else channel.contiguous()
        spatial = None if spatial is None else spatial.contiguous()
        self.table["recalibrate"](
            *(_shape(x), x.data_ptr(), _pointer(channel), _samples(channel), _pointer(spatial), _samples(spatial)),
            *(_pointer(residual), relu, out.data_ptr()),
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
        channel = None if channel is None else channel.contiguous()
        spatial = None if spatial is None else spatial.contiguous()
        gradients = (
            torch.empty_like(x) if wanted[0] else None,
            _numbers(x, samples, channels) if wanted[1] else None,
            _numbers(x, samples, height, width) if wanted[2] else None,
            torch.empty_like(x) if wanted[3] else None,
        )
        self.table["recalibrate_backward"](
            *(_shape(x), up.data_ptr(), x.data_ptr(), _pointer(channel), _samples(channel), _pointer(spatial)),
            *(_samples(spatial), _pointer(out), *map(_pointer, gradients)),
        )
        return gradients

    def attention(
        self,
        x: Tensor,
        weights: GateWeights,
        residual: Tensor | None,
        relu: bool,
        out: Tensor | None = None,
        norm: Norm | None = None,
        blend: Tensor | None = None,
    ) -> Tensor:
        """A whole attention in one call, of x or of what ``norm`` makes of it.

        The tensors of ``weights`` and ``norm``, and ``blend``, are contiguous and of the dtype of x.
        """
        out = torch.empty_like(x) if out is None else out
        self.native_attention(pack_attention(x, weights, norm, NOTHING, None, residual, relu, out, blend))
        return out

    def attention_kept(
        self,
        x: Tensor,
        weights: GateWeights,
        norm: Norm | None,
        residual: Tensor | None,
        relu: bool,
        blend: Tensor | None = None,
    ) -> tuple[Tensor | None, Kept]:
        """A whole attention, and what its gradients need; with a spatial half its statistics end it, and no result.

        A norm with a momentum takes the batch's own statistics; the running ones are the caller's to update.
        """
        (samples, channels, height, width), both = x.shape, weights.mean + weights.maximum
        hidden = 0 if weights.fc1 is None else weights.fc1.shape[0]
        kept = Kept(
            norm=None if norm is None else _numbers(x, 4, channels),
            means=None if norm is None else _numbers(x, samples, channels),
            pooled=_numbers(x, samples, both, channels) if both else None,
            raw=_numbers(x, samples, both, hidden) if hidden else None,
            gate=_numbers(x, samples, channels) if both else None,
            stats=None if weights.spatial is None else x.new_empty(samples, 2, height, width),
            ties=None if weights.spatial is None else _numbers(x, samples, height, width),
        )
        out = torch.empty_like(x) if weights.spatial is None else None
        self.native_attention(pack_attention(x, weights, norm, kept, None, residual, relu, out, blend))
        return out, kept

    def attention_finished(
        self,
        x: Tensor,
        weights: GateWeights,
        norm: Norm | None,
        kept: Kept,
        spatial: Tensor,
        residual: Tensor | None,
        relu: bool,
        blend: Tensor | None = None,
    ) -> Tensor:
        """What ``attention_kept`` left to do: multiply by the gates, add, rectify; spatial is a gate (N, 1, H, W)."""
        out = torch.empty_like(x)
        self.native_attention(pack_attention(x, weights, norm, kept, spatial, residual, relu, out, blend))
        return out

    def spatial_gradient(
        self,
        up: Tensor,
        x: Tensor,
        out: Tensor | None,
        weights: GateWeights,
        kept: Kept,
        masked: bool,
        spatial: Tensor,
        blended: bool = False,
    ) -> tuple[Tensor, Gradients]:
        """What is to be known before ``attention_backward`` where there is a spatial gate.

        Args:
            up: see there, as are the next four.
            x: see there.
            out: see there.
            weights: see there.
            kept: see there.
            masked: whether a residual wants its gradient, up where the ReLU let it through.
            spatial: the gate, (N, 1, H, W).
            blended: whether there is a blend, which wants its gradient.

        Returns:
            The gradient (N, H, W) of the spatial gate, not yet times the blend; those of the residual and the blend.
        """
        samples, _, height, width = x.shape
        size = samples, height, width
        found = Gradients(
            x=None, residual=torch.empty_like(x) if masked else None, blend=_numbers(x, *size) if blended else None
        )
        gradient = _numbers(x, *size)
        given = weights, 0.0, kept, (spatial, None), found, gradient, False, None
        self._attention_backward(pack_backward(up, x, out, *given))
        return gradient, found

    def attention_backward(
        self,
        up: Tensor,
        x: Tensor,
        out: Tensor | None,
        weights: GateWeights,
        norm: Norm | None,
        kept: Kept,
        spatial: tuple[Tensor | None, Tensor | None],
        known: Gradients,
        wanted: tuple[bool, bool],
        blend: Tensor | None = None,
    ) -> Gradients:
        """The gradients of a whole attention.

        Args:
            up: gradient of the result, in the layout of x.
            x: what went in.
            out: the result, where it was rectified.
            weights: as in the forward pass.
            norm: as in the forward pass; None with a blend.
            kept: by the forward pass.
            spatial: the spatial gate (N, 1, H, W), and the gradient (N, 2, H, W) of the statistics that it came from.
            known: what ``spatial_gradient`` gave.
            wanted: whether to compute the gradients of x and of a residual.
            blend: as in the forward pass.
        """
        (samples, channels, _, _), conv = x.shape, weights.conv
        found = Gradients(
            x=torch.empty_like(x) if wanted[0] else None,
            residual=torch.empty_like(x) if wanted[1] and known.residual is None else known.residual,
            norm=None if norm is None else _numbers(x, 2, channels),
            logits=None if kept.gate is None else torch.empty_like(kept.gate),
            raw=None if kept.raw is None else torch.empty_like(kept.raw),
            conv=None if conv is None else _numbers(x, samples, conv.shape[-1]),
            blend=_numbers(x, samples, channels) if blend is not None and known.blend is None else known.blend,
        )
        eps, masked = 0.0 if norm is None else norm.eps, known.residual is not None
        given = weights, eps, kept, spatial, found, None, masked, blend
        self._attention_backward(pack_backward(up, x, out, *given))
        return found

    def grouped_conv(self, x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
        """Convolve with padding that keeps the size at stride 1: weight (K, C / groups, k, k), k odd and below 64."""
        samples, _, height, width = x.shape
        outputs, kernel = weight.shape[0], weight.shape[2]
        kind = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        size = (samples, outputs, (height - 1) // stride + 1, (width - 1) // stride + 1)
        out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=kind)
        weight = weight.contiguous()
        sizes = (outputs, groups, kernel, stride, kernel // 2)
        self.table["grouped_conv"](_shape(x), x.data_ptr(), weight.data_ptr(), *sizes, out.data_ptr())
        return out


def _shape(x: Tensor) -> library.Shape:
    return library.Shape(*x.shape, DTYPES[x.dtype], not x.is_contiguous(), torch.get_num_threads())


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _samples(gate: Tensor | None) -> int:
    return 0 if gate is None else gate.shape[0]


def _numbers(x: Tensor, *size: int) -> Tensor:
    return x.new_empty(size, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
