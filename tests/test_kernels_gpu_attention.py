"""A whole attention in one Triton launch: its programs wait for one another, in the interpreter by turns.

The definition decides, whoever's turn it is: ``interpreter.Turns`` lets some programs hold a task for long, memory that
nobody wrote to is NaN, and a wait that never ends is an error.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from torch import Tensor

import attendo
from attendo import functional, kernels
from attendo.kernels import selection
from attendo.kernels.gates import Norm
from interpreter import Interpreted
from kernels import Attention, Case, attentions, check_attention, close, same
from test_kernels_gpu import DTYPES, LAST, LAYOUTS, SHAPES, TARGETS, Recorded, benchmark, compiled_for, fake_gpu  # noqa: F401

# small tiles, statistics in parts, groups of few samples and programs that outrun one another
SMALL = {"tile": 128, "line": 32, "task": 2, "share": 1 << 8, "residents": 4}
few = settings(max_examples=8, deadline=None, derandomize=True)
drawn = attentions(dtypes=DTYPES, largest=1 << 10)
WIDE = {"as shipped": 2**31, "many groups": 100}


@pytest.fixture(scope="module", params=WIDE)
def calls(request) -> Iterator[Interpreted]:
    pytest.importorskip("triton", reason="no Triton on this platform")
    with closing(Interpreted({} if request.param == "as shipped" else SMALL, WIDE[request.param])) as interpreted:
        yield interpreted


@few
@given(attention=drawn)
@example(attention=Attention(Case((1, 4, 2, 2), spoilt=("x", float("inf"))), "eca", (("kernel_size", 1),)))
@example(attention=Attention(Case((5, 40, 3, 7), residual=True, relu=True), "cbam"))  # groups of one and a half tasks
@example(attention=Attention(Case((5, 20, 5, 7), torch.bfloat16, LAST, residual=True), "cbam", (("channel", "eca"),)))
@example(attention=Attention(Case((5, 20, 5, 7), spoilt=("x", float("nan"))), "cbam", (("variant", "paper"),)))
@example(attention=Attention(Case((2, 2, 33, 17)), "cbam_spatial", (("spatial_kernel", 5),)))
@example(attention=Attention(Case((17, 8, 3, 3), torch.float16, LAST), "se", (("reduction", 2), ("pool", "max"))))
def test_a_whole_attention_in_one_launch_is_its_gates_and_products(calls, attention):
    check_attention(calls, attention)


def test_results_depend_neither_on_how_many_programs_there_are_nor_on_the_groups():
    pytest.importorskip("triton", reason="no Triton on this platform")
    drawn = [Attention(Case((3, 16, 5, 5), layout=layout, residual=True, relu=True), "cbam") for layout in LAYOUTS]
    found = []
    for residents, share in ((1, 1 << 7), (5, 1 << 9)):
        with closing(Interpreted(SMALL | {"residents": residents, "share": share})) as calls:
            for attention in drawn:
                x, residual = attention.case.map("x"), attention.case.map("residual")
                found.append(calls.attention(x, attention.layer().weights(), residual, True))
    for one, several in zip(found[:2], found[2:], strict=True):
        same(several, one)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_norm_comes_before_the_attention(calls, layout):
    attention = Attention(Case((2, 16, 5, 3), layout=layout, residual=True, relu=True), "se")
    x, residual, weights = attention.case.map("x"), attention.case.map("residual"), attention.layer().weights()
    norm = Norm(*torch.rand(4, 16), eps=0.1)
    normalised = F.batch_norm(x, norm.mean, norm.var, norm.weight, norm.bias, eps=norm.eps)
    want, before = calls.attention(normalised, weights, residual, True), x.clone()
    same(calls.attention(x, weights, residual, True, None, norm), want)
    same(x, before)
    same(calls.attention(x, weights, residual, True, x, norm), want)
    same(x, want)


def test_a_layer_takes_one_launch_where_the_kernels_have_one(calls, monkeypatch):
    layer, x = attendo.layer("cbam", 16).eval(), torch.randn(2, 16, 5, 5)
    with torch.no_grad():
        want = layer(x)
        monkeypatch.setattr(functional.fusion, "straight", lambda *_: True)  # as if on a GPU
        monkeypatch.setattr(functional.fusion, "find", lambda x: calls)
        got = functional.attend(x, layer.weights())
    assert got is not None
    close(got, want, terms=100)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("channel", "shape", "layout"),
    [
        ("mlp", (256, 256, 56, 56), LAST),
        ("mlp", (256, 2048, 7, 7), LAST),
        ("eca", (1, 50, 333, 31), torch.contiguous_format),
    ],
    ids=str,
)
def test_a_whole_attention_compiles_without_a_gpu_and_fits_its_registers(target, channel, shape, layout, monkeypatch):
    pytest.importorskip("triton", reason="no Triton on this platform")
    from attendo.kernels.gpu import attention
    from attendo.kernels.gpu.persistent import PersistentCalls

    launches: list[Any] = []
    monkeypatch.setattr(attention, "attention", Recorded(attention.attention, launches))
    x = torch.empty(shape, dtype=SHAPES[shape], device="meta").contiguous(memory_format=layout)
    weights = attendo.layer("cbam", x.shape[1], channel=channel).eval().to("meta", x.dtype).weights()
    PersistentCalls().attention(x, weights, x, True)
    ttir = compiled_for(target, launches[0]).asm["ttir"]
    before = [line for line, what in after_what(ttir) if what in ("release", "acq_rel")]
    assert len(before) >= 3
    assert set(before) == {"barrier"}  # or what other threads stored might not be there yet
    assert ttir.count("acquire") >= 2


def after_what(code: str) -> Iterator[tuple[str, str]]:
    """For each atomic operation of Triton's intermediate language: what stored or met before it, and its semantics."""
    last = ""
    for line in code.splitlines():
        if "tt.atomic_rmw" in line:
            yield last, line.split("add, ")[1].split(",")[0]
        last = next((what for what in ("tt.atomic_rmw", "tt.store", "barrier") if what in line), last)


