"""What computes the gates of a whole attention, as tensors: the language between layers and one-call kernels."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class GateWeights(NamedTuple):
    """The arithmetic of SE, ECA, CBAM and their halves; a part is absent where its tensors are None.

    The channel half pools every channel to ``pools`` statistics, sends each through one shared function (two fully
    connected layers with a ReLU between them, or a convolution over channels), adds the results and takes the sigmoid.
    The spatial half convolves mean and maximum over the channels of what the channel half leaves, normalises with fixed
    statistics and takes the sigmoid.

    Attributes:
        pools: statistics of each channel, ``("mean",)``, ``("max",)`` or both; () without a channel half.
        fc1: weight (hidden, C) of the first layer; None with ``conv``.
        fc1_bias: (hidden) or None.
        fc2: (C, hidden).
        fc2_bias: (C) or None.
        conv: weight (1, 1, k) of the convolution over channels.
        spatial: weight (1, 2, k, k) of the spatial convolution.
        norm: weight, bias, running mean and running variance of its norm, one number each; or ().
        norm_eps: of that norm.
        max_first: whether the spatial convolution's first input is the maximum.
    """

    pools: tuple[str, ...] = ()
    fc1: Tensor | None = None
    fc1_bias: Tensor | None = None
    fc2: Tensor | None = None
    fc2_bias: Tensor | None = None
    conv: Tensor | None = None
    spatial: Tensor | None = None
    norm: tuple[Tensor, ...] = ()
    norm_eps: float = 0.0
    max_first: bool = False

    def tensors(self) -> list[Tensor]:
        """Return all tensors that are there."""
        named = (self.fc1, self.fc1_bias, self.fc2, self.fc2_bias, self.conv, self.spatial)
        return [tensor for tensor in (*named, *self.norm) if tensor is not None]
