"""The attention of a network apart from the rest: its parameters, and a file of kilobytes that carries it.

The file says what was inserted where, so that it turns the plain network into the one with attention by itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from attendo._errors import AttendoError, CheckpointError, InvalidArgument
from attendo.insertion.fitting import fit, settle
from attendo.insertion.inserted import Inserted, Replaced, Start, attach, home_of, insertions
from attendo.insertion.selection import check_network, fits
from attendo.insertion.sites import Site
from attendo.layers import Attention

FORMAT = 1


def attention_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of all attention in a network: inserted, put in place of other, or built into it.

    Raises:
        InvalidArgument: inserted attention that nothing calls any more; see ``insert``.
    """
    list(insertions(model, "attention_parameters"))
    owners = (module for module in model.modules() if isinstance(module, (Inserted, Attention)))
    return list(dict.fromkeys(parameter for owner in owners for parameter in owner.parameters()))


def attention_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the part of ``model.state_dict()`` that belongs to inserted attention, under the same names.

    Raises:
        InvalidArgument: there is none, or nothing calls it any more.
    """
    homes = [home for _, home, _ in insertions(model, "attention_state_dict")]
    if not homes:
        raise InvalidArgument(
            "attention_state_dict: this network has no inserted attention; it returns the state of what insert and "
            "replace put there. Call insert first."
        )
    starts = tuple(f"{home}." for home in homes)
    return {key: value for key, value in model.state_dict().items() if key.startswith(starts)}


def save_attention(model: nn.Module, path: str | Path) -> None:
    """Write the inserted attention of a network to a safetensors file, with what is needed to insert it again.

    Raises:
        InvalidArgument: there is none, or settings that JSON does not know.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in attention_state_dict(model).items()}
    entries = [
        _Entry(path, i.name, list(i.arguments), i.settings, i.start, isinstance(i, Replaced))
        for path, _, i in insertions(model, "save_attention")
    ]
    try:
        text = json.dumps({"format": FORMAT, "sites": [asdict(entry) for entry in entries]})
    except TypeError as error:
        raise InvalidArgument(
            f"save_attention: {error}; settings in a file are numbers, strings and lists of them. Insert with such."
        ) from error
    save_file(state, path, metadata={"attendo": text})


def load_attention(model: nn.Module, source: str | Path | Mapping[str, Tensor]) -> list[str]:
    """Load saved attention into a network, which is first given it where it lacks it, and return the sites.

    Args:
        model: the plain network, or one with the same attention.
        source: a file of ``save_attention``; or what ``attention_state_dict`` returned, for a network with the same
            attention.

    Raises:
        CheckpointError: a file that is damaged or none of ours, or attention for another network.
        InvalidArgument: the network has other attention already.
    """
    check_network(model, "load_attention")
    held = {path: (home, inserted) for path, home, inserted in insertions(model, "load_attention")}
    if isinstance(source, Mapping):
        if not held:
            raise InvalidArgument(
                "load_attention: this network has no attention, and a state dict does not say what to insert; a file "
                "that save_attention wrote does. Call insert first, or load the file."
            )
        _fill(list(held.values()), dict(source), "the state dict")
        return list(held)
    state, entries = _read(Path(source))
    fresh = [_build(model, entry, source) for entry in entries]
    built = {e.path: (home_of(model, e.path, e.replaces), i) for e, i in zip(entries, fresh, strict=True)}
    differing = [p for p in held | built if p not in held or p not in built or not _same(held[p][1], built[p][1])]
    if held and differing:
        raise InvalidArgument(
            f"load_attention: {source} holds other attention than the network has, at {', '.join(differing[:3])}; both "
            f"must agree. Call remove(model) first: the file says what to insert."
        )
    if held:
        _fill(list(held.values()), state, str(source))
        return list(held)
    _fill(list(built.values()), state, str(source))
    for path, (_, inserted) in built.items():
        settle(inserted, model, path)
        attach(model, path, inserted)
    return list(built)


