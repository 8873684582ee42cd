"""The memory-bound primitives that all mechanisms share.

An attention module does little arithmetic; its time goes into reading and writing the feature map. Nearly all of that
traffic passes through three functions:

    channel_stats    one read of the map, two numbers per channel
    spatial_stats    one read of the map, two numbers per position
    recalibrate      one read and one write of the map

``definition`` says in plain PyTorch what they compute. Where ``attendo.kernels`` has something faster it runs instead,
as an operator of ``torch.library`` (``torch.ops.attendo``) wherever a gradient or a compiler needs to know of it.
``attend`` is a whole mechanism in one call, for inference; ``grouped_conv`` and ``join`` are PSA's.

Shapes: x is (N, C, H, W) = samples, channels, height, width.
"""

from __future__ import annotations

from attendo.functional.branches import grouped_conv, join
from attendo.functional.definition import channel_max
from attendo.functional.fusion import attend
from attendo.functional.pooling import channel_mean, channel_stats, spatial_stats
from attendo.functional.recalibration import recalibrate

__all__ = [
    "attend",
    "channel_max",
    "channel_mean",
    "channel_stats",
    "grouped_conv",
    "join",
    "recalibrate",
    "spatial_stats",
]
