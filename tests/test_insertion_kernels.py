"""Inserted attention runs in one call of a kernel, its identity start included, in the memory of the site's output."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import attendo
from attendo import functional, kernels
from attendo.insertion import insert
from kernels import close, same
from test_kernels_dispatch import Counting, pytestmark  # noqa: F401 - the same skip
from test_kernels_training import check_both_ways

NAMES = ["se", "eca", "cbam", "cbam_channel", "cbam_spatial"]
SHAPE = (3, 3, 24, 20)


def network(
    name: str = "cbam", start: str = "identity", alpha: float = 0.4, dtype: torch.dtype = torch.float64
) -> nn.Module:
    """Two convolutions, attention behind the first norm; no weight is one that hides a mistake."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.Conv2d(32, 4, 3)).eval()
    insert(model, name, ["1"], start=start, input_size=SHAPE[1:])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
        if start == "identity":
            model[1].attendo.alpha.fill_(alpha)
    return model.to(dtype)


def images(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("start", ["identity", "paper"])
@pytest.mark.parametrize("name", NAMES)
def test_inference_is_one_call_and_then_the_same_again(name, start):
    model = network(name, start)
    with torch.no_grad():
        assert check_both_ways(model, lambda model: [model(images()) for _ in range(4)]) == {"attention": 2}


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_training_is_one_call_each_way(name, alpha):
    def run(model: nn.Module) -> list[Tensor]:
        out = model(images())
        return [out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))]

    called = check_both_ways(network(name, alpha=alpha).train(), run)
    assert called["attention_kept"] == called["attention_backward"] == 1
    assert not called["recalibrate"]


@pytest.mark.parametrize("name", NAMES)
def test_compiled_inference_is_one_operator(name):
    model, graphs = network(name, dtype=torch.float32), []

    def look(graph: torch.fx.GraphModule, _: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        got = torch.compile(model, backend=look, fullgraph=True)(images(torch.float32))
        close(got, model(images(torch.float32)).double(), terms=10000)
    (graph,) = graphs
    assert [node.target for node in graph.graph.nodes].count(torch.ops.attendo.attention) == 1


def outputs_of_the_norm(monkeypatch) -> list[Tensor]:
    returned: list[Tensor] = []
    batch_norm = nn.functional.batch_norm
    monkeypatch.setattr(
        nn.functional, "batch_norm", lambda *a, **k: returned.append(batch_norm(*a, **k)) or returned[-1]
    )
    return returned


@pytest.mark.parametrize("name", NAMES)
def test_inference_writes_into_the_output_of_the_site(name, monkeypatch):
    model, given = network(name), []
    model[2].register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    with kernels.use("reference"), torch.no_grad():
        want = model(images())
    returned = outputs_of_the_norm(monkeypatch)
    with torch.no_grad():
        close(model(images()), want, terms=10000)
    assert given[-1] is returned[0]


def watched_by_a_hook(model: nn.Module, kept: list[Tensor]) -> None:
    model[1].register_forward_hook(lambda module, inputs, output: kept.append(output), prepend=True)


def another_forward(model: nn.Module, kept: list[Tensor]) -> None:
    forward = model[1].forward
    model[1].forward = lambda x: kept.append(forward(x)) or kept[-1]


def watched_at_the_attention(model: nn.Module, kept: list[Tensor]) -> None:
    model[1].attendo.register_forward_hook(lambda module, inputs, output: kept.append(inputs[0]))


@pytest.mark.parametrize(
    "watch", [watched_by_a_hook, another_forward, watched_at_the_attention], ids=lambda watch: watch.__name__
)
def test_an_output_that_somebody_else_may_hold_is_left_as_it_is(watch):
    model, kept = network(), []
    want = copy.deepcopy(model)[:1](images())
    norm = copy.deepcopy(model[1])
    norm._forward_hooks.clear()
    watch(model, kept)
    with torch.no_grad():
        model(images())
        same(kept[0], norm(want))


def test_a_hook_on_all_modules_sees_the_mechanism_and_what_the_site_returned():
    model, seen = network(), {}
    handle = register_module_forward_hook(lambda module, _, output: seen.update({id(module): output}))
    try:
        with torch.no_grad():
            model(images())
    finally:
        handle.remove()
    inserted = model[1].attendo
    mechanism = inserted.mechanism
    inner = mechanism.channel.fc1, mechanism.spatial.conv
    assert {id(module) for module in (inserted, mechanism, *inner)} <= seen.keys()
    assert not torch.equal(seen[id(inserted)], seen[id(mechanism)])


def test_nothing_is_written_into_what_a_gradient_needs():
    model = network()
    want = [g.clone() for g in torch.autograd.grad(model(images()).sum(), list(model.parameters()))]
    with kernels.use("reference"):
        found = torch.autograd.grad(model(images()).sum(), list(model.parameters()))
    for got, gradient in zip(found, want, strict=True):
        close(got, gradient, terms=100000)


def filled(inserted: nn.Module) -> None:
    inserted.alpha.data.fill_(0.9)


def replaced(inserted: nn.Module) -> None:
    inserted.alpha = nn.Parameter(torch.full_like(inserted.alpha, 0.9))


def moved(inserted: nn.Module) -> None:
    inserted.alpha.data = torch.full_like(inserted.alpha, 0.9)


@pytest.mark.parametrize("change", [filled, replaced, moved], ids=lambda change: change.__name__)
def test_a_repeated_call_sees_another_alpha(change):
    model = network()
    with torch.no_grad():
        for _ in range(4):
            before = model(images())
        change(model[1].attendo)
        got = model(images())
        with kernels.use("reference"):
            close(got, model(images()), terms=10000)
    assert not torch.allclose(got, before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", ["auto", "reference"])
def test_a_blend_of_0_is_the_map_and_of_1_the_recalibrated_one(name, way):
    layer = attendo.layer(name, 32).eval()
    x, shortcut = torch.randn(2, 32, 9, 7), torch.randn(2, 32, 9, 7)
    with torch.no_grad(), kernels.use(way):
        for share, want in ((0.0, x), (1.0, layer(x))):
            blend = torch.tensor([share])
            same(layer.recalibrate(x, blend=blend), want)
            close(layer.recalibrate(x, shortcut, True, blend=blend), (want + shortcut).relu().double(), terms=10)


def test_a_norm_and_a_blend_together_take_the_steps_one_by_one():
    layer, norm = attendo.layer("cbam", 32).eval(), nn.BatchNorm2d(32).eval()
    norm.running_mean.normal_()
    x, blend = torch.randn(2, 32, 9, 7), torch.tensor([0.3])
    with torch.no_grad(), Counting() as counts:
        got = layer.recalibrate(x, norm=norm, blend=blend)
        assert functional.attend(x, layer.weights(), blend=torch.tensor([0.3, 0.3])) is None
    assert counts == {"attention": 1}
    with torch.no_grad(), kernels.use("reference"):
        close(got, torch.lerp(norm(x), layer(norm(x)), blend).double(), terms=10000)
