"""What every set of kernels must equal: the cases it is drawn, the definition of each, and one table of tolerances.

A set of kernels is an object with the methods of ``attendo.kernels.cpu.calls.Calls``; ``check_...`` puts it through a
case, forward and all gradients. Kernels compute in float32 (float64 for float64) and round once, the definition rounds
after each step: it is evaluated in the kernels' number on the same values. The one rounding in between that counts is
that of the gated map, on which the ties of its maximum depend.

The gradients of a whole attention jump where two numbers tie or one passes 0. There the definition, in float64, decides
on the numbers that the kernels kept, once these are seen to be its own but for rounding.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import attendo
from attendo import functional, kernels
from attendo.functional import definition
from attendo.kernels.cpu.packing import NOTHING, Gradients, Kept
from attendo.kernels.gates import TENSORS, GateWeights, Norm
from attendo.layers._base import Gate
from attendo.layers.cbam import CBAM

# relative, of what is stored; the absolute part is that of the number computed with, times the root of the terms summed
TOLERANCE = {torch.float64: 1e-12, torch.float32: 4e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
SPOILERS = (math.nan, math.inf, -math.inf)

# 1 x 1, one channel, one sample, primes, 7 x 7; more than a register, a row, a tile (1024 positions), 8 samples
SHAPES = (
    (1, 1, 1, 1),
    (2, 1, 1, 1),
    (9, 33, 1, 1),
    (1, 1, 7, 7),
    (2, 64, 7, 7),
    (3, 5, 7, 7),
    (3, 31, 1, 13),
    (1, 17, 13, 11),
    (8, 3, 5, 1),
    (11, 2, 3, 3),
    (1, 130, 2, 2),
    (2, 4, 8, 8),
    (1, 6, 37, 41),
    (1, 3, 1, 1031),
    (9, 2, 33, 33),
    (1, 160, 9, 9),
)
SIDES = st.sampled_from((1, 1, 2, 3, 4, 5, 7, 7, 8, 11, 13, 16, 17, 19, 23, 32, 33))


def number_of(dtype: torch.dtype) -> torch.dtype:
    """What a stored dtype is computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def close(got: Tensor, want: Tensor, terms: int = 1, stored: float = 0) -> None:
    """Equal within the tolerance of its dtype; NaN equals NaN.

    ``terms`` is how many numbers of about 1 were summed on the way, ``stored`` the size of those that were rounded to
    the dtype on the way.
    """
    absolute = TOLERANCE[number_of(got.dtype)] * math.sqrt(terms) + TOLERANCE[got.dtype] * stored
    want = want.detach().to(got.dtype)
    torch.testing.assert_close(got, want, rtol=TOLERANCE[got.dtype], atol=absolute, equal_nan=True)


def same(got: Tensor, want: Tensor) -> None:
    """Equal to the last bit; NaN equals NaN."""
    torch.testing.assert_close(got, want.detach().to(got.dtype), rtol=0, atol=0, equal_nan=True)


