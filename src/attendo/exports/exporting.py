"""Export: a network as a file for another engine, put in place only after that engine agreed with PyTorch."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attendo._errors import InvalidArgument
from attendo.exports import graph
from attendo.exports.agreement import TOLERANCE, Agreement, first_difference, flat, worst

Target = Literal["onnx", "torch", "openvino"]
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml"}
Run = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Export:
    """A file that was written and agreed.

    Attributes:
        path: the file.
        target: ``"onnx"``, ``"torch"`` or ``"openvino"``.
        outputs: names of the outputs.
        dynamic_size: whether it takes images of any size; it takes any number of them in every case.
        agreements: one per batch and size that was tried.
        bytes: of the file, and of its weights where they lie beside it.
        note: why it takes one size only, if any was hoped for.
    """

    path: Path
    target: str
    outputs: tuple[str, ...]
    dynamic_size: bool
    agreements: tuple[Agreement, ...]
    bytes: int
    note: str = ""

    def __str__(self) -> str:
        size = "any size" if self.dynamic_size else "one size"
        found = max(agreement.difference for agreement in self.agreements)
        words = f"{self.path}: {self.target}, {self.bytes / 1e6:.1f} MB, any batch, {size}"
        words += f"; agrees with PyTorch to {found:.1e} on {len(self.agreements)} inputs"
        return f"{words}; {self.note}" if self.note else words


def export(
    model: nn.Module,
    path: str | Path,
    to: Target = "onnx",
    *,
    input_size: tuple[int, int, int] = (3, 224, 224),
    dynamic_size: bool | None = None,
    batch_sizes: Sequence[int] = (1, 2, 5),
    tolerance: float = TOLERANCE,
) -> Export:
    """Write a network for another engine, after running it there and comparing it with PyTorch.

    The network is copied, in eval mode, on the CPU and in float32; the file takes any number of images.

    Args:
        model: any network from images to tensors.
        path: the file; its ending is the target's by custom: ``.onnx``, ``.pt2``, ``.xml``.
        to: ``"onnx"`` (run in onnxruntime), ``"torch"`` (a ``torch.export`` program) or ``"openvino"``.
        input_size: channels, height and width of the images.
        dynamic_size: whether images may have any size; None: where the network allows it.
        batch_sizes: numbers of images to compare on.
        tolerance: largest difference that passes, relative to the largest output.

    Raises:
        InvalidArgument: the network cannot be traced, or the engine disagrees; the message names the first layer that
            differs, and no file is written.
        MissingDependency: the target's packages are not installed.
    """
    if to not in SUFFIXES:
        raise InvalidArgument(f"export: to={to!r} is not a target. Take {', '.join(map(repr, SUFFIXES))}.")
    path = Path(path)
    ready = prepared(model)
    note = ""
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / f"draft{SUFFIXES[to]}"
        for any_size in [True, False] if dynamic_size is None else [dynamic_size]:
            inputs = _inputs(input_size, batch_sizes, any_size)
            try:
                want = [_run_eager(ready, x) for x in inputs]
                names = _names(want[0])
                run = _write(ready, inputs[0], draft, to, names, any_size)
                agreements = _compare(ready, inputs, want, run, draft, to, tolerance)
                break
            except InvalidArgument as error:
                if not any_size or dynamic_size is not None:
                    raise
                note = f"takes {input_size[1]} x {input_size[2]} images only ({str(error).split('. ')[0][:200]})"
        size = _put_in_place(draft, path)
    return Export(path, to, tuple(names), any_size, tuple(agreements), size, note)


def prepared(model: nn.Module) -> nn.Module:
    """Return a copy of a network that is ready for export: unwrapped, in eval mode, on the CPU, in float32."""
    while hasattr(model, "_orig_mod") or isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = getattr(model, "_orig_mod", None) or model.get_submodule("module")
    return copy.deepcopy(model).eval().cpu().float().requires_grad_(False)


def images(batch: int, size: tuple[int, int, int]) -> Tensor:
    """Return random images (batch, channels, height, width), always the same ones."""
    return torch.randn(batch, *size, generator=torch.Generator().manual_seed(batch))


def _inputs(size: tuple[int, int, int], batches: Sequence[int], any_size: bool) -> list[Tensor]:
    """Return what to compare on: the first has two images or more, as tracing takes a single one for a constant."""
    channels, height, width = size
    sizes = [size]
    if any_size:
        sizes += [(channels, height + height // 2, width + width // 4), (channels, max(1, height - height // 4), width)]
    first = max(2, *batches)
    rest = [images(batch, size) for batch in dict.fromkeys(batches) if batch != first]
    return [images(first, size), *rest, *(images(2, other) for other in sizes[1:])]


def _run_eager(model: nn.Module, x: Tensor) -> list[Tensor]:
    try:
        with torch.no_grad():
            return flat(model(x))
    except (RuntimeError, ValueError, TypeError) as error:
        raise InvalidArgument(
            f"{type(model).__name__}: does not run on images of {list(x.shape)} ({graph.first_line(error)}). "
            f"Pass the input_size it takes."
        ) from error


def _names(outputs: list[Tensor]) -> list[str]:
    if len(outputs) == 1:
        return ["logits" if outputs[0].ndim == 2 else "features"]
    return [f"features_{i}" for i in range(len(outputs))]


def _write(model: nn.Module, x: Tensor, draft: Path, to: str, names: list[str], any_size: bool) -> Run:
    """Write the draft and return how to run it."""
    if to == "torch":
        return _write_torch(model, x, draft, any_size)
    program = graph.trace(model, x, names, any_size)
    onnx_draft = draft.with_suffix(".onnx")
    program.save(str(onnx_draft))
    if to == "onnx":
        return graph.session(onnx_draft)
    (openvino,) = graph.need("openvino", extra="openvino")
    openvino.save_model(openvino.convert_model(str(onnx_draft)), str(draft), compress_to_fp16=False)
    return openvino_session(draft)


def _write_torch(model: nn.Module, x: Tensor, draft: Path, any_size: bool) -> Run:
    shapes: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=65536)}
    if any_size:
        shapes |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}  # strides bound them; torch finds how
    try:
        torch.export.save(torch.export.export(model, (x,), dynamic_shapes=(shapes,)), draft)
    except (RuntimeError, ValueError, TypeError) as error:
        raise InvalidArgument(
            f"{type(model).__name__}: torch.export fails at {list(x.shape)} with any batch"
            f"{' and size' if any_size else ''} ({graph.first_line(error)}). Pass dynamic_size=False."
        ) from error
    module = torch.export.load(draft).module()
    return lambda images: flat(module(images))


def openvino_session(path: Path, precision: str = "f32", threads: int | None = None) -> Run:
    """Return a function that runs an OpenVINO or ONNX file on the CPU; OpenVINO's own choice would be bfloat16."""
    (openvino,) = graph.need("openvino", extra="openvino")
    hints: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision}
    if threads is not None:
        hints["INFERENCE_NUM_THREADS"] = threads
    compiled = openvino.Core().compile_model(str(path), "CPU", hints)

    def run(x: Tensor) -> list[Tensor]:
        return [torch.from_numpy(out.copy()) for out in compiled(x.numpy()).values()]

    return run


