"""Whether an exported network computes what the network computes, and if not, from which layer on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 1e-4  # largest difference relative to the largest value; float32 engines were seen to differ by 1e-6


@dataclass(frozen=True)
class Agreement:
    """How far an exported network was from the network on one input.

    Attributes:
        batch: images in the batch.
        height: of the images, pixels.
        width: of the images, pixels.
        difference: the largest one in any output, relative to the largest value there.
    """

    batch: int
    height: int
    width: int
    difference: float

    def __str__(self) -> str:
        return f"{self.batch} x {self.height} x {self.width}: {self.difference:.1e}"


def flat(outputs: Any) -> list[Tensor]:
    """Return the tensors that a network returned, in order."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    return [tensor for output in outputs for tensor in flat(output)]


def difference(got: Tensor, want: Tensor) -> float:
    """Largest difference relative to the largest value; infinite where shapes differ or something is not finite."""
    if got.shape != want.shape or not want.numel():
        return 0.0 if got.shape == want.shape else float("inf")
    worst = float((got.double() - want.double()).abs().max() / want.double().abs().max().clamp_min(1e-12))
    return worst if worst == worst else float("inf")


def worst(got: list[Tensor], want: list[Tensor]) -> float:
    """Largest difference over all outputs."""
    if len(got) != len(want):
        return float("inf")
    return max(difference(one, other) for one, other in zip(got, want, strict=True))


@contextmanager
def watched(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collect what every module returns, by path, in the order in which they finish."""
    seen: dict[str, Tensor] = {}
    hooks = []

    def keep(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                seen.pop(path, None)  # a module that is called twice counts where it finished last
                seen[path] = output.detach().clone()  # an activation in place would change it later

        return hook

    for path, module in model.named_modules():
        hooks.append(module.register_forward_hook(keep(path)))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def first_difference(model: nn.Module, x: Tensor, exported: Mapping[str, Tensor], tolerance: float) -> str:
    """Return the sentence that names the first layer whose exported output differs.

    Args:
        model: the network.
        x: images.
        exported: what the exported network computed on them, by the path of the module that ends there.
        tolerance: largest relative difference that passes.
    """
    with torch.no_grad(), watched(model) as seen:
        model(x)
    for path, want in seen.items():
        if path in exported and exported[path].shape == want.shape:
            found = difference(exported[path], want)
            if found > tolerance:
                kind = type(model.get_submodule(path)).__name__
                return f"the first layer that differs is {path or 'the network itself'!r} ({kind}), by {found:.1e}"
    return "no single layer differs, so it is something between them"
