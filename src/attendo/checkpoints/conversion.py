"""A published checkpoint under our names: who speaks so, which network it is, every key accounted for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from attendo._errors import CheckpointError
from attendo.checkpoints import mobilenet
from attendo.checkpoints.architecture import resnet_of
from attendo.checkpoints.dialects import NETWORKS, PLAIN, Dialect, is_litter
from attendo.checkpoints.recipe import Recipe, build_on_meta, difference, plain
from attendo.checkpoints.settings import READERS
from attendo.layers._base import LAYERS
from attendo.models.spec import NONE
from attendo.models.zoo import BASES, NAMED


@dataclass(frozen=True)
class Conversion:
    """What a checkpoint turned out to be.

    Attributes:
        source: who publishes under its names.
        base: the plain network around the mechanism.
        mechanism: its name, ``"none"`` for a plain network.
        recipe: how to build the network.
        state: its weights under our names, in our shapes.
        renamed: their name -> ours, for every entry that was kept.
        dropped: their names of entries that were left out.
        notes: what else to know.
    """

    source: str
    base: str
    mechanism: str
    recipe: Recipe
    state: dict[str, Tensor]
    renamed: dict[str, str]
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = [f"{self.recipe}, as named by {self.source}: {len(self.renamed)} tensors"]
        words += [f"{len(self.dropped)} dropped ({', '.join(self.dropped[:3])} ...)"] if self.dropped else []
        return "; ".join([*words, *self.notes])


def convert(state: Mapping[str, Tensor]) -> Conversion:
    """Find out what a state dict is, and put it under our names.

    Args:
        state: as published; a common prefix such as ``module.`` is taken off.

    Raises:
        CheckpointError: nobody known names a network so, or the network has no counterpart here; says what is closest.
    """
    state, prefix = without_prefix(state)
    litter = tuple(key for key in state if is_litter(key))
    state = {key: value for key, value in state.items() if key not in litter}
    failures: list[tuple[int, str]] = []
    try:
        if (found := _mobilenet(state)) is not None:
            return replace(found, dropped=litter)
    except CheckpointError as error:
        failures.append((0, f"a MobileNetV2: {error}"))
    for dialect in (PLAIN, *NETWORKS):
        names = {key: dialect.rename(key) for key in state}
        strangers = [key for key, ours in names.items() if ours is None]
        spoken = any(ours is not None and ours[0] for ours in names.values())
        if strangers or (dialect is not PLAIN and not spoken):
            if spoken or dialect is PLAIN:
                more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
                failures.append((len(strangers), f"{dialect.source}: has no {strangers[0]!r}{more}"))
            continue
        try:
            conversion = _understand(dialect, state, {key: ours for key, ours in names.items() if ours is not None})
        except CheckpointError as error:
            failures.append((0, f"{dialect.source}: {error}"))
            continue
        notes = (f"the prefix {prefix!r} was taken off",) if prefix else ()
        return replace(conversion, dropped=conversion.dropped + litter, notes=notes + conversion.notes)
    closest = " | ".join(text for _, text in sorted(failures, key=lambda failure: failure[0])[:3])
    first = ", ".join(list(state)[:3])
    raise CheckpointError(
        f"checkpoint of {len(state)} tensors ({first} ...): no known source names a network exactly so; every entry "
        f"must be known. Closest: {closest}"
    )


def _mobilenet(state: Mapping[str, Tensor]) -> Conversion | None:
    if "features.1.conv.0.0.weight" not in state or "classifier.1.bias" not in state:
        return None
    renamed = {key: mobilenet.rename(key) for key in state}
    if None in renamed.values():
        raise CheckpointError(f"has no {next(key for key, ours in renamed.items() if ours is None)!r}")
    tensors = {str(ours): state[key] for key, ours in renamed.items()}
    mechanism, recipe = mobilenet.recipe_of(tensors)
    return Conversion(
        source="BangguWu/ECANet" if mechanism == "eca" else "torchvision",
        base=mobilenet.BASE,
        mechanism=mechanism,
        recipe=recipe,
        state=fit(tensors, build_on_meta(recipe)),
        renamed={key: str(ours) for key, ours in renamed.items()},
    )


def without_prefix(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Take off what wrappers put before every key: DataParallel, torch.compile, Lightning modules."""
    prefix, found = "", True
    kept = dict(state)
    while found:
        found = False
        for word in ("module.", "_orig_mod.", "model.", "net.", "backbone.", "encoder."):
            if kept and all(key.startswith(word) for key in kept):
                kept = {key.removeprefix(word): value for key, value in kept.items()}
                prefix, found = prefix + word, True
    return kept, prefix


