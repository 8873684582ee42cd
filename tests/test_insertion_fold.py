"""Folding: gates that hardly depend on the input move into weights; others stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import attendo
from attendo.insertion import attention_parameters, fold, insert, replace
from insertion_networks import network

SIZE = (3, 64, 64)


def batches(count: int = 2) -> list[Tensor]:
    return list(torch.randn(4 * count, *SIZE, generator=torch.Generator().manual_seed(0)).split(4))


def steady(model: nn.Module) -> nn.Module:
    """Make every inserted gate the same for all images, and far from 1."""
    torch.manual_seed(1)
    for parameter in attention_parameters(model):
        nn.init.uniform_(parameter, -0.5, 0.5)
    return model.eval()


def close(one: Tensor, other: Tensor) -> bool:
    return bool(((one - other).norm() / other.norm()) < 1e-5)


@pytest.mark.parametrize(
    ("name", "where", "into"),
    [
        ("torchvision resnet18", "auto", "layer1.0.bn2"),  # a norm
        ("torchvision vgg11_bn", "auto", "features.1"),  # a norm behind a ReLU
        ("torchvision squeezenet1_1", "features.3.squeeze", "features.3.squeeze"),  # a convolution
        ("own residual", "stem", "stem"),
        (
            "timm efficientnet_b0",
            "**.se",
            "blocks.0.0.conv_pw",
        ),  # what it reads is a SiLU: the convolution that reads it
        ("own plain", "auto", "conv1"),
    ],
)
def test_a_constant_gate_moves_into_the_weights_beside_it(name, where, into):
    model = network(name)
    done = insert(model, "static", where, start="paper", input_size=SIZE, reduction=lambda s: min(16, s.channels))
    steady(model)
    images = batches()
    want = model(images[0])
    keys = len(model.state_dict())
    report = fold(model, images)
    assert len(report) >= len(done)
    folded = [folding for folding in report if folding.into]
    assert folded[0].into == into
    assert len(model.state_dict()) < keys
    assert close(model(images[0]), want)
    assert report.drift < 1e-5
    assert not close(network(name).eval()(images[0]), want)  # the gates were not all 1
    assert not any(folding.path in model.state_dict() for folding in folded)


def test_the_gate_of_an_identity_start_is_folded_with_its_alpha():
    model = network("torchvision resnet18")
    insert(model, "static", input_size=SIZE)
    for name, parameter in steady(model).named_parameters():
        if name.endswith("alpha"):
            nn.init.constant_(parameter, 0.3)
    want = model(batches()[0])
    report = fold(model, batches())
    assert [folding.into for folding in report] == [folding.path for folding in report]
    assert close(model(batches()[0]), want)
    assert attention_parameters(model) == []
    assert not any(module._forward_hooks or module._load_state_dict_post_hooks for module in model.modules())


def test_a_gate_that_answers_to_the_input_stays():
    model = network("torchvision resnet18")
    insert(model, "se", "layer1.*.bn2", start="paper", input_size=SIZE)
    insert(model, "static", "layer2.*.bn2", start="paper", input_size=SIZE)
    for name, parameter in steady(model).named_parameters():
        if "layer1" in name and "fc" in name:
            nn.init.normal_(parameter, 0, 3)
    want = model(batches()[0])
    report = fold(model, batches())
    assert [bool(folding.into) for folding in report] == [False, False, True, True]
    assert min(folding.drift for folding in report[:2]) > 0.01
    assert "stays: drift is above the tolerance 0.01" in str(report)
    assert close(model(batches()[0]), want)
    with pytest.raises(attendo.AttendoError, match=r"site 'layer1.0.bn2' \(se\), drift .* cannot be folded"):
        fold(model, batches(), "layer1.*.bn2")


def test_a_nearly_constant_gate_folds_within_the_tolerance_and_drifts_as_reported():
    model = network("torchvision resnet18")
    insert(model, "se", start="paper", input_size=SIZE)
    steady(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "mechanism.fc1.weight" in name:
                parameter.mul_(0.02)
    images = batches()
    want = torch.cat([model(batch) for batch in images])
    report = fold(model, images, tolerance=0.05)
    assert all(folding.into for folding in report)
    assert 0 < max(folding.drift for folding in report) < 0.05
    got = torch.cat([model(batch) for batch in images])
    assert report.drift == pytest.approx(((got - want).norm() / want.norm()).item(), rel=1e-3)


def test_spatial_gates_do_not_fold():
    model = network("own residual")
    insert(model, "cbam", start="paper", input_size=SIZE)
    for parameter in steady(model).parameters():
        if parameter.dim() == 4 and parameter.shape[1] == 2:
            nn.init.normal_(parameter, 0, 1)
    report = fold(model, batches())
    assert not any(folding.into for folding in report)
    assert len(attention_parameters(model)) > 0


def test_foreign_attention_folds_too():
    model = network("torchvision mobilenet_v3_small")
    for path, module in model.named_modules():
        if path.endswith("fc2"):  # torchvision's SE: a hard sigmoid of its bias alone
            nn.init.zeros_(module.weight)
            nn.init.uniform_(module.bias, -1, 1)
    images = batches()
    want = model(images[0])
    report = fold(model, images)
    assert len(report) == 9
    assert all(folding.into for folding in report)
    assert close(model(images[0]), want)
    assert not any("fc2" in key for key in model.state_dict())


def test_replaced_attention_folds_and_is_gone():
    model = network("timm efficientnet_b0")
    replace(model, "static", input_size=SIZE, reduction=8)
    steady(model)
    want = model(batches()[0])
    fold(model, batches())
    assert close(model(batches()[0]), want)
    assert attention_parameters(model) == []


class Branching(nn.Module):
    """The map that the gate reads is used elsewhere too, and so is what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(3, 16, 3, padding=1), attendo.layer("static", 16)
        self.one, self.other = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = self.gate(x)
        return self.one(y) + self.other(y) + x.mean()


