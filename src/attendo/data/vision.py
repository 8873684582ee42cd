"""The data sets that torchvision downloads, as ``torch/<name>``."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL.Image import Image

from attendo._errors import DataError, UnknownName
from attendo._registry import did_you_mean
from attendo.data.images import Images, Indices, Request, Split
from attendo.data.reading import to_rgb, unreadable
from attendo.data.splitting import assemble, sampled

STALL_S = 30  # a download that sends nothing for so long has failed


@dataclass(frozen=True)
class VisionSet:
    """How torchvision names a data set and its splits; ``validation`` None means that it has one split only."""

    dataset: str
    train: Mapping[str, Any]
    validation: Mapping[str, Any] | None
    flip: bool = True


def _by_flag(dataset: str, flip: bool = True) -> VisionSet:
    return VisionSet(dataset, {"train": True}, {"train": False}, flip)


def _by_split(dataset: str, train: str, validation: str, flip: bool = True) -> VisionSet:
    return VisionSet(dataset, {"split": train}, {"split": validation}, flip)


SETS = {
    "cifar10": _by_flag("CIFAR10"),
    "cifar100": _by_flag("CIFAR100"),
    "mnist": _by_flag("MNIST", flip=False),
    "kmnist": _by_flag("KMNIST", flip=False),
    "fashionmnist": _by_flag("FashionMNIST"),
    "svhn": _by_split("SVHN", "train", "test", flip=False),
    "stl10": _by_split("STL10", "train", "test"),
    "gtsrb": _by_split("GTSRB", "train", "test", flip=False),
    "dtd": _by_split("DTD", "train", "val"),
    "fgvcaircraft": _by_split("FGVCAircraft", "train", "val"),
    "flowers102": _by_split("Flowers102", "train", "val"),
    "food101": _by_split("Food101", "train", "test"),
    "imagenette": _by_split("Imagenette", "train", "val"),
    "oxfordiiitpet": _by_split("OxfordIIITPet", "trainval", "test"),
    "eurosat": VisionSet("EuroSAT", {}, None),
}


@dataclass(frozen=True)
class VisionSource:
    """Pictures of a torchvision data set.

    Args:
        name: how errors call it.
        dataset: item i is a PIL image and a label.
    """

    name: str
    dataset: Any
    probes: int = field(default=64, init=False)  # each one is decoded

    def read(self, index: int) -> Image:
        """Return a picture, RGB."""
        try:
            return to_rgb(self.dataset[index][0])
        except Exception as error:  # decoders meet broken bytes with any exception there is
            raise unreadable(f"{index} of {self.name}", error) from error

    def size(self, index: int) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.read(index).size

    def identity(self, indices: Sequence[int]) -> bytes:
        """Return the pixels of up to 64 pictures."""
        return b"".join(self.read(index).tobytes() for index in sampled(indices, self.probes))


def cache_directory() -> Path:
    """Return where downloads go: ``$ATTENDO_HOME``, else ``$XDG_CACHE_HOME/attendo``, else ``~/.cache/attendo``."""
    if home := os.environ.get("ATTENDO_HOME"):
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "attendo"


def vision_set(request: Request) -> Images:
    """Read ``torch/<name>``, downloading it once into ``cache_directory()``.

    Raises:
        UnknownName: none of ``SETS``.
        DataError: it cannot be downloaded or read.
    """
    key = request.name.partition("/")[2].lower().replace("_", "").replace("-", "")
    if key not in SETS:
        known = [f"torch/{name}" for name in SETS]
        raise UnknownName(f"data {request.name!r}: not known. {did_you_mean(f'torch/{key}', known)}")
    request.no_validation_choice("its validation split is fixed")
    row = SETS[key]
    root = _download(request.name, key, row)
    try:
        train = _build(row.dataset, row.train, root)
        validation = None if row.validation is None else _build(row.dataset, row.validation, root)
    except Exception as error:  # damaged files end in any exception there is
        raise DataError(
            f"data {request.name!r}: what is in {root} cannot be read ({error}); a download must be whole. "
            f"Delete the folder, and it is downloaded again."
        ) from error
    classes = _classes(train)
    scored = None
    if validation is not None and request.validation is None:
        scored = Split(VisionSource(request.name, validation), _labels(validation))
    return assemble(request, classes, Split(VisionSource(request.name, train), _labels(train)), scored, row.flip)


def _download(name: str, key: str, row: VisionSet) -> Path:
    """Return the folder of a data set that is there as a whole: downloaded beside it, then renamed."""
    root = cache_directory() / "torchvision" / key
    if root.is_dir():
        return root
    partial = root.with_name(f"{key}.partial")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(root.with_name(f"{key}.lock")):
            if not root.is_dir():
                shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
                partial.mkdir()
                try:
                    with _stall_limit(), contextlib.redirect_stdout(io.StringIO()):  # torchvision prints
                        for split in (row.train, row.validation):
                            if split is not None:
                                _build(row.dataset, split, partial, download=True)
                    partial.rename(root)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
    except Exception as error:  # network, disk, checksum: the user needs the same three facts
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise DataError(
            f"data {name!r}: cannot be downloaded to {root} ({reason}); the first use needs the network. Connect, or "
            f"put torchvision's {row.dataset} files there; 'digits' and image folders need no network."
        ) from error
    return root


@contextlib.contextmanager
def _stall_limit() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _build(dataset: str, split: Mapping[str, Any], root: Path, download: bool = False) -> Any:
    from torchvision import datasets

    return getattr(datasets, dataset)(root=str(root), download=download, **split)


def _labels(dataset: Any) -> Indices:
    """Labels without decoding images, wherever torchvision keeps them."""
    for attribute in ("targets", "labels", "_labels"):
        if hasattr(dataset, attribute):
            return np.asarray(getattr(dataset, attribute), dtype=np.int64)
    samples = dataset._samples if hasattr(dataset, "_samples") else dataset
    return np.asarray([sample[1] for sample in samples], dtype=np.int64)


def _classes(dataset: Any) -> tuple[str, ...]:
    """Class names; numbers where torchvision has none. One that goes by several names takes the first."""
    names = getattr(dataset, "classes", None) or range(int(_labels(dataset).max()) + 1)
    return tuple(name[0] if isinstance(name, tuple) else str(name) for name in names)
