"""Whole attentions in training, by layers and blocks: what PyTorch's own modules would give, statistics included."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import attendo
from attendo import functional, kernels
from attendo.kernels.cpu.calls import Calls
from attendo.kernels.gates import Norm
from kernels import Attention, Case, attentions, close, finite, same
from test_kernels_dispatch import HERE, Counting, pytestmark  # noqa: F401 - the same skip
from test_kernels_layers import BLOCKS, block

moderate = settings(max_examples=150, deadline=None, derandomize=True)
MECHANISMS = ["se", "eca", "cbam"]
SHAPE = (3, 64, 5, 6)


def last_norm(network: nn.Module) -> nn.BatchNorm2d:
    """The norm at the end of a block, of weights that are positive, negative and 0."""
    norm = network.bn3 if hasattr(network, "bn3") else network.bn2
    if isinstance(norm, nn.BatchNorm2d) and norm.affine:
        with torch.no_grad():
            norm.weight.normal_()
            norm.weight[3] = 0
            norm.bias.normal_()
    return norm


def exchange(network: nn.Module, norm: nn.Module) -> None:
    setattr(network, "bn3" if hasattr(network, "bn3") else "bn2", norm)


def double(kind: str = "bottleneck", name: str = "cbam") -> nn.Module:
    """A block in training, in float64, where no rounding hides a mistake."""
    network = block(kind, name).double().train()
    last_norm(network)
    return network


def step(network: nn.Module, x: Tensor, up: Tensor | None = None) -> list[Tensor | None]:
    """Result and all gradients of a training step."""
    leaves = [leaf for leaf in (x.clone().requires_grad_(), *network.parameters()) if leaf.requires_grad]
    out = network(leaves[0])
    up = torch.randn(out.shape, generator=torch.Generator().manual_seed(4)).to(out.dtype) if up is None else up
    return [out, *torch.autograd.grad(out, leaves, up, allow_unused=True)]


def check_both_ways(
    network: nn.Module, run: Callable[[nn.Module], list[Tensor | None]], chosen: str = "auto"
) -> Counting:
    """The same results, gradients and buffers with and without kernels; returns what was called."""
    ways, called = [], Counting()
    for way in (chosen, "reference"):
        copied = copy.deepcopy(network)
        with kernels.use(way), Counting() as counts:
            results = run(copied)
        ways.append((*results, *copied.state_dict().values()))
        called.update(counts)
    assert len(ways[0]) == len(ways[1])
    for got, want in zip(*ways, strict=True):
        assert (got is None) is (want is None)
        if got is not None:
            alike(got, want)
    return called


def alike(got: Tensor, want: Tensor) -> None:
    """Equal but for rounding, the largest of a tensor being the measure."""
    assert got.dtype == want.dtype
    if got.is_floating_point():
        close(got, want, terms=10000, stored=8 * finite(want))
    else:
        assert torch.equal(got, want)


@moderate
@given(
    attention=attentions(befores=(None, "batch"), shares=(None, 0.0, 0.3), dtypes=(torch.float64,), largest=1 << 11),
    name=st.sampled_from(HERE),
    asked=st.tuples(*[st.booleans()] * 4),
)
@example(attention=Attention(Case((2, 16, 3, 3), torch.float64), "cbam"), name=HERE[0], asked=(True, True, True, False))
def test_a_layer_in_training_equals_the_one_without_kernels(attention, name, asked):
    case, x, residual = attention.case, attention.case.map("x"), attention.case.map("residual")
    samples, channels, height, width = case.shape
    assume(case.spoilt is None and attention.strength < 1)  # what jumps at the last digit is left to check_gradients
    assume(samples * height * width > 1 and x.transpose(0, 1).flatten(1).std(1).min() > 0.1)
    parts, before = nn.ModuleDict({"layer": attention.layer().train()}), attention.norm()
    blend = attention.blend()
    if before is not None:
        parts["norm"] = nn.BatchNorm2d(channels, affine=attention.affine, dtype=case.dtype)
        if attention.affine:
            parts["norm"].weight.data, parts["norm"].bias.data = before.weight, before.bias
    for module, wanted in zip(parts.values(), asked[2:], strict=False):
        module.requires_grad_(wanted)

    def run(parts: nn.ModuleDict) -> list[Tensor | None]:
        leaf, shortcut = x.clone().requires_grad_(asked[0]), residual.clone().requires_grad_(asked[1])
        norm = parts["norm"] if before is not None else None
        mixing = None if blend is None else blend.clone().requires_grad_(asked[3])
        others = case.relu, False, norm, mixing
        out = parts["layer"].recalibrate(leaf, shortcut if case.residual else None, *others)
        leaves = [leaf, shortcut, *parts.parameters(), *(() if mixing is None else (mixing,))]
        leaves = [tensor for tensor in leaves if tensor.requires_grad]
        if not out.requires_grad:
            return [out]
        return [out, *torch.autograd.grad(out, leaves, case.map("up"), allow_unused=True)]

    check_both_ways(parts, run, name)


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("name", MECHANISMS)
@pytest.mark.parametrize("training", [False, True])
def test_the_last_norm_of_a_block_joins_its_attention(kind, name, training, monkeypatch):
    network, joined = double(kind, name).train(training), []
    x = torch.randn(SHAPE, dtype=torch.float64)
    with torch.set_grad_enabled(training):
        check_both_ways(network, lambda network: step(network, x) if training else [network(x)])
    method = "attention_kept" if training else "attention"
    original = getattr(Calls, method)
    monkeypatch.setattr(Calls, method, lambda *args: joined.append(args[3 if training else 6]) or original(*args))
    normalised = []
    batch_norm = nn.functional.batch_norm
    monkeypatch.setattr(nn.functional, "batch_norm", lambda x, *a, **k: normalised.append(x) or batch_norm(x, *a, **k))
    with torch.set_grad_enabled(training):
        network(x)
    assert [norm.weight is last_norm(network).weight for norm in joined] == [True]
    assert len(normalised) == (1 if kind == "basic" else 2)  # the other norms of the block


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("name", MECHANISMS)
def test_running_statistics_follow_as_pytorchs_do_over_two_forwards_before_a_backward(kind, name, layout):
    network = double(kind, name).to(memory_format=layout)
    x = torch.randn(2, *SHAPE, dtype=torch.float64).flatten(0, 1)[:6].view(2, *SHAPE)

    def run(network: nn.Module) -> list[Tensor | None]:
        leaves = [part.contiguous(memory_format=layout).requires_grad_() for part in x.clone()]
        first, second = (network(leaf) for leaf in leaves)
        loss = first.square().sum() + second.sin().sum()
        return [first, second, *torch.autograd.grad(loss, [*leaves, *network.parameters()])]

    assert check_both_ways(network, run)["attention_kept"] == 2


def test_a_backward_pass_can_be_repeated():
    network, x = double(), torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)
    out, leaves = network(x), [x, *network.parameters()]
    first = torch.autograd.grad(out.square().sum(), leaves, retain_graph=True)
    for again, gradient in zip(torch.autograd.grad(out.square().sum(), leaves), first, strict=True):
        same(again, gradient)


class Doubled(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def replaced(norm: nn.Module) -> nn.Module:
    norm.forward = lambda x: x.tanh()
    return norm


NORMS = {
    "with a cumulative average": lambda: nn.BatchNorm2d(64, momentum=None),
    "with a momentum of 0": lambda: nn.BatchNorm2d(64, momentum=0.0),
    "with a momentum of 1": lambda: nn.BatchNorm2d(64, momentum=1.0),
    "with another epsilon": lambda: nn.BatchNorm2d(64, eps=0.5),
    "without running statistics": lambda: nn.BatchNorm2d(64, track_running_stats=False),
    "without affine weights": lambda: nn.BatchNorm2d(64, affine=False),
    "without either": lambda: nn.BatchNorm2d(64, affine=False, track_running_stats=False),
    "frozen": lambda: nn.BatchNorm2d(64).eval(),
    "frozen and without gradients": lambda: nn.BatchNorm2d(64).eval().requires_grad_(False),
    "of a subclass": lambda: Doubled(64),
    "of groups": lambda: nn.GroupNorm(4, 64),
    "of instances": lambda: nn.InstanceNorm2d(64),
    "absent": nn.Identity,
    "with a forward of its own": lambda: replaced(nn.BatchNorm2d(64)),
    "with a parametrised weight": lambda: nn.utils.parametrizations.weight_norm(nn.BatchNorm2d(64), dim=None),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", ["se", "cbam"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_block_whose_last_norm_is_another_computes_what_that_says(norm, name, grad):
    network = double(name=name)
    exchange(network, NORMS[norm]().double())
    last_norm(network)
    x = torch.randn(SHAPE, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        check_both_ways(network, lambda network: step(network, x) if grad else [network(x), network(x + 1)])


def test_a_synchronised_norm_computes_what_it_says():
    network = nn.SyncBatchNorm.convert_sync_batchnorm(double()).eval()  # in training it takes GPUs only
    x = torch.randn(SHAPE, dtype=torch.float64)
    check_both_ways(network, lambda network: step(network, x))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_norm_of_another_dtype_computes_what_pytorch_says(grad, training):
    network = double().to(torch.bfloat16).train(training)
    exchange(network, last_norm(network).float())
    x = torch.randn(SHAPE, dtype=torch.bfloat16)
    with torch.set_grad_enabled(grad):
        check_both_ways(network, lambda network: [network(x)])


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("where", ["conv3", "bn3"])
@pytest.mark.parametrize("hook", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_a_hook_before_the_attention_is_called_and_heeded(where, hook, grad):
    if "backward" in hook and not grad:
        return
    network, calls = double(), []

    def heed(module: nn.Module, *given: Any) -> Any:
        calls.append(hook)
        if hook == "forward":
            return given[1] * 2
        return tuple(tensor * 2 for tensor in given[0] if tensor is not None)

    getattr(network.get_submodule(where), f"register_{hook}_hook")(heed)
    x = torch.randn(SHAPE, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        check_both_ways(network, lambda network: step(network, x) if grad else [network(x)])
    assert calls == [hook] * 2


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("where", ["conv3", "bn3"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre"])
def test_what_a_hook_before_the_attention_kept_is_not_overwritten(where, kind, training):
    network, kept = double().train(training), []
    module = network.get_submodule(where)
    getattr(module, f"register_{kind}_hook")(lambda *given: kept.append(given[-1]))
    x = torch.randn(SHAPE, dtype=torch.float64)
    with torch.no_grad():
        network(x)
        found = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
        want = network.act2(network.bn2(network.conv2(network.act1(network.bn1(network.conv1(x))))))
        if (where, kind) != ("conv3", "forward_pre"):
            want = network.conv3(want)
        if (where, kind) == ("bn3", "forward"):
            want = network.bn3(want)
    close(found, want, terms=1000)


@pytest.mark.parametrize("where", ["conv3", "bn3"])
def test_what_a_replaced_forward_returns_is_not_overwritten(where):
    network = double().eval()
    module, kept = network.get_submodule(where), torch.randn(SHAPE, dtype=torch.float64)
    before = kept.clone()
    module.forward = lambda x: kept
    with torch.no_grad():
        network(torch.randn(SHAPE, dtype=torch.float64))
    same(kept, before)


@pytest.mark.parametrize("size", [(1, 64, 1, 1), (1, 64, 2, 1)], ids=str)
def test_a_batch_of_one_number_per_channel_gets_pytorchs_own_error(size):
    layer, norm, x = attendo.layer("cbam", 64).train(), nn.BatchNorm2d(64), torch.randn(size, requires_grad=True)
    if size[2] == 1:
        for before in ({}, {"norm": norm}):
            with pytest.raises(ValueError, match="more than 1 value per channel"):
                layer.recalibrate(x, **before)
        assert not norm.running_mean.any()
        assert attendo.layer("se", 64).train()(x).shape == size
    else:
        layer.recalibrate(x, norm=norm).sum().backward()
        assert norm.num_batches_tracked == layer.spatial.norm.num_batches_tracked == 1


UPS = {
    "expanded": lambda up: up[:1, :1, :1, :1].expand(SHAPE),
    "of the other layout": lambda up: up.to(memory_format=torch.channels_last),
    "transposed": lambda up: up.transpose(0, 1).contiguous().transpose(0, 1),
    "cut": lambda up: torch.cat((up, up), 3)[..., : SHAPE[3]],
}


@pytest.mark.parametrize("up", UPS)
@pytest.mark.parametrize("name", MECHANISMS)
def test_a_gradient_may_come_in_any_strides(up, name):
    x, drawn = torch.randn(SHAPE, dtype=torch.float64), torch.randn(SHAPE, dtype=torch.float64)
    check_both_ways(double(name=name), lambda network: step(network, x, UPS[up](drawn)))
    layer = attendo.layer(name, 64).double().train()
    check_both_ways(layer, lambda layer: step(layer, x, UPS[up](drawn)))


@pytest.mark.parametrize("frozen", ["everything but the shortcut", "everything but x", "the norm", "the layer", "x"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("name", [*MECHANISMS, "cbam_channel", "cbam_spatial"])
def test_gradients_are_those_asked_for(name, normed, relu, frozen):
    parts = nn.ModuleDict({"layer": attendo.layer(name, 64), "norm": nn.BatchNorm2d(64)}).double().train()
    parts["layer"].requires_grad_(frozen in ("the norm", "x"))
    parts["norm"].requires_grad_(frozen in ("the layer", "x") and normed)
    maps = [torch.randn(SHAPE, dtype=torch.float64) for _ in range(3)]

    def run(parts: nn.ModuleDict) -> list[Tensor | None]:
        x = maps[0].clone().requires_grad_(frozen not in ("everything but the shortcut", "x"))
        shortcut = maps[1].clone().requires_grad_(frozen != "everything but x")
        out = parts["layer"].recalibrate(x, shortcut, relu, norm=parts["norm"] if normed else None)
        leaves = [leaf for leaf in (x, shortcut, *parts.parameters()) if leaf.requires_grad]
        return [out, *torch.autograd.grad(out, leaves, maps[2])]

    assert check_both_ways(parts, run)["attention_kept"] == 1


@pytest.mark.parametrize("name", MECHANISMS)
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_of_a_block_gives_what_it_gives_without_kernels(name, dtype, grad):
    network, x, ways = block("bottleneck", name).train(grad), torch.randn(SHAPE).to(dtype), []
    for chosen in ("auto", "reference"):
        copied = copy.deepcopy(network)
        with kernels.use(chosen), torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
            results = step(copied, x) if grad else [copied(x)]
        ways.append([*results, *copied.state_dict().values()])
    for got, want in zip(*ways, strict=True):
        assert got.dtype == want.dtype
        # a maximum or a ReLU decided by the last of 8 bits changes single numbers
        assert (got.float() - want.float()).norm() <= 0.1 * max(1, want.float().norm())


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_checkpointed_block_equals_the_one_without_kernels(name):
    x = torch.randn(SHAPE, dtype=torch.float64)

    def run(network: nn.Module) -> list[Tensor | None]:
        leaf = x.clone().requires_grad_()
        out = torch.utils.checkpoint.checkpoint(network, leaf, use_reentrant=False)
        return [out, *torch.autograd.grad(out.square().sum(), [leaf, *network.parameters()])]

    assert check_both_ways(double(name=name), run)["attention_kept"] == 2


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("name", MECHANISMS)
def test_a_compiled_block_in_training_equals_the_one_without_kernels(kind, name):
    network, x, ways = double(kind, name), torch.randn(SHAPE, dtype=torch.float64), []
    for compiled in (True, False):
        copied = copy.deepcopy(network)
        with kernels.use("auto" if compiled else "reference"):
            run = torch.compile(copied, fullgraph=True, backend="aot_eager") if compiled else copied
            ways.append([*step(run, x), *copied.state_dict().values()])
    for got, want in zip(*ways, strict=True):
        alike(got, want)


@pytest.mark.parametrize("name", [*MECHANISMS, "cbam_channel", "cbam_spatial"])
@pytest.mark.parametrize("more", [None, "norm", "blend"])
def test_gradients_equal_finite_differences_twice(name, more):
    options = {} if name in ("eca", "cbam_spatial") else {"reduction": 2}
    options |= {"spatial_kernel": 3} if name in ("cbam", "cbam_spatial") else {}
    layer, norm = attendo.layer(name, 4, **options).double().train(), nn.BatchNorm2d(4).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -0.8, 0.5, 1.2]))
        norm.bias.normal_()
    x, shortcut = (torch.randn(2, 4, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    blend = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    normed, blended = more == "norm", more == "blend"
    parameters = [*layer.parameters(), *(norm.parameters() if normed else [blend] if blended else ())]

    def function(x: Tensor, shortcut: Tensor, *_: Tensor) -> Tensor:  # the parameters are changed where they lie
        others = {"norm": norm if normed else None, "blend": blend if blended else None}
        return layer.recalibrate(x, shortcut, relu=True, **others)

    with Counting() as counts:
        assert torch.autograd.gradcheck(function, (x, shortcut, *parameters))
        assert torch.autograd.gradgradcheck(function, (x, shortcut, *parameters))
    assert counts["attention_kept"]
    assert counts["attention_backward"]


@pytest.mark.parametrize("kind", BLOCKS)
def test_gradients_of_a_block_equal_finite_differences_twice(kind):
    cls, planes = BLOCKS[kind][0], {"basic": 4, "bottleneck": 1}[kind]
    layer = attendo.layer("cbam", 4, reduction=2, spatial_kernel=3)
    network = cls(4, planes, attn_layer=lambda *_, **__: layer).double().train()
    x = torch.randn(2, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    last_norm(network)
    with Counting() as counts:
        assert torch.autograd.gradcheck(network, (x,))
        assert torch.autograd.gradgradcheck(network, (x,))
    assert counts["attention_backward"]


def strided(tensor: Tensor) -> Tensor:
    """The same numbers, every second one of a larger tensor, the axes in another order."""
    wide = torch.zeros(*tensor.shape[::-1], 2, dtype=tensor.dtype)[..., 0]
    return wide.permute(*range(tensor.ndim)[::-1]).copy_(tensor)


@pytest.mark.parametrize("name", MECHANISMS)
@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("training", [False, True])
def test_weights_and_statistics_of_any_strides_are_used_and_followed(kind, name, training):
    network = double(kind, name).train(training)
    for module in (*network.se.modules(), last_norm(network)):
        for tensors in (module._parameters, module._buffers):
            for key, tensor in tensors.items():
                if tensor is not None and tensor.ndim:
                    new = strided(tensor.detach())
                    assert torch.equal(new, tensor)
                    assert new.numel() == 1 or not new.is_contiguous()
                    tensors[key] = nn.Parameter(new) if tensors is module._parameters else new
    x = torch.randn(SHAPE, dtype=torch.float64)

    def run(network: nn.Module) -> list[Tensor | None]:
        with torch.set_grad_enabled(training):
            return step(network, x) if training else [network(x), network(x)]

    ways = []
    for copied, chosen in ((network, "auto"), (copy.deepcopy(network), "reference")):  # which strides survive
        with kernels.use(chosen):
            ways.append([*run(copied), *copied.state_dict().values()])
    for got, want in zip(*ways, strict=True):
        alike(got, want)


@pytest.mark.parametrize("first", HERE)
@pytest.mark.parametrize("then", [*HERE, "reference"])
def test_kernels_chosen_between_the_passes_do_not_change_the_gradients(first, then):
    parts = nn.ModuleDict({"layer": attendo.layer("cbam", 32), "norm": nn.BatchNorm2d(32)}).train()
    x, up = torch.randn(4, 32, 7, 9, requires_grad=True), torch.randn(4, 32, 7, 9)
    with kernels.use(first):
        out = parts["layer"].recalibrate(x, norm=parts["norm"])
    with kernels.use(then):
        got = torch.autograd.grad(out, [x, *parts.parameters()], up)
    with kernels.use("reference"):
        out = parts["layer"].recalibrate(x, norm=parts["norm"])
        want = torch.autograd.grad(out, [x, *parts.parameters()], up)
    for mine, theirs in zip(got, want, strict=True):
        alike(mine, theirs)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("wrong", range(4))
def test_a_norm_of_other_channels_gets_pytorchs_own_error(wrong, grad):
    layer, norm = attendo.layer("se", 32).train(grad), nn.BatchNorm2d(32).train(grad)
    parts = [norm.weight, norm.bias, norm.running_mean, norm.running_var]
    parts[wrong].data = torch.ones(31)
    x = torch.randn(2, 32, 3, 3)
    assert functional.attend(x, layer.weights(), norm=Norm(*parts, 1e-5, 0.1 if grad else None)) is None
    with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match="32"):
        layer.recalibrate(x, norm=norm)
