"""Attention apart from its network: a small file that inserts it again, and how it is told apart."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import attendo
from attendo.insertion import (
    attention_parameters,
    attention_state_dict,
    insert,
    load_attention,
    remove,
    replace,
    save_attention,
)
from insertion_networks import network

SIZE = (3, 64, 64)


def images() -> torch.Tensor:
    return torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(0))


def randomise(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for value in attention_state_dict(model).values():
            if value.is_floating_point():
                value.uniform_(0.1, 0.4)
    return model.eval()


def trained(attention: str = "cbam", name: str = "torchvision resnet18", where: str = "auto", **settings) -> nn.Module:
    model = network(name)
    insert(model, attention, where, input_size=SIZE, **settings)
    return randomise(model)


@pytest.mark.parametrize(
    ("attention", "name", "where", "settings"),
    [
        ("cbam", "torchvision resnet18", "auto", {"reduction": 8}),
        ("eca", "own residual", "stages", {"start": "paper"}),
        ("coord", "own dense", "stages", {}),
        ("se", "ultralytics yolov8n", "auto", {}),
        ("fca", "own residual", "auto", {"dct_size": (8, 7), "frequencies": "low8"}),
    ],
)
def test_a_file_turns_the_plain_network_into_the_one_with_attention(attention, name, where, settings, tmp_path):
    model = trained(attention, name, where, **settings)
    save_attention(model, tmp_path / "attention.safetensors")
    twin = network(name)
    where = load_attention(twin, tmp_path / "attention.safetensors")
    assert list(twin.state_dict()) == list(model.state_dict())
    one, other = (torch.utils._pytree.tree_flatten(net(images()))[0] for net in (model, twin))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True) if isinstance(a, torch.Tensor))
    assert sorted(remove(twin)) == sorted(where)


def test_the_file_weighs_kilobytes(tmp_path):
    model = trained("eca")
    save_attention(model, tmp_path / "eca.safetensors")
    assert (tmp_path / "eca.safetensors").stat().st_size < 10_000


def test_replaced_attention_is_saved_and_loaded_too(tmp_path):
    model = network("timm efficientnet_b0")
    replace(model, "eca", input_size=SIZE)
    randomise(model)
    save_attention(model, tmp_path / "a.safetensors")
    twin = network("timm efficientnet_b0")
    plain = twin(images())
    load_attention(twin, tmp_path / "a.safetensors")
    assert torch.equal(twin(images()), model(images()))
    load_attention(twin, tmp_path / "a.safetensors")  # and once more, where it is already
    remove(twin)
    assert torch.equal(twin(images()), plain)


def test_a_state_dict_loads_where_the_attention_is():
    model = trained()
    twin = network("torchvision resnet18")
    with pytest.raises(attendo.AttendoError, match="a state dict does not say what to insert"):
        load_attention(twin, attention_state_dict(model))
    insert(twin, "cbam", input_size=SIZE)
    load_attention(twin, attention_state_dict(model))
    assert torch.equal(twin(images()), model(images()))


def test_a_file_for_another_network_is_refused_and_changes_nothing(tmp_path):
    save_attention(trained(), tmp_path / "a.safetensors")
    for name, message in (
        ("torchvision vgg11_bn", "wants 'cbam' at 'layer1.0.bn2', which fails"),
        ("torchvision resnext50_32x4d", "for 64 channels at 'layer1.0.bn2', which has 128"),
    ):
        model = network(name)
        keys = list(model.state_dict())
        with pytest.raises(attendo.AttendoError, match=message):
            load_attention(model, tmp_path / "a.safetensors")
        assert list(model.state_dict()) == keys
        assert not any(module._forward_hooks for module in model.modules())


def test_a_file_and_a_network_with_different_attention_do_not_mix(tmp_path):
    save_attention(trained(reduction=8), tmp_path / "a.safetensors")
    with pytest.raises(attendo.AttendoError, match=r"holds other attention than the network has, at layer1\.0\.bn2"):
        load_attention(trained(reduction=4), tmp_path / "a.safetensors")


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(attendo.AttendoError, match="is no attention file"):
        load_attention(network("own residual"), path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(attendo.AttendoError, match="is no attention file"):
        load_attention(network("own residual"), path)
    for text in ("nonsense", "[]", '{"format": 1, "sites": [{"path": 3}]}', '{"format": 1, "sites": 5}'):
        save_file({"x": torch.zeros(1)}, path, metadata={"attendo": text})
        with pytest.raises(attendo.AttendoError, match="is no attention file"):
            load_attention(network("own residual"), path)
    save_file({"x": torch.zeros(1)}, path, metadata={"attendo": '{"format": 9, "sites": []}'})
    with pytest.raises(attendo.AttendoError, match="has format 9, this version reads 1"):
        load_attention(network("own residual"), path)


def test_a_file_with_missing_or_misshapen_tensors_is_refused_and_changes_nothing(tmp_path):
    path = tmp_path / "a.safetensors"
    save_attention(trained("se"), path)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    for spoil in (
        lambda state: state.pop("layer4.1.bn2.attendo.alpha"),
        lambda state: state.update({"layer4.1.bn2.attendo.alpha": torch.zeros(3)}),
        lambda state: state.update(extra=torch.zeros(3)),
    ):
        state = load_file(path)
        spoil(state)
        save_file(state, tmp_path / "b.safetensors", metadata=metadata)
        model = network("torchvision resnet18")
        with pytest.raises(attendo.AttendoError, match="differ in 1 tensors"):
            load_attention(model, tmp_path / "b.safetensors")
        assert not any("attendo" in key for key in model.state_dict())


def test_a_network_without_attention_has_none_to_save(tmp_path):
    with pytest.raises(attendo.AttendoError, match="has no inserted attention"):
        save_attention(network("own residual"), tmp_path / "a.safetensors")
    assert attention_parameters(network("own residual")) == []


def test_attention_that_is_built_in_counts_as_attention():
    model = nn.Sequential(nn.Conv2d(3, 16, 1), attendo.layer("se", 16))
    assert sum(p.numel() for p in attention_parameters(model)) == 16 + 1 + 16 + 16
