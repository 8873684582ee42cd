"""Static: the control of every comparison, a gate with SE's parameters that never looks at the image.

Not from a paper. It is SE with the squeezed vector replaced by ones, so it has SE's parameters, optimisation and form,
and lacks only the thing that SE claims to help: a gate that depends on the input. What SE gains over it is attention;
what it gains over no gate is not.
"""

from __future__ import annotations

from torch import Tensor

from attendo.layers._base import register
from attendo.layers.se import SqueezeExcitation


@register("static")
class StaticGate(SqueezeExcitation):
    """A channel gate with SE's parameters that is the same for every image.

    Args:
        channels: channels of the feature map.
        reduction: ratio of the bottleneck, as in SE.
        bias: whether the two layers have a bias, as in SE.

    Shape:
        (N, C, H, W) -> (N, C, H, W)

    Raises:
        InvalidArgument: ``channels < reduction``.
    """

    def __init__(self, channels: int, *, reduction: int = 16, bias: bool = True) -> None:
        super().__init__(channels, reduction=reduction, bias=bias)

    def squeeze(self, x: Tensor) -> Tensor:
        """Return ones, whatever the image: (N, C, H, W) -> (N, C)."""
        return x.new_ones(x.shape[:2])
