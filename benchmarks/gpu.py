"""Check the GPU kernels, then measure what attention costs on this GPU, against timm and torch.compile, in one run.

    python benchmarks/gpu.py [--quick] [--batch 256] [--minutes 8] [--csv gpu.csv] [--skip-check] [--try-persistent]

What is measured, on random data, with CUDA events, variants in turns, medians with quartiles:

    primitives   each forward and backward, on tensors of gigabytes: the bytes of the maps that have to be read or
                 written at least, over the time, as a share of what a device copy moves in that time
    modules      SE, ECA and CBAM, forward and backward, bfloat16, channels_last: timm's and ours, eager and compiled;
                 "attendo inductor" is ours with the kernels turned off, compiled. Once launched from Python, once
                 replayed from a CUDA graph, where nothing waits for Python
    inference    the same modules forward: timm's, eager and compiled, ours primitive by primitive, and ours in one
                 launch ("attendo persistent": kernels.use("persistent"), whose programs wait for one another; another
                 process tries it first, and if that does not come to its end this says so and goes on without)
    networks     a training step of ResNet-50 (autocast to bfloat16, channels_last, SGD) with each over the plain one,
                 eager and compiled, and its peak memory

``--quick`` leaves out compiled networks and other dtypes. What does not fit into ``--minutes`` is skipped and says so.
Where there is no GPU it says so and exits with 1.
"""

from __future__ import annotations

import argparse
import copy
import csv
import datetime
import importlib.metadata
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from timm.layers import create_attn
from torch import Tensor, nn

import attendo
from attendo import kernels
from attendo.kernels import selection

NAMES = ("se", "eca", "cbam")
MAPS = ((256, 56), (512, 28), (1024, 14), (2048, 7))  # channels, side
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass
class Row:
    """One measured variant.

    ``share``: of a device copy's bandwidth. ``over_timm`` and ``over_compiled``: how many times as fast as timm's
    module, eager and compiled; ``over_primitives``: as ours primitive by primitive. ``cost`` and ``memory_cost``: time
    and peak memory as a multiple of the plain network's. ``megabytes``: peak memory above what was there before.
    """

    section: str
    case: str
    variant: str
    milliseconds: float | None = None
    lower_quartile: float | None = None
    upper_quartile: float | None = None
    runs: int = 0
    share: float | None = None
    over_timm: float | None = None
    over_compiled: float | None = None
    over_primitives: float | None = None
    cost: float | None = None
    megabytes: float | None = None
    memory_cost: float | None = None
    note: str = ""