class Features(Branching):
    """The gate's output is an output of the network."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.sigmoid(self.conv(x))
        y = self.gate(x)
        return y, self.one(y)


@pytest.mark.parametrize("build", [Branching, Features])
def test_a_gate_whose_map_others_read_stays(build):
    model = build().eval()
    before = model.conv.weight.clone()
    report = fold(model, batches())
    assert [folding.into for folding in report] == [None]
    assert "no norm or convolution makes its input for it alone" in report[0].reason
    assert torch.equal(model.conv.weight, before)


class Standardised(nn.Conv2d):
    """A convolution that standardises its weights: factors in them would do nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / self.weight.norm(), self.bias)


def test_a_convolution_with_a_forward_of_its_own_takes_no_factors():
    model = nn.Sequential(Standardised(3, 16, 3), attendo.layer("static", 16), Standardised(16, 4, 3)).eval()
    assert fold(model, batches())[0].into is None


@pytest.mark.parametrize("groups", [1, 2, 16])
def test_factors_go_into_the_inputs_of_a_convolution_where_its_groups_allow(groups):
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.SiLU(), attendo.layer("static", 16), nn.Conv2d(16, 32, 3, groups=groups)
    )
    want = model.eval()(batches()[0])
    report = fold(model, batches())
    assert report[0].into == "3"
    assert close(model(batches()[0]), want)


def test_a_negative_factor_does_not_pass_a_relu():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
    insert(model, "static", "1", input_size=SIZE)
    for name, parameter in steady(model).named_parameters():
        if name.endswith("alpha"):
            nn.init.constant_(parameter, 5.0)  # beyond the mechanism: 1 + 5 * (gate - 1)
    want = model(batches()[0])
    report = fold(model, batches())
    assert report[0].low < 0
    assert report[0].into == "2"
    assert close(model(batches()[0]), want)


def test_accuracy_is_reported_where_there_are_labels():
    model = network("own residual")
    insert(model, "static", start="paper", input_size=SIZE)
    steady(model)
    labelled = [(images, model(images).argmax(1)) for images in batches()]
    report = fold(model, labelled)
    assert report.accuracy == (1.0, 1.0)
    assert "accuracy 1.0000 -> 1.0000" in str(report)


class Cancelling(Branching):
    """Subtracts what a constant gate would give, so that little but the gate's answers to the input comes out."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.one(self.gate(x)) - self.other(x)


def test_an_output_beyond_the_tolerance_folds_nothing():
    torch.manual_seed(1)
    model = Cancelling().eval()
    model.gate = attendo.layer("se", 16).eval()
    with torch.no_grad():
        gates = model.gate.gates(model.conv(torch.cat(batches())))[0].mean((0, 2, 3))
        model.other.weight.copy_(model.one.weight * gates[:, None, None])
        model.other.bias.copy_(model.one.bias)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(attendo.AttendoError, match=r"with 1 sites folded the output drifts by .* drifts add up"):
        fold(model, batches(), tolerance=0.01)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (iter([torch.zeros(1, *SIZE)]), "which can be gone through once"),
        ([], "data has no batches"),
        ([{"image": 1}], "a batch of the data is a dict"),
    ],
)
def test_data_that_cannot_be_used_is_refused(data, message):
    with pytest.raises(attendo.AttendoError, match=message):
        fold(network("own residual"), data)


def test_a_pattern_without_attention_is_refused_and_modes_are_kept():
    model = network("own residual").train()
    insert(model, "static", "last.bn2", input_size=SIZE)
    with pytest.raises(attendo.AttendoError, match=r"'head' matches no site with attention; it is at: last\.bn2"):
        fold(model, batches(), "head")
    model.blocks.eval()
    modes = {path: module.training for path, module in model.named_modules()}
    fold(model, batches())
    assert {path: modes[path] for path, _ in model.named_modules()} == {
        path: module.training for path, module in model.named_modules()
    }
