"""int8 after training, through onnxruntime, accepted only if the network still answers as before on data."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attendo._errors import InvalidArgument
from attendo.exports import graph

GATED = ("Conv", "Gemm", "MatMul")  # what int8 is for


@dataclass(frozen=True)
class Quantised:
    """An int8 file that was written, and what it cost.

    Attributes:
        path: the file.
        accuracy: of the float32 file on the evaluation data, a share.
        int8_accuracy: of the int8 file.
        agreement: share of the evaluation images for which both name the same class.
        images: how many were evaluated.
        bytes: of the file.
        float_bytes: of the float32 file.
        kept: operators inside attention that stay in float32.
    """

    path: Path
    accuracy: float
    int8_accuracy: float
    agreement: float
    images: int
    bytes: int
    float_bytes: int
    kept: int

    def __str__(self) -> str:
        return (
            f"{self.path}: int8, {self.bytes / 1e6:.1f} MB ({self.float_bytes / 1e6:.1f} MB before); accuracy "
            f"{self.int8_accuracy:.2%} ({self.accuracy:.2%} before) on {self.images} images, the same class for "
            f"{self.agreement:.2%}; {self.kept} operators of attention kept in float32"
        )


def quantise(
    source: str | Path,
    path: str | Path,
    calibration: Iterable[Tensor],
    evaluation: Iterable[tuple[Tensor, Tensor]],
    *,
    largest_drop: float = 0.01,
    attention: bool = False,
) -> Quantised:
    """Turn an ONNX file of ``export`` into int8, and compare its accuracy before it is put in place.

    Weights get one scale per output channel, activations one per tensor from their range on the calibration images.
    The gates of attention are small and sharp: they stay in float32 unless asked for.

    Args:
        source: the ONNX file.
        path: the int8 file.
        calibration: batches of images, (N, C, H, W), as the network takes them; 100 to 500 images are enough.
        evaluation: batches of images and their classes, (N, C, H, W) and (N,).
        largest_drop: accuracy that may be lost, a share; 0.01 is one point.
        attention: quantise inside attention too.

    Raises:
        InvalidArgument: more accuracy was lost, or there are no images; no file is written.
        MissingDependency: onnx or onnxruntime is not installed.
    """
    onnx, _, quantization = graph.need("onnx", "onnxruntime", "onnxruntime.quantization", extra="onnx")
    source, path = Path(source), Path(path)
    proto = onnx.load(str(source))
    inside = set() if attention else attention_nodes(proto)
    kept = [node.name for node in proto.graph.node if node.name in inside and node.op_type in GATED]
    name = proto.graph.input[0].name
    data = _Reader(name, calibration, quantization.CalibrationDataReader)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft.onnx"
        with _quiet():
            quantization.quantize_static(
                str(source),
                str(draft),
                data.reader,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                nodes_to_exclude=sorted(inside),
            )
        if not data.batches:
            raise InvalidArgument(
                f"quantise: {source}: no calibration images came; ranges of activations are read from them. Give some."
            )
        found = _accuracy(source, draft, evaluation)
        before, after, same, images = found
        if before - after > largest_drop:
            raise InvalidArgument(
                f"quantise: {source}: accuracy falls from {before:.2%} to {after:.2%} on {images} images; "
                f"{largest_drop:.2%} may be lost. Calibrate on more images of the task, or pass a larger largest_drop."
            )
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
        try:
            unfinished.write_bytes(draft.read_bytes())
            unfinished.replace(path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                unfinished.unlink()
    return Quantised(path, before, after, same, images, path.stat().st_size, source.stat().st_size, len(kept))


def attention_nodes(proto: Any) -> set[str]:
    """Return the names of the nodes inside gates, as ``export`` noted their paths in the file."""
    noted = {entry.key: entry.value for entry in proto.metadata_props}
    paths = [path for path in noted.get(graph.GATES, "").split("\n") if path]
    return {node.name for node in proto.graph.node if any(path in graph.scopes(node) for path in paths)}


class _Reader:
    """Calibration batches, in the form that onnxruntime asks for them."""

    def __init__(self, name: str, calibration: Iterable[Tensor], base: type) -> None:
        self.batches = 0
        iterator = iter(calibration)

        def get_next(_: Any) -> dict[str, Any] | None:
            images = next(iterator, None)
            self.batches += images is not None
            return None if images is None else {name: images.numpy().astype(np.float32)}

        self.reader = type("Reader", (base,), {"get_next": get_next})()


def _accuracy(
    source: Path, draft: Path, evaluation: Iterable[tuple[Tensor, Tensor]]
) -> tuple[float, float, float, int]:
    """Accuracy of both files, share of equal answers, and the number of images."""
    before, after = graph.session(source), graph.session(draft)
    right = wrong = same = images = 0
    for x, classes in evaluation:
        one, other = (run(x)[0].argmax(1) for run in (before, after))
        right += int((one == classes).sum())
        wrong += int((other == classes).sum())
        same += int((one == other).sum())
        images += len(classes)
    if not images:
        raise InvalidArgument("quantise: no evaluation images came; accuracy is compared on them. Give some.")
    return right / images, wrong / images, same / images, images


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep onnxruntime's advice about preprocessing out of the root log: export has folded the norms already."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with torch.no_grad():
            yield
    finally:
        root.setLevel(level)
