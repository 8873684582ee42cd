"""Published weights into our networks: by name, into a model, or with neither, where the checkpoint says what it is."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from attendo._errors import CheckpointError, UnknownName
from attendo._registry import did_you_mean
from attendo.checkpoints import mobilenet
from attendo.checkpoints.conversion import convert, fit, without_prefix
from attendo.checkpoints.dialects import NETWORKS, PLAIN, is_litter
from attendo.checkpoints.download import Progress
from attendo.checkpoints.files import KEY, load, read_metadata, unwrapped
from attendo.checkpoints.header import read_header
from attendo.checkpoints.identity import identity_recipe
from attendo.checkpoints.mechanisms import MODULES
from attendo.checkpoints.reading import flat, locate, read_state
from attendo.checkpoints.recipe import Recipe, build
from attendo.insertion.inserted import Inserted
from attendo.layers import Attention
from attendo.layers._base import LAYERS
from attendo.layers.cbam_spatial import SpatialGate
from attendo.models.spec import NONE, parse_attention
from attendo.models.zoo import BASES, NAMED

Source = str | Path | Mapping[str, Any]

_log = logging.getLogger("attendo")


def load_weights(target: nn.Module | str | None, source: Source, *, progress: Progress | None = None) -> nn.Module:
    """Load a checkpoint that official code, timm, torchvision or attendo published.

    Args:
        target: a model to load into; a name such as ``"eca_resnet34"``, which is built as the variant that the
            checkpoint is (kernels, hidden widths, biases, small or large, classes); or None, and the checkpoint says
            which network it is.
        source: a path, an http(s) URL, ``hf-hub:owner/repository``, or a state dict.
        progress: called during downloads with the bytes so far and, if known, in all.

    Returns:
        The model with the weights, in eval mode. What the checkpoint was found to be goes to the log ``attendo``.

    Raises:
        FileNotFoundError: no such file.
        UnknownName: no such network.
        CheckpointError: the file is damaged or carries code; nobody known names a network so; or it is another network
            than was asked for. Every entry of the checkpoint and of the model is accounted for, or this is raised.
    """
    if isinstance(target, str):
        _known(target)
    if not isinstance(source, Mapping):
        path = locate(source, progress)
        if describes_itself(path):
            return _from_own_file(target, path)
        state = read_state(path)
    else:
        state = flat(source, "state dict")
    if isinstance(target, nn.Module):
        load_into(target, state)
        return target.eval()
    if isinstance(target, str) and _asked_for(target) is None:
        return _into_named(target, state)
    try:
        conversion = convert(state)
    except CheckpointError:
        if isinstance(target, str) and timm.is_model(target) and target not in {*BASES, *NAMED}:
            return _into_named(target, state)  # timm's, of a name like ours, and another network
        raise
    _log.info("%s", conversion)
    recipe, weights = conversion.recipe, conversion.state
    base, mechanism = _asked_for(target) or ("", "") if target is not None else (conversion.base, conversion.mechanism)
    if base == conversion.base and mechanism != conversion.mechanism == NONE:
        if base == mobilenet.BASE:
            recipe = mobilenet.identity(recipe, weights)
        else:
            recipe = identity_recipe(str(target), mechanism, recipe)
        _log.info("no attention in the checkpoint: %r is inserted with an identity start", mechanism)
    elif (base, mechanism) != (conversion.base, conversion.mechanism):
        there = conversion.base + (f" with {conversion.mechanism}" if conversion.mechanism != NONE else "")
        raise CheckpointError(
            f"{target}: the checkpoint is {there} ({conversion}); depth and mechanism must be those asked for. "
            f"Pass None to take it as it is."
        )
    model = build(recipe)
    load_converted(model, weights)
    return model


def describes_itself(path: Path) -> bool:
    """Tell whether ``save`` wrote a file."""
    with path.open("rb") as file:
        return file.read(9)[8:9] == b"{" and KEY in read_header(path).metadata


def _from_own_file(target: nn.Module | str | None, path: Path) -> nn.Module:
    """Load a file that ``save`` wrote."""
    model = load(path)
    if isinstance(target, nn.Module):
        load_into(target, model.state_dict())
        return target.eval()
    recipe = read_metadata(path).recipe
    if target is not None and target != recipe.name:
        attention, _ = parse_attention(recipe.arguments.get("attention"))
        there = (recipe.name, attention) if recipe.name in BASES else _asked_for(recipe.name)
        if there is None or there != _asked_for(target):
            raise CheckpointError(
                f"{path}: describes itself as {recipe}, and {target!r} was asked for. Pass None to take it as it is."
            )
    return model


def _known(name: str) -> None:
    """Refuse a name that stands for nothing, before anything is downloaded."""
    import timm

    if (
        _asked_for(name) is None
        and not name.startswith(("timm/", "torchvision/"))
        and not timm.is_model(name.split(".")[0])
    ):
        raise UnknownName(f"model {name!r}: not known. {did_you_mean(name, [*BASES, *NAMED, *timm.list_models()])}")


def _asked_for(name: str) -> tuple[str, str] | None:
    """Return the plain network and the mechanism that a name stands for, or None if it is no ResNet of ours.

    >>> _asked_for("eca_resnet34"), _asked_for("seresnet50"), _asked_for("epsanet50_large")
    (('resnet34', 'eca'), ('resnet50', 'se'), ('resnet50', 'psa'))
    """
    if name in BASES:
        return name, NONE
    if re.fullmatch(r"eca_mobilenet_?v2", name):
        return mobilenet.BASE, "eca"
    if match := re.fullmatch(r"epsanet(\d+)(?:_small|_large)?", name):
        return (f"resnet{match[1]}", "psa") if f"resnet{match[1]}" in BASES else None
    match = re.fullmatch(r"(.+?)_?(resnet\d+)(?:_cifar)?", name)
    if match and match[1] in LAYERS and match[2] in BASES:
        return match[2], match[1]
    return None


def _into_named(name: str, state: Mapping[str, Tensor]) -> nn.Module:
    """Build a network of timm's or torchvision's with the checkpoint's number of classes, and load it."""
    heads = [value for key, value in state.items() if value.ndim == 1 and key.endswith("bias")]
    classes = {"num_classes": len(heads[-1])} if heads else {}
    model = build(Recipe(name, classes))
    load_into(model, state)
    return model


