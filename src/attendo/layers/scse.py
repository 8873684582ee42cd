"""scSE, concurrent spatial and channel SE: a gate per channel beside a gate per position, both from x itself.

Paper: Roy, Navab, Wachinger, "Concurrent Spatial and Channel Squeeze & Excitation in Fully Convolutional Networks",
       MICCAI 2018, https://arxiv.org/abs/1803.02579
Code:  https://github.com/ai-med/squeeze_and_excitation (the authors': ``combine="max"``, ``reduction=2``) and
       https://github.com/qubvel-org/segmentation_models.pytorch (the most used: our defaults)

Deviations: none. The codes differ: the paper adds the two recalibrated maps, as segmentation_models does; the authors'
later code takes the larger one, element by element.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from attendo.functional import recalibrate
from attendo.layers._base import Gate, register
from attendo.layers._checks import check_choice, hidden_width
from attendo.layers.se import SqueezeExcitation


@register("scse")
class SCSE(Gate):
    """Concurrent spatial and channel squeeze-and-excitation.

    Args:
        channels: channels of the feature map.
        reduction: ratio of the channel half's bottleneck.
        combine: how the two recalibrated maps meet: ``"sum"``, or ``"max"``, element by element.

    Shape:
        (N, C, H, W) -> (N, C, H, W)

    Raises:
        InvalidArgument: ``channels < reduction``, or a choice that does not exist.
    """

    def __init__(self, channels: int, *, reduction: int = 16, combine: Literal["sum", "max"] = "sum") -> None:
        super().__init__()
        check_choice(combine, "combine", ("sum", "max"), "scSE")
        hidden_width(channels, reduction, "scSE")
        self.combine = combine
        self.channel = SqueezeExcitation(channels, reduction=reduction)
        self.spatial = nn.Conv2d(channels, 1, 1)

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return SE's channel gate (N, C, 1, 1) and the spatial gate sigmoid(conv1x1(x)), (N, 1, H, W)."""
        (channel,) = self.channel.gates(x)
        return channel, torch.sigmoid(self.spatial(x))

    def forward(self, x: Tensor) -> Tensor:
        """Add the two recalibrated maps, x * channel + x * spatial, or take their maximum."""
        channel, spatial = self.gates(x)
        if self.combine == "sum":
            return recalibrate(x, (channel + spatial,))
        return torch.maximum(x * channel, x * spatial)
