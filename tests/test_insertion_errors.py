"""Everything that cannot work is refused with the way out, and the network is left as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attendo
from attendo.insertion import (
    attention_parameters,
    attention_state_dict,
    fold,
    freeze_backbone,
    insert,
    load_attention,
    remove,
    replace,
    sites,
)
from insertion_networks import Residual, network

SIZE = (3, 64, 64)


def fingerprint(model: nn.Module) -> Any:
    """All that insertion could change."""
    return (
        [
            (path, id(m), list(m.__dict__), list(m._modules), list(m._forward_hooks))
            for path, m in model.named_modules()
        ],
        {key: value.clone() for key, value in model.state_dict().items()},
        [(p.requires_grad, id(p)) for p in model.parameters()],
        [m.training for m in model.modules()],
    )


def assert_unchanged(model: nn.Module, before: Any) -> None:
    after = fingerprint(model)
    assert [after[i] for i in (0, 2, 3)] == [before[i] for i in (0, 2, 3)]
    assert list(after[1]) == list(before[1])
    assert all(torch.equal(after[1][key], before[1][key]) for key in before[1])


class Twins(nn.Module):
    """Returns two maps."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Odd(Residual):
    """Has what no site can be: a module that returns a pair, one that never runs, one that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.idle, self.shared = Twins(), nn.Conv2d(3, 3, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.pair(x)
        return super().forward(self.shared(self.shared(x)))


class Iterating(Residual):
    """Its last block runs whatever children it has, one after the other."""

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            for child in self.children():
                x = child(x)
            return x

    def __init__(self) -> None:
        super().__init__()
        self.last = self.Chain()


REFUSED = [
    ("seblock", {}, "layer 'seblock': not known"),
    ("psa", {}, r"'psa' replaces a convolution .* Call replace\(model, 'psa'\)"),
    ("se", {"start": "zero"}, "start='zero' is not one of its choices. Take 'identity' or 'paper'"),
    ("se", {"where": "layer9.*"}, "'layer9.*' matches no module of Odd"),
    ("se", {"where": ["last.bn2", "last.bn3"]}, "'last.bn3' matches no module of Odd.* Did you mean 'last.bn"),
    ("se", {"where": "re:last[.]bn9"}, "matches no module of Odd"),
    ("se", {"where": "re:layer[("}, r"'re:layer\[\(' is no regular expression .unterminated character set"),
    ("se", {"where": 3}, "where=3 has 3 in it, which names no modules"),
    ("se", {"where": ["last.bn2", 3]}, "has 3 in it, which names no modules"),
    ("se", {"where": lambda site: False}, "finds no place in Odd; at least one is needed"),
    ("se", {"where": "fc"}, r"'fc' returns a tensor of shape \(1, 10\); attention needs one feature map"),
    ("se", {"where": "pair"}, r"'pair' returns a tuple of 2; attention needs one feature map"),
    ("se", {"where": "shared"}, "'shared' is called 2 times in one forward"),
    ("se", {"where": "last.act"}, "'last.act' is called 2 times .* such as the norm before a shared activation"),
    ("se", {"where": "idle"}, "'idle' is not called in the dry run"),
    ("se", {"reduction": 64}, r"site 'blocks.0.bn2': SE: 32 channels with reduction 64 .*lambda site: min\(16"),
    ("se", {"reduction": {"last.*": 4}}, "has 0 patterns for site 'blocks.0.bn2'; a mapping has one for each site"),
    ("se", {"reduction": {"**": 4, "last.*": 2}}, "has 2 patterns for site 'last.bn2'"),
    ("se", {"reduction": {"**": 4, "head": 2}}, "names 'head', where no site is"),
    ("se", {"input_size": (1, 64, 64)}, r"Odd does not run on one image of input_size=\(1, 64, 64\) .*expected input"),
    ("se", {"input_size": 64}, "input_size=64; it is .channels, height, width. of one image"),
    ("se", {"example_inputs": torch.zeros(1, 3)}, "Odd does not run on these example_inputs"),
]


@pytest.mark.parametrize(("attention", "arguments", "message"), REFUSED, ids=[message[:40] for *_, message in REFUSED])
def test_what_cannot_be_inserted_is_refused_and_nothing_changes(attention, arguments, message):
    model = Odd().eval()
    before = fingerprint(model)
    with pytest.raises(attendo.AttendoError, match=f"(?s){message}"):
        insert(model, attention, **({"input_size": SIZE} | arguments))
    assert_unchanged(model, before)


def test_a_mistyped_setting_is_a_type_error_and_nothing_changes():
    model = Residual()
    before = fingerprint(model)
    with pytest.raises(TypeError, match="redcution"):
        insert(model, "se", redcution=4, input_size=SIZE)
    assert_unchanged(model, before)


def test_a_site_takes_one_mechanism():
    model = Residual()
    insert(model, "se", input_size=SIZE)
    before = fingerprint(model)
    with pytest.raises(attendo.AttendoError, match=r"'blocks.0.bn2' has 'se' already; .* replace\(model, 'cbam'"):
        insert(model, "cbam", input_size=SIZE)
    with pytest.raises(attendo.AttendoError, match="belongs to attention that was inserted before"):
        insert(model, "cbam", "last.bn2.attendo", input_size=SIZE)
    assert_unchanged(model, before)


def test_a_module_that_runs_its_children_is_refused_in_the_rehearsal():
    model = Iterating()
    before = fingerprint(model)
    with pytest.raises(attendo.AttendoError, match=r"would run 2 times in one forward; .* Name a module inside it"):
        insert(model, "se", ["last"], input_size=SIZE)  # alone, "last" is the last stage
    assert_unchanged(model, before)
    assert insert(model, "se", "last.b", input_size=SIZE).paths == ["last.b"]


@pytest.mark.parametrize(
    ("name", "where"),
    [("torchvision convnext_tiny", "features.1.0.block.2"), ("torchvision convnext_tiny", "features.1.0.block.5")],
)
def test_channels_last_maps_are_refused(name, where):
    with pytest.raises(attendo.AttendoError, match="with its channels last; attention needs them second"):
        insert(network(name), "se", where, input_size=SIZE)


def test_a_transformer_has_no_places_of_this_kind():
    timm = pytest.importorskip("timm")
    model = timm.create_model("swin_tiny_patch4_window7_224")
    with pytest.raises(attendo.AttendoError, match="finds no place in SwinTransformer"):
        sites(model)


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model)


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile()
    return model


def scripted(model: nn.Module) -> nn.Module:
    with pytest.warns((DeprecationWarning, FutureWarning)):
        return torch.jit.trace(model.eval(), torch.zeros(1, *SIZE))


def quantised(model: nn.Module) -> nn.Module:
    with pytest.warns():  # torch moves quantisation to torchao
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})


def distributed(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=init_device_mesh("cpu", (1,)))


@pytest.fixture
def _one_process() -> Any:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_one_process")
@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (compiled, "wrapped in OptimizedModule; .* before torch.compile"),
        (compiled_in_place, "compiled in place; .* before torch.compile"),
        (scripted, "wrapped in ScriptModule; TorchScript froze its code"),
        (quantised, r"'fc' is quantised \(Linear\)"),
        (distributed, "wrapped in DistributedDataParallel; .* model.module before wrapping"),
        (sharded, "wrapped in FSDPModule; its parameters are cut into shards already"),
    ],
    ids=lambda part: getattr(part, "__name__", ""),
)
def test_a_network_that_is_wrapped_or_converted_is_refused(wrap, message):
    model = wrap(Residual())
    for change in (
        lambda: insert(model, "se", input_size=SIZE),
        lambda: sites(model, input_size=SIZE),
        lambda: replace(model, "se", input_size=SIZE),
        lambda: load_attention(model, {}),
        lambda: fold(model, [torch.zeros(1, *SIZE)]),
    ):
        with pytest.raises(attendo.AttendoError, match=message):
            change()


@pytest.mark.usefixtures("_one_process")
def test_attention_inserted_first_is_sharded_with_the_rest():
    model = Residual()
    insert(model, "cbam", input_size=SIZE)
    plain = copy.deepcopy(model).train()
    model = sharded(model).train()
    x = torch.randn(2, *SIZE)
    torch.testing.assert_close(model(x), plain(x))
    model(x).square().mean().backward()
    assert all(p.grad is not None for p in attention_parameters(model))


def test_attention_whose_module_was_swapped_away_is_noticed():
    model = network("torchvision resnet18")
    insert(model, "se", input_size=SIZE)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for ask in (attention_parameters, attention_state_dict, freeze_backbone, remove):
        with pytest.raises(
            attendo.AttendoError, match=r"nothing calls the attention at 'layer1.0.bn2.attendo' any more"
        ):
            ask(model)


def test_nothing_to_remove_or_freeze_is_an_error():
    model = Residual()
    with pytest.raises(attendo.AttendoError, match=r"'\*\*' matches no site with attention; .* has none"):
        remove(model)
    with pytest.raises(attendo.AttendoError, match="has no attention; nothing would train"):
        freeze_backbone(model)
    with pytest.raises(attendo.AttendoError, match="has no inserted attention"):
        attention_state_dict(model)
    insert(model, "se", input_size=SIZE)
    with pytest.raises(attendo.AttendoError, match=r"'head' matches no site with attention; .* It is at: blocks.0.bn2"):
        remove(model, ["blocks.0.bn2", "head"])
    with pytest.raises(attendo.AttendoError, match="train='head' matches no module"):
        freeze_backbone(model, train="head")
    assert len(remove(model)) == 3


class Sizing(nn.Module):
    """Called an SE block, but it changes the shape."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :16]


