"""One watched forward pass: the multiplications of every layer, and the operators whose work has no formula."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from attendo.functional import flops as _formulas  # noqa: F401 - registers those of our operators
from attendo.profiling._run import dry_run, tensors_in

# they make a tensor without writing into it
_UNWRITTEN = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


@dataclass
class Visit:
    """What a module did in a forward pass.

    ``outputs`` are the shapes of all tensors that came out of it, call after call; ``macs`` include the modules inside.
    """

    calls: int = 0
    macs: int = 0
    outputs: list[tuple[int, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class Trace:
    """What a forward pass did; ``visits`` by module path, in the order of the first call.

    ``activation_bytes`` are those that the outputs of all layers without inner layers occupy, where they are not views
    of an input. ``real_run`` is why values had to be computed, "" for a dry run.
    """

    macs: int
    uncounted: dict[str, int]
    visits: dict[str, Visit]
    activation_bytes: int
    real_run: str


class _Tally(TorchDispatchMode):
    """Counts floating point operations by torch's own formulas, and the elements written by operators without one.

    It does what ``torch.utils.flop_counter.FlopCounterMode`` does, and keeps what that drops.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.uncounted: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        operator = getattr(func, "_overloadpacket", func)
        decomposes = isinstance(func, torch._ops.OpOverload) and func is not torch.ops.prim.device.default
        if operator not in flop_registry and decomposes:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        output = func(*args, **kwargs)
        if operator in flop_registry:
            self.flops += int(flop_registry[operator](*args, **kwargs, out_val=output))
        else:
            written = _written(func, output, args, kwargs)
            if written:
                self.uncounted[_name(func)] += written
        return output


def _name(func: Any) -> str:
    """Return an operator's name as layers have it: ``relu`` for relu_, ``batch_norm`` for all its variants."""
    if not isinstance(func, torch._ops.OpOverload):
        return str(func)
    namespace, _, name = func._schema.name.partition("::")
    if namespace != "aten":
        return f"{namespace}.{name}"
    name = name.strip("_").removeprefix("native_").removesuffix("_with_indices")
    return "batch_norm" if "batch_norm" in name else name


def _written(func: Any, output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return how many elements an operator wrote: none for a view, the elements of its results otherwise."""
    schema = getattr(func, "_schema", None)
    if schema is not None and schema.name.partition("::")[2] in _UNWRITTEN:
        return 0
    in_place = schema is not None and any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)
    inputs = () if in_place else tensors_in([args, kwargs])
    old = {tensor.untyped_storage()._cdata for tensor in inputs}
    return sum(tensor.numel() for tensor in tensors_in(output) if tensor.untyped_storage()._cdata not in old)


def _watched(model: nn.Module, x: Tensor) -> Trace:
    tally, visits, active = _Tally(), dict[str, Visit](), list[tuple[str, int]]()
    activation_bytes = 0

    def entering(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            visits.setdefault(path, Visit()).calls += 1
            active.append((path, tally.flops))

        return hook

    def leaving(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            nonlocal activation_bytes
            name, before = active.pop()
            while name != path:  # a layer that failed, and whose caller went on without it
                name, before = active.pop()
            visit = visits[path]
            if all(path != outer for outer, _ in active):  # a module inside itself is counted by the outer call
                visit.macs += (tally.flops - before) // 2
            visit.outputs.extend(tuple(tensor.shape) for tensor in tensors_in(output))
            if not any(True for _ in module.children()):
                old = {tensor.untyped_storage()._cdata for tensor in tensors_in([args, kwargs])}
                fresh = {tensor.untyped_storage()._cdata: tensor for tensor in tensors_in(output)}
                activation_bytes += sum(t.untyped_storage().nbytes() for key, t in fresh.items() if key not in old)

        return hook

    handles = []
    for path, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            handles.append(module.register_forward_pre_hook(entering(path)))
            handles.append(module.register_forward_hook(leaving(path), with_kwargs=True))
    try:
        with tally:
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    uncounted = dict(tally.uncounted.most_common())
    return Trace(tally.flops // 2, uncounted, visits, activation_bytes, "")


def trace(model: nn.Module, input_size: tuple[int, ...]) -> Trace:
    """Watch a forward pass of one image in eval mode, dry where the model allows it.

    Raises:
        InvalidArgument: the model cannot take this size.
    """
    result, reason = dry_run(model, input_size, 1, False, _watched)
    return Trace(result.macs, result.uncounted, result.visits, result.activation_bytes, reason)
