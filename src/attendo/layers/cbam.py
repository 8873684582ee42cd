"""CBAM, convolutional block attention: a gate per channel, then a gate per position, from mean and maximum.

Paper: Woo, Park, Lee, Kweon, "CBAM: Convolutional Block Attention Module", ECCV 2018, https://arxiv.org/abs/1807.06521
Code:  https://github.com/Jongchan/attention-module (``variant="official"``)

Deviations of the official code from the paper's equations (``variant="paper"``, which most copies follow):
the shared MLP has biases; BatchNorm (momentum 0.01) follows the spatial convolution; the maximum comes before the mean
in the spatial convolution's input. In a network the official code starts that BatchNorm at weight 0 (see models).
``channel="eca"`` (a 1-D convolution shared by mean and maximum), ``order`` other than channel-then-spatial (table 3 of
the paper) and ``gate="softmax"`` are ours to offer, not the paper's design.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from attendo.functional import recalibrate
from attendo.kernels.gates import GateWeights
from attendo.layers._base import Gate, register
from attendo.layers._checks import check_choice
from attendo.layers.cbam_channel import ChannelGate
from attendo.layers.cbam_spatial import SpatialGate


@register("cbam")
class CBAM(Gate):
    """Convolutional block attention.

    Args:
        channels: channels of the feature map.
        reduction: ratio of the channel MLP's bottleneck.
        channel: the channel half, ``"mlp"`` or ``"eca"``.
        kernel_size: of the 1-D convolution of ``channel="eca"``; None takes the adaptive formula.
        spatial_kernel: side of the spatial convolution, odd.
        order: ``"channel-spatial"`` (the paper), ``"spatial-channel"``, or ``"parallel"`` (both see x itself).
        gate: ``"sigmoid"`` (the paper) or ``"softmax"``.
        variant: ``"official"`` (the authors' code) or ``"paper"`` (the equations); decides the three below.
        bias: whether the channel MLP has biases.
        spatial_norm: whether BatchNorm follows the spatial convolution.
        max_first: whether that convolution sees the maximum first.

    Shape:
        (N, C, H, W) -> (N, C, H, W)

    Raises:
        InvalidArgument: ``channels < reduction``, an even kernel, or a choice that does not exist.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        channel: Literal["mlp", "eca"] = "mlp",
        kernel_size: int | None = None,
        spatial_kernel: int = 7,
        order: Literal["channel-spatial", "spatial-channel", "parallel"] = "channel-spatial",
        gate: Literal["sigmoid", "softmax"] = "sigmoid",
        variant: Literal["official", "paper"] = "official",
        bias: bool | None = None,
        spatial_norm: bool | None = None,
        max_first: bool | None = None,
    ) -> None:
        super().__init__()
        check_choice(order, "order", ("channel-spatial", "spatial-channel", "parallel"), "CBAM")
        self.order = order
        self.channel = ChannelGate(
            channels,
            reduction=reduction,
            channel=channel,
            kernel_size=kernel_size,
            gate=gate,
            variant=variant,
            bias=bias,
        )
        self.spatial = SpatialGate(
            channels,
            spatial_kernel=spatial_kernel,
            gate=gate,
            variant=variant,
            spatial_norm=spatial_norm,
            max_first=max_first,
        )

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the channel gate (N, C, 1, 1) and the spatial gate (N, 1, H, W), in the order they were computed."""
        if self.order == "spatial-channel":
            (spatial,) = self.spatial.gates(x)
            (channel,) = self.channel.gates(recalibrate(x, (spatial,)))
            return spatial, channel
        (channel,) = self.channel.gates(x)
        (spatial,) = self.spatial.gates(x, channel if self.order == "channel-spatial" else None)
        return channel, spatial

    def weights(self) -> GateWeights | None:
        """Join the tensors of both halves, where the second sees what the first leaves."""
        channel, spatial = self.channel.weights(), self.spatial.weights()
        if self.order != "channel-spatial" or channel is None or spatial is None:
            return None
        return channel._replace(spatial=spatial.spatial, norm=spatial.norm, maximum_first=spatial.maximum_first)
