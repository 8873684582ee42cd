"""The Triton kernels: equal to the definition through Triton's interpreter, compiled for every target, and on a GPU."""

from __future__ import annotations

import csv
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import attendo
from attendo import functional, kernels
from attendo.functional import definition
from attendo.kernels import selection
from interpreter import Interpreted
from kernels import Case, cases, check_channel_stats, check_recalibrate, check_spatial_stats, close, same
from scripts import load_script

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
LAST = torch.channels_last
SMALL = {"tile": 64, "line": 32, "programs": 40}  # many tiles and splits where a map is small

few = settings(max_examples=20, deadline=None, derandomize=True)
drawn = cases(dtypes=DTYPES, largest=1 << 11)


@pytest.fixture(scope="module", params=[{}, SMALL], ids=["as shipped", "many programs"])
def calls(request) -> Iterator[Interpreted]:
    pytest.importorskip("triton", reason="no Triton on this platform")
    # small samples count in 64 bits where there are many programs
    interpreted = Interpreted(request.param, wide=100 if request.param else 2**31)
    yield interpreted
    interpreted.close()


@few
@given(case=drawn)
@example(case=Case((9, 33, 7, 7), values="few", spoilt=("up", math.inf)))
@example(case=Case((2, 17, 7, 7), torch.bfloat16, LAST, values="few", spoilt=("x", math.nan)))
@example(case=Case((2, 3, 5, 7), torch.float16, spoilt=("x", -math.inf)))
def test_channel_stats_and_their_gradient_are_the_definitions(calls, case):
    check_channel_stats(calls, case)


@few
@given(case=drawn)
@example(case=Case((2, 17, 7, 7), torch.bfloat16, LAST, values="few", spoilt=("channel", math.nan)))
@example(case=Case((2, 17, 7, 7), torch.bfloat16, values="normal", channel="shared"))
@example(case=Case((2, 3, 5, 7), torch.float16, spoilt=("x", -math.inf), channel=None))
def test_spatial_stats_and_their_gradients_are_the_definitions(calls, case):
    check_spatial_stats(calls, case)


@few
@given(case=drawn)
@example(case=Case((9, 17, 7, 7), layout=LAST, channel="shared", spatial="shared", residual=True, relu=True))
@example(case=Case((2, 17, 7, 7), torch.bfloat16, wanted=(True, True, False, False)))
@example(case=Case((2, 17, 7, 7), layout=LAST, wanted=(False, False, True, False)))
def test_recalibrate_and_its_gradients_are_the_definitions(calls, case):
    check_recalibrate(calls, case)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_statistic_that_nothing_depends_on_leaves_no_trace_in_the_gradient(calls, layout):
    x = torch.randn(2, 5, 3, 3).contiguous(memory_format=layout)
    x[0, 0] = math.nan
    up = torch.randn(2, 5)
    _, maximum, ties = calls.channel_stats(x, ties=True)
    flat = calls.channel_stats_backward(up, None, x, maximum, ties)
    close(flat, (up / 9)[:, :, None, None].expand_as(x))
    peaks = calls.channel_stats_backward(None, up, x, maximum, ties)
    assert peaks[0, 0].isnan().all()  # no position is at a maximum that is NaN
    want = up[:, :, None, None] * (x == maximum[:, :, None, None])
    close(peaks[1], want[1])


def test_where_no_kernel_takes_a_whole_attention_its_primitives_run(calls, monkeypatch):
    layer, x = attendo.layer("se", 16).eval(), torch.randn(2, 16, 5, 5)
    with torch.no_grad():
        want = layer(x)
        monkeypatch.setattr(calls, "attention", None, raising=False)
        monkeypatch.setattr(functional.fusion, "find", lambda x: calls)
        monkeypatch.setattr(functional.recalibration, "find", lambda x: calls)
        assert functional.attend(x, layer.weights()) is None
        torch.testing.assert_close(layer(x), want)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("value", [-1.0, -math.inf], ids=str)
