"""How a call is cut into programs: the one place with numbers to tune.

NOT MEASURED YET, no GPU was at hand: the numbers come from reading the machine code that Triton 3.9 makes for bfloat16
maps (cubins for sm_80 and sm_90, 2026-11-21), its registers and its instructions per element, of which about 14 take as
long as reading the map from an H200's memory. What ``benchmarks/gpu.py`` measures on one will take their place.
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
        tiles: by kernel and bytes of an element; "statistics once" where a tile holds the whole of the
            columns that are summed.
        narrow: elements of a backward tile at most, where columns are no multiple of 4.
        stages: steps of the statistics whose loads are on their way, where steps fill the looped axis.
        programs: below this many, the looped axis is split.
        most_splits: of the looped axis.
        task: tiles that a task of a whole attention has.
        share: of the L2 cache that a group of samples may take, one over this: up to four groups are on their way, and
            their results beside them.
        residents: programs of a whole attention on a multiprocessor, or waiting to be.
    """

    line: int = 512  # a warp, 16 bytes a thread
    # two to four such accesses of a thread on their way, and 32 to 168 registers, from scale to scale_backward
    tiles: dict[tuple[str, int], Tile] = {
        ("statistics", 2): Tile(2048, 4),
        ("statistics", 4): Tile(2048, 4),
        # nothing to run on with, and a warp that sums alone needs no barrier: instructions per element 45 -> 13 for 256
        # columns, 61 -> 23 for 14 x 14, 123 -> 37 for 7 x 7, against four warps that go through one step
        ("statistics once", 2): Tile(2048, 1),
        ("statistics once", 4): Tile(1024, 1),
        ("statistics_backward", 2): Tile(4096, 4),
        ("statistics_backward", 4): Tile(2048, 4),
        ("scale", 2): Tile(4096, 4),
        ("scale", 4): Tile(2048, 4),
        ("scale_backward", 2): Tile(4096, 4),
        ("scale_backward", 4): Tile(2048, 4),
        ("attention", 2): Tile(2048, 4),
        ("attention", 4): Tile(2048, 4),
    }
    # 4096 elements, read one or two at a time, take all 255 registers and up to 312 bytes of stack; 2048 need none
    narrow: int = 2048
    # 1.3 instructions per element for three times the bytes in flight; where steps need a mask it would be 2.2
    stages: int = 3
    # channel_stats in channels_last has 79 registers: 6 programs on each of the 132 multiprocessors of an H200, 792 at
    # once. 1024 programs are 1.3 rounds, which take the time of 2 (65 %), 2048 are 2.6 (86 %), 4096 are 5.2 (86 %): but
    # the parts that 4096 leave weigh a quarter of a map of 7 x 7, of batch 256. scale_backward, 4 each: 97 % of 2048
    programs: int = 2048
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
    columns = min(power(view.columns), max(1, TABLE.line // itemsize))
    once = kernel == "statistics" and looped == 1 and view.columns <= columns
    tile = TABLE.tiles["statistics once" if once else kernel, itemsize]
    align = min(16, view.columns & -view.columns)
    elements = min(tile.elements, TABLE.narrow) if align < 4 and kernel.endswith("backward") else tile.elements
    rows = min(power(view.rows), max(1, elements // columns))
    fixed, along = view.extents(looped or 0)
    fixed_block, looped_block = (rows, columns) if looped else (columns, rows)
    blocks, steps = ceil(fixed, fixed_block), ceil(along, looped_block)
    splits = steps
    if whole:
        wanted = ceil(TABLE.programs, view.samples * blocks) if each is None else ceil(steps, each)
        splits = min(steps, TABLE.most_splits, wanted)
        splits = ceil(steps, ceil(steps, splits))  # none without work
    constants: dict[str, int | bool] = {"ROWS": rows, "COLUMNS": columns, "num_warps": tile.warps, **OPTIONS}
    constants["ALIGN"] = align
    constants["WIDE"] = view.rows * view.columns >= WIDE
    if looped is not None:
        constants["LOOPED"] = looped
    if kernel == "statistics":
        even = along % looped_block == 0
        constants |= {"ONCE": once, "EVEN": even, "STAGES": TABLE.stages if even else 1}
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
