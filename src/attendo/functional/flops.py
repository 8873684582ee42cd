"""Operations of the operators that multiply, for PyTorch's FLOP counter; imported by ``attendo.profiling``.

Eager layers need none of this: while a counter watches, the definition runs. It matters where the operators themselves
are seen, as in a compiled graph. The statistics and ``recalibrate`` count nothing, as their definition does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula


@register_flop_formula(torch.ops.attendo.grouped_conv)
def _grouped_conv(x: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    samples, outputs, height, width = out_shape
    _, inputs, kernel, _ = weight
    return 2 * int(samples * outputs * height * width * inputs * kernel * kernel)


@register_flop_formula(torch.ops.attendo.attention)
def _attention(x: Any, tensors: Any, eps: Any, mean: bool, maximum: bool, *_: Any, **__: Any) -> int:
    samples, channels, height, width = x
    fc1, _, _, _, conv, spatial, *_ = tensors
    statistics = samples * (mean + maximum)
    macs = 0
    if fc1 is not None:
        macs += statistics * 2 * channels * fc1[0]
    if conv is not None:
        macs += statistics * channels * conv[-1]
    if spatial is not None:
        macs += samples * 2 * spatial[-1] ** 2 * height * width
    return 2 * int(macs)
