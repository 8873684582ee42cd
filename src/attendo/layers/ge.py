"""GE, gather-excite: a gate from the context around each position, or from the whole map.

Paper: Hu, Shen, Albanie, Sun, Vedaldi, "Gather-Excite: Exploiting Feature Context in Convolutional Neural Networks",
       NeurIPS 2018, https://arxiv.org/abs/1810.12348
Code:  https://github.com/hujie-frank/GENet (Caffe, ``extent=0`` only) and timm's GatherExcite (all extents)

    GE-theta-minus   the defaults: no parameters
    GE-theta         ``gather="conv"``
    GE-theta-plus    ``gather="conv", mlp=True``

Deviations: with ``extent=0`` the paper's kernel is as large as the map; ours is ``map_size``, and a map of another size
is averaged to it. ``mlp=True`` without convolution is not in the paper; with ``extent=0`` it is SE. ``variant="timm"``
is timm's reading: no ReLU between gather and MLP, and the map-sized kernel is padded, so that it slides over the map.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attendo._errors import InvalidArgument
from attendo.functional import channel_mean
from attendo.layers._base import Gate, register
from attendo.layers._checks import check_channels, check_choice, hidden_width
from attendo.layers._grid import stretch
from attendo.layers._norm import PooledBatchNorm


class WholeMap(nn.Conv2d):
    """A depthwise convolution as large as the map, which is averaged to that size if it has another."""

    def forward(self, x: Tensor) -> Tensor:
        """Weigh all positions: (N, C, H, W) -> (N, C)."""
        weighed = x * stretch(self.weight[:, 0], x.shape[2], x.shape[3])
        return weighed.sum((2, 3)).to(x.dtype)  # autocast widens the sum


@register("ge")
class GatherExcite(Gate):
    """Gather-excite.

    Args:
        channels: channels of the feature map.
        extent: side of the neighbourhood that is gathered, a power of two; 0 is the whole map.
        gather: ``"mean"``, or ``"conv"``: strided depthwise 3x3 convolutions, one of ``map_size`` if ``extent=0``.
        mlp: whether a bottleneck of 1x1 convolutions follows the gathering.
        reduction: ratio of that bottleneck.
        map_size: (height, width), or one number for both, of the kernel of ``gather="conv"`` with ``extent=0``.
        variant: ``"official"`` or ``"timm"``; see the head of this file. In timm's, an even ``map_size`` of the global
            kernel needs maps of 2x2 or more.

    Shape:
        (N, C, H, W) -> (N, C, H, W)

    Raises:
        InvalidArgument: ``extent`` is no power of two, ``channels < reduction`` with ``mlp``, no such choice.
    """

    def __init__(
        self,
        channels: int,
        *,
        extent: int = 0,
        gather: Literal["mean", "conv"] = "mean",
        mlp: bool = False,
        reduction: int = 16,
        map_size: int | tuple[int, int] = 7,
        variant: Literal["official", "timm"] = "official",
    ) -> None:
        super().__init__()
        check_channels(channels, "GE")
        check_choice(gather, "gather", ("mean", "conv"), "GE")
        check_choice(variant, "variant", ("official", "timm"), "GE")
        if extent not in (0, *(2**i for i in range(1, 16))):
            raise InvalidArgument(f"GE: extent={extent!r}; it must be 0 or a power of two. Take 2, 4, 8, or 0 for all.")
        self.extent = extent
        official = variant == "official"

        def depthwise(kernel: tuple[int, int], stride: int) -> list[nn.Module]:
            padding = ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2)
            conv = nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels, bias=False)
            return [conv, nn.BatchNorm2d(channels)]

        steps: list[nn.Module] = []
        if gather == "conv" and extent == 0:
            kernel = (map_size, map_size) if isinstance(map_size, int) else map_size
            if min(kernel) < 1:
                raise InvalidArgument(f"GE: map_size={map_size!r}; it must be positive. Take the size of the map.")
            if official:
                conv = WholeMap(channels, channels, kernel, groups=channels, bias=False)
                steps = [conv, PooledBatchNorm(channels, "GE"), nn.Unflatten(1, (channels, 1, 1))]
            else:
                steps = depthwise(kernel, stride=1)
        elif gather == "conv":
            steps = depthwise((3, 3), stride=2)
            for _ in range(extent.bit_length() - 2):
                steps += [nn.ReLU(), *depthwise((3, 3), stride=2)]
        if steps and mlp and official:
            steps.append(nn.ReLU())
        self.gather = nn.Sequential(*steps) if steps else None
        self.mlp = nn.Sequential()
        if mlp:
            hidden = hidden_width(channels, reduction, "GE")
            self.mlp.extend([nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1)])

    def gather_context(self, x: Tensor) -> Tensor:
        """Summarise each neighbourhood: (N, C, H, W) -> (N, C, H / extent, W / extent), rounded up, or (N, C, 1, 1)."""
        if self.gather is not None:
            return self.gather(x)
        if self.extent == 0:
            return channel_mean(x)[:, :, None, None]
        kernel = 2 * self.extent - 1
        return F.avg_pool2d(x, kernel, self.extent, kernel // 2, count_include_pad=False)

    def gates(self, x: Tensor) -> tuple[Tensor]:
        """S = sigmoid(mlp(gathered)): (N, C, 1, 1), or (N, C, H, W), each value repeated over its neighbourhood."""
        s_NChw = torch.sigmoid(self.mlp(self.gather_context(x)))
        if s_NChw.shape[2:] == (1, 1):
            return (s_NChw,)
        return (F.interpolate(s_NChw, size=x.shape[2:]),)
