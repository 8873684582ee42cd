"""A gate repeats its last call only while nothing about it has changed."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import attendo
from attendo import kernels
from attendo.layers import _repeat
from attendo.layers._base import Gate
from kernels import close, same
from test_kernels_dispatch import pytestmark  # noqa: F401 - the same skip

SHAPE = (2, 32, 9, 7)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def repeated(monkeypatch) -> Iterator[list[bool]]:
    """Whether each call that might have been a repetition was one."""
    seen: list[bool] = []
    original = _repeat.Repeat.__call__

    def call(self: _repeat.Repeat, *args: object) -> Tensor | None:
        out = original(self, *args)
        seen.append(out is not None)
        return out

    monkeypatch.setattr(_repeat.Repeat, "__call__", call)
    return seen


def gate_and_norm(name: str = "cbam") -> tuple[Gate, nn.BatchNorm2d]:
    gate, norm = attendo.layer(name, SHAPE[1]).eval(), nn.BatchNorm2d(SHAPE[1]).eval()
    with torch.no_grad():
        for tensor in (*gate.parameters(), *norm.parameters()):
            tensor.normal_()
    return gate, norm


def run(gate: Gate, norm: nn.Module | None, x: Tensor) -> Tensor:
    with torch.no_grad():
        return gate.recalibrate(x, x, relu=True, norm=norm)


def warm(gate: Gate, norm: nn.Module | None, x: Tensor) -> None:
    """Three calls: the first two take the long way, the third repeats the second."""
    for _ in range(3):
        run(gate, norm, x)


def defined(gate: Gate, norm: nn.Module | None, x: Tensor) -> Tensor:
    with kernels.use("reference"):
        return run(gate, norm, x)


@pytest.mark.parametrize("name", ["se", "eca", "cbam", "cbam_channel", "cbam_spatial"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_third_call_repeats_the_second_with_other_numbers(name, layout, dtype, repeated):
    gate, norm = gate_and_norm(name)
    gate.to(dtype), norm.to(dtype)
    warm(gate, norm, torch.randn(SHAPE).to(dtype, memory_format=layout))
    x = torch.randn(SHAPE).to(dtype, memory_format=layout)
    got = run(gate, norm, x)
    assert repeated == [True, True]
    assert got.stride() == x.stride()
    same(got, run(copy.deepcopy(gate), norm, x))


def test_a_repetition_may_write_in_place(repeated):
    gate, norm = gate_and_norm()
    x = torch.randn(SHAPE)
    warm(gate, norm, x)
    want, shortcut, version = run(gate, norm, x), x.clone(), x._version
    with torch.no_grad():
        got = gate.recalibrate(x, shortcut, relu=True, inplace=True, norm=norm)
    assert got is x
    assert x._version > version
    assert all(repeated)
    same(got, want)


def replaced_weight(gate: Gate, norm: nn.Module) -> None:
    gate.channel.fc1.weight = nn.Parameter(torch.randn_like(gate.channel.fc1.weight))


def replaced_behind_the_module(gate: Gate, norm: nn.Module) -> None:
    gate.channel.fc1._parameters["weight"] = nn.Parameter(torch.randn_like(gate.channel.fc1.weight))


def other_memory(gate: Gate, norm: nn.Module) -> None:
    gate.channel.fc2.weight.data = torch.randn_like(gate.channel.fc2.weight)


def other_strides(gate: Gate, norm: nn.Module) -> None:
    weight = gate.channel.fc2.weight
    weight.data = weight.data.view(2, 32).t()  # where it was


def changed_in_place(gate: Gate, norm: nn.Module) -> None:
    with torch.no_grad():
        gate.spatial.conv.weight.add_(1)
        norm.running_mean.add_(1)


def other_module(gate: Gate, norm: nn.Module) -> None:
    gate.channel.fc1 = nn.Linear(32, 2)


def other_half(gate: Gate, norm: nn.Module) -> None:
    gate.spatial = attendo.layer("cbam_spatial", 32, spatial_kernel=3).eval()


def another_order(gate: Gate, norm: nn.Module) -> None:
    gate.spatial.max_first = not gate.spatial.max_first


def without_bias(gate: Gate, norm: nn.Module) -> None:
    gate.channel.fc1.bias = None


def hook(gate: Gate, norm: nn.Module) -> None:
    gate.channel.fc2.register_forward_hook(lambda module, inputs, output: output * 3)


def pre_hook_on_the_norm(gate: Gate, norm: nn.Module) -> None:
    norm.register_forward_pre_hook(lambda module, inputs: inputs[0] * 3)


def other_statistics(gate: Gate, norm: nn.Module) -> None:
    norm.running_var = torch.rand(32) + 3


def other_epsilon(gate: Gate, norm: nn.Module) -> None:
    norm.eps = 3.0


def own_forward(gate: Gate, norm: nn.Module) -> None:
    gate.channel.fc1.forward = lambda z: z[:, :2] * 5


def own_gates(gate: Gate, norm: nn.Module) -> None:
    gate.gates = lambda x: (torch.full((1, 32, 1, 1), 0.25),)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def other_class(gate: Gate, norm: nn.Module) -> None:
    gate.channel.fc1.__class__ = Doubled


def parametrised(gate: Gate, norm: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(gate.channel.fc1)
    gate.channel.fc1.parametrizations.weight.original0.data *= 3


def frozen_statistics_no_more(gate: Gate, norm: nn.Module) -> None:
    norm.train()


def inner_norm_in_training(gate: Gate, norm: nn.Module) -> None:
    gate.spatial.norm.train()


@pytest.mark.parametrize(
    "change",
    [
        *(replaced_weight, replaced_behind_the_module, other_memory, other_strides, changed_in_place, other_module),
        *(other_half, another_order, without_bias, hook, pre_hook_on_the_norm, other_statistics, other_epsilon),
        *(own_forward, own_gates, other_class, parametrised, frozen_statistics_no_more, inner_norm_in_training),
    ],
    ids=lambda change: change.__name__,
)
def test_a_change_of_the_gate_or_of_the_norm_is_seen(change: Callable[[Gate, nn.Module], None]):
    gate, norm = gate_and_norm()
    x = torch.randn(SHAPE)
    warm(gate, norm, x)
    before = run(gate, norm, x)
    change(gate, norm)
    other = copy.deepcopy((gate, norm))
    got, want = run(gate, norm, x), defined(*other, x)
    close(got, want, terms=10000)
    assert not torch.allclose(got, before)


def test_another_choice_of_kernels_is_heeded(repeated):
    gate, norm = gate_and_norm()
    x = torch.randn(SHAPE)
    warm(gate, norm, x)
    del repeated[:]
    with kernels.use("reference"):
        run(gate, norm, x)
    with kernels.use("plain"):
        run(gate, norm, x)
    assert repeated == [False] * len(repeated)


@pytest.mark.parametrize("other", [(3, 32, 9, 7), (2, 32, 7, 9), (2, 32, 9, 7)], ids=str)
def test_a_map_that_is_not_the_same_kind_takes_the_long_way(other, repeated):
    gate, norm = gate_and_norm()
    warm(gate, norm, torch.randn(SHAPE))
    del repeated[:]
    x = torch.randn(other)
    if other == SHAPE:
        x = x.to(memory_format=torch.channels_last)
    close(run(gate, norm, x), defined(gate, norm, x), terms=1000)
    assert repeated[0] is False


def test_another_norm_or_none_takes_the_long_way(repeated):
    gate, norm = gate_and_norm()
    x = torch.randn(SHAPE)
    warm(gate, norm, x)
    for other in (gate_and_norm()[1], None):
        del repeated[:]
        close(run(gate, other, x), defined(gate, other, x), terms=1000)
        assert repeated[0] is False


def test_where_a_gradient_is_asked_for_nothing_is_repeated(repeated):
    gate, norm = gate_and_norm()
    x = torch.randn(SHAPE)
    warm(gate, norm, x)
    del repeated[:]
    leaf = x.clone().requires_grad_()
    gate.recalibrate(leaf, leaf, norm=norm).sum().backward()
    assert set(repeated) == {False}
    assert leaf.grad is not None


def test_watchers_see_the_operations(repeated):
    gate, norm = gate_and_norm()
    x = torch.randn(SHAPE)
    warm(gate, norm, x)
    del repeated[:]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        gate.recalibrate(x, norm=norm)
    assert counter.get_total_flops() > 0
    with torch.no_grad():
        torch.func.vmap(lambda x: gate.recalibrate(x, norm=norm))(x[None])
    gate.requires_grad_(False), norm.requires_grad_(False)
    with torch.no_grad(), pytest.warns(FutureWarning):
        traced = torch.jit.trace(lambda x: gate.recalibrate(x, norm=norm), x, check_trace=False)
    assert "aten::sigmoid" in str(traced.graph)
    assert not any(repeated)


def test_maps_of_changing_sizes_are_not_learnt_again_and_again(monkeypatch):
    gate, norm = gate_and_norm()
    made = []
    monkeypatch.setattr(_repeat, "Repeat", lambda *args: made.append(args))
    for _ in range(3):
        for side in (5, 6):
            run(gate, norm, torch.randn(2, 32, side, side))
    assert made == []


def test_copies_and_pickles_begin_anew(repeated):
    gate, norm = gate_and_norm()
    x = torch.randn(SHAPE)
    warm(gate, norm, x)
    file = io.BytesIO()
    torch.save(gate, file)
    file.seek(0)
    del repeated[:]
    for other in (copy.deepcopy(gate), copy.copy(gate), torch.load(file, weights_only=False)):
        with torch.no_grad():
            other.channel.fc1.weight.data = other.channel.fc1.weight.data * 2
        close(run(other, norm, x), defined(other, norm, x), terms=1000)
    assert not any(repeated)
    assert not [key for key in gate.state_dict() if "memory" in key]


def test_a_shallow_copy_with_parameters_of_its_own_gets_its_own_result():
    gate, norm = gate_and_norm("eca")
    x = torch.randn(SHAPE)
    warm(gate, norm, x)
    replica = copy.copy(gate)  # as torch's replicas are made
    replica._modules = {"conv": copy.deepcopy(gate.conv)}
    with torch.no_grad():
        replica.conv.weight.mul_(-2)
    close(run(replica, norm, x), defined(replica, norm, x), terms=1000)
    assert not torch.allclose(run(replica, norm, x), run(gate, norm, x))
