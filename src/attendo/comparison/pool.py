"""Several cells at once, each in a process of its own with its share of the cores.

Small networks keep one core busy, not many: two cells side by side take half the time of one after the other. The cells
share nothing but the directory; whichever process dies, the others go on.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess
from typing import Any

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
    """Train cells in ``jobs`` processes; a process that dies is a failed cell.

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
        TrainingError: a process ended before it began.
    """
    context = get_context("spawn")
    tasks, events = context.Queue(), context.Queue()
    for task in [*cells, *[None] * jobs]:
        tasks.put(task)
    settings = (grid, store, fingerprint, threads_of(jobs), workers, os.getpid())

    def begin() -> SpawnProcess:
        process = context.Process(target=_work, args=(tasks, events, *settings))
        process.start()
        return process

    processes = [begin() for _ in range(min(jobs, len(cells)))]
    running: dict[int | None, Cell] = {}
    results: dict[Cell, CellResult] = {}
    try:
        while len(results) < len(cells):
            try:
                pid, kind, cell, what = events.get(timeout=0.5)
            except queue.Empty:
                for i, process in enumerate(processes):
                    if process.exitcode:  # neither running nor ended well
                        cell = running.pop(process.pid, None)
                        if cell is None:
                            raise TrainingError(
                                f"a process ended with exit code {process.exitcode} before it began. Pass --jobs 1."
                            ) from None
                        results[cell] = _died(cell, process.exitcode)
                        watcher.finished(cell, results[cell])
                        processes[i] = begin()
                continue
            if kind == "broken":  # what is wrong is wrong for all cells
                raise what
            if kind == "started":
                running[pid] = cell
                watcher.started(cell)
            elif kind == "stepped":
                watcher.stepped(cell, *what)
            else:
                del running[pid]
                results[cell] = what
                watcher.finished(cell, what)
    except BaseException:
        for process in processes:
            process.terminate()
        raise
    finally:
        for process in processes:
            process.join()
        for channel in (tasks, events):
            channel.close()
            channel.join_thread()
    return results


def _died(cell: Cell, code: int) -> CellResult:
    error = (
        f"the process that trained it died with exit code {code}, probably for lack of memory. Pass fewer --jobs, or a "
        f"smaller --batch-size."
    )
    return CellResult(cell.model, cell.attention, cell.seed, "failed", error=error)


def _work(
    tasks: Any, events: Any, grid: Grid, store: Store, fingerprint: str, threads: int, workers: int, parent: int
) -> None:
    """Train cells until there are none; ends with its parent, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and ends us
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)
    own = os.getpid()
    try:
        tune_allocator()  # this process was begun to train, and does nothing else
        images = load(grid.data, limit=grid.limit, image_size=grid.image_size)
        if images.fingerprint != fingerprint:
            raise DataError(f"data {grid.data!r} changed while it was read. Run again when it rests.")
    except AttendoError as error:
        events.put((own, "broken", None, error))
        return
    for cell in iter(tasks.get, None):
        events.put((own, "started", cell, None))
        last = 0.0

        def progress(step: int, steps: int, cell: Cell = cell) -> None:
            nonlocal last
            if time.monotonic() - last > 0.2:
                last = time.monotonic()
                events.put((own, "stepped", cell, (step, steps)))

        events.put((own, "finished", cell, train(cell, grid, images, store, workers, progress)))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.3)
    os._exit(1)
