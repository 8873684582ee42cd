"""Networks for other engines: ONNX, torch.export and OpenVINO, each proven equal before its file is put in place."""

from __future__ import annotations

from attendo.exports.agreement import Agreement
from attendo.exports.engines import ENGINES, EngineRow, EngineTable, compare_engines
from attendo.exports.exporting import Export, export
from attendo.exports.quantisation import Quantised, quantise

__all__ = [
    "ENGINES",
    "Agreement",
    "EngineRow",
    "EngineTable",
    "Export",
    "Quantised",
    "compare_engines",
    "export",
    "quantise",
]