@pytest.fixture
def on_a_gpu(fake_gpu, monkeypatch) -> Tensor:  # noqa: F811 - a fixture
    """A map on a GPU that is not there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with fake_gpu:
        return torch.empty(2, 16, 4, 4, device="cuda")


def test_one_launch_has_to_be_asked_for(on_a_gpu):
    def status() -> kernels.Status:
        (found,) = (row for row in kernels.status() if (row.primitive, row.device) == ("attention", "cuda"))
        return found

    assert selection.find(on_a_gpu).attention is None
    assert status().kernel == "reference"
    assert 'not measured yet: use("persistent") turns it on' in status().why
    with kernels.use("persistent"):
        assert selection.refusal(on_a_gpu) is None
        assert callable(selection.find(on_a_gpu).attention)
        assert status()[2:] == ("triton", "")
    assert selection.find(on_a_gpu).attention is None


def test_on_amd_there_is_no_one_launch_to_ask_for(on_a_gpu, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    with kernels.use("persistent"):
        assert selection.find(on_a_gpu).attention is None
        (why,) = (row.why for row in kernels.status() if (row.primitive, row.device) == ("attention", "cuda"))
    assert "on AMD a barrier does not wait" in why


def test_persistent_is_auto_on_a_cpu():
    def rows() -> list[kernels.Status]:
        return [row for row in kernels.status() if row.device == "cpu"]

    x, layer, want = torch.randn(2, 16, 5, 5), attendo.layer("cbam", 16).eval(), rows()
    with torch.no_grad():
        out = layer(x)
        with kernels.use("persistent"):
            assert rows() == want
            assert selection.refusal(x) == (None if selection._CALLS else selection._MISSING)
            same(layer(x), out)


def test_the_benchmark_says_that_programs_wait_for_ever_and_does_not_wait_with_them(benchmark):  # noqa: F811
    asked = benchmark.parse(["--device", "cpu", "--batch", "1"])
    assert benchmark.persistent_fault(asked, seconds=0.01).startswith("not at its end after 0 s")


@pytest.fixture(scope="module")
def gpu() -> Any:
    """The kernels, once another process has shown that they come to an end here."""
    from attendo.kernels.gpu.persistent import PersistentCalls

    script = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
    try:
        subprocess.run([sys.executable, str(script), "--try-persistent"], check=True, timeout=240)
    except subprocess.TimeoutExpired:
        pytest.fail("programs that wait for one another hang on this GPU")
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield PersistentCalls()


@pytest.mark.gpu
@settings(max_examples=30, deadline=None, derandomize=True)  # each is compiled anew
@given(attention=attentions(dtypes=DTYPES, largest=1 << 18, device="cuda"))
def test_on_a_gpu_a_whole_attention_is_its_gates_and_products(gpu, attention):
    check_attention(gpu, attention)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", ["se", "eca", "cbam"])
def test_on_a_gpu_a_whole_attention_is_the_same_bits_every_time(gpu, name, layout):
    attention = Attention(Case((300, 128, 28, 28), torch.bfloat16, layout, residual=True, device="cuda"), name)
    x, residual, weights = attention.case.map("x"), attention.case.map("residual"), attention.layer().weights()
    check_attention(gpu, attention)
    first = gpu.attention(x, weights, residual, True)
    for _ in range(200):
        same(gpu.attention(x, weights, residual, True), first)


@pytest.mark.gpu
def test_on_a_gpu_launches_on_two_streams_do_not_disturb_each_other(gpu):
    drawn = [Attention(Case((n, 128, 28, 28), torch.bfloat16, LAST, device="cuda"), "cbam") for n in (60, 90)]
    calls = [(attention.case.map("x"), attention.layer().weights()) for attention in drawn]
    want = [gpu.attention(x, weights, None, False) for x, weights in calls]
    streams = [torch.cuda.Stream() for _ in calls]
    torch.cuda.synchronize()
    for _ in range(50):
        found = []
        for stream, (x, weights) in zip(streams, calls, strict=True):
            with torch.cuda.stream(stream):
                found.append(gpu.attention(x, weights, None, False))
        torch.cuda.synchronize()
        for got, expected in zip(found, want, strict=True):
            same(got, expected)


@pytest.mark.gpu
def test_on_a_gpu_a_whole_attention_is_replayed_from_a_graph(gpu):
    case = Case((50, 64, 14, 14), layout=LAST, device="cuda")
    weights, x = Attention(case, "cbam").layer().weights(), case.map("x")
    want, mine = gpu.attention(x, weights, None, False), torch.zeros_like(x)  # compiled before it is captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = gpu.attention(mine, weights, None, False)
    mine.copy_(x)
    for _ in range(20):
        got.zero_()
        graph.replay()
        same(got, want)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_a_gpu_that_is_not_the_current_one_a_whole_attention_runs(gpu):
    with torch.cuda.device(0):
        check_attention(gpu, Attention(Case((9, 32, 9, 9), device="cuda:1"), "cbam"))
