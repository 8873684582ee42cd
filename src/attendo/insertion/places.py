"""Where attention goes in a network nobody described: read off the graph of one dry run.

"auto" is the place of the SE and CBAM papers, before the sum of every residual block. A sum is residual if one side
went through more convolutions than the other, and the other is an ancestor of it or a projection of the block's own
input; the sums of feature pyramids and of parallel branches are not. Where there is no sum, attention goes after each
block: a module with at least two convolutions that is neither a chain of smaller blocks nor spans several resolutions.
A network of plain layers gets it at the end of each resolution, as does every network with "stages". The stems of
residual networks and predictions, which no further layer reads, get none.

Where a value is returned by several modules (a norm, the Sequential around it), the innermost that computed it stands
for it. Modules that are called more than once in a forward stand for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

from torch import nn

from attendo.insertion.dry_run import CONVOLUTIONS, SUMS, WORK, Call, Trace, Value
from attendo.insertion.inserted import Inserted

Place = tuple[str, str]  # path, kind


def auto(traced: Trace) -> list[Place]:
    """Before every residual sum; after each block without one; after each resolution where there are no blocks."""
    residual = list(_residual_sums(traced))
    blocks = _blocks(traced, traced.root, {frame for frame, _ in residual})
    found = [(value, "residual") for _, value in residual] + blocks
    if not found:
        found = [(value, "stage") for value in _ends(traced, traced.root.children)]
    return _places(traced, sorted(found, key=lambda place: place[0].index))


def stages(traced: Trace) -> list[Place]:
    """After the last block of each run of blocks at one resolution."""
    return _places(traced, ((value, "stage") for value in _ends(traced, list(_trunk(traced, traced.root)))))


def site_of(traced: Trace, value: Value) -> str | None:
    """Return the path of the module that stands for a value, or None."""
    # a value that no module computed may still pass through one on its only way: drop path, an identity
    passing = [call for call in value.returned_by if len(value.users) == 1 and value.users[0].frame is call.parent]
    for call in value.makers or passing:
        ours = any(isinstance(frame.module, Inserted) for frame in call.line)
        if not ours and call.path and len(traced.calls[call.path]) == 1:
            return call.path
    return None


def feeds(value: Value, end: int = 0) -> bool:
    """Whether a layer with weights, computed at index ``end`` or later, reads the value, however indirectly."""
    seen, todo = {value}, [value]
    while todo:
        for user in todo.pop().users:
            if user.op in WORK and user.index >= end:
                return True
            if user not in seen:
                seen.add(user)
                todo.append(user)
    return False


def residual_convolutions(traced: Trace) -> list[str]:
    """Return the first convolution wider than 1 x 1 of every residual block: the one that PSA and SK replace."""
    found = []
    for frame, _ in _residual_sums(traced):
        inside = (calls[0] for calls in traced.calls.values() if frame in calls[0].line)
        wide = (_owner(call).path for call in inside if max(_kernel(call)) > 1)
        found += [path for path, _ in zip(wide, range(1), strict=False)]
    return list(dict.fromkeys(found))


def _owner(call: Call) -> Call:
    """The call itself, or that of the mechanism of ours which it belongs to."""
    return next((frame for frame in call.line if isinstance(frame.module, Inserted)), call)


def _kernel(call: Call) -> tuple[int, ...]:
    return call.module.kernel_size if isinstance(call.module, nn.Conv2d) else (0,)


def _places(traced: Trace, found: Iterable[tuple[Value, str]]) -> list[Place]:
    places: dict[str, str] = {}
    for value, kind in found:
        path = site_of(traced, value)
        if path is not None and value.axis in (1, None):
            places.setdefault(path, kind)
    return list(places.items())


def _residual_sums(traced: Trace) -> Iterator[tuple[Call, Value]]:
    """Yield the frame of every residual sum, and the branch that enters it."""
    work: dict[Call, dict[Value, tuple[frozenset[Value], int]]] = {}
    for total in traced.values:
        if total.op not in SUMS or total.frame is None or len(total.shape) != 4 or len(total.inputs) != 2:
            continue
        if any(value.shape != total.shape for value in total.inputs):
            continue
        frame = total.frame
        if frame not in work:
            work[frame] = _lineage(traced, frame)
        lineage = work[frame]
        shortcut, branch = sorted(total.inputs, key=lambda value: lineage[value][1] if value in lineage else 0)
        if branch not in lineage or (branch.op in SUMS and not branch.makers):
            continue
        sources, depth = lineage[branch]
        shortcut_sources, shortcut_depth = lineage.get(shortcut, (frozenset((shortcut,)), 0))
        if depth <= shortcut_depth or not shortcut_sources <= sources:
            continue
        projection = shortcut_depth <= 1 and _is_end(total, frame)
        if projection or _descends(branch, shortcut):
            yield frame, _before_scaling(branch)


def _lineage(traced: Trace, frame: Call) -> dict[Value, tuple[frozenset[Value], int]]:
    """For each value of a frame: which values from outside it stems from, and through how many layers with weights."""
    lineage: dict[Value, tuple[frozenset[Value], int]] = {}
    for value in traced.values[frame.start : frame.end]:
        sources: set[Value] = set()
        depth = 0
        for source in value.inputs:
            if source in lineage:
                sources |= lineage[source][0]
                depth = max(depth, lineage[source][1])
            else:
                sources.add(source)
        lineage[value] = (frozenset(sources), depth + (value.op in WORK))
    return lineage


def _descends(value: Value, ancestor: Value) -> bool:
    seen, todo = set(), [value]
    while todo:
        for source in todo.pop().inputs:
            if source is ancestor:
                return True
            if source not in seen and source.index > ancestor.index:
                seen.add(source)
                todo.append(source)
    return False


def _is_end(total: Value, frame: Call) -> bool:
    """Whether the frame returns the sum, at most rectified or normalised."""
    value = frame.output
    while value is not None and value is not total:
        same = len(value.inputs) == 1 and value.inputs[0].shape == value.shape and value.op not in WORK
        value = value.inputs[0] if same else None
    return value is total


def _before_scaling(value: Value) -> Value:
    """Step back over layer scale and the like (a product with a constant), to statistics of natural size."""
    best, step = value, value
    while len(step.inputs) == 1 and "mul" in str(step.op) and step.inputs[0].shape == step.shape:
        step = step.inputs[0]
        if step.makers and step.axis in (1, None):
            best = step
    return best


def _convolutions(traced: Trace, call: Call) -> int:
    return sum(value.op in CONVOLUTIONS and value.is_map for value in traced.values[call.start : call.end])


def _resolutions(traced: Trace, call: Call) -> int:
    """How many resolutions the convolutions of a call work at, its input's included."""
    inside = [v for v in traced.values[call.start : call.end] if v.op in CONVOLUTIONS]
    return len({v.shape[2:] for v in [*inside, *call.inputs[:1]] if v.is_map})