def freeze_backbone(model: nn.Module, train: str | list[str] | None = None) -> list[nn.Parameter]:
    """Stop the training of everything but the attention, and return the parameters that still train.

    The norms of the frozen part go into eval mode, so that their running statistics stay as they are. ``model.train()``
    wakes them: call this again after it.

    Args:
        model: a network with attention.
        train: a path or pattern of modules, or a list of them, that train as well: ``"fc"`` for a new classifier.

    Raises:
        InvalidArgument: there is no attention, or a pattern that matches nothing.
    """
    training = attention_parameters(model)
    if not training:
        raise InvalidArgument(
            "freeze_backbone: this network has no attention; nothing would train. Call insert before it."
        )
    patterns = [] if train is None else [train] if isinstance(train, str) else list(train)
    free: set[nn.Module] = {m for m in model.modules() if isinstance(m, (Inserted, Attention))}
    for pattern in patterns:
        hits = [module for path, module in model.named_modules() if path and fits(pattern, path)]
        if not hits:
            raise InvalidArgument(
                f"freeze_backbone: train={pattern!r} matches no module of {type(model).__name__}; see "
                f"model.named_modules(). Name the classifier, such as 'fc' or 'head'."
            )
        free.update(hits)
    for module in list(free):
        training += list(module.parameters())
        free.update(module.modules())
    kept = set(training)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in kept)
    for module in model.modules():
        if module not in free and hasattr(module, "running_mean"):
            module.training = False
    return [parameter for parameter in model.parameters() if parameter in kept]


@dataclass(frozen=True)
class _Entry:
    """One site of a file."""

    path: str
    attention: str
    arguments: list[int]
    settings: dict[str, Any]
    start: Start
    replaces: bool


def _read(path: Path) -> tuple[dict[str, Tensor], list[_Entry]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        recipe = json.loads(metadata["attendo"])
        form, entries = recipe["format"], [_Entry(**entry) for entry in recipe["sites"]]
    except (SafetensorError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"load_attention: {path} is no attention file ({type(error).__name__}: {error}); it is a safetensors file "
            f"that save_attention wrote. Save it again, or load a state dict into a network that has the attention."
        ) from error
    if form != FORMAT:
        raise CheckpointError(
            f"load_attention: {path} has format {form!r}, this version reads {FORMAT}. Use the version that wrote it."
        )
    return state, entries


def _build(model: nn.Module, entry: _Entry, source: object) -> Inserted:
    try:
        module = model.get_submodule(entry.path)
        site = Site(entry.path, "module", type(module).__name__, entry.arguments[0], 0, 0)
        original = (module.original if isinstance(module, Replaced) else module) if entry.replaces else None
        inserted = fit(site, entry.attention, tuple(entry.arguments), entry.settings, entry.start, "file", original)
    except (AttributeError, AttendoError, TypeError, IndexError) as error:
        raise CheckpointError(
            f"load_attention: {source} wants {entry.attention!r} at {entry.path!r}, which fails ({error}); the file is "
            f"for another network or damaged. Load it into the network it was saved from."
        ) from error
    channels = next((getattr(module, n) for n in ("out_channels", "num_features") if hasattr(module, n)), None)
    if channels is not None and channels != entry.arguments[min(1, len(entry.arguments) - 1)]:
        raise CheckpointError(
            f"load_attention: {source} holds {entry.attention!r} for {entry.arguments[0]} channels at {entry.path!r}, "
            f"which has {channels}; the file is for another network. Load it into the network it was saved from."
        )
    return inserted


def _fill(pairs: list[tuple[str, Inserted]], state: dict[str, Tensor], source: str) -> None:
    """Load a state into mechanisms that are, or will be, at these places, after checking all of it."""
    wanted = {f"{home}.{key}": value.shape for home, inserted in pairs for key, value in inserted.state_dict().items()}
    came = {key: value.shape for key, value in state.items()}
    wrong = sorted(key for key in wanted | came if wanted.get(key) != came.get(key))
    if wrong:
        raise CheckpointError(
            f"load_attention: {source} and the network differ in {len(wrong)} tensors, first {wrong[0]!r} "
            f"({came.get(wrong[0], 'absent')} there, {wanted.get(wrong[0], 'absent')} here); it is for another network "
            f"or other attention. Load it into the network it was saved from."
        )
    for home, inserted in pairs:
        own = {key.removeprefix(f"{home}."): value for key, value in state.items() if key.startswith(f"{home}.")}
        inserted.load_state_dict(own)


def _same(one: Inserted, other: Inserted) -> bool:
    """Whether two were built alike; in a file, tuples have become lists."""
    descriptions = [
        json.dumps((type(i).__name__, i.name, i.start, i.arguments, i.settings), default=str, sort_keys=True)
        for i in (one, other)
    ]
    return descriptions[0] == descriptions[1]
