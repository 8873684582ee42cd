"""What every set of kernels must equal: the cases it is drawn, the definition of each, and one table of tolerances.

A set of kernels is an object with the methods of ``attendo.kernels.cpu.calls.Calls``; ``check_...`` puts it through a
case, forward and all gradients. Kernels compute in float32 (float64 for float64) and round once, the definition rounds
after each step: it is evaluated in the kernels' number on the same values. The one rounding in between that counts is
that of the gated map, on which the ties of its maximum depend.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import attendo
from attendo import kernels
from attendo.functional import definition
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


def close(got: Tensor, want: Tensor, terms: int = 1) -> None:
    """Equal within the tolerance of its dtype; NaN equals NaN.

    ``terms`` is how many numbers of about 1 were summed on the way.
    """
    absolute = TOLERANCE[number_of(got.dtype)] * math.sqrt(terms)
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


class Stored(torch.autograd.Function):
    """Round to what a dtype can store; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype).to(x.dtype)

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
    """A whole attention in one call: a layer, how strong its weights are, and the case it meets."""

    case: Case
    name: str
    settings: tuple[tuple[str, Any], ...] = ()
    strength: float = 0.3

    def layer(self) -> Gate:
        """The layer, in eval mode, of the dtype and on the device of the case."""
        layer = attendo.layer(self.name, self.case.shape[1], **dict(self.settings)).eval()
        rng = torch.Generator().manual_seed(7)
        for name, tensor in layer.state_dict().items():
            if tensor.is_floating_point():
                drawn = torch.randn(tensor.shape, generator=rng) * self.strength
                tensor.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn)
        return layer.to(self.case.device, self.case.dtype)


@st.composite
def attentions(draw: st.DrawFn, **space: Any) -> Attention:
    """Draw whole attentions with every setting that one call can take; ``space`` as of ``cases``."""
    case = draw(cases(**space))
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
    return Attention(case, name, tuple(settings.items()), draw(st.sampled_from((0.3, 0.3, 30.0))))


def attention_defined(layer: Gate, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """The definition of a layer in the number of x, the gated map rounded to the layer's dtype in between."""
    truth = copy.deepcopy(layer).to(number_of(x.dtype))
    wide = x.to(number_of(x.dtype))
    with torch.no_grad(), kernels.use("reference"):
        if isinstance(truth, CBAM):
            (channel,) = truth.channel.gates(wide)
            gates = (channel, *truth.spatial.gates(Stored.apply(wide * channel, x.dtype)))
        else:
            gates = truth.gates(wide)
        return definition.recalibrate(wide, gates, None if residual is None else residual.to(wide.dtype), relu)


def check_attention(calls: Any, attention: Attention) -> None:
    """A whole attention in one call equals its gates and products, out of place and in place."""
    case, layer = attention.case, attention.layer()
    x, residual = case.map("x"), case.map("residual") if case.residual else None
    weights = layer.weights()
    assert weights is not None
    want, before = attention_defined(layer, x, residual, case.relu), x.clone()
    out = calls.attention(x, weights, residual, case.relu)
    close(out, want, terms=int(100 * max(1, attention.strength) ** 2))
    assert out.stride() == x.stride()
    same(x, before)
    inside = x.clone()
    assert calls.attention(inside, weights, residual, case.relu, inside).data_ptr() == inside.data_ptr()
    same(inside, out)


def outputs(calls: Any, attention: Attention) -> dict[str, Tensor]:
    """Everything that every function of a set of kernels computes for one case."""
    case, layer = attention.case, attention.layer()
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
    backward = calls.spatial_stats_backward(stats_up, x, channel, stats, ties)
    gradients = calls.recalibrate_backward(up, x, channel, spatial, out, (True,) * 4)
    found |= {f"spatial_stats_backward {i}": tensor for i, tensor in enumerate(backward) if tensor is not None}
    return found | {f"recalibrate_backward {i}": tensor for i, tensor in enumerate(gradients)}
