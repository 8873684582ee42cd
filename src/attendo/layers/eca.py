"""ECA, efficient channel attention: a gate per channel from the means of its neighbours in channel order.

Paper: Wang, Wu, Zhu, Li, Zuo, Hu, "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks",
       CVPR 2020, https://arxiv.org/abs/1910.03151
Code:  https://github.com/BangguWu/ECANet

Deviations: none. The official code takes the kernel size by hand; its released ResNets use 3,5,7,7 (18), 3,3,5,7 (34,
101, 152) and 3,5,5,7 (50), none of which is the paper's formula (3,5,5,5 for 18 and 34, 5,5,5,7 for the others). The
formula leaves a channel count of 4 with a kernel of 1, where timm takes 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from attendo._errors import InvalidArgument
from attendo.functional import channel_mean
from attendo.kernels.gates import GateWeights
from attendo.layers._bare import bare_kernel
from attendo.layers._base import Gate, register
from attendo.layers._checks import check_channels, check_odd


def adaptive_kernel_size(channels: int, gamma: float = 2, b: float = 1) -> int:
    """Return the odd kernel size of the paper (eq. 12): t = |log2(C) / gamma + b / gamma|, raised to odd.

    >>> [adaptive_kernel_size(channels) for channels in (64, 128, 256, 512, 1024, 2048)]
    [3, 5, 5, 5, 5, 7]
    """
    t = int(abs((math.log2(channels) + b) / gamma))
    return t if t % 2 else t + 1


@register("eca")
class ECA(Gate):
    """Efficient channel attention.

    Args:
        channels: channels of the feature map.
        kernel_size: how many neighbouring channels decide a gate, odd; None takes the paper's adaptive formula.
        gamma: slope of the formula.
        b: offset of the formula.

    Shape:
        (N, C, H, W) -> (N, C, H, W)

    Raises:
        InvalidArgument: ``kernel_size`` is not odd and positive, or ``gamma`` is 0.
    """

    def __init__(self, channels: int, *, kernel_size: int | None = None, gamma: float = 2, b: float = 1) -> None:
        super().__init__()
        check_channels(channels, "ECA")
        if kernel_size is None:
            if gamma == 0:
                raise InvalidArgument("ECA: gamma=0 divides by zero in the adaptive formula. Take the paper's 2.")
            kernel_size = adaptive_kernel_size(channels, gamma, b)
        check_odd(kernel_size, "kernel_size", "ECA")
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def gates(self, x: Tensor) -> tuple[Tensor]:
        """S = sigmoid(conv1d(mean(x))), the convolution running over channels: one gate (N, C, 1, 1)."""
        z_NC = channel_mean(x)
        s_NC = torch.sigmoid(self.conv(z_NC[:, None])[:, 0])
        return (s_NC[:, :, None, None],)

    def weights(self) -> GateWeights | None:
        """Name the tensor above."""
        conv = bare_kernel(self._modules["conv"])
        return None if conv is None else GateWeights(conv=conv, mean=True)
