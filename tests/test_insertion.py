"""Insert, replace and remove: what they promise about the network they change."""

from __future__ import annotations

import copy
import logging
import re

import pytest
import torch
from torch import nn

from attendo.insertion import (
    attention_parameters,
    attention_state_dict,
    freeze_backbone,
    insert,
    remove,
    sites,
)
from attendo.layers import AttentionConv
from attendo.layers._base import LAYERS
from insertion_networks import Plain, Residual, network

SIZE = (3, 64, 64)
INSERTABLE = [name for name in LAYERS if not issubclass(LAYERS[name], AttentionConv)]


def images(count: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("attention", INSERTABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_an_identity_start_changes_no_bit(attention, dtype, train):
    model = network("torchvision resnet18").to(dtype).train(train)
    plain = copy.deepcopy(model)(images(dtype=dtype))
    insert(model, attention, input_size=SIZE)
    out = model(images(dtype=dtype))
    assert out.dtype == dtype
    bits = torch.int16 if dtype == torch.bfloat16 else torch.int32  # the sign of a zero counts
    assert torch.equal(out.view(bits), plain.view(bits))


@pytest.mark.parametrize("attention", INSERTABLE)
def test_under_autocast_nothing_changes_either(attention):
    model = network("own residual")
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(images())
        insert(model, attention, input_size=SIZE)
        out = model(images())
    assert out.dtype == plain.dtype
    assert torch.equal(out, plain)


@pytest.mark.parametrize("attention", INSERTABLE)
def test_every_inserted_parameter_gets_a_gradient_within_two_steps(attention):
    torch.manual_seed(1)
    model = network("torchvision resnet18").train()
    insert(model, attention, input_size=SIZE)
    inserted = {name: p for name, p in model.named_parameters() if "attendo" in name}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    reached = set()
    for _ in range(2):
        optimiser.zero_grad()
        model(images(4)).square().mean().backward()
        reached |= {name for name, p in inserted.items() if p.grad is not None and p.grad.abs().sum() > 0}
        optimiser.step()
    assert reached == set(inserted)


def test_the_first_step_gives_the_backbone_the_gradients_it_had():
    model = network("own residual").train()
    twin = copy.deepcopy(model)
    insert(model, "cbam", input_size=SIZE)
    for net in (model, twin):
        net(images()).square().mean().backward()
    gradients = dict(model.named_parameters())
    assert all(torch.equal(gradients[name].grad, p.grad) for name, p in twin.named_parameters())


def test_a_paper_start_is_the_mechanism_itself_and_costs_no_more():
    model = network("torchvision resnet18")
    plain = sum(p.numel() for p in model.parameters())
    done = insert(model, "se", start="paper", input_size=SIZE)
    assert sum(p.numel() for p in model.parameters()) - plain == done.parameters == 89_080
    x = images()
    site = model.layer1[0].bn2
    seen = {}
    site.attendo.register_forward_pre_hook(lambda module, args: seen.update(before=args[0].clone()))
    site.register_forward_hook(lambda module, args, output: seen.update(after=output.clone()))
    model(x)
    torch.testing.assert_close(seen["after"], site.attendo.mechanism(seen["before"]))


def test_at_alpha_1_the_network_is_the_one_with_a_paper_start():
    model, twin = network("own residual"), network("own residual")
    insert(model, "cbam", input_size=SIZE)
    insert(twin, "cbam", start="paper", input_size=SIZE)
    twin.load_state_dict({k: v for k, v in model.state_dict().items() if not k.endswith("alpha")})
    for name, parameter in model.named_parameters():
        if name.endswith("alpha"):
            nn.init.ones_(parameter)
    assert torch.equal(model(images()), twin(images()))


def test_a_mechanism_that_is_the_identity_itself_starts_at_alpha_1():
    model = network("own residual")
    insert(model, "gc", input_size=SIZE)
    assert {p.item() for name, p in model.named_parameters() if name.endswith("alpha")} == {1.0}


@pytest.mark.parametrize("attention", INSERTABLE)
def test_a_checkpoint_of_the_plain_network_loads_before_and_after(attention, caplog):
    model = network("torchvision resnet18")
    plain = {key: value.clone() for key, value in model.state_dict().items()}
    insert(model, attention, input_size=SIZE)
    attention = {key: value.clone() for key, value in attention_state_dict(model).items()}
    with torch.no_grad():
        model.conv1.weight.zero_()
    with caplog.at_level(logging.INFO, "attendo"):
        missing, unexpected = model.load_state_dict(plain)
    assert not missing
    assert not unexpected
    assert "the checkpoint holds no attention" in caplog.text
    assert torch.equal(model.conv1.weight, plain["conv1.weight"])
    assert all(torch.equal(value, attention[key]) for key, value in attention_state_dict(model).items())
    remove(model)
    assert not any(model.load_state_dict(plain))


def test_a_checkpoint_with_some_of_the_attention_is_refused():
    model = network("torchvision resnet18")
    insert(model, "se", input_size=SIZE)
    state = model.state_dict()
    del state["layer1.0.bn2.attendo.alpha"]
    with pytest.raises(RuntimeError, match=r"Missing key.*layer1.0.bn2.attendo.alpha"):
        model.load_state_dict(state)


def test_a_checkpoint_of_the_plain_network_loads_inside_a_larger_module():
    outer = nn.ModuleDict({"net": network("own residual"), "other": nn.Linear(2, 2)})
    plain = {key: value.clone() for key, value in outer.state_dict().items()}
    insert(outer["net"], "se", input_size=SIZE)
    assert not any(outer.load_state_dict(plain))


@pytest.mark.parametrize("where", ["auto", "stages"])
@pytest.mark.parametrize("name", ["torchvision densenet121", "timm regnetx_002", "own U-Net"])
def test_removing_leaves_the_very_same_modules(name, where):
    model = network(name)
    before = {path: (id(m), dict.fromkeys(m.__dict__), list(m._modules)) for path, m in model.named_modules()}
    done = insert(model, "eca", where, input_size=SIZE)
    assert sorted(remove(model)) == sorted(done.paths)
    after = {path: (id(m), dict.fromkeys(m.__dict__), list(m._modules)) for path, m in model.named_modules()}
    assert before == after
    assert not any(m._forward_hooks or m._load_state_dict_post_hooks for m in model.modules())


def test_one_site_can_be_removed_alone():
    model = network("torchvision resnet18")
    insert(model, "se", input_size=SIZE)
    assert remove(model, "layer1.*.bn2") == ["layer1.0.bn2", "layer1.1.bn2"]
    assert "layer2.0.bn2.attendo.alpha" in model.state_dict()
    assert "layer1.0.bn2.attendo.alpha" not in model.state_dict()
    assert len(remove(model)) == 6


def test_where_takes_globs_regular_expressions_functions_and_lists():
    model = network("torchvision resnet18")
    wanted = ["layer1.0.bn1", "layer1.1.bn1"]
    for where in (
        "layer1.*.bn1",
        "re:layer1\\.\\d\\.bn1",
        re.compile(r"layer1\.\d\.bn1"),
        lambda site: site.path.startswith("layer1.") and site.path.endswith("bn1"),
        ["layer1.0.bn1", "layer1.1.bn1"],
    ):
        assert sites(model, where, SIZE).paths == wanted
    assert len(sites(model, "**.bn1", SIZE)) == 9
    assert sites(model, "bn?", SIZE).paths == ["bn1"]


def test_a_sequential_stands_for_the_module_inside_it_that_made_its_output():
    assert sites(network("torchvision resnet18"), "layer?", SIZE).paths == [
        "layer1.1",
        "layer2.1",
        "layer3.1",
        "layer4.1",
    ]


def test_a_container_that_runs_its_children_keeps_running_only_those():
    model = network("torchvision densenet121")
    plain = model(images())
    insert(model, "eca", ["features.denseblock1", "features.denseblock1.denselayer6.conv2"], input_size=SIZE)
    assert torch.equal(model(images()), plain)
    assert "features.denseblock1.denselayer6.conv2.attendo_up2.alpha" in model.state_dict()
    nn.init.ones_(model.get_parameter("features.denseblock1.denselayer6.conv2.attendo_up2.alpha"))
    assert not torch.equal(model(images()), plain)
    remove(model, "features.denseblock1")
    assert torch.equal(model(images()), plain)
    remove(model)
    assert not any("attendo" in key for key in model.state_dict())


def test_attention_goes_before_the_layer_scale():
    assert sites(network("torchvision convnext_tiny"), "auto", SIZE)[0].path == "features.1.0.block.6"


def test_the_placement_and_kernels_of_official_eca_mobilenet_v2():
    model = network("torchvision mobilenet_v2")
    done = insert(model, "eca", start="paper", kernel_size=lambda site: 1 if site.channels < 96 else 3)
    assert len(done) == 17
    assert done.parameters == 10 * 1 + 7 * 3
    assert sum(p.numel() for p in model.parameters()) == 3_504_903


@pytest.mark.parametrize("start", ["identity", "paper"])
@pytest.mark.parametrize("attention", INSERTABLE)
def test_the_memory_format_is_kept(attention, start):
    model = network("own residual").to(memory_format=torch.channels_last)
    insert(model, attention, "last.bn2", start=start, input_size=SIZE)
    seen = []
    model.last.bn2.register_forward_hook(lambda module, args, output: seen.append(output))
    model(images().to(memory_format=torch.channels_last))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_a_setting_can_differ_from_site_to_site():
    model = network("torchvision resnet18")
    kernels = {"layer1.*.bn2": 3, "layer2.*.bn2": 5, "re:layer[34].*": 7}
    done = insert(model, "eca", kernel_size=kernels, input_size=SIZE)
    assert [site.settings["kernel_size"] for site in done] == [3, 3, 5, 5, 7, 7, 7, 7]
    assert model.layer4[1].bn2.attendo.mechanism.conv.kernel_size == (7,)


def test_costs_are_counted_before_anything_is_inserted():
    model = network("torchvision resnet18")
    keys = list(model.state_dict())
    listed = sites(model, attention="se", input_size=SIZE)
    assert list(model.state_dict()) == keys
    assert listed[0].parameters == 64 * 4 + 4 + 4 * 64 + 64 + 1
    assert listed[0].macs == 2 * 64 * 4
    assert listed == insert(model, "se", input_size=SIZE)
    assert "8 sites" in str(listed)
    assert str(listed).splitlines()[1].split()[:4] == ["layer1.0.bn2", "residual", "BatchNorm2d", "64"]


def test_new_modules_follow_device_dtype_and_mode_of_their_place():
    model = network("torchvision resnet18").to(torch.float64).train()
    model.layer1.eval()
    insert(model, "cbam", input_size=SIZE)
    assert {p.dtype for p in attention_parameters(model)} == {torch.float64}
    assert not model.layer1[0].bn2.attendo.training
    assert model.layer2[0].bn2.attendo.mechanism.spatial.norm.training
    on_meta = network("torchvision resnet18").to("meta")
    insert(on_meta, "se", input_size=SIZE)
    assert {p.device.type for p in attention_parameters(on_meta)} == {"meta"}


def test_hooks_of_the_user_see_what_the_network_sees():
    model = network("own residual")
    seen = []
    model.last.bn2.register_forward_hook(lambda module, args, output: seen.append(output))
    insert(model, "se", "last.bn2", start="paper", input_size=SIZE)
    model(images())
    model.last.bn2.attendo.register_forward_hook(lambda module, args, output: seen.append(output))
    model(images())
    assert torch.equal(seen[-1], seen[-2])


def test_attention_parameters_are_those_and_no_others():
    model = network("torchvision resnet18")
    backbone = {id(p) for p in model.parameters()}
    insert(model, "cbam", input_size=SIZE)
    attention = attention_parameters(model)
    assert len(attention) == len({id(p) for p in attention})
    assert {id(p) for p in attention} == {id(p) for p in model.parameters()} - backbone


def test_a_frozen_backbone_stays_bit_for_bit_while_attention_trains():
    model = network("torchvision resnet18").train()
    insert(model, "se", input_size=SIZE)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trained = freeze_backbone(model, train="fc")
    optimiser = torch.optim.SGD(trained, lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        model(images()).square().mean().backward()
        optimiser.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert {"fc.weight", "layer1.0.bn2.attendo.alpha"} <= changed
    assert all(key.startswith("fc.") or "attendo" in key for key in changed)


def test_a_network_that_needs_other_inputs_takes_example_inputs():
    class Two(Residual):
        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return super().forward(x * scale)

    model = Two().eval()
    inputs = {"x": images(), "scale": torch.tensor(2.0)}
    plain = model(**inputs)
    assert len(insert(model, "se", example_inputs=inputs)) == 3
    assert torch.equal(model(**inputs), plain)
    assert len(sites(model, "**.bn1", example_inputs=(images(), torch.tensor(1.0)))) == 3


def test_a_network_whose_forward_depends_on_numbers_runs_as_a_real_copy():
    class Picky(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.sum().item() > 1e9:  # meta tensors have no numbers
                return x
            return super().forward(x)

    model = Picky()
    assert insert(model, "se", input_size=SIZE, reduction=4).paths == ["conv1", "conv2"]


def test_a_detector_takes_attention_in_its_backbone():
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    model.eval()
    picture = [torch.rand(3, 64, 64)]
    plain = model(picture)[0]
    done = insert(model, "eca", "backbone.body.*.block.2.1", example_inputs=([torch.rand(3, 64, 64)],))
    assert len(done) > 5
    out = model(picture)[0]
    assert all(torch.equal(out[key], plain[key]) for key in plain)
