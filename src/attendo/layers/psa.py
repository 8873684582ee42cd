"""PSA, pyramid squeeze attention: parallel convolutions of growing size, weighed against each other channel by channel.

Paper: Zhang, Zu, Lu, Zou, Meng, "EPSANet: An Efficient Pyramid Squeeze Attention Block on Convolutional Neural
       Network", ACCV 2022, https://arxiv.org/abs/2105.14447
Code:  https://github.com/murufeng/EPSANet (``variant="official"``)

Deviations of the official code from the paper's text: every branch convolves all input channels, where the text splits
them; the branches are concatenated in reverse order (the 9x9 first). ``variant="paper"`` splits and keeps the order. In
both, all branches share one SE, whose gates pass a sigmoid before the softmax: of four, each weighs 0.11 to 0.48.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from attendo._errors import InvalidArgument
from attendo.functional import grouped_conv, join
from attendo.layers._bare import bare_kernel
from attendo.layers._base import AttentionConv, register
from attendo.layers._checks import check_channels, check_choice, check_odd
from attendo.layers.se import SqueezeExcitation


class SPC(nn.Module):
    """Squeeze and concat: one convolution per branch over the same map, kept apart.

    Args:
        in_channels: channels of the feature map.
        out_channels: channels of all branches together.
        stride: of every convolution.
        kernel_sizes: side of each branch's convolution, odd.
        groups: groups of each branch's convolution.
        split: whether each branch sees its share of the input channels only.

    Shape:
        (N, in_channels, H, W) -> (N, branches, out_channels / branches, H / stride, W / stride), rounded up

    Raises:
        InvalidArgument: the channels do not divide among branches and groups.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        kernel_sizes: Sequence[int] = (3, 5, 7, 9),
        groups: Sequence[int] = (1, 4, 8, 16),
        split: bool = False,
    ) -> None:
        super().__init__()
        check_channels(in_channels, "PSA")
        check_channels(out_channels, "PSA")
        branches = len(kernel_sizes)
        if branches < 2 or branches != len(groups):
            raise InvalidArgument(
                f"PSA: {branches} kernel_sizes and {len(groups)} groups; both must be given once per branch, for two "
                f"branches or more. Take kernel_sizes=(3, 5, 7, 9), groups=(1, 4, 8, 16)."
            )
        if out_channels % branches or (split and in_channels % branches):
            raise InvalidArgument(
                f"PSA: {in_channels} -> {out_channels} channels do not divide among {branches} branches. "
                f"Choose channels that are a multiple of {branches}, or another number of kernel_sizes."
            )
        inputs, outputs = in_channels // branches if split else in_channels, out_channels // branches
        for size, count in zip(kernel_sizes, groups, strict=True):
            check_odd(size, "kernel_sizes", "PSA")
            if count < 1 or inputs % count or outputs % count:
                fitting = [g for g in range(1, outputs + 1) if inputs % g == 0 and outputs % g == 0]
                raise InvalidArgument(
                    f"PSA: the {size}x{size} branch maps {inputs} to {outputs} channels in {count} groups; the groups "
                    f"must divide both. Pass groups made of {fitting}, e.g. "
                    f"groups={tuple(max(f for f in fitting if f <= max(1, g)) for g in groups)}."
                )
        self.split = split
        self.branches = nn.ModuleList(
            nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=count, bias=False)
            for size, count in zip(kernel_sizes, groups, strict=True)
        )

    def convolve(self, x: Tensor) -> list[Tensor]:
        """Return the map of each branch, (N, out_channels / branches, H', W')."""
        parts = x.chunk(len(self.branches), 1) if self.split else [x] * len(self.branches)
        return [_convolve(branch, part) for branch, part in zip(self.branches, parts, strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        """Stack the maps: (N, in_channels, H, W) -> (N, branches, out_channels / branches, H', W')."""
        return torch.stack(self.convolve(x), 1)


def _convolve(branch: Any, x: Tensor) -> Tensor:
    weight = None if _has_any_global_hook() else bare_kernel(branch, branch.stride[0])
    return branch(x) if weight is None else grouped_conv(x, weight, branch.stride[0], branch.groups)


@register("psa")
class PSA(AttentionConv):
    """Pyramid squeeze attention, in place of a 3x3 convolution.

    Args:
        in_channels: channels of the feature map.
        out_channels: channels that come out; None keeps them.
        stride: of every branch.
        kernel_sizes: side of each branch's convolution, odd.
        groups: groups of each branch's convolution.
        reduction: ratio of the bottleneck of the SE that all branches share.
        variant: ``"official"`` (the authors' code) or ``"paper"`` (the text); see the head of this file.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride), rounded up

    Raises:
        InvalidArgument: channels that do not divide among branches and groups, or a branch narrower than ``reduction``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        stride: int = 1,
        *,
        kernel_sizes: Sequence[int] = (3, 5, 7, 9),
        groups: Sequence[int] = (1, 4, 8, 16),
        reduction: int = 16,
        variant: Literal["official", "paper"] = "official",
    ) -> None:
        super().__init__()
        check_choice(variant, "variant", ("official", "paper"), "PSA")
        out_channels = in_channels if out_channels is None else out_channels
        self.reverse = variant == "official"
        split = not self.reverse
        self.spc = SPC(in_channels, out_channels, stride, kernel_sizes=kernel_sizes, groups=groups, split=split)
        self.se = SqueezeExcitation(out_channels // len(kernel_sizes), reduction=reduction)

    def weigh(self, maps: list[Tensor]) -> Tensor:
        """Weigh the branches by their squeezed maps: (N, branches, C, 1, 1), adding to 1 over the branches."""
        z_NSC = torch.stack([self.se.squeeze(branch) for branch in maps], 1)
        s_NSC = self.se.excite(z_NSC.flatten(0, 1)).view_as(z_NSC)
        return torch.softmax(s_NSC, 1)[:, :, :, None, None]

    def gates(self, x: Tensor) -> tuple[Tensor]:
        """Return the branch weights (N, branches, out_channels / branches, 1, 1), in the order of ``kernel_sizes``."""
        return (self.weigh(self.spc.convolve(x)),)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the weighed branches."""
        maps = self.spc.convolve(x)
        weights, step = self.weigh(maps).unbind(1), -1 if self.reverse else 1
        return join(maps[::step], weights[::step])