class Clock:
    """Time on one device, and how much of it is left.

    Args:
        device: "cuda", or "cpu" to try the script out.
        minutes: after which nothing new is begun.
    """

    def __init__(self, device: str, minutes: float) -> None:
        self.device, self.end = device, time.monotonic() + 60 * minutes

    def over(self) -> bool:
        """Whether the time is used up."""
        return time.monotonic() > self.end

    def once(self, call: Callable[[], object]) -> Callable[[], float]:
        """Run a call once; return what gives its milliseconds when the device is done."""
        if self.device == "cpu":
            begin = time.perf_counter()
            call()
            spent = 1000 * (time.perf_counter() - begin)
            return lambda: spent
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        return lambda: begin.elapsed_time(end)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def race(self, variants: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
        """Run variants in turns for about so long, at least 3 and at most 100 rounds; milliseconds of each run."""
        for call in variants.values():
            for _ in range(3):
                call()
        self.synchronize()
        begin = time.perf_counter()
        for call in variants.values():
            call()
        self.synchronize()
        rounds = max(3, min(100, int(seconds / (time.perf_counter() - begin))))
        pending: dict[str, list[Callable[[], float]]] = {name: [] for name in variants}
        for _ in range(rounds):
            for name, call in variants.items():
                pending[name].append(self.once(call))
        self.synchronize()
        return {name: [read() for read in reads] for name, reads in pending.items()}


def summary(section: str, case: str, times: dict[str, list[float]]) -> dict[str, Row]:
    """Make rows of times: medians and quartiles."""
    rows = {}
    for variant, each in times.items():
        low, middle, high = statistics.quantiles(each, n=4, method="inclusive")
        rows[variant] = Row(section, case, variant, middle, low, high, len(each))
    return rows


def copy_bandwidth(clock: Clock, elements: int, seconds: float) -> tuple[Row, float]:
    """Bytes read and written per millisecond by a copy of a bfloat16 tensor."""
    source = torch.randn(elements, device=clock.device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    (row,) = summary(
        "copy", f"{source.nbytes / 1e9:.2g} GB", clock.race({"copy": lambda: target.copy_(source)}, seconds)
    ).values()
    row.share = 1.0
    bandwidth = 2 * source.nbytes / row.milliseconds
    row.note = f"{bandwidth / 1e9:.2f} TB/s"
    return row, bandwidth


def primitive_calls(x: Tensor) -> dict[str, tuple[Callable[[], object], int]]:
    """Every primitive and its gradient, and how many times it has to read or write a map."""
    calls = selection.find(x)
    samples, channels, height, width = x.shape
    new = partial(torch.rand, device=x.device, dtype=x.dtype)
    channel, spatial = new(samples, channels, 1, 1), new(samples, 1, height, width)
    up, residual = torch.randn_like(x), torch.randn_like(x)
    mean, maximum, count = calls.channel_stats(x, ties=True)
    stats, ties = calls.spatial_stats(x, channel, ties=True)
    out = calls.recalibrate(x, channel, spatial, residual, True)
    both, all_four = (True, True, True, False), (True, True, True, True)
    return {
        "channel_stats": (lambda: calls.channel_stats(x, ties=True), 1),
        "channel_stats backward": (lambda: calls.channel_stats_backward(mean, maximum, x, maximum, count), 2),
        "spatial_stats": (lambda: calls.spatial_stats(x, channel, ties=True), 1),
        "spatial_stats backward": (lambda: calls.spatial_stats_backward(stats, x, channel, stats, ties), 2),
        "recalibrate channel": (lambda: calls.recalibrate(x, channel, None, None, False), 2),
        "recalibrate both": (lambda: calls.recalibrate(x, channel, spatial, None, False), 2),
        "recalibrate residual relu": (lambda: calls.recalibrate(x, channel, spatial, residual, True), 3),
        "recalibrate channel backward": (
            lambda: calls.recalibrate_backward(up, x, channel, None, None, (True, True, False, False)),
            3,
        ),
        "recalibrate both backward": (lambda: calls.recalibrate_backward(up, x, channel, spatial, None, both), 3),
        "recalibrate residual relu backward": (
            lambda: calls.recalibrate_backward(up, x, channel, spatial, out, all_four),
            5,
        ),
    }


def measure_primitives(clock: Clock, asked: argparse.Namespace, rows: list[Row]) -> None:
    """Every primitive on every map, layout and dtype."""
    samples = 8 * asked.batch
    channels, side = asked.maps[0]
    row, bandwidth = copy_bandwidth(clock, samples * channels * side * side, asked.seconds)
    rows.append(row)
    cases = [(shape, layout, torch.bfloat16) for shape in asked.maps for layout in LAYOUTS]
    if not asked.quick:
        cases += [(asked.maps[0], layout, dtype) for layout in LAYOUTS for dtype in (torch.float16, torch.float32)]
    for (channels, side), layout, dtype in cases:
        size = (samples if dtype.itemsize == 2 else samples // 2, channels, side, side)
        x = torch.randn(size, device=clock.device, dtype=dtype).contiguous(memory_format=LAYOUTS[layout])
        if refused := selection.refusal(x):
            rows.append(Row("primitives", describe(x, layout), "attendo", note=f"no kernel: {refused}"))
            continue
        for name, (call, maps) in primitive_calls(x).items():
            case = f"{name} {describe(x, layout)}"
            if clock.over():
                rows.append(Row("primitives", case, "attendo", note="skipped: out of time"))
                continue
            (row,) = summary("primitives", case, clock.race({"attendo": call}, asked.seconds)).values()
            row.share = maps * x.nbytes / row.milliseconds / bandwidth
            rows.append(row)


def describe(x: Tensor, layout: str) -> str:
    """Shape, dtype and layout in a few characters."""
    return f"{'x'.join(map(str, x.shape))} {str(x.dtype).removeprefix('torch.')} {layout}"


def train(module: nn.Module, x: Tensor, up: Tensor) -> None:
    """Forward and backward, the gradients of x and of all weights."""
    x.grad = None
    module.zero_grad(set_to_none=True)
    module(x).backward(up)


def infer(module: nn.Module, x: Tensor) -> Tensor:
    """Forward, for its result alone."""
    with torch.no_grad():
        return module(x)


def by(choice: str, call: Callable[[], object]) -> Callable[[], object]:
    """Run a call with other kernels."""

    def run() -> object:
        with kernels.use(choice):
            return call()

    return run


def captured(call: Callable[[], object], device: str) -> Callable[[], object]:
    """Capture a call, warmed up, in a CUDA graph; return its replay."""
    if device == "cpu":
        return call
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def module_calls(name: str, x: Tensor, asked: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """Forward and backward of one module in every variant."""
    up = torch.randn_like(x)
    timms, ours = create_attn(name, x.shape[1]), attendo.layer(name, x.shape[1])
    timms, ours = timms.to(x.device, x.dtype).train(), ours.to(x.device, x.dtype).train()
    calls: dict[str, Callable[[], object]] = {
        "timm": partial(train, timms, x, up),
        "attendo": partial(train, ours, x, up),
        "timm compiled": partial(train, asked.compile(timms), x, up),
        "attendo compiled": partial(train, asked.compile(ours), x, up),
    }
    if not asked.quick:
        plain = attendo.layer(name, x.shape[1]).to(x.device, x.dtype).train()
        calls["attendo inductor"] = by("reference", partial(train, asked.compile(plain), x, up))
    return calls


def measure_modules(clock: Clock, asked: argparse.Namespace, rows: list[Row]) -> None:
    """Forward and backward of every module on every map."""
    for channels, side in asked.maps:
        shape = (asked.batch, channels, side, side)
        x = torch.randn(shape, device=clock.device, dtype=torch.bfloat16)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        for name in NAMES:
            case = f"{name} {describe(x, 'channels_last')}"
            if clock.over():
                rows.append(Row("modules", case, "all", note="skipped: out of time"))
                continue
            torch._dynamo.reset()  # or it would generalise over shapes
            race_twice(clock, "modules", case, module_calls(name, x, asked), asked.seconds, rows)


def race_twice(
    clock: Clock, section: str, case: str, calls: dict[str, Callable[[], object]], seconds: float, rows: list[Row]
) -> None:
    """Measure variants launched from Python, then replayed from CUDA graphs."""
    rows += compared(summary(section, case, clock.race(calls, seconds)))
    graphs = {}
    for variant, call in calls.items():
        try:
            graphs[variant] = captured(call, clock.device)
        except RuntimeError as error:
            rows.append(Row(section, f"{case} graph", variant, note=f"no graph: {str(error).splitlines()[0]}"))
    rows += compared(summary(section, f"{case} graph", clock.race(graphs, seconds)))


def maps_and_layers(asked: argparse.Namespace) -> Iterator[tuple[str, Tensor]]:
    """Every name on a map of every size."""
    for channels, side in asked.maps:
        shape = (asked.batch, channels, side, side)
        x = torch.randn(shape, device=asked.device, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        for name in NAMES:
            yield name, x


def measure_inference(clock: Clock, asked: argparse.Namespace, rows: list[Row]) -> None:
    """Forward of every module on every map, in inference."""
    fault = "skipped: out of time" if clock.over() else persistent_fault(asked)
    if fault:
        rows.append(Row("inference", "all", "attendo persistent", note=fault))
    for name, x in maps_and_layers(asked):
        case = f"{name} {describe(x, 'channels_last')}"
        if clock.over():
            rows.append(Row("inference", case, "all", note="skipped: out of time"))
            continue
        torch._dynamo.reset()  # or it would generalise over shapes
        timms = create_attn(name, x.shape[1]).to(x.device, x.dtype).eval()
        ours = attendo.layer(name, x.shape[1]).to(x.device, x.dtype).eval()
        calls: dict[str, Callable[[], object]] = {
            "timm": partial(infer, timms, x),
            "timm compiled": partial(infer, asked.compile(timms), x),
            "attendo": partial(infer, ours, x),
            "attendo persistent": by("persistent", partial(infer, ours, x)),
        }
        if fault:
            del calls["attendo persistent"]
        race_twice(clock, "inference", case, calls, asked.seconds, rows)


def persistent_fault(asked: argparse.Namespace, seconds: float = 240) -> str:
    """Try attentions in one launch in another process; say what is wrong with them, or nothing."""
    command = [sys.executable, __file__, "--try-persistent", "--batch", str(asked.batch), "--device", asked.device]
    try:
        done = subprocess.run(command, timeout=seconds, check=False, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        return f"not at its end after {seconds:.0f} s: its programs wait for ever, or they compile slowly"
    return "" if done.returncode == 0 else ((done.stdout + done.stderr).strip().splitlines() or ["failed"])[-1]


def try_persistent(asked: argparse.Namespace) -> int:
    """Compare attentions in one launch with the definition in float32, and with themselves; return the exit code."""
    for name, x in maps_and_layers(asked):
        layer = attendo.layer(name, x.shape[1]).to(x.device, x.dtype).eval()
        want = by("reference", partial(infer, copy.deepcopy(layer).float(), x.float()))()
        call = by("persistent", partial(infer, layer, x))
        results = [call() for _ in range(10)]
        if not torch.allclose(results[0].float(), want, rtol=2**-6, atol=2**-7):
            print(f"{name} {describe(x, 'channels_last')}: one launch computes something else")
            return 1
        if not all(torch.equal(result, results[0]) for result in results):
            print(f"{name} {describe(x, 'channels_last')}: one launch does not give the same bits every time")
            return 1
    return 0


def compared(rows: dict[str, Row]) -> list[Row]:
    """Compare our variants with timm's module."""
    for variant, row in rows.items():
        if variant.startswith("attendo") and {"timm", "timm compiled"} <= rows.keys():
            row.over_timm = rows["timm"].milliseconds / row.milliseconds
            row.over_compiled = rows["timm compiled"].milliseconds / row.milliseconds
            if variant == "attendo persistent":
                row.over_primitives = rows["attendo"].milliseconds / row.milliseconds
    return list(rows.values())


def networks(asked: argparse.Namespace) -> dict[str, Callable[[], nn.Module]]:
    """Plain, ours and timm's networks."""
    made: dict[str, Callable[[], nn.Module]] = {"plain": partial(timm.create_model, asked.network)}
    for name in NAMES:
        made[f"attendo {name}"] = partial(attendo.create_model, asked.network, attention=name)
        made[f"timm {name}"] = partial(timm.create_model, asked.network, block_args={"attn_layer": name})
    return made


def training_step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """One step of SGD under autocast."""
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def measure_networks(clock: Clock, asked: argparse.Namespace, rows: list[Row]) -> None:
    """A training step of every network over the plain one, eager and compiled."""
    side = asked.side
    images = torch.randn(asked.batch, 3, side, side, device=clock.device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(1000, (asked.batch,), device=clock.device)
    for compiled in (False, True):
        case = f"{asked.network} {asked.batch}x3x{side}x{side} {'compiled' if compiled else 'eager'}"
        torch._dynamo.reset()
        steps: dict[str, Callable[[], None]] = {}
        peaks: dict[str, float | None] = {}
        for name, make in networks(asked).items():
            if compiled and (asked.quick or name.startswith("timm")):
                continue  # the targets are over the plain network; timm's stand beside ours in eager mode
            if clock.over():
                rows.append(Row("networks", case, name, note="skipped: out of time"))
                continue
            before = torch.cuda.memory_allocated() if clock.device == "cuda" else 0
            model = make().to(clock.device, memory_format=torch.channels_last).train()
            step = training_step(asked.compile(model) if compiled else model, images, labels)
            for _ in range(3):
                step()
            peaks[name] = None
            if clock.device == "cuda":
                clock.synchronize()
                torch.cuda.reset_peak_memory_stats()
                step()
                clock.synchronize()
                peaks[name] = (torch.cuda.max_memory_allocated() - before) / 1e6
            steps[name] = step
        if "plain" not in steps:
            continue
        found = summary("networks", case, clock.race(steps, 100 * asked.seconds))
        for name, row in found.items():
            row.cost, row.megabytes = row.milliseconds / found["plain"].milliseconds, peaks[name]
            if peaks[name] is not None:
                row.memory_cost = peaks[name] / peaks["plain"]
        rows += found.values()


def environment(device: str) -> dict[str, str]:
    """What the numbers were made on and with."""
    driver = "none"
    if device == "cuda":
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            driver = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
        except (OSError, subprocess.CalledProcessError):
            driver = "unknown"
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "none"
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "driver": driver,
        "torch": torch.__version__,
        "triton": triton,
        "timm": timm.__version__,
        "attendo": attendo.__version__,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def write_csv(path: Path, rows: list[Row], made_on: dict[str, str]) -> None:
    """Write all rows, each with its environment."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)] + list(made_on))
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in (asdict(row) | made_on).items()} for row in rows
        )


def table(rows: list[Row]) -> str:
    """Say in a line each what was measured."""
    lines = [f"{'':<69}{'variant':<17}{'ms':>9}{'quartiles':>20}"]
    for row in rows:
        start = f"{row.case:<69}{row.variant:<17}"
        if row.milliseconds is None:
            lines.append(f"{start} {row.note}")
            continue
        said = [f"{row.share:.0%} of a copy"] if row.share is not None else []
        if row.over_timm is not None:
            said.append(f"{row.over_timm:.2f} times as fast as timm, {row.over_compiled:.2f} as timm compiled")
        if row.over_primitives is not None:
            said.append(f"{row.over_primitives:.2f} as primitive by primitive")
        if row.cost is not None:
            said.append(f"{row.cost:.3f} of plain")
        if row.memory_cost is not None:
            said.append(f"{row.memory_cost:.3f} of its memory ({row.megabytes:,.0f} MB)")
        if row.note:
            said.append(row.note)
        spread = f"{row.lower_quartile:.3f} to {row.upper_quartile:.3f}"
        lines.append(f"{start}{row.milliseconds:>9.3f}{spread:>20}  {', '.join(said)}".rstrip())
    return "\n".join(lines)


def check(seconds: float = 1800) -> bool:
    """Run the GPU tests of this checkout; they fail if they are not at their end after so long."""
    tests = Path(__file__).parents[1] / "tests"
    files = [str(tests / name) for name in ("test_kernels_gpu.py", "test_kernels_gpu_attention.py")]
    command = [sys.executable, "-m", "pytest", "-n0", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    try:
        return subprocess.run(command, cwd=tests.parent, check=False, timeout=seconds).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="no compiled networks, no other dtypes")
    parser.add_argument(
        "--batch", type=int, default=256, help="samples of modules and networks; primitives get 8 times"
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="after which nothing new is begun")
    parser.add_argument("--seconds", type=float, default=0.3, help="for one measurement; networks get 100 times")
    parser.add_argument("--csv", type=Path, default=Path("gpu.csv"), help="where all numbers go")
    parser.add_argument("--skip-check", action="store_true", help="measure without running the GPU tests first")
    parser.add_argument("--try-persistent", action="store_true", help="only compare attentions in one launch, and exit")
    # to try the script out without a GPU, on tiny sizes: its numbers mean nothing
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.batch < 1:
        parser.error(f"--batch {asked.batch}: it must be at least 1")
    tiny = asked.device == "cpu"
    asked.maps = ((32, 4), (48, 2)) if tiny else MAPS
    asked.network, asked.side = ("resnet18", 32) if tiny else ("resnet50", 224)
    asked.compile = partial(torch.compile, backend="eager") if tiny else torch.compile
    return asked


def main(arguments: list[str] | None = None) -> int:
    """Check, measure, write; return the exit code."""
    asked = parse(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks/gpu.py: there is no GPU here that PyTorch can use; nothing was measured.", file=sys.stderr)
        return 1
    if asked.try_persistent:
        return try_persistent(asked)
    clock = Clock(asked.device, asked.minutes)
    if asked.device == "cuda" and not asked.skip_check and not check():
        print("benchmarks/gpu.py: the GPU tests fail; wrong kernels are not worth measuring.", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    made_on = environment(asked.device)
    print(", ".join(f"{name} {value}" for name, value in made_on.items()), flush=True)
    rows: list[Row] = []
    for measure in (measure_primitives, measure_modules, measure_inference, measure_networks):
        before = len(rows)
        try:
            measure(clock, asked, rows)
        finally:  # what there is, should the rest fail
            write_csv(asked.csv, rows, made_on)
            print(table(rows[before:]), flush=True)
        if asked.device == "cuda":
            torch.cuda.empty_cache()
    print(f"all numbers: {asked.csv}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
