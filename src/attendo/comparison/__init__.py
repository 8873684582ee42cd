"""The grid of cells: run, resume, statistics."""

from attendo.comparison.grid import ATTENTION, MODELS, Cell, Grid
from attendo.comparison.results import CellResult, Epoch
from attendo.comparison.run import Outcome, compare
from attendo.comparison.statistics import Contrast, Interval, Summary, summarise, verdict
from attendo.comparison.watcher import Watcher

__all__ = [
    "ATTENTION",
    "MODELS",
    "Cell",
    "CellResult",
    "Contrast",
    "Epoch",
    "Grid",
    "Interval",
    "Outcome",
    "Summary",
    "Watcher",
    "compare",
    "summarise",
    "verdict",
]
