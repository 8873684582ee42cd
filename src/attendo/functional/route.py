"""The way a call takes: the definition, a kernel, or a kernel wrapped as an operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum

import torch
from torch import Tensor

from attendo.kernels.selection import lazy, refusal, watched


class Route(Enum):
    """The ways there are."""

    DEFINITION = "definition"  # plain PyTorch
    KERNEL = "kernel"  # straight into the kernel: nothing needs to know of the call
    OPERATOR = "operator"  # torch.ops.attendo: a gradient is needed, or a compiler traces


def route(x: Tensor, maps: Sequence[Tensor | None], gates: Sequence[Tensor | None]) -> Route:
    """Choose the way of a call.

    Args:
        x: the feature map.
        maps: others of its shape.
        gates: further tensors that may need a gradient; of the dtype of x, or the definition decides the result's.
    """
    others = [tensor for tensor in (*maps, *gates) if tensor is not None]
    if torch.compiler.is_compiling():
        if exporting() or refusal(x, *maps) or any(t.dtype != x.dtype for t in others):
            return Route.DEFINITION
        return Route.OPERATOR
    if watched(x, *others) or refusal(x, *maps):
        return Route.DEFINITION
    if lazy(x) or any(t.dtype != x.dtype or t.device != x.device or lazy(t) for t in others):
        return Route.DEFINITION
    if torch.is_grad_enabled() and (x.requires_grad or any(t.requires_grad for t in others)):
        return Route.OPERATOR
    return Route.KERNEL


def exporting() -> bool:
    """Whether torch.export traces."""
    return torch.compiler.is_exporting()


# run while tracing: before torch 2.13 the compiler takes the call above for True in everything that it compiles
exporting._dynamo_marked_constant = True  # type: ignore[attr-defined]


def symbolic(x: Tensor) -> bool:
    """Whether shapes cannot be compared: torch.fx traces with stand-ins, torch.jit with tensors for numbers."""
    return not isinstance(x, Tensor) or torch._C._get_tracing_state() is not None


def differentiable_gradients(
    function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor | None], up: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Gradients that can be differentiated again: the definition's own.

    Args:
        function: of the inputs, returning a tuple of tensors.
        inputs: what it was called with.
        up: the gradients of its results, None for one that nothing depends on.
    """
    wanted = {i: tensor for i, tensor in enumerate(inputs) if tensor is not None and tensor.requires_grad}
    results = [
        (result, gradient) for result, gradient in zip(function(*inputs), up, strict=True) if gradient is not None
    ]
    found = torch.autograd.grad(
        [result for result, _ in results],
        list(wanted.values()),
        [gradient for _, gradient in results],
        create_graph=True,
        allow_unused=True,
    )
    gradients = dict(zip(wanted, found, strict=True))
    return [gradients.get(i) for i in range(len(inputs))]
