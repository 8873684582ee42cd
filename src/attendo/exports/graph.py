"""ONNX: the graph of a network, and its run in onnxruntime.

Means and maxima over positions are written as global pools, the operators that users of other engines look for; in the
engines below they cost what ReduceMean and ReduceMax cost. Forms were chosen by measurement: CPU time of a ResNet-50 at
224 x 224 with a mechanism over that of the plain one in the same engine, 1 thread of an AMD EPYC with AVX-512 (bf16),
2026-11-20, medians, which vary by 0.02 from run to run (benchmarks/exported_attention.py measures wall time):

                                      onnxruntime 1.31.1    OpenVINO 2026.4.1 f32    OpenVINO bf16
    batch                             1       4             1       4                1       4
    SE, fully connected layers        1.08    1.10          1.06    1.03             1.06    1.04
    SE, 1x1 convolutions              1.08    1.10          1.06    1.04             1.06    1.04
    ECA, conv1d over channels         1.07    1.10          1.04    1.03             1.06    1.04
    ECA, sum of shifted slices        1.09    1.10          1.06    1.04             1.08    1.04
    ECA, banded matrix product        1.13    1.10          1.11    1.06             1.12    1.04
    ECA, banded 1x1 convolution       1.11    1.13          1.10    1.07             1.11    1.06
    CBAM, as its layer is written     1.20    1.17          1.11    1.08             1.16    1.11
    CBAM, mean over channels as conv  1.19    1.18          1.12    1.13             1.14    1.12
    a gate without any weights        1.07    1.10          1.03    1.04             1.04    1.03

Wall time on two threads of the same machine, 2026-11-21, one run of benchmarks/exported_attention.py (ours | timm's):

                                      onnxruntime           OpenVINO f32          OpenVINO bf16
    batch                             1           16          1           16          1           16
    SE                                1.09|1.07   1.26|1.26   1.08|1.07   1.08|1.06   1.14|1.13   1.11|1.12
    ECA                               1.10|1.07   1.25|1.32   1.07|1.26   1.07|1.38   1.15|1.73   1.13|1.75
    CBAM                              1.26|1.18   1.34|1.34   1.18|1.16   1.19|1.22   1.37|1.32   1.27|1.26

So the layers' own forms are exported: what a gate costs is reading and writing its map, not its weights. In onnxruntime
half of it is the change of memory layout around the product with the gate. Repeating the gate over the map with Resize
avoids that (SE and ECA 1.08 at batch 4) but needs a fixed size and costs OpenVINO 0.02.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attendo._errors import InvalidArgument, MissingDependency, pip_line
from attendo.layers import Gate

POOLS = {"ReduceMean": "GlobalAveragePool", "ReduceMax": "GlobalMaxPool"}
GATES = "attendo.gates"  # our entry in a file's metadata: paths of gates, one per line
SCOPES = "pkg.torch.onnx.name_scopes"  # where torch.onnx notes the modules around a node, outermost first


def need(*packages: str, extra: str) -> list[Any]:
    """Import optional packages.

    Raises:
        MissingDependency: one is not installed; the message is the line that installs it.
    """
    try:
        return [importlib.import_module(package) for package in packages]
    except ImportError as error:
        raise MissingDependency(
            f"export: {error.name} is not installed; it is needed for this target. Run: {pip_line(extra)}"
        ) from None


def trace(model: nn.Module, x: Tensor, names: list[str], dynamic_size: bool) -> Any:
    """Return the ONNX program of a network, with any number of images, and of any size if asked for.

    Raises:
        MissingDependency: onnx, onnxscript or onnxruntime is not installed.
        InvalidArgument: the network cannot be traced so.
    """
    need("onnx", "onnxscript", "onnxruntime", extra="onnx")
    shapes: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=65536)}
    if dynamic_size:
        shapes |= {2: torch.export.Dim("height", min=1, max=65536), 3: torch.export.Dim("width", min=1, max=65536)}
    try:
        program = torch.onnx.export(
            model,
            (x,),
            dynamo=True,
            input_names=["images"],
            output_names=names,
            dynamic_shapes=(shapes,),
            external_data=False,
            verbose=False,
        )
    except (RuntimeError, ValueError, TypeError) as error:
        raise InvalidArgument(
            f"{type(model).__name__}: cannot be traced to ONNX at {list(x.shape)} with any batch"
            f"{' and size' if dynamic_size else ''} ({first_line(error)}). Pass dynamic_size=False, or another target."
        ) from error
    gates = [path for path, module in model.named_modules() if isinstance(module, Gate)]
    program.model.metadata_props[GATES] = "\n".join(gates)  # type: ignore[union-attr]
    _pool(program.model)  # type: ignore[union-attr]
    return program


def first_line(error: BaseException) -> str:
    """Return the line of an error that says what is wrong; torch.onnx puts it below its own."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0] if lines else ''}"[:300]