@pytest.mark.parametrize(
    ("attention", "arguments", "message"),
    [
        ("se", {}, "what=None finds no attention in Sequential; known there: none"),
        ("se", {"what": lambda site: True}, "finds no attention"),
        ("se", {"what": "9"}, "'9' matches no module"),
        ("se", {"what": "1"}, r"'1' returns a tensor of shape \(1, 16, 64, 64\) for inputs of shape .* the same shape"),
        ("se", {"what": "2", "start": "zero"}, "start='zero'"),
        ("psa", {"what": "0", "start": "identity"}, "start='identity' with 'psa'"),
        ("psa", {}, "what=None finds no convolution in a residual block"),
        ("psa", {"what": "1"}, "'1' is a SEBlock; this mechanism replaces Conv2d modules"),
        ("sk", {"what": "2"}, r"'2' has kernel_size=\(3, 3\), padding=\(0, 0\).* Name other convolutions"),
    ],
)
def test_what_cannot_be_replaced_is_refused_and_nothing_changes(attention, arguments, message):
    wrong = type("SEBlock", (Sizing,), {})
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), wrong(), nn.Conv2d(16, 32, 3))
    before = fingerprint(model)
    with pytest.raises(attendo.AttendoError, match=f"(?s){message}"):
        replace(model, attention, input_size=SIZE, **arguments)
    assert_unchanged(model, before)


def test_a_convolution_with_attention_behind_it_is_not_replaced():
    model = Residual()
    insert(model, "se", "last.conv2", input_size=SIZE)
    before = fingerprint(model)
    with pytest.raises(attendo.AttendoError, match=r"behind the convolution 'last.conv2' there is 'se'"):
        replace(model, "sk", what="last.conv2", input_size=SIZE)
    assert_unchanged(model, before)


def test_something_else_than_a_network_is_refused():
    with pytest.raises(attendo.AttendoError, match=r"insert: got str; it works on an nn\.Module"):
        insert("resnet18", "se")
