"""What could be changed on a machine so that networks run, or run faster: each with what to type."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NamedTuple

from attendo.kernels.allocator import DEFAULT, VARIABLE
from attendo.kernels.cpu.library import AGAIN
from attendo.profiling.machine import Cores, Gpus, Machine

REFERENCE = "reference"


class Change(NamedTuple):
    """What is wrong, and the command or setting that mends it."""

    what: str
    command: str

    def __str__(self) -> str:
        return f"{self.what}: {self.command}"


def advise(machine: Machine) -> list[Change]:
    """Return what to change, what is broken first; empty if there is nothing."""
    return [
        *(Change(what, command) for what, command in machine.broken.items()),
        *_threads(machine.cores),
        *_kernels(machine),
        *_openmp(machine.openmp),
        *_allocator(machine),
        *_gpu(machine.gpus),
    ]


def _threads(cores: Cores) -> Iterator[Change]:
    wanted = (cores.omp_num_threads or "").split(",")[0].strip()
    threads = max(cores.threads, int(wanted) if wanted.isdecimal() else 0)
    if threads > cores.available:
        yield Change(
            f"more threads ({threads}) than cores ({cores.available}) wait for each other",
            f"export OMP_NUM_THREADS={cores.available}",
        )
    elif wanted and 2 * cores.threads < cores.available:  # half of them is one thread per physical core
        yield Change(
            f"OMP_NUM_THREADS={cores.omp_num_threads} leaves most of {cores.available} cores idle",
            "unset OMP_NUM_THREADS",
        )


def _kernels(machine: Machine) -> Iterator[Change]:
    rows = [row for row in machine.kernels if row.device == "cpu" and row.kernel == REFERENCE]
    if rows and (AGAIN in rows[0].why or "does not load" in rows[0].why):
        first = "apt install g++, or your system's like, then " if "no C++ compiler" in rows[0].why else ""
        yield Change("attention runs without its native kernels", f"{first}{AGAIN}")


def _openmp(runtimes: tuple[str, ...]) -> Iterator[Change]:
    if len(runtimes) > 1:
        of_torch = next((file for file in runtimes if "/torch" in file), runtimes[0])
        yield Change(
            f"{len(runtimes)} OpenMP runtimes in one process, whose threads wait for each other",
            f"export LD_PRELOAD={of_torch}",
        )


def _allocator(machine: Machine) -> Iterator[Change]:
    if f"{VARIABLE}={DEFAULT}" in machine.allocator.why:
        yield Change("memory is fetched anew for every feature map", f"unset {VARIABLE}")


def _gpu(gpus: Gpus) -> Iterator[Change]:
    if gpus.names:
        if gpus.triton is None and sys.platform == "linux":
            yield Change("without Triton torch.compile and kernels do not reach the GPU", "pip install triton")
    elif gpus.driver and gpus.built_for is None:
        own = "" if sys.platform == "linux" else " --index-url https://download.pytorch.org/whl/cu130"
        yield Change(
            "there is an NVIDIA driver, but this torch is built without CUDA",
            f"pip install --force-reinstall torch torchvision{own}",
        )
    elif gpus.driver and "CUDA_VISIBLE_DEVICES" in gpus.why:
        yield Change("the GPU is hidden", "unset CUDA_VISIBLE_DEVICES")
