"""SimAM: a gate per channel and position without parameters, high where a value stands out from its channel.

Paper: Yang, Zhang, Li, Xie, "SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural Networks",
       ICML 2021, https://proceedings.mlr.press/v139/yang21o.html
Code:  https://github.com/ZjjConan/SimAM

Deviations: the variance has n = H * W - 1 below it as in the official code, which on a 1x1 map is 0 / 0 and gives NaN;
there we take n = 1, so that the variance is 0 and the gate sigmoid(0.5). The sum of squares is never formed, as it
overflows float16 on large maps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attendo._errors import InvalidArgument
from attendo.layers._base import Gate, register
from attendo.layers._checks import check_channels


@register("simam")
class SimAM(Gate):
    """Simple, parameter-free attention.

    Args:
        channels: channels of the feature map; not used, there for the common contract.
        e_lambda: the paper's regulariser, added to the variance; the larger, the closer all gates are to sigmoid(0.5).

    Shape:
        (N, C, H, W) -> (N, C, H, W)

    Raises:
        InvalidArgument: ``e_lambda`` is not positive.
    """

    placement = "conv"

    def __init__(self, channels: int, *, e_lambda: float = 1e-4) -> None:
        super().__init__()
        check_channels(channels, "SimAM")
        if not e_lambda > 0:
            raise InvalidArgument(
                f"SimAM: e_lambda={e_lambda!r} divides by zero on a constant channel; it must be positive. "
                f"Take the paper's 1e-4."
            )
        self.e_lambda = e_lambda

    def gates(self, x: Tensor) -> tuple[Tensor]:
        """S = sigmoid(d^2 / (4 (variance + lambda)) + 1/2), d the distance to the channel's mean: (N, C, H, W)."""
        positions = x.shape[2] * x.shape[3]
        variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
        variance = variance * (positions / max(positions - 1, 1))
        distance = (x - mean) / (4 * (variance + self.e_lambda)).sqrt()
        return (torch.sigmoid(distance.square() + 0.5),)

    def extra_repr(self) -> str:
        """Show the one setting."""
        return f"e_lambda={self.e_lambda}"
