"""A deterministic fill of weights and inputs, so that two implementations can be compared without exchanging files.

Every entry of a state dict gets values that depend on its position i in the dict, its shape and the last part of its
name: an integer hash of (i, j) for "hash", sin(a j + i) for "sin", scaled by sqrt(2 / fan_in) for matrices and
convolutions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _wave(i: int, count: int, formula: str, slope: float) -> Tensor:
    j = torch.arange(count, dtype=torch.int64)
    if formula == "sin":
        return torch.sin(slope * j.double() + i)
    mask = 0xFFFFFFFF
    h = (j * 0x9E3779B1 + ((i + 1) * 0x85EBCA77 & mask)) & mask
    for shift, factor in ((16, 0x7FEB352D), (15, 0x6C078965)):
        h = ((h ^ (h >> shift)) * factor) & mask
    return (h ^ (h >> 16)).double() / 2**31 - 1


def filled(spec: list[list], scale: float, formula: str) -> dict[str, Tensor]:
    """State dict for ``[[name, shape, dtype], ...]`` with the deterministic values, float32 where floating."""
    shapes = {name: tuple(shape) for name, shape, _ in spec}
    state = {}
    for i, (name, shape, dtype) in enumerate(spec):
        if not dtype.startswith(("float", "bfloat")):
            state[name] = torch.zeros(tuple(shape), dtype=getattr(torch, dtype))
            continue
        prefix, _, leaf = name.rpartition(".")
        mate = shapes.get(f"{prefix}.weight" if prefix else "weight")
        statistic = leaf in ("running_mean", "running_var")
        wave = _wave(i, math.prod(shape), formula, 0.21 if statistic else 0.37)
        if leaf == "running_mean":
            value = 0.1 * wave
        elif leaf == "running_var":
            value = 1 + 0.2 * wave**2
        elif len(shape) >= 2:
            fan_in = max(math.prod(shape) // shape[0], 1)
            value = wave * scale * math.sqrt((3 if formula == "hash" else 1) * 2 / fan_in)
        elif leaf == "weight":
            value = 1 + 0.1 * wave
        elif leaf == "bias" and mate is not None and len(mate) <= 1:
            value = 0.1 * wave
        else:
            value = 0.05 * wave
        state[name] = value.reshape(tuple(shape)).to(getattr(torch, dtype))
    return state


def image_like(shape: list[int]) -> Tensor:
    """Deterministic input: x_j = sin(0.013 j) + 0.5 cos(0.0007 j)."""
    j = torch.arange(math.prod(shape), dtype=torch.float64)
    return (torch.sin(0.013 * j) + 0.5 * torch.cos(0.0007 * j)).float().reshape(tuple(shape))