@dataclass(frozen=True)
class Case:
    """One call of a primitive.

    ``values``: "normal"; "few", small integers and so many ties; "rectified", half of them 0. Gates are "own" (one per
    sample), "shared" (over the batch) or None. ``spoilt`` names a tensor (x, channel, spatial, residual, up) and what
    stands here and there in it. ``wanted``: which gradients are asked for, of x, gates, residual.
    """

    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    layout: torch.memory_format = torch.contiguous_format
    values: str = "normal"
    channel: str | None = "own"
    spatial: str | None = "own"
    residual: bool = False
    relu: bool = False
    spoilt: tuple[str, float] | None = None
    wanted: tuple[bool, bool, bool, bool] = (True, True, True, True)
    device: str = "cpu"

    def tensor(self, name: str, size: tuple[int, ...]) -> Tensor:
        """The tensor of that name: the same whenever it is asked for."""
        rng = torch.Generator().manual_seed(sum(map(ord, name)) + 1000 * sum(self.shape))
        gate = name in ("channel", "spatial")
        if self.values == "few":
            drawn = torch.randint(-2, 3, size, generator=rng) * (0.5 if gate else 1.0)
        elif gate:
            drawn = torch.rand(size, generator=rng) * 2 - 1
        else:
            drawn = torch.randn(size, generator=rng)
            drawn = drawn.relu() if self.values == "rectified" and name in ("x", "residual") else drawn
        if self.spoilt is not None and self.spoilt[0] == name:
            some = torch.rand(size, generator=rng) < 0.1
            some.view(-1)[0] = True
            drawn = drawn.masked_fill(some, self.spoilt[1])
        return drawn.to(self.device, self.dtype)

    def map(self, name: str) -> Tensor:
        """A tensor of the shape and layout of x."""
        return self.tensor(name, self.shape).contiguous(memory_format=self.layout)

    def gates(self) -> tuple[Tensor | None, Tensor | None]:
        """The channel gate (N or 1, C, 1, 1) and the spatial gate (N or 1, 1, H, W)."""
        samples, channels, height, width = self.shape
        sizes = {"channel": (channels, 1, 1), "spatial": (1, height, width)}
        found = []
        for name, size in sizes.items():
            kind = getattr(self, name)
            found.append(None if kind is None else self.tensor(name, (samples if kind == "own" else 1, *size)))
        return found[0], found[1]


