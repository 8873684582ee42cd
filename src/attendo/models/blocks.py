"""timm's residual blocks, ending in one call: the last norm, the gates times what it makes, plus shortcut, rectified.

The modules, their names and their order are timm's, and so is what a block computes. Where something else happens at
its end (drop path in training, another activation, a hook), the steps run one by one.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from attendo.functional.route import exporting, symbolic
from attendo.kernels.gates import GateWeights
from attendo.layers._bare import fresh, hooked
from attendo.layers._base import Gate


class Ungated(Gate):
    """No attention: a plain block ends in the same call, so that a comparison shows what the attention costs."""

    def gates(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return none."""
        return ()

    def weights(self) -> GateWeights:
        """Return none."""
        return GateWeights()


class AttentionBasicBlock(BasicBlock):
    """timm's ``BasicBlock`` with the fused end."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.ungated = (Ungated(),)  # in a tuple, a module is not registered

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, planes, H / stride, W / stride)."""
        y = self.aa(self.act1(self.drop_block(self.bn1(self.conv1(x)))))
        return _end(self, self.conv2, self.bn2, self.act2, y, x)


class AttentionBottleneck(Bottleneck):
    """timm's ``Bottleneck`` with the fused end."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.ungated = (Ungated(),)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 4 planes, H / stride, W / stride)."""
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.aa(self.act2(self.drop_block(self.bn2(self.conv2(y)))))
        return _end(self, self.conv3, self.bn3, self.act3, y, x)


def _end(block: Any, conv: nn.Module, norm: nn.Module, act: nn.Module, x: Tensor, shortcut: Tensor) -> Tensor:
    """Convolve and normalise, the last of the branch x; recalibrate it, add the shortcut, rectify."""
    gate, drop_path = block.se, block.drop_path
    x = conv(x)
    if block.downsample is not None:
        shortcut = block.downsample(shortcut)
    plain = gate is None and not _compiled(x) and x.is_cpu
    end = block.ungated[0] if plain else gate
    if (drop_path is None or not block.training) and _in_one_pass(end, act):
        if not plain:
            return end.recalibrate(x, shortcut, relu=True, inplace=fresh(conv), norm=norm)
        out = end.one_call(x, shortcut, True, fresh(conv), norm)
        if out is not None:
            return out
    x = norm(x)
    if gate is not None:
        x = gate(x)
    if drop_path is not None:
        x = drop_path(x)
    # in place, as in timm, but for attention: a backward hook on it does not stand its result being changed
    x = x.add_(shortcut) if gate is None else x + shortcut
    return act(x)


def _compiled(x: Tensor) -> bool:
    """Whether somebody writes down what happens, who fuses a plain end himself or looks for its modules."""
    return torch.compiler.is_compiling() or symbolic(x)


def _in_one_pass(gate: Any, act: nn.Module) -> bool:
    return (
        getattr(type(gate), "forward", None) is Gate.forward  # one that combines its gates otherwise takes no shortcut
        and type(act) is nn.ReLU
        and not (hooked(gate) or hooked(act) or "forward" in gate.__dict__ or "forward" in act.__dict__)
        and not _has_any_global_hook()
        and not exporting()  # what reads an exported graph looks for the attention by its name
    )
