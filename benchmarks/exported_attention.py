"""What attention costs after export: ResNet-50 with SE, ECA and CBAM over the plain one, ours and timm's, per engine.

    python benchmarks/exported_attention.py [--engines onnxruntime openvino ...] [--batch 1 16] [--threads 2]
                                            [--reductions] [--seconds 3]

``--reductions`` writes means and maxima over positions as ReduceMean and ReduceMax, as torch.onnx does, instead of the
global pools that attendo writes. All networks of an engine are measured in turns, in one run.
"""

from __future__ import annotations

import argparse

import timm

import attendo
from attendo.exports import ENGINES, compare_engines, graph


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=["onnxruntime", "openvino"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--reductions", action="store_true")
    asked = parser.parse_args()
    if asked.reductions:
        graph.POOLS.clear()
    models = {"plain": timm.create_model("resnet50")}
    for name in ("se", "eca", "cbam"):
        models[f"attendo {name}"] = attendo.create_model("resnet50", attention=name)
        models[f"timm {name}"] = timm.create_model("resnet50", block_args={"attn_layer": name})
    table = compare_engines(
        models, asked.engines, batch_sizes=asked.batch, threads=asked.threads, repeats=5, min_seconds=asked.seconds
    )
    print(table)


if __name__ == "__main__":
    main()
