"""Weight files that describe themselves: written whole or not at all, read only when everything in them fits.

A file is safetensors with one metadata key, ``"attendo"``, that holds JSON: how to build the network, its classes, what
to do to an image, and a digest of it all, so that one changed bit anywhere in the weights is noticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import attendo
from attendo._errors import CheckpointError, InvalidArgument
from attendo.checkpoints.header import Header, read_header
from attendo.checkpoints.recipe import Recipe, build, build_on_meta, check, describe, plain

FORMAT = 1
KEY = "attendo"
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "I64": torch.int64,
    "F64": torch.float64,
}


@dataclass(frozen=True)
class Metadata:
    """What a weight file says of itself.

    Attributes:
        name: of the network, as in ``Recipe``.
        arguments: those of ``create_model``, ``attention`` and ``attention_args`` among them.
        insertions: the mechanisms that were inserted into it.
        classes: names of the classes, in the order of the outputs; empty if they were not given.
        transform: what happens to an image before the network sees it, as it was given to ``save``.
        extra: whatever else was given to ``save``.
        version: of attendo, which wrote the file.
        digest: SHA-256 of the description and the weights.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    insertions: list[dict[str, Any]] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    transform: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    version: str = ""
    digest: str = ""

    @property
    def recipe(self) -> Recipe:
        """How to build the network."""
        return Recipe(self.name, self.arguments, self.insertions)


