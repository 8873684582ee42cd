"""What a model is made of, as plain values, and the model made again from them.

A recipe is a name, the arguments of ``create_model`` and the mechanisms inserted since. Before weights are written the
recipe is followed once without memory (on the meta device) and compared with the model: a file that would give
another network is never written.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import timm
import torch
from torch import nn

from attendo._errors import AttendoError, CheckpointError, InvalidArgument, UnknownName
from attendo._registry import did_you_mean
from attendo.insertion.inserted import Inserted, Replaced, attach, insertions
from attendo.layers import Attention, layer
from attendo.models import create_model

TIMM, TORCHVISION = "timm/", "torchvision/"

# The arguments that a file may ask for. Others are refused: some download, some run code, some build without end.
ARGUMENTS = frozenset(
    {
        *("attention", "attention_args", "stem", "num_classes", "in_chans", "global_pool", "output_stride"),
        *("drop_rate", "drop_path_rate", "drop_block_rate", "zero_init_last", "features_only", "out_indices"),
        *("base_width", "cardinality", "stem_width", "stem_type", "replace_stem_pool", "block_reduce_first"),
        *("down_kernel_size", "avg_down", "channels", "img_size", "aux_logits", "init_weights", "dropout"),
        *("act_layer", "norm_layer", "block_args"),
    }
)
LARGEST = 2**24  # a whole number in a recipe: classes, pixels, channels


@dataclass(frozen=True)
class Recipe:
    """How to build a model.

    Attributes:
        name: a name that ``create_model`` knows, or ``"timm/..."`` or ``"torchvision/..."`` for one of theirs.
        arguments: those of ``create_model``, plain values.
        insertions: the mechanisms put in since, as ``attendo.insertion`` records them.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    insertions: list[dict[str, Any]] = field(default_factory=list)

    def __str__(self) -> str:
        words = ", ".join(f"{key}={value!r}" for key, value in self.arguments.items())
        added = f" with {len(self.insertions)} insertions" if self.insertions else ""
        return f"{self.name}({words}){added}"


def plain(value: Any, what: str) -> Any:
    """Return ``value`` as JSON gives it back (tuples become lists).

    Raises:
        InvalidArgument: it holds something else than plain values, or a number that is not finite.
    """
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            f"{what}: {value!r} cannot be written into a weight file ({error}); a file holds text, numbers, true, "
            f"false, null, lists and objects. Give plain values."
        ) from None


def check(recipe: Recipe) -> None:
    """Refuse a recipe that asks for more than a network.

    Raises:
        CheckpointError: an argument that a file may not give, or a number beyond all networks.
    """
    unknown = sorted(set(recipe.arguments) - ARGUMENTS)
    if unknown:
        raise CheckpointError(
            f"{recipe.name}: argument {unknown[0]}={recipe.arguments[unknown[0]]!r}; a weight file may give "
            f"{', '.join(sorted(ARGUMENTS))}. Build the network yourself and use safetensors' own functions."
        )
    for number in _numbers([recipe.arguments, recipe.insertions]):
        if abs(number) > LARGEST:
            raise CheckpointError(
                f"{recipe.name}: the recipe holds the number {number:,}, beyond the {LARGEST:,} allowed. "
                f"Do not use this file."
            )


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value


