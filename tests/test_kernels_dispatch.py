"""Which way a call takes: kernels where they can compute what the definition says, the definition everywhere else."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import attendo
from attendo import functional, kernels
from attendo._errors import UnknownName
from attendo.kernels.cpu import library
from attendo.kernels.cpu.calls import Calls
from attendo.kernels.selection import refusal
from kernels import Case, attentions, cases, close, same

METHODS = (
    *("channel_stats", "channel_stats_backward", "spatial_stats", "spatial_stats_backward"),
    *("recalibrate", "recalibrate_backward", "attention"),
    *("attention_kept", "attention_finished", "spatial_gradient", "attention_backward"),
)
HERE = [name for name in library.SETS if library.table(name) is not None]
moderate = settings(max_examples=150, deadline=None, derandomize=True)

pytestmark = pytest.mark.skipif(not HERE, reason=library.missing())


class Counting(Counter[str]):
    """How often each kernel was called."""

    def __enter__(self) -> Counting:
        self.patch = pytest.MonkeyPatch()
        for name in METHODS:
            self.patch.setattr(Calls, name, self._counting(name, getattr(Calls, name)))
        return self

    def __exit__(self, *_: object) -> None:
        self.patch.undo()

    def _counting(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **settings: Any) -> Any:
            self[name] += 1
            return method(*args, **settings)

        return counted


def differentiate(
    function: Callable[..., tuple[Tensor, ...]], inputs: list[Tensor], used: int | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Results, and the gradients of the inputs from fixed gradients of all results, or of the one that is used."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    results = list(function(*leaves))
    rng = torch.Generator().manual_seed(3)
    ups = [torch.randint(-2, 3, tensor.shape, generator=rng).to(tensor.dtype) for tensor in results]
    kept = slice(None) if used is None else slice(used, used + 1)
    gradients = torch.autograd.grad(results[kept], leaves, ups[kept], allow_unused=True)
    return [tensor.detach() for tensor in results], list(gradients)


def stats(x: Tensor, gate: Tensor | None = None) -> tuple[Tensor]:
    return (functional.spatial_stats(x, gate),)


def product(
    case: Case,
) -> tuple[Callable[..., tuple[Tensor]], list[Tensor]]:
    """``recalibrate`` as a function of the tensors that the case has, and these."""
    given = {"x": case.map("x"), **dict(zip(("channel", "spatial"), case.gates(), strict=True))}
    given["residual"] = case.map("residual") if case.residual else None
    names = [name for name, tensor in given.items() if tensor is not None]

    def function(*tensors: Tensor) -> tuple[Tensor]:
        named = dict(zip(names, tensors, strict=True))
        gates = [named[name] for name in ("channel", "spatial") if name in named]
        return (functional.recalibrate(named["x"], gates, named.get("residual"), case.relu),)

    return function, [given[name] for name in names]


def check_against_the_definition(function: Callable[..., Any], inputs: list[Tensor], exact: bool = False, **how: Any):
    got = differentiate(function, inputs, **how)
    with kernels.use("reference"):
        want = differentiate(function, inputs, **how)
    for mine, theirs in zip((*got[0], *got[1]), (*want[0], *want[1]), strict=True):
        assert (mine is None) is (theirs is None)
        if mine is None:
            continue
        assert mine.shape == theirs.shape
        assert mine.dtype == theirs.dtype
        if exact:
            same(mine, theirs)
            assert mine.stride() == theirs.stride()
        else:
            close(mine, theirs, terms=inputs[0].numel())


WIDE = {"dtypes": (torch.float32, torch.float64), "largest": 1 << 12}


@moderate
@given(case=cases(**WIDE), name=st.sampled_from(HERE), used=st.sampled_from((None, 0, 1)))
def test_channel_stats_and_its_gradient_equal_the_definition(case, name, used):
    with kernels.use(name):
        check_against_the_definition(functional.channel_stats, [case.map("x")], used=used)


@moderate
@given(case=cases(**WIDE), name=st.sampled_from(HERE))
def test_spatial_stats_and_its_gradients_equal_the_definition(case, name):
    gate, _ = case.gates()
    with kernels.use(name):
        check_against_the_definition(stats, [case.map("x"), *([] if gate is None else [gate])])


@moderate
@given(case=cases(**WIDE), name=st.sampled_from(HERE))
def test_recalibrate_and_its_gradients_equal_the_definition(case, name):
    with kernels.use(name):
        check_against_the_definition(*product(case))


def test_an_unused_maximum_leaves_the_gradient_of_the_mean_alone_even_beside_nan():
    x = torch.randn(2, 3, 4, 4)
    x[0, 0, 1, 1] = torch.nan
    check_against_the_definition(functional.channel_stats, [x], used=0)


@moderate
@given(attention=attentions(dtypes=(torch.float32, torch.float64), largest=1 << 12), name=st.sampled_from(HERE))
def test_a_layer_in_one_call_equals_recalibrate_by_its_gates(attention, name):
    case, layer = attention.case, attention.layer()
    x, residual = case.map("x"), case.map("residual") if case.residual else None
    with torch.no_grad():
        with kernels.use(name), Counting() as counts:
            got = layer.recalibrate(x, residual, case.relu)
        assert counts == {"attention": 1}
        with kernels.use("reference"):
            want = functional.recalibrate(x, layer.gates(x), residual, case.relu)
    close(got, want, terms=int(100 * max(1, attention.strength) ** 2))


VIEWS = {
    "rows sliced": lambda x: x[:, :, ::2],
    "columns cut": lambda x: x[..., 1:],
    "channels sliced": lambda x: x[:, 1::2],
    "channels cut": lambda x: x[:, 2:],
    "transposed": lambda x: x.transpose(2, 3),
    "channels and rows swapped": lambda x: x.transpose(1, 2),
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
    "one column expanded": lambda x: x[..., :1].expand(-1, -1, -1, 4),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_strided_map_takes_the_definition(view, dtype, layout):
    whole = torch.randn(4, 6, 7, 5).to(dtype).contiguous(memory_format=layout)
    x = VIEWS[view](whole)
    assert "strides" in refusal(x)
    samples, channels, height, width = x.shape
    channel, spatial = torch.rand(samples, channels, 1, 1, dtype=dtype), torch.rand(1, 1, height, width, dtype=dtype)

    def through(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda whole, *others: function(VIEWS[view](whole), *others)

    with Counting() as counts:
        check_against_the_definition(through(functional.channel_stats), [whole], exact=True)
        check_against_the_definition(through(stats), [whole, channel], exact=True)
        check_against_the_definition(
            through(lambda x, *gates: (functional.recalibrate(x, gates, relu=True),)),
            [whole, channel, spatial],
            exact=True,
        )
    assert not counts


def test_a_shortcut_of_another_layout_shape_or_dtype_takes_the_definition():
    x, gate = torch.randn(2, 6, 5, 5), torch.rand(2, 6, 1, 1)
    shortcuts = [
        torch.randn(2, 6, 5, 5).to(memory_format=torch.channels_last),
        torch.randn(2, 6, 5, 10)[..., ::2],
        torch.randn(1, 6, 5, 5),
        torch.randn(2, 6, 5, 5).double(),
    ]
    with Counting() as counts:
        for shortcut in shortcuts:
            check_against_the_definition(
                lambda x, gate, r: (functional.recalibrate(x, [gate], r),), [x, gate, shortcut], exact=True
            )
    assert not counts


@pytest.mark.parametrize(
    "gates",
    [
        [(1, 6, 5, 5)],
        [(6, 1, 1)],
        [(1, 1, 1, 1)],
        [(2, 6, 5, 1)],
        [(2, 6, 1, 1), (2, 6, 1, 1)],
        [(2, 1, 5, 5), (2, 6, 1, 1), (1, 1, 5, 5)],
    ],
    ids=str,
)
def test_gates_that_are_not_one_per_channel_and_one_per_position_take_the_definition(gates):
    x, drawn = torch.randn(2, 6, 5, 5), [torch.rand(size) for size in gates]
    with Counting() as counts:
        check_against_the_definition(lambda x, *g: (functional.recalibrate(x, g),), [x, *drawn], exact=True)
        if len(drawn) == 1:
            check_against_the_definition(stats, [x, *drawn], exact=True)
    assert not counts


def test_strided_gates_are_read_where_they_lie():
    x = torch.randn(4, 6, 5, 5)
    channel, spatial = torch.rand(4, 12, 1, 1)[:, ::2], torch.rand(1, 1, 5, 5).transpose(2, 3).expand(4, 1, 5, 5)
    with Counting() as counts:
        check_against_the_definition(lambda x, *g: (functional.recalibrate(x, g),), [x, channel, spatial])
        check_against_the_definition(stats, [x, channel])
        check_against_the_definition(stats, [x, torch.rand(1, 6, 1, 1).expand(4, 6, 1, 1)])
    assert counts["recalibrate"] == 1
    assert counts["spatial_stats"] == 2


def test_a_gate_of_more_samples_than_the_map_broadcasts_it():
    x, gate = torch.randn(1, 3, 4, 4), torch.rand(4, 3, 1, 1)
    check_against_the_definition(stats, [x, gate])
    check_against_the_definition(lambda x, gate: (functional.recalibrate(x, [gate]),), [x, gate])


@pytest.mark.parametrize("grad", [False, True])
def test_a_gate_of_another_number_of_samples_is_refused(grad):
    x, gate = torch.randn(4, 3, 4, 4, requires_grad=grad), torch.rand(2, 3, 1, 1)
    with pytest.raises(RuntimeError, match="must match the size"):
        functional.spatial_stats(x, gate)
    with pytest.raises(RuntimeError, match="must match the size"):
        functional.recalibrate(x, [gate])


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)], ids=str)
def test_empty_maps_take_the_definition(shape):
    x = torch.randn(shape)
    gate = torch.rand(shape[0], shape[1], 1, 1)
    with Counting() as counts:
        check_against_the_definition(lambda x, gate: (functional.recalibrate(x, [gate], x, relu=True),), [x, gate])
        if shape[0] == 0:
            check_against_the_definition(functional.channel_stats, [x])
            check_against_the_definition(stats, [x, gate])
            for name in ("se", "eca", "cbam"):
                assert attendo.layer(name, 3, **({} if name == "eca" else {"reduction": 1})).eval()(x).shape == shape
    assert not counts


def test_a_view_that_negates_lazily_is_read_as_what_it_stands_for():
    x, gate = torch.randn(2, 3, 4, 4), torch.rand(2, 3, 1, 1)
    same(functional.channel_stats(torch._neg_view(x))[1], (-x).amax((2, 3)))
    for pair in ((torch._neg_view(x), gate), (x, torch._neg_view(gate))):
        same(functional.recalibrate(pair[0], pair[1:]), -x * gate)
        same(functional.spatial_stats(*pair)[:, 1], (-x * gate).amax(1))


def test_other_dtypes_take_the_definition():
    x = torch.randn(2, 3, 4, 4).half()
    with Counting() as counts:
        same(functional.channel_stats(x)[0], x.mean((2, 3)))
        # promoted by the definition, whichever of them is the wider
        assert functional.recalibrate(x, [torch.rand(2, 3, 1, 1)]).dtype == torch.float32
        assert functional.recalibrate(x.float(), [torch.rand(2, 3, 1, 1).double()]).dtype == torch.float64
    assert not counts


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_an_in_place_result_takes_the_memory_of_the_map_and_only_if_asked(layout):
    x = torch.randn(2, 32, 5, 5).contiguous(memory_format=layout)
    before, gate, layer = x.clone(), torch.rand(2, 32, 1, 1), attendo.layer("cbam", 32).eval()
    with torch.no_grad():
        for call in (
            lambda x, **how: functional.recalibrate(x, [gate], x, **how),
            lambda x, **how: layer.recalibrate(x, **how),
        ):
            want = call(x)
            same(x, before)
            inside = x.clone()
            got = call(inside, inplace=True)
            assert got.data_ptr() == inside.data_ptr()
            same(got, want)
    for x in (before, before.clone().requires_grad_()):  # the layer's weights need a gradient, then the map too
        out = layer.recalibrate(x, inplace=True)
        assert out.requires_grad
        assert out.data_ptr() != x.data_ptr()
        same(x, before)


def test_autograd_notices_a_map_that_was_overwritten():
    factor, x = torch.ones((), requires_grad=True), torch.randn(2, 3, 4, 4)
    product = factor * x  # keeps x for its gradient
    functional.recalibrate(x, [torch.rand(2, 3, 1, 1)], inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_gradients_can_be_differentiated_twice():
    rng = torch.Generator().manual_seed(2)
    x = torch.randn(2, 3, 3, 2, generator=rng, dtype=torch.float64, requires_grad=True)
    channel = torch.rand(1, 3, 1, 1, generator=rng, dtype=torch.float64, requires_grad=True)
    spatial = torch.rand(2, 1, 3, 2, generator=rng, dtype=torch.float64, requires_grad=True)
    shortcut = torch.randn(2, 3, 3, 2, generator=rng, dtype=torch.float64, requires_grad=True)

    def ended(x: Tensor, channel: Tensor, spatial: Tensor, shortcut: Tensor) -> Tensor:
        return functional.recalibrate(x, (channel, spatial), shortcut, relu=True)

    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        with Counting() as counts:
            assert check(functional.channel_stats, (x,))
            assert check(functional.spatial_stats, (x,))
            assert check(functional.spatial_stats, (x, channel))
            assert check(ended, (x, channel, spatial, shortcut))
            assert check(lambda x: functional.recalibrate(x, ()), (x,))
        assert min(counts[name] for name in ("channel_stats", "spatial_stats", "recalibrate")) > 0


def test_checkpointing_recomputes_the_same_gradients():
    layer, x = attendo.layer("cbam", 32), torch.randn(2, 32, 5, 5, requires_grad=True)
    (want,) = torch.autograd.grad(layer(x).square().sum(), x)
    again = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    same(torch.autograd.grad(again.square().sum(), x)[0], want)


def samples(dtype: torch.dtype, grad: bool) -> dict[str, list[tuple[Any, ...]]]:
    """Arguments of every operator of torch.ops.attendo."""
    rng = torch.Generator().manual_seed(1)

    def drawn(*size: int, needs: bool = grad, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
        tensor = torch.randn(size, generator=rng).to(dtype)
        return (tensor.contiguous(memory_format=layout) if len(size) == 4 else tensor).requires_grad_(needs)

    last = torch.channels_last
    x, image = drawn(2, 5, 4, 3), drawn(2, 5, 4, 3, layout=last)
    channel, shared, spatial = drawn(2, 5, 1, 1), drawn(1, 5, 1, 1), drawn(1, 1, 4, 3)
    plain, out = x.detach(), image.detach().relu()
    top = plain.amax((2, 3))
    ties = torch.ones(2, 5, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    stats_, counts = torch.ops.attendo.spatial_stats(plain, None)
    up = drawn(2, 2, 4, 3, needs=False)
    mlp = [drawn(*size, needs=False) for size in ((2, 5), (2,), (5, 2), (5,))]
    kernel, norm = drawn(1, 2, 3, 3, needs=False), [drawn(1, needs=False).abs() for _ in range(4)]
    return {
        "channel_stats": [(x,), (image,)],
        "channel_stats_backward": [(top, top, plain, top, ties)],
        "spatial_stats": [(x, None), (image, channel), (x, shared)],
        "spatial_stats_backward": [(up, plain, None, stats_, counts), (up, plain, shared.detach(), stats_, counts)],
        "recalibrate": [
            (x, None, None, None, True),
            (image, channel, None, drawn(2, 5, 4, 3, layout=last), False),
            (x, shared, spatial, drawn(2, 5, 4, 3), True),
        ],
        "recalibrate_backward": [
            (plain, plain, channel.detach(), None, None, [True, True, False, False]),
            (out, out, shared.detach(), spatial.detach(), out, [True, True, True, True]),
            (plain, plain, None, None, None, [False, False, False, False]),
        ],
        "attention": [
            (plain, [*mlp, None, kernel, *(None,) * 4], 0.0, True, True, False, None, False),
            (image.detach(), [*mlp, None, kernel, *norm], 1e-5, True, True, True, image.detach(), True),
            (plain, [*(None,) * 4, drawn(1, 1, 3, needs=False), *(None,) * 5], 0.0, True, False, False, None, False),
        ],
        "grouped_conv": [
            (plain, drawn(5, 1, 5, 5, needs=False), 1, 5),
            (image.detach(), drawn(10, 1, 7, 7, needs=False), 2, 5),
        ],
    }


def test_every_operator_has_samples():
    names = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("attendo::")}
    assert names == set(samples(torch.float32, False))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", list(samples(torch.float32, False)))
def test_operators_are_whole(name, dtype):
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    if dtype == torch.float32:
        checks += ("test_aot_dispatch_dynamic",)
    for args in samples(dtype, grad=not name.endswith("backward"))[name]:
        torch.library.opcheck(getattr(torch.ops.attendo, name).default, args, test_utils=checks)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, at its first tangent
def test_function_transforms_take_the_definition():
    layer = attendo.layer("cbam", 32).eval()
    x, tangent = torch.randn(3, 2, 32, 5, 5), torch.randn(2, 32, 5, 5)
    small, parameters = x[0, :1, :2, :2, :2], dict(layer.named_parameters())

    def loss(state: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, state, (x,)).square().sum()

    transformed = {
        "vmap": lambda: torch.func.vmap(layer)(x),
        "jvp": lambda: torch.func.jvp(layer, (x[0],), (tangent,))[1],
        "grad": lambda: torch.func.grad(loss, argnums=1)(parameters, x[0]),
        "per-sample grad": lambda: torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)["channel.fc1.bias"],
        "jacrev": lambda: torch.func.jacrev(lambda x: layer(x).sum((0, 2, 3)))(x[0]),
        "hessian": lambda: torch.func.hessian(lambda x: functional.channel_stats(x)[0].square().sum())(small),
    }
    for name, transform in transformed.items():
        with Counting() as counts:
            got = transform()
        assert not counts, name
        with kernels.use("reference"):
            close(got, transform(), terms=100)


def test_functional_call_uses_the_tensors_it_is_given():
    layer, x = attendo.layer("se", 32).eval(), torch.randn(2, 32, 5, 5)
    other = attendo.layer("se", 32).eval()
    with torch.no_grad(), Counting() as counts:
        same(torch.func.functional_call(layer, dict(other.named_parameters()), (x,)), other(x))
    assert counts == {"attention": 2}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, at its first tangent
def test_forward_mode_differentiation_takes_the_definition():
    layer, x, tangent = attendo.layer("cbam", 32).eval(), torch.randn(2, 32, 5, 5), torch.randn(2, 32, 5, 5)
    with torch.autograd.forward_ad.dual_level(), Counting() as counts:
        found = torch.autograd.forward_ad.unpack_dual(layer(torch.autograd.forward_ad.make_dual(x, tangent))).tangent
    assert not counts
    close(found, torch.func.jvp(layer, (x,), (tangent,))[1], terms=100)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_a_trace_holds_the_definition():
    layer = attendo.layer("cbam", 32).eval()
    with torch.no_grad():
        traced = torch.jit.trace(layer, torch.randn(2, 32, 5, 5))
        assert "attendo::" not in str(traced.inlined_graph)
        x = torch.randn(3, 32, 5, 5)
        close(traced(x), layer(x), terms=100)


@pytest.mark.parametrize("name", ["se", "eca", "cbam"])
def test_torch_fx_traces_the_definition(name):
    layer, x = attendo.layer(name, 32).eval(), torch.randn(2, 32, 5, 5)
    traced = torch.fx.symbolic_trace(layer)
    assert not [node for node in traced.graph.nodes if "attendo" in str(node.target)]
    close(traced(x), layer(x), terms=100)


def test_modes_that_watch_operations_see_them_all():
    layer, x = attendo.layer("se", 32).eval(), torch.randn(2, 32, 5, 5)
    seen = []

    class Watching(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Counting() as counts, Watching():
        layer(x)
    assert not counts
    assert any("mean" in name for name in seen)
    assert any("mul" in name for name in seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["se", "eca", "cbam"])
@pytest.mark.parametrize("grad", [False, True])
def test_autocast_gives_what_it_gives_without_kernels(name, dtype, grad):
    layer, x = attendo.layer(name, 32).eval(), torch.randn(2, 32, 6, 6).to(dtype)
    ways = []
    for chosen in ("auto", "reference"):
        leaf = x.clone().requires_grad_(grad)
        with kernels.use(chosen), torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
            out = layer(leaf)
        assert out.dtype == dtype
        ways.append([out, *(torch.autograd.grad(out.float().sum(), leaf) if grad else ())])
    for got, want in zip(*ways, strict=True):
        torch.testing.assert_close(got.float(), want.float(), rtol=4e-2, atol=4e-2)  # gates are bfloat16 either way


def test_inference_mode_takes_a_whole_attention_in_one_call():
    layer, x = attendo.layer("cbam", 32).eval(), torch.randn(2, 32, 5, 5)
    with torch.no_grad():
        want = layer(x)
    with torch.inference_mode(), Counting() as counts:
        got = layer(x)
        same(layer(x.clone()), want)  # repeats the call before
    assert counts == {"attention": 1}
    assert got.is_inference()
    same(got, want)


@pytest.mark.parametrize("name", ["se", "eca", "cbam"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_compiled_layer_equals_the_eager_one_and_holds_the_operators(name, grad):
    layer, x = attendo.layer(name, 32).eval(), torch.randn(2, 32, 5, 5)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    ways = []
    for run in (layer, compiled):
        leaf = x.clone().requires_grad_(grad)
        with torch.set_grad_enabled(grad), Counting() as counts:
            out = run(leaf)
            gradients = torch.autograd.grad(out.square().sum(), (leaf, *layer.parameters())) if grad else ()
        ways.append([out, *gradients])
        eager = run is layer  # a compiler sees the primitives' gradients, not those of the whole
        assert counts["attention_kept" if grad and eager else "recalibrate" if grad else "attention"] == 1
        assert counts["attention_backward" if eager else "recalibrate_backward"] == grad
    for got, want in zip(*ways, strict=True):
        close(got, want, terms=1000)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_inductor_keeps_the_layouts_that_the_operators_were_traced_with(layout):
    network = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), attendo.layer("cbam", 32)).eval().to(memory_format=layout)
    x = torch.randn(2, 3, 7, 7).contiguous(memory_format=layout).requires_grad_()
    compiled = torch.compile(network, fullgraph=True)
    with Counting() as counts:
        (got,) = torch.autograd.grad(compiled(x).square().sum(), x)
    assert counts["recalibrate_backward"] == 1
    close(got, torch.autograd.grad(network(x).square().sum(), x)[0], terms=1000)
    with torch.no_grad(), Counting() as counts:
        close(compiled(x), network(x), terms=1000)
    assert counts["attention"] == 2  # the compiled network and the eager one


@pytest.mark.parametrize("name", ["se", "eca", "cbam"])
def test_an_exported_layer_is_the_plain_definition(name):
    layer, x = attendo.layer(name, 32).eval(), torch.randn(2, 32, 5, 5)
    for strict in (False, True):
        exported = torch.export.export(layer, (x,), strict=strict)
        assert "attendo" not in " ".join(str(node.target) for node in exported.graph.nodes)
        close(exported.module()(x), layer(x), terms=100)


@pytest.mark.parametrize("chosen", ["auto", "reference", *HERE])
def test_the_kernels_that_run_are_the_ones_that_were_chosen(chosen, monkeypatch):
    tables, channel_stats = [], Calls.channel_stats

    def addresses(calls: Calls) -> list[int | None]:
        return [ctypes.cast(function, ctypes.c_void_p).value for function in calls.table.values()]

    def noted(self: Calls, *args: Any, **settings: Any) -> Any:
        tables.append(addresses(self))
        return channel_stats(self, *args, **settings)

    monkeypatch.setattr(Calls, "channel_stats", noted)
    runs = HERE[0] if chosen == "auto" else chosen
    with kernels.use(chosen):
        functional.channel_stats(torch.randn(2, 3, 4, 4))
        assert {status.kernel for status in kernels.status() if status.device == "cpu"} == {runs}
    assert tables == ([] if chosen == "reference" else [addresses(Calls(library.table(runs)))])


def test_reference_turns_every_kernel_off():
    x = torch.randn(2, 32, 5, 5, requires_grad=True)
    with kernels.use("reference"), Counting() as counts:
        for name in ("se", "eca", "cbam"):
            layer = attendo.layer(name, 32).eval()
            layer(x).sum().backward()
            with torch.no_grad():
                layer(x)
            torch.compile(layer, backend="aot_eager")(x)
        assert 'use("reference")' in refusal(x)
    assert not counts


def test_a_choice_ends_with_its_block_and_holds_without_one():
    before = kernels.status()
    with kernels.use("reference"):
        with kernels.use("plain"):
            assert kernels.status()[0].kernel == "plain"
        assert kernels.status()[0].kernel == "reference"
        with pytest.raises(ZeroDivisionError), kernels.use("auto"):
            raise ZeroDivisionError
        assert kernels.status()[0].kernel == "reference"
    assert kernels.status() == before
    try:
        kernels.use("plain")
        assert kernels.status()[0].kernel == "plain"
    finally:
        kernels.use("auto")


def test_an_unknown_choice_is_refused_with_all_there_are():
    with pytest.raises(UnknownName, match=r"no kernels 'avx1024' here.*auto, reference, .*plain"):
        kernels.use("avx1024")


def test_status_names_every_primitive_on_every_device():
    rows = {(status.primitive, status.device) for status in kernels.status()}
    primitives = ("channel_stats", "spatial_stats", "recalibrate", "attention", "grouped_conv")
    assert rows == {(primitive, device) for primitive in primitives for device in ("cpu", "cuda")}
    assert all(status.why for status in kernels.status() if status.kernel == "reference")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_default_device_keeps_no_kernel_from_running(device):
    layer, psa = attendo.layer("cbam", 32).eval(), attendo.layer("psa", 64, 64).eval()
    x, wide = torch.randn(2, 32, 9, 7), torch.randn(2, 64, 9, 7)
    with torch.no_grad(), Counting() as counts:
        want = layer(x), psa(wide)
    torch.set_default_device(device)
    try:
        with torch.no_grad(), Counting() as again:
            got = layer(x), psa(wide)
    finally:
        torch.set_default_device(None)
    assert again == counts
    for tensor, same_as in zip(got, want, strict=True):
        assert tensor.device.type == "cpu"
        same(tensor, same_as)


def test_a_mode_beside_a_default_device_still_sees_every_operation():
    class Mode(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    layer, x = attendo.layer("cbam", 32).eval(), torch.randn(2, 32, 9, 7)
    with torch.no_grad(), Counting() as counts, torch.device("cpu"), Mode():
        layer(x)
    assert not counts
