"""The layer table: what each module of a network puts out, has and does.

It is torchinfo's table with two differences. MACs come from the operators that ran (see ``counts``), so that functional
calls are in, biases and norms out, and every row includes the modules inside it. Activations are the outputs of the
layers once, torchinfo's "forward/backward pass size" doubles them and leaves out layers without parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from attendo._errors import InvalidArgument
from attendo.profiling._checks import Size, check_model, check_size, uncompiled
from attendo.profiling._format import by, megabytes, plain, table
from attendo.profiling._run import place
from attendo.profiling._trace import Trace, Visit, trace
from attendo.profiling.counts import Counts, counts_of


@dataclass(frozen=True)
class Row:
    """One module.

    Attributes:
        path: its name in the network, "" for the network itself.
        class_name: its class.
        depth: how many modules it is inside of.
        calls: how often its forward ran. A container whose layers are called one by one has 0.
        reached: whether it, or a module inside it, was called at all.
        outputs: the shapes of all tensors that came out of it, call after call, the batch of 1 included.
        parameters: its own and those inside it, a shared one once.
        own_parameters: its own alone.
        trainable: those of ``parameters`` that require a gradient.
        macs: of all its calls, the modules inside included.
    """

    path: str
    class_name: str
    depth: int
    calls: int
    reached: bool
    outputs: tuple[tuple[int, ...], ...]
    parameters: int
    own_parameters: int
    trainable: int
    macs: int

    @property
    def name(self) -> str:
        """The last part of the path, and the class."""
        return f"{self.path.rpartition('.')[2]} ({self.class_name})" if self.path else self.class_name

    @property
    def note(self) -> str:
        """What is unusual about its calls, or ""."""
        if not self.reached:
            return "never called"
        return f"called {self.calls} times" if self.calls > 1 else ""


@dataclass(frozen=True)
class Summary:
    """The layer table of a network, for one image.

    Attributes:
        rows: modules in the order of the forward pass, each followed by those inside it; never-called ones last among
            their neighbours.
        counts: the totals.
        never_called: paths of the outermost modules of which nothing was called. Their parent may still use their
            parameters, as nn.MultiheadAttention does with its ``out_proj``.
        input_bytes: memory of one image.
        activation_bytes: memory of the outputs of all layers that hold no other, those written in place not twice.
    """

    rows: tuple[Row, ...]
    counts: Counts
    never_called: tuple[str, ...]
    input_bytes: int
    activation_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as JSON can hold them."""
        return dict(plain(self))

    def __str__(self) -> str:
        lines = [
            (
                "  " * row.depth + row.name,
                _shapes(row.outputs),
                row.note,
                f"{row.parameters:,}" if row.parameters else "-",
                f"{row.macs:,}" if row.macs else "-",
            )
            for row in self.rows
        ]
        counts = self.counts
        total = self.input_bytes + self.activation_bytes + counts.parameter_bytes
        foot = [
            "",
            str(counts),
            f"memory        input {megabytes(self.input_bytes)}, "
            f"forward activations {megabytes(self.activation_bytes)}, "
            f"parameters {megabytes(counts.parameter_bytes)}, together {megabytes(total)}",
        ]
        if self.never_called:
            foot.append(f"never called  {', '.join(self.never_called)}")
        return "\n".join((table(("layer", "output", "", "parameters", "MACs"), lines, left=3), *foot))


def summary(model: nn.Module, input_size: Size = (3, 224, 224), depth: int | None = 3) -> Summary:
    """Return the layer table of a network; it is left as it was (see ``count``).

    Args:
        model: any network that takes one batch of images.
        input_size: of one image, without the batch: (channels, height, width).
        depth: how deep rows go, 0 for the network alone, None for all. A row always includes what is inside it.

    Raises:
        InvalidArgument: not an nn.Module, a negative depth, or a size that the model cannot take.
    """
    if depth is not None and (not isinstance(depth, int) or isinstance(depth, bool) or depth < 0):
        raise InvalidArgument(f"summary: depth={depth!r}; it must be 0 or more, or None for all layers. Pass depth=3.")
    network = uncompiled(check_model(model, "summary"))
    size = check_size(input_size, "summary")
    traced = trace(network, size)
    rows = _rows(network, traced)
    dead = [row.path for row in rows if not row.reached and row.path]
    return Summary(
        rows=tuple(row for row in rows if depth is None or row.depth <= depth),
        counts=counts_of(network, traced, size),
        never_called=tuple(path for path in dead if path.rpartition(".")[0] not in dead),
        input_bytes=math.prod(size) * place(network).dtype.itemsize,
        activation_bytes=traced.activation_bytes,
    )


def _rows(model: nn.Module, traced: Trace) -> list[Row]:
    """Return all modules, parents before children, neighbours in the order of their first call."""
    modules = dict(model.named_modules())
    order = {id(modules[path]): position for position, path in enumerate(traced.visits)}
    children: dict[str, list[str]] = {path: [] for path in modules}
    for path in modules:
        if path:
            children[path.rpartition(".")[0]].append(path)

    def first_call(path: str) -> float:
        return min(order.get(id(inside), math.inf) for inside in modules[path].modules())

    def macs(path: str) -> int:
        visit = traced.visits.get(path)
        return visit.macs if visit else sum(map(macs, children[path]))

    def walk(path: str, depth: int) -> list[Row]:
        module, visit = modules[path], traced.visits.get(path, Visit())
        everything = list(module.parameters())
        row = Row(
            path=path,
            class_name=type(module).__name__,
            depth=depth,
            calls=visit.calls,
            reached=math.isfinite(first_call(path)),
            outputs=tuple(visit.outputs),
            parameters=sum(parameter.numel() for parameter in everything),
            own_parameters=sum(parameter.numel() for parameter in module.parameters(recurse=False)),
            trainable=sum(parameter.numel() for parameter in everything if parameter.requires_grad),
            macs=macs(path),
        )
        below = sorted(children[path], key=first_call)
        return [row, *(line for child in below for line in walk(child, depth + 1))]

    return walk("", 0)


def _shapes(outputs: tuple[tuple[int, ...], ...]) -> str:
    """Return the first shape, and how many differing ones follow."""
    if not outputs:
        return "-"
    others = len(set(outputs)) - 1
    return by(outputs[0]) + (f" (+{others})" if others else "")
