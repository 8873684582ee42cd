"""Swap the attention a network has for another mechanism, or its convolutions for one that replaces convolutions.

Attention of torchvision, timm, Ultralytics and others is known by the name of its class, which needs none of them
installed, and by what it does in the dry run: one feature map in, one of the same shape out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from attendo._errors import InvalidArgument
from attendo.insertion import places
from attendo.insertion.dry_run import Trace, trace
from attendo.insertion.fitting import costs, fit, settings_at, settle
from attendo.insertion.inserted import Inserted, Replaced, Start, attach, insertions
from attendo.insertion.placement import rehearse
from attendo.insertion.selection import check_network, match, site_at
from attendo.insertion.sites import Sites, Where
from attendo.layers import Attention, AttentionConv
from attendo.layers._base import LAYERS

# what others call these mechanisms; compared in lower case without underscores
CLASS_NAMES = {
    "cbam": r"(light)?cbam\w*",
    "eca": r"c?eca(net)?(module|layer|block|attention)?",
    "scse": r"scse(module|layer|block)?",
    "se": r"(effective|channel)?(se|squeezeexcit\w*|squeezeandexcit\w*)(module|layer|block|unit|attention)?",
    "bam": r"bam(module|layer|block)?",
    "simam": r"simam(module|layer|block)?",
    "coord": r"coord(inate)?att(n|ention)?",
    "triplet": r"triplet(att(n|ention)?)?",
    "gc": r"(globalcontext|gc)(module|layer|block)?",
    "ge": r"(gatherexcite|ge)(module|layer|block)?",
    "fca": r"(fca|multispectralattention)(module|layer|block)?",
}


def replace(
    model: nn.Module,
    attention: str,
    what: Where | None = None,
    *,
    start: Start = "paper",
    input_size: tuple[int, ...] = (3, 224, 224),
    example_inputs: Any = None,
    **settings: Any,
) -> Sites:
    """Put a mechanism in the place of existing attention, or of convolutions, and return what was done.

    What stood there is kept out of sight, gets the weights of a checkpoint of the old network, and comes back with
    ``remove``. Its parameters no longer count. A call that fails leaves the network as it was.

    Args:
        model: any network.
        attention: name of the mechanism to put in. One that replaces convolutions (PSA, SK) takes the place of
            convolutions, all others that of attention.
        what: which modules: a path, glob, regular expression or list of these; a function that is asked for each
            ``Site`` with attention. None takes all attention, or the first convolution wider than 1 x 1 of every
            residual block.
        start: ``"paper"``: the mechanism as published; the network computes something else from now on.
            ``"identity"``: the mechanism passes its map on unchanged at first; not for one that replaces convolutions.
        input_size: channels, height, width of the image of the dry run.
        example_inputs: see ``insert``.
        settings: of the mechanism, as in ``insert``.

    Raises:
        InvalidArgument: there is nothing to replace, a module that is called twice or does not keep the shape of its
            map, or a convolution whose padding or dilation the mechanism does not have; further see ``insert``.
        UnknownName: no such mechanism.
        TypeError: a setting the mechanism does not have.
    """
    check_network(model, "replace")
    convolves = issubclass(LAYERS[attention], AttentionConv)
    if start not in ("identity", "paper") or (start == "identity" and convolves):
        raise InvalidArgument(
            f"replace: start={start!r} with {attention!r}; a mechanism starts as 'paper' or, unless it replaces "
            f"convolutions, as 'identity'. Leave start out."
        )
    traced = trace(model, input_size, example_inputs, "replace")
    found = _convolutions(traced, what) if convolves else _attention(traced, what)
    chosen = settings_at(found, settings, "replace")
    held = {path: inserted for path, _, inserted in insertions(model, "replace")}
    done, planned = Sites(), []
    for site, own in zip(found, chosen, strict=True):
        present, original = held.get(site.path), None
        if convolves and present is not None and not isinstance(present, Replaced):
            raise InvalidArgument(
                f"replace: behind the convolution {site.path!r} there is {present.name!r}, which would lose its place. "
                f"Call remove(model, [{site.path!r}]) first, or name other convolutions."
            )
        arguments: tuple[int, ...] = (site.channels,)
        size = (site.height, site.width)
        if isinstance(present, Replaced):
            original = present.original
        elif present is None:
            original = model.get_submodule(site.path)
        if convolves and isinstance(original, nn.Conv2d):
            arguments = (original.in_channels, original.out_channels, original.stride[0])
            size = (size[0] * arguments[2], size[1] * arguments[2])
        inserted = fit(site, attention, arguments, own, start, "replace", original)
        done.append(costs(site, inserted, size))
        planned.append((site.path, inserted))
    rehearse(traced, planned, "replace")
    for path, inserted in planned:
        settle(inserted, model, path)
        attach(model, path, inserted)
    return done


def kind_of(module: nn.Module) -> str | None:
    """Return the mechanism that a module is, by our registry or by the name of its class, or None."""
    if isinstance(module, Inserted):
        return module.name
    if isinstance(module, Attention):
        return next((name for name in LAYERS if LAYERS[name] is type(module)), type(module).__name__)
    name = type(module).__name__.replace("_", "").lower()
    return next((kind for kind, pattern in CLASS_NAMES.items() if re.fullmatch(pattern, name)), None)


def existing(traced: Trace) -> Iterator[tuple[str, str]]:
    """Yield (path, kind) of the attention in a network: of modules that are attention, and of sites that have it."""
    inside: tuple[str, ...] = ()
    held = {path: inserted.name for path, _, inserted in insertions(traced.model, "replace")}
    for path, module in traced.model.named_modules():
        kind = kind_of(module)
        if path in held:  # what was inserted behind a module, be it attention itself, goes first
            inside += (f"{path}.",)
            yield path, held[path]
            continue
        if kind is None or path.startswith(inside) or isinstance(module, AttentionConv):
            continue
        inside += (f"{path}.",)
        if not isinstance(module, Inserted) and _why_not(traced, path) is None:
            yield path, kind


def _attention(traced: Trace, what: Where | None) -> Sites:
    known = dict(existing(traced))
    if what is None or callable(what):
        paths = [path for path, kind in known.items() if what is None or what(site_at(traced, path, kind))]
        if not paths:
            raise InvalidArgument(
                f"replace: what={what!r} finds no attention in {type(traced.model).__name__}; known "
                f"there: {', '.join(known) or 'none'}. Name modules, e.g. what='**.se', or insert it where none is."
            )
    else:
        named = match(traced.model, what, "replace")
        paths = [path for path in named if path in known] or named
    for path in paths:
        reason = None if path in known else _why_not(traced, path)
        if reason is not None:
            raise InvalidArgument(f"replace: {path!r} {reason}")
    return Sites(site_at(traced, path, known.get(path, "module")) for path in paths)


def _why_not(traced: Trace, path: str) -> str | None:
    calls = traced.calls.get(path, [])
    if len(calls) != 1:
        return (
            f"is called {len(calls)} times in the dry run; what is replaced is called once. Name another module, or "
            f"pass example_inputs that reach it."
        )
    call = calls[0]
    came = call.inputs[0].shape if len(call.inputs) == 1 else ()
    if call.output is None or len(came) != 4 or call.output.shape != came:
        return (
            f"returns {call.returned} for inputs of shape {[value.shape for value in call.inputs]}; attention turns "
            f"one map into another of the same shape. Name the module that does, or edit the forward that uses it."
        )
    return None


def _convolutions(traced: Trace, what: Where | None) -> Sites:
    if what is None:
        paths = places.residual_convolutions(traced)
    elif callable(what):
        leaves = [path for path, calls in traced.calls.items() if isinstance(calls[0].module, nn.Conv2d)]
        paths = [path for path in leaves if what(site_at(traced, path, "convolution"))]
    else:
        paths = match(traced.model, what, "replace")
    if not paths:
        raise InvalidArgument(
            f"replace: what={what!r} finds no convolution in a residual block of {type(traced.model).__name__}. Name "
            f"convolutions, e.g. what='**.conv2'."
        )
    for path in paths:
        module = traced.model.get_submodule(path)
        module = module.original if isinstance(module, Replaced) else module
        if not isinstance(module, nn.Conv2d):
            raise InvalidArgument(
                f"replace: {path!r} is a {type(module).__name__}; this mechanism replaces Conv2d modules. Name those."
            )
        fits = module.padding == "same" or module.padding == tuple(side // 2 for side in module.kernel_size)
        if not fits or module.dilation != (1, 1) or len(set(module.stride)) > 1 or len(traced.calls.get(path, [])) != 1:
            raise InvalidArgument(
                f"replace: {path!r} has kernel_size={module.kernel_size}, padding={module.padding}, "
                f"stride={module.stride}, dilation={module.dilation} and is called {len(traced.calls.get(path, []))} "
                f"times; what is replaced keeps the size of its map (padding kernel_size // 2, no dilation, one "
                f"stride) and is called once. Name other convolutions."
            )
    return Sites(site_at(traced, path, "convolution") for path in paths)