@st.composite
def shapes(draw: st.DrawFn, largest: int) -> tuple[int, int, int, int]:
    """(N, C, H, W) of at most ``largest`` elements."""
    if draw(st.booleans()):
        return draw(st.sampled_from([shape for shape in SHAPES if math.prod(shape) <= largest]))
    samples, channels, height, width = draw(SIDES), draw(SIDES), draw(SIDES), draw(SIDES)
    while samples * channels * height * width > largest:
        samples, channels = max(1, samples // 2), max(1, channels // 2 if samples == 1 else channels)
        height = max(1, height // 2) if samples * channels == 1 else height
    return samples, channels, height, width


def cases(
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    layouts: tuple[torch.memory_format, ...] = (torch.contiguous_format, torch.channels_last),
    largest: int = 1 << 16,
    device: str = "cpu",
) -> st.SearchStrategy[Case]:
    """Draw cases; ``largest`` bounds the elements of the map."""
    names, halves = ("x", "channel", "spatial", "residual", "up"), st.sampled_from(("own", "shared", None))
    return st.builds(
        Case,
        shape=shapes(largest),
        dtype=st.sampled_from(dtypes),
        layout=st.sampled_from(layouts),
        values=st.sampled_from(("normal", "few", "rectified")),
        channel=halves,
        spatial=halves,
        residual=st.booleans(),
        relu=st.booleans(),
        spoilt=st.none() | st.none() | st.tuples(st.sampled_from(names), st.sampled_from(SPOILERS)),
        wanted=st.just((True,) * 4) | st.tuples(*[st.booleans()] * 4),
        device=st.just(device),
    )


class Taken(torch.autograd.Function):
    """Go on with the kernels' own numbers, which maxima and ReLUs decide on; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, own: Tensor) -> Tensor:
        return own.to(x.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, up: Tensor) -> tuple[Tensor, None]:
        return up, None


class Stored(torch.autograd.Function):
    """Round to what a dtype can store; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(number_of(dtype)).to(dtype).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, up: Tensor) -> tuple[Tensor, None]:
        return up, None


def leaf(tensor: Tensor) -> Tensor:
    """The same values in the number computed with, to be differentiated by."""
    return tensor.detach().to(number_of(tensor.dtype)).requires_grad_()


def check_channel_stats(calls: Any, case: Case) -> None:
    """Mean and maximum over positions, and the gradient of the map."""
    x = case.map("x")
    wide = leaf(x)
    mean, maximum = definition.channel_stats(wide)
    got_mean, got_maximum, ties = calls.channel_stats(x, ties=True)
    close(got_mean, mean)
    same(got_maximum, maximum)
    again = calls.channel_stats(x)
    same(again[0], got_mean)
    same(again[1], got_maximum)
    ups = case.tensor("up", (2, *x.shape[:2]))
    (want,) = torch.autograd.grad((mean, maximum), wide, tuple(ups.to(wide.dtype)))
    got = calls.channel_stats_backward(ups[0], ups[1], x, got_maximum, ties)
    close(got, want)
    assert got.stride() == x.stride()


def check_spatial_stats(calls: Any, case: Case) -> None:
    """Mean and maximum over the channels of the gated map, and the gradients of map and gate."""
    x, (gate, _) = case.map("x"), case.gates()
    samples, channels, height, width = x.shape
    wide = leaf(x)
    wide_gate = None if gate is None else leaf(gate.expand(samples, -1, -1, -1))
    want = definition.spatial_stats(wide if wide_gate is None else Stored.apply(wide * wide_gate, x.dtype))
    got, ties = calls.spatial_stats(x, gate, ties=True)
    close(got[:, 0], want[:, 0])
    same(got[:, 1], want[:, 1])
    again, _ = calls.spatial_stats(x, gate)
    close(again, got)  # without the ties, sums may run in another order
    same(again[:, 1], got[:, 1])
    up = case.tensor("up", (samples, 2, height, width))
    leaves = [wide] if wide_gate is None else [wide, wide_gate]
    wants = torch.autograd.grad(want, leaves, up.to(wide.dtype))
    gradient, gate_gradient = calls.spatial_stats_backward(up, x, gate, got, ties)
    close(gradient, wants[0])
    assert gradient.stride() == x.stride()
    if gate is None:
        assert gate_gradient is None
    else:
        close(gate_gradient, wants[1].view(samples, channels), terms=height * width)


def check_recalibrate(calls: Any, case: Case) -> None:
    """The map times its gates, plus the shortcut, rectified: out of place, in place, and every gradient asked for."""
    x, (channel, spatial) = case.map("x"), case.gates()
    samples, channels, height, width = x.shape
    residual = case.map("residual") if case.residual else None
    wide = {"x": leaf(x)}
    if channel is not None:
        wide["channel"] = leaf(channel.expand(samples, -1, -1, -1))
    if spatial is not None:
        wide["spatial"] = leaf(spatial.expand(samples, -1, -1, -1))
    if residual is not None:
        wide["residual"] = leaf(residual)
    gates = [wide[name] for name in ("channel", "spatial") if name in wide]
    sums = definition.recalibrate(wide["x"], gates, wide.get("residual"))
    before = x.clone()
    out = calls.recalibrate(x, channel, spatial, residual, case.relu)
    close(out, sums.relu() if case.relu else sums)
    assert out.stride() == x.stride()
    same(x, before)
    inside = x.clone()
    assert calls.recalibrate(inside, channel, spatial, residual, case.relu, inside).data_ptr() == inside.data_ptr()
    same(inside, out)

    up = case.map("up")
    # where a result is within rounding of 0, the kernel's own decides what the ReLU lets through
    passed = torch.where(out <= 0, 0, up) if case.relu else up
    leaves = dict(zip(wide, torch.autograd.grad(sums, list(wide.values()), passed.to(sums.dtype)), strict=True))
    there = (True, channel is not None, spatial is not None, residual is not None and case.relu)
    wanted = tuple(a and b for a, b in zip(case.wanted, there, strict=True))
    found = calls.recalibrate_backward(up, x, channel, spatial, out if case.relu else None, wanted)
    terms = (1, height * width, channels, 1)
    for name, gradient, asked, count in zip(("x", "channel", "spatial", "residual"), found, wanted, terms, strict=True):
        assert (gradient is not None) is asked, name
        if asked:
            close(gradient, leaves[name].reshape(gradient.shape), count)


@dataclass(frozen=True)
class Attention:
    """A whole attention in one call: a layer, how strong its weights are, and the case it meets.

    ``before`` is the norm before it: None, "fixed" (running statistics count), "batch" (the batch's own do). ``share``
    is how much of the result to blend with the map, None for all of it.
    """

    case: Case
    name: str
    settings: tuple[tuple[str, Any], ...] = ()
    strength: float = 0.3
    before: str | None = None
    affine: bool = True
    share: float | None = None

    def blend(self) -> Tensor | None:
        """The share as a tensor."""
        if self.share is None:
            return None
        return torch.full((1,), self.share, dtype=self.case.dtype, device=self.case.device)

    def layer(self) -> Gate:
        """The layer, in eval mode, of the dtype and on the device of the case."""
        layer = attendo.layer(self.name, self.case.shape[1], **dict(self.settings)).eval()
        rng = torch.Generator().manual_seed(7)
        for name, tensor in layer.state_dict().items():
            if tensor.is_floating_point():
                drawn = torch.randn(tensor.shape, generator=rng) * self.strength
                tensor.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn)
        return layer.to(self.case.device, self.case.dtype)

    def norm(self) -> Norm | None:
        """The norm before it: of its weights every fourth is 0, so that all positions tie, and some are negative."""
        if self.before is None:
            return None
        weight, bias, mean, var = (self.case.tensor(f"norm {i}", (self.case.shape[1],)) for i in range(4))
        weight[1::4] = 0
        affine = (weight, bias) if self.affine else (None, None)
        return Norm(*affine, mean, var.abs() + 0.5, 1e-5, *((0.1, torch.tensor(2)) if self.before == "batch" else ()))


