"""How a call is cut into programs: the one place with numbers to tune.

NOT MEASURED YET: the numbers are what the hardware's habits suggest (16 bytes a thread and access, a warp along 512
adjacent bytes, several accesses in flight), set where no GPU was at hand; ``benchmarks/gpu.py`` measures what they do.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor


class Tile(NamedTuple):
    """What one program holds at a time.

    Attributes:
        elements: of the map; a power of two.
        warps: that share them.
    """

    elements: int
    warps: int


class Table(NamedTuple):
    """Numbers that decide the programs of every call; they depend on the shape alone, and so do the results.

    Attributes:
        line: bytes of adjacent columns in a tile.
        tiles: by kernel and bytes of an element.
        programs: below this many, the looped axis is split.
        most_splits: of the looped axis.
        task: tiles that a task of a whole attention has.
        share: of the L2 cache that a group of samples may take, one over this: up to four groups are on their way, and
            their results beside them.
        residents: programs of a whole attention on a multiprocessor, or waiting to be.
    """

    line: int = 512
    tiles: dict[tuple[str, int], Tile] = {
        ("statistics", 2): Tile(2048, 4),
        ("statistics", 4): Tile(2048, 4),
        ("statistics_backward", 2): Tile(4096, 4),
        ("statistics_backward", 4): Tile(2048, 4),
        ("scale", 2): Tile(4096, 4),
        ("scale", 4): Tile(2048, 4),
        ("scale_backward", 2): Tile(4096, 4),
        ("scale_backward", 4): Tile(2048, 4),
        ("attention", 2): Tile(2048, 4),
        ("attention", 4): Tile(2048, 4),
    }
    programs: int = 1024
    most_splits: int = 256
    task: int = 8
    share: int = 8
    residents: int = 8


class Cut(NamedTuple):
    """A call cut into programs.

    Attributes:
        grid: of programs.
        blocks: of the fixed axis.
        splits: of the looped axis.
        constants: of the kernel, its warps among them.
    """

    grid: tuple[int]
    blocks: int
    splits: int
    constants: dict[str, int | bool]


class View(NamedTuple):
    """A map as matrices with adjacent columns, one a sample: what ``tiles`` speaks of."""

    samples: int
    rows: int
    columns: int
    last: bool  # channels_last: rows are positions

    @classmethod
    def of(cls, x: Tensor) -> View:
        """View a map that is contiguous or channels_last."""
        samples, channels, height, width = x.shape
        last = not x.is_contiguous()
        positions = height * width
        return cls(samples, *((positions, channels) if last else (channels, positions)), last)

    def extents(self, looped: int) -> tuple[int, int]:
        """Return the sizes of the fixed and the looped axis."""
        return (self.rows, self.columns) if looped else (self.columns, self.rows)


TABLE = Table()
OPTIONS = {"enable_fp_fusion": True}  # said aloud, because the default changes between versions of Triton
WIDE = 2**31  # elements of a sample from which 32 bits do not count them


def cut(kernel: str, view: View, itemsize: int, looped: int | None, whole: bool = True, each: int | None = None) -> Cut:
    """Cut a call into programs.

    Args:
        kernel: a name of ``Table.tiles``.
        view: of the map.
        itemsize: bytes of an element of the map.
        looped: 1 if programs go along columns, 0 along rows, None if each does one tile.
        whole: whether something is summed along the looped axis; if not, every program does one step of it.
        each: tiles that a program may have at most, if splits allow; None: as many as leave ``Table.programs``.
    """
    tile = TABLE.tiles[kernel, itemsize]
    columns = min(power(view.columns), max(1, TABLE.line // itemsize))
    rows = min(power(view.rows), max(1, tile.elements // columns))
    fixed, along = view.extents(looped or 0)
    fixed_block, looped_block = (rows, columns) if looped else (columns, rows)
    blocks, steps = ceil(fixed, fixed_block), ceil(along, looped_block)
    splits = steps
    if whole:
        wanted = ceil(TABLE.programs, view.samples * blocks) if each is None else ceil(steps, each)
        splits = min(steps, TABLE.most_splits, wanted)
        splits = ceil(steps, ceil(steps, splits))  # none without work
    constants: dict[str, int | bool] = {"ROWS": rows, "COLUMNS": columns, "num_warps": tile.warps, **OPTIONS}
    constants["ALIGN"] = min(16, view.columns & -view.columns)
    constants["WIDE"] = view.rows * view.columns >= WIDE
    if looped is not None:
        constants["LOOPED"] = looped
    return Cut((view.samples * blocks * splits,), blocks, splits, constants)


def multiprocessors_and_cache(x: Tensor) -> tuple[int, int]:
    """Return the number of multiprocessors and the bytes of L2 cache of the device of x; of a small one elsewhere."""
    if not x.is_cuda:
        return 1, 1 << 20
    found = torch.cuda.get_device_properties(x.device)
    return found.multi_processor_count, found.L2_cache_size


def device_of(x: Tensor) -> AbstractContextManager[object]:
    """Make the device of x the one that kernels are launched on; the stream is its current one."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def power(n: int) -> int:
    """Round up to a power of two."""
    return 1 << (n - 1).bit_length()


def ceil(n: int, by: int) -> int:
    """Divide, rounding up."""
    return -(-n // by)
