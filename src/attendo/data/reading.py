"""An image file, of whatever kind, as 8-bit RGB."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from attendo._errors import DataError

SHOWN = 10  # images that an error message names
PATIENCE = 30.0  # seconds spent on looking for more unreadable images once there is one


def read_image(file: str | Path | IO[bytes], what: str | None = None) -> Image.Image:
    """Return an image as RGB, upright.

    Args:
        file: a path, or an open binary file.
        what: how errors name it; the path if None.

    Raises:
        DataError: the file is missing, may not be read, is no image, is damaged, or has values without a defined white.
    """
    try:
        with Image.open(file) as image:
            return to_rgb(image)
    except Exception as error:  # decoders meet broken bytes with any exception there is
        raise unreadable(what or str(file), error) from error


def read_size(file: str | Path | IO[bytes], what: str | None = None) -> tuple[int, int]:
    """Return width and height in pixels from the header; raises as ``read_image`` does, as far as a header tells."""
    try:
        with Image.open(file) as image:
            return image.size
    except Exception as error:  # as above
        raise unreadable(what or str(file), error) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image as 8-bit RGB: turned upright as EXIF says, 16 bits divided by 257, transparency on white.

    Raises:
        DataError: floating-point or 32-bit values, of which nothing says which one is white.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise DataError("its values need more than 16 bits")
        image = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    if image.mode == "F":
        raise DataError("its values are floating-point numbers")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    return image.convert("RGB")


def unreadable(what: str, error: Exception) -> DataError:
    """Return the error that names an image and says what is wrong with it."""
    if isinstance(error, PermissionError):
        return DataError(
            f"image {what}: no permission to read it; every image of a data set is read. Give yourself read access."
        )
    if isinstance(error, FileNotFoundError):
        return DataError(f"image {what}: not there; every image of a data set is read. Restore it or load anew.")
    if isinstance(error, UnidentifiedImageError):
        reason = "its bytes are no image that Pillow knows"
    else:
        reason = str(error) or type(error).__name__
    return DataError(
        f"image {what}: cannot be read as a picture ({reason}); every image of a data set must be whole and of 8 or 16 "
        f"bits per channel. Replace the picture or delete it."
    )


def damage(read: Callable[[int], object], names: Sequence[str], where: str) -> str:
    """Say which pictures of a source cannot be read, so that all can be mended at once; nothing if it is one only.

    Args:
        read: reads the picture of an index whole, and raises DataError if it cannot.
        names: of the pictures.
        where: what they are, in words.
    """
    wrong, looked, end = [], 0, time.monotonic() + PATIENCE
    for index, name in enumerate(names):
        try:
            read(index)
        except DataError:
            wrong.append(name)
        looked += 1
        if time.monotonic() > end:
            break
    if len(wrong) < 2:
        return ""
    some = ", ".join(wrong[:SHOWN]) + (f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else "")
    of = f"the {looked:,}" if looked == len(names) else f"the first {looked:,}"
    return f" In all, {len(wrong):,} of {of} {where} cannot be read: {some}."
