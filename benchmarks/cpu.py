"""Measure attendo's CPU kernels against timm, torchvision and torch.compile, side by side in one run.

    python benchmarks/cpu.py [SECTION ...] [--minutes 14] [--seconds 3] [--rounds 9] [--threads 2] [--csv cpu.csv]
                             [--quick]

    modules          SE, ECA and CBAM, inference and forward + backward, over ``y.copy_(x)`` of the same map
    networks         ResNet-50 with each over timm's plain one: batch 16 and 1, a training step of 8
    out-of-the-box   timm's with the allocator as it is, over ours with ``attendo.tune_allocator()``
    compiled         networks under torch.compile with freezing, over timm's plain one compiled likewise
    epsanet          EPSANet-50 over timm's plain ResNet-50
    inserted         timm's ResNet-50 with each inserted, from an identity start, over the same without
    grouped-conv     PSA's wide convolutions of few channels per group, as EPSANet-50 has them, over oneDNN's
    growth           the primitives' time per element over N, C, H = W and threads, over that of one map in the middle

The allocator makes the order of runs matter, so every network has a process of its own. The processes of a case are
alive together and measured in turns: one runs, the others wait for their next line. A ratio is the median over rounds
of the ratio to the base within a round, with quartiles. Modules share a process per allocator setting and take turns in
it; each finds its map freshly written, as a block leaves it, because in place it would otherwise shrink from call to
call. ``peak_mb`` is the peak of resident memory of a row's process up to then, for modules that of all of them.

Nothing new is begun in a section whose share of ``--minutes`` is over; what is left out says so. A training step of
ResNet-50 in seven processes takes 20 GB. ``--quick`` tries the script out on tiny sizes: its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib.metadata
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:  # a process starts with its parent's peak of memory, so the one that starts them imports no torch
    from torch import Tensor, nn

NAMES = ("se", "eca", "cbam")
FORMATS = ("contiguous", "channels_last")
SHARES = {  # of the time; in the order in which they run
    "out-of-the-box": 35,
    "networks": 300,
    "modules": 150,
    "epsanet": 70,
    "inserted": 120,
    "grouped-conv": 20,
    "growth": 30,
    "compiled": 135,
}
COMPILED_MODULES = ((32, 256), (1, 256), (16, 1024))  # batch and channels: compiling takes seconds each
BRANCHES = ((5, 4), (7, 8), (9, 16))  # kernel and groups of PSA's branches that are native
STAGES = ((64, 56), (128, 28), (256, 14), (512, 7))  # channels and side of what PSA is given; a branch makes a quarter
MIN_ROUNDS = 3
INSERTED = "attendo inserted"


@dataclass
class Row:
    """One measured variant: milliseconds of a step and their quartiles, and the ratio to the base within a round."""

    section: str
    name: str
    peer: str
    mode: str
    shape: str
    format: str
    allocator: str
    threads: int
    median_ms: float | None = None
    lower: float | None = None
    upper: float | None = None
    ratio: float | None = None
    ratio_lower: float | None = None
    ratio_upper: float | None = None
    peak_mb: float | None = None
    base: str = ""
    rounds: int = 0
    note: str = ""


@dataclass(frozen=True)
class Subject:
    """What a worker measures: the settings of its process, and its network if it has one."""

    name: str  # "plain", a mechanism, or a named network of attendo's
    peer: str
    mode: str = "inference"  # or "training"
    batch: int = 1
    side: int = 224
    network: str = "resnet50"
    format: str = "contiguous"
    tuned: bool = True
    reference: bool = False  # attendo's definition instead of its kernels
    compiled: bool = False
    threads: int = 1
    quick: bool = False

    @property
    def label(self) -> str:
        """Name it in a word or three."""
        return f"{self.peer} {self.name}"

    def row(self, section: str, **more: Any) -> Row:
        """Begin its row."""
        shape = f"{self.batch}x3x{self.side}x{self.side}"
        allocator = "tuned" if self.tuned else "default"
        return Row(section, self.name, self.peer, self.mode, shape, self.format, allocator, self.threads, **more)


class WorkerError(Exception):
    """A worker ended instead of answering."""


class Worker:
    """A process that waits for lines and answers each with one.

    Attributes:
        allocator: how its allocator is set in fact, once ``ready``.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject, self.allocator, self.peak_mb = subject, "", 0.0
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in end()
        environment = {key: value for key, value in os.environ.items() if key != "ATTENDO_ALLOCATOR"}
        environment |= {"OMP_NUM_THREADS": str(subject.threads), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        # of its own: networks that are alike would write the same files at the same time
        self._cache = tempfile.TemporaryDirectory()
        environment["TORCHINDUCTOR_CACHE_DIR"] = self._cache.name
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", json.dumps(asdict(subject))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )

    def ready(self) -> None:
        """Wait until it is set up."""
        self.allocator = self._answer()["allocator"]

    def ask(self, line: str) -> Any:
        """Send a command, wait for what it answers.

        Raises:
            WorkerError: it failed.
        """
        with suppress(BrokenPipeError):  # its errors say more
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        return self._answer()

    def step(self, count: int) -> float:
        """Run steps; return the median of their milliseconds."""
        return statistics.median(self.ask(f"step {count}")["ms"])

    def end(self) -> None:
        """Kill it: it has nothing to put away, and torch would take a second to leave."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()
        self._cache.cleanup()

    def _answer(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines()
            # advice may follow what went wrong
            named = [line for line in said if re.match(r"[\w.]*(Error|Exception|Failed)\b", line)]
            raise WorkerError([f"ended with {self._process.returncode}", *said[-1:], *named[-1:]][-1])
        answer = json.loads(line)
        self.peak_mb = answer["peak_mb"]
        return answer


@contextmanager
def workers(subjects: Sequence[Subject]) -> Iterator[tuple[list[Worker], dict[Subject, str]]]:
    """Start a process for each; give those that are ready, and why the others are not."""
    with ExitStack() as stack:
        started, failed = [], {}
        for subject in subjects:
            worker = Worker(subject)
            stack.callback(worker.end)
            started.append(worker)
        there = []
        for worker in started:
            try:
                worker.ready()
                there.append(worker)
            except WorkerError as error:
                failed[worker.subject] = str(error)
        yield there, failed


@dataclass
class Run:
    """What was asked for, what has been measured, and how much time is left."""

    asked: argparse.Namespace
    rows: list[Row] = field(default_factory=list)
    end: float = 0.0

    def over(self) -> bool:
        """Whether the section's time is used up."""
        return time.monotonic() > self.end

    def skip(self, rows: Sequence[Row], note: str) -> None:
        """Note what was not measured."""
        self.rows += [replace(row, note=note) for row in rows]
        for row in rows:
            say(f"  {row.peer} {row.name} {row.mode} {row.shape} {row.format}: {note}")


def say(line: str) -> None:
    print(line, flush=True)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    lower, middle, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, middle, upper


def fill(row: Row, times: Sequence[float], base: Sequence[float], scale: float = 1.0) -> Row:
    """Put times into a row, and their ratios to those of the base in the same rounds.

    Args:
        row: what was measured.
        times: milliseconds, one per round.
        base: the base's.
        scale: factor on the ratios.
    """
    row.lower, row.median_ms, row.upper = quartiles(times)
    ratios = [scale * one / other for one, other in zip(times, base, strict=True)]
    row.ratio_lower, row.ratio, row.ratio_upper = quartiles(ratios)
    row.rounds = len(times)
    return row


def race(run: Run, section: str, subjects: Sequence[Subject], bases: dict[Subject, Subject]) -> None:
    """Measure networks in turns, each in its process.

    Args:
        run: where the rows go.
        section: their section.
        subjects: the networks.
        bases: what each is compared with.
    """
    first = subjects[0]
    case = f"{section}: {first.mode} {first.batch}x3x{first.side}x{first.side} {first.format}"
    if run.over():
        run.skip([subject.row(section) for subject in subjects], "skipped: out of time")
        return
    say(f"{case}: {', '.join(subject.label for subject in subjects)}")
    with workers(subjects) as (there, failed):
        counts, times = {}, {}
        for worker in list(there):  # warm up, and find out how many steps make a turn
            try:
                worker.step(2)
                counts[worker.subject] = max(1, min(20, int(150 / worker.step(1))))
                times[worker.subject] = []
            except WorkerError as error:
                failed[worker.subject] = str(error)
                there.remove(worker)
        begin, done = time.monotonic(), 0
        limit = run.asked.seconds * max(1, len(there))
        while there and (done < MIN_ROUNDS or (done < run.asked.rounds and time.monotonic() - begin < limit)):
            for worker in there[done % len(there) :] + there[: done % len(there)]:
                time.sleep(0.005)  # OpenMP's threads spin for a while after the last step of the one before
                try:
                    times[worker.subject].append(worker.step(counts[worker.subject]))
                except WorkerError as error:
                    failed[worker.subject] = str(error)
                    there.remove(worker)
            done += 1
        found = {worker.subject: worker for worker in there}
    for subject in subjects:
        row = subject.row(section, base=bases[subject].label)
        if subject in failed:
            run.skip([row], f"failed: {failed[subject]}")
        elif bases[subject] in failed:
            run.skip([row], "skipped: its base failed")
        else:
            row.allocator, row.peak_mb = found[subject].allocator, found[subject].peak_mb
            run.rows.append(fill(row, times[subject], times[bases[subject]]))


def against_first(subjects: Sequence[Subject]) -> dict[Subject, Subject]:
    return dict.fromkeys(subjects, subjects[0])


def template(asked: argparse.Namespace) -> Subject:
    """Make timm's plain network as it is asked for, the base of most sections."""
    tiny = {"network": "resnet18", "side": 32, "quick": True} if asked.quick else {}
    return Subject("plain", "timm", threads=asked.threads, **tiny)


def names(asked: argparse.Namespace) -> tuple[str, ...]:
    return NAMES[:1] if asked.quick else NAMES


def measure_networks(run: Run) -> None:
    """Every network with every mechanism over the plain one."""
    asked = run.asked
    modes = [("inference", 2)] if asked.quick else [("inference", 16), ("inference", 1), ("training", 8)]
    for layout in FORMATS[: 1 if asked.quick else 2]:
        for mode, batch in modes:
            plain = replace(template(asked), mode=mode, batch=batch, format=layout)
            rivals = [replace(plain, name=name, peer=peer) for name in names(asked) for peer in ("timm", "attendo")]
            race(run, "networks", [plain, *rivals], against_first([plain, *rivals]))


def measure_out_of_the_box(run: Run) -> None:
    """What users of timm get, over what users of attendo get."""
    bases = {}
    for name in [name for name in names(run.asked) if name != "eca"]:
        ours = replace(template(run.asked), name=name, peer="attendo", batch=2 if run.asked.quick else 16)
        bases |= {ours: ours, replace(ours, peer="timm", tuned=False): ours}
    race(run, "out-of-the-box", list(bases), bases)


def measure_compiled(run: Run) -> None:
    """Networks compiled with freezing over the plain one, compiled as well."""
    for batch in (2,) if run.asked.quick else (16, 1):
        plain = replace(template(run.asked), batch=batch, compiled=True)
        subjects = [plain]
        for name in names(run.asked):
            ours = replace(plain, name=name, peer="attendo")
            subjects += [replace(ours, peer="timm"), ours, replace(ours, peer="attendo definition", reference=True)]
        if not run.asked.quick:
            subjects.append(replace(plain, name="epsanet50_small", peer="attendo"))
        race(run, "compiled", subjects, against_first(subjects))


def measure_epsanet(run: Run) -> None:
    """EPSANet-50 over timm's plain ResNet-50."""
    cases = [(1, "contiguous")] if run.asked.quick else [(batch, layout) for layout in FORMATS for batch in (16, 1)]
    for batch, layout in cases:
        plain = replace(template(run.asked), batch=batch, format=layout)
        ours = replace(plain, name="epsanet50_small", peer="attendo")
        subjects = [plain, ours, replace(ours, peer="attendo definition", reference=True)]
        race(run, "epsanet", subjects, against_first(subjects))


def measure_inserted(run: Run) -> None:
    """Attention that ``attendo.insertion.insert`` put into timm's plain network, over that network."""
    modes = [("inference", 2)] if run.asked.quick else [("inference", 16), ("inference", 1), ("training", 8)]
    for mode, batch in modes:
        plain = replace(template(run.asked), mode=mode, batch=batch)
        rivals = [replace(plain, name=name, peer=INSERTED) for name in names(run.asked)]
        race(run, "inserted", [plain, *rivals], against_first([plain, *rivals]))


def module_cases(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Sizes, batches, layouts and modes, the largest first."""
    if asked.quick:
        grid = [(2, 32, 4)]
    else:
        maps = ((256, 56), (512, 28), (1024, 14), (2048, 7))
        grid = [(batch, *size) for batch in (32, 16, 1) for size in (maps if batch < 32 else maps[:1])]
    return [
        {"shape": [batch, channels, side, side], "format": layout, "mode": mode}
        for mode in ("inference", "training")
        for layout in FORMATS
        for batch, channels, side in grid
    ]


def measure_modules(run: Run) -> None:
    """Every module over a copy of its map, in a process for each allocator setting."""
    asked = run.asked
    tuned = replace(template(asked), name="modules", peer="all")
    cases = module_cases(asked)
    begin, weights = time.monotonic(), [3 if case["mode"] == "training" else 2 for case in cases]
    budget = max(0.0, run.end - begin)
    with workers([tuned, replace(tuned, tuned=False)]) as (there, failed):
        for why in failed.values():
            run.skip([tuned.row("modules")], f"failed: {why}")
        for i, case in enumerate(cases):
            for worker in there:
                shape = "x".join(map(str, case["shape"]))
                about = (case["mode"], shape, case["format"], worker.allocator, asked.threads)
                if not worker.subject.tuned and (case["mode"] == "training" or case["format"] != "contiguous"):
                    continue
                if run.over():
                    run.skip([Row("modules", "all", "all", *about)], "skipped: out of time")
                    continue
                say(f"modules: {' '.join(map(str, about[:4]))} allocator")
                seconds = min(asked.seconds, 0.5 * budget * weights[i] / sum(weights))
                ask = {**case, "seconds": seconds, "rounds": 10 * asked.rounds, "names": names(asked)}
                try:
                    times = worker.ask("modules " + json.dumps(ask))["times"]
                except WorkerError as error:
                    run.skip([Row("modules", "all", "all", *about)], f"failed: {error}")
                    there = [other for other in there if other is not worker]
                    continue
                for label, each in times.items():
                    name, peer = label.split(" ", 1)
                    row = Row("modules", name, peer, *about, peak_mb=worker.peak_mb, base="copy of the map")
                    run.rows.append(fill(row, each, times["map copy"]))


def measure_grouped_conv(run: Run) -> None:
    """Every branch of EPSANet-50 whose convolution can be native, over PyTorch's own convolution."""
    asked = run.asked
    subject = replace(template(asked), name="convolutions", peer="all")
    cases = [(batch, branch, stage) for batch in (16, 1) for branch in BRANCHES for stage in STAGES]
    with workers([subject]) as (there, failed):
        for why in failed.values():
            run.skip([subject.row("grouped-conv")], f"failed: {why}")
        for worker in there:
            say(f"grouped-conv: {len(cases)} convolutions")
            for batch, (kernel, groups), (channels, side) in cases[-1:] if asked.quick else cases:
                name = f"{kernel}x{kernel} in {groups} groups"
                shape = f"{batch}x{channels}x{side}x{side}"
                about = ("inference", shape, "contiguous", worker.allocator, asked.threads)
                if run.over():
                    run.skip([Row("grouped-conv", name, "all", *about)], "skipped: out of time")
                    continue
                ask = {"shape": (batch, channels, side, side), "kernel": kernel, "groups": groups}
                ask |= {"seconds": min(0.4, asked.seconds), "rounds": 5 * asked.rounds}
                times = worker.ask("convolutions " + json.dumps(ask))["times"]
                for peer, each in times.items():
                    row = Row("grouped-conv", name, peer, *about, peak_mb=worker.peak_mb, base="PyTorch's conv2d")
                    run.rows.append(fill(row, each, times["torch"]))


def measure_growth(run: Run) -> None:
    """The primitives' time per element over that of one map in the middle."""
    asked = run.asked
    middle = [2, 16, 4, 4] if asked.quick else [16, 256, 28, 28]
    axes = (
        {0: (1, 2), 1: (8, 16)}
        if asked.quick
        else {
            0: (1, 2, 4, 8, 16, 32, 64),
            1: (64, 128, 256, 512, 1024, 2048),
            2: (7, 14, 28, 56, 112),
        }
    )
    shapes = [middle]
    for axis, sizes in axes.items():
        for size in sizes:
            shape = list(middle)
            shape[axis] = size
            shape[3] = shape[2]
            if shape not in shapes:
                shapes.append(shape)
    subject = replace(template(asked), name="primitives", peer="attendo")
    with workers([subject]) as (there, failed):
        for why in failed.values():
            run.skip([subject.row("growth")], f"failed: {why}")
        for worker in there:
            for threads in sorted({1, asked.threads}):
                say(f"growth: {len(shapes)} maps, {threads} threads")
                for shape in shapes:
                    label = "x".join(map(str, shape))
                    about = ("inference", label, "contiguous", worker.allocator, threads)
                    if run.over():
                        run.skip([Row("growth", "primitives", "attendo", *about)], "skipped: out of time")
                        continue
                    ask = {"shape": shape, "middle": middle, "threads": threads, "rounds": 5 * asked.rounds}
                    ask["seconds"] = min(0.4, asked.seconds)
                    try:
                        times = worker.ask("growth " + json.dumps(ask))["times"]
                    except WorkerError as error:
                        run.skip([Row("growth", "primitives", "attendo", *about)], f"failed: {error}")
                        return
                    base = f"{'x'.join(map(str, middle))}, per element"
                    fewer = math.prod(middle) / math.prod(shape)
                    for name, reference in times["middle"].items():
                        row = Row("growth", name, "attendo", *about, peak_mb=worker.peak_mb, base=base)
                        run.rows.append(fill(row, times["map"].get(name, reference), reference, fewer))


SECTIONS: dict[str, Callable[[Run], None]] = {
    "out-of-the-box": measure_out_of_the_box,
    "networks": measure_networks,
    "modules": measure_modules,
    "epsanet": measure_epsanet,
    "inserted": measure_inserted,
    "grouped-conv": measure_grouped_conv,
    "growth": measure_growth,
    "compiled": measure_compiled,
}


# What follows until the tables runs in the workers.


def build(subject: Subject) -> nn.Module:
    """Make a network."""
    import timm

    import attendo
    from attendo.insertion import insert

    if subject.name == "plain":
        return timm.create_model(subject.network)
    if subject.peer == INSERTED:
        model = timm.create_model(subject.network)
        insert(model, subject.name)
        for name, parameter in model.named_parameters():
            if name.endswith(".alpha"):  # as if trained: it starts at 0
                parameter.data.fill_(0.5)
        return model
    if subject.name not in NAMES:
        return attendo.create_model(subject.name)
    if subject.peer == "timm":
        return timm.create_model(subject.network, block_args={"attn_layer": subject.name})
    return attendo.create_model(subject.network, attention=subject.name)


def network_step(subject: Subject) -> Callable[[], object]:
    """Make a network and its batch; return a step of it: forward, or one of SGD."""
    import torch
    import torch.nn.functional as F

    torch.manual_seed(0)
    layout = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[subject.format]
    model = build(subject).to(memory_format=layout)
    images = torch.randn(subject.batch, 3, subject.side, subject.side).contiguous(memory_format=layout)
    if subject.mode == "training":
        labels = torch.randint(1000, (subject.batch,))
        optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        model.train()

        def train() -> None:
            F.cross_entropy(model(images), labels).backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

        return train
    model.eval()
    forward = model
    if subject.compiled:
        import torch._inductor.config as inductor

        inductor.freezing = True
        forward = torch.compile(model, backend="eager" if subject.quick else "inductor")

    def infer() -> None:
        with torch.no_grad():
            forward(images)

    return infer


def take_turns(
    variants: dict[str, Callable[[], object]], before: Callable[[], object], seconds: float, rounds: int
) -> dict[str, list[float]]:
    """Run variants in turns, another one first in every round; milliseconds of each call.

    Args:
        variants: what to run.
        before: what to run before each, without its time.
        seconds: after which no round is begun, but for the first three.
        rounds: at most so many.
    """
    order = list(variants)
    for call in variants.values():
        before()
        call()
    times: dict[str, list[float]] = {label: [] for label in variants}
    begin, done = time.perf_counter(), 0
    while done < MIN_ROUNDS or (done < rounds and time.perf_counter() - begin < seconds):
        for label in order:
            before()
            start = time.perf_counter()
            variants[label]()
            times[label].append(1000 * (time.perf_counter() - start))
        order.append(order.pop(0))
        done += 1
    return times


def run_modules(subject: Subject, ask: dict[str, Any]) -> dict[str, list[float]]:
    """Measure all modules on one map; milliseconds of each by "name peer"."""
    import torch

    torch._dynamo.reset()  # or it would generalise over shapes
    torch.manual_seed(0)
    layout = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[ask["format"]]
    source = torch.randn(ask["shape"]).contiguous(memory_format=layout)
    training = ask["mode"] == "training"
    x, y = torch.empty_like(source).copy_(source).requires_grad_(training), torch.empty_like(source)
    up = torch.randn_like(source) if training else None
    variants: dict[str, Callable[[], object]] = {"map copy": partial(y.copy_, x.detach())}
    for name in ask["names"]:
        for peer, call in module_calls(name, x, up, subject).items():
            variants[f"{name} {peer}"] = call

    def restore() -> None:
        with torch.no_grad():
            x.copy_(source)

    with torch.set_grad_enabled(training):
        return take_turns(variants, restore, ask["seconds"], ask["rounds"])


def module_calls(name: str, x: Tensor, up: Tensor | None, subject: Subject) -> dict[str, Callable[[], object]]:
    """Calls of one mechanism in every variant: inference, or forward and backward where there is a gradient."""
    import torch
    import torchvision
    from timm.layers import create_attn

    import attendo
    from attendo import kernels

    channels = x.shape[1]
    ours, timms = attendo.layer(name, channels), create_attn(name, channels)
    others = {"timm": timms}
    if name == "se":
        others["torchvision"] = torchvision.ops.SqueezeExcitation(channels, channels // 16)
    for module in (ours, *others.values()):
        module.train(up is not None)

    def step(module: nn.Module) -> object:
        if up is None:
            return module(x)
        x.grad = None
        module.zero_grad(set_to_none=True)
        return module(x).backward(up)

    def definition() -> object:
        with kernels.use("reference"):
            return step(ours)

    calls: dict[str, Callable[[], object]] = {"attendo": partial(step, ours), "attendo definition": definition}
    if up is None:
        calls["attendo in place"] = partial(ours.recalibrate, x, inplace=True)
    for peer, module in others.items():
        calls[peer] = partial(step, module)
    if up is None and (subject.quick or (x.shape[0], channels) in COMPILED_MODULES):
        backend = "eager" if subject.quick else "inductor"
        calls["timm compiled"] = partial(step, torch.compile(timms, backend=backend))
    return calls


def run_convolutions(ask: dict[str, Any]) -> dict[str, list[float]]:
    """Measure one grouped convolution, PyTorch's own and ours."""
    import torch
    import torch.nn.functional as F

    from attendo.functional import grouped_conv

    x, kernel, groups = torch.randn(ask["shape"]), ask["kernel"], ask["groups"]
    channels = x.shape[1]
    weight = torch.randn(channels // 4, channels // groups, kernel, kernel)
    variants = {
        "torch": lambda: F.conv2d(x, weight, padding=kernel // 2, groups=groups),
        "attendo": lambda: grouped_conv(x, weight, 1, groups),
    }
    with torch.no_grad():
        return take_turns(variants, lambda: None, ask["seconds"], ask["rounds"])


def run_growth(ask: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Measure the primitives on a map and on the one in the middle."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(ask["threads"])
    try:
        variants = {}
        maps = {"middle": ask["middle"]}
        if ask["shape"] != ask["middle"]:  # which is its own base
            maps["map"] = ask["shape"]
        for which, shape in maps.items():
            for name, call in primitive_calls(torch.randn(shape)).items():
                variants[f"{which} {name}"] = call
        with torch.no_grad():
            times = take_turns(variants, lambda: None, ask["seconds"], ask["rounds"])
    finally:
        torch.set_num_threads(before)
    found: dict[str, dict[str, list[float]]] = {"map": {}, "middle": {}}
    for label, each in times.items():
        which, name = label.split(" ", 1)
        found[which][name] = each
    return found


def primitive_calls(x: Tensor) -> dict[str, Callable[[], object]]:
    """Every primitive on a map."""
    import torch

    from attendo.functional import channel_stats, recalibrate, spatial_stats

    samples, channels, height, width = x.shape
    channel, spatial = torch.rand(samples, channels, 1, 1), torch.rand(samples, 1, height, width)
    residual = torch.randn_like(x)
    return {
        "channel_stats": lambda: channel_stats(x),
        "spatial_stats": lambda: spatial_stats(x, channel),
        "recalibrate": lambda: recalibrate(x, (channel,)),
        "recalibrate both residual relu": lambda: recalibrate(x, (channel, spatial), residual, True),
    }


def work(subject: Subject) -> int:
    """Answer commands until there are none: ``step n``, ``modules {...}``, ``convolutions {...}``, ``growth {...}``."""
    import resource

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer

    def answer(**more: Any) -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak_mb = usage / (1e6 if sys.platform == "darwin" else 1e3 / 1.024)
        answers.write(json.dumps({"peak_mb": peak_mb, **more}) + "\n")
        answers.flush()

    import torch

    import attendo
    from attendo import kernels

    torch.set_num_threads(subject.threads)
    done = subject.tuned and attendo.tune_allocator()
    if subject.reference:
        kernels.use("reference")
    step: Callable[[], object] = lambda: None  # noqa: E731 - of those that have no network
    if subject.name not in ("modules", "convolutions", "primitives"):
        step = network_step(subject)
        if subject.compiled:
            step()  # compiling, at the same time as the others
    answer(allocator="tuned" if done else "default")
    for line in sys.stdin:
        command, argument = line.rstrip("\n").split(" ", 1)
        if command == "step":
            answer(ms=timed(step, int(argument)))
        elif command == "modules":
            answer(times=run_modules(subject, json.loads(argument)))
        elif command == "convolutions":
            answer(times=run_convolutions(json.loads(argument)))
        else:
            answer(times=run_growth(json.loads(argument)))
    return 0


def timed(step: Callable[[], object], count: int) -> list[float]:
    """Run steps; milliseconds of each."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        step()
        times.append(1000 * (time.perf_counter() - start))
    return times


# What becomes of the numbers.


@dataclass(frozen=True)
class Target:
    """A ratio to reach, and the rows that it is about."""

    says: str
    bound: float
    section: str
    name: str
    peer: str
    shape: str
    mode: str = "inference"
    at_least: bool = False

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """Find what was measured of it, tuned where both allocator settings were, and contiguous first."""
        key = (self.section, self.name, self.peer, self.shape, self.mode)
        found = [row for row in rows if (row.section, row.name, row.peer, row.shape, row.mode) == key]
        found = [row for row in found if row.ratio is not None and (row.allocator == "tuned" or self.at_least)]
        return sorted(found, key=lambda row: FORMATS.index(row.format))

    def met(self, row: Row) -> bool:
        """Whether a row reaches it."""
        return row.ratio >= self.bound if self.at_least else row.ratio <= self.bound


def targets() -> list[Target]:
    """The targets of the CPU kernels: speed-up over timm's, and time as a multiple of the base's."""
    sixteen, one, eight = (f"{batch}x3x224x224" for batch in (16, 1, 8))
    found = [
        Target(
            f"out of the box, batch 16, {name}: speed-up", bound, "out-of-the-box", name, "timm", sixteen, at_least=True
        )
        for name, bound in (("cbam", 2.0), ("se", 1.95))
    ]
    bounds = (
        ("networks", "eager, batch 16", sixteen, "inference", (1.01, 1.00, 1.05)),
        ("networks", "eager, batch 1", one, "inference", (1.03, 1.02, 1.08)),
        ("compiled", "compiled, batch 16", sixteen, "inference", (1.04, 1.04, 1.08)),
        ("networks", "training step, batch 8", eight, "training", (1.02, None, 1.12)),
    )
    for section, says, shape, mode, each in bounds:
        for name, bound in zip(NAMES, each, strict=True):
            if bound is not None:
                found.append(Target(f"{says}, {name} / plain", bound, section, name, "attendo", shape, mode))
    for name, bound in (("se", 1.8), ("cbam", 3.5)):
        says = f"module 32x256x56x56, {name} in place / copy"
        found.append(Target(says, bound, "modules", name, "attendo in place", "32x256x56x56"))
    for batch, shape in ((16, sixteen), (1, one)):
        for says, section in (("", "epsanet"), (", compiled", "compiled")):
            found.append(
                Target(f"EPSANet-50 / plain, batch {batch}{says}", 1.3, section, "epsanet50_small", "attendo", shape)
            )
    return found


def target_table(rows: Sequence[Row]) -> str:
    """Say of every target what was measured, in each memory format."""
    lines = [f"{'targets':<44}{'wanted':>9}  measured (quartiles)"]
    for target in targets():
        said = [
            f"{row.ratio:.3f} ({row.ratio_lower:.3f} to {row.ratio_upper:.3f}) {row.format}: "
            f"{'met' if target.met(row) else 'MISSED'}"
            for row in target.rows(rows)
        ]
        wanted = f"{'>=' if target.at_least else '<='} {target.bound:.2f}"
        lines.append(f"{target.says:<44}{wanted:>9}  {', '.join(said) or 'not measured'}")
    return "\n".join(lines)


def table(rows: Sequence[Row]) -> str:
    """Say in a line each what was measured, a paragraph per case."""
    lines, case = [], None
    for row in rows:
        if case != (now := (row.section, row.mode, row.shape, row.format, row.threads)):
            case = now
            lines.append(f"{row.section}: {row.mode}, {row.shape}, {row.format}, {row.threads} threads")
        start = f"    {row.name:<31}{row.peer:<19}{row.allocator:<9}"
        if row.median_ms is None or row.ratio is None:
            lines.append(f"{start}{row.note}")
            continue
        spread = f"({row.ratio_lower:.3f} to {row.ratio_upper:.3f})"
        memory = f"{row.peak_mb:,.0f} MB" if row.peak_mb is not None else ""
        lines.append(f"{start}{row.median_ms:>10.3f} ms{row.ratio:>9.3f} {spread:<21}{memory:>10}  over {row.base}")
    return "\n".join(lines)


def processor() -> str:
    """Name the CPU."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def environment() -> dict[str, str]:
    """What the numbers were made on and with."""
    versions = {package: importlib.metadata.version(package) for package in ("torch", "timm", "torchvision", "attendo")}
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {"machine": f"{processor()}, {os.cpu_count()} CPUs", **versions, "date": date}


def write_csv(path: Path, rows: Sequence[Row], made_on: dict[str, str]) -> None:
    """Write all rows, each with its environment."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [column.name for column in fields(Row)] + list(made_on))
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in (asdict(row) | made_on).items()} for row in rows
        )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--minutes", type=float, default=14.0, help="shared out among the sections")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each network, and for a case of modules")
    parser.add_argument(
        "--rounds", type=int, default=9, help="of networks, at most; modules have up to 10 times as many"
    )
    parser.add_argument("--threads", type=int, default=available(), help="of every process")
    parser.add_argument("--csv", type=Path, default=Path("cpu.csv"), help="where all numbers go")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script out")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if unknown := [section for section in asked.sections if section not in SECTIONS]:
        parser.error(f"no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    for name in ("threads", "rounds"):
        if getattr(asked, name) < 1:
            parser.error(f"--{name} {getattr(asked, name)}: it must be at least 1")
    if asked.quick:
        asked.seconds, asked.rounds = min(asked.seconds, 0.01), min(asked.rounds, MIN_ROUNDS)
    return asked


def available() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write; return the exit code."""
    asked = parse(arguments)
    if asked.worker is not None:
        return work(Subject(**asked.worker))
    made_on = environment()
    say(", ".join(f"{name} {value}" for name, value in made_on.items()))
    run = Run(asked)
    end = time.monotonic() + 60 * asked.minutes
    left = [section for section in SECTIONS if section in asked.sections or not asked.sections]
    while left:
        share = SHARES[left[0]] / sum(SHARES[section] for section in left)  # what one saves, the others have
        run.end = time.monotonic() + share * max(0.0, end - time.monotonic())
        before, begin = len(run.rows), time.monotonic()
        section = left.pop(0)
        try:
            SECTIONS[section](run)
        finally:  # what there is, should the rest fail
            write_csv(asked.csv, run.rows, made_on)
            say(f"\n{table(run.rows[before:])}\n{section}: {time.monotonic() - begin:.0f} s\n")
    say(target_table(run.rows))
    say(f"all numbers: {asked.csv}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
