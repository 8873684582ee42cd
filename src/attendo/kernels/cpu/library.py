"""The native library's C interface, and the best instruction set this machine has of it."""

from __future__ import annotations

import ctypes
import functools
import struct
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int32, c_int64, c_void_p

from attendo.kernels.cpu.build import LIBRARY, REASON

INTERFACE = 3  # of native/dispatch.cpp
AGAIN = "python -m attendo.kernels.cpu"
SETS = ("avx512", "avx2", "plain")  # best first


class Shape(Structure):
    """AttendoShape of native/interface.h."""

    _fields_ = [
        *((name, c_int64) for name in ("samples", "channels", "height", "width")),
        *((name, c_int32) for name in ("dtype", "channels_last", "threads")),
    ]


# Attention of native/attention.h: sizes and flags, pointers, the norm's epsilon, sizes and flags; the norm before it,
# what is kept, and what is blended.
ATTENTION = struct.Struct("=8q13Qd6q4Qdq9Q")
# AttentionBackward of native/attention_backward.h: sizes and flags, pointers, the epsilon of the norm before, flags,
# blend.
ATTENTION_BACKWARD = struct.Struct("=7q22Qd5q2Q")


_P, _I, _B, _S = c_void_p, c_int64, c_int32, POINTER(Shape)
SIGNATURES = {
    "channel_stats": (_S, _P, _P, _P, _P),
    "channel_stats_backward": (_S, _P, _P, _P, _P, _P, _P),
    "spatial_stats": (_S, _P, _P, _I, _P, _P),
    "spatial_stats_backward": (_S, _P, _P, _P, _I, _P, _P, _P, _P),
    "recalibrate": (_S, _P, _P, _I, _P, _I, _P, _B, _P),
    "recalibrate_backward": (_S, _P, _P, _P, _I, _P, _I, _P, _P, _P, _P, _P),
    "attention": (c_char_p,),
    "attention_backward": (c_char_p,),
    "grouped_conv": (_S, _P, _P, _I, _I, _I, _I, _I, _P),
}


class Table(Structure):
    """AttendoTable of native/interface.h: the functions of one instruction set."""

    _fields_ = [(name, CFUNCTYPE(None, *arguments)) for name, arguments in SIGNATURES.items()]


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """Return the library, or None and why there is none."""
    if not LIBRARY.exists():
        reason = REASON.read_text().strip() if REASON.exists() else "it was not compiled when attendo was installed"
        return None, f"no native library: {reason}. With a C++ compiler at hand, run: {AGAIN}"
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        return None, f"the native library does not load: {error}"
    if library.attendo_interface() != INTERFACE:
        return None, f"the native library is of another version of attendo. Run: {AGAIN}"
    library.attendo_table.restype = POINTER(Table)
    library.attendo_table.argtypes = (c_char_p,)
    return library, ""


def table(name: str) -> Table | None:
    """Return the functions of an instruction set of ``SETS``; None where the library or the machine lacks it."""
    library, _ = _load()
    found = library.attendo_table(name.encode()) if library is not None else None
    return found.contents if found else None


def missing() -> str:
    """Say why there is no library; empty where there is one."""
    return _load()[1]
