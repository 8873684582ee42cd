"""Hugging Face data sets, from the Hub or from a local directory, as ``hfds/<id or directory>``."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from PIL.Image import Image

from attendo._errors import DataError, InvalidArgument, MissingDependency, pip_line
from attendo.data.images import Images, Request, Split
from attendo.data.reading import damage, read_size, to_rgb, unreadable
from attendo.data.splitting import HELD_OUT, assemble, sampled

OPTIONS = ("config", "revision", "train", "image", "label")
VALIDATION_SPLITS = ("validation", "val", "valid", "dev", "test")
IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label", "labels", "class", "target", "category")
REACH_S = 10  # how long the Hub may take to answer


@dataclass(frozen=True)
class HubSource:
    """One image column.

    Args:
        name: how errors call the data set.
        table: the data set's split with that column alone, images as bytes or paths.
        column: its name.
        feature: what decodes a value of it.
    """

    name: str
    table: Any
    column: str
    feature: Any
    probes: int = field(default=500, init=False)  # each one is read whole

    def read(self, index: int) -> Image:
        """Return a picture, RGB."""
        try:
            return self._read(index)
        except DataError as error:
            raise DataError(f"{error}{self._damage}") from error

    def size(self, index: int) -> tuple[int, int]:
        """Width and height in pixels, from the picture's header."""
        try:
            value = self._value(index)
            if value["bytes"] is None:
                return self._read(index).size
            return read_size(io.BytesIO(value["bytes"]), f"{index} of {self.name}")
        except DataError as error:
            raise DataError(f"{error}{self._damage}") from error

    def identity(self, indices: Sequence[int]) -> bytes:
        """Return the files of up to 64 pictures, or their paths."""
        values = [self._value(index) for index in sampled(indices, 64)]
        return b"".join(value["bytes"] or str(value["path"]).encode() for value in values)

    def _read(self, index: int) -> Image:
        value = self._value(index)
        try:
            return to_rgb(self.feature.decode_example(value))
        except Exception as error:  # decoders meet broken bytes with any exception there is
            raise unreadable(f"{index} of {self.name}", error) from error

    @cached_property
    def _damage(self) -> str:
        return damage(self._read, [str(row) for row in range(len(self.table))], f"images of {self.name}")

    def _value(self, index: int) -> dict[str, Any]:
        value = self.table[index][self.column]
        if value is None:
            raise unreadable(f"{index} of {self.name}", ValueError("the cell is empty"))
        return dict(value)


def hub_set(request: Request) -> Images:
    """Read ``hfds/<id>`` or ``hfds/<directory>``, with options as in a web address: ``hfds/<id>?label=fine_label``.

    Options: ``config`` and ``revision`` of the Hub's data set, ``train`` (the split to learn from), and the columns
    ``image`` and ``label``, needed only where more than one would do. The validation split is the one named
    ``request.validation``, else validation, val, valid, dev or test; without one, or if ``request.validation`` is a
    share, a part of the training images is held out.

    Raises:
        MissingDependency: the package datasets is not installed.
        DataError: it cannot be reached or read, or its splits or columns are not what is needed.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingDependency(
            f"data {request.name!r}: hfds/ needs the package datasets, which is not installed. Run: {pip_line('data')}"
        ) from error
    place, options = _parsed(request.name)
    splits = _load(datasets, request.name, place, options)
    training, validation = _choose_splits(request, options, list(splits))
    features = splits[training].features
    image = _image_column(datasets, request.name, features, options.get("image"))
    label = _label_column(datasets, request.name, features, image, options.get("label"))
    if validation is not None and (missing := {image, label} - set(splits[validation].features)):
        raise DataError(
            f"data {request.name!r}: split {validation!r} has no column {' or '.join(sorted(missing))}; both splits "
            f"need the same columns. Take another split, or validation={HELD_OUT}."
        )
    raw = {name: _column(splits[name], label) for name in (training, validation) if name is not None}
    classes, labels = _numbered(request.name, features[label], raw)
    parts = {
        name: Split(_source(datasets, f"{request.name} ({name})", splits[name], image), labels[name]) for name in raw
    }
    return assemble(request, classes, parts[training], None if validation is None else parts[validation])


def _parsed(name: str) -> tuple[str, dict[str, str]]:
    """Divide ``hfds/<place>?<options>``."""
    place, _, query = name.partition("/")[2].partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := sorted(options.keys() - set(OPTIONS)):
        raise InvalidArgument(
            f"data {name!r}: option {unknown[0]!r} is not known. Known: {', '.join(OPTIONS)}, as in hfds/<id>?label=..."
        )
    return place, options


def _load(datasets: Any, name: str, place: str, options: dict[str, str]) -> Any:
    """Return the splits by name."""
    folder = Path(place).expanduser()
    local = folder.is_dir()
    if not local and not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", place):
        raise DataError(
            f"data {name!r}: no directory {place!r} here ({Path.cwd()}), and no identifier of the Hub either; "
            f"hfds/ takes one of both, as in hfds/uoft-cs/cifar10. Check the path."
        )
    try:
        if local and ((folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()):
            saved = datasets.load_from_disk(str(folder))
            return saved if isinstance(saved, dict) else {"train": saved}
        reached = local or _reachable(place)
        with contextlib.nullcontext() if reached else _cached_only(datasets):
            return datasets.load_dataset(
                str(folder.resolve()) if local else place, options.get("config"), revision=options.get("revision")
            )
    except Exception as error:  # network, disk, format: whatever goes wrong is about this data set
        if not local and isinstance(error, ConnectionError):
            raise DataError(
                f"data {name!r}: the Hugging Face Hub cannot be reached from here and the data set is not in the cache "
                f"({datasets.config.HF_DATASETS_CACHE}); the first use needs the network. Connect, or give a directory "
                f"of parquet files as hfds/<directory>."
            ) from error
        reason = str(error).strip() or type(error).__name__
        raise DataError(
            f"data {name!r}: the package datasets cannot read it ({reason}); {'the directory' if local else 'it'} must "
            f"hold images in parquet files, in folders or as another form that it knows. Check the name."
        ) from error


def _reachable(identifier: str) -> bool:
    """Whether the Hub answers, whatever the answer; datasets itself would try for half a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        HfApi().dataset_info(identifier, timeout=REACH_S)
    except (HfHubHTTPError, HFValidationError):
        pass  # not found, not allowed, no possible name: datasets says which
    except Exception:  # noqa: BLE001  the HTTP client, and so its exceptions, differ between versions of the package
        return False
    return True


