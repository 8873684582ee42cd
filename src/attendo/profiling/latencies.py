"""How long a network takes: the median and its spread, with everything that the number depends on.

Several networks are measured in turns, one sample each per round and another one first in every round, so that whatever
else the machine does hits all alike. Ratios to the first network are therefore steadier than the times themselves.
Of 40 comparisons of a ResNet-18 with itself or its copy (20 rounds, 3 x 64 x 64, one core of a busy AMD EPYC, November
2026), 39 intervals held the ratio 1; the ratios ran from 0.95 to 1.20, the wider ones with wide intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attendo.profiling._checks import Size
from attendo.profiling._format import by, plain, table
from attendo.profiling._turns import Plan, Run, plan, take_turns

STEADY = 0.25  # of a median, which is known to about 12 % if the quartiles of 15 samples are as far apart as that
RESAMPLES = 2000  # of the bootstrap; its quantiles then vary by a few percent of the interval's width


def is_steady(median_ms: float, iqr_ms: float) -> bool:
    """Return whether a median says how fast a network is, and not how busy the machine was."""
    return not iqr_ms > STEADY * median_ms  # nan is a spread that nobody knows


def busy(names: Sequence[str]) -> str:
    """Return what is to be known of the latencies of these networks, which are not steady; "" if there are none."""
    if not names:
        return ""
    return (
        f"The machine was busy when the latency of {', '.join(names)} was measured: the middle half of the times "
        f"spreads over more than {100 * STEADY:.0f} % of their median, which therefore says little. Measure again when "
        f"the machine rests."
    )


@dataclass(frozen=True)
class Latency:
    """The time of one step.

    Attributes:
        median_ms: of all samples, milliseconds per step (a whole batch).
        quartiles_ms: the first and third quartile; half of all samples lie between them.
        samples_ms: the samples, in the order they were taken.
        calls_per_sample: steps in one sample, of which it is the mean.
        warm_up: steps that ran before the first sample.
        input_size: of one image.
        batch_size: images in the batch.
        training: whether a step is forward and backward in train mode, or forward in eval mode without gradients.
        device: where the model is.
        dtype: of its parameters and of the batch.
        memory_format: of its convolutions and of the batch, ``"contiguous"`` or ``"channels_last"``.
        threads: of torch, within one operator.
        torch_version: of torch.
    """

    median_ms: float
    quartiles_ms: tuple[float, float]
    samples_ms: tuple[float, ...] = field(repr=False)
    calls_per_sample: int
    warm_up: int
    input_size: tuple[int, ...]
    batch_size: int
    training: bool
    device: str
    dtype: str
    memory_format: str
    threads: int
    torch_version: str

    @property
    def iqr_ms(self) -> float:
        """The interquartile range."""
        return self.quartiles_ms[1] - self.quartiles_ms[0]

    @property
    def steady(self) -> bool:
        """Whether the median says how fast the network is; if not, the machine was busy: measure again."""
        return is_steady(self.median_ms, self.iqr_ms)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as JSON can hold them."""
        return dict(plain(self))

    def __str__(self) -> str:
        return f"median {self.median_ms:.4g} ms, {_spread(self)}; {_conditions(self)}"


@dataclass(frozen=True)
class Ratio:
    """A ratio of two medians, and the interval that holds 95 % of its values when the rounds are drawn again."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class LatencyComparison:
    """Latencies of networks measured in turns.

    Attributes:
        latencies: by name, in the order given.
        ratios: by name, to the first network; the interval is a bootstrap over the rounds.
    """

    latencies: dict[str, Latency]
    ratios: dict[str, Ratio]

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as JSON can hold them."""
        return dict(plain(self))

    def __str__(self) -> str:
        first = next(iter(self.latencies))
        rows = [
            (name, f"{latency.median_ms:.4g} ms", _spread(latency), str(self.ratios[name]))
            for name, latency in self.latencies.items()
        ]
        header = ("model", "median", "spread", f"ratio to {first} [95 %]")
        unsteady = busy([name for name, latency in self.latencies.items() if not latency.steady])
        notice = f"\n{unsteady}" if unsteady else ""
        return f"{table(header, rows)}\n\n{_conditions(self.latencies[first])}{notice}"


