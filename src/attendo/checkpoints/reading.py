"""Weights from wherever they are, as one flat dictionary of tensors. Nothing in a file is ever executed."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from attendo._errors import CheckpointError
from attendo.checkpoints.download import HUB, Progress, download, from_hub
from attendo.checkpoints.header import read_header

# Where training scripts keep the weights in their checkpoints, in the order they are looked for.
PLACES = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "state_dict_ema",
    "model_ema",
)


def locate(source: str | Path, progress: Progress | None = None) -> Path:
    """Return the local file behind a path, a URL or ``hf-hub:owner/repository``, downloading it if need be.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the download failed.
    """
    text = str(source)
    if text.startswith(("http://", "https://")):
        return download(text, progress=progress)
    if text.startswith(HUB):
        name, _, revision = text.removeprefix(HUB).partition("@")
        return from_hub(name, revision or None)
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"{source}: no such file. Give a path, an http(s) URL, or {HUB}owner/repository for the Hub."
        )
    return path


# what torch.load was seen to raise on bytes that are no file of its own
_DAMAGED = (
    *(RuntimeError, EOFError, ValueError, LookupError, OSError, AttributeError, TypeError, AssertionError),
    *(struct.error, OverflowError),
)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file: safetensors, or what ``torch.save`` wrote, without unpickling objects.

    Raises:
        CheckpointError: the file is damaged, or holds more than tensors and plain values.
    """
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:9] == b"{":
        read_header(path)
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}). Copy or download it again.") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()
        detail = next((line.strip() for line in reason if "GLOBAL" in line or "Unsupported" in line), reason[0])
        raise CheckpointError(
            f"{path}: refused ({detail}): reading it would run code that it carries; files here hold tensors and plain "
            f"values only. If you trust it, load it yourself and pass its state dict."
        ) from None
    except _DAMAGED as error:
        raise CheckpointError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); it is no file of safetensors or torch.save, or "
            f"a damaged one. Copy or download it again."
        ) from None
    return flat(content, str(path))


def flat(content: Any, what: str) -> dict[str, Tensor]:
    """Find the state dict in what a training script saved.

    Raises:
        CheckpointError: there is none, or more than one could be meant.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{what}: holds a {type(content).__name__}, not a state dict. Save model.state_dict().")
    if all(isinstance(value, Tensor | np.ndarray) for value in content.values()):
        state = {
            str(key): value if isinstance(value, Tensor) else torch.from_numpy(value) for key, value in content.items()
        }
        return _from_paddle(state)
    for place in PLACES:
        inner = content.get(place)
        if isinstance(inner, Mapping) and any(isinstance(value, Tensor | np.ndarray) for value in inner.values()):
            return flat(inner, f"{what}: {place!r}")
    others = {key: type(value).__name__ for key, value in content.items() if not isinstance(value, Tensor)}
    raise CheckpointError(
        f"{what}: no state dict among {len(content)} entries (not tensors: {dict(list(others.items())[:4])}); the "
        f"weights must be alone or under one of {', '.join(PLACES)}. Pass them as a dictionary of tensors."
    )


def _from_paddle(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Translate PaddlePaddle's names of norm statistics; its fully connected layers are transposed."""
    if not any(key.endswith("._mean") for key in state):
        return state
    names = {"_mean": "running_mean", "_variance": "running_var"}
    translated = {}
    for key, value in state.items():
        head, _, leaf = key.rpartition(".")
        transposed = leaf == "weight" and value.ndim == 2
        translated[f"{head}.{names.get(leaf, leaf)}"] = value.T.contiguous() if transposed else value
    return translated
