"""The directory of a comparison: one comparison each, one process at a time, and nothing half-written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attendo._errors import ResultsError
from attendo.comparison.grid import Cell
from attendo.comparison.results import CellResult, read_result, write_atomically, write_result

SPEC = "comparison.json"
WEIGHTS = "weights.safetensors"


class Store:
    """The directory of a comparison.

    Args:
        path: the directory; made if it is not there.
        common: what all cells share (``Grid.common``).

    Raises:
        ResultsError: the directory holds a comparison with other settings, or something else.
    """

    def __init__(self, path: Path, common: dict[str, Any]) -> None:
        self.path, self.common = path, common
        self._check()
        (path / "cells").mkdir(parents=True, exist_ok=True)
        write_atomically(path / SPEC, json.dumps(common, indent=1))

    def _check(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ResultsError(f"{self.path} is a file; results need a directory. Pass another --out.")
        if not self.path.exists() or not any(entry.name != ".lock" for entry in self.path.iterdir()):
            return
        try:
            found = json.loads((self.path / SPEC).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            raise ResultsError(
                f"{self.path} holds files that are not a comparison; results would mix with them. Pass another --out, "
                f"or an empty directory."
            ) from None
        differing = [key for key in self.common if found.get(key) != self.common[key]]
        if differing:
            words = ", ".join(f"{key} {found.get(key)!r} there, {self.common[key]!r} asked" for key in differing)
            raise ResultsError(
                f"{self.path} holds a comparison with other settings ({words}); results of different settings never "
                f"mix. Pass another --out, or the settings it was made with."
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for this process; the system lets go of it however the process ends.

        Raises:
            ResultsError: another process holds it.
        """
        try:
            import fcntl
        except ImportError:  # Windows: there is no such lock; two runs at once would do the work twice
            yield
            return
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ResultsError(
                    f"{self.path} is in use by another run; two would write the same files. Wait for it, or pass "
                    f"another --out."
                ) from None
            yield

    def directory(self, cell: Cell) -> Path:
        """Return where a cell keeps its state and its weights."""
        return self.path / "cells" / cell.directory(self.common)

    def read(self, cell: Cell) -> CellResult | None:
        """Return a cell's result if it was finished."""
        result = read_result(self.directory(cell) / "result.json", cell.fingerprint(self.common))
        return result if result is not None and result.status == "done" else None

    def write(self, cell: Cell, result: CellResult) -> None:
        """Keep a cell's result; the state of its training is no longer needed once it is done."""
        directory = self.directory(cell)
        directory.mkdir(parents=True, exist_ok=True)
        write_result(directory / "result.json", result, cell.fingerprint(self.common))
        if result.status == "done":
            (directory / "last.ckpt").unlink(missing_ok=True)

    def read_costs(self) -> dict[str, dict[str, float]]:
        """Return the latencies that were measured, by ``"model attention"``."""
        try:
            return dict(json.loads((self.path / "costs.json").read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError):
            return {}

    def write_costs(self, costs: dict[str, dict[str, float]]) -> None:
        """Keep the latencies."""
        write_atomically(self.path / "costs.json", json.dumps(costs, indent=1))

    def __fspath__(self) -> str:
        return os.fspath(self.path)