def _children(call: Call) -> list[Call]:
    return [child for child in call.children if not isinstance(child.module, Inserted)]


def _blocks(traced: Trace, call: Call, residual: set[Call]) -> list[tuple[Value, str]]:
    """The outputs of the blocks below a call that have no residual sum, and what they are."""
    found: list[tuple[Value, str]] = []
    for child in _children(call):
        if child in residual or _convolutions(traced, child) < 2:
            continue
        if any(child in frame.line for frame in residual):
            found += _blocks(traced, child, residual)
        elif _is_head(traced, child):
            if child.output is not None:  # not a detector's list of predictions, but there may be blocks before its end
                found += _blocks(traced, child, residual)
        elif child.output is None or _resolutions(traced, child) > 2 or _is_chain(traced, child):
            inner = _blocks(traced, child, residual)
            plain = not any(grandchild.children for grandchild in _children(child))
            found += [(value, "stage") for value in _ends(traced, _children(child))] if plain and not inner else inner
        elif child.output.is_map and not (residual and _reads_image(child)):
            found.append((child.output, "block"))
    return found


def _is_chain(traced: Trace, call: Call) -> bool:
    """Whether a call is nothing but blocks that feed each other, as a stage is; parallel branches are no chain."""
    blocks = [child for child in _children(call) if _convolutions(traced, child) >= 2]
    if len(blocks) < 2 or sum(_convolutions(traced, b) for b in blocks) < _convolutions(traced, call):
        return False
    outputs = [block.output for block in blocks]
    return all(a is not None and b is not None and _descends(b, a) for a, b in pairwise(outputs))


def _is_head(traced: Trace, call: Call) -> bool:
    """Whether a call ends in predictions: one map of that kind, or several tensors that no layer after it reads."""
    if call.output is not None:
        return _is_prediction(call.output)
    return not any(feeds(value, call.end) for value in traced.values[call.start : call.end])


def _is_prediction(value: Value) -> bool:
    """Whether a map is a convolution, or a sum of some, that no further layer reads; features end in something else."""
    bare = value.op in CONVOLUTIONS or (value.op in SUMS and all(source.op in CONVOLUTIONS for source in value.inputs))
    return bare and not feeds(value)


def _reads_image(call: Call) -> bool:
    """Whether a call reads the network's own input."""
    return any(not value.inputs for value in call.inputs)


def _trunk(traced: Trace, call: Call) -> Iterator[Call]:
    """The calls below a call that each stay at one resolution or change it once."""
    for child in _children(call):
        if child.children and (child.output is None or _resolutions(traced, child) > 2):
            if child.output is not None or not _is_head(traced, child):
                yield from _trunk(traced, child)
        else:
            yield child


def _ends(traced: Trace, calls: list[Call]) -> list[Value]:
    """The last map of each run of calls at one resolution, if it has a block, or is the work of two plain layers."""
    runs: list[list[tuple[Call, Value, int]]] = []
    for call in calls:
        value = call.output
        if value is not None and value.is_map:
            if not runs or runs[-1][-1][1].shape[2:] != value.shape[2:]:
                runs.append([])
            runs[-1].append((call, value, _convolutions(traced, call)))
    among_blocks = any(count >= 2 for run in runs for _, _, count in run)
    residual = among_blocks and any(True for _ in _residual_sums(traced))
    ends = []
    for run in runs:
        blocks = [item for item in run if item[2] >= 2 and not (residual and _reads_image(item[0]))]
        plain = not any(call.children for call, _, _ in run) and sum(n for _, _, n in run) > among_blocks
        values = [value for _, value, _ in (blocks or run)] if blocks or plain else []
        good = (v for v in reversed(values) if site_of(traced, v) and not _is_prediction(v))
        ends += [value for value, _ in zip(good, range(1), strict=False)]
    return ends