def _understand(dialect: Dialect, state: Mapping[str, Tensor], names: Mapping[str, tuple[str, str]]) -> Conversion:
    """Derive the network from entries that all have a name."""
    renamed = {key: "".join(ours) for key, ours in names.items()}
    if len(set(renamed.values())) < len(renamed):
        raise CheckpointError("two of its entries get the same name")
    tensors = {renamed[key]: value for key, value in state.items()}
    base, arguments = resnet_of({key: tuple(value.shape) for key, value in tensors.items()})
    arguments |= _attention(dialect, base, state, names)
    recipe = _shortest(Recipe(base, plain(arguments, base)), base, dialect.mechanism)
    computed = [key for key, (path, own) in names.items() if path and own in dialect.computed]
    fitted = fit(
        {key: value for key, value in tensors.items() if key not in {renamed[c] for c in computed}},
        build_on_meta(recipe),
        dialect.computed,
    )
    return Conversion(
        source=dialect.source,
        base=base,
        mechanism=dialect.mechanism,
        recipe=recipe,
        state=fitted,
        renamed={key: ours for key, ours in renamed.items() if key not in computed},
        dropped=tuple(computed),
        notes=(dialect.note,) if dialect.note else (),
    )


def _attention(
    dialect: Dialect, base: str, state: Mapping[str, Tensor], names: Mapping[str, tuple[str, str]]
) -> dict[str, Any]:
    """Return the arguments that give the base its mechanism, read stage by stage from the last block of each."""
    if dialect is PLAIN:
        return {}
    stages: dict[int, dict[str, dict[str, Tensor]]] = {}
    for key, (path, own) in names.items():
        if path:
            stages.setdefault(int(path[len("layer")]), {}).setdefault(path, {})[own] = state[key]
    read = {
        stage: {**READERS[dialect.mechanism](list(places.values())[-1]), **dialect.settings}
        for stage, places in stages.items()
    }
    kept = [_brief(dialect.mechanism, read.get(stage, {})) for stage in range(1, len(BASES[base].layers) + 1)]
    present = [kept[stage - 1] for stage in sorted(read)]
    same = all(settings == present[0] for settings in present)
    settings: Any = present[0] if same else kept
    return {"attention": dialect.mechanism, **({"attention_args": settings} if settings else {})}


def _brief(mechanism: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Leave out what the mechanism does by itself."""
    if mechanism == "cbam":
        three = tuple(settings.get(word) for word in ("bias", "spatial_norm", "max_first"))
        others = {key: value for key, value in settings.items() if key not in ("bias", "spatial_norm", "max_first")}
        if three[:2] == (True, True) and three[2] is not False:
            settings = others
        elif three[:2] == (False, False) and three[2] is not True:
            settings = {**others, "variant": "paper"}
    defaults = inspect.signature(LAYERS[mechanism]).parameters
    return {key: value for key, value in settings.items() if defaults[key].default != value}


def _shortest(recipe: Recipe, base: str, mechanism: str) -> Recipe:
    """Return the recipe of a named network if it builds the same."""
    if mechanism == NONE:
        return recipe
    try:
        model = build_on_meta(recipe)
    except CheckpointError as error:
        raise CheckpointError(f"it looks like {recipe}, which cannot be built: {error.__cause__}") from error
    others = {
        k: v for k, v in recipe.arguments.items() if k not in ("attention", "attention_args", "stem", "base_width")
    }
    for name, network in NAMED.items():
        row = network.args
        alike = (network.block, network.layers) == (BASES[base].block, BASES[base].layers)
        if alike and row.get("attention") == mechanism and row.get("stem") == recipe.arguments.get("stem"):
            named = Recipe(name, others)
            if difference(model, build_on_meta(named)) is None:
                return named
    return recipe


def fit(state: Mapping[str, Tensor], model: nn.Module, computed: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Put tensors into the shapes of a network's entries.

    A 1x1 convolution and a fully connected layer with the same numbers are the same, and counters that checkpoints from
    before PyTorch 0.4.1 lack start at 0. Nothing else gives way.

    Args:
        state: tensors under our names.
        model: the network, possibly without memory.
        computed: last words of entries that the network computes and that may be missing.

    Raises:
        CheckpointError: an entry is missing, has no place, or has another shape.
    """
    wanted = model.state_dict()
    fitted: dict[str, Tensor] = {}
    for key, target in wanted.items():
        value = state.get(key)
        if value is None and key.endswith("num_batches_tracked"):
            value = torch.zeros((), dtype=torch.int64)
        if value is None:
            if key.rpartition(".")[2] in computed:
                continue
            raise CheckpointError(f"it lacks what we call {key!r}, {list(target.shape)}")
        if _bare(value.shape) != _bare(target.shape):
            raise CheckpointError(f"what we call {key!r} has shape {list(value.shape)} instead of {list(target.shape)}")
        fitted[key] = value.detach().reshape(target.shape)
    strangers = [key for key in state if key not in wanted]
    if strangers:
        raise CheckpointError(f"what we call {strangers[0]!r} has no place in {type(model).__name__}")
    return fitted


def _bare(shape: torch.Size) -> tuple[int, ...]:
    """Return a shape without the 1x1 of a convolution at its end; the first two axes stay."""
    sizes = list(shape)
    while len(sizes) > 2 and sizes[-1] == 1:
        sizes.pop()
    return tuple(sizes)
