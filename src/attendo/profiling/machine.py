"""What decides how fast networks run here: processor, threads, kernels, allocator, GPU, versions."""

from __future__ import annotations

import importlib
import math
import os
import platform
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from attendo import __version__
from attendo.kernels import Status, status
from attendo.kernels.allocator import Tuning, allocator
from attendo.profiling._format import plain
from attendo.profiling.profiles import cpu_name

# Of a processor's many, in the order in which they are shown: what the kernels and torch's own have code for.
INSTRUCTION_SETS = (
    *("avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimd", "sve", "sve2", "bf16", "i8mm"),
)
SHOWN = ("torch", "torchvision", "timm", "lightning")  # packages whose versions and health decide most
_OPENMP = re.compile(r"/lib(?:gomp|omp|iomp5)\b[^/]*$")


@dataclass(frozen=True)
class Cores:
    """The processor cores that this process may use, and the threads it has for them.

    Attributes:
        allowed: logical cores of its affinity.
        limit: cores' worth of time that its control group grants; None without a limit.
        threads: of torch, within one operator.
        omp_num_threads: the environment's OMP_NUM_THREADS.
    """

    allowed: int
    limit: float | None
    threads: int
    omp_num_threads: str | None

    @property
    def available(self) -> int:
        """The cores that threads can be kept busy on."""
        return self.allowed if self.limit is None else max(1, min(self.allowed, math.ceil(self.limit)))


@dataclass(frozen=True)
class Gpus:
    """The GPUs that torch sees.

    Attributes:
        names: one per GPU.
        capabilities: compute capability of each, such as ``"9.0"``.
        triton: version of Triton, which compiles kernels for them; None if it is missing.
        why: why there is none; empty if there is one.
        driver: whether the system has a driver of NVIDIA's.
        built_for: version of CUDA or ROCm that torch is built for; None for a torch without.
    """

    names: tuple[str, ...]
    capabilities: tuple[str, ...]
    triton: str | None
    why: str
    driver: bool
    built_for: str | None


