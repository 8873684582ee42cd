"""What a cell leaves behind: one JSON file, written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Epoch:
    """One epoch of training: mean losses (cross-entropy, nats) and the share of validation images classified right."""

    epoch: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float


@dataclass(frozen=True)
class CellResult:
    """A finished or failed cell.

    ``accuracy`` is that of the last epoch, not of the best one: choosing the best epoch on the validation set would
    flatter the noisiest network. Latency is that of one forward pass of ``latency_batch`` images in evaluation: the
    median, and as its spread the interquartile range.
    """

    model: str
    attention: str
    seed: int
    status: str  # "done" or "failed"
    error: str = ""
    history: tuple[Epoch, ...] = ()
    accuracy: float | None = None
    parameters: int | None = None
    macs: int | None = None
    latency_ms: float | None = None
    latency_spread_ms: float | None = None
    latency_batch: int = 1
    train_seconds: float | None = None

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> CellResult:
        """Build from what ``dataclasses.asdict`` gave."""
        return cls(**{**content, "history": tuple(Epoch(**epoch) for epoch in content["history"])})


def write_atomically(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it: whoever is killed leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_result(path: Path, result: CellResult, fingerprint: str) -> None:
    """Write a cell's result with the fingerprint of what was asked for."""
    write_atomically(path, json.dumps({"fingerprint": fingerprint, **asdict(result)}, indent=1))


def read_result(path: Path, fingerprint: str) -> CellResult | None:
    """Return a cell's result if it is there and answers to ``fingerprint``; None if it is missing, torn or other."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("fingerprint") != fingerprint:
            return None
        return CellResult.from_dict(content)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


COLUMNS = (
    "model",
    "attention",
    "seed",
    "epoch",
    "train_loss",
    "validation_loss",
    "validation_accuracy",
    "parameters",
    "macs",
    "status",
    "error",
)


def to_csv(results: Sequence[CellResult]) -> str:
    """Write one line per cell and epoch: only what a run with the same seeds repeats, so no times.

    A failed cell has one line, with its error.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for result in results:
        head = (result.model, result.attention, result.seed)
        tail = (result.parameters, result.macs, result.status, result.error)
        epochs: Iterable[tuple[Any, ...]] = [
            (e.epoch, e.train_loss, e.validation_loss, e.validation_accuracy) for e in result.history
        ]
        for epoch in epochs or [("", "", "", "")]:
            writer.writerow((*head, *epoch, *tail))
    return text.getvalue()
