"""A network that was trained elsewhere keeps its accuracy to the image, whatever is inserted."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import pytest
import torch

from attendo.insertion import fold, freeze_backbone, insert, remove
from attendo.layers import AttentionConv
from attendo.layers._base import LAYERS
from conftest import SHARED

WEIGHTS = SHARED / "pretrained" / "resnet20-12fca82f.th"
CIFAR10 = SHARED / "data" / "cifar10"

pytestmark = pytest.mark.skipif(
    not (WEIGHTS.is_file() and CIFAR10.is_dir()), reason="the trained weights and CIFAR-10 are not beside this checkout"
)


def load_benchmark():
    path = Path(__file__).parents[1] / "benchmarks" / "insertion_resnet20.py"
    spec = importlib.util.spec_from_file_location("insertion_resnet20", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def benchmark():
    pytest.importorskip("pyarrow", reason="reading parquet needs pyarrow: pip install attendo[data]")
    return load_benchmark()


@pytest.fixture(scope="module")
def plain(benchmark):
    return benchmark.load_network(WEIGHTS)


@pytest.fixture(scope="module")
def test_images(benchmark):
    return benchmark.load_images(CIFAR10, "test", 100)


@pytest.mark.parametrize("attention", [name for name in LAYERS if not issubclass(LAYERS[name], AttentionConv)])
def test_every_prediction_stays(benchmark, plain, test_images, attention):
    images, _ = test_images
    model = copy.deepcopy(plain)
    with torch.no_grad():
        before = model(benchmark.normalise(images))
        done = insert(model, attention, input_size=(3, 32, 32), **benchmark.settings(attention))
        assert len(done) == 9
        assert torch.equal(model(benchmark.normalise(images)), before)
        remove(model)
        assert torch.equal(model(benchmark.normalise(images)), before)


def test_81_of_100_images_are_right_with_and_without_attention(benchmark, plain):
    images, labels = benchmark.load_images(CIFAR10, "test", 1000)
    before = benchmark.predict(plain, images)
    assert (before == labels).float().mean().item() == pytest.approx(0.81, abs=0.025)
    model = copy.deepcopy(plain)
    insert(model, "cbam", input_size=(3, 32, 32), reduction=4)
    assert torch.equal(benchmark.predict(model, images), before)


@pytest.mark.slow
def test_all_10000_predictions_stay_under_every_mechanism(benchmark, plain, request):
    if "slow" not in request.config.getoption("markexpr"):
        pytest.skip("10,000 images for each mechanism take minutes; pytest -m slow runs them")
    images, labels = benchmark.load_images(CIFAR10, "test")
    before = benchmark.predict(plain, images)
    assert (before == labels).float().mean().item() == pytest.approx(0.810, abs=0.001)
    for attention in (name for name in LAYERS if not issubclass(LAYERS[name], AttentionConv)):
        model = copy.deepcopy(plain)
        insert(model, attention, input_size=(3, 32, 32), **benchmark.settings(attention))
        assert torch.equal(benchmark.predict(model, images), before), attention


def test_attention_alone_learns_and_folds(benchmark, plain, test_images):
    images, labels = test_images
    torch.manual_seed(0)
    model = copy.deepcopy(plain)
    insert(model, "static", input_size=(3, 32, 32), reduction=4)
    optimiser = torch.optim.SGD(freeze_backbone(model), lr=0.02)
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(model(benchmark.normalise(images)), labels)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < losses[0]
    report = fold(model, [(benchmark.normalise(images), labels)])
    assert len([folding for folding in report if folding.into]) == 9
    assert report.accuracy is not None
    assert report.accuracy[0] == report.accuracy[1]
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters())
