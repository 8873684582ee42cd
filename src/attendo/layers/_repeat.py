"""The same call again: what a gate's last inference found out, valid while nothing about the gate has changed.

Between the convolutions of a network Python's own objects are cold in the caches, and looking at a gate's modules one
by one takes longer than the gate: 100 microseconds there, 23 in a loop. So the state of its modules is kept as one flat
tuple, compared by identity in one go: every attribute, parameter, buffer and child, the addresses of the tensors, and
that there are no hooks. Whatever differs, the call takes the long way.
"""

from __future__ import annotations

from itertools import chain
from operator import is_
from struct import Struct
from typing import Any, cast

import torch
from torch import Tensor, nn

from attendo.kernels import selection
from attendo.kernels.cpu.calls import Calls
from attendo.kernels.cpu.packing import NOTHING, pack_attention
from attendo.kernels.gates import GateWeights, Norm

Beside = tuple[nn.Module | None, Tensor | None]  # what a gate is called with: a norm before it, a blend
_values, _address, _dense = dict.values, Tensor.data_ptr, Tensor.is_contiguous
_grad, _watched, _threads = torch.is_grad_enabled, selection.watched, torch.get_num_threads
_CALL = Struct("=2q3Q")  # of Attention in native/attention.h what differs from call to call: threads, relu, three maps
_BEGIN, _END = 48, 48 + _CALL.size


class Repeat:
    """One call of a gate in inference, by ``Calls.attention``.

    Args:
        gate: the gate; hooks of its own are its caller's affair.
        beside: the norm before it, and how much of the recalibrated map to blend.
        calls: the kernels that ran.
        x: the map they were given.
        weights: what ``gate`` named.
        before: what the norm does.
        tensors: of all these.
    """

    __slots__ = (
        *("beside", "call", "chosen", "dicts", "dtype", "hooks", "kinds", "modules", "packed", "shape", "state"),
        *("stride", "tensors", "where"),
    )

    def __init__(
        self,
        gate: nn.Module,
        beside: Beside,
        calls: Calls,
        x: Tensor,
        weights: GateWeights,
        before: Norm | None,
        tensors: list[Tensor],
    ) -> None:
        inner = [module for module in gate.modules() if module is not gate] + ([] if beside[0] is None else [beside[0]])
        self.beside, self.chosen, self.call = beside, selection.chosen(), calls.native_attention
        self.modules = [gate, *inner]
        self.kinds = list(map(type, self.modules))
        self.dicts = [d for m in self.modules for d in (m.__dict__, m._parameters, m._buffers, m._modules)]
        self.state: tuple[Any, ...] = tuple(chain.from_iterable(map(_values, self.dicts)))
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        self.hooks = [getattr(module, kind) for module in inner for kind in kinds]
        self.tensors = tensors
        self.where = list(map(_address, self.tensors))
        self.dtype, self.shape, self.stride = x.dtype, x.shape, x.stride()
        packed = pack_attention(x, weights, before, NOTHING, None, None, False, None, beside[1])
        self.packed = packed[:_BEGIN], packed[_END:]

    def __call__(
        self, gate: nn.Module, x: Tensor, residual: Tensor | None, relu: bool, inplace: bool, beside: Beside
    ) -> Tensor | None:
        """Do the same to x; None if it is not the same."""
        if gate is not self.modules[0]:  # a shallow copy, with parameters of its own perhaps
            return None
        if _grad() or _watched() is not None or selection.chosen() is not self.chosen:
            return None
        if beside[0] is not self.beside[0] or beside[1] is not self.beside[1]:
            return None
        if not self._like(x) or not (residual is None or self._like(residual)) or any(self.hooks):
            return None
        state = tuple(chain.from_iterable(map(_values, self.dicts)))
        if len(state) != len(self.state) or not all(map(is_, state, self.state)):
            return None
        tensors = self.tensors
        if list(map(_address, tensors)) != self.where or not all(map(_dense, tensors)):
            return None
        if list(map(type, self.modules)) != self.kinds:
            return None
        dtype = self.dtype
        for tensor in tensors:
            if tensor.dtype is not dtype:
                return None
        if not inplace:
            out = torch.empty_like(x)
        else:
            out = x
            if not x.is_inference():
                torch._C._increment_version((x,))
        head, tail = self.packed
        there = 0 if residual is None else residual.data_ptr()
        self.call(head + _CALL.pack(_threads(), relu, x.data_ptr(), there, out.data_ptr()) + tail)
        return out

    def _like(self, x: Tensor) -> bool:
        return (
            type(x) is Tensor
            and x.shape == self.shape
            and x.dtype is self.dtype
            and x.stride() == self.stride
            and x.is_cpu
            and not selection.lazy(x)
        )


class Memory:
    """Where a gate keeps its ``Repeat``; copies and pickles begin with none."""

    __slots__ = ("repeat", "shape")

    def __init__(self) -> None:
        self.repeat: Repeat | None = None
        self.shape: torch.Size | None = None

    def learn(self, gate: nn.Module, beside: Beside, x: Tensor, weights: GateWeights, before: Norm | None) -> None:
        """Keep the call that was just made, if it was one in inference, and the second of its shape."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or not x.is_cpu:
            return
        again, self.shape, self.repeat = self.shape == x.shape, x.shape, None
        everything = *weights.tensors(), *(before or ())[:4], beside[1]
        named = [tensor for tensor in everything if isinstance(tensor, Tensor)]
        if again and all(map(_dense, named)):
            self.repeat = Repeat(gate, beside, cast(Calls, selection.find(x)), x, weights, before, named)

    def __deepcopy__(self, _: dict[int, Any]) -> Memory:
        return Memory()

    def __reduce__(self) -> tuple[type[Memory], tuple[()]]:
        return Memory, ()
