"""SK, selective kernel convolution: branches with kernels of different size, weighed against each other per channel.

Paper: Li, Wang, Hu, Yang, "Selective Kernel Networks", CVPR 2019, https://arxiv.org/abs/1903.06586
Code:  https://github.com/implus/SKNet (Caffe) and timm's SelectiveKernel, whose released networks use
       ``groups=1, min_width=8`` and ``split=True``

Deviations: none; the defaults are the paper's SK[2, 32, 16]. ``split``, ``bias``, ``dilated=False`` and
``squeeze_norm=False`` are those of timm and of popular copies.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attendo._errors import InvalidArgument
from attendo.functional import channel_mean
from attendo.layers._base import AttentionConv, register
from attendo.layers._checks import check_channels, check_odd, hidden_width
from attendo.layers._norm import PooledBatchNorm


@register("sk")
class SelectiveKernel(AttentionConv):
    """Selective kernel convolution, in place of a 3x3 convolution with its norm and ReLU.

    Args:
        in_channels: channels of the feature map.
        out_channels: channels that come out; None keeps them.
        stride: of every branch.
        kernel_sizes: side of each branch's convolution, odd; their number is the paper's M.
        groups: of each branch's convolution, the paper's G.
        reduction: ratio of the bottleneck that decides the weights, the paper's r.
        min_width: least width of that bottleneck, the paper's L.
        dilated: make kernels larger than 3 of dilated 3x3 ones, as the paper does.
        split: whether each branch sees its share of the input channels only.
        bias: whether convolutions and the bottleneck's layers have biases.
        squeeze_norm: whether BatchNorm and ReLU follow the bottleneck's first layer.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride), rounded up

    Raises:
        InvalidArgument: fewer than two branches, an even kernel, channels that do not divide among branches or groups;
            in training also a batch of one image.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        stride: int = 1,
        *,
        kernel_sizes: Sequence[int] = (3, 5),
        groups: int = 32,
        reduction: int = 16,
        min_width: int = 32,
        dilated: bool = True,
        split: bool = False,
        bias: bool = False,
        squeeze_norm: bool = True,
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        check_channels(in_channels, "SK")
        check_channels(out_channels, "SK")
        branches = len(kernel_sizes)
        if branches < 2 or (split and in_channels % branches):
            raise InvalidArgument(
                f"SK: {in_channels} channels and {branches} kernel_sizes; there must be two branches or more, and the "
                f"channels a multiple of them with split. Take kernel_sizes=(3, 5), and an even number of channels."
            )
        inputs = in_channels // branches if split else in_channels
        if groups < 1 or inputs % groups or out_channels % groups:
            fitting = [g for g in range(1, inputs + 1) if inputs % g == 0 and out_channels % g == 0]
            raise InvalidArgument(
                f"SK: {inputs} -> {out_channels} channels in groups={groups!r}; the groups must divide both. "
                f"Pass groups={max((g for g in fitting if g <= groups), default=1)}."
            )
        self.split = split
        self.branches = nn.ModuleList()
        for size in kernel_sizes:
            check_odd(size, "kernel_sizes", "SK")
            side, dilation = (3, size // 2) if dilated and size > 3 else (size, 1)
            padding = dilation * (side // 2)
            conv = nn.Conv2d(inputs, out_channels, side, stride, padding, dilation, groups, bias)
            self.branches.append(nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU()))
        width = max(min_width, hidden_width(out_channels, min(reduction, out_channels), "SK"))
        self.squeeze = nn.Sequential(nn.Linear(out_channels, width, bias))
        if squeeze_norm:
            self.squeeze.extend([PooledBatchNorm(width, "SK"), nn.ReLU()])
        self.select = nn.Linear(width, branches * out_channels, bias)

    def convolve(self, x: Tensor) -> list[Tensor]:
        """Return the map of each branch, (N, out_channels, H', W')."""
        parts = x.chunk(len(self.branches), 1) if self.split else [x] * len(self.branches)
        return [branch(part) for branch, part in zip(self.branches, parts, strict=True)]

    def weigh(self, maps: list[Tensor]) -> Tensor:
        """Weigh the branches: softmax over branches of select(squeeze(mean of their sum)), (N, branches, C, 1, 1)."""
        z_NC = torch.stack([channel_mean(branch) for branch in maps]).sum(0)
        logits_NSC = self.select(self.squeeze(z_NC)).unflatten(1, (len(maps), -1))
        return torch.softmax(logits_NSC, 1)[:, :, :, None, None]

    def gates(self, x: Tensor) -> tuple[Tensor]:
        """Return the branch weights (N, branches, out_channels, 1, 1), in the order of ``kernel_sizes``."""
        return (self.weigh(self.convolve(x)),)

    def forward(self, x: Tensor) -> Tensor:
        """Add the weighed branches."""
        maps = self.convolve(x)
        first, *others = (branch * weight for branch, weight in zip(maps, self.weigh(maps).unbind(1), strict=True))
        return sum(others, first)
