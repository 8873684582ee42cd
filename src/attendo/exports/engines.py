"""What a network costs in each engine of this machine: eager, compiled, onnxruntime, OpenVINO."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attendo._errors import UnknownName
from attendo._registry import did_you_mean
from attendo.exports import graph
from attendo.exports.exporting import export, openvino_session, prepared
from attendo.profiling import Ratio, compare_latency

Run = Callable[[Tensor], Any]


@dataclass(frozen=True)
class EngineRow:
    """A network in an engine.

    Attributes:
        engine: its name.
        model: the network's name.
        batch: images in the batch.
        median_ms: of a batch, milliseconds.
        quartiles_ms: the first and third quartile.
        ratio: to the first network in the same engine on the same batch.
    """

    engine: str
    model: str
    batch: int
    median_ms: float
    quartiles_ms: tuple[float, float]
    ratio: Ratio


@dataclass(frozen=True)
class EngineTable:
    """Networks in engines; prints as a table.

    Attributes:
        rows: in the order engines, batches, networks.
        input_size: of one image.
        threads: each engine took for one operator.
        versions: of the engines.
    """

    rows: tuple[EngineRow, ...]
    input_size: tuple[int, int, int]
    threads: int
    versions: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as JSON can hold them."""
        return asdict(self)

    def __str__(self) -> str:
        header = ("engine", "batch", "model", "median", "quartiles", "ratio [95 %]")
        lines = [
            (
                row.engine,
                str(row.batch),
                row.model,
                f"{row.median_ms:.4g} ms",
                "{:.4g} to {:.4g}".format(*row.quartiles_ms),
                str(row.ratio),
            )
            for row in self.rows
        ]
        widths = [max(len(line[i]) for line in (header, *lines)) for i in range(len(header))]
        text = ["   ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in (header, *lines)]
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        size = " x ".join(map(str, self.input_size))
        return "\n".join([*text, "", f"{size}, {self.threads} threads; {versions}"])


class _Engine(nn.Module):
    """A network as another engine runs it, in the shape that the stopwatch takes."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(x)


def _eager(model: nn.Module, folder: Path, size: tuple[int, int, int], threads: int) -> Run:
    return model


def _compiled(model: nn.Module, folder: Path, size: tuple[int, int, int], threads: int) -> Run:
    compiled: Run = torch.compile(model)
    return compiled


def _onnx_file(model: nn.Module, folder: Path, size: tuple[int, int, int]) -> Path:
    """Export once for all engines that read ONNX."""
    path = folder / "model.onnx"
    if not path.exists():
        export(model, path, input_size=size, dynamic_size=False, batch_sizes=(2,))
    return path


def _onnxruntime(model: nn.Module, folder: Path, size: tuple[int, int, int], threads: int) -> Run:
    return graph.session(_onnx_file(model, folder, size), threads)


def _openvino(precision: str) -> Callable[[nn.Module, Path, tuple[int, int, int], int], Run]:
    def build(model: nn.Module, folder: Path, size: tuple[int, int, int], threads: int) -> Run:
        return openvino_session(_onnx_file(model, folder, size), precision, threads)

    return build


ENGINES: dict[str, Callable[[nn.Module, Path, tuple[int, int, int], int], Run]] = {
    "eager": _eager,
    "compile": _compiled,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino("f32"),
    "openvino-bf16": _openvino("bf16"),
}


def compare_engines(
    models: Mapping[str, nn.Module] | nn.Module,
    engines: Sequence[str] = ("eager", "compile", "onnxruntime", "openvino"),
    *,
    input_size: tuple[int, int, int] = (3, 224, 224),
    batch_sizes: Sequence[int] = (1, 16),
    threads: int | None = None,
    repeats: int = 20,
    min_seconds: float = 1.0,
) -> EngineTable:
    """Measure networks in engines on this machine's CPU, the networks of an engine in turns.

    What an engine runs was compared with PyTorch first.

    Args:
        models: one network, or several by name; ratios are to the first.
        engines: of ``ENGINES``; ``"openvino-bf16"`` computes in bfloat16, which is OpenVINO's own choice where it can.
        input_size: channels, height and width of the images.
        batch_sizes: numbers of images.
        threads: of each engine within one operator; None takes PyTorch's number.
        repeats: samples per network, at least.
        min_seconds: seconds of samples per network, at least.

    Raises:
        UnknownName: no such engine.
        InvalidArgument: an engine disagrees with PyTorch, or a network does not run.
        MissingDependency: an engine is not installed.
    """
    for engine in engines:
        if engine not in ENGINES:
            raise UnknownName(f"engine {engine!r}: not known. {did_you_mean(engine, ENGINES)}")
    if isinstance(models, nn.Module):
        models = {type(models).__name__: models}
    count = torch.get_num_threads() if threads is None else threads
    ready = {name: prepared(model) for name, model in models.items()}
    rows: list[EngineRow] = []
    with tempfile.TemporaryDirectory() as folder:
        places = {name: Path(folder) / str(i) for i, name in enumerate(ready)}
        for place in places.values():
            place.mkdir()
        for engine in engines:
            build = ENGINES[engine]
            runs = {name: _Engine(build(model, places[name], input_size, count)) for name, model in ready.items()}
            for batch in batch_sizes:
                measured = compare_latency(
                    runs, input_size, batch, threads=count, repeats=repeats, min_seconds=min_seconds
                )
                rows += [
                    EngineRow(engine, name, batch, taken.median_ms, taken.quartiles_ms, measured.ratios[name])
                    for name, taken in measured.latencies.items()
                ]
    return EngineTable(tuple(rows), input_size, count, _versions(engines))


def _versions(engines: Sequence[str]) -> dict[str, str]:
    versions = {"torch": str(torch.__version__)}
    for package in ("onnxruntime", "openvino"):
        if any(engine.startswith(package) for engine in engines):
            (module,) = graph.need(package, extra="onnx" if package == "onnxruntime" else package)
            versions[package] = str(module.__version__).split("-")[0]
    return versions