@dataclass(frozen=True)
class Extra:
    """Optional packages: ``missing`` are those that ``pip install 'attendo[name]'`` brings."""

    name: str
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Machine:
    """What was found.

    Attributes:
        cpu: the processor's name.
        instruction_sets: those of ``INSTRUCTION_SETS`` that it has; empty where the system does not tell.
        capability: of these, what torch's own operators use.
        cores: and threads.
        kernels: what runs each primitive on each kind of device, and why nothing faster.
        openmp: files of the OpenMP runtimes in this process; of more than one, each has threads of its own.
        allocator: whether freed memory is kept, and why not.
        gpus: and why there is none.
        versions: of python, attendo, the C library and the packages ``SHOWN``.
        extras: the optional packages.
        broken: what attendo needs and cannot use, each with the pip line that mends it.
    """

    cpu: str
    instruction_sets: tuple[str, ...]
    capability: str
    cores: Cores
    kernels: tuple[Status, ...]
    openmp: tuple[str, ...]
    allocator: Tuning
    gpus: Gpus
    versions: dict[str, str]
    extras: tuple[Extra, ...]
    broken: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as JSON can hold them."""
        kernels, tuning = [row._asdict() for row in self.kernels], self.allocator._asdict()
        return {**plain(self), "kernels": kernels, "allocator": tuning}


def read_machine() -> Machine:
    """Look at this machine and this process, and change nothing; imports the packages ``SHOWN``, which takes seconds.

    Raises:
        InvalidArgument: the environment has a setting of attendo's that means nothing.
    """
    kernels, runtimes = tuple(status()), openmp_runtimes()  # before other packages bring runtimes of their own
    broken = dict(_broken())
    return Machine(
        cpu=cpu_name(),
        instruction_sets=instruction_sets(),
        capability=torch.backends.cpu.get_cpu_capability(),
        cores=Cores(_affinity(), core_limit(), torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")),
        kernels=kernels,
        openmp=runtimes,
        allocator=allocator(),
        gpus=_gpus(),
        versions=_versions(),
        extras=_extras(),
        broken=broken,
    )


def instruction_sets(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """Return those of ``INSTRUCTION_SETS`` that the processor has, as far as the system tells."""
    found: set[str] = set()
    for line in _lines(cpuinfo):
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):  # of x86 and of ARM
            found = set(value.split())
            break
    return tuple(name for name in INSTRUCTION_SETS if name in found)


def openmp_runtimes(maps: Path = Path("/proc/self/maps")) -> tuple[str, ...]:
    """Return the files of the OpenMP runtimes loaded into this process, in the order of their addresses."""
    files = dict.fromkeys(line.split(maxsplit=5)[-1] for line in _lines(maps))
    return tuple(file for file in files if _OPENMP.search(file))


def core_limit(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Return how many cores' worth of time the control groups of this process grant, None if they set no limit.

    Args:
        groups: where the system shows its control groups, of version 1 or 2.
        own: the file that names those of the process.
    """
    limits = []
    for line in _lines(own):
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = groups / controllers
        place = root / path.strip("/")
        for folder in (place, *place.parents):
            words = [word for line in _lines(folder / "cpu.max") for word in line.split()]
            words = words or _lines(folder / "cpu.cfs_quota_us") + _lines(folder / "cpu.cfs_period_us")
            if len(words) == 2 and words[0] not in ("max", "-1"):
                limits.append(int(words[0]) / int(words[1]))
            if folder == root:
                break
    return min(limits, default=None)


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> Gpus:
    built_for = torch.version.cuda or torch.version.hip
    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    with warnings.catch_warnings(record=True) as said:  # a driver that is too old speaks in a warning
        warnings.simplefilter("always")
        number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = tuple(torch.cuda.get_device_name(i) for i in range(number))
    capabilities = tuple("{}.{}".format(*torch.cuda.get_device_capability(i)) for i in range(number))
    if number:
        why = ""
    elif built_for is None:
        why = "this torch is built without CUDA"
    elif said:
        why = str(said[0].message).splitlines()[0]
    elif "CUDA_VISIBLE_DEVICES" in os.environ:
        why = f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']!r} leaves none"
    else:
        why = "torch sees none, though there is a driver" if driver else "no NVIDIA driver on this machine"
    return Gpus(names, capabilities, _version("triton") if find_spec("triton") else None, why, driver, built_for)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "attendo": __version__}
    if libc := " ".join(platform.libc_ver()).strip():
        found["C library"] = libc
    return found | {name: _version(name) or "missing" for name in SHOWN}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _required() -> Iterator[tuple[str, str, str]]:
    """Yield name, extras asked of it, and own extra ("" for none) of every package that attendo requires."""
    try:
        lines = metadata.requires("attendo") or []
    except metadata.PackageNotFoundError:  # on the path without being installed
        return
    for line in lines:
        name, inner, extra = re.match(  # type: ignore[union-attr]
            r"([\w.-]+)(?:\[([^]]*)\])?[^;]*(?:;.*\bextra\s*==\s*['\"]([\w-]+)['\"])?", line
        ).groups(default="")
        yield name, inner, extra


def _extras() -> tuple[Extra, ...]:
    """Return the extras that add something to attendo, with what is missing of each."""
    packages: dict[str, list[str]] = {}
    for name, inner, extra in _required():
        if extra and extra != "test":
            names = packages.setdefault(extra, [])
            names += packages.get(inner, []) if name == "attendo" else [name]
    return tuple(Extra(extra, tuple(n for n in names if _version(n) is None)) for extra, names in packages.items())


def _broken() -> Iterator[tuple[str, str]]:
    """Yield what attendo needs and cannot use, with the pip line that mends it."""
    needed = dict.fromkeys([*(name for name, _, extra in _required() if not extra), *SHOWN])
    for name in needed:
        if _version(name) is None:
            yield f"{name} is not installed", f"pip install {name}"
        elif name in SHOWN:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    importlib.import_module(name)
            except Exception as error:  # noqa: BLE001 - a package built for another torch fails in any way
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                yield f"{name} does not import ({reason})", f"pip install --force-reinstall torch {name}"


def _lines(file: Path) -> list[str]:
    """Return the lines of a file of the system; none where this system has no such file."""
    try:
        return file.read_text(errors="replace").splitlines()
    except OSError:
        return []
