"""Modules that do what their class says and nothing more: then their tensors are all a kernel has to know."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from attendo.kernels.gates import Norm

_BARE = {nn.Linear, nn.Conv1d, nn.Conv2d, nn.BatchNorm2d, nn.Identity}


def hooked(module: nn.Module) -> bool:
    """Whether calling this module does more than its forward."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def watched(module: nn.Module) -> bool:
    """Whether a call of this module is seen by somebody, or is another than its class says."""
    return hooked(module) or "forward" in module.__dict__ or _has_any_global_hook()


def fresh(module: nn.Module, ours: int = 0) -> bool:
    """Whether what a convolution or a batch norm returns is a tensor that nobody else has.

    Args:
        module: what returned it.
        ours: how many hooks of its output are the caller's own.
    """
    kinds = nn.Conv2d, nn.BatchNorm2d
    seen = len(module._forward_hooks) > ours or "forward" in module.__dict__ or _has_any_global_hook()
    return type(module) in kinds and not seen


def bare_tensors(module: nn.Module | None) -> tuple[Tensor | None, Tensor | None] | None:
    """Return weight and bias of a module that does what they say and nothing more.

    None for one with hooks, parametrisations, another forward or class: what it computes is its own affair.
    """
    if module is None or type(module) not in _BARE or hooked(module) or "forward" in module.__dict__:
        return None
    tensors = module._parameters
    return tensors.get("weight"), tensors.get("bias")


def batch_norm(module: nn.Module) -> Norm | None:
    """Return what a batch norm does, if it does nothing more; None for any other module."""
    tensors = bare_tensors(module)
    if tensors is None or type(module) is not nn.BatchNorm2d:
        return None
    buffers, training = module._buffers, module.training
    mean, var = buffers["running_mean"], buffers["running_var"]
    if mean is None or var is None or (training and module.momentum is None):  # a cumulative average
        return None
    if not training:
        return Norm(*tensors, mean, var, module.eps)
    return Norm(*tensors, mean, var, module.eps, module.momentum, buffers["num_batches_tracked"])


def bare_kernel(module: Any, stride: int = 1) -> Tensor | None:
    """Return the weight of a convolution with that stride which keeps the map's size but for it, and does no more."""
    tensors = bare_tensors(module)
    if tensors is None or tensors[1] is not None or module.padding_mode != "zeros":
        return None
    size, dimensions = module.kernel_size[0], len(module.kernel_size)
    has = (module.kernel_size, module.padding, module.stride, module.dilation)
    return tensors[0] if has == tuple((n,) * dimensions for n in (size, size // 2, stride, 1)) else None