def test_what_lies_beside_a_map_in_its_tiles_is_neither_a_maximum_nor_a_tie(calls, value, layout):
    x = torch.full((2, 5, 3, 3), value).contiguous(memory_format=layout)
    _, maximum, ties = calls.channel_stats(x, ties=True)
    same(maximum, torch.full((2, 5), value))
    same(ties, torch.full((2, 5), 9.0))
    stats, ties = calls.spatial_stats(x, None, ties=True)
    same(stats[:, 1], torch.full((2, 3, 3), value))
    same(ties, torch.full((2, 3, 3), 5.0))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", ["se", "eca", "cbam"])
def test_layers_and_all_their_gradients_through_the_operators(calls, name, layout, monkeypatch):
    monkeypatch.setattr(functional.pooling, "find", lambda x: calls)
    monkeypatch.setattr(functional.recalibration, "find", lambda x: calls)
    check_layer(name, Case((2, 24, 9, 7), layout=layout), "auto")


def check_layer(name: str, case: Case, kernel: str, atol: float = 2e-5) -> None:
    """A layer in training: its result and all gradients equal those of plain PyTorch."""
    layer = attendo.layer(name, case.shape[1]).to(case.device, case.dtype)
    found = []
    for choice in ("reference", kernel):
        x = case.map("x").requires_grad_()
        with kernels.use(choice):
            out = layer(x)
        found.append([out, *torch.autograd.grad(out, [x, *layer.parameters()], case.map("up"))])
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=atol, atol=atol * float(want.detach().abs().max().clamp(1)))
        assert got.stride() == want.stride()