def save(
    model: nn.Module,
    path: str | Path,
    *,
    name: str | None = None,
    attention: str | None = None,
    attention_args: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    arguments: Mapping[str, Any] | None = None,
    classes: Sequence[str] = (),
    transform: Mapping[str, Any] | None = None,
    insertions: Sequence[Mapping[str, Any]] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write a network's weights with everything that rebuilds it.

    Models from ``create_model`` know how they were built, and those of timm and torchvision are recognised: their file
    needs no arguments. The file is written under a temporary name and put in place whole. Weights keep their dtype;
    a compiled or distributed wrapper is taken off.

    Args:
        model: the network.
        path: the file, ``.safetensors`` by custom.
        name: of the network, if the model does not know it.
        attention: as given to ``create_model``; with ``name`` only.
        attention_args: as given to ``create_model``; with ``name`` only.
        arguments: further ones of ``create_model``.
        classes: names of the classes, in the order of the outputs.
        transform: what happens to an image before the network sees it, plain values.
        insertions: what was inserted; None asks the model.
        extra: anything else worth keeping, plain values.

    Returns:
        The path.

    Raises:
        InvalidArgument: the network does not say what it is, or an argument is no plain value or does not fit it.
    """
    path, model = Path(path), unwrapped(model)
    given = dict(arguments or {})
    given |= {} if attention is None else {"attention": attention}
    given |= {} if attention_args is None else {"attention_args": attention_args}
    recipe = describe(model, name, given, insertions)
    outputs = recipe.arguments.get("num_classes")
    if classes and outputs is not None and len(classes) != outputs:
        raise InvalidArgument(
            f"{path}: {len(classes)} classes for a network of {outputs} outputs; there must be one per output. "
            f"Pass as many."
        )
    tensors = _apart(model.state_dict())
    description = {
        "format": FORMAT,
        "version": attendo.__version__,
        "name": recipe.name,
        "arguments": recipe.arguments,
        "insertions": recipe.insertions,
        "classes": [str(label) for label in classes],
        "transform": plain(dict(transform or {}), "transform"),
        "extra": plain(dict(extra or {}), "extra"),
    }
    description["digest"] = digest(description, tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        save_file(tensors, unfinished, {KEY: json.dumps(description)})
        unfinished.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            unfinished.unlink()
    return path


def read_metadata(path: str | Path) -> Metadata:
    """Read what a weight file says of itself, without its weights.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the file is damaged, or none that describes itself, or from a later version.
    """
    return _parse(Path(path), read_header(path))


def load(path: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """Rebuild a network from its file alone, in eval mode.

    Nothing in the file is executed, and no memory is taken before the file's own size has paid for it.

    Args:
        path: a file that ``save`` wrote.
        device: where the network goes.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the file is damaged, hostile, or does not describe itself.
    """
    path = Path(path)
    header = read_header(path)
    metadata = _parse(path, header)
    _check_fit(path, header, build_on_meta(metadata.recipe))
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}). Copy or download it again.") from None
    found = digest(_described(header), tensors)
    if found != metadata.digest:
        raise CheckpointError(
            f"{path}: its content has the digest {found[:12]} and its metadata say {metadata.digest[:12]}; the weights "
            f"or their description were changed since they were written. Copy or download it again."
        )
    model = build(metadata.recipe)
    fill(model, tensors)
    return model.to(device)


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into a network, which takes their dtypes; names and shapes must be those of its state dict."""
    for key, value in model.state_dict(keep_vars=True).items():
        value.data = value.data.to(tensors[key].dtype)
    model.load_state_dict(tensors)


def digest(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over a description (without its digest) and all tensors, in the order of their names."""
    said = {key: value for key, value in description.items() if key != "digest"}
    total = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        total.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        if value.numel():
            total.update(value.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def unwrapped(model: nn.Module) -> nn.Module:
    """Take off what ``torch.compile`` and distributed training put around a network."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU, contiguous, each in memory of its own, as safetensors wants them."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in state.items():
        value = value.detach().cpu().contiguous()
        if value.untyped_storage().nbytes() != value.nbytes or value.data_ptr() in seen:
            value = value.clone()
        seen.add(value.data_ptr())
        tensors[name] = value
    return tensors


def _described(header: Header) -> dict[str, Any]:
    content = json.loads(header.metadata[KEY])
    return content if isinstance(content, dict) else {}


def _parse(path: Path, header: Header) -> Metadata:
    """Read the description in a header."""
    if KEY not in header.metadata:
        raise CheckpointError(
            f"{path}: holds {len(header.tensors)} tensors and no description of their network; only attendo.save "
            f"writes one. Give it to attendo.load_weights with a model or a name."
        )
    try:
        content = _described(header)
        version = content["format"]
        if version == FORMAT:
            metadata = Metadata(
                name=content["name"],
                arguments=content["arguments"],
                insertions=content["insertions"],
                classes=tuple(content["classes"]),
                transform=content["transform"],
                extra=content["extra"],
                version=content["version"],
                digest=content["digest"],
            )
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: its description cannot be read ({error!r}). Copy or download it again."
        ) from None
    if version != FORMAT:
        raise CheckpointError(
            f"{path}: written in format {version!r}, and this attendo {attendo.__version__} reads format {FORMAT}. "
            f"Update attendo."
        )
    kinds = {"name": str, "arguments": dict, "insertions": list, "transform": dict, "extra": dict, "digest": str}
    wrong = [word for word, kind in kinds.items() if not isinstance(getattr(metadata, word), kind)]
    if wrong or not all(isinstance(label, str) for label in metadata.classes):
        raise CheckpointError(
            f"{path}: {', '.join(wrong) or 'classes'} in its description is not what a description holds. "
            f"Copy or download it again."
        )
    check(metadata.recipe)
    return metadata


def _check_fit(path: Path, header: Header, wanted: nn.Module) -> None:
    """Refuse a file whose tensors are not those of the network it describes."""
    shapes = {key: tuple(value.shape) for key, value in wanted.state_dict().items()}
    for key in [*shapes, *(key for key in header.tensors if key not in shapes)]:
        entry = header.tensors.get(key)
        if entry is None or shapes.get(key) != entry.shape or entry.dtype not in DTYPES:
            there = f"{entry.dtype} {list(entry.shape)}" if entry else "missing"
            here = list(shapes[key]) if key in shapes else "no such entry"
            raise CheckpointError(
                f"{path}: tensor {key!r} is {there} in the file and {here} in the network it describes; they must be "
                f"the same. Copy or download it again."
            )
    buffers = sum(buffer.nbytes for buffer in wanted.buffers())
    if buffers > 2**28 + 4 * header.data_bytes:
        raise CheckpointError(
            f"{path}: the network it describes takes {buffers:,} bytes beside its {header.data_bytes:,} of weights. "
            f"Do not use this file."
        )
