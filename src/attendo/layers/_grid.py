"""Filters over a grid, applied to a map of any size as if the map were averaged to the grid first.

Adaptive average pooling is a matrix, so <filter, pool(x)> = <pool^T(filter), x>: pooling the filters instead of the map
reads the map once, and its gradient is deterministic on CUDA, where that of an adaptive pool is not.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pooling(size: int, bins: int, like: Tensor) -> Tensor:
    """Return the matrix (bins, size) of adaptive average pooling: bin i spans i size / bins to (i + 1) size / bins."""
    i = torch.arange(bins, device=like.device)[:, None]
    at = torch.arange(size, device=like.device)
    inside = ((at >= i * size // bins) & (at < ((i + 1) * size + bins - 1) // bins)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def stretch(filters: Tensor, height: int, width: int) -> Tensor:
    """Return filters (K, height, width) that give on a map what (K, h, w) give on the map averaged to (h, w)."""
    h, w = filters.shape[-2:]
    if (h, w) == (height, width):
        return filters
    return pooling(height, h, filters).T @ filters @ pooling(width, w, filters)
