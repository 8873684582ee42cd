"""Networks side by side: parameters, MACs, latency and memory, and the machine they were measured on."""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attendo.kernels import status
from attendo.kernels.allocator import allocator
from attendo.profiling._checks import Size
from attendo.profiling._format import by, human, megabytes, plain, table
from attendo.profiling._turns import plan
from attendo.profiling.counts import Counts, count
from attendo.profiling.latencies import Latency, Ratio, compared
from attendo.profiling.memory import PeakMemory, peak_memory


@dataclass(frozen=True)
class Environment:
    """Where and when numbers were measured.

    Attributes:
        cpu: the processor's name.
        device: where the models were, with the name of a GPU.
        threads: of torch, within one operator.
        kernels: what ran attention's primitives on a CPU, ``reference`` for plain PyTorch.
        allocator: ``tuned`` where glibc keeps freed memory (``attendo.tune_allocator``), else ``default``.
        versions: of python, and of the packages that decide the numbers, where installed.
        system: operating system and architecture.
        date: start of the measurement, UTC, ISO 8601.
    """

    cpu: str
    device: str
    threads: int
    kernels: str
    allocator: str
    versions: dict[str, str]
    system: str
    date: str


@dataclass(frozen=True)
class ProfileRow:
    """One network; ``ratio`` is its latency over that of the first network."""

    name: str
    counts: Counts
    latency: Latency
    ratio: Ratio
    memory: PeakMemory


@dataclass(frozen=True)
class Profile:
    """Networks side by side, in the order given.

    Attributes:
        rows: one per network.
        input_size: of one image.
        batch_size: images in the batch that latency and memory belong to; MACs are those of one image.
        training: whether latency and memory are those of forward and backward, or of forward alone.
        environment: where and when.
    """

    rows: tuple[ProfileRow, ...]
    input_size: tuple[int, ...]
    batch_size: int
    training: bool
    environment: Environment

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as JSON can hold them."""
        return dict(plain(self))

    def to_csv(self) -> str:
        """Return one line per network under a header, every line with what its numbers depend on."""
        lines = [_record(row, self) for row in self.rows]
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return text.getvalue()

    def __str__(self) -> str:
        first = self.rows[0].name
        rows = [
            (
                row.name,
                human(row.counts.parameters),
                human(row.counts.macs),
                f"{row.latency.median_ms:.4g} ms",
                "{:.4g} to {:.4g}".format(*row.latency.quartiles_ms),
                str(row.ratio),
                megabytes(row.memory.peak_bytes),
            )
            for row in self.rows
        ]
        header = ("model", "parameters", "MACs", "latency", "quartiles", f"ratio to {first} [95 %]", "peak memory")
        kind = "forward and backward" if self.training else "forward"
        here = self.environment
        versions = ", ".join(f"{name} {version}" for name, version in here.versions.items())
        uncounted = [f"  {row.name}: {', '.join(row.counts.uncounted) or 'nothing'}" for row in self.rows]
        real = [f"  {row.name}: {row.counts.real_run}" for row in self.rows if row.counts.real_run]
        return "\n".join(
            (
                table(header, rows),
                "",
                f"Latency and memory: {kind} of {self.batch_size} x ({by(self.input_size)}), "
                f"{self.rows[0].latency.dtype}; memory without parameters and buffers. MACs: one image.",
                "Not counted as MACs:",
                *uncounted,
                *(["MACs of a real run with noise as image, because a dry one failed:", *real] if real else []),
                f"{here.device}, {here.cpu}, threads {here.threads}, kernels {here.kernels}, "
                f"allocator {here.allocator}, {versions}, {here.system}, {here.date}",
            )
        )


def profile(
    models: Mapping[str, nn.Module],
    input_size: Size = (3, 224, 224),
    batch_size: int = 1,
    training: bool = False,
    threads: int | None = None,
    repeats: int = 20,
    min_seconds: float = 1.0,
) -> Profile:
    """Count and measure networks side by side; they are left as they were.

    Args:
        models: networks by name; latencies are compared with that of the first.
        input_size: of one image, without the batch: (channels, height, width).
        batch_size: images in the batch, for latency and memory.
        training: latency and memory of forward and backward, instead of forward.
        threads: of torch within one operator, for the measurement; None leaves what is set.
        repeats: latency samples per network, at least.
        min_seconds: seconds of latency samples per network, at least.

    Raises:
        InvalidArgument: no models, one that is not an nn.Module, a number that is not positive, or a size that a model
            cannot take.
    """
    planned = plan("profile", models, input_size, batch_size, training, threads, repeats, min_seconds, warm_up=3)
    networks, size = planned.models, planned.input_size
    date = datetime.now(UTC).isoformat(timespec="seconds")
    counted = {name: count(model, size) for name, model in networks.items()}
    memory = {name: peak_memory(model, size, batch_size, training) for name, model in networks.items()}
    timed = compared(planned)
    latencies, ratios = timed.latencies, timed.ratios
    rows = tuple(ProfileRow(name, counted[name], latencies[name], ratios[name], memory[name]) for name in networks)
    devices = dict.fromkeys(_device_name(latency.device) for latency in latencies.values())
    environment = Environment(
        cpu=cpu_name(),
        device=", ".join(devices),
        threads=planned.threads,
        kernels=status()[0].kernel,
        allocator="tuned" if allocator() else "default",
        versions=_versions(),
        system=f"{platform.system()} {platform.machine()}",
        date=date,
    )
    return Profile(rows, size, batch_size, training, environment)


def cpu_name() -> str:
    """Return the processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _device_name(device: str) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else device


def _versions() -> dict[str, str]:
    installed = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for package in ("attendo", "timm", "torchvision"):
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def _record(row: ProfileRow, profiled: Profile) -> dict[str, Any]:
    latency, here = row.latency, profiled.environment
    return {
        "model": row.name,
        "parameters": row.counts.parameters,
        "trainable": row.counts.trainable,
        "macs": row.counts.macs,
        "not_counted_elements": ";".join(f"{name}={elements}" for name, elements in row.counts.uncounted.items()),
        "real_run": row.counts.real_run,
        "latency_median_ms": latency.median_ms,
        "latency_q1_ms": latency.quartiles_ms[0],
        "latency_q3_ms": latency.quartiles_ms[1],
        "latency_samples": len(latency.samples_ms),
        "ratio": row.ratio.value,
        "ratio_low": row.ratio.low,
        "ratio_high": row.ratio.high,
        "peak_memory_bytes": row.memory.peak_bytes,
        "peak_memory_how": row.memory.how,
        "input_size": "x".join(map(str, profiled.input_size)),
        "batch_size": profiled.batch_size,
        "training": profiled.training,
        "dtype": latency.dtype,
        "memory_format": latency.memory_format,
        "device": _device_name(latency.device),
        "cpu": here.cpu,
        "threads": latency.threads,
        **here.versions,
        "system": here.system,
        "date": here.date,
    }