def latency(
    model: nn.Module,
    input_size: Size = (3, 224, 224),
    batch_size: int = 1,
    training: bool = False,
    threads: int | None = None,
    repeats: int = 20,
    min_seconds: float = 1.0,
    warm_up: int = 3,
) -> Latency:
    """Measure how long one step of a network takes; the network is left as it was. See ``compare_latency``."""
    name = type(model).__name__
    settings = (input_size, batch_size, training, threads, repeats, min_seconds, warm_up)
    return compared(plan("latency", {name: model}, *settings)).latencies[name]


def compare_latency(
    models: Mapping[str, nn.Module],
    input_size: Size = (3, 224, 224),
    batch_size: int = 1,
    training: bool = False,
    threads: int | None = None,
    repeats: int = 20,
    min_seconds: float = 1.0,
    warm_up: int = 3,
) -> LatencyComparison:
    """Measure networks in turns, and their ratios to the first; they are left as they were.

    A sample is one step, or as many as last a millisecond. The batch is noise in the dtype, on the device and in the
    memory format of the model. Training steps end with the gradients; they do not update. Compiled models run compiled.

    Args:
        models: networks by name; the first is the one that the others are compared with.
        input_size: of one image, without the batch: (channels, height, width).
        batch_size: images in the batch.
        training: forward and backward in train mode, instead of forward in eval mode without gradients.
        threads: of torch within one operator, for the measurement; None leaves what is set.
        repeats: samples per network, at least.
        min_seconds: seconds of samples per network, at least.
        warm_up: steps before the first sample, at least 1.

    Raises:
        InvalidArgument: no models, one that is not an nn.Module, a number that is not positive, or a size that a model
            cannot take.
    """
    settings = (input_size, batch_size, training, threads, repeats, min_seconds, warm_up)
    return compared(plan("compare_latency", models, *settings))


def compared(planned: Plan) -> LatencyComparison:
    """Measure what was planned."""
    runs = take_turns(planned)
    samples = {name: torch.tensor(run.samples_ms, dtype=torch.float64) for name, run in runs.items()}
    first = next(iter(samples.values()))
    return LatencyComparison(
        latencies={name: _latency(run, samples[name], planned) for name, run in runs.items()},
        ratios={name: _ratio(taken, first) for name, taken in samples.items()},
    )


def _latency(run: Run, samples: Tensor, planned: Plan) -> Latency:
    first, median, third = torch.quantile(samples, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return Latency(
        median_ms=median,
        quartiles_ms=(first, third),
        samples_ms=tuple(run.samples_ms),
        calls_per_sample=run.calls,
        warm_up=run.warm_up,
        input_size=planned.input_size,
        batch_size=planned.batch_size,
        training=planned.training,
        device=str(run.place.device),
        dtype=str(run.place.dtype).removeprefix("torch."),
        memory_format=run.place.memory_format,
        threads=planned.threads,
        torch_version=str(torch.__version__),
    )


def _ratio(samples: Tensor, base: Tensor) -> Ratio:
    """Return the ratio of two medians with the 95 % interval of a bootstrap that draws whole rounds."""
    rounds = len(samples)
    drawn = torch.randint(rounds, (RESAMPLES, rounds), generator=torch.Generator().manual_seed(0))
    half = torch.tensor(0.5, dtype=torch.float64)
    ratios = torch.quantile(samples[drawn], half, dim=1) / torch.quantile(base[drawn], half, dim=1)
    low, high = torch.quantile(ratios, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Ratio((torch.quantile(samples, half) / torch.quantile(base, half)).item(), low, high)


def _spread(latency: Latency) -> str:
    low, high = latency.quartiles_ms
    return f"quartiles {low:.4g} to {high:.4g} ms"


def _conditions(latency: Latency) -> str:
    kind = "forward and backward" if latency.training else "forward"
    return (
        f"{kind} of {latency.batch_size} x ({by(latency.input_size)}), {latency.dtype}, {latency.memory_format}, on "
        f"{latency.device}, threads {latency.threads}, torch {latency.torch_version}, {len(latency.samples_ms)} samples"
    )
