"""GC, global context: every position receives the same context, a mean of the map that attention over positions weighs.

Paper: Cao, Xu, Lin, Wei, Hu, "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond", ICCV workshops
       2019, https://arxiv.org/abs/1904.11492
Code:  https://github.com/xvjiarui/GCNet (its names: ``channel_add``, ``channel_mul``, pooling ``att`` and ``avg``)

Deviations: none. The last layer of the bottleneck starts at zero as in the official code, so that ``fusion="add"``
starts as the identity. timm's GlobalContext is ``fusion="scale"`` with ``reduction=8`` and ``eps=1e-6``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from attendo._errors import InvalidArgument
from attendo.functional import channel_mean, recalibrate
from attendo.layers._base import Gate, register
from attendo.layers._checks import check_choice, hidden_width


def bottleneck(channels: int, hidden: int, eps: float) -> nn.Sequential:
    """Return GC's transform of the context, (N, C) -> (N, C), with the last layer at zero."""
    last = nn.Linear(hidden, channels)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(channels, hidden), nn.LayerNorm(hidden, eps), nn.ReLU(), last)


@register("gc")
class GlobalContext(Gate):
    """Global context.

    Args:
        channels: channels of the feature map.
        reduction: ratio of the bottleneck.
        fusion: what the transformed context does to x: ``"add"`` (the paper), ``"scale"`` through a sigmoid, or
            ``"both"``, scale first.
        pool: how the context is pooled: ``"attention"`` over positions (the paper), or ``"avg"``.
        eps: of the LayerNorm in the bottleneck.

    Shape:
        (N, C, H, W) -> (N, C, H, W)

    Raises:
        InvalidArgument: a bottleneck narrower than 2, or a choice that does not exist.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        fusion: Literal["add", "scale", "both"] = "add",
        pool: Literal["attention", "avg"] = "attention",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_choice(fusion, "fusion", ("add", "scale", "both"), "GC")
        check_choice(pool, "pool", ("attention", "avg"), "GC")
        hidden = hidden_width(channels, reduction, "GC")
        if hidden < 2:
            raise InvalidArgument(
                f"GC: {channels} channels with reduction {reduction} leave a hidden width of 1, which LayerNorm turns "
                f"into a constant; it must be 2 or more. Pass reduction={max(1, channels // 4)} or less."
            )
        self.conv = nn.Conv2d(channels, 1, 1) if pool == "attention" else None
        if self.conv is not None and self.conv.bias is not None:
            nn.init.kaiming_normal_(self.conv.weight)
            nn.init.zeros_(self.conv.bias)
        self.add = bottleneck(channels, hidden, eps) if fusion != "scale" else None
        self.scale = bottleneck(channels, hidden, eps) if fusion != "add" else None

    def pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the attention over positions (N, 1, H, W), adding to 1, and the context it pools, (N, C)."""
        if self.conv is None:
            return torch.full_like(x[:, :1], 1 / (x.shape[2] * x.shape[3])), channel_mean(x)
        logits_N1HW = self.conv(x)
        p_N1L = torch.softmax(logits_N1HW.flatten(2), 2)
        return p_N1L.view_as(logits_N1HW), (x.flatten(2) @ p_N1L.transpose(1, 2))[:, :, 0]

    def gates(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the channel gate (N, C, 1, 1) if it scales, and the attention over positions (N, 1, H, W) if it adds.

        The context that ``"add"`` adds is no factor; where it comes from is what can be read.
        """
        p_N1HW, c_NC = self.pool(x)
        scale = () if self.scale is None else (torch.sigmoid(self.scale(c_NC))[:, :, None, None],)
        return scale if self.add is None else (*scale, p_N1HW)

    def forward(self, x: Tensor) -> Tensor:
        """Scale x by its channel gate, add the transformed context, or both."""
        c_NC = self.pool(x)[1]
        if self.scale is not None:
            x = recalibrate(x, (torch.sigmoid(self.scale(c_NC))[:, :, None, None],))
        return x if self.add is None else x + self.add(c_NC)[:, :, None, None]
