"""What computes the gates of a whole attention, as tensors: the language between layers and one-call kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Norm(NamedTuple):
    """A batch norm.

    Attributes:
        weight: (C) or None.
        bias: (C) or None.
        mean: (C), running; None, as the next, where only the batch's own is asked for.
        var: (C), running.
        eps: what is added to the variance.
        momentum: None where the running statistics count and stay as they are. A number where the batch's own count:
            how far they pull the running ones towards them.
        batches: how many batches did so, a number to add to; None where nobody counts.
    """

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    eps: float
    momentum: float | None = None
    batches: Tensor | None = None

    def fit(self, channels: int) -> bool:
        """Whether the tensors are those of maps of that many channels."""
        return all(tensor is None or tensor.shape == (channels,) for tensor in self[:4])

    def contiguous(self) -> Norm:
        """Return the same with every tensor contiguous."""
        return Norm(*(part.contiguous() if isinstance(part, Tensor) else part for part in self))  # type: ignore[arg-type]


class GateWeights(NamedTuple):
    """The arithmetic of SE, ECA, CBAM and their halves; a part is absent where its tensors are None.

    The channel half pools every channel to its mean, its maximum or both, sends each through one shared function (two
    fully connected layers with a ReLU between them, or a convolution over channels), adds the results and takes the
    sigmoid. The spatial half convolves mean and maximum over the channels of what the channel half leaves, normalises
    and takes the sigmoid.

    Attributes:
        fc1: weight (hidden, C) of the first layer; None with ``conv``.
        fc1_bias: (hidden) or None.
        fc2: (C, hidden).
        fc2_bias: (C) or None.
        conv: weight (1, 1, k) of the convolution over channels.
        spatial: weight (1, 2, k, k) of the spatial convolution.
        norm: its norm, of one channel.
        mean: whether the channel half sees the mean.
        maximum: whether it sees the maximum.
        maximum_first: whether the spatial convolution's first input is the maximum.
    """

    fc1: Tensor | None = None
    fc1_bias: Tensor | None = None
    fc2: Tensor | None = None
    fc2_bias: Tensor | None = None
    conv: Tensor | None = None
    spatial: Tensor | None = None
    norm: Norm | None = None
    mean: bool = False
    maximum: bool = False
    maximum_first: bool = False

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Return the tensors in the order of ``TENSORS``, None for those that are not there."""
        return *self[:6], *(_NO_NORM if self.norm is None else self.norm)[:4]

    def holding(self, tensors: Sequence[Tensor | None]) -> GateWeights:
        """Return the same with other tensors, in the order of ``TENSORS``."""
        norm = None if self.norm is None else Norm._make((*tensors[6:], *self.norm[4:]))
        return GateWeights._make((*tensors[:6], norm, *self[7:]))

    def fit(self, channels: int) -> bool:
        """Whether the shapes are those above for maps of that many channels; a kernel reads as far as they say."""
        fc1, fc1_bias, fc2, fc2_bias, conv, spatial, norm, *_ = self
        if fc1 is not None:
            hidden = fc1.shape[0]
            if fc1.shape != (hidden, channels) or fc2 is None or fc2.shape != (channels, hidden):
                return False
            if fc1_bias is not None and fc1_bias.shape != (hidden,):
                return False
            if fc2_bias is not None and fc2_bias.shape != (channels,):
                return False
        if conv is not None and conv.shape != (1, 1, conv.shape[-1]):
            return False
        if spatial is not None and spatial.shape != (1, 2, spatial.shape[-1], spatial.shape[-1]):
            return False
        return norm is None or norm.fit(1)

    def contiguous(self) -> GateWeights:
        """Return the same with every tensor contiguous."""
        return self.holding([None if tensor is None else tensor.contiguous() for tensor in self.tensors()])


TENSORS = (*GateWeights._fields[:6], *(f"norm_{name}" for name in Norm._fields[:4]))
_NO_NORM = Norm(None, None, None, None, 0.0)