@contextlib.contextmanager
def _cached_only(datasets: Any) -> Iterator[None]:
    """Keep datasets from trying the network."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _choose_splits(request: Request, options: dict[str, str], names: list[str]) -> tuple[str, str | None]:
    """Return the names of the training split and of the validation split, None to hold out."""
    asked = options.get("train", "train")
    training = names[0] if len(names) == 1 and "train" not in options else asked
    validation = next((name for name in VALIDATION_SPLITS if name in names and name != training), None)
    if request.validation is not None:
        validation = request.validation if isinstance(request.validation, str) else None
    for split, way_out in ((training, "Name one with ?train=..."), (validation, "Give one of them as validation")):
        if split is not None and split not in names:
            raise DataError(
                f"data {request.name!r}: there is no split {split!r}; there are {', '.join(names)}. {way_out}."
            )
    if validation == training:
        raise InvalidArgument(
            f"data {request.name!r}: split {training!r} for training and for validation; a score on images that were "
            f"learned says nothing. Give another split, or validation={HELD_OUT}."
        )
    return training, validation


def _image_column(datasets: Any, name: str, features: Any, asked: str | None) -> str:
    """Return the column of images: of their type, else of bytes, as files without the Hub's metadata have them."""
    typed = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    return _one_column(name, "image", features, asked, typed or [c for c in features if _is_bytes(features[c])])


def _is_bytes(feature: Any) -> bool:
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


def _label_column(datasets: Any, name: str, features: Any, image: str, asked: str | None) -> str:
    """Return the column of labels: of their type, else of whole numbers or words."""
    typed = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    plain = [
        column
        for column, feature in features.items()
        if column != image and re.match(r"u?int|bool|string|large_string", str(getattr(feature, "dtype", "")))
    ]
    return _one_column(name, "label", features, asked, typed or plain)


def _one_column(name: str, kind: str, features: Any, asked: str | None, found: list[str]) -> str:
    """Return the column asked for, the only one found, or the only one found under a usual name."""
    if asked is not None:
        found = [asked] if asked in features else []
    usual = [column for column in found if column.lower() in (IMAGE_NAMES if kind == "image" else LABEL_NAMES)]
    for choice in (found, usual):
        if len(choice) == 1:
            return choice[0]
    columns = ", ".join(f"{column} ({type(feature).__name__})" for column, feature in features.items())
    if asked is not None:
        problem = f"there is no column {asked!r}"
    elif found:
        problem = f"{len(found)} columns could be the {kind}: {', '.join(found)}"
    else:
        problem = f"no column is the {kind}"
    raise DataError(
        f"data {name!r}: {problem}; the columns are {columns}, and one of them must be the {kind}. "
        f"Name it with ?{kind}=<column>."
    )


def _column(table: Any, column: str) -> list[Any]:
    return list(table.select_columns([column])[:][column])


def _numbered(name: str, feature: Any, raw: dict[str, list[Any]]) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Return class names, and each split's labels as indices into them.

    Names are the feature's; where it has none, the sorted labels of the training split, the first in ``raw``.
    """
    names = getattr(feature, "names", None)
    values = list(range(len(names))) if names else _distinct(name, next(iter(raw.values())))
    index = {value: i for i, value in enumerate(values)}
    for split, labels in raw.items():
        if strange := sorted({str(label) for label in labels if label not in index}):
            raise DataError(
                f"data {name!r}: split {split!r} has labels that are no class: {', '.join(strange[:5])} (-1 and None "
                f"mean unlabelled); every image needs one of the {len(values)} classes of the training split. Take "
                f"another split, or hold out a part of the training images with validation={HELD_OUT}."
            )
    return tuple(str(value) for value in names or values), {
        split: np.asarray([index[label] for label in labels], dtype=np.int64) for split, labels in raw.items()
    }


def _distinct(name: str, labels: list[Any]) -> list[Any]:
    values = {label for label in labels if label is not None}
    if len(values) > max(2, len(labels) // 2):
        raise DataError(
            f"data {name!r}: the label column has {len(values)} different values in {len(labels)} images; that is a "
            f"number or a text, not a class. Name the right column with ?label=<column>."
        )
    return sorted(values)


def _source(datasets: Any, name: str, table: Any, column: str) -> HubSource:
    if not isinstance(table.features[column], datasets.Image):
        table = table.cast_column(column, datasets.Image())
    feature = datasets.Image()
    return HubSource(
        name, table.select_columns([column]).cast_column(column, datasets.Image(decode=False)), column, feature
    )