class Recorded:
    """Stands for a kernel and keeps what it is launched with."""

    def __init__(self, kernel: Any, launches: list[Any]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        assert 0 < grid[0] < 2**31
        return lambda *args, **constants: self.launches.append((self.kernel, args, constants))


@pytest.fixture
def launches(monkeypatch) -> list[Any]:
    """What the calls of a test launch, on meta tensors, nothing running."""
    pytest.importorskip("triton", reason="no Triton on this platform")
    from attendo.kernels.gpu import pooling, recalibration

    found: list[Any] = []
    for module, names in (
        (pooling, ("statistics", "combine", "statistics_backward")),
        (recalibration, ("scale", "scale_backward")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, Recorded(getattr(module, name), found))
    return found


def call_everything(case: Case) -> None:
    """Call every primitive and gradient once with everything there is and once with as little as there can be."""
    from attendo.kernels.gpu.calls import Calls

    calls = Calls()
    samples, channels, height, width = case.shape
    meta = {"dtype": case.dtype, "device": "meta"}
    x = torch.empty(case.shape, **meta).contiguous(memory_format=case.layout)
    channel = torch.empty(samples, channels, 1, 1, **meta)
    spatial = torch.empty(samples, 1, height, width, **meta)
    mean, maximum, ties = calls.channel_stats(x, ties=True)
    calls.channel_stats(x)
    calls.channel_stats_backward(mean, maximum, x, maximum, ties)
    calls.channel_stats_backward(mean, None, x, maximum, ties)
    for gate in (None, channel):
        stats, ties = calls.spatial_stats(x, gate, ties=True)
        calls.spatial_stats(x, gate)
        calls.spatial_stats_backward(stats, x, gate, stats, ties)
    calls.recalibrate(x, channel, spatial, x, True)
    calls.recalibrate(x, channel, None, None, False)
    calls.recalibrate_backward(x, x, channel, spatial, x, (True,) * 4)
    calls.recalibrate_backward(x, x, channel, None, None, (True, True, False, False))
    calls.recalibrate_backward(x, x, None, spatial, None, (True, False, True, False))


def source_of(launch: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> tuple[Any, dict[str, Any]]:
    """What Triton would compile for a launch, and its options."""
    from triton.compiler import ASTSource

    kernel, args, constants = launch
    types = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int32: "*i32"}
    options = {k: v for k, v in constants.items() if k in ("num_warps", "num_stages", "enable_fp_fusion")}
    fixed = {name: value for name, value in constants.items() if name not in options}
    signature, attributes = {}, {}
    for i, (name, parameter) in enumerate(zip(kernel.arg_names, kernel.params, strict=True)):
        value, special = args[i] if i < len(args) else None, not parameter.do_not_specialize
        if value is None or (isinstance(value, int) and value == 1 and special):  # a constant, as at run time
            signature[name] = "constexpr"
            fixed.setdefault(name, value)
            continue
        if isinstance(value, float):
            signature[name] = "fp32"
            continue
        signature[name] = types[value.dtype] if isinstance(value, Tensor) else "i32" if value < 2**31 else "i64"
        if special and (isinstance(value, Tensor) or value % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, fixed, attributes), options


TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
# a batch for training, its last stage (rows of 49), one image with odd sizes, and rows of 4 times 49
SHAPES = {
    (256, 256, 56, 56): torch.bfloat16,
    (256, 2048, 7, 7): torch.bfloat16,
    (1, 50, 333, 31): torch.float16,
    (3, 64, 14, 14): torch.float32,
}


STACK = 32  # bytes a thread may keep outside its registers: a handful of numbers, read once, not tiles


def compiled_for(target: str, launch: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> Any:
    """What Triton makes of a launch; of a kernel whose threads keep more than ``STACK`` outside registers, an error."""
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget

    source, options = source_of(launch)
    made = triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)
    assert made.asm["hsaco" if target.startswith("gfx") else "cubin"]
    if target in ("sm_80", "sm_90"):
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(made.asm["cubin"])
            file.flush()
            tool = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
            said = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
        usage = re.search(r"STACK:(\d+)", said)
        assert usage is not None, said
        assert int(usage[1]) <= STACK, f"{source.name} {launch[2]}: {said}"
    return made


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles_without_a_gpu_and_fits_its_registers(target, shape, layout, launches):
    call_everything(Case(shape, SHAPES[shape], layout))
    names, seen = set(), set()
    for launch in launches:
        source, _ = source_of(launch)
        key = str((source.fn, source.signature, source.constants, source.attrs))
        if key in seen:
            continue
        seen.add(key)
        compiled_for(target, launch)
        names.add(source.name)
    needed = {"statistics", "statistics_backward", "scale", "scale_backward"}
    assert needed <= names


@pytest.fixture
def fake_gpu(monkeypatch) -> Iterator[FakeTensorMode]:
    """Tensors on a CUDA device that is not there, of compute capability 9.0."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(selection, "_start_triton", lambda: None)
    selection._why_no_gpu_kernels.cache_clear()
    yield FakeTensorMode()
    selection._why_no_gpu_kernels.cache_clear()


def test_a_tensor_on_a_gpu_gets_triton_kernels(fake_gpu):
    with fake_gpu:
        x = torch.empty(2, 16, 4, 4, device="cuda", dtype=torch.float16)
    assert selection.refusal(x) is None
    with kernels.use("reference"):
        assert selection.refusal(x) == 'turned off by kernels.use("reference")'
    if "plain" in selection._CALLS:
        with kernels.use("plain"):  # an instruction set of the CPU
            assert selection.refusal(x) is None
    from attendo.kernels.gpu.calls import Calls

    assert type(selection.find(x)) is Calls
    assert type(selection.find(torch.empty(1))) is not Calls


def test_a_tensor_on_a_gpu_without_kernels_hears_why(fake_gpu, monkeypatch):
    with fake_gpu:
        x = torch.empty(2, 16, 4, 4, device="cuda")
        assert selection.refusal(x.double()) == "there is none for torch.float64 on cuda"
        assert "memory format" in selection.refusal(x, x.contiguous(memory_format=LAST))
        assert "strides" in selection.refusal(x[:, ::2])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    selection._why_no_gpu_kernels.cache_clear()
    assert selection.refusal(x) == "a GPU of compute capability 7.5; the kernels need 8.0"
    monkeypatch.setattr(torch.version, "hip", "7.0")  # AMD's numbers mean something else
    selection._why_no_gpu_kernels.cache_clear()
    assert selection.refusal(x) is None


def test_without_triton_the_definition_runs_and_status_says_why(fake_gpu, monkeypatch):
    def missing() -> None:
        raise ModuleNotFoundError("No module named 'triton'")

    monkeypatch.setattr(selection, "_gpu_calls", missing)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    rows = [status for status in kernels.status() if status.device == "cuda"]
    assert {(row.kernel, row.why) for row in rows} == {("reference", "no Triton: No module named 'triton'")}


def test_where_triton_cannot_launch_the_definition_runs(fake_gpu, monkeypatch):
    def refused() -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(selection, "_start_triton", refused)
    with fake_gpu:
        x = torch.empty(2, 16, 4, 4, device="cuda")
    assert selection.refusal(x) == "Triton does not start: Failed to find C compiler"


def test_status_says_what_runs_on_a_gpu(fake_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    rows = {status.primitive: status for status in kernels.status() if status.device == "cuda"}
    assert [rows[name].kernel for name in ("channel_stats", "spatial_stats", "recalibrate")] == ["triton"] * 3
    assert rows["attention"].kernel == "reference"
    assert "one after the other" in rows["attention"].why


def test_a_compiled_graph_holds_the_operators_without_a_break(fake_gpu):
    graphs = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        graphs.append(graph.code)
        return graph

    def block(x: Tensor) -> Tensor:
        mean, maximum = functional.channel_stats(x)
        gate = torch.sigmoid(mean + maximum)[:, :, None, None]
        spatial = torch.sigmoid(functional.spatial_stats(x, gate).sum(1, keepdim=True))
        return functional.recalibrate(x, (gate, spatial), x, relu=True)

    with fake_gpu:
        x = torch.empty(2, 16, 4, 4, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=LAST)
        out = torch.compile(block, backend=keep, fullgraph=True)(x)
    assert (out.device.type, out.dtype, out.stride()) == ("cuda", torch.bfloat16, x.stride())
    for name in ("channel_stats", "spatial_stats", "recalibrate"):
        assert f"torch.ops.attendo.{name}(" in graphs[0]


def test_importing_attendo_does_not_import_triton():
    code = (
        "import torch, sys\nbefore = 'triton' in sys.modules\nimport attendo\nattendo.kernels.status()\n"
        "print(before, 'triton' in sys.modules)"
    )
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=hidden)
    before, after = done.stdout.split()
    assert before == after


@pytest.fixture(scope="module")
def gpu() -> Any:
    from attendo.kernels.gpu.calls import Calls

    return Calls()


many = settings(max_examples=150, deadline=None, derandomize=True)
on_gpu = cases(dtypes=DTYPES, largest=1 << 18, device="cuda")


@pytest.mark.gpu
@many
@given(case=on_gpu)
def test_on_a_gpu_channel_stats_are_the_definitions(gpu, case):
    check_channel_stats(gpu, case)


@pytest.mark.gpu
@many
@given(case=on_gpu)
def test_on_a_gpu_spatial_stats_are_the_definitions(gpu, case):
    check_spatial_stats(gpu, case)


@pytest.mark.gpu
@many
@given(case=on_gpu)
def test_on_a_gpu_recalibrate_is_the_definitions(gpu, case):
    check_recalibrate(gpu, case)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_on_a_gpu_results_are_the_same_bits_every_time(gpu, layout):
    x = torch.randn(3, 200, 57, 59, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=layout)
    channel = torch.rand(3, 200, 1, 1, device="cuda", dtype=x.dtype)
    spatial = torch.rand(3, 1, 57, 59, device="cuda", dtype=x.dtype)

    def everything() -> list[Tensor]:
        mean, maximum, count = gpu.channel_stats(x, ties=True)
        stats, ties = gpu.spatial_stats(x, channel, ties=True)
        out = gpu.recalibrate(x, channel, spatial, x, True)
        return [
            *(mean, maximum, count, stats, ties, out),
            gpu.channel_stats_backward(mean, maximum, x, maximum, count),
            *gpu.spatial_stats_backward(stats, x, channel, stats, ties),
            *gpu.recalibrate_backward(x, x, channel, spatial, out, (True,) * 4),
        ]

    first = everything()
    for _ in range(5):
        for got, want in zip(everything(), first, strict=True):
            same(got, want)


def through_a_graph(layer: torch.nn.Module, x: Tensor, up: Tensor) -> list[Tensor]:
    """Capture forward and backward in a CUDA graph with other values, and replay it with these."""
    mine = torch.randn_like(x).requires_grad_()

    def step() -> list[Tensor]:
        out = layer(mine)
        return [out, *torch.autograd.grad(out, [mine, *layer.parameters()], up)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    with torch.no_grad():
        mine.copy_(x)
    graph.replay()
    return found


def on_a_side_stream(layer: torch.nn.Module, x: Tensor, up: Tensor) -> list[Tensor]:
    """Forward and backward on a stream that waits for the current one, and is waited for."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        out = layer(x)
        found = [out, *torch.autograd.grad(out, [x, *layer.parameters()], up)]
    torch.cuda.current_stream().wait_stream(side)
    return found


def compiled(layer: torch.nn.Module, x: Tensor, up: Tensor) -> list[Tensor]:
    """Forward and backward in one compiled graph each."""
    out = torch.compile(layer, fullgraph=True)(x)
    return [out, *torch.autograd.grad(out, [x, *layer.parameters()], up)]


def checkpointed(layer: torch.nn.Module, x: Tensor, up: Tensor) -> list[Tensor]:
    """The forward pass computed again in the backward pass."""
    out = checkpoint(layer, x, use_reentrant=False)
    return [out, *torch.autograd.grad(out, [x, *layer.parameters()], up)]


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # inductor advises TensorFloat32
@pytest.mark.parametrize(
    "way", [through_a_graph, on_a_side_stream, compiled, checkpointed], ids=lambda way: way.__name__
)
@pytest.mark.parametrize("name", ["se", "eca", "cbam"])
def test_on_a_gpu_layers_train_the_same(name, way):
    case = Case((4, 64, 14, 14), layout=LAST, device="cuda")
    layer = attendo.layer(name, 64).to("cuda").train()
    for module in layer.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # its running numbers would move
    x, up = case.map("x").requires_grad_(), case.map("up")
    with torch.backends.cudnn.flags(deterministic=True, allow_tf32=False):
        with kernels.use("reference"):
            out = layer(x)
            want = [out, *torch.autograd.grad(out, [x, *layer.parameters()], up)]
        got = way(layer, x, up)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.detach().abs().max().clamp(1)))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_on_a_gpu_a_network_trains_under_autocast_as_without_kernels(dtype):
    torch.manual_seed(0)
    model = attendo.create_model("resnet18", attention="cbam", num_classes=5).cuda().to(memory_format=LAST)
    images = torch.randn(4, 3, 64, 64, device="cuda").to(memory_format=LAST)
    losses = []
    for choice in ("reference", "auto"):
        torch.manual_seed(0)
        with kernels.use(choice), torch.autocast("cuda", dtype):
            loss = model(images).float().logsumexp(1).sum()
        loss.backward()
        losses.append(loss.detach())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(losses[1], losses[0], rtol=5e-2, atol=5e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", [(1, 2, 32768, 32784), (40, 64, 1024, 1024)], ids=str)
def test_on_a_gpu_maps_of_more_than_2_31_elements_are_counted_right(gpu, shape, layout):
    assert math.prod(shape) > 2**31
    if torch.cuda.get_device_properties(0).total_memory < 48 << 30:
        pytest.skip("needs 48 GiB of GPU memory")
    x = torch.empty(shape, device="cuda", dtype=torch.bfloat16, memory_format=layout).normal_()
    x[-1, -1, -1, -1] = 100
    _, maximum, ties = gpu.channel_stats(x, ties=True)
    assert (float(maximum[-1, -1]), float(ties[-1, -1])) == (100, 1)
    stats, _ = gpu.spatial_stats(x, None)
    assert float(stats[-1, 1, -1, -1]) == 100
    gate = torch.full((shape[0], shape[1], 1, 1), 0.5, device="cuda", dtype=x.dtype)
    out = gpu.recalibrate(x, gate, None, None, False)
    assert all(torch.equal(got, sample * 0.5) for got, sample in zip(out, x, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_a_gpu_that_is_not_the_current_one(gpu):
    x = torch.randn(2, 16, 9, 9, device="cuda:1")
    with torch.cuda.device(0):
        mean, maximum, _ = gpu.channel_stats(x)
    close(mean, definition.channel_mean(x))
    same(maximum, definition.channel_max(x))


@pytest.fixture(scope="module")
def benchmark() -> Any:
    """The script benchmarks/gpu.py."""
    return load_script("gpu")


@pytest.mark.slow
def test_the_benchmark_runs_to_its_end_and_writes_every_number(benchmark, tmp_path, capsys):
    path = tmp_path / "gpu.csv"
    asked = ["--device", "cpu", "--batch", "2", "--seconds", "0.0001", "--csv", str(path)]
    assert benchmark.main(asked) == 0
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["section"] for row in rows} == {"copy", "primitives", "modules", "inference", "networks"}
    assert {row["torch"] for row in rows} == {torch.__version__}
    measured = [row for row in rows if not row["note"].startswith("no kernel")]
    assert all(
        float(row["lower_quartile"]) <= float(row["milliseconds"]) <= float(row["upper_quartile"]) for row in measured
    )
    said = capsys.readouterr().out
    assert "times as fast as timm" in said
    assert "of plain" in said
    assert "of a copy" in said


def test_the_benchmark_skips_what_does_not_fit_into_its_time(benchmark, tmp_path):
    path = tmp_path / "gpu.csv"
    assert (
        benchmark.main(["--device", "cpu", "--batch", "1", "--seconds", "0", "--minutes", "0", "--csv", str(path)]) == 0
    )
    with path.open() as file:
        notes = {row["note"] for row in csv.DictReader(file) if row["section"] != "copy"}
    assert notes <= {"skipped: out of time", "no kernel: there is none for torch.float16 on cpu"}


def test_the_benchmarks_table_says_what_a_number_is_against(benchmark):
    rows = benchmark.compared(
        benchmark.summary("modules", "se", {"timm": [3.0] * 4, "timm compiled": [1.5] * 4, "attendo": [0.5, 1, 1, 9]})
    )
    rows.append(
        benchmark.Row("networks", "resnet50", "attendo se", 102, 101, 103, 9, cost=1.02, megabytes=2e4, memory_cost=1.1)
    )
    *_, ours, network = benchmark.table(rows).splitlines()
    assert ours.split()[:2] == ["se", "attendo"]
    assert ours.endswith("1.000      0.875 to 3.000  3.00 times as fast as timm, 1.50 as timm compiled")
    assert network.endswith("1.020 of plain, 1.100 of its memory (20,000 MB)")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_benchmark_says_in_a_line_that_there_is_no_gpu(benchmark, capsys):
    assert benchmark.main([]) == 1
    assert capsys.readouterr().err.count("\n") == 1
