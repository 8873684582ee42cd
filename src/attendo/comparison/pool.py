"""Several cells at once, each in a process of its own with its share of the cores.

Small networks keep one core busy, not many: two cells side by side take half the time of one after the other. The cells
share nothing but the directory; whichever process dies, the others go on.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, cast

import torch

from attendo._errors import AttendoError, DataError, TrainingError
from attendo.comparison.cells import train
from attendo.comparison.grid import Cell, Grid
from attendo.comparison.results import CellResult
from attendo.comparison.store import Store
from attendo.comparison.watcher import Watcher
from attendo.data import load
from attendo.kernels.allocator import tune_allocator


def default_jobs(cells: int) -> int:
    """Return how many cells to train at once: one on a GPU, else one per core up to 8."""
    if torch.cuda.is_available():
        return 1
    return max(
        1, min(cells, 8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    )


def threads_of(jobs: int) -> int:
    """Return the threads that each of so many jobs gets."""
    return max(1, torch.get_num_threads() // jobs)


def run_in_processes(
    cells: Sequence[Cell], grid: Grid, fingerprint: str, store: Store, jobs: int, workers: int, watcher: Watcher
) -> dict[Cell, CellResult]:
    """Train cells in ``jobs`` processes; a process that dies is a failed cell, or none if it had none yet.

    Args:
        cells: what to train, in this order.
        grid: what they are part of.
        fingerprint: of the data, which must be the same in every process.
        store: where they keep their state.
        jobs: processes.
        workers: processes that read images, for each of them.
        watcher: hears of the progress.

    Raises:
        DataError: the data cannot be read any more.
        TrainingError: no process is left, all ended before they began.
    """
    settings = (grid, store, fingerprint, threads_of(jobs), workers, os.getpid())
    waiting, results = deque(cells), dict[Cell, CellResult]()
    open_lines: dict[Connection, Worker] = {}

    def begin() -> None:
        line, worker = _begin(settings)
        open_lines[line] = worker

    def end(line: Connection, result: CellResult) -> None:
        worker = open_lines[line]
        if worker.cell is not None:
            results[worker.cell] = result
            watcher.finished(worker.cell, result)
            worker.cell = None

    try:
        for _ in range(min(jobs, len(cells))):
            begin()
        while len(results) < len(cells):
            for line in cast("list[Connection]", wait(list(open_lines))):
                worker = open_lines[line]
                try:
                    kind, what = line.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    code = worker.process.exitcode or 0
                    if worker.cell is not None:
                        end(line, _died(worker.cell, code))
                        if waiting:
                            begin()
                    del open_lines[line]
                    if waiting and not open_lines:
                        raise TrainingError(
                            f"training in {jobs} processes: all ended before they began, the last with code {code}. "
                            f"Pass --jobs 1."
                        ) from None
                    continue
                if kind == "broken":  # what is wrong is wrong for all cells
                    raise what
                if kind == "stepped" and worker.cell is not None:
                    watcher.stepped(worker.cell, *what)
                    continue
                if kind == "finished":
                    end(line, what)
                worker.cell = waiting.popleft() if waiting else None
                _tell(line, worker.cell)
                if worker.cell is None:
                    worker.process.join()
                    del open_lines[line]
                else:
                    watcher.started(worker.cell)
        for line in open_lines:  # begun in place of one that died, and not needed any more
            _tell(line, None)
    except BaseException:
        for worker in open_lines.values():
            worker.process.terminate()
        raise
    finally:
        for worker in open_lines.values():
            worker.process.join()
    return results


@dataclass
class Worker:
    """A process and what it is training."""

    process: SpawnProcess
    cell: Cell | None = None


def _begin(settings: tuple[Any, ...]) -> tuple[Connection, Worker]:
    """Start a process; return the line to it. It shares no lock with others, which it could take into its grave."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, *settings))
    process.start()
    there.close()  # so that its end is heard
    return here, Worker(process)


def _tell(line: Connection, cell: Cell | None) -> None:
    """Send a cell; a process that has died in the meantime will be found dead."""
    with suppress(OSError):
        line.send(cell)


def _died(cell: Cell, code: int) -> CellResult:
    error = (
        f"the process that trained it died with exit code {code}, probably for lack of memory. Pass fewer --jobs, or a "
        f"smaller --batch-size."
    )
    return CellResult(cell.model, cell.attention, cell.seed, "failed", error=error)


def _work(
    line: Connection, grid: Grid, store: Store, fingerprint: str, threads: int, workers: int, parent: int
) -> None:
    """Train the cells that the line brings until it brings None; ends with its parent, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and ends us
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)
    try:
        tune_allocator()  # this process was begun to train, and does nothing else
        images = load(grid.data, limit=grid.limit, image_size=grid.image_size)
        if images.fingerprint != fingerprint:
            raise DataError(f"data {grid.data!r} changed while it was read. Run again when it rests.")
    except AttendoError as error:
        line.send(("broken", error))
        return
    line.send(("ready", None))
    for cell in iter(line.recv, None):
        last = 0.0

        def progress(step: int, steps: int) -> None:
            nonlocal last
            if time.monotonic() - last > 0.2:
                last = time.monotonic()
                line.send(("stepped", (step, steps)))

        line.send(("finished", train(cell, grid, images, store, workers, progress)))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.3)
    os._exit(1)
