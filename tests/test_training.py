"""Training repeats to the bit, also when it is killed; evaluation counts right."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import pytest
import torch
from lightning.fabric.connector import _PRECISION_INPUT_STR
from torch import nn

import attendo
from attendo.training import Recipe, evaluate, fit, predict
from attendo.training.loading import training_loader
from attendo.training.recipe import PRECISIONS

RECIPE = Recipe(epochs=3, batch_size=8, lr=0.05)


def jitter(image):
    """Draw from all three generators, as real transforms do."""
    return image + 0.1 * torch.randn_like(image) + 0.01 * random.random() + 0.01 * float(np.random.rand())


@dataclass
class Blobs:
    """Images whose class is the colour of a noisy square: a stand-in with the interface of attendo.data.Images."""

    name: str = "blobs"
    size: int = 40
    classes: tuple[str, ...] = ("red", "green", "blue")
    train: list = field(init=False)
    validation: list = field(init=False)

    def __post_init__(self):
        generator = torch.Generator().manual_seed(5)
        images = torch.rand(2 * self.size, 3, 12, 12, generator=generator)
        items = []
        for i, image in enumerate(images):
            image[i % 3, 3:9, 3:9] += 1
            items.append((image, i % 3))
        self.train, self.validation = items[: self.size], items[self.size :]

    def transform(self, training):
        return jitter if training else torch.clone


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return attendo.create_model("resnet8", attention="se", num_classes=3, drop_rate=0.2, drop_path_rate=0.1)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


class Killed(Exception):
    pass


def killer(at: int):
    def progress(step: int, steps: int) -> None:
        if step == at:
            raise Killed

    return progress


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    model = network()
    trained = fit(model, Blobs(), RECIPE, seed=1, directory=tmp_path_factory.mktemp("whole"))
    return weights(model), trained


def test_training_learns(undisturbed):
    _, trained = undisturbed
    assert [epoch["epoch"] for epoch in trained.history] == [0, 1, 2]
    assert trained.history[-1]["validation_loss"] < trained.history[0]["validation_loss"]
    assert trained.history[-1]["validation_accuracy"] > 0.5


@pytest.mark.parametrize(("at", "workers"), [(2, 0), (7, 0), (13, 1)], ids=str)
def test_a_killed_run_ends_with_the_same_weights(undisturbed, tmp_path, at, workers):
    want, trained = undisturbed
    with pytest.raises(Killed):
        fit(network(), Blobs(), RECIPE, seed=1, directory=tmp_path, workers=workers, progress=killer(at))
    torch.rand(17)  # whatever else the process drew in between
    model = network(seed=99)
    again = fit(model, Blobs(), RECIPE, seed=1, directory=tmp_path, workers=1 - workers) if at > 4 else None
    if again is None:  # killed before the first epoch was saved: the caller builds the network anew
        model = network()
        again = fit(model, Blobs(), RECIPE, seed=1, directory=tmp_path)
    assert torch.equal(weights(model), want)
    assert again.history == trained.history


def test_another_seed_gives_another_run(undisturbed, tmp_path):
    want, _ = undisturbed
    model = network()
    fit(model, Blobs(), RECIPE, seed=2, directory=tmp_path)
    assert not torch.equal(weights(model), want)


def test_order_and_augmentation_do_not_depend_on_what_else_was_drawn():
    def batches(epoch: int) -> torch.Tensor:
        torch.rand(random.randrange(1, 9))
        data = Blobs()
        return torch.cat([x for x, _ in training_loader(data.train, jitter, batch_size=8, seed=3, epoch=epoch)])

    assert torch.equal(batches(0), batches(0))
    assert not torch.equal(batches(0), batches(1))


def test_loading_leaves_the_global_generators_alone():
    def draws() -> tuple:
        return torch.rand(2).tolist(), random.random(), float(np.random.rand())

    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    want = draws()
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])
    dataset = training_loader(Blobs().train, jitter, batch_size=8, seed=0).dataset
    dataset.__getitems__([(0, 1), (0, 2)])
    assert draws() == want


def test_a_loss_that_is_not_finite_stops_training(tmp_path):
    data = Blobs()
    data.train = [(image * float("nan"), label) for image, label in data.train]
    with pytest.raises(attendo.AttendoError, match=r"loss became nan in epoch 0.* Lower --lr"):
        fit(network(), data, RECIPE, seed=0, directory=tmp_path)


def test_too_few_images_for_a_batch_are_refused(tmp_path):
    with pytest.raises(attendo.AttendoError, match="40 training images do not fill one batch of 64"):
        fit(network(), Blobs(), Recipe(batch_size=64), seed=0, directory=tmp_path)


def test_a_damaged_state_is_named(tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(attendo.AttendoError, match=r"last\.ckpt cannot be read"):
        fit(network(), Blobs(), RECIPE, seed=0, directory=tmp_path)


def test_an_unknown_optimizer_gets_a_suggestion():
    with pytest.raises(attendo.AttendoError, match="Did you mean 'adamw'"):
        Recipe(optimizer="adamww")


@pytest.mark.parametrize("precision", ["12", 32, "bf16", ""])
def test_a_precision_that_there_is_not_is_refused_with_those_that_there_are(precision):
    with pytest.raises(attendo.AttendoError, match=f"precision={precision!r} is not.* Take '32-true' or 'bf16-mixed'"):
        Recipe(precision=precision)


def test_every_precision_of_a_recipe_is_one_of_lightnings():
    assert set(PRECISIONS) < set(get_args(_PRECISION_INPUT_STR))


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"batch_size": 1}, {"lr": -1.0}, {"label_smoothing": 1.0}], ids=str)
def test_a_recipe_that_cannot_work_is_refused(bad):
    with pytest.raises(attendo.AttendoError, match=f"recipe: {next(iter(bad))}"):
        Recipe(**bad)


class Answers(nn.Module):
    """Answers with the class written into the image's first pixel."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(5.0))

    def forward(self, x):
        return self.scale * nn.functional.one_hot(x[:, 0, 0, 0].long(), 3).float()


def test_evaluation_counts_what_a_hand_would():
    images = [(torch.full((3, 2, 2), float(answer)), label) for answer, label in [(0, 0), (1, 0), (1, 1), (2, 1)]]
    model = Answers().train()
    found = evaluate(model, images, torch.clone, classes=3, batch_size=3)
    assert model.training
    assert found.accuracy == 0.5
    assert found.confusion == ((1, 1, 0), (0, 1, 1), (0, 0, 0))
    assert found.per_class[:2] == (0.5, 0.5)
    assert np.isnan(found.per_class[2])
    right, wrong = np.log(np.exp(5) + 2) - 5, np.log(np.exp(5) + 2)
    assert found.loss == pytest.approx((right + wrong) / 2, rel=1e-5)


def test_evaluation_refuses_another_number_of_classes():
    images = [(torch.zeros(3, 2, 2), 0)]
    with pytest.raises(attendo.AttendoError, match="the data has 4 classes"):
        evaluate(Answers(), images, torch.clone, classes=4)


def test_prediction_names_the_likeliest_classes_first():
    answers = predict(Answers(), [torch.full((3, 2, 2), 2.0)], torch.clone, ("a", "b", "c"), top=2)
    assert answers[0][0] == ("c", pytest.approx(np.exp(5) / (np.exp(5) + 2), rel=1e-5))
    assert len(answers[0]) == 2
