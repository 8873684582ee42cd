"""Coordinate attention: a gate per channel and row and one per channel and column, from means along the other axis.

Paper: Hou, Zhou, Feng, "Coordinate Attention for Efficient Mobile Network Design", CVPR 2021,
       https://arxiv.org/abs/2103.02907
Code:  https://github.com/houqb/CoordAttention

Deviations: none. The official bottleneck is never narrower than 8 channels, whatever ``reduction``. Popular copies drop
the two sigmoids, the biases or the h-swish; they are other modules.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attendo.layers._base import Gate, register
from attendo.layers._checks import hidden_width


@register("coord")
class CoordinateAttention(Gate):
    """Coordinate attention.

    Args:
        channels: channels of the feature map.
        reduction: ratio of the bottleneck; its width is ``max(8, channels // reduction)``.

    Shape:
        (N, C, H, W) -> (N, C, H, W)

    Raises:
        InvalidArgument: ``reduction`` is not a positive integer.
    """

    def __init__(self, channels: int, *, reduction: int = 32) -> None:
        super().__init__()
        width = max(8, hidden_width(channels, min(reduction, channels), "Coordinate attention"))
        self.conv1 = nn.Conv1d(channels, width, 1)
        self.bn1 = nn.BatchNorm1d(width)
        self.conv_h = nn.Conv1d(width, channels, 1)
        self.conv_w = nn.Conv1d(width, channels, 1)

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gate of each row (N, C, H, 1) and of each column (N, C, 1, W)."""
        height, width = x.shape[2:]
        z_NCL = torch.cat((x.mean(3), x.mean(2)), 2)  # rows, then columns: L = H + W
        y_NRL = F.hardswish(self.bn1(self.conv1(z_NCL)))
        rows, columns = y_NRL.split((height, width), 2)
        s_NCH, s_NCW = torch.sigmoid(self.conv_h(rows)), torch.sigmoid(self.conv_w(columns))
        return s_NCH[:, :, :, None], s_NCW[:, :, None, :]
