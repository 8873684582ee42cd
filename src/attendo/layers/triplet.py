"""Triplet attention: CBAM's spatial gate over each of the three planes of the map (C x W, H x C, H x W), averaged.

Paper: Misra, Nalamada, Arasanipalai, Hou, "Rotate to Attend: Convolutional Triplet Attention Module", WACV 2021,
       https://arxiv.org/abs/2010.03045
Code:  https://github.com/landskape-ai/triplet-attention

Deviations: none. Each branch pools [max, mean] over the axis it leaves out, convolves without bias, normalises with
BatchNorm (eps 1e-5, momentum 0.01) and has no ReLU, which popular copies add and which keeps every gate above 0.5.
"""

from __future__ import annotations

from torch import Tensor

from attendo.functional import recalibrate
from attendo.layers._base import Gate, register
from attendo.layers._checks import check_channels, check_odd
from attendo.layers.cbam_spatial import SpatialGate


@register("triplet")
class TripletAttention(Gate):
    """Triplet attention: x times the mean of its gates.

    Args:
        channels: channels of the feature map; not used, there for the common contract.
        kernel_size: side of each branch's convolution, odd.
        no_spatial: leave out the branch over H x W, which is CBAM's spatial gate.

    Shape:
        (N, C, H, W) -> (N, C, H, W)

    Raises:
        InvalidArgument: ``kernel_size`` is even.
    """

    def __init__(self, channels: int, *, kernel_size: int = 7, no_spatial: bool = False) -> None:
        super().__init__()
        check_channels(channels, "Triplet attention")
        check_odd(kernel_size, "kernel_size", "Triplet attention")
        self.cw = SpatialGate(spatial_kernel=kernel_size)
        self.hc = SpatialGate(spatial_kernel=kernel_size)
        self.hw = None if no_spatial else SpatialGate(spatial_kernel=kernel_size)

    def gates(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the gates (N, C, 1, W), (N, C, H, 1) and, unless ``no_spatial``, (N, 1, H, W)."""
        (cw,) = self.cw.gates(x.transpose(1, 2))
        (hc,) = self.hc.gates(x.transpose(1, 3))
        hw = () if self.hw is None else self.hw.gates(x)
        return cw.transpose(1, 2), hc.transpose(1, 3), *hw

    def forward(self, x: Tensor) -> Tensor:
        """Recalibrate x by the mean of the gates."""
        first, *others = self.gates(x)
        return recalibrate(x, (sum(others, first) / (1 + len(others)),))
