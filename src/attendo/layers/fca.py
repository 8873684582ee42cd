"""FcaNet, frequency channel attention: SE that describes each channel by one DCT coefficient instead of its mean.

Paper: Qin, Zhang, Wu, Li, "FcaNet: Frequency Channel Attention Networks", ICCV 2021, https://arxiv.org/abs/2012.11879
Code:  https://github.com/cfzd/FcaNet

Deviations: none in the numbers. A map of another size than the DCT's grid is averaged to the grid as in the official
code, but the averaging is multiplied into the filters: an adaptive pool's gradient is not deterministic on CUDA. The
filters are the buffer ``dct``, saved with the weights; it holds one per frequency, the official code one per channel.
Grids below 7 are refused: the official code scales frequencies by ``size // 7``, which there makes SE of FcaNet.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attendo._errors import InvalidArgument
from attendo.layers._base import register
from attendo.layers._checks import hidden_width
from attendo.layers._grid import stretch
from attendo.layers.se import SqueezeExcitation

# uv on a 7x7 grid, u along the height, in the official order: best frequencies first, worst first, lowest first
FREQUENCIES = {
    "top": "00 01 60 05 02 10 12 40 50 16 30 04 06 03 35 22 46 63 33 53 55 21 61 52 54 32 31 41 23 20 65 13",
    "bot": "66 14 34 36 26 43 11 24 44 45 56 15 42 62 25 51 64 13 65 20 23 41 31 32 54 52 61 21 55 53 33 63",
    "low": "00 01 10 11 02 20 21 12 22 03 30 40 04 13 31 05 14 23 32 41 50 06 15 24 33 42 51 60 16 25 34 43",
}
CHOICES = tuple(f"{kind}{count}" for kind in FREQUENCIES for count in (1, 2, 4, 8, 16, 32))


def basis(frequencies: list[int], size: int) -> Tensor:
    """Return the orthonormal DCT-II vectors of these frequencies: (len(frequencies), size), float64."""
    u = torch.tensor(frequencies, dtype=torch.float64)[:, None]
    position = torch.arange(size, dtype=torch.float64) + 0.5
    return torch.cos(math.pi * u * position / size) * torch.where(u == 0, 1 / size, 2 / size).sqrt()


@register("fca")
class MultiSpectralAttention(SqueezeExcitation):
    """Multi-spectral channel attention.

    Args:
        channels: channels of the feature map, a multiple of the number of frequencies.
        reduction: ratio of the bottleneck.
        dct_size: grid of the DCT, (height, width) or one number for both, 7 or more. The official ResNets take the size
            of each stage's map at 224 x 224 (56, 28, 14, 7); maps of another size are averaged to the grid.
        frequencies: ``"top"``, ``"bot"`` or ``"low"`` and how many: 1, 2, 4, 8, 16 or 32.

    Shape:
        (N, C, H, W) -> (N, C, H, W)

    Raises:
        InvalidArgument: ``channels < reduction``, no multiple of the frequencies, a grid below 7, no such frequencies.
    """

    dct: Tensor

    def __init__(
        self, channels: int, *, reduction: int = 16, dct_size: int | tuple[int, int] = 7, frequencies: str = "top16"
    ) -> None:
        hidden_width(channels, reduction, "FcaNet")
        super().__init__(channels, reduction=reduction, bias=False)
        height, width = (dct_size, dct_size) if isinstance(dct_size, int) else dct_size
        if min(height, width) < 7:
            raise InvalidArgument(
                f"FcaNet: dct_size={dct_size!r} turns every frequency into the mean, and FcaNet into SE; both sides "
                f"must be 7 or more. Take 7; smaller maps are spread over the grid."
            )
        if frequencies not in CHOICES:
            raise InvalidArgument(
                f"FcaNet: frequencies={frequencies!r} are not known. Take one of {', '.join(CHOICES)}."
            )
        pairs = [(int(uv[0]), int(uv[1])) for uv in FREQUENCIES[frequencies[:3]].split()[: int(frequencies[3:])]]
        if channels % len(pairs):
            fitting = max(count for count in (1, 2, 4, 8, 16, 32) if channels % count == 0)
            raise InvalidArgument(
                f"FcaNet: {channels} channels do not divide among {len(pairs)} frequencies; each describes the same "
                f"number of channels. Pass frequencies='{frequencies[:3]}{fitting}'."
            )
        rows = basis([u * (height // 7) for u, _ in pairs], height)
        columns = basis([v * (width // 7) for _, v in pairs], width)
        self.register_buffer("dct", (rows[:, :, None] * columns[:, None, :]).to(torch.get_default_dtype()))

    def squeeze(self, x: Tensor) -> Tensor:
        """Describe each channel by its frequency's coefficient: (N, C, H, W) -> (N, C)."""
        filters_FHW = stretch(self.dct, x.shape[2], x.shape[3])
        x_NFGHW = x.unflatten(1, (len(filters_FHW), -1))  # G channels share a frequency
        return (x_NFGHW * filters_FHW[:, None]).sum((3, 4)).flatten(1)
