"""One dry run of a network: which module was called when, and which tensor came from which.

The run happens on a copy, in eval mode, first on the meta device (shapes only, nothing computed, nothing allocated); a
network that needs real numbers runs as a real copy. The user's model is read, never called.

What is recorded is a graph of values. Writing in place makes a new value of the same tensor, so that a value always has
one maker; parameters and buffers are no values, they are constants.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from attendo._errors import InvalidArgument

M = TypeVar("M", bound=nn.Module)
aten = torch.ops.aten
CONVOLUTIONS = {aten.convolution, aten._convolution, aten.convolution_overrideable}
WORK = CONVOLUTIONS | {aten.addmm, aten.mm, aten.bmm, aten.baddbmm, aten.linear}
SUMS = {aten.add, aten.add_}
# what a forward of somebody's network may raise when it does not like its input
FAILURES = (
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    AssertionError,
    NotImplementedError,
)


@dataclass(eq=False, repr=False)  # a repr would print the whole graph
class Value:
    """One value of one tensor. ``axis`` is where its channels are, if known; ``frame`` is the call that computed it."""

    index: int
    op: Any
    inputs: tuple[Value, ...]
    shape: tuple[int, ...]
    axis: int | None
    frame: Call | None
    returned_by: list[Call] = field(default_factory=list)
    users: list[Value] = field(default_factory=list)

    @property
    def is_map(self) -> bool:
        """Whether it is a feature map: four dimensions, more than one position."""
        return len(self.shape) == 4 and self.shape[2] * self.shape[3] > 1

    @property
    def makers(self) -> list[Call]:
        """The calls that computed and returned it, innermost first; one that only passes it on is not among them."""
        return [call for call in self.returned_by if call.start <= self.index]


@dataclass(eq=False, repr=False)  # a repr would print the whole graph
class Call:
    """One call of a module. ``start`` and ``end`` enclose the indices of the values computed inside it."""

    path: str
    module: nn.Module
    parent: Call | None
    start: int
    end: int = -1
    children: list[Call] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    output: Value | None = None
    returned: str = "nothing"

    @property
    def line(self) -> Iterator[Call]:
        """Itself, its parent, and so on up to the network."""
        call: Call | None = self
        while call is not None:
            yield call
            call = call.parent


@dataclass(eq=False, repr=False)  # a repr would print the whole graph
class Trace:
    """What a dry run saw. ``model`` is the copy that ran, on ``inputs``; ``outputs`` are the values that came out."""

    model: nn.Module
    inputs: tuple[tuple[Any, ...], dict[str, Any]]
    values: list[Value]
    root: Call
    calls: dict[str, list[Call]]
    outputs: list[Value]
    device: str | None
    output_shapes: list[tuple[int, ...]]

    def run(self) -> list[tuple[int, ...]]:
        """Run the copy once more, unrecorded; return the shapes of all tensors that came out."""
        return _shapes(_call(self.model, self.inputs, self.device))


def trace(model: nn.Module, input_size: tuple[int, ...], example_inputs: Any, asked_by: str) -> Trace:
    """Run a copy of the model once and record what happened.

    Args:
        model: any network; it is not touched.
        input_size: channels, height, width of one image, unless ``example_inputs`` are given.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        asked_by: the function that error messages name.

    Raises:
        InvalidArgument: the network does not run on these inputs.
    """
    inputs = _as_arguments(model, input_size, example_inputs, asked_by)
    try:
        return _record(meta_copy(model), tree_map(_to_meta, inputs), "meta")
    except FAILURES as error:
        on_meta = error
    try:  # data-dependent shapes, tensors kept outside parameters and buffers, operators without a meta kernel
        return _record(copy.deepcopy(model), inputs, None)
    except FAILURES as error:
        came = f"{type(error).__name__}: {str(error).strip() or str(on_meta).strip()}".splitlines()[0][:300]
        what = "these example_inputs" if example_inputs is not None else f"one image of input_size={input_size}"
        raise InvalidArgument(
            f"{asked_by}: {type(model).__name__} does not run on {what} ({came}); one dry run of the network is needed "
            f"to learn its shapes. Pass input_size=(channels, height, width) that suits it, or example_inputs=..., "
            f"what you would call it with."
        ) from error


def meta_copy(module: M) -> M:
    """Copy a module with all parameters and buffers on the meta device, which takes no memory."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = buffer.detach().to("meta")
    return copy.deepcopy(module, memo)


def copy_like(module: M, traced: Trace) -> M:
    """Copy a module to where the traced copy lives."""
    return meta_copy(module) if traced.device == "meta" else copy.deepcopy(module)


