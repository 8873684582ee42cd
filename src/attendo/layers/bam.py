"""BAM, bottleneck attention: one gate per channel and position, from a channel branch and a spatial branch together.

Paper: Park, Woo, Lee, Kweon, "BAM: Bottleneck Attention Module", BMVC 2018, https://arxiv.org/abs/1807.06514
Code:  https://github.com/Jongchan/attention-module (``variant="official"``; its published file does not run, because it
       reads an undefined name, and pools a square map only)

Deviations of the official code from the paper's equations (``variant="paper"``): the branches are multiplied inside the
sigmoid, not added, and the released weights are for the product; BatchNorm follows every hidden layer of both branches
instead of their ends. The equations write no ReLU; we keep the code's, one after every hidden layer.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from attendo._errors import InvalidArgument
from attendo.functional import channel_mean, recalibrate
from attendo.layers._base import Gate, register
from attendo.layers._checks import check_choice, hidden_width
from attendo.layers._norm import PooledBatchNorm


@register("bam")
class BAM(Gate):
    """Bottleneck attention: x * (1 + gate).

    Args:
        channels: channels of the feature map.
        reduction: ratio of the bottleneck of both branches.
        dilation: of the two 3x3 convolutions of the spatial branch.
        variant: ``"official"`` (the authors' code) or ``"paper"`` (the equations); see the head of this file.
        combine: how the branches meet in the sigmoid, ``"product"`` or ``"sum"``; None takes the variant's way.

    Shape:
        (N, C, H, W) -> (N, C, H, W)

    Raises:
        InvalidArgument: ``channels < reduction``, a ``dilation`` below 1, or a choice that does not exist; in training
            also a batch of one image.
    """

    placement = "stage"

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        dilation: int = 4,
        variant: Literal["official", "paper"] = "official",
        combine: Literal["product", "sum"] | None = None,
    ) -> None:
        super().__init__()
        check_choice(variant, "variant", ("official", "paper"), "BAM")
        check_choice(combine, "combine", ("product", "sum", None), "BAM")
        if dilation < 1:
            raise InvalidArgument(
                f"BAM: dilation={dilation!r}; it must be a positive integer. Take 4, as the paper does."
            )
        hidden = hidden_width(channels, reduction, "BAM")
        official = variant == "official"
        self.combine = combine or ("product" if official else "sum")

        def convolve(inputs: int, kernel_size: int) -> list[nn.Module]:
            padding = dilation * (kernel_size // 2)
            conv = nn.Conv2d(inputs, hidden, kernel_size, padding=padding, dilation=dilation)
            return [conv, nn.BatchNorm2d(hidden), nn.ReLU()] if official else [conv, nn.ReLU()]

        self.channel = nn.Sequential(nn.Linear(channels, hidden))
        self.channel.extend([PooledBatchNorm(hidden, "BAM"), nn.ReLU()] if official else [nn.ReLU()])
        self.channel.append(nn.Linear(hidden, channels))
        self.spatial = nn.Sequential(*convolve(channels, 1), *convolve(hidden, 3), *convolve(hidden, 3))
        self.spatial.append(nn.Conv2d(hidden, 1, 1))
        if not official:
            self.channel.append(PooledBatchNorm(channels, "BAM"))
            self.spatial.append(nn.BatchNorm2d(1))

    def gates(self, x: Tensor) -> tuple[Tensor]:
        """S = sigmoid(channel branch, times or plus spatial branch): one gate (N, C, H, W)."""
        channel_NC11 = self.channel(channel_mean(x))[:, :, None, None]
        spatial_N1HW = self.spatial(x)
        both = channel_NC11 * spatial_N1HW if self.combine == "product" else channel_NC11 + spatial_N1HW
        return (torch.sigmoid(both),)

    def forward(self, x: Tensor) -> Tensor:
        """Recalibrate x by 1 + gate."""
        return recalibrate(x, (1 + self.gates(x)[0],))
