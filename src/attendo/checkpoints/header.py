"""The header of a safetensors file, read and checked before a byte of the tensors is touched.

Format: https://github.com/huggingface/safetensors#format - eight bytes with the header's length, the header as JSON,
the tensors one after the other. A file from the network may claim anything; what it claims must fit its own size.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attendo._errors import CheckpointError

LONGEST_HEADER = 32 * 2**20  # bytes; that of a network of 10,000 tensors takes 1.2 MB

BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}
MAGIC = {
    b"PK\x03\x04": "a zip archive, as torch.save writes, with a pickle inside",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"\x89HDF": "an HDF5 file",
    b"version https://git-lfs": "a Git LFS pointer, not the file it stands for",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
}


@dataclass(frozen=True)
class Entry:
    """One tensor of the file: its dtype in safetensors' word (``"F32"``) and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself."""

    tensors: dict[str, Entry]
    metadata: dict[str, str]
    data_bytes: int


def read_header(path: str | Path) -> Header:
    """Read and check the header of a safetensors file.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the file is no safetensors file, is damaged or cut off, or contradicts itself.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(32)
        for magic, what in MAGIC.items():
            if start.startswith(magic):
                raise CheckpointError(
                    f"{path}: this is {what}; weights that describe themselves are safetensors files, which hold "
                    f"tensors and nothing that could run. Convert a checkpoint of official code with load_weights."
                )
        length = int.from_bytes(start[:8], "little")
        if size < 10 or length > size - 8:
            raise _damaged(path, f"it has {size:,} bytes and announces a header of {length:,}")
        if length > LONGEST_HEADER:
            raise _damaged(path, f"its header of {length:,} bytes is longer than the {LONGEST_HEADER:,} allowed")
        file.seek(8)
        text = file.read(length)
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not readable JSON ({error})") from None
    if not isinstance(content, dict):
        raise _damaged(path, "its header is not a JSON object")
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, "its metadata are not text")
    tensors = _check_entries(path, content, size - 8 - length)
    return Header(tensors, metadata, size - 8 - length)


def _check_entries(path: Path, content: dict[str, Any], data_bytes: int) -> dict[str, Entry]:
    """Check that the tensors announced fill the file's data exactly, without holes or overlaps."""
    tensors, spans = {}, []
    for name, entry in content.items():
        try:
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
            fits = whole and end - begin == BYTES[dtype] * math.prod(shape) and len(shape) <= 8
        except (TypeError, KeyError, ValueError):
            fits = False
        if not fits or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise _damaged(path, f"tensor {name!r} is announced as {str(entry)[:200]}, which contradicts itself")
        tensors[name] = Entry(dtype, tuple(shape))
        spans.append((begin, end))
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise _damaged(path, f"its tensors leave a hole or overlap at byte {min(begin, position):,} of the data")
        position = end
    if position != data_bytes:
        raise _damaged(path, f"its tensors need {position:,} bytes and {data_bytes:,} are there")
    return tensors


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object and refuse a key that comes twice."""
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key comes twice")
    return content


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: not a usable safetensors file: {what}; the file is damaged, cut off or not what its name says. "
        f"Copy or download it again."
    )
