"""Data sets by name: what is loaded, what is refused and in which words, and what the network sees."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from attendo import data
from attendo._errors import DataError, InvalidArgument, MissingDependency, UnknownName
from attendo.data.reading import to_rgb
from attendo.data.splitting import held_out, stratified_order
from conftest import SHARED

CIFAR10 = SHARED / "data" / "cifar10"


@pytest.fixture(scope="module")
def digits():
    return data.load()


def picture(seed: int, width: int = 24, height: int = 24) -> Image.Image:
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, (height, width, 3), dtype=np.uint8))


def fill(folder: Path, counts: dict[str, int], **size: int) -> Path:
    """Write ``counts`` noise images per class folder."""
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            picture(1000 * number + i, **size).save(folder / name / f"{i}.png")
    return folder


# ------------------------------------------------------------------------------------------------ cluttered digits


def pixels(images: data.Images) -> str:
    return hashlib.sha256(images.train.source.canvases.numpy().tobytes()).hexdigest()[:16]


def test_the_digits_of_a_seed_are_the_same_bytes_everywhere(digits):
    assert pixels(digits) == "0ea2c30597a152d2"
    assert pixels(data.load(seed=1)) == "b472799344fb43f3"


def test_digits_are_the_same_whatever_the_limit(digits):
    small, larger = data.load(limit=50), data.load(limit=500)
    assert (len(small.train), len(small.validation)) == (50, 16)
    assert torch.equal(data.load(limit=50).train.source.canvases, small.train.source.canvases)
    for part, whole in ((small, larger), (larger, digits)):
        found = {image.numpy().tobytes(): i for i, (image, _) in enumerate(whole.train)}
        for i, (image, label) in enumerate(part.train):
            item = found[image.numpy().tobytes()]
            assert whole.train[item][1] == label
            assert torch.equal(whole.train.boxes[item], part.train.boxes[i])


def test_digits_have_every_class_equally_often(digits):
    assert digits.classes == tuple("0123456789")
    assert np.bincount(digits.train.labels).tolist() == [320] * 10
    assert np.bincount(digits.validation.labels).tolist() == [100] * 10


def test_digits_of_training_and_validation_are_different_handwriting():
    from sklearn.datasets import load_digits

    labels = load_digits().target
    train, validation = held_out(labels, 0.2, 0, "digits")
    assert not set(train) & set(validation)
    assert len(train) + len(validation) == len(labels)
    share = np.bincount(labels[validation]) / np.bincount(labels)
    assert np.abs(share - 0.2).max() < 0.01


def test_the_box_holds_the_digit_and_nothing_hides_it(digits, monkeypatch):
    from attendo.data import digits as module

    monkeypatch.setattr(module, "FRAGMENTS", 0)
    bare = data.load(limit=300)
    for split in (bare.train, bare.validation):
        for (image, _), box in zip(split, split.boxes, strict=True):
            rows, columns = (image[0].any(axis).nonzero().flatten() for axis in (1, 0))
            ink = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            cell = max(module.DIGIT_SIDES) / 8  # bilinear enlargement spreads the ink by half a cell on each side
            assert (box - ink).abs().max() <= cell / 2 + 1
    monkeypatch.undo()
    boxes = digits.train.boxes
    assert boxes.min() >= 0
    assert boxes.max() <= 40
    inside = [
        image[0, int(y0) : int(y1) + 1, int(x0) : int(x1) + 1].max()
        for (image, _), (x0, y0, x1, y1) in zip(digits.train[:50], boxes[:50].tolist(), strict=True)
    ]
    assert min(inside) > 100


def test_boxes_are_in_pixels_of_what_the_network_sees():
    single, double = data.load(limit=100), data.load(limit=100, image_size=80)
    torch.testing.assert_close(double.train.boxes, 2 * single.train.boxes)
    for training in (True, False):
        assert double.transform(training)(double.train[0][0]).shape == (3, 80, 80)


def test_digits_are_about_standardised(digits):
    transform = digits.transform(training=False)
    shown = torch.stack([transform(image) for image, _ in digits.train[:300]])
    assert shown.mean().abs() < 0.1
    assert 0.85 < shown.std() < 1.15


@pytest.mark.slow
def test_a_linear_model_cannot_tell_cluttered_digits(digits):
    from sklearn.linear_model import RidgeClassifier

    def flat(split):
        return split.source.canvases[split.indices].flatten(1).numpy() / 255.0

    model = RidgeClassifier(100.0).fit(flat(digits.train), digits.train.labels)
    assert model.score(flat(digits.validation), digits.validation.labels) < 0.4


# -------------------------------------------------------------------------------------------------- what is shown


def test_an_evaluation_image_of_digits_is_its_pixels_normalised(digits):
    image, _ = digits.validation[3]
    want = (image.double() / 255 - digits.mean[0]) / digits.std[0]
    got = digits.transform(training=False)(image)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)


def test_a_training_image_is_decided_by_the_seed_and_is_a_shifted_view(digits):
    image, _ = digits.train[0]
    transform, still = digits.transform(training=True), digits.transform(training=False)
    shown = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        shown.append(transform(image))
    assert torch.equal(shown[0], shown[1])
    assert not torch.equal(shown[0], shown[2])
    padded = still.normalise(torch.nn.functional.pad(image, (5, 5, 5, 5)))
    views = padded.unfold(1, 40, 1).unfold(2, 40, 1)  # (3, 11, 11, 40, 40)
    assert views.shape[1:3] == (11, 11)
    equal = (views == shown[0][:, None, None]).all(-1).all(-1).all(0)
    assert equal.any()


def test_training_shifts_reach_every_offset_and_flip_only_where_asked(digits):
    marked = torch.zeros(3, 40, 40, dtype=torch.uint8)
    marked[:, 20, 12] = 255
    for flip, columns in ((False, range(7, 18)), (True, [*range(7, 18), *range(22, 33)])):
        transform = dataclasses.replace(digits, flip=flip).transform(training=True)
        seen = {divmod(int(transform(marked)[0].argmax()), 40) for _ in range(4000)}
        assert {row for row, _ in seen} == set(range(15, 26))
        assert {column for _, column in seen} == set(columns)


def test_images_too_small_for_any_network_are_enlarged(tmp_path):
    images = data.load(fill(tmp_path, {"a": 3, "b": 3}, width=5, height=4))
    assert images.image_size == 8
    assert images.transform(training=False)(images.train[0][0]).shape == (3, 8, 8)


@pytest.mark.parametrize("side", [96, 224])
def test_a_large_evaluation_image_equals_timms(tmp_path, side):
    from timm.data import create_transform

    images = data.load(fill(tmp_path, {"a": 3, "b": 3}, width=90, height=70), image_size=side)
    image, _ = images.train[0]
    want = create_transform(side, is_training=False, mean=images.mean, std=images.std, crop_pct=0.875)(image)
    torch.testing.assert_close(images.transform(training=False)(image), want, rtol=1e-5, atol=1e-5)


def test_a_large_training_image_is_decided_by_the_global_seeds(tmp_path):
    import random

    images = data.load(fill(tmp_path, {"a": 3, "b": 3}, width=90, height=70), image_size=96)
    transform = images.transform(training=True)
    shown = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        shown.append(transform(images.train[0][0]))
    assert shown[0].shape == (3, 96, 96)
    assert shown[0].dtype == torch.float32
    assert torch.equal(shown[0], shown[1])
    assert not torch.equal(shown[0], shown[2])


def test_settings_survive_json_and_give_the_same_transform(tmp_path, digits):
    folder = data.load(fill(tmp_path, {"a": 3, "b": 3}, width=90, height=70))
    for images in (digits, folder):
        again = data.evaluation_transform(json.loads(json.dumps(images.settings())))
        image, _ = images.validation[0]
        assert torch.equal(again(image), images.transform(training=False)(image))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_a_saved_transform_takes_any_file(digits, mode):
    shown = data.evaluation_transform(digits.settings())(picture(0, 31, 57).convert(mode))
    assert shown.shape == (3, 40, 40)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 0}, "image_size=0"),
        ({"crop_fraction": 2.0}, r"crop_fraction=2\.0"),
        ({"std": [0.2, 0.0, 0.2]}, "std="),
        ({"mean": None}, "mean=None"),
        ({"interpolation": "nearest"}, "interpolation='nearest'"),
        ({"sharpen": 1}, "sharpen unknown"),
    ],
)
def test_settings_of_no_use_are_refused(digits, change, message):
    with pytest.raises(InvalidArgument, match=message):
        data.evaluation_transform({**digits.settings(), **change})


def test_everything_travels_to_a_worker_process(tmp_path, digits):
    folder = data.load(fill(tmp_path, {"a": 3, "b": 3}))
    for images in (digits, folder):
        twin = pickle.loads(pickle.dumps(images))
        assert twin.fingerprint == images.fingerprint
        for training in (True, False):
            transform = pickle.loads(pickle.dumps(images.transform(training)))
            assert transform(twin.train[0][0]).shape == (3, images.image_size, images.image_size)


# ------------------------------------------------------------------------------------------------------- folders


def test_class_folders_are_divided_by_the_seed(tmp_path):
    root = fill(tmp_path, {"ant": 10, "bee": 20, "cat": 5})
    images = data.load(root)
    assert images.classes == ("ant", "bee", "cat")
    assert np.bincount(images.train.labels).tolist() == [8, 16, 4]
    assert np.bincount(images.validation.labels).tolist() == [2, 4, 1]
    assert not set(images.train.indices) & set(images.validation.indices)
    assert np.array_equal(data.load(root).train.indices, images.train.indices)
    assert not np.array_equal(data.load(root, seed=1).train.indices, images.train.indices)
    assert np.bincount(data.load(root, validation=0.5).validation.labels).tolist() == [5, 10, 2]


@pytest.mark.parametrize("name", ["val", "validation", "valid", "test"])
def test_train_and_validation_folders_are_read(tmp_path, name):
    fill(tmp_path / "train", {"ant": 3, "bee": 2})
    fill(tmp_path / name, {"ant": 1, "bee": 1})
    images = data.load(tmp_path)
    assert (len(images.train), len(images.validation)) == (5, 2)
    assert images.train[4][1] == 1
    assert images.train[4][0].size == (24, 24)
    assert images.image_size == 24


def test_validation_may_be_named_or_lie_elsewhere(tmp_path):
    root = fill(tmp_path / "here", {"ant": 3, "bee": 2})
    elsewhere = fill(tmp_path / "there", {"ant": 1, "bee": 1})
    assert len(data.load(root, validation=str(elsewhere)).validation) == 2
    with pytest.raises(DataError, match=r"validation='holdout' is no folder.*its folders: ant, bee"):
        data.load(root, validation="holdout")


def test_a_class_called_train_is_a_class(tmp_path):
    assert data.load(fill(tmp_path, {"car": 3, "train": 3, "val": 3})).classes == ("car", "train", "val")


def test_hidden_folders_and_files_are_passed_over(tmp_path):
    fill(tmp_path, {"ant": 3, "bee": 3, ".ipynb_checkpoints": 1})
    (tmp_path / "ant" / "._0.png").write_bytes(b"not an image")
    (tmp_path / "ant" / "notes.txt").write_text("not an image")
    images = data.load(tmp_path)
    assert images.classes == ("ant", "bee")
    assert len(images.train) + len(images.validation) == 6


def test_images_of_one_small_size_keep_it_and_others_are_shown_at_224(tmp_path):
    assert data.load(fill(tmp_path / "a", {"x": 2, "y": 2}, width=48, height=32)).image_size == 32
    assert data.load(fill(tmp_path / "b", {"x": 2, "y": 2}, width=90, height=80)).image_size == 224
    mixed = fill(tmp_path / "c", {"x": 2, "y": 2})
    picture(0, 30, 30).save(mixed / "x" / "other.png")
    images = data.load(mixed)
    assert images.image_size == 224
    assert data.load(mixed, image_size=16).settings()["crop_fraction"] == 1.0


def broken(root: Path, kind: str) -> Path:
    """A data set that must be refused."""
    if kind == "missing":
        return root / "missing"
    if kind == "file":
        (root / "images.zip").write_bytes(b"PK")
        return root / "images.zip"
    if kind == "no classes":
        picture(0).save(root / "a.png")
        return root
    if kind == "different classes":
        fill(root / "train", {"ant": 2, "bee": 2})
        fill(root / "val", {"ant": 2, "wasp": 2})
        return root
    if kind == "no train":
        fill(root / "val", {"ant": 2, "wasp": 2})
        return root
    fill(root, {"ant": 1 if kind == "single" else 3, "bee": 0 if kind in ("empty class", "no images") else 3})
    if kind == "no images":
        for file in (root / "ant").iterdir():
            file.unlink()
    if kind == "one class":
        for file in (root / "bee").iterdir():
            file.unlink()
        (root / "bee").rmdir()
    if kind == "corrupt":
        (root / "bee" / "1.png").write_bytes(b"<html>not found</html>")
    if kind == "dangling":
        (root / "bee" / "link.png").symlink_to(root / "gone.png")
    return root


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such folder.*missing.*data is 'digits', an image folder, hfds/"),
        ("file", "images.zip': this is a file"),
        ("no classes", "has no folders inside .1 images lie in it.*one folder per class"),
        ("empty class", "no image in .*bee; every folder is a class"),
        ("no images", "no images in the 2 folders"),
        ("one class", "all 3 images are of class 'ant'"),
        ("single", "class 'ant' has a single image"),
        ("different classes", "only the training images have bee; only val/ has wasp"),
        ("no train", "no train/ beside it"),
        ("corrupt", r"image .*bee/1\.png: cannot be read as a picture .its bytes are no image"),
        ("dangling", r"image .*bee/link\.png: not there"),
    ],
)
def test_a_folder_that_cannot_serve_is_refused(tmp_path, kind, message):
    with pytest.raises(DataError, match=message):
        data.load(broken(tmp_path, kind))


def test_a_truncated_image_is_named_when_it_is_read(tmp_path):
    root = fill(tmp_path, {"ant": 3, "bee": 3}, width=60, height=60)
    for file in (root / "bee").iterdir():
        file.write_bytes(file.read_bytes()[:2000])
    images = data.load(root)
    with pytest.raises(DataError, match=r"image .*bee/\d\.png: cannot be read as a picture \(image file is truncated"):
        list(images.train)


@pytest.mark.parametrize("damage", ["header", "end"])
def test_all_images_that_cannot_be_read_are_named_at_once(tmp_path, damage):
    root = fill(tmp_path, {"ant": 3, "bee": 14}, width=60, height=60)
    for file in (root / "bee").iterdir():
        file.write_bytes(file.read_bytes()[:2000] if damage == "end" else b"<html>")
    with pytest.raises(DataError, match=r"^image .*bee/\d+\.png: cannot be read as a picture") as error:
        list(data.load(root).train)
    said = str(error.value)
    assert f"In all, 14 of the 17 images of {root} cannot be read: bee/0.png, bee/1.png, " in said
    assert said.endswith(" and 4 more.")
    assert said.partition("In all")[2].count(".png") == 10


def test_looking_for_more_damage_ends_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr("attendo.data.reading.PATIENCE", -1.0)
    root = fill(tmp_path, {"ant": 3, "bee": 3})
    for file in (root / "bee").iterdir():
        file.write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"^image .*delete it\.$"):
        data.load(root)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="no file permissions on this system")
@pytest.mark.parametrize("closed", ["bee", "bee/0.png"])
def test_what_may_not_be_read_is_named(tmp_path, closed):
    root = fill(tmp_path, {"ant": 2, "bee": 2})
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder.is_relative_to(Path(os.environ.get("TMPDIR", "/tmp"))):
            folder.chmod(0o755)
    (root / closed).chmod(0)
    before = os.geteuid()
    try:
        if before == 0:
            os.seteuid(65534)  # root may read everything
        with pytest.raises(DataError, match=f"no permission .*{closed}|{closed}: no permission"):
            data.load(root)
    finally:
        os.seteuid(before)
        (root / closed).chmod(0o755)


# --------------------------------------------------------------------------------------------------------- limits


def test_every_beginning_of_the_order_is_stratified():
    labels = np.repeat([0, 1, 2], [900, 90, 10])
    order = stratified_order(labels, 0)
    assert sorted(order) == list(range(1000))
    assert np.bincount(labels[order[:3]]).tolist() == [1, 1, 1]
    assert np.abs(np.bincount(labels[order[:100]]) - [90, 9, 1]).max() <= 1
    assert not np.array_equal(order, stratified_order(labels, 1))


@pytest.mark.parametrize(("limit", "sizes"), [(3, (3, 3)), (6, (6, 3)), (10, (10, 5)), (20, (20, 10)), (99, (20, 10))])
def test_a_limit_keeps_both_splits_in_proportion(tmp_path, limit, sizes):
    fill(tmp_path / "train", {"a": 10, "b": 5, "c": 5})
    fill(tmp_path / "val", {"a": 4, "b": 3, "c": 3})
    images = data.load(tmp_path, limit=limit)
    assert (len(images.train), len(images.validation)) == sizes
    assert set(images.train.labels) == set(images.validation.labels) == {0, 1, 2}


def test_validation_images_never_outnumber_the_limit(tmp_path):
    fill(tmp_path / "train", {"a": 3, "b": 3})
    fill(tmp_path / "val", {"a": 9, "b": 9})
    assert len(data.load(tmp_path, limit=4).validation) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit": 9}, "limit=9 leaves some of its 10 classes without.* Take limit=10"),
        ({"limit": 0}, "limit=0; it must be a positive integer"),
        ({"limit": True}, "limit=True"),
        ({"image_size": -1}, "image_size=-1"),
        ({"image_size": 7}, r"image_size=7; it must be an integer of at least 8.* Leave it out"),
        ({"image_size": 40.0}, r"image_size=40\.0"),
        ({"seed": -1}, "seed=-1"),
        ({"validation": 1}, "validation=1; a share"),
        ({"validation": 0.3}, "validation=0.3; their validation images"),
    ],
)
def test_an_argument_that_cannot_work_is_refused(settings, message):
    with pytest.raises(InvalidArgument, match=message):
        data.load("digits", **settings)


# ----------------------------------------------------------------------------------------------- kinds of images


def test_greyscale_palette_cmyk_and_alpha_become_rgb(tmp_path):
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    half.paste((0, 0, 255, 255), (0, 0, 4, 8))
    palette = red.quantize(4)
    clear = Image.new("P", (8, 8), 1)
    clear.putpalette([0, 0, 0, 9, 9, 9])
    cases = {
        "grey.png": (Image.new("L", (8, 8), 77), (77, 77, 77)),
        "palette.png": (palette, (255, 0, 0)),
        "cmyk.tif": (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), (255, 0, 0)),
        "deep.png": (Image.fromarray(np.full((8, 8), 30 * 257, dtype=np.uint16)), (30, 30, 30)),
        "grey-alpha.png": (Image.new("LA", (8, 8), (0, 0)), (255, 255, 255)),
        "alpha.png": (half, (255, 255, 255)),
        "bit.png": (Image.new("1", (8, 8), 1), (255, 255, 255)),
    }
    for name, (image, colour) in cases.items():
        image.save(tmp_path / name)
        got = data.read_image(tmp_path / name)
        assert got.mode == "RGB", name
        assert got.getpixel((7, 7)) == colour, name
    assert data.read_image(tmp_path / "alpha.png").getpixel((0, 0)) == (0, 0, 255)
    clear.save(tmp_path / "clear.png", transparency=bytes([255, 0]))
    assert data.read_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(Image.fromarray(np.full((2, 2), 65535, dtype=np.int32))).getpixel((0, 0)) == (255, 255, 255)


def test_a_rotated_photo_is_shown_upright(tmp_path):
    image = Image.new("RGB", (16, 8), "white")
    image.paste((255, 0, 0), (0, 0, 4, 8))  # red on the left as stored
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: the left side becomes the top
    image.save(tmp_path / "turned.png", exif=exif)
    upright = data.read_image(tmp_path / "turned.png")
    assert upright.size == (8, 16)
    assert upright.getpixel((4, 1)) == (255, 0, 0)
    assert upright.getpixel((4, 14)) == (255, 255, 255)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_values_without_a_defined_white_are_refused(tmp_path, dtype):
    Image.fromarray(np.full((4, 4), 100_000, dtype=dtype)).save(tmp_path / "values.tif")
    with pytest.raises(DataError, match=r"values\.tif: cannot be read as a picture .its values"):
        data.read_image(tmp_path / "values.tif")


# ------------------------------------------------------------------------------------------------- Hugging Face


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Write a directory of parquet files from columns; the cache goes beside it."""
    datasets = pytest.importorskip("datasets", reason="the extra attendo[data] is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(features=None, **splits):
        for split, columns in splits.items():
            shape = None if features is None else datasets.Features(features)
            (tmp_path / "table").mkdir(exist_ok=True)
            datasets.Dataset.from_dict(columns, features=shape).to_parquet(tmp_path / "table" / f"{split}-0.parquet")
        return f"hfds/{tmp_path / 'table'}"

    return write


def encoded(count: int, first: int = 0) -> list[dict]:
    from io import BytesIO

    files = []
    for i in range(count):
        picture(first + i, 20, 20).save(file := BytesIO(), "PNG")
        files.append({"bytes": file.getvalue(), "path": None})
    return files


def test_a_directory_of_parquet_files_is_read(table):
    import datasets

    features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    name = table(
        features,
        train={"img": encoded(6), "label": [0, 1, 1, 0, 0, 1]},
        test={"img": encoded(4, 50), "label": [1, 0, 0, 1]},
    )
    before = sorted(Path(name[5:]).iterdir())
    images = data.load(name)
    assert images.classes == ("cat", "dog")
    assert images.validation.labels.tolist() == [1, 0, 0, 1]
    assert images.image_size == 20
    image, label = images.train[2]
    assert label == 1
    assert image.tobytes() == picture(2, 20, 20).tobytes()
    assert data.load(name, validation=0.5).validation.labels.tolist().count(0) == 2
    assert pickle.loads(pickle.dumps(images)).train[2][0].tobytes() == image.tobytes()
    assert sorted(Path(name[5:]).iterdir()) == before


@pytest.mark.parametrize(
    "labels", [["dog", "cat"] * 3, [7, 3] * 3, [True, False] * 3], ids=["words", "numbers", "bool"]
)
def test_columns_without_the_hubs_metadata_are_found(table, labels):
    name = table(train={"picture": encoded(6), "species": labels})
    images = data.load(name)
    assert images.classes == tuple(str(label) for label in sorted(set(labels)))
    assert (len(images.train), len(images.validation)) == (4, 2)
    assert images.train[0][0].size == (20, 20)


def test_an_ambiguous_label_is_asked_for_and_can_be_given(table):
    name = table(train={"img": encoded(6), "fine": [0, 1, 2] * 2, "coarse": [0, 1, 1] * 2})
    with pytest.raises(DataError, match=r"2 columns could be the label: fine, coarse.*\?label=<column>"):
        data.load(name)
    assert len(data.load(f"{name}?label=fine").classes) == 3
    assert len(data.load(f"{name}?label=coarse").classes) == 2
    with pytest.raises(DataError, match="there is no column 'colour'; the columns are img"):
        data.load(f"{name}?label=colour")


@pytest.mark.parametrize(
    ("splits", "query", "settings", "message"),
    [
        ({"train": {"a": [1, 2]}}, "", {}, "no column is the image; the columns are a"),
        ({"train": {"img": 4}}, "", {}, "no column is the label"),
        ({"train": {"img": 4, "label": [1.5, 2.5] * 2}}, "", {}, "no column is the label"),
        ({"train": {"img": 4, "label": ["w", "x", "y", "z"]}}, "", {}, "4 different values in 4 images"),
        ({"train": {"img": 4, "label": [0, 1] * 2}}, "", {"validation": "dev"}, "no split 'dev'; there are train"),
        ({"train": {"img": 4, "label": [0, 1] * 2}}, "?train=all", {}, "no split 'all'"),
        (
            {"train": {"img": 4, "label": [0, 1] * 2}, "test": {"img": 2, "label": [-1, -1]}},
            "",
            {},
            "split 'test' has labels that are no class: -1",
        ),
        (
            {"train": {"img": 4, "label": [0, 1] * 2}, "test": {"img": 2, "label": [1, 1]}},
            "",
            {},
            "1 of its classes are only in the training images: '0'",
        ),
        (
            {"train": {"img": 4, "label": [0, 1] * 2}, "test": {"img": 2, "target": [1, 1]}},
            "",
            {},
            "cannot read it|no column label",
        ),
    ],
)
def test_a_table_that_cannot_serve_is_refused(table, splits, query, settings, message):
    def columns(split):
        return {name: encoded(value) if name == "img" else value for name, value in split.items()}

    name = table(**{split: columns(value) for split, value in splits.items()})
    with pytest.raises(DataError, match=message):
        data.load(name + query, **settings)


def test_a_damaged_or_empty_cell_is_named(table):
    files = encoded(6)
    files[3] = {"bytes": b"not an image", "path": None}
    name = table(train={"image": files, "label": [0, 1] * 3})
    with pytest.raises(DataError, match=r"image 3 of hfds/.* \(train\): cannot be read as a picture"):
        data.load(name)


@pytest.mark.parametrize("broken", [b"not an image", None], ids=["header", "end"])
def test_all_damaged_cells_are_named_at_once(table, broken):
    files = encoded(6)
    for row in (1, 3, 4):
        files[row] = {"bytes": broken or files[row]["bytes"][:60], "path": None}
    with pytest.raises(DataError, match=r"In all, 3 of the 6 images of hfds/.* \(train\) cannot be read: 1, 3, 4\.$"):
        list(data.load(table(train={"image": files, "label": [0, 1] * 3})).train)


def test_training_and_validating_on_one_split_is_refused(table):
    name = table(train={"img": encoded(4), "label": [0, 1] * 2})
    with pytest.raises(InvalidArgument, match="split 'train' for training and for validation"):
        data.load(name, validation="train")


@pytest.mark.parametrize("reason", ["offline mode", "no answer"])
def test_the_hub_out_of_reach_is_said_at_once(tmp_path, monkeypatch, reason):
    datasets = pytest.importorskip("datasets", reason="the extra attendo[data] is not installed")
    import huggingface_hub

    def no_answer(*args, **settings):
        raise TimeoutError("timed out")

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    if reason == "no answer":
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", no_answer)
        monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", no_answer)
    with pytest.raises(DataError, match="Hub cannot be reached from here and the data set is not in the cache"):
        data.load("hfds/nobody/nothing")
    assert datasets.config.HF_HUB_OFFLINE is (reason == "offline mode")


def test_a_hub_set_once_read_needs_the_network_no_more(table, tmp_path, monkeypatch):
    import huggingface_hub

    def no_answer(*args, **settings):
        raise TimeoutError("timed out")

    data.load(table(train={"image": encoded(6), "label": [0, 1] * 3}))
    cached = (tmp_path / "cache" / "table").rename(tmp_path / "cache" / "someone___animals")
    for file in cached.rglob("table-*.arrow"):
        file.rename(file.with_name(file.name.replace("table", "animals")))
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", no_answer)
    assert len(data.load("hfds/someone/animals").train) == 4


def test_the_hub_is_asked_for_what_the_name_says(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="the extra attendo[data] is not installed")
    import huggingface_hub

    asked = {}

    def answer(place, config, revision):
        asked.update(place=place, config=config, revision=revision)
        columns = {"image": encoded(6), "label": [0, 1] * 3}
        return datasets.DatasetDict(all=datasets.Dataset.from_dict(columns), test=datasets.Dataset.from_dict(columns))

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *args, **settings: None)
    monkeypatch.setattr(datasets, "load_dataset", answer)
    images = data.load("hfds/someone/animals?config=small&revision=v2&train=all")
    assert asked == {"place": "someone/animals", "config": "small", "revision": "v2"}
    assert (len(images.train), len(images.validation)) == (6, 6)


