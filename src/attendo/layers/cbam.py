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

import torch
from torch import Tensor, nn

from attendo.functional import channel_stats, recalibrate, spatial_stats
from attendo.layers._base import Gate, check_channels, check_choice, check_odd, hidden_width, register
from attendo.layers.eca import adaptive_kernel_size

Variant = Literal["official", "paper"]
GateFunction = Literal["sigmoid", "softmax"]
VARIANTS = ("official", "paper")
GATE_FUNCTIONS = ("sigmoid", "softmax")


@register("cbam_channel")
class ChannelGate(Gate):
    """CBAM's channel half: s = sigmoid(f(mean(x)) + f(max(x))), f shared by both.

    Args:
        channels: channels of the feature map.
        reduction: ratio of the MLP's bottleneck.
        channel: f is ``"mlp"`` (the paper) or ``"eca"``, a 1-D convolution over channels with ECA's adaptive kernel.
        kernel_size: of that 1-D convolution; None takes the adaptive formula.
        gate: ``"sigmoid"``, or ``"softmax"`` over the channels.
        variant: ``"official"`` or ``"paper"``; decides ``bias`` unless it is given.
        bias: whether the MLP has biases.

    Shape:
        (N, C, H, W) -> (N, C, H, W)

    Raises:
        InvalidArgument: ``channels < reduction``, or a choice that does not exist.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        channel: Literal["mlp", "eca"] = "mlp",
        kernel_size: int | None = None,
        gate: GateFunction = "sigmoid",
        variant: Variant = "official",
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        check_choice(channel, "channel", ("mlp", "eca"), "CBAM")
        check_choice(gate, "gate", GATE_FUNCTIONS, "CBAM")
        check_choice(variant, "variant", VARIANTS, "CBAM")
        self.channel, self.gate = channel, gate
        if channel == "mlp":
            hidden = hidden_width(channels, reduction, "CBAM")
            bias = variant == "official" if bias is None else bias
            self.fc1 = nn.Linear(channels, hidden, bias=bias)
            self.fc2 = nn.Linear(hidden, channels, bias=bias)
        else:
            check_channels(channels, "CBAM")
            kernel_size = adaptive_kernel_size(channels) if kernel_size is None else kernel_size
            check_odd(kernel_size, "kernel_size", "CBAM")
            self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def excite(self, z_NC: Tensor) -> Tensor:
        """Apply the shared f to one statistic: (N, C) -> (N, C)."""
        if self.channel == "mlp":
            return self.fc2(torch.relu(self.fc1(z_NC)))
        return self.conv(z_NC[:, None])[:, 0]

    def gates(self, x: Tensor) -> tuple[Tensor]:
        """Return one gate (N, C, 1, 1)."""
        mean_NC, max_NC = channel_stats(x)
        logits_NC = self.excite(mean_NC) + self.excite(max_NC)
        s_NC = torch.sigmoid(logits_NC) if self.gate == "sigmoid" else torch.softmax(logits_NC, 1)
        return (s_NC[:, :, None, None],)


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
        gate: GateFunction = "sigmoid",
        variant: Variant = "official",
        spatial_norm: bool | None = None,
        max_first: bool | None = None,
    ) -> None:
        super().__init__()
        check_odd(spatial_kernel, "spatial_kernel", "CBAM")
        check_choice(gate, "gate", GATE_FUNCTIONS, "CBAM")
        check_choice(variant, "variant", VARIANTS, "CBAM")
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
        gate: GateFunction = "sigmoid",
        variant: Variant = "official",
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
