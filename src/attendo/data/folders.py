"""An image folder: one subfolder per class, or those inside ``train`` and ``val``."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from PIL.Image import Image

from attendo._errors import DataError
from attendo.data.images import FORMS, Images, Request, Split
from attendo.data.reading import damage, read_image, read_size
from attendo.data.splitting import HELD_OUT, assemble

EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
VALIDATION_FOLDERS = ("val", "validation", "valid", "test")


class FileSource:
    """Image files below a folder.

    Args:
        root: the folder.
        paths: the files, relative to it.
    """

    probes = 20_000  # opening a header takes about 0.1 ms

    def __init__(self, root: Path, paths: list[str]) -> None:
        self.root, self.paths = root, paths

    def read(self, index: int) -> Image:
        """Return a picture, RGB."""
        try:
            return self._read(index)
        except DataError as error:
            raise DataError(f"{error}{self._damage}") from error

    def size(self, index: int) -> tuple[int, int]:
        """Width and height in pixels, from the file's header."""
        try:
            return read_size(self.root / self.paths[index])
        except DataError as error:
            raise DataError(f"{error}{self._damage}") from error

    def identity(self, indices: Sequence[int]) -> bytes:
        """Return names and sizes of the files."""
        return "\n".join(f"{self.paths[i]} {(self.root / self.paths[i]).stat().st_size}" for i in indices).encode()

    def _read(self, index: int) -> Image:
        return read_image(self.root / self.paths[index])

    @cached_property
    def _damage(self) -> str:
        return damage(self._read, self.paths, f"images of {self.root}")


def image_folder(request: Request) -> Images:
    """Read ``<folder>/train/<class>/*`` and ``<folder>/val/<class>/*``, or ``<folder>/<class>/*``.

    The validation folder may be called val, validation, valid or test, in this order of preference, or as
    ``request.validation`` says, which may also be a path. Without one, or if ``request.validation`` is a share, a part
    of the training images is held out. Names that begin with a dot are passed over.

    Raises:
        DataError: a folder is missing, empty or may not be read, an image is damaged, there is one class only, or the
            two splits have different ones.
    """
    root = Path(request.name).expanduser().absolute()
    try:
        is_folder = stat.S_ISDIR(root.stat().st_mode)
    except PermissionError as error:
        raise _closed(request.name, error) from error
    except OSError as error:
        raise DataError(f"data {request.name!r}: no such folder ({root}); {FORMS}. Check the path.") from error
    if not is_folder:
        raise DataError(
            f"data {request.name!r}: this is a file; images are read from a folder. Unpack it, if it is one."
        )
    training = _split_folder(root, ("train",))
    validation = _validation_folder(request, root, training)
    classes, train = _read_split(request.name, training or root)
    if validation is None:
        return assemble(request, classes, train, None)
    scored_classes, scored = _read_split(request.name, validation)
    if scored_classes != classes:
        _refuse_different_classes(request.name, classes, scored_classes, validation)
    return assemble(request, classes, train, scored)


def _validation_folder(request: Request, root: Path, training: Path | None) -> Path | None:
    """Return the folder of validation images; None holds out a part of the training images."""
    if isinstance(request.validation, str):
        for folder in (root / request.validation, Path(request.validation).expanduser()):
            if folder.is_dir():
                return folder
        inside = ", ".join(folder.name for folder in _folders(request.name, root)) or "none"
        raise DataError(
            f"data {request.name!r}: validation={request.validation!r} is no folder, neither inside it nor here; its "
            f"folders: {inside}. Give one of them, a path, or a share such as {HELD_OUT}."
        )
    found = _split_folder(root, VALIDATION_FOLDERS)
    if training is None and found is not None:
        raise DataError(
            f"data {request.name!r}: there is {found.name}/ with folders inside, but no train/ beside it; the training "
            f"images are missed. Name their folder train."
        )
    return found if request.validation is None else None


def _split_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    """Return the first of these folders that holds class folders; one that holds images is itself a class."""
    for name in names:
        if (root / name).is_dir() and _folders(str(root), root / name):
            return root / name
    return None


def _folders(name: str, folder: Path) -> list[Path]:
    """Folders inside a folder, sorted by name."""
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except PermissionError as error:
        raise _closed(name, error) from error


def _read_split(name: str, folder: Path) -> tuple[tuple[str, ...], Split]:
    """Return the class names and the images of a folder of class folders."""
    classes = _folders(name, folder)
    if not classes:
        lying = sum(entry.suffix.lower() in EXTENSIONS for entry in folder.iterdir())
        raise DataError(
            f"data {name!r}: {folder} has no folders inside ({lying} images lie in it); every class is a folder of "
            f"images. Sort the images into one folder per class."
        )
    paths: list[str] = []
    labels: list[int] = []
    empty = []
    for label, class_folder in enumerate(classes):
        files = _image_files(name, class_folder)
        paths += [str(file.relative_to(folder)) for file in files]
        labels += [label] * len(files)
        if not files:
            empty.append(class_folder.name)
    if not paths:
        raise DataError(
            f"data {name!r}: no images in the {len(classes)} folders of {folder}; files ending in "
            f"{', '.join(EXTENSIONS)} are read. Check that this is the right folder."
        )
    if empty:
        more = " ..." if len(empty) > 5 else ""
        raise DataError(
            f"data {name!r}: no image in {', '.join(f'{folder / name}' for name in empty[:5])}{more}; every folder is "
            f"a class and needs files ending in {', '.join(EXTENSIONS)}. Add images or delete the folder."
        )
    return tuple(folder.name for folder in classes), Split(FileSource(folder, paths), labels)


def _image_files(name: str, folder: Path) -> list[Path]:
    """Image files below a folder, at any depth, sorted."""

    def refuse(error: OSError) -> None:
        raise _closed(name, error) from error

    files = []
    for place, folders, inside in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [inner for inner in folders if not inner.startswith(".")]
        files += [Path(place, file) for file in inside if file.lower().endswith(EXTENSIONS) and file[0] != "."]
    return sorted(files)


def _closed(name: str, error: OSError) -> DataError:
    return DataError(
        f"data {name!r}: no permission to look into {error.filename}; every class folder is read. "
        f"Give yourself read access."
    )


def _refuse_different_classes(name: str, classes: tuple[str, ...], scored: tuple[str, ...], validation: Path) -> None:
    """Raise the error that names the classes which only one split has."""
    parts = []
    for alone, where in (
        (sorted(set(classes) - set(scored)), "only the training images have"),
        (sorted(set(scored) - set(classes)), f"only {validation.name}/ has"),
    ):
        if alone:
            parts.append(f"{where} {', '.join(alone[:5])}{' ...' if len(alone) > 5 else ''}")
    raise DataError(
        f"data {name!r}: {'; '.join(parts)}; both splits need the same class folders. Rename or add the folders, or "
        f"hold out a part of the training images with validation={HELD_OUT}."
    )