@st.composite
def attentions(
    draw: st.DrawFn,
    befores: tuple[str | None, ...] = (None,),
    shares: tuple[float | None, ...] = (None,),
    **space: Any,
) -> Attention:
    """Draw whole attentions with every setting that one call can take; ``space`` as of ``cases``."""
    case = draw(cases(**space))
    before, affine = draw(st.sampled_from(befores)), draw(st.sampled_from((True, True, False)))
    name = draw(st.sampled_from(("se", "eca", "cbam_channel", "cbam_spatial", "cbam")))
    sizes = st.sampled_from((1, 3, 5, 7))
    settings: dict[str, Any] = {}
    if name in ("cbam_channel", "cbam"):
        settings["channel"] = draw(st.sampled_from(("mlp", "eca")))
    if name == "se" or settings.get("channel") == "mlp":
        settings["reduction"] = draw(st.sampled_from(sorted({1, max(1, case.shape[1] // 3), case.shape[1]})))
        settings["bias"] = draw(st.booleans())
    if name == "se":
        settings["pool"] = draw(st.sampled_from(("avg", "max")))
    if name == "eca" or settings.get("channel") == "eca":
        settings["kernel_size"] = draw(sizes)
    if name in ("cbam_spatial", "cbam"):
        settings |= {"spatial_kernel": draw(sizes), "variant": draw(st.sampled_from(("official", "paper")))}
        settings |= {"spatial_norm": draw(st.booleans()), "max_first": draw(st.booleans())}
    strength, share = draw(st.sampled_from((0.3, 0.3, 30.0))), draw(st.sampled_from(shares))
    return Attention(case, name, tuple(settings.items()), strength, before, affine, None if before else share)


def mixed(x: Tensor, gates: Sequence[Tensor], blend: Tensor | None) -> Tensor:
    """The map times the product of the gates, or as much of that as the blend says and of the map for the rest."""
    recalibrated = x * math.prod(gates[1:], start=gates[0])
    return recalibrated if blend is None else recalibrated * blend + x * (1 - blend)


def attention_defined(
    layer: Gate, x: Tensor, residual: Tensor | None, relu: bool, blend: Tensor | None = None
) -> Tensor:
    """The definition of a layer in the number of x, the gated map rounded to the layer's dtype in between."""
    truth = copy.deepcopy(layer).to(number_of(x.dtype))
    wide = x.to(number_of(x.dtype))
    with torch.no_grad(), kernels.use("reference"):
        if isinstance(truth, CBAM):
            (channel,) = truth.channel.gates(wide)
            gates = (channel, *truth.spatial.gates(Stored.apply(wide * channel, x.dtype)))
        else:
            gates = truth.gates(wide)
        want = mixed(wide, gates, None if blend is None else blend.to(wide.dtype))
        return definition.recalibrate(want, (), None if residual is None else residual.to(wide.dtype), relu)


def check_attention(calls: Any, attention: Attention) -> None:
    """A whole attention in one call equals its gates and products, out of place and in place."""
    case, layer, norm = attention.case, attention.layer(), attention.norm()
    x, residual = case.map("x"), case.map("residual") if case.residual else None
    weights = layer.weights()
    assert weights is not None
    mapped = x if norm is None else check_norm(calls, x, norm)
    blend = attention.blend()
    want, given = attention_defined(layer, mapped, residual, case.relu, blend), x.clone()
    before = () if norm is None and blend is None else (norm, blend)
    out = calls.attention(x, weights, residual, case.relu, None, *before)
    close(out, want, terms=int(100 * max(1, attention.strength) ** 2))
    assert out.stride() == x.stride()
    same(x, given)
    inside = x.clone()
    assert calls.attention(inside, weights, residual, case.relu, inside, *before).data_ptr() == inside.data_ptr()
    same(inside, out)


def check_norm(calls: Any, x: Tensor, norm: Norm) -> Tensor:
    """What the norm before an attention makes of the map is the definition's; returns it as the kernels round it."""
    _, kept = calls.attention_kept(x, GateWeights(), norm, None, False)
    gate = torch.ones_like(x[:, :1]).contiguous()
    stored = calls.attention_finished(x, GateWeights(), norm, NOTHING._replace(norm=kept.norm), gate, None, False)
    want, mean, var = normed(x.double(), norm)
    scale, shift, *found = kept.norm
    if norm.momentum is not None:
        for got, statistic in zip(found, (mean, var), strict=True):
            close(got, statistic, terms=100)
    # a channel that hardly varies is made large, and what its mean was off with it
    close(stored, want, terms=int(4 + 4 * finite(shift) ** 2 + 4 * finite(scale) ** 2))
    return stored


def finite(tensor: Tensor) -> float:
    """The largest absolute value that is finite; 0 without any."""
    return tensor.detach().abs().nan_to_num(0, 0, 0).max().item() if tensor.numel() else 0.0


def normed(x: Tensor, norm: Norm) -> tuple[Tensor, Tensor, Tensor]:
    """The definition of a norm in the number of x, and the mean and variance (of the batch, not unbiased) it took."""
    weight, bias, mean, var = (None if tensor is None else tensor.to(x.dtype) for tensor in norm[:4])
    batch = norm.momentum is not None
    found = (x.detach().mean((0, 2, 3)), x.detach().var((0, 2, 3), correction=0)) if batch else (mean, var)
    out = F.batch_norm(x, *((None, None) if batch else (mean, var)), weight, bias, batch, eps=norm.eps)
    return out, *found


def attention_decided(
    x: Tensor,
    weights: GateWeights,
    norm: Norm | None,
    stored: Tensor | None,
    kept: Kept,
    dtype: torch.dtype,
    blend: Tensor | None = None,
) -> Tensor:
    """The definition of an attention in the number of x, deciding on what the kernels kept; that is checked on the way.

    Args:
        x: the map, all its numbers representable in ``dtype``.
        weights: in the same number, as is ``norm``.
        norm: before it, with the batch's statistics.
        stored: what that makes of the map, as the kernels round it.
        kept: by the kernels.
        dtype: in which maps and statistics of positions are stored.
        blend: in the number of x.
    """
    exact = x if norm is None else normed(x, norm)[0]
    x = gated = x if stored is None else Taken.apply(exact, stored)
    gates = []
    if kept.gate is not None:
        pools = {"mean": lambda: definition.channel_mean(exact), "maximum": lambda: definition.channel_max(x)}
        pooled = torch.stack([pool() for name, pool in pools.items() if getattr(weights, name)], 1)
        close(kept.pooled, pooled, terms=100)
        if weights.maximum:
            same(kept.pooled[:, -1], pooled[:, -1])
        if weights.fc1 is not None:
            raw = F.linear(pooled, weights.fc1, weights.fc1_bias)
            close(kept.raw, raw, terms=1000)
            logits = F.linear(Taken.apply(raw, kept.raw).relu(), weights.fc2, weights.fc2_bias)
        else:
            size = weights.conv.shape[-1]
            logits = F.conv1d(pooled.flatten(0, 1)[:, None], weights.conv, padding=size // 2).view_as(pooled)
        gate = torch.sigmoid(logits.sum(1))
        close(kept.gate, gate, terms=1000)
        gate = Taken.apply(gate, kept.gate)[:, :, None, None]
        gated = Stored.apply(x * gate, dtype)
        gates.append(gate)
    if weights.spatial is None:
        return mixed(x, gates, blend)
    stats = definition.spatial_stats(gated)
    close(kept.stats[:, 0], stats[:, 0])
    same(kept.stats[:, 1], stats[:, 1])
    logits = Stored.apply(definition.convolve(Stored.apply(stats, dtype), weights), dtype)
    spatial = torch.sigmoid(Stored.apply(definition.normalise(logits, weights.norm), dtype))
    return mixed(x, [*gates, Stored.apply(spatial, dtype)], blend)


def check_gradients(name: str, calls: Any, attention: Attention) -> None:
    """A whole attention in training, by the kernels of that name: its result, every gradient, running statistics."""
    narrow = attention.case.dtype == torch.bfloat16
    if narrow:  # logits of about 30 would be rounded to eighths, and a norm of logits makes that any size
        attention = dataclasses.replace(attention, strength=0.3)
    case, layer, norm = attention.case, attention.layer().train(not narrow), attention.norm()
    weights = layer.weights()
    assert weights is not None
    leaves = {"x": case.map("x"), "residual": case.map("residual") if case.residual else None}
    leaves["blend"] = attention.blend()
    leaves |= {"weight": None, "bias": None} if norm is None else {"weight": norm.weight, "bias": norm.bias}
    named = dict(zip(TENSORS, weights.tensors(), strict=True))
    leaves |= {key: value for key, value in named.items() if isinstance(value, torch.nn.Parameter)}
    leaves = {key: tensor.detach().requires_grad_() for key, tensor in leaves.items() if tensor is not None}
    mine = weights.holding([leaves.get(key, tensor) for key, tensor in named.items()])
    mine_norm = None if norm is None else norm._replace(weight=leaves.get("weight"), bias=leaves.get("bias"))
    wide = {key: tensor.detach().double().requires_grad_() for key, tensor in leaves.items()}
    running = {key: None if tensor is None else tensor.double() for key, tensor in named.items()}
    theirs = weights.holding([wide.get(key, tensor) for key, tensor in running.items()])
    theirs_norm = None if norm is None else norm._replace(weight=wide.get("weight"), bias=wide.get("bias"))

    x = leaves["x"].detach()
    stored = None if norm is None else check_norm(calls, x, norm)
    _, kept = calls.attention_kept(x, weights, norm, None, False)
    sums = attention_decided(wide["x"], theirs, theirs_norm, stored, kept, case.dtype, wide.get("blend"))
    sums = sums + wide["residual"] if case.residual else sums
    with kernels.use(name):
        out = functional.attend(
            leaves["x"], mine, leaves.get("residual"), case.relu, False, mine_norm, leaves.get("blend")
        )
    assert out is not None
    terms = int(1000 * max(1, attention.strength) ** 2) + x.numel()
    close(out, sums.relu() if case.relu else sums, terms, stored=finite(sums))
    assert out.stride() == x.stride()

    up = case.map("up")
    with kernels.use(name):
        found = torch.autograd.grad(out, list(leaves.values()), up)
    passed = torch.where(out <= 0, 0, up) if case.relu else up
    wants = torch.autograd.grad(sums, list(wide.values()), passed.double())
    for key, got, want in zip(leaves, found, wants, strict=True):
        if key.startswith(("conv", "spatial", "norm_")) and not want.isfinite().all():
            continue  # the padding times infinity is NaN for some of PyTorch's convolutions and not for others
        if key.startswith(("spatial", "norm_")) and narrow:
            continue  # between the passes PyTorch sums these up in bfloat16
        assert torch.equal(got.isfinite(), want.isfinite()), key
        close(got.nan_to_num(0, 0, 0), want.nan_to_num(0, 0, 0), terms, stored=8 * max(narrow, finite(want)))


def kept_and_gradients(calls: Any, attention: Attention) -> dict[str, Tensor]:
    """What the functions for training compute, from a spatial gate and a gradient of its statistics that are drawn."""
    case, weights, norm = attention.case, attention.layer().weights(), attention.norm()
    x, up, residual = case.map("x"), case.map("up"), case.map("residual")
    samples, _, height, width = x.shape
    norm = None if norm is None or norm.momentum is None else norm  # a fixed one has no gradients of its own
    out, kept = calls.attention_kept(x, weights, norm, residual, True, attention.blend())
    found = {f"kept {name}": tensor for name, tensor in kept._asdict().items()}
    position, known, blend = (None, None), Gradients(None, None), attention.blend()
    if kept.stats is not None:
        spatial = case.tensor("spatial", (samples, 1, height, width))
        position = spatial, case.tensor("up", (samples, 2, height, width))
        out = calls.attention_finished(x, weights, norm, kept, spatial, residual, True, blend)
        known_for = up, x, out, weights, kept, True, spatial, blend is not None
        found["gradient of the spatial gate"], known = calls.spatial_gradient(*known_for)
    gradients = calls.attention_backward(up, x, out, weights, norm, kept, position, known, (True, True), blend)
    found |= {"out": out} | {f"gradient of {name}": tensor for name, tensor in gradients._asdict().items()}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def outputs(calls: Any, attention: Attention) -> dict[str, Tensor]:
    """Everything that every function of a set of kernels computes for one case."""
    case, layer, norm = attention.case, attention.layer(), attention.norm()
    x, up, residual, (channel, spatial) = case.map("x"), case.map("up"), case.map("residual"), case.gates()
    samples, channels, height, width = x.shape
    mean, maximum, count = calls.channel_stats(x, ties=True)
    pair = case.tensor("up", (2, samples, channels))
    stats, ties = calls.spatial_stats(x, channel, ties=True)
    stats_up = case.tensor("up", (samples, 2, height, width))
    out = calls.recalibrate(x, channel, spatial, residual, relu=True)
    found = {
        "mean": mean,
        "maximum": maximum,
        "channel_stats_backward": calls.channel_stats_backward(pair[0], pair[1], x, maximum, count),
        "spatial_stats": stats,
        "recalibrate": out,
        "attention": calls.attention(x, layer.weights(), residual, True),
    }
    if norm is not None:
        found["attention with a norm"] = calls.attention(x, layer.weights(), residual, True, None, norm)
    found |= kept_and_gradients(calls, attention)
    backward = calls.spatial_stats_backward(stats_up, x, channel, stats, ties)
    gradients = calls.recalibrate_backward(up, x, channel, spatial, out, (True,) * 4)
    found |= {f"spatial_stats_backward {i}": tensor for i, tensor in enumerate(backward) if tensor is not None}
    return found | {f"recalibrate_backward {i}": tensor for i, tensor in enumerate(gradients)}