def _compare(
    model: nn.Module, inputs: list[Tensor], want: list[list[Tensor]], run: Run, draft: Path, to: str, tolerance: float
) -> list[Agreement]:
    """Run the draft on every input.

    Raises:
        InvalidArgument: it fails, or differs by more than ``tolerance``.
    """
    agreements = []
    for x, expected in zip(inputs, want, strict=True):
        try:
            found = worst(run(x), expected)
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise InvalidArgument(
                f"export: the file for {to} fails on {list(x.shape)} ({graph.first_line(error)}). "
                f"Pass dynamic_size=False, or another target."
            ) from error
        if found > tolerance:
            where = first_difference(model, x, _intermediates(draft, to, x), tolerance)
            raise InvalidArgument(
                f"export: on {list(x.shape)} the file for {to} differs from PyTorch by {found:.1e} of the largest "
                f"output, and {tolerance:.0e} passes; {where}. Write that layer with operators that {to} computes "
                f"alike, or pass a larger tolerance."
            )
        agreements.append(Agreement(x.shape[0], x.shape[2], x.shape[3], found))
    return agreements


def _intermediates(draft: Path, to: str, x: Tensor) -> Mapping[str, Tensor]:
    """Return what the exported network computes where each module ends; for OpenVINO, in the ONNX it came from."""
    if to != "torch":
        return graph.intermediates(draft.with_suffix(".onnx"), x)
    seen: dict[str, Tensor] = {}

    class Watching(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                for path, _ in n.meta.get("nn_module_stack", {}).values():
                    seen[path] = value.detach().clone()
            return value

    with torch.no_grad():
        Watching(torch.export.load(draft).module()).run(x)
    return seen


def _put_in_place(draft: Path, path: Path) -> int:
    """Move the draft to its place, weights first; return the bytes of all of it."""
    total = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    for source in (draft.with_suffix(".bin"), draft):
        if not source.exists():
            continue
        target = path.with_suffix(".bin") if source.suffix == ".bin" else path
        unfinished = target.with_name(f".{target.name}.{os.getpid()}.unfinished")
        try:
            shutil.copyfile(source, unfinished)
            unfinished.replace(target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                unfinished.unlink()
        total += target.stat().st_size
    return total
