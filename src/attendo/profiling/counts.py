"""Parameters and multiply-accumulates of a network, and what the latter leave out.

A MAC is one multiplication with its addition, counted by the formulas of torch's FlopCounterMode (which count two
operations for each): convolutions, matrix products and scaled dot-product attention, wherever they are called. Biases,
norms, pooling, activations and element-wise products have no formula there; ``Counts.uncounted`` names them.
torchinfo counts layers instead of operators: it adds the biases and the norms' weights, and misses what is called as a
function. Units are decimal: 1 G = 1e9.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from attendo.profiling._checks import Size, check_model, check_size, uncompiled
from attendo.profiling._format import by, human, megabytes, plain
from attendo.profiling._trace import Trace, trace


@dataclass(frozen=True)
class Counts:
    """What a network has and does for one image.

    Attributes:
        parameters: all of them, a shared one once.
        trainable: those that require a gradient.
        buffers: elements of running statistics and the like.
        parameter_bytes: memory of the parameters.
        buffer_bytes: memory of the buffers.
        macs: multiply-accumulates of one image in eval mode.
        uncounted: operators that ran without counting as MACs, and the elements each wrote; most first.
        input_size: of the image, without the batch.
        real_run: "" if the MACs come from a dry run, which computes nothing; otherwise why it had to be a real one,
            whose numbers may depend on the image (which is noise).
    """

    parameters: int
    trainable: int
    buffers: int
    parameter_bytes: int
    buffer_bytes: int
    macs: int
    uncounted: dict[str, int]
    input_size: tuple[int, ...]
    real_run: str

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as JSON can hold them."""
        return dict(plain(self))

    def __str__(self) -> str:
        trainable = "all trainable" if self.trainable == self.parameters else f"{self.trainable:,} trainable"
        size = f"{human(self.parameters)}, {megabytes(self.parameter_bytes)}"
        uncounted = [f"{name} {human(elements)}" for name, elements in self.uncounted.items()]
        lines = [
            f"parameters    {self.parameters:,} ({size}), {trainable}",
            f"buffers       {self.buffers:,} ({megabytes(self.buffer_bytes)})",
            f"MACs          {self.macs:,} ({human(self.macs)}) for one image of {by(self.input_size)}",
            f"not counted   {', '.join(uncounted) or 'nothing'}{' (elements written)' if uncounted else ''}",
        ]
        if self.real_run:
            lines.append(f"real run      {self.real_run}")
        return "\n".join(lines)


def count(model: nn.Module, input_size: Size = (3, 224, 224)) -> Counts:
    """Count parameters and MACs of a network; it is left as it was.

    The MACs come from a dry run of a copy without values, in eval mode, so that any image size costs nothing. The copy
    has the model's hooks, which run in it as they do in any forward pass.

    Args:
        model: any network that takes one batch of images.
        input_size: of one image, without the batch: (channels, height, width).

    Raises:
        InvalidArgument: not an nn.Module, or a size that is not positive or that the model cannot take.

    >>> from torch import nn
    >>> print(count(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), (3, 32, 32)))
    parameters    224 (224, 0.00 MB), all trainable
    buffers       0 (0.00 MB)
    MACs          194,400 (194.4 k) for one image of 3 x 32 x 32
    not counted   relu 7.2 k (elements written)
    """
    network = uncompiled(check_model(model, "count"))
    return counts_of(network, trace(network, size := check_size(input_size, "count")), size)


def counts_of(model: nn.Module, traced: Trace, input_size: tuple[int, ...]) -> Counts:
    """Put the counts of a watched forward pass beside those of the parameters."""
    parameters, buffers = list(model.parameters()), list(model.buffers())
    return Counts(
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        buffers=sum(buffer.numel() for buffer in buffers),
        parameter_bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        buffer_bytes=sum(buffer.numel() * buffer.element_size() for buffer in buffers),
        macs=traced.macs,
        uncounted=traced.uncounted,
        input_size=input_size,
        real_run=traced.real_run,
    )
