"""What is compared: the grid of cells, and the identity of each."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import timm

from attendo._errors import CheckpointError, InvalidArgument, UnknownName
from attendo._registry import did_you_mean
from attendo.layers import check_settings
from attendo.models import BASES, NAMED, format_attention, parse_attention
from attendo.models.spec import NONE
from attendo.training import Recipe

FORMAT = 1  # of what a cell leaves behind; a change makes old cells strangers

MODELS = ("resnet8_stride2",)  # a cell of it takes seconds on two cores
ATTENTION = ("none", "static", "se", "eca", "cbam", "psa")


@dataclass(frozen=True)
class Grid:
    """What is compared: every model with every attention under every seed, with one recipe on one data set.

    Args:
        data: a name that ``attendo.data.load`` takes.
        models: names that ``attendo.create_model`` takes.
        attention: attention words such as ``"none"``, ``"se"``, ``"se:reduction=8"``.
        seeds: each trains every network once; they decide initialisation, order and augmentation.
        recipe: how every cell is trained.
        limit: training images to keep; None keeps all.
        image_size: side in pixels; None takes the data's own.
        stem: ``"imagenet"``, ``"stride2"`` or ``"cifar"``; None takes the network's own.
        pretrained: start from timm's weights of the plain network.
        insert: put the attention into the finished network with an identity start, to be fine-tuned, instead of
            building it in.
        weights: a checkpoint of the plain network to start from; with ``insert`` only.

    Raises:
        UnknownName: a model or mechanism that does not exist.
        InvalidArgument: an empty or repeated entry.
        UnknownArgument: a setting that its mechanism does not have.
    """

    data: str = "digits"
    models: tuple[str, ...] = MODELS
    attention: tuple[str, ...] = ATTENTION
    seeds: tuple[int, ...] = (0, 1, 2)
    recipe: Recipe = field(default_factory=Recipe)
    limit: int | None = None
    image_size: int | None = None
    stem: str | None = None
    pretrained: bool = False
    insert: bool = False
    weights: str | None = None

    def __post_init__(self) -> None:
        words = tuple(_checked(word) for word in self.attention)
        object.__setattr__(self, "attention", words)
        for name, entries in (("models", self.models), ("attention", words), ("seeds", self.seeds)):
            if not entries:
                raise InvalidArgument(f"{name}: none given; there must be at least one. Name one, or leave {name} out.")
            twice = sorted({entry for entry in entries if entries.count(entry) > 1})
            if twice:
                raise InvalidArgument(f"{name}: {twice[0]!r} was given twice; each may stand once. Remove one.")
        if self.weights is not None and (self.pretrained or not self.insert):
            raise InvalidArgument(
                f"weights: {self.weights!r} was given with insert={self.insert} and pretrained={self.pretrained}; a "
                f"file is loaded into a finished network, in place of timm's weights, before attention is inserted. "
                f"Pass --base in place of --models, and no --pretrained."
            )
        for model in self.models:
            if model not in BASES and model not in NAMED and not timm.is_model(model.split(".")[0]):
                raise UnknownName(f"model {model!r}: not known. {did_you_mean(model, [*BASES, *NAMED])}")

    def cells(self) -> Iterator[Cell]:
        """Yield the cells, one seed after another, so that a run cut short has compared something."""
        for seed in self.seeds:
            for model in self.models:
                for attention in self.attention:
                    yield Cell(model, attention, seed)

    def common(self, fingerprint: str) -> dict[str, Any]:
        """Return what all cells share: changing any of it makes another comparison.

        Args:
            fingerprint: of the data.
        """
        return {
            "data": self.data,
            "data_fingerprint": fingerprint,
            "limit": self.limit,
            "image_size": self.image_size,
            "stem": self.stem,
            "pretrained": self.pretrained,
            "insert": self.insert,
            "weights": _digest_of(self.weights),
            **self.recipe.as_dict(),
        }

    def default_directory(self, common: dict[str, Any]) -> Path:
        """Return where results go unless told otherwise: one directory for each set of common settings."""
        digest = hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()[:8]
        return Path("attendo-results") / f"{_plain(Path(self.data).name)}-{digest}"

    def as_dict(self) -> dict[str, Any]:
        """Return the grid as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Cell:
    """One (model, attention, seed) of a comparison."""

    model: str
    attention: str
    seed: int

    def fingerprint(self, common: dict[str, Any]) -> str:
        """Return a hash of everything that decides this cell's numbers, but the machine and the versions."""
        identity = {"format": FORMAT, **asdict(self), **{k: v for k, v in common.items() if k != "data"}}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]

    def directory(self, common: dict[str, Any]) -> str:
        """Return the name of the cell's directory."""
        return f"{_plain(f'{self.model}-{self.attention}')}-seed{self.seed}-{self.fingerprint(common)}"


def _checked(word: str) -> str:
    """Return an attention word as it is always written.

    Raises:
        UnknownName: no such mechanism.
        InvalidArgument: settings that cannot be read.
        UnknownArgument: one that the mechanism does not have.
    """
    name, settings = parse_attention(word)
    if name != NONE:
        check_settings(name, settings)
    return format_attention(name, settings)


def _digest_of(path: str | None) -> str | None:
    """Return a hash of a file's content, so that other weights under the same name are another comparison.

    Raises:
        CheckpointError: there is no such file.
    """
    if path is None:
        return None
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]
    except OSError as error:
        raise CheckpointError(f"weights {path}: {error.strerror}. Check the path.") from None


def _plain(text: str) -> str:
    """Return text with only letters, digits, =, . and - in it, fit for a file name."""
    return re.sub(r"[^A-Za-z0-9=.]+", "-", text).strip("-.") or "data"
