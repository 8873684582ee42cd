"""Who wants to hear how far a comparison is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attendo.comparison.grid import Cell
from attendo.comparison.results import CellResult
from attendo.data import Images


class Watcher:
    """Hears of a comparison's progress; this one ignores it."""

    def planned(
        self, images: Images, cells: Sequence[Cell], finished: int, seconds: float | None, directory: Path
    ) -> None:
        """All cells are known, ``finished`` of them done before; the rest will take about ``seconds``."""

    def started(self, cell: Cell) -> None:
        """A cell begins."""

    def stepped(self, cell: Cell, step: int, steps: int) -> None:
        """A cell has done ``step`` of ``steps``."""

    def finished(self, cell: Cell, result: CellResult) -> None:
        """A cell is done or has failed."""

    def measuring(self) -> None:
        """The cells are done; latencies are measured."""