def build(recipe: Recipe) -> nn.Module:
    """Follow a recipe: the network with fresh weights, in eval mode. Changes no random state.

    Raises:
        CheckpointError: the recipe asks for what does not exist or cannot work.
    """
    check(recipe)
    try:
        with torch.random.fork_rng(devices=[]):
            if recipe.name.startswith(TORCHVISION):
                model = _torchvision(recipe.name.removeprefix(TORCHVISION), recipe.arguments)
            elif recipe.name.startswith(TIMM):
                model = _timm(recipe.name.removeprefix(TIMM), recipe.arguments)
            else:
                model = create_model(recipe.name, **copy.deepcopy(recipe.arguments))
            if recipe.insertions:
                _replay(model, recipe.insertions)
    except (AttendoError, TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{recipe}: this network cannot be built: {error}") from error
    return model.eval()


def build_on_meta(recipe: Recipe) -> nn.Module:
    """Follow a recipe without memory: a network of shapes."""
    with torch.device("meta"):
        return build(recipe)


def _record(model: nn.Module) -> list[dict[str, Any]]:
    """Describe what was inserted into a network, in the order of its modules."""
    return [
        {
            "path": path,
            "attention": inserted.name,
            "arguments": list(inserted.arguments),
            "settings": dict(inserted.settings),
            "start": inserted.start,
            "replaces": isinstance(inserted, Replaced),
        }
        for path, _, inserted in insertions(model, "save")
    ]


def _replay(model: nn.Module, recorded: Sequence[Mapping[str, Any]]) -> None:
    """Insert again what ``_record`` described."""
    for entry in recorded:
        path, name, settings = str(entry["path"]), str(entry["attention"]), dict(entry["settings"])
        arguments = tuple(int(number) for number in entry["arguments"])
        mechanism = layer(name, *arguments, **settings)
        if entry["replaces"]:
            original = model.get_submodule(path)
            attach(model, path, Replaced(original, mechanism, name, arguments, settings, entry["start"]))
        else:
            attach(model, path, Inserted(mechanism, name, arguments, settings, entry["start"]))


def _timm(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build timm's own network, even where ``create_model`` has one of the same name."""
    if not timm.is_model(name.split(".")[0]):  # timm would take hf-hub:... too, and download
        raise UnknownName(f"model {name!r}: timm has none of this name. {did_you_mean(name, timm.list_models())}")
    model: nn.Module = timm.create_model(name, **arguments)
    return model


def _torchvision(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build torchvision's network; never its pretrained parts, which would be downloaded."""
    import torchvision

    builder = torchvision.models.get_model_builder(name)
    taken = inspect.signature(builder).parameters
    without = {word: None for word in ("weights", "weights_backbone") if word in taken}
    model: nn.Module = builder(**without, **arguments)
    return model


def describe(
    model: nn.Module,
    name: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    inserted: Sequence[Mapping[str, Any]] | None = None,
) -> Recipe:
    """Find the recipe of a model, and prove it by following it.

    Args:
        model: the network.
        name: its name; None asks the model (``create_model`` notes it; timm's and torchvision's are recognised).
        arguments: those it was built with.
        inserted: what was put in since; None asks the model.

    Raises:
        InvalidArgument: the model does not say what it is, or what is said is not what it is.
    """
    added = [plain(dict(e), "insertions") for e in (_record(model) if inserted is None else inserted)]
    reasons = []
    for candidate in _candidates(model, name, arguments):
        recipe = Recipe(candidate.name, plain(candidate.arguments, f"arguments of {candidate.name}"))
        try:
            built_in = _record(build_on_meta(recipe))  # some named networks are made by insertion
            recipe = replace(
                recipe, insertions=[entry for entry in added if entry not in plain(built_in, "insertions")]
            )
            reason = difference(model, build_on_meta(recipe))
        except CheckpointError as error:
            reason = str(error)
        if reason is None:
            return recipe
        reasons.append(f"{recipe} is not it: {reason}")
    tried = "; ".join(reasons[:3]) or "it has no name"
    raise InvalidArgument(
        f"{type(model).__name__}: its file could not say what it is ({tried}); a file must rebuild the network "
        f"exactly. Build it with attendo.create_model, or pass name= and arguments= that do."
    )


def _candidates(model: nn.Module, name: str | None, arguments: Mapping[str, Any] | None) -> list[Recipe]:
    """Return what the model might be, by what is known of it, most likely first."""
    given = dict(arguments or {})
    noted: Any = getattr(model, "attendo", None)
    if name is not None or noted is not None:
        known = {} if name is not None else noted["arguments"]
        return [Recipe(name or noted["name"], _as_it_is_now(model, {**known, **given}))]
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, dict) and config.get("architecture"):
        facts = {key: getattr(model, key) for key in ("num_classes", "in_chans") if hasattr(model, key)}
        return [Recipe(TIMM + config["architecture"], {**facts, **given})]
    if type(model).__module__.startswith("torchvision.models."):
        return _torchvision_candidates(model, given)
    return []


def _as_it_is_now(model: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
    """Follow ``reset_classifier``, which changes the classes of a network after its arguments were noted."""
    classes = getattr(model, "num_classes", None)
    if isinstance(classes, int) and not arguments.get("features_only"):
        arguments["num_classes"] = classes
    return arguments


def _torchvision_candidates(model: nn.Module, given: dict[str, Any]) -> list[Recipe]:
    import torchvision

    home = type(model).__module__
    models = torchvision.models
    names = [name for name in models.list_models() if models.get_model_builder(name).__module__ == home]
    heads = [module.out_features for module in model.modules() if isinstance(module, nn.Linear)]
    heads = heads or [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]  # SqueezeNet
    return [Recipe(TORCHVISION + name, {"num_classes": heads[-1], **given}) for name in names]


def structure(model: nn.Module) -> dict[str, str]:
    """What stands at each path of a network: the class of the module with its settings."""
    return {path: f"{type(module).__name__}({_settings(module)})" for path, module in model.named_modules()}


def _settings(module: nn.Module) -> str:
    """Write what a module says of itself; of a mechanism also what changes no shape, as the order of its inputs."""
    if not isinstance(module, Attention):
        return module.extra_repr()
    kept = {key: value for key, value in vars(module).items() if isinstance(value, str | int | float | tuple | list)}
    kept = {key: tuple(value) if isinstance(value, list) else value for key, value in kept.items()}  # as JSON has them
    return ", ".join(f"{key}={value!r}" for key, value in sorted(kept.items()) if key != "training")


def difference(model: nn.Module, other: nn.Module) -> str | None:
    """Return the first thing in which ``other`` is built differently, or None."""
    mine, theirs = structure(model), structure(other)
    for path in [*mine, *(path for path in theirs if path not in mine)]:
        if mine.get(path) != theirs.get(path):
            return (
                f"at {path or 'the top'!r} stands {theirs.get(path, 'nothing')} instead of {mine.get(path, 'nothing')}"
            )
    shapes, wanted = shapes_of(other), shapes_of(model)
    for key in [*wanted, *(key for key in shapes if key not in wanted)]:
        if shapes.get(key) != wanted.get(key):
            return f"its weight {key!r} has shape {shapes.get(key, 'none')} instead of {wanted.get(key, 'none')}"
    return None


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of all entries of the state dict."""
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}
