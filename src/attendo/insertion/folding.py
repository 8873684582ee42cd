"""Fold channel gates that hardly depend on the input into the weights beside them, and drop the mechanism.

Over the given data, the best constant for a channel is the least-squares factor m = <x, y> / <x, x>, where x goes into
the mechanism and y comes out, and what it misses is |y - m x| / |y|: the drift of the site. Nothing about the mechanism
needs to be known for that. A constant factor per channel can move into the norm or convolution that makes x, also from
behind a ReLU, or into the convolution that reads y.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from attendo._errors import InvalidArgument
from attendo.insertion.dry_run import CONVOLUTIONS, Call, Trace, Value, aten, trace
from attendo.insertion.inserted import Replaced, detach, forget, insertions, is_site
from attendo.insertion.replacement import existing
from attendo.insertion.selection import check_network, fits

NORMS = {
    aten.native_batch_norm,
    aten._native_batch_norm_legit,
    aten._native_batch_norm_legit_no_training,
    aten._batch_norm_with_update,
    aten._batch_norm_no_update,
    aten.cudnn_batch_norm,
    aten.native_group_norm,
}
RECTIFIERS = {aten.relu, aten.relu_, aten.leaky_relu, aten.leaky_relu_}  # f(m x) = m f(x) for m > 0


@dataclass(frozen=True)
class Folding:
    """What was found at one site, and done.

    Args:
        path: of the site.
        attention: the mechanism there.
        drift: how far the output of the site is from its input times a constant per channel, relative, in root mean
            square over the data.
        low: the smallest of the constants.
        high: the largest.
        into: the module whose weights took them; None if the mechanism stays.
        reason: why it stays.
    """

    path: str
    attention: str
    drift: float
    low: float
    high: float
    into: str | None
    reason: str = ""


class Foldings(list[Folding]):
    """What ``fold`` did. ``drift`` and the accuracies are of the network's output over the data.

    Args:
        foldings: per site.
        drift: how far the output of the folded network is from the old one's, relative, in root mean square.
        accuracy: (before, after), in [0, 1]; None if the data had no labels.
    """

    def __init__(self, foldings: Iterable[Folding], drift: float, accuracy: tuple[float, float] | None) -> None:
        super().__init__(foldings)
        self.drift, self.accuracy = drift, accuracy

    def __str__(self) -> str:
        lines = [
            f"{f.path}  {f.attention}  drift {f.drift:.2e}  factors {f.low:.3f} to {f.high:.3f}  "
            + (f"-> {f.into}" if f.into else f"stays: {f.reason}")
            for f in self
        ]
        lines.append(f"output drift {self.drift:.2e}")
        if self.accuracy:
            lines[-1] += f", accuracy {self.accuracy[0]:.4f} -> {self.accuracy[1]:.4f}"
        return "\n".join(lines)


def fold(
    model: nn.Module,
    data: Iterable[Any],
    where: str | list[str] | None = None,
    *,
    tolerance: float = 0.01,
) -> Foldings:
    """Fold attention that is nearly a constant per channel into neighbouring weights, in place; it then costs nothing.

    All attention in the network is looked at: inserted, put in place of other, ours and that of timm and torchvision.
    What is folded does not come back with ``remove``.

    Args:
        model: a network with attention.
        data: batches of images, or (images, labels, ...), that can be gone through several times: a list, a DataLoader.
        where: a path or pattern of sites, or a list of them; None takes all that can be folded and leaves the others.
        tolerance: largest drift allowed, of each site and of the network's output.

    Raises:
        InvalidArgument: nothing to fold, a site named in ``where`` that cannot be folded, an output that drifts beyond
            the tolerance, or data that is empty or can be gone through only once. The network is then as it was.
    """
    check_network(model, "fold")
    if iter(data) is data:
        raise InvalidArgument(
            f"fold: data is a {type(data).__name__}, which can be gone through once; it is needed to measure and again "
            f"to check. Pass a list of batches or a DataLoader."
        )
    first = next((_images(batch, model) for batch in data), None)
    if first is None:
        raise InvalidArgument("fold: data has no batches; the gates are measured on images. Pass some.")
    traced = trace(model, (), first[:1], "fold")
    homes = {path: home for path, home, _ in insertions(model, "fold")}
    patterns = ["**"] if where is None else [where] if isinstance(where, str) else list(where)
    known = dict(existing(traced))
    chosen = {p: kind for p, kind in known.items() if any(fits(pattern, p) for pattern in patterns)}
    idle = [pattern for pattern in patterns if not any(fits(pattern, path) for path in known)]
    if idle:
        there = f"it is at: {', '.join(known)}. Name one" if known else "this network has none, and so nothing to fold"
        raise InvalidArgument(f"fold: {idle[0]!r} matches no site with attention; {there}.")
    measured = _measure(model, data, {path: homes.get(path, path) for path in chosen})
    plan: list[tuple[str, str, Tensor, bool]] = []
    report = []
    for path, kind in chosen.items():
        factor_C, drift = measured[path]
        into, inputs, reason = None, False, f"drift is above the tolerance {tolerance:g}"
        if drift <= tolerance:
            into, inputs, reason = _neighbour(traced, traced.calls[homes.get(path, path)][0], bool(factor_C.min() > 0))
        if into is not None:
            plan.append((path, into, factor_C, inputs))
        elif where is not None:
            raise InvalidArgument(
                f"fold: site {path!r} ({kind}), drift {drift:.3g}, cannot be folded: {reason}. Leave it out of where, "
                f"or pass a larger tolerance."
            )
        report.append(Folding(path, kind, drift, factor_C.min().item(), factor_C.max().item(), into, reason))
    twin = copy.deepcopy(model)
    _apply(twin, plan)
    drift, accuracy = _compare(model, twin, data)
    if drift > tolerance:
        raise InvalidArgument(
            f"fold: with {len(plan)} sites folded the output drifts by {drift:.3g}, more than tolerance={tolerance:g}; "
            f"drifts add up. Name fewer sites with where=, or pass a larger tolerance."
        )
    _apply(model, plan)
    return Foldings(report, drift, accuracy)


def _images(batch: Any, model: nn.Module) -> Tensor:
    images = batch[0] if isinstance(batch, (tuple, list)) else batch
    if not isinstance(images, Tensor):
        raise InvalidArgument(
            f"fold: a batch of the data is a {type(images).__name__}; it is a tensor of images, or a tuple that begins "
            f"with one. Pass such batches."
        )
    like = next((p for p in model.parameters() if p.is_floating_point()), images)
    return images.to(like.device, like.dtype)


@contextmanager
def _evaluating(*models: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every module gets its own mode back."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _measure(model: nn.Module, data: Iterable[Any], homes: dict[str, str]) -> dict[str, tuple[Tensor, float]]:
    """For each site, the best constant factor per channel (C,), and what it misses."""
    sums: dict[str, Tensor] = {}  # per site (3, C): <x, x>, <x, y>, <y, y>

    def adding(path: str) -> Any:
        def add(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
            x64, y64 = args[0].double(), y.double()
            products = torch.stack([(a * b).sum((0, 2, 3)) for a, b in ((x64, x64), (x64, y64), (y64, y64))])
            sums[path] = sums[path] + products if path in sums else products

        return add

    hooks = [model.get_submodule(home).register_forward_hook(adding(path)) for path, home in homes.items()]
    try:
        with _evaluating(model):
            for batch in data:
                model(_images(batch, model))
    finally:
        for hook in hooks:
            hook.remove()
    found = {}
    for path, (xx_C, xy_C, yy_C) in sums.items():
        factor_C = torch.where(xx_C > 0, xy_C / xx_C.clamp_min(1e-300), torch.ones_like(xx_C))
        missed = (yy_C - factor_C * xy_C).clamp_min(0).sum() / yy_C.sum().clamp_min(1e-300)
        found[path] = (factor_C, missed.sqrt().item())
    return found


def _neighbour(traced: Trace, call: Call, positive: bool) -> tuple[str | None, bool, str]:
    """Find the module whose weights can take the factors: its path and whether on its inputs, or why there is none."""
    value, readers = call.inputs[0], set(traced.values[call.start : call.end])
    while value not in traced.outputs and readers.issuperset(value.users):
        if value.frame is not None and _can_scale(traced, value):
            return value.frame.path, False, ""
        if value.op not in RECTIFIERS or not positive:
            break
        value, readers = value.inputs[0], {value}
    result = call.output
    if result is not None and result not in traced.outputs and len(result.users) == 1:
        user = result.users[0]
        if user.op in CONVOLUTIONS and user.frame is not None and _can_scale(traced, user):
            return user.frame.path, True, ""
    return None, False, "no norm or convolution makes its input for it alone, and none alone reads its output"


def _can_scale(traced: Trace, value: Value) -> bool:
    """Whether a value comes straight from the weights of one convolution or norm, which nothing else uses."""
    call = value.frame
    if call is None or len(traced.calls[call.path]) != 1:
        return False
    module = call.module
    # a subclass with its own forward may standardise its weights, which would undo the factors
    plain = isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward and value.op in CONVOLUTIONS
    norm = isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)) and value.op in NORMS
    weight = getattr(module, "weight", None)
    owners = sum(any(p is weight for p in m._parameters.values()) for m in traced.model.modules())
    return (
        (plain or norm) and isinstance(weight, nn.Parameter) and owners == 1 and not hasattr(module, "parametrizations")
    )


def _apply(model: nn.Module, plan: list[tuple[str, str, Tensor, bool]]) -> None:
    for path, into, factor_C, on_inputs in plan:
        module = model.get_submodule(into)
        weight, bias = module.get_parameter("weight"), module._parameters.get("bias")
        factor = factor_C.to(weight.device, weight.dtype)
        with torch.no_grad():
            if on_inputs:  # each group of outputs reads its own inputs
                groups, (outputs, inputs) = len(factor) // weight.shape[1], weight.shape[:2]
                shared = factor.view(groups, 1, inputs).expand(groups, outputs // groups, inputs)
                weight.mul_(shared.reshape(outputs, inputs, 1, 1))
            else:
                weight.mul_(factor.view(-1, *[1] * (weight.dim() - 1)))
                if bias is not None:
                    bias.mul_(factor)
        site = model.get_submodule(path)
        if isinstance(site, Replaced) or not is_site(site):
            parent, _, leaf = path.rpartition(".")
            model.get_submodule(parent)._modules[leaf] = nn.Identity()
        else:
            detach(model, path)
    forget(model)


def _compare(model: nn.Module, twin: nn.Module, data: Iterable[Any]) -> tuple[float, tuple[float, float] | None]:
    """Return the relative drift of the output, and both accuracies if the data has labels and the output logits."""
    missed = size = 0.0
    right, seen = [0, 0], 0
    with _evaluating(model, twin):
        for batch in data:
            images = _images(batch, model)
            old, new = model(images), twin(images)
            for a, b in zip(_tensors(old), _tensors(new), strict=True):
                missed += (a - b).double().square().sum().item()
                size += a.double().square().sum().item()
            labels = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
            if isinstance(labels, Tensor) and isinstance(old, Tensor) and old.dim() == 2 and labels.dim() == 1:
                for i, logits in enumerate((old, new)):
                    right[i] += int((logits.argmax(1).cpu() == labels.cpu()).sum())
                seen += len(labels)
    accuracy = (right[0] / seen, right[1] / seen) if seen else None
    return (missed / size) ** 0.5 if size else 0.0, accuracy


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]