def _pool(model: Any) -> None:
    """Write means and maxima over positions as global pools, for which engines have kernels in their own layouts."""
    ir, passes = need("onnx_ir", "onnx_ir.passes.common", extra="onnx")
    graph = model.graph
    for node in list(graph):
        if node.op_type not in POOLS or len(node.inputs) < 2:
            continue
        x, axes = node.inputs[0], ir.convenience.get_const_tensor(node.inputs[1])
        if axes is None or x.shape is None or len(x.shape) != 4:
            continue
        if sorted(int(axis) % 4 for axis in axes.numpy().flatten()) != [2, 3]:
            continue
        kept = node.attributes["keepdims"].as_int() if "keepdims" in node.attributes else 1
        old = node.outputs[0]
        pool = ir.Node("", POOLS[node.op_type], [x], name=f"{node.name}_pool", metadata_props=dict(node.metadata_props))
        pool.outputs[0].dtype, pool.outputs[0].shape = old.dtype, ir.Shape([x.shape[0], x.shape[1], 1, 1])
        new = [pool]
        if not kept:
            squeeze = ir.Node(
                "", "Squeeze", [pool.outputs[0], node.inputs[1]], metadata_props=dict(node.metadata_props)
            )
            new.append(squeeze)
        last = new[-1].outputs[0]
        pool.outputs[0].name = f"{old.name}_pooled" if not kept else old.name
        last.name, last.dtype, last.shape = old.name, old.dtype, old.shape
        ir.convenience.replace_nodes_and_values(graph, node, [node], new, [old], [last])
    passes.RemoveUnusedNodesPass()(model)  # the axes that nobody reads any more


def session(source: str | Path | bytes, threads: int | None = None) -> Callable[[Tensor], list[Tensor]]:
    """Return a function that runs an ONNX file in onnxruntime on the CPU: images -> outputs."""
    (runtime,) = need("onnxruntime", extra="onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    if threads is not None:
        options.intra_op_num_threads = threads
    opened = runtime.InferenceSession(
        source if isinstance(source, bytes) else str(source), options, providers=["CPUExecutionProvider"]
    )
    name = opened.get_inputs()[0].name

    def run(x: Tensor) -> list[Tensor]:
        return [torch.from_numpy(np.asarray(out)) for out in opened.run(None, {name: x.numpy()})]

    return run


def intermediates(source: Path, x: Tensor) -> Mapping[str, Tensor]:
    """Run an ONNX file and return what it computes where each module ends, by the module's path."""
    (onnx,) = need("onnx", extra="onnx")
    proto = onnx.load(str(source))
    ends = {path: node.output[0] for node in proto.graph.node for path in scopes(node)}
    outputs = [output.name for output in proto.graph.output]
    wanted = list(dict.fromkeys(ends.values()))
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in wanted if name not in outputs)
    values = dict(
        zip([*outputs, *(n for n in wanted if n not in outputs)], session(proto.SerializeToString())(x), strict=True)
    )
    return {path: values[name] for path, name in ends.items()}


def scopes(node: Any) -> list[str]:
    """Return the paths of the modules around a node of an ONNX file, outermost first."""
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            return list(ast.literal_eval(entry.value))[:-1]
    return []
