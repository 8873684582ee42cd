"""timm's residual blocks, ending in one pass: gates times x, plus shortcut, rectified.

The modules, their names and their order are timm's; what a block computes is the same. Where something stands between
the attention and the sum (drop path in training, another activation), timm's own forward runs.
"""

from __future__ import annotations

from typing import Any

from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from attendo.layers._base import Gate, hooked


def _end(block: Any, x: Tensor, shortcut: Tensor) -> Tensor:
    """Recalibrate the branch, add the shortcut, rectify."""
    if block.downsample is not None:
        shortcut = block.downsample(shortcut)
    return block.se.recalibrate(x, shortcut, relu=True, inplace=True)


def _ends_in_one_pass(block: Any, act: nn.Module) -> bool:
    gate = block.se
    return (
        isinstance(gate, Gate)
        and type(gate).forward is Gate.forward  # one that combines its gates otherwise takes no shortcut
        and type(act) is nn.ReLU
        and not hooked(gate, act)
        and (block.drop_path is None or not block.training)
    )


class AttentionBasicBlock(BasicBlock):
    """timm's ``BasicBlock`` with the fused end."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, planes, H / stride, W / stride)."""
        if not _ends_in_one_pass(self, self.act2):
            return super().forward(x)
        y = self.aa(self.act1(self.drop_block(self.bn1(self.conv1(x)))))
        return _end(self, self.bn2(self.conv2(y)), x)


class AttentionBottleneck(Bottleneck):
    """timm's ``Bottleneck`` with the fused end."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 4 planes, H / stride, W / stride)."""
        if not _ends_in_one_pass(self, self.act3):
            return super().forward(x)
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.aa(self.act2(self.drop_block(self.bn2(self.conv2(y)))))
        return _end(self, self.bn3(self.conv3(y)), x)
