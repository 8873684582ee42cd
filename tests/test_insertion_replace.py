"""Replace: existing attention, foreign and ours, and convolutions give their place to a mechanism, and get it back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attendo.insertion import attention_parameters, insert, remove, replace
from insertion_networks import network

SIZE = (3, 64, 64)


def images() -> torch.Tensor:
    return torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(0))


def test_epsanet50_is_resnet50_with_its_wide_convolutions_replaced():
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet50()
    replace(model, "psa", input_size=SIZE)
    assert sum(p.numel() for p in model.parameters()) == 22_561_715


def test_a_replaced_convolution_is_replaced_again_and_comes_back():
    model = network("own residual")
    plain = model(images())
    replace(model, "sk", groups=1, input_size=SIZE)
    paths = replace(model, "psa", kernel_sizes=(3, 5), groups=(1, 1), input_size=SIZE).paths
    assert paths == ["blocks.0.conv1", "blocks.1.conv1", "last.conv1"]
    assert remove(model) == paths
    assert torch.equal(model(images()), plain)


def test_attention_behind_existing_attention_is_its_own_site():
    model = network("timm efficientnet_b0")
    insert(model, "eca", "blocks.0.0.se", input_size=SIZE)
    assert replace(model, "cbam", "blocks.0.0.se", input_size=SIZE)[0].kind == "eca"
    assert len(replace(model, "cbam", "blocks.*.*.se", input_size=SIZE)) == 16
    remove(model)
    assert torch.equal(model(images()), network("timm efficientnet_b0")(images()))


def test_existing_squeeze_and_excitation_is_found_and_swapped():
    for name, count in (
        ("timm efficientnet_b0", 16),
        ("torchvision efficientnet_b0", 16),
        ("torchvision mobilenet_v3_small", 9),
        ("timm ese_vovnet19b_dw", 4),
        ("torchvision regnet_y_400mf", 16),
    ):
        model = network(name)
        plain = model(images())
        state = {key: value.clone() for key, value in model.state_dict().items()}
        done = replace(model, "eca", input_size=SIZE)
        assert len(done) == count, name
        assert {site.kind for site in done} == {"se"}
        assert not torch.equal(model(images()), plain)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)
        assert not any(model.load_state_dict(state))  # the old checkpoint finds the modules that were put aside
        remove(model)
        assert torch.equal(model(images()), plain)
        assert list(model.state_dict()) == list(state)


def test_replacing_with_identity_start_takes_the_old_attention_out_of_the_way():
    model = network("timm efficientnet_b0")
    replace(model, "eca", start="identity", input_size=SIZE)
    out = model(images())
    remove(model)
    for module in list(model.modules()):
        if hasattr(module, "se"):
            module.se = nn.Identity()
    assert torch.equal(model(images()), out)


def test_inserted_attention_is_swapped_in_its_place():
    model = network("torchvision resnet18")
    plain = model(images())
    insert(model, "se", input_size=SIZE)
    done = replace(model, "cbam", what="layer1.0.bn2", input_size=SIZE)
    assert done.paths == ["layer1.0.bn2"]
    done = replace(model, "eca", start="identity", input_size=SIZE)
    assert len(done) == 8
    assert torch.equal(model(images()), plain)
    remove(model)
    assert torch.equal(model(images()), plain)


class CBAM(nn.Module):
    """A CBAM of somebody else: known by its name."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.fc(x.mean((2, 3), keepdim=True)))


def test_what_was_replaced_follows_device_and_dtype_and_is_swapped_once_more():
    model = nn.Sequential(nn.Conv2d(3, 32, 3), CBAM(32), nn.ReLU(), nn.Conv2d(32, 8, 3))
    old = model[1]
    assert replace(model, "se", input_size=SIZE)[0].kind == "cbam"
    model.to(torch.float64)
    replace(model, "eca", input_size=SIZE)
    assert sum(p.numel() for p in attention_parameters(model)) == 3
    remove(model)
    assert model[1] is old
    assert old.fc.weight.dtype == torch.float64
