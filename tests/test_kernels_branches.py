"""PSA's own primitives: a convolution of few channels per group, and branches joined without a copy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import attendo
from attendo import kernels
from attendo.functional import channel_mean, flops, grouped_conv, join  # noqa: F401 - flops: its formulas
from attendo.kernels.cpu import library
from attendo.kernels.selection import find
from kernels import TOLERANCE

SETS = [name for name in library.SETS if library.table(name) is not None]


def formats(x: torch.Tensor, last: bool) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last) if last else x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SETS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    samples=st.integers(1, 3),
    groups=st.integers(1, 17),
    inputs=st.integers(1, 5),
    outputs=st.integers(1, 5),
    half=st.integers(0, 4),
    stride=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.sampled_from([1, 2, 7, 13, 16, 30, 41]),
    last=st.booleans(),
)
def test_the_native_convolution_equals_pytorchs(
    name, dtype, samples, groups, inputs, outputs, half, stride, height, width, last
):
    kernel = 2 * half + 1
    x = formats(torch.randn(samples, groups * inputs, height, width), last).to(dtype)
    weight = torch.randn(groups * outputs, inputs, kernel, kernel).to(dtype)
    want = F.conv2d(x.double(), weight.double(), None, stride, half, 1, groups)
    size = F.conv2d(x.double().abs(), weight.double().abs(), None, stride, half, 1, groups)
    with kernels.use(name):
        got = find(x).grouped_conv(x, weight, stride, groups)
    assert got.is_contiguous(
        memory_format=torch.channels_last if last and not x.is_contiguous() else torch.contiguous_format
    )
    assert ((got.double() - want).abs() <= TOLERANCE[dtype] * (1 + size)).all()


def test_nan_and_infinity_reach_every_output_that_sees_them():
    x = torch.zeros(1, 16, 12, 12)
    x[0, 3, 5, 5], x[0, 9, 2, 2] = float("nan"), float("inf")
    weight = torch.rand(16, 1, 5, 5) + 0.1
    with torch.no_grad():
        torch.testing.assert_close(
            grouped_conv(x, weight, 1, 16), F.conv2d(x, weight, None, 1, 2, 1, 16), equal_nan=True
        )


@pytest.mark.parametrize("last", [False, True])
def test_branches_are_joined_in_their_order_with_and_without_gradient(last):
    maps = [formats(torch.randn(2, 3, 4, 5), last).requires_grad_() for _ in range(3)]
    gates = [torch.rand(2, 3, 1, 1) for _ in range(3)]
    want = torch.cat([x * gate for x, gate in zip(maps, gates, strict=True)], 1)
    assert join(maps, gates).requires_grad
    with torch.no_grad():
        got = join([x.detach() for x in maps], gates)
    torch.testing.assert_close(got, want.detach(), rtol=0, atol=0)
    assert got.stride() == want.stride()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_psa_in_inference_equals_its_definition(last, stride):
    layer = attendo.layer("psa", 64, 64, stride).eval()
    x = formats(torch.randn(3, 64, 15, 20), last)
    with torch.no_grad():
        got = layer(x)
        with kernels.use("reference"):
            want = layer(x)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert got.stride() == want.stride()


@pytest.mark.parametrize("last", [False, True])
def test_the_gradient_of_a_channels_mean_takes_no_map(last):
    x = formats(torch.randn(2, 3, 4, 5), last).requires_grad_()
    mean = channel_mean(x)
    torch.testing.assert_close(mean, x.mean((2, 3)))
    (gradient,) = torch.autograd.grad(mean.square().sum(), x)
    assert gradient.stride()[2:] == (0, 0)
    torch.testing.assert_close(gradient, torch.autograd.grad(x.mean((2, 3)).square().sum(), x)[0])


def test_a_hook_on_a_branch_is_called():
    layer, seen = attendo.layer("psa", 64).eval(), []
    layer.spc.branches[3].register_forward_hook(lambda *_: seen.append(True))
    with torch.no_grad():
        layer(torch.randn(1, 64, 8, 8))
    assert seen == [True]


def test_a_convolution_with_a_bias_keeps_it():
    layer = attendo.layer("psa", 64).eval()
    x = torch.randn(1, 64, 8, 8)
    with torch.no_grad():
        branch = layer.spc.branches[3]
        branch.bias = torch.nn.Parameter(torch.randn(16))
        got = layer(x)
        with kernels.use("reference"):
            torch.testing.assert_close(got, layer(x), rtol=1e-5, atol=1e-5)


def test_macs_are_counted_whether_kernels_run_or_not():
    layer, x = attendo.layer("psa", 64).eval(), torch.randn(1, 64, 8, 8)
    counts = []
    for name in ("auto", "reference"):
        with torch.no_grad(), kernels.use(name), FlopCounterMode(display=False) as counter:
            layer(x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("operator", ["attention", "grouped_conv"])
def test_operators_count_their_macs(operator):
    x = torch.randn(2, 32, 6, 6)
    if operator == "grouped_conv":
        weight = torch.randn(16, 2, 5, 5)
        call, want = lambda: torch.ops.attendo.grouped_conv(x, weight, 1, 16), 2 * 2 * 16 * 36 * 2 * 25
    else:
        weights = attendo.layer("cbam", 32).eval().weights()
        rest = weights.norm.eps, weights.mean, weights.maximum, weights.maximum_first
        call = lambda: torch.ops.attendo.attention(x, list(weights.tensors()), *rest, None, False)  # noqa: E731
        want = (
            2 * 2 * (2 * 2 * 32 * 2 + 2 * 49 * 36)
        )  # two statistics through two layers of 32 x 2; the 7 x 7 over 6 x 6
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    assert counter.get_total_flops() == want


def test_the_operators_pass_opcheck():
    x, weight = torch.randn(2, 32, 6, 6), torch.randn(16, 2, 5, 5)
    torch.library.opcheck(torch.ops.attendo.grouped_conv.default, (x, weight, 1, 16))
    weights = attendo.layer("cbam", 32).eval().weights()
    tensors = [None if t is None else t.detach() for t in weights.tensors()]
    flags = weights.mean, weights.maximum, weights.maximum_first
    for blend in (None, torch.tensor([0.3])):
        given = x, tensors, weights.norm.eps, *flags, x.clone(), True, blend
        torch.library.opcheck(torch.ops.attendo.attention.default, given)


@pytest.mark.parametrize("part", ["fc1.bias", "fc2.weight", "fc2.bias"])
def test_weights_of_another_shape_are_refused_as_by_the_definition(part):
    layer = attendo.layer("se", 64).eval()
    module, _, name = part.partition(".")
    setattr(getattr(layer, module), name, torch.nn.Parameter(torch.randn((3,) if name == "bias" else (60, 4))))
    with torch.no_grad(), pytest.raises(RuntimeError):
        torch.relu(layer(torch.randn(2, 64, 6, 6)))
