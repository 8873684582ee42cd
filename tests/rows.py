"""The rows: one per registered mechanism, and more where a setting changes the arithmetic. The place a newcomer edits.

``parameters`` is counted by hand from the paper; the count stands beside it as a sum.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One mechanism with settings, and what is known of it.

    ``gate_range`` is the open interval of every gate. ``product`` says that forward is x times its gates. ``constant``
    says that the gate does not depend on the input (only the control may say so).
    """

    name: str
    channels: int
    parameters: int
    settings: dict[str, Any] = field(default_factory=dict)
    gate_range: tuple[float, float] = (0.0, 1.0)
    product: bool = True
    constant: bool = False

    @property
    def id(self) -> str:
        settings = ",".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.name}({self.channels}{',' if settings else ''}{settings})".replace(" ", "")


ROWS = [
    Row("se", 64, 64 * 4 + 4 + 4 * 64 + 64),
    Row("se", 64, 64 * 4 + 4 * 64, {"bias": False}),
    Row("se", 64, 64 * 16 + 16 * 64, {"bias": False, "reduction": 4, "pool": "max"}),
    Row("static", 64, 64 * 4 + 4 + 4 * 64 + 64, constant=True),
    Row("eca", 64, 3),
    Row("eca", 512, 5),
    Row("eca", 64, 7, {"kernel_size": 7}),
    Row("cbam", 64, 64 * 4 + 4 + 4 * 64 + 64 + 2 * 49 + 2),
    Row("cbam", 64, 64 * 4 + 4 * 64 + 2 * 49, {"variant": "paper"}),
    Row("cbam", 64, 3 + 2 * 25, {"variant": "paper", "channel": "eca", "spatial_kernel": 5}),
    Row("cbam", 64, 64 * 4 + 4 + 4 * 64 + 64 + 2 * 9 + 2, {"spatial_kernel": 3, "order": "spatial-channel"}),
    Row("cbam", 64, 64 * 4 + 4 + 4 * 64 + 64 + 2 * 49 + 2, {"order": "parallel"}),
    Row("cbam", 64, 64 * 4 + 4 + 4 * 64 + 64 + 2 * 49 + 2, {"gate": "softmax"}, gate_range=(0.0, 1.0 + 1e-6)),
    Row("cbam_channel", 64, 64 * 4 + 4 + 4 * 64 + 64),
    Row("cbam_spatial", 64, 2 * 49 + 2),
    # four branches of 16 channels: k*k * 64/groups * 16 each, and an SE of 16 -> 1 -> 16
    Row("psa", 64, 16 * (9 * 64 + 25 * 16 + 49 * 8 + 81 * 4) + 16 + 1 + 16 + 16, product=False),
    Row(
        "psa",
        64,
        32 * 32 * (9 + 25) + 2 * 32 * 4 + 4 + 32,
        {"kernel_sizes": (3, 5), "groups": (2, 2), "reduction": 8},
        product=False,
    ),
    Row(
        "psa", 256, 64 * (9 * 64 + 25 * 16 + 49 * 8 + 81 * 4) + 2 * 64 * 4 + 4 + 64, {"variant": "paper"}, product=False
    ),
    # an MLP with one norm, and a bottleneck 1x1, 3x3, 3x3, 1x1 with three
    Row(
        "bam",
        64,
        (64 * 4 + 4) + 2 * 4 + (4 * 64 + 64) + (64 * 4 + 4) + 2 * (9 * 4 * 4 + 4) + 3 * 2 * 4 + (4 + 1),
        product=False,
    ),
    # the norms stand at the ends of the branches: 64 channels, 1 channel
    Row(
        "bam",
        64,
        (64 * 4 + 4) + (4 * 64 + 64) + 2 * 64 + (64 * 4 + 4) + 2 * (9 * 4 * 4 + 4) + (4 + 1) + 2,
        {"variant": "paper"},
        product=False,
    ),
    Row("scse", 64, 64 * 4 + 4 + 4 * 64 + 64 + (64 + 1), product=False),
    Row("scse", 64, 64 * 32 + 32 + 32 * 64 + 64 + (64 + 1), {"reduction": 2, "combine": "max"}, product=False),
    Row("simam", 64, 0, gate_range=(0.6224, 1.0)),  # sigmoid(1/2) = 0.62246
    Row("coord", 64, (64 * 8 + 8) + 2 * 8 + 2 * (8 * 64 + 64)),
    Row("coord", 64, (64 * 16 + 16) + 2 * 16 + 2 * (16 * 64 + 64), {"reduction": 4}),
    Row("triplet", 64, 3 * (2 * 49 + 2), product=False),
    Row("triplet", 64, 2 * (2 * 9 + 2), {"no_spatial": True, "kernel_size": 3}, product=False),
    Row("gc", 64, (64 + 1) + (64 * 4 + 4) + 2 * 4 + (4 * 64 + 64), product=False),
    Row("gc", 64, (64 + 1) + (64 * 8 + 8) + 2 * 8 + (8 * 64 + 64), {"fusion": "scale", "reduction": 8}),
    Row("gc", 64, (64 + 1) + 2 * ((64 * 4 + 4) + 2 * 4 + (4 * 64 + 64)), {"fusion": "both"}, product=False),
    Row("gc", 64, (64 * 4 + 4) + 2 * 4 + (4 * 64 + 64), {"fusion": "scale", "pool": "avg"}),
    # two 3x3 convolutions in 32 groups, each with its norm; 64 -> 32 with a norm; 32 -> 2 * 64
    Row("sk", 64, 2 * (9 * 64 * 64 // 32 + 2 * 64) + 64 * 32 + 2 * 32 + 32 * 2 * 64, product=False),
    Row(
        "sk",
        64,
        64 * 64 * (1 + 9 + 25 + 49) + 4 * (64 + 2 * 64) + (64 * 32 + 32) + 4 * (32 * 64 + 64),
        {"kernel_sizes": (1, 3, 5, 7), "groups": 1, "dilated": False, "bias": True, "squeeze_norm": False},
        gate_range=(0.0, 1.0 + 1e-6),
        product=False,
    ),
    Row(
        "sk",
        64,
        2 * (9 * 32 * 64 + 2 * 64) + 64 * 8 + 2 * 8 + 8 * 2 * 64,
        {"groups": 1, "split": True, "min_width": 8},
        product=False,
    ),
    Row("fca", 64, 64 * 4 + 4 * 64),
    Row("fca", 64, 64 * 8 + 8 * 64, {"reduction": 8, "dct_size": (14, 8), "frequencies": "low32"}),
    Row("ge", 64, 0),
    Row("ge", 64, 0, {"extent": 4}),
    Row("ge", 64, 64 * 4 + 4 + 4 * 64 + 64, {"extent": 2, "mlp": True}),
    Row("ge", 64, 64 * 6 * 8 + 2 * 64, {"gather": "conv", "map_size": (6, 8)}),
    Row("ge", 64, 2 * (9 * 64 + 2 * 64), {"gather": "conv", "extent": 4}),
    Row("ge", 64, 64 * 49 + 2 * 64 + 64 * 4 + 4 + 4 * 64 + 64, {"gather": "conv", "mlp": True}),
    Row("ge", 64, 64 * 49 + 2 * 64 + 64 * 4 + 4 + 4 * 64 + 64, {"gather": "conv", "mlp": True, "variant": "timm"}),
]
