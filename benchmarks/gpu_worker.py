"""Measure a section of benchmarks/gpu.py, which starts this in a process of its own: a kernel can break all of it.

It is given a line of JSON (``Ask``) and writes lines of JSON: the ``cases`` there are, which variant it is ``trying``,
the ``times`` of a case in milliseconds or a ``note`` in their place, which case is ``done``, and the ``end``. A process
that ends without it has died of what it was trying.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.layers import create_attn
from torch import Tensor, nn

import attendo
from attendo import kernels
from attendo.insertion import insert
from attendo.kernels import selection

NAMES = ("se", "eca", "cbam")
MAPS = ((256, 56), (512, 28), (1024, 14), (2048, 7))  # channels, side
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
OUT_OF_TIME = "skipped: out of time"


@dataclass(frozen=True)
class Ask:
    """What to measure, and for how long.

    Args:
        section: a key of ``planned``, or "persistent" to compare attentions in one launch and nothing else.
        device: "cuda", or "cpu" to try the script out.
        batch: samples of modules and networks.
        seconds: for each variant.
        quick: tiny sizes.
        first: index of the case to begin with.
        without: variants to leave out of that case.
        never: variants to leave out of all.
        end: by ``time.monotonic``, which all processes share; nothing is begun after it.
    """

    section: str
    device: str = "cuda"
    batch: int = 256
    seconds: float = 0.15
    quick: bool = False
    first: int = 0
    without: Sequence[str] = ()
    never: Sequence[str] = ()
    end: float = float("inf")

    @property
    def maps(self) -> tuple[tuple[int, int], ...]:
        """Channels and side of all maps."""
        return ((32, 4), (48, 2)) if self.quick else MAPS

    def compile(self, module: nn.Module) -> nn.Module:
        """Compile a module, or only trace it."""
        return torch.compile(module, backend="eager" if self.quick else "inductor")


@dataclass(frozen=True)
class Case:
    """What is measured in turns: variants on a map of one size, or networks on a batch of images."""

    section: str
    name: str  # of a mechanism or a network
    batch: int
    channels: int
    side: int
    layout: str = "channels_last"
    dtype: str = "bfloat16"
    compiled: bool = False

    @property
    def label(self) -> str:
        """Say it in a few characters."""
        shape = f"{self.batch}x{self.channels}x{self.side}x{self.side}"
        return " ".join(filter(None, (self.name, "compiled" * self.compiled, shape, self.dtype, self.layout)))

    def random(self, device: str) -> Tensor:
        """Make a map, or images."""
        shape = (self.batch, self.channels, self.side, self.side)
        x = torch.randn(shape, device=device, dtype=getattr(torch, self.dtype))
        return x.contiguous(memory_format=LAYOUTS[self.layout])


def planned(ask: Ask) -> dict[str, list[Case]]:
    """List all cases by section, those that matter most first."""
    network = ("resnet18", ask.batch, 3, 32) if ask.quick else ("resnet50", ask.batch, 3, 224)
    sizes = [(name, ask.batch, *size) for size in ask.maps for name in NAMES]
    large = [(size, layout, "bfloat16") for layout in LAYOUTS for size in ask.maps]
    large += [(ask.maps[0], layout, dtype) for dtype in ("float16", "float32") for layout in LAYOUTS]
    return {
        "networks": [Case("networks", *network)],
        "inference": [Case("inference", *size) for size in sizes],
        "primitives": [
            Case("primitives", "", ask.batch * (4 if dtype == "float32" else 8), *size, layout, dtype)
            for size, layout, dtype in large
        ],
        "modules": [Case("modules", *size) for size in sizes],
        "compiled": [Case("networks", *network, compiled=True)],
    }


class Clock:
    """Time and memory on one device, and how much time is left.

    Args:
        device: "cuda", or "cpu" to try the script out.
        end: by ``time.monotonic``, which all processes share; nothing new is begun after it.
    """

    def __init__(self, device: str, end: float) -> None:
        self.device, self.end = device, end

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
        """Wait for the device; raises where a kernel has broken it, and then it does so for ever."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def warm(self, make: Callable[[], Callable[[], object]]) -> tuple[Callable[[], object], float | None]:
        """Build a variant and run it until it is warm; return it, and the megabytes that it takes at most."""
        before = torch.cuda.memory_allocated() if self.device == "cuda" else 0
        call = make()
        for _ in range(3):
            call()
        self.synchronize()
        if self.device == "cpu":
            return call, None
        torch.cuda.reset_peak_memory_stats()
        call()
        self.synchronize()
        return call, (torch.cuda.max_memory_allocated() - before) / 1e6

    def race(self, variants: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
        """Run warm variants in turns, about so long each, at least 3 and at most 100 rounds; milliseconds of each."""
        begin = time.perf_counter()
        for call in variants.values():
            call()
        self.synchronize()
        budget = min(seconds * len(variants), max(0.0, self.end - time.monotonic()))
        rounds = max(3, min(100, int(budget / (time.perf_counter() - begin))))
        pending: dict[str, list[Callable[[], float]]] = {name: [] for name in variants}
        for _ in range(rounds):
            for name, call in variants.items():
                pending[name].append(self.once(call))
        self.synchronize()
        return {name: [read() for read in reads] for name, reads in pending.items()}


class NoKernel(Exception):
    """There is nothing of ours to measure here."""


class Variant(NamedTuple):
    """What builds a call, and how many times the call has to read or write a map at least."""

    make: Callable[[], Callable[[], object]]
    maps: int = 0


def by(choice: str, call: Callable[[], object]) -> Callable[[], object]:
    """Run a call with other kernels."""

    def run() -> object:
        with kernels.use(choice):
            return call()

    return run


def train(module: nn.Module, x: Tensor, up: Tensor) -> None:
    """Forward and backward, the gradients of x and of all weights."""
    x.grad = None
    module.zero_grad(set_to_none=True)
    module(x).backward(up)


def infer(module: nn.Module, x: Tensor) -> Tensor:
    """Forward, for its result alone."""
    with torch.no_grad():
        return module(x)


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


def inserted(network: str, name: str, side: int) -> nn.Module:
    """Insert attention into timm's network; at first it computes what it did."""
    model = timm.create_model(network)
    insert(model, name, input_size=(3, side, side))
    return model


def network_variants(case: Case, ask: Ask) -> dict[str, Variant]:
    """A training step of the plain network, ours, and, eager, ours inserted and timm's."""
    made: dict[str, Callable[[], nn.Module]] = {"plain": partial(timm.create_model, case.name)}
    made |= {f"attendo {name}": partial(attendo.create_model, case.name, attention=name) for name in NAMES}
    if not case.compiled:
        made |= {f"attendo inserted {name}": partial(inserted, case.name, name, case.side) for name in NAMES}
        timms = partial(timm.create_model, case.name)
        made |= {f"timm {name}": partial(timms, block_args={"attn_layer": name}) for name in NAMES}
    images = replace(case, dtype="float32").random(ask.device)
    labels = torch.randint(1000, (case.batch,), device=ask.device)

    def step(make: Callable[[], nn.Module]) -> Callable[[], None]:
        model = make().to(ask.device, memory_format=torch.channels_last).train()
        return training_step(ask.compile(model) if case.compiled else model, images, labels)

    return {name: Variant(partial(step, make)) for name, make in made.items()}


def module_variants(case: Case, ask: Ask) -> dict[str, Variant]:
    """One module in every variant: forward, or forward and backward."""
    training = case.section == "modules"
    x = case.random(ask.device).requires_grad_(training)
    timms, ours = create_attn(case.name, case.channels), attendo.layer(case.name, case.channels)
    for module in (timms, ours):
        module.to(x.device, x.dtype).train(training)
    step = partial(train, x=x, up=torch.randn_like(x)) if training else partial(infer, x=x)
    variants = {
        "timm": Variant(lambda: partial(step, timms)),
        "attendo": Variant(lambda: partial(step, ours)),
        "timm compiled": Variant(lambda: partial(step, ask.compile(timms))),
    }
    if not training:
        return variants | {"attendo persistent": Variant(lambda: by("persistent", partial(step, ours)))}
    variants["attendo compiled"] = Variant(lambda: partial(step, ask.compile(ours)))
    if (case.channels, case.side) in (ask.maps[0], ask.maps[-1]):  # compiling takes seconds each
        plain = copy.deepcopy(ours)
        variants["attendo inductor"] = Variant(lambda: by("reference", partial(step, ask.compile(plain))))
    return variants


def primitive_variants(case: Case, ask: Ask) -> dict[str, Variant]:
    """A copy of the map, every primitive and every gradient."""
    x = case.random(ask.device)
    if refused := selection.refusal(x):
        raise NoKernel(f"no kernel: {refused}")
    calls = selection.find(x)
    new = partial(torch.rand, device=x.device, dtype=x.dtype)
    channel, spatial = new(case.batch, case.channels, 1, 1), new(case.batch, 1, case.side, case.side)
    up, residual = torch.randn_like(x), torch.randn_like(x)
    mean, maximum, count = calls.channel_stats(x, ties=True)
    stats, ties = calls.spatial_stats(x, channel, ties=True)
    out = calls.recalibrate(x, channel, spatial, residual, True)
    one, two, all_four = (True, True, False, False), (True, True, True, False), (True, True, True, True)
    back, target = calls.recalibrate_backward, torch.empty_like(x)
    made: dict[str, tuple[int, Callable[[], object]]] = {
        "copy": (2, lambda: target.copy_(x)),
        "channel_stats": (1, lambda: calls.channel_stats(x, ties=True)),
        "channel_stats backward": (2, lambda: calls.channel_stats_backward(mean, maximum, x, maximum, count)),
        "spatial_stats": (1, lambda: calls.spatial_stats(x, channel, ties=True)),
        "spatial_stats backward": (2, lambda: calls.spatial_stats_backward(stats, x, channel, stats, ties)),
        "recalibrate channel": (2, lambda: calls.recalibrate(x, channel, None, None, False)),
        "recalibrate both": (2, lambda: calls.recalibrate(x, channel, spatial, None, False)),
        "recalibrate residual relu": (3, lambda: calls.recalibrate(x, channel, spatial, residual, True)),
        "recalibrate channel backward": (3, lambda: back(up, x, channel, None, None, one)),
        "recalibrate both backward": (3, lambda: back(up, x, channel, spatial, None, two)),
        "recalibrate residual relu backward": (5, lambda: back(up, x, channel, spatial, out, all_four)),
    }
    return {name: Variant(lambda call=call: call, maps) for name, (maps, call) in made.items()}


VARIANTS: dict[str, Callable[[Case, Ask], dict[str, Variant]]] = {
    "networks": network_variants,
    "inference": module_variants,
    "primitives": primitive_variants,
    "modules": module_variants,
}


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


class Worker:
    """Measures cases, and says so.

    Args:
        ask: what to measure.
        say: takes what is said.
    """

    def __init__(self, ask: Ask, say: Callable[..., None]) -> None:
        self.ask, self.say, self.clock = ask, say, Clock(ask.device, ask.end)

    def run(self) -> None:
        """Measure a section, until the time is over."""
        cases = planned(self.ask)[self.ask.section]
        self.say(cases=[(case.section, case.label) for case in cases])
        for i, case in enumerate(cases):
            if i < self.ask.first:
                continue
            if self.clock.over():
                break
            without = [*self.ask.never, *(self.ask.without if i == self.ask.first else ())]
            self.fit(case, without)
            self.empty()
            self.say(done=i)
        self.say(end=True)

    def fit(self, case: Case, without: Sequence[str] = ()) -> None:
        """Measure a case, with half as many samples as long as it does not fit into memory."""
        while not self.attempt(case, without):
            self.empty()  # out of the reach of what was raised, which holds tensors
            case = replace(case, batch=case.batch // 2)

    def attempt(self, case: Case, without: Sequence[str]) -> bool:
        """Measure a case or note why not; False if fewer samples could do."""
        torch._dynamo.reset()  # or it would generalise over shapes
        try:
            self.measure(case, without)
        except NoKernel as error:
            self.note(case, str(error))
        except torch.OutOfMemoryError:
            fewer = case.batch > 1
            self.note(case, "failed: out of memory" + "; half as many samples follow" * fewer)
            return not fewer
        except Exception as error:  # noqa: BLE001 - the other cases are worth having
            self.clock.synchronize()
            self.note(case, fault(error))
        return True

    def measure(self, case: Case, without: Sequence[str]) -> None:
        """Measure all variants of a case but some, in turns."""
        variants = VARIANTS[case.section](case, self.ask)
        calls, peaks = self.begin(case, {name: each for name, each in variants.items() if name not in without})
        seconds = self.ask.seconds * (20 if case.section == "networks" else 1)
        times = self.clock.race(calls, seconds)
        refused = selection.refusal(Case("", "", 1, 8, 2).random(self.ask.device))
        maps = {name: variants[name].maps for name in times if variants[name].maps}
        self.tell(case, times, megabytes=peaks, maps=maps, note=f"no kernel: {refused}" if refused else "")
        if case.section in ("inference", "modules") and not self.clock.over():
            self.replay(case, calls)

    def begin(self, case: Case, variants: dict[str, Variant]) -> tuple[dict[str, Any], dict[str, float | None]]:
        """Build and warm what can be; note why the others cannot."""
        calls, peaks = {}, {}
        for name, variant in variants.items():
            if self.clock.over():
                self.note(case, OUT_OF_TIME, name)
                continue
            self.say(trying=name)
            try:
                calls[name], peaks[name] = self.clock.warm(variant.make)
            except Exception as error:
                self.clock.synchronize()  # or raise, and end: the next process goes on without this variant
                if isinstance(error, torch.OutOfMemoryError) and not name.startswith("timm"):
                    raise
                self.note(case, fault(error), name)
        self.say(trying=None)
        return calls, peaks

    def replay(self, case: Case, calls: dict[str, Callable[[], object]]) -> None:
        """Measure the same from CUDA graphs."""
        graphs = {}
        for name, call in calls.items():
            try:
                graphs[name] = captured(call, self.ask.device)
            except Exception as error:  # noqa: BLE001 - not everything can be captured
                self.clock.synchronize()
                self.note(case, f"no graph: {fault(error)}", name, " graph")
        self.tell(case, self.clock.race(graphs, self.ask.seconds), " graph")

    def note(self, case: Case, note: str, variant: str = "all", way: str = "") -> None:
        """Say why there are no times."""
        self.say(case=(case.section, case.label + way), note=note, variant=variant)

    def tell(self, case: Case, times: dict[str, list[float]], way: str = "", **more: Any) -> None:
        """Say what the times are."""
        self.say(case=(case.section, case.label + way), times=times, **more)

    def empty(self) -> None:
        """Give memory back."""
        gc.collect()
        if self.ask.device == "cuda":
            torch.cuda.empty_cache()


def try_persistent(ask: Ask) -> int:
    """Compare attentions in one launch with the definition in float32, and with themselves; return the exit code."""
    for case in planned(ask)["inference"]:
        x = case.random(ask.device)
        layer = attendo.layer(case.name, case.channels).to(x.device, x.dtype).eval()
        want = by("reference", partial(infer, copy.deepcopy(layer).float(), x.float()))()
        call = by("persistent", partial(infer, layer, x))
        results = [call() for _ in range(10)]
        if not torch.allclose(results[0].float(), want, rtol=2**-6, atol=2**-7):
            print(f"{case.label}: one launch computes something else")
            return 1
        if not all(torch.equal(result, results[0]) for result in results):
            print(f"{case.label}: one launch does not give the same bits every time")
            return 1
    return 0


def fault(error: BaseException) -> str:
    """Say in a line what was raised."""
    return f"failed: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def follow_parent() -> None:
    """End this process and its group when its parent is gone, however that went."""

    def follow(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.killpg(0, signal.SIGKILL)

    if os.getpgrp() == os.getpid():  # or the group is someone else's
        threading.Thread(target=follow, args=(os.getppid(),), daemon=True).start()


def pytest_configure(config: Any) -> None:
    """Serve the GPU tests as a plugin: what fails says so at once, and nothing outlives benchmarks/gpu.py."""
    from hypothesis import Phase, settings

    settings.register_profile("gpu", phases=[Phase.explicit, Phase.generate])  # shrinking takes up to five minutes
    settings.load_profile("gpu")
    follow_parent()


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Let the long tests, which compile for each example, be every second one: a process begins with two."""
    mine = [item for item in items if item.get_closest_marker("gpu")]
    long = [item for item in mine if getattr(item.obj, "is_hypothesis_test", False)]
    items[:] = [item for item in mine if item not in long]
    for i, item in enumerate(long):
        items.insert(2 * i, item)


def main(arguments: Sequence[str]) -> int:
    """Measure what a line of JSON asks for; return the exit code."""
    ask = Ask(**json.loads(arguments[0]))
    if ask.section == "persistent":
        return try_persistent(ask)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer

    def say(**what: Any) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    torch.manual_seed(0)
    Worker(ask, say).run()
    return 0


if __name__ == "__main__":
    follow_parent()
    sys.exit(main(sys.argv[1:]))
