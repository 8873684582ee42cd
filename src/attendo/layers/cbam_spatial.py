"""CBAM's spatial half: a gate per position from the mean and the maximum over channels.

Paper, code and deviations: see ``cbam.py``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from attendo.functional import spatial_stats
from attendo.kernels.gates import GateWeights
from attendo.layers._bare import bare_kernel, bare_tensors, batch_norm
from attendo.layers._base import Gate, register
from attendo.layers._checks import check_choice, check_odd


@register("cbam_spatial")
class SpatialGate(Gate):
    """CBAM's spatial half: s = sigmoid(norm(conv([mean over channels, max over channels]))).

    Args:
        channels: channels of the feature map; not used, there for the common contract.
        spatial_kernel: side of the convolution, odd.
        gate: ``"sigmoid"``, or ``"softmax"`` over the positions.
        variant: ``"official"`` or ``"paper"``; decides the two below unless they are given.
        spatial_norm: whether BatchNorm follows the convolution.
        max_first: whether the convolution's first input channel is the maximum (it permutes weights, nothing else).

    Shape:
        (N, C, H, W) -> (N, C, H, W)

    Raises:
        InvalidArgument: ``spatial_kernel`` is even, or a choice that does not exist.
    """

    def __init__(
        self,
        channels: int | None = None,
        *,
        spatial_kernel: int = 7,
        gate: Literal["sigmoid", "softmax"] = "sigmoid",
        variant: Literal["official", "paper"] = "official",
        spatial_norm: bool | None = None,
        max_first: bool | None = None,
    ) -> None:
        super().__init__()
        check_odd(spatial_kernel, "spatial_kernel", "CBAM")
        check_choice(gate, "gate", ("sigmoid", "softmax"), "CBAM")
        check_choice(variant, "variant", ("official", "paper"), "CBAM")
        official = variant == "official"
        self.gate = gate
        self.max_first = official if max_first is None else max_first
        self.conv = nn.Conv2d(2, 1, spatial_kernel, padding=spatial_kernel // 2, bias=False)
        norm = official if spatial_norm is None else spatial_norm
        self.norm = nn.BatchNorm2d(1, momentum=0.01) if norm else nn.Identity()

    def gates(self, x: Tensor, channel_gate: Tensor | None = None) -> tuple[Tensor]:
        """Return one gate (N, 1, H, W), computed from ``x * channel_gate`` if a channel gate is given."""
        stats_N2HW = spatial_stats(x, channel_gate)
        if self.max_first:
            stats_N2HW = stats_N2HW.flip(1)
        logits_N1HW = self.norm(self.conv(stats_N2HW))
        if self.gate == "sigmoid":
            return (torch.sigmoid(logits_N1HW),)
        return (torch.softmax(logits_N1HW.flatten(2), 2).view_as(logits_N1HW),)

    def weights(self) -> GateWeights | None:
        """Name the tensors above, and how the norm is to be done."""
        conv, norm = bare_kernel(self._modules["conv"]), self._modules["norm"]
        if self.gate != "sigmoid" or conv is None or norm is None:
            return None
        weights = GateWeights(spatial=conv, maximum_first=self.max_first)
        if type(norm) is nn.Identity:
            return None if bare_tensors(norm) is None else weights
        found = batch_norm(norm)
        return None if found is None else weights._replace(norm=found)
