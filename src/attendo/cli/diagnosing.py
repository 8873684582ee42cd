"""``attendo doctor``: what runs here, and what would make it faster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from attendo._errors import pip_line
from attendo.profiling.advice import advise
from attendo.profiling.machine import Gpus, Machine, read_machine


def doctor(*, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> int:
    """Say what runs on this machine and how fast, and what to change. Exits with 1 if something is broken.

    Args:
        as_json: Print the same as JSON.
    """
    machine = read_machine()
    changes = advise(machine)
    console = Console(soft_wrap=True, markup=False, highlight=False)
    if as_json:
        found = {**machine.as_dict(), "change": [change._asdict() for change in changes]}
        console.print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        for name, lines in _sections(machine):
            for i, line in enumerate(lines):
                console.print(f"{'' if i else name:<11}{line}")
        console.print("\nwhat to change")
        for line in map(str, changes) if changes else ["nothing"]:
            console.print(f"  {line}")
    return 1 if machine.broken else 0


def _sections(machine: Machine) -> Iterator[tuple[str, list[str]]]:
    sets = " ".join(machine.instruction_sets) or "instruction sets unknown"
    yield "CPU", [machine.cpu, f"{sets} (torch: {machine.capability})"]
    cores = machine.cores
    limit = "" if cores.limit is None else f", limited to the time of {cores.limit:g}"
    setting = "" if cores.omp_num_threads is None else f" (OMP_NUM_THREADS={cores.omp_num_threads})"
    yield "cores", [f"{cores.allowed} for this process{limit}; threads of torch: {cores.threads}{setting}"]
    yield "kernels", [str(row) for row in machine.kernels]
    yield "OpenMP", _openmp(machine)
    own = "in a program of your own: attendo.tune_allocator()"
    yield "allocator", [f"{machine.allocator}{f'; {own}' if machine.allocator else ''}"]
    yield "GPU", _gpus(machine.gpus)
    yield "versions", [", ".join(f"{name} {version}" for name, version in machine.versions.items())]
    yield (
        "extras",
        [
            f"{extra.name}: {', '.join(extra.missing)} missing, {pip_line(extra.name)}"
            if extra.missing
            else f"{extra.name}: installed"
            for extra in machine.extras
        ],
    )


def _openmp(machine: Machine) -> list[str]:
    native = any(row.device == "cpu" and row.kernel != "reference" for row in machine.kernels)
    if not machine.openmp:
        return ["the system does not say which runtime is loaded"]
    if len(machine.openmp) > 1:
        return [f"{len(machine.openmp)} runtimes, not shared:", *machine.openmp]
    return [f"{'shared by torch and the native kernels' if native else 'of torch alone'}: {machine.openmp[0]}"]


def _gpus(gpus: Gpus) -> list[str]:
    if not gpus.names:
        return [f"none: {gpus.why}"]
    triton = "no Triton" if gpus.triton is None else f"Triton {gpus.triton}"
    seen = zip(gpus.names, gpus.capabilities, strict=True)
    return [f"{name}, capability {capability}, {triton}" for name, capability in seen]