def load_into(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dict into a model: under its own names, or under those of a known source.

    All of the model's attention may be missing, and then stays as it is; everything else must be there.

    Raises:
        CheckpointError: no reading of the names fits the model; it is unchanged.
    """
    model = unwrapped(model)
    whole = {key: value for key, value in state.items() if not is_litter(key)}
    bare, _ = without_prefix(whole)
    if all(key in model.state_dict() for key in whole):
        bare = whole
    reasons: list[tuple[int, str]] = []
    for reading in _readings(model):
        names = {key: reading.rename(key) for key in bare}
        unknown = [key for key, ours in names.items() if ours is None]
        if unknown:
            if len(unknown) < len(names):
                reasons.append((len(unknown), f"{reading.source}: has no {unknown[0]!r}"))
            continue
        try:
            tensors = {str(names[key]): value for key, value in bare.items()}
            fitted, absent = _fit_around(model, tensors, reading.computed)
        except CheckpointError as error:
            reasons.append((0, f"{reading.source}: {error}"))
            continue
        _reorder(model, fitted, reading.max_first)
        load_converted(model, fitted)
        if absent:
            _log.info("no attention in the checkpoint: its %d tensors in the model stay as they are", len(absent))
        return
    closest = " | ".join(text for _, text in sorted(reasons)[:3])
    raise CheckpointError(
        f"{type(model).__name__}: the checkpoint's {len(bare)} tensors do not fit it under any known naming; every one "
        f"must have its place. Closest: {closest}"
    )


@dataclass(frozen=True)
class _Reading:
    """A way to understand the names in a checkpoint."""

    source: str
    rename: Callable[[str], str | None]
    computed: tuple[str, ...] = ()
    max_first: bool | None = None


def _readings(model: nn.Module) -> Iterator[_Reading]:
    """Yield the ways in which a checkpoint of this model may be named, the model's own first."""
    yield _Reading("its own names", str)
    if isinstance(model, Attention):
        name = next(name for name in LAYERS if LAYERS[name] is type(model))
        dialects = [dialect for dialect in (*NETWORKS, *MODULES) if dialect.mechanism == name]
    else:
        dialects = [PLAIN, *NETWORKS]
    for dialect in dialects:
        rename = dialect.rename_own if isinstance(model, Attention) else dialect.rename_whole
        yield _Reading(dialect.source, rename, dialect.computed, dialect.settings.get("max_first"))
    yield _Reading("torchvision, BangguWu/ECANet", mobilenet.rename)


def _fit_around(
    model: nn.Module, tensors: Mapping[str, Tensor], computed: tuple[str, ...]
) -> tuple[dict[str, Tensor], list[str]]:
    """Fit tensors to a model whose attention may be missing as a whole; return them, and what stays as it is."""
    wanted = model.state_dict()
    followed = {key.replace(".conv2.", ".conv2.0."): key for key in tensors}  # where a mechanism wraps the convolution
    tensors = {
        (moved if key not in wanted and moved in wanted else key): tensors[key] for moved, key in followed.items()
    }
    tensors = {key: value for key, value in tensors.items() if key.rpartition(".")[2] not in computed}
    paths = [f"{path}." for path, module in model.named_modules() if path and isinstance(module, Attention | Inserted)]
    attention = [key for key in wanted if key.startswith(tuple(paths))]
    if attention and not any(key in tensors for key in attention):
        held = {key: wanted[key] for key in attention}
        return fit({**tensors, **held}, model, computed), attention
    return fit(tensors, model, computed), []


def _reorder(model: nn.Module, state: dict[str, Tensor], max_first: bool | None) -> None:
    """Swap the input channels of spatial convolutions where the source sees mean and maximum in the other order."""
    for path, module in model.named_modules():
        if isinstance(module, SpatialGate) and max_first is not None and module.max_first != max_first:
            key = f"{path}.conv.weight" if path else "conv.weight"
            state[key] = state[key].flip(1)


def load_converted(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy fitted tensors into a model; entries that it computes itself stay."""
    model.load_state_dict({**model.state_dict(), **state})
