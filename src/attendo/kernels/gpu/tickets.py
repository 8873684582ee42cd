"""Work that waits for other work of the same launch: tickets, and counters of what is finished.

A batch is cut into groups of samples, several of which fit the L2 cache; every group goes through phases, each a number
of tasks. A program takes tickets from a counter until none is left, and does the task of each. Tickets go in steps: in
step s every phase has its turn, always in the same order, and with a lag of L it does its tasks for group s - L. That
makes a pipeline: between a phase and the one that waits for it, programs have other groups' maps to move.

Why nobody waits for ever. A task waits only for tasks of its own group in other phases, and these have earlier tickets:
their lag is less, or it is the same and their turn in a step comes before. Take the earliest ticket whose task is not
finished. Whatever it waits for is finished. The program that took it does its tasks one by one, in the order of their
tickets, so it is at this one; and it runs, for only programs on the device take tickets, and none is put back from
there. Hence this task ends, then the next. How many programs are on the device at once does not matter: one, as in
Triton's interpreter, takes all tickets in their order.

Why nobody reads what is not there yet. A task stores, its threads meet, and one of them adds 1 to the counter of phase
and group, releasing what all of them stored. Who waits reads that counter, acquiring, until all tasks are counted: also
those for which a smaller last group has nothing to do. A statistic whose axis is split comes in parts; one more counter
tells who brings the last of them, and that program joins them, in their own order.

So PTX's memory model has it. For AMD's gfx942 Triton makes a barrier of it that other threads' stores may pass, which
is why ``selection`` does not let it run there.

The counters are integers, zero when the kernel starts. What is added up, and in which order, depends on the shape alone
and neither on who does it nor on the groups: results are the same bits every time.
"""

# ruff: noqa: ANN001, ANN201 - Triton has no types to annotate a kernel with
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

LINE = tl.constexpr(32)  # counters in a line of the cache: tickets have one of their own
PHASES = tl.constexpr(5)  # that others wait for
HIDDEN, LOOK, POOL, EXCITE, GATHER = (tl.constexpr(i) for i in range(5))


class Schedule(NamedTuple):
    """Numbers that a batch changes, so that the kernel is not compiled for each: its last arguments.

    Attributes:
        samples: of the batch.
        group: samples of a group.
        groups: how many there are; the last may be smaller.
        look_units: of work for ``look``, in one sample; likewise the others.
        pool_each: units of a task of ``pool``; likewise the others, ``look`` has one.
        hidden_tasks: of ``hidden``, for one group, 0 if there is nothing to do; likewise the others.
    """

    samples: int
    group: int
    groups: int
    look_units: int
    pool_units: int
    pool_each: int
    gather_units: int
    gather_each: int
    scale_units: int
    scale_each: int
    hidden_tasks: int
    look_tasks: int
    pool_tasks: int
    excite_tasks: int
    gather_tasks: int
    scale_tasks: int

    @property
    def step(self) -> int:
        """Tickets of a step."""
        return sum(self[-6:])


@triton.jit
def turn(task, tasks, g, groups):
    """Whether a ticket is of a phase: its number in there is one of the tasks, and its group one of the groups."""
    return (task >= 0) & (task < tasks) & (g >= 0) & (g < groups)


@triton.jit
def wait(counters, g, PHASE: tl.constexpr, tasks):
    """Go on when all tasks of a phase of group g are finished; what they stored is seen from here on."""
    while tl.atomic_add(counters + LINE + g * PHASES + PHASE, 0, sem="acquire") < tasks:
        pass


@triton.jit
def finish(counters, g, PHASE: tl.constexpr):
    """Count a task of a phase of group g as finished: what all threads of this program stored is there."""
    tl.debug_barrier()
    tl.atomic_add(counters + LINE + g * PHASES + PHASE, 1, sem="release")


@triton.jit
def portion(task, each, units, g, group, samples):
    """Say which of a phase's units, ``units`` a sample and ``each`` a task, are those of a task of group g."""
    first = g * group * units + task * each
    return first, tl.minimum(first + each, tl.minimum((g + 1) * group, samples) * units)


@triton.jit
def part(task, size, g, group, samples, SAMPLES: tl.constexpr, BLOCK: tl.constexpr):
    """Say which samples of group g, and from which number of theirs on, are those of a task about their numbers."""
    blocks = tl.cdiv(size, BLOCK)
    n = g * group + task // blocks * SAMPLES + tl.arange(0, SAMPLES)
    return n.to(tl.int64), n < tl.minimum((g + 1) * group, samples), task % blocks * BLOCK
