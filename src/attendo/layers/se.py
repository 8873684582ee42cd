"""SE, squeeze-and-excitation: a gate per channel from the mean of every channel.

Paper: Hu, Shen, Albanie, Sun, Wu, "Squeeze-and-Excitation Networks", CVPR 2018, https://arxiv.org/abs/1709.01507
Code:  https://github.com/hujie-frank/SENet (Caffe: both fully connected layers have a bias, which is our default)

Deviations: ``pool="max"`` squeezes with the maximum instead of the mean (an ablation in section 6.2 of the paper).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from attendo.functional import channel_max, channel_mean
from attendo.kernels.gates import GateWeights
from attendo.layers._bare import bare_tensors
from attendo.layers._base import Gate, register
from attendo.layers._checks import check_choice, hidden_width


@register("se")
class SqueezeExcitation(Gate):
    """Squeeze-and-excitation.

    Args:
        channels: channels of the feature map.
        reduction: ratio of the bottleneck; its width is ``channels // reduction``.
        bias: whether the two fully connected layers have a bias (the paper's code: yes; many copies: no).
        pool: the statistic squeezed from each channel, ``"avg"`` or ``"max"``.

    Shape:
        (N, C, H, W) -> (N, C, H, W)

    Raises:
        InvalidArgument: ``channels < reduction``, which would leave a hidden width of 0.
    """

    def __init__(
        self, channels: int, *, reduction: int = 16, bias: bool = True, pool: Literal["avg", "max"] = "avg"
    ) -> None:
        super().__init__()
        check_choice(pool, "pool", ("avg", "max"), "SE")
        hidden = hidden_width(channels, reduction, "SE")
        self.pool = pool
        self.fc1 = nn.Linear(channels, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, channels, bias=bias)

    def squeeze(self, x: Tensor) -> Tensor:
        """Describe each channel by one number: (N, C, H, W) -> (N, C)."""
        return channel_mean(x) if self.pool == "avg" else channel_max(x)

    def excite(self, z_NC: Tensor) -> Tensor:
        """S = sigmoid(W2 relu(W1 z)): (N, C) -> (N, C)."""
        return torch.sigmoid(self.fc2(torch.relu(self.fc1(z_NC))))

    def gates(self, x: Tensor) -> tuple[Tensor]:
        """Excite the squeezed map: one gate (N, C, 1, 1)."""
        return (self.excite(self.squeeze(x))[:, :, None, None],)

    def weights(self) -> GateWeights | None:
        """Name the tensors above."""
        first, second = bare_tensors(self._modules["fc1"]), bare_tensors(self._modules["fc2"])
        if first is None or second is None:
            return None
        mean = self.pool == "avg"
        return GateWeights(*first, *second, mean=mean, maximum=not mean)
