"""Compile the native library: run when attendo is installed, or by hand with ``python -m attendo.kernels.cpu``.

Only the standard library is used: at installation there is no torch and no attendo to import. What went wrong is
written beside the library, for ``attendo doctor`` to tell.
"""

from __future__ import annotations

import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = HERE / "native"
LIBRARY = HERE / "libattendo_cpu.so.1"
REASON = HERE / "not_built.txt"
# Vectors without fast-math: sums keep their order, NaN and infinity their meaning. The sources write vectors out; where
# the compiler looks for more, it takes twice as long (35 seconds a set, not 19) and nothing measurable gets faster.
FLAGS = (
    *("-std=c++17", "-O3", "-fno-tree-vectorize", "-fPIC", "-fopenmp", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math"),
)
# Bytes of the map that go through all steps of an attention together: some, so that the next step finds them in the
# last-level cache. From 1/2 to 8 MiB no difference could be told on 32 MiB of it.
CHUNK = 4 << 20
PLAIN = ("plain", 16, ())
X86 = (
    ("avx2", 32, ("-mavx2", "-mfma")),
    ("avx512", 64, ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma")),
)


class NotBuiltError(RuntimeError):
    """The library could not be compiled; the message says why."""


def compiler() -> list[str]:
    """Return the C++ compiler's command: $CXX, or the first of c++, g++, clang++ on the path.

    Raises:
        NotBuiltError: there is none, or the system is one that the library was not written for.
    """
    if sys.platform != "linux":
        raise NotBuiltError(f"the native library is for Linux, this is {sys.platform}")
    if "CXX" in os.environ:
        return shlex.split(os.environ["CXX"])
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    raise NotBuiltError("no C++ compiler on the path (c++, g++ or clang++)")


def build(library: Path = LIBRARY, extra: tuple[str, ...] = ()) -> Path:
    """Compile the library for every instruction set this kind of processor may have.

    Args:
        library: where it goes; it appears whole or not at all.
        extra: further flags of the compiler, sanitizers for instance.

    Raises:
        NotBuiltError: no compiler, or it refused; the message holds what it said.
    """
    command = [*compiler(), *FLAGS, f"-DATTENDO_CHUNK={CHUNK}", *extra]
    x86 = platform.machine() in ("x86_64", "AMD64")
    sets = (PLAIN, *(X86 if x86 else ()))
    command += ["-DATTENDO_X86"] if x86 else []
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for name, width, flags in sets:
            own = [*flags, f"-DATTENDO_ISA={name}", f"-DATTENDO_BYTES={width}"]
            runs.append([*command, *own, "-c", str(SOURCES / "kernels.cpp"), "-o", f"{folder}/{name}.o"])
        runs.append([*command, "-c", str(SOURCES / "dispatch.cpp"), "-o", f"{folder}/dispatch.o"])
        _run_together(runs)
        new = library.with_suffix(f".{os.getpid()}.new")
        objects = [run[-1] for run in runs]
        _run_together([[*compiler(), "-shared", "-fopenmp", *extra, *objects, "-o", str(new)]])
        new.replace(library)
    return library


def build_or_explain() -> Path | None:
    """Compile the library in its place; None, and the reason in ``not_built.txt``, where that cannot be done."""
    REASON.unlink(missing_ok=True)
    try:
        return build()
    except NotBuiltError as error:
        LIBRARY.unlink(missing_ok=True)  # of an earlier version
        REASON.write_text(f"{error}\n")
        logging.getLogger("attendo").warning("attendo runs without native kernels: %s", error)
        return None


def _run_together(commands: list[list[str]]) -> None:
    started = []
    for command in commands:
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        except OSError as error:
            raise NotBuiltError(f"{command[0]} does not start: {error}") from error
        started.append((command[0], process))
    said = [(name, process, process.communicate()[0]) for name, process in started]
    for name, process, text in said:
        if process.returncode:
            raise NotBuiltError(f"{name} failed: {text.strip()[-2000:]}")
