"""Which kernel a tensor gets, and why not.

A kernel runs where it can compute exactly what the definition says; everywhere else (another device or dtype, strided
views, tensors that something watches or transforms) the definition itself does. ``refusal`` gives the reason in words.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from attendo._errors import UnknownName
from attendo.kernels.cpu import library
from attendo.kernels.cpu.calls import DTYPES, Calls

PRIMITIVES = ("channel_stats", "spatial_stats", "recalibrate", "attention")
REFERENCE, AUTO = "reference", "auto"
_chosen = AUTO
_CALLS = {name: Calls(table) for name in library.SETS if (table := library.table(name)) is not None}  # best first
_BEST = next(iter(_CALLS), REFERENCE)
_MISSING = "" if _CALLS else library.missing()


class use:  # noqa: N801 - called like the function it mostly is
    """Choose the kernels of this process, from now on or for the length of a ``with`` block.

    Args:
        name: ``"auto"`` (the best there is), ``"reference"`` (none: plain PyTorch), or an instruction set of the CPU
            kernels: ``"avx512"``, ``"avx2"``, ``"plain"``.

    Raises:
        UnknownName: no such choice, or one that this machine cannot run.
    """

    def __init__(self, name: str) -> None:
        global _chosen
        choices = (AUTO, REFERENCE, *_CALLS)
        if name not in choices:
            because = f" ({_MISSING})" if _MISSING else ""
            raise UnknownName(f"kernels.use: no kernels {name!r} here{because}. Choose from {', '.join(choices)}.")
        self._before, _chosen = _chosen, name

    def __enter__(self) -> None:
        """Nothing more: the choice holds already."""

    def __exit__(self, *_: object) -> None:
        global _chosen
        _chosen = self._before


class Status(NamedTuple):
    """What runs one primitive on one device."""

    primitive: str
    device: str
    kernel: str
    why: str

    def __str__(self) -> str:
        return f"{self.primitive:<14} {self.device:<5} {self.kernel:<10} {self.why}".rstrip()


def status() -> list[Status]:
    """Return what runs each primitive on each kind of device, and why it is not something faster."""
    if _chosen == REFERENCE:
        kernel, why = REFERENCE, 'turned off by kernels.use("reference")'
    else:
        kernel, why = (_BEST if _chosen == AUTO else _chosen), _MISSING
    cpu = [Status(primitive, "cpu", kernel, why) for primitive in PRIMITIVES]
    return [*cpu, *(Status(primitive, "cuda", REFERENCE, "no GPU kernels yet") for primitive in PRIMITIVES)]


def find(x: Tensor) -> Calls:
    """Return the kernels for the device of x; ``refusal`` has said that there are some."""
    return _CALLS[_BEST if _chosen == AUTO else _chosen]


def refusal(x: Tensor, *others: Tensor | None) -> str | None:
    """Say why no kernel takes these tensors, or None if one does.

    Args:
        x: the feature map (N, C, H, W).
        others: maps that must be laid out like x, such as the shortcut.
    """
    if _chosen == REFERENCE:
        return 'turned off by kernels.use("reference")'
    if x.device.type != "cpu" or x.dtype not in DTYPES:
        return f"there is none for {x.dtype} on {x.device.type}"
    if _MISSING:
        return _MISSING
    if x.ndim != 4 or x.numel() == 0:
        return f"it takes maps (N, C, H, W) with something in them, not {tuple(x.shape)}"
    last = not x.is_contiguous()
    if last and not x.is_contiguous(memory_format=torch.channels_last):
        return f"it takes contiguous or channels_last maps, not strides {x.stride()}"
    for other in others:
        if other is None:
            continue
        if other.shape != x.shape or other.dtype != x.dtype or other.device != x.device:
            return "a map beside x has another shape, dtype or device"
        if not other.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format):
            return "a map beside x has another memory format"
    return None


def watched(*tensors: Tensor | None) -> str | None:
    """Say what would not see, or not understand, a call past PyTorch's dispatcher; None if there is nothing."""
    for tensor in tensors:
        if tensor is not None and type(tensor) is not Tensor and type(tensor) is not nn.Parameter:
            return f"{type(tensor).__name__} is a tensor subclass"
    if torch._C._len_torch_dispatch_stack() or torch._C._is_torch_function_mode_enabled():
        return "a mode watches every operation"
    if torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return "a function transform is at work"
    if torch._C._get_tracing_state() is not None:
        return "torch.jit traces"
    return None