def test_without_the_package_the_pip_line_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependency, match=r"Run: pip install .*\[data\]'$"):
        data.load("hfds/someone/animals")


def test_a_data_set_saved_to_disk_is_read(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the extra attendo[data] is not installed")
    whole = datasets.Dataset.from_dict({"image": encoded(8), "label": [0, 1] * 4})
    datasets.DatasetDict(train=whole.select(range(6)), test=whole.select([6, 7])).save_to_disk(tmp_path / "saved")
    images = data.load(f"hfds/{tmp_path / 'saved'}")
    assert (len(images.train), len(images.validation)) == (6, 2)
    assert images.validation[1][0].tobytes() == picture(7, 20, 20).tobytes()


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="CIFAR-10 is not beside this checkout")
def test_cifar10_is_read_from_its_parquet_files(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="the extra attendo[data] is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    images = data.load(f"hfds/{os.path.relpath(CIFAR10)}", limit=200)
    assert images.classes[:3] == ("airplane", "automobile", "bird")
    assert (len(images.train), len(images.validation)) == (200, 40)
    assert np.bincount(images.train.labels).tolist() == [20] * 10
    assert images.image_size == 32
    assert images.flip
    for training in (True, False):
        assert images.transform(training)(images.train[0][0]).shape == (3, 32, 32)


# ---------------------------------------------------------------------------------------------------- torchvision


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """Replace torchvision's download of MNIST by files made here; returns the list of what was fetched."""
    from torchvision.datasets import mnist

    fetched = []

    def fetch(url, download_root, filename, md5):
        fetched.append(filename)
        sys.stdout.write(f"Downloading {url}")  # as torchvision does
        count = 40 if filename.startswith("train") else 20
        if "images" in filename:
            body = struct.pack(">IIII", 0x803, count, 28, 28) + np.random.RandomState(0).bytes(count * 784)
        else:
            body = struct.pack(">II", 0x801, count) + bytes(i % 10 for i in range(count))
        Path(download_root, filename.removesuffix(".gz")).write_bytes(body)

    monkeypatch.setenv("ATTENDO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(mnist, "download_and_extract_archive", fetch)
    return fetched


def test_a_torchvision_set_is_downloaded_once(downloads, tmp_path, capsys):
    images = data.load("torch/mnist")
    assert len(downloads) == 4
    assert (len(images.train), len(images.validation)) == (40, 20)
    assert images.classes[3] == "3 - three"
    assert images.image_size == 28
    assert not images.flip
    assert images.train[3][0].mode == "RGB"
    assert images.train[13][1] == 3
    assert data.load("torch/MNIST", flip=True).flip
    assert len(data.load("torch/mnist", validation=0.5).validation) == 20
    assert len(downloads) == 4
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "home" / "torchvision" / "mnist.partial").exists()


def test_a_failed_download_says_so_and_leaves_nothing(downloads, tmp_path, monkeypatch):
    from torchvision.datasets import mnist

    def no_network(*args, **settings):
        raise URLError("Name or service not known")

    whole = mnist.download_and_extract_archive
    monkeypatch.setattr(mnist, "download_and_extract_archive", no_network)
    with pytest.raises(DataError, match=r"'torch/mnist': cannot be downloaded to .*mnist .*needs the network"):
        data.load("torch/mnist")
    assert not list((tmp_path / "home" / "torchvision").glob("mnist*/"))
    monkeypatch.setattr(mnist, "download_and_extract_archive", whole)
    assert len(data.load("torch/mnist").train) == 40


def test_a_damaged_download_names_its_folder(downloads, tmp_path):
    data.load("torch/mnist")
    (tmp_path / "home" / "torchvision" / "mnist" / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"what is in .*mnist cannot be read.*Delete the folder"):
        data.load("torch/mnist")


def test_every_torchvision_set_exists_and_takes_its_splits():
    import inspect

    from torchvision import datasets

    from attendo.data.vision import SETS

    for name, row in SETS.items():
        parameters = inspect.signature(getattr(datasets, row.dataset).__init__).parameters
        for split in (row.train, row.validation or {}):
            assert set(split) <= set(parameters), name
        assert {"root", "download"} <= set(parameters), name


# ---------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "'digit': not known.* Did you mean 'digits'"),
        ("cifar10", "Did you mean 'torch/cifar10'"),
        ("zzz", "data is 'digits', an image folder, hfds/<Hub id or directory> or torch/<name>"),
        ("torch/cifra10", "Did you mean 'torch/cifar10'"),
        ("torch/", "'torch/': not known. Did you mean 'torch/"),
    ],
)
def test_an_unknown_name_gets_a_suggestion(name, message):
    with pytest.raises(UnknownName, match=message):
        data.load(name)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("hdfs/cifar10", DataError, "no such folder"),
        ("hfds/./nothing", DataError, "no directory './nothing' here .*, and no identifier of the Hub"),
        ("hfds/a/b?lable=x", InvalidArgument, "option 'lable' is not known. Known: config"),
        ("torch/mnist", InvalidArgument, "validation='test'; its validation split is fixed"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(name, error, message):
    with pytest.raises(error, match=message):
        data.load(name, validation="test")


def test_fingerprints_tell_data_apart(tmp_path, digits):
    root = fill(tmp_path / "a", {"x": 4, "y": 4})
    images = data.load(root)
    others = [
        digits,
        data.load(limit=100),
        data.load(limit=100, seed=1),
        data.load(limit=100, image_size=48),
        images,
        data.load(root, limit=4),
        data.load(root, seed=5),
        data.load(root, flip=False),
        dataclasses.replace(images, mean=(0.5, 0.5, 0.5)),
        dataclasses.replace(
            images, train=data.Split(images.train.source, 1 - images.train.labels, images.train.indices)
        ),
    ]
    assert len({one.fingerprint for one in others}) == len(others)
    assert all(len(one.fingerprint) == 12 for one in others)
    root = root.rename(tmp_path / "moved")
    assert data.load(root).fingerprint == images.fingerprint
    picture(99, 25, 25).save(root / "x" / "0.png")
    picture(98, 25, 25).save(root / "x" / "1.png")
    assert data.load(root).fingerprint != images.fingerprint


def test_importing_attendo_leaves_data_alone():
    code = (
        "import sys, attendo; sys.exit(any(name.startswith(('attendo.data', 'torchvision')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