def _as_arguments(
    model: nn.Module, input_size: tuple[int, ...], example_inputs: Any, asked_by: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_inputs, dict):
        return (), example_inputs
    if isinstance(example_inputs, tuple):
        return example_inputs, {}
    if example_inputs is not None:
        return (example_inputs,), {}
    sides = input_size if isinstance(input_size, (tuple, list)) else ()
    if len(sides) != 3 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise InvalidArgument(
            f"{asked_by}: input_size={input_size!r}; it is (channels, height, width) of one image. Pass (3, 224, 224)."
        )
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return (torch.zeros((1, *input_size), dtype=like.dtype, device=like.device),), {}


def _to_meta(thing: Any) -> Any:
    return thing.to("meta") if isinstance(thing, Tensor) else thing


def _call(model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]], device: str | None) -> Any:
    args, kwargs = inputs
    with torch.no_grad():
        if device is None:
            return model(*args, **kwargs)
        with torch.device(device):  # tensors that the forward makes without naming a device
            return model(*args, **kwargs)


def _shapes(output: Any) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]


def _record(model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]], device: str | None) -> Trace:
    recorder = _Recorder(model.eval())
    for leaf in tree_flatten(inputs)[0]:
        if isinstance(leaf, Tensor):
            recorder.note(leaf, None, ())
    hooks = [h for path, module in model.named_modules() for h in recorder.watch(path, module)]
    try:
        with recorder:
            output = _call(model, inputs, device)
    finally:
        for hook in hooks:
            hook.remove()
    root, outputs = recorder.calls[""][0], recorder.values_in(output)
    return Trace(model, inputs, recorder.values, root, recorder.calls, outputs, device, _shapes(output))


class _Recorder(TorchDispatchMode):
    """Sees every operator that runs and every module that is entered and left."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.values: list[Value] = []
        self.calls: dict[str, list[Call]] = {}
        self.stack: list[Call] = []
        # the current value of each tensor; the tensor is kept, so that no other can take its id
        self.current: dict[int, tuple[Tensor, Value]] = {}

    def note(self, tensor: Tensor, op: Any, inputs: tuple[Value, ...], axis: int | None = None) -> None:
        frame = self.stack[-1] if self.stack else None
        value = Value(len(self.values), op, inputs, tuple(tensor.shape), axis, frame)
        self.values.append(value)
        self.current[id(tensor)] = (tensor, value)
        for source in inputs:
            source.users.append(value)

    def values_in(self, tree: Any) -> list[Value]:
        leaves = (leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor))
        return [self.current[id(leaf)][1] for leaf in leaves if id(leaf) in self.current]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = tuple(dict.fromkeys(self.values_in((args, kwargs or {}))))
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if inputs:  # otherwise it depends on no input: a constant
            for leaf in tree_flatten(out)[0]:
                if isinstance(leaf, Tensor):
                    self.note(leaf, packet, inputs, _channel_axis(packet, args, inputs, leaf))
        return out

    def watch(self, path: str, module: nn.Module) -> list[Any]:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            parent = self.stack[-1] if self.stack else None
            call = Call(path, module, parent, len(self.values), inputs=self.values_in((args, kwargs)))
            self.calls.setdefault(path, []).append(call)
            if parent is not None:
                parent.children.append(call)
            self.stack.append(call)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            call = self.stack.pop()
            call.end = len(self.values)
            call.returned = _describe(output)
            if isinstance(output, Tensor) and id(output) in self.current:
                call.output = self.current[id(output)][1]
                call.output.returned_by.append(call)

        return [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave),
        ]


def _channel_axis(packet: Any, args: Any, inputs: tuple[Value, ...], out: Tensor) -> int | None:
    """Follow where the channels are: second after a convolution, last after a linear layer, and so on."""
    if packet in CONVOLUTIONS:
        return 1
    last = out.dim() - 1
    if packet in WORK or (packet is aten.native_layer_norm and len(args[1]) == 1):
        return last
    source = next((value for value in inputs if value.axis is not None), None)
    if source is None or source.axis is None:
        return None
    axis, rank = source.axis, len(source.shape)
    if packet is aten.permute:
        return [dim % rank for dim in args[1]].index(axis)
    if packet is aten.transpose:
        first, second = args[1] % rank, args[2] % rank
        return {first: second, second: first}.get(axis, axis)
    if tuple(out.shape[: axis + 1]) == source.shape[: axis + 1]:
        return axis
    if axis == rank - 1 and out.dim() > 0 and out.shape[-1] == source.shape[-1]:
        return last
    return axis if rank == out.dim() else None


def _describe(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, (tuple, list, dict)):
        return f"a {type(output).__name__} of {len(output)}"
    return f"a {type(output).__name__}"
