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
]
