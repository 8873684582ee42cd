"""A layer takes the fast way only while its weights are all there is to it: no hook, override or exchange is missed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import attendo
from attendo import kernels
from attendo.layers._base import Gate
from attendo.layers.cbam_channel import ChannelGate
from attendo.layers.eca import ECA
from attendo.layers.se import SqueezeExcitation
from attendo.models.blocks import AttentionBasicBlock, AttentionBottleneck
from kernels import close, same
from test_kernels_dispatch import Counting, pytestmark  # noqa: F401 - the same skip

SUBMODULES = [
    *(("se", name) for name in ("fc1", "fc2")),
    ("eca", "conv"),
    *(("cbam", name) for name in ("channel.fc1", "channel.fc2", "spatial.conv", "spatial.norm")),
]


def defined(layer: Gate, x: Tensor) -> Tensor:
    with torch.no_grad(), kernels.use("reference"):
        return layer(x)


@pytest.mark.parametrize(("name", "inner"), SUBMODULES)
@pytest.mark.parametrize("kind", ["forward", "forward_pre"])
def test_a_hook_on_a_layers_submodule_is_called_and_heeded(name, inner, kind):
    layer, x = attendo.layer(name, 32).eval(), torch.randn(2, 32, 5, 5)
    plain, calls = defined(layer, x), []
    module = layer.get_submodule(inner)

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], *output: Tensor) -> Tensor:
        calls.append(inner)
        return (output or inputs)[0] * 2 + 1

    handle = getattr(module, f"register_{kind}_hook")(hook)
    with torch.no_grad():
        got = layer(x)
    assert calls
    close(got, defined(layer, x), terms=100)
    assert not torch.allclose(got, plain)
    handle.remove()
    with torch.no_grad(), Counting() as counts:
        close(layer(x), plain, terms=100)
    assert counts == {"attention": 1}


def test_a_global_hook_is_called():
    layer, seen = attendo.layer("se", 32).eval(), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    with torch.no_grad():
        layer(torch.randn(2, 32, 5, 5))
    handle.remove()
    assert nn.Linear in seen


def exchanged(name: str) -> Gate:
    """A layer one of whose parts was exchanged for what its weights alone do not tell."""
    layer = attendo.layer("eca" if name.startswith("eca") else "se" if name.startswith("se") else "cbam", 32).eval()
    match name:
        case "cbam with its norm fused into a convolution with bias":
            half = layer.spatial
            half.norm.running_mean.fill_(1.0)
            half.conv, half.norm = torch.nn.utils.fusion.fuse_conv_bn_eval(half.conv, half.norm), nn.Identity()
        case "cbam with a dilated convolution":
            layer.spatial.conv = nn.Conv2d(2, 1, 3, padding=2, dilation=2, bias=False)
        case "cbam with reflected edges":
            layer.spatial.conv = nn.Conv2d(2, 1, 7, padding=3, padding_mode="reflect", bias=False)
        case "cbam with a norm without weights":
            layer.spatial.norm = nn.BatchNorm2d(1, affine=False).eval()
        case "cbam with a norm without statistics":
            layer.spatial.norm = nn.BatchNorm2d(1, track_running_stats=False).eval()
        case "cbam with its norm in training":
            layer.spatial.norm.train()
        case "eca with a bias":
            layer.conv = nn.Conv1d(1, 1, 3, padding=1)
        case "eca with a dilated convolution":
            layer.conv = nn.Conv1d(1, 1, 3, padding=2, dilation=2, bias=False)
        case "eca with circular channels":
            layer.conv = nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular", bias=False)
        case "se with one bias":
            layer.fc1 = nn.Linear(32, 2, bias=False)
        case "se with a part of another kind":
            layer.fc2 = nn.Sequential(nn.Linear(2, 32), nn.Tanh())
        case "se with a parametrised weight":
            nn.utils.parametrizations.weight_norm(layer.fc1)
            layer.fc1.parametrizations.weight.original0.data *= 3
        case "se with a forward of its own":
            layer.fc1.forward = lambda z: z[:, :2] * 5
        case "se with gates of its own":
            layer.gates = lambda x: (torch.full((1, 32, 1, 1), 0.25),)
    return layer


@pytest.mark.parametrize(
    "name",
    [
        "cbam with its norm fused into a convolution with bias",
        "cbam with a dilated convolution",
        "cbam with reflected edges",
        "cbam with a norm without weights",
        "cbam with a norm without statistics",
        "cbam with its norm in training",
        "eca with a bias",
        "eca with a dilated convolution",
        "eca with circular channels",
        "se with one bias",
        "se with a part of another kind",
        "se with a parametrised weight",
        "se with a forward of its own",
        "se with gates of its own",
    ],
)
def test_a_layer_with_an_exchanged_part_computes_what_its_parts_say(name):
    layer, x = exchanged(name), torch.randn(2, 32, 9, 9) + 1
    with torch.no_grad():
        got = layer(x)
    close(got, defined(layer, x), terms=100)


class Squeezed(SqueezeExcitation):
    def squeeze(self, x: Tensor) -> Tensor:
        return x.square().mean((2, 3))


class Halved(ECA):
    def gates(self, x: Tensor) -> tuple[Tensor]:
        return (super().gates(x)[0] / 2,)


class Excited(ChannelGate):
    def excite(self, z_NC: Tensor) -> Tensor:
        return super().excite(z_NC).square()


@pytest.mark.parametrize("kind", [Squeezed, Halved, Excited])
def test_a_subclass_gets_its_own_gates(kind):
    layer, parent, x = kind(32).eval(), kind.__mro__[1](32).eval(), torch.randn(2, 32, 5, 5)
    parent.load_state_dict(layer.state_dict())
    with torch.no_grad():
        got = layer(x)
        close(got, x * layer.gates(x)[0], terms=100)
        assert not torch.allclose(got, parent(x))


def test_a_cbam_of_a_subclassed_half_gets_its_gates():
    layer, x = attendo.layer("cbam", 32).eval(), torch.randn(2, 32, 5, 5)
    layer.channel = Excited(32)
    with torch.no_grad(), Counting() as counts:
        got = layer(x)
    assert not counts["attention"]
    close(got, defined(layer, x), terms=100)


@pytest.mark.parametrize(
    "settings", [{"order": "spatial-channel"}, {"order": "parallel"}, {"gate": "softmax"}], ids=str
)
def test_settings_beyond_one_call_still_take_the_primitives(settings):
    layer, x = attendo.layer("cbam", 32, **settings).eval(), torch.randn(2, 32, 5, 5)
    with torch.no_grad(), Counting() as counts:
        got = layer(x)
    assert counts.keys() == {"channel_stats", "spatial_stats", "recalibrate"}
    close(got, defined(layer, x), terms=100)


BLOCKS = {"basic": (AttentionBasicBlock, 64, "act2", "bn2"), "bottleneck": (AttentionBottleneck, 16, "act3", "bn3")}


def block(kind: str, name: str = "se") -> nn.Module:
    cls, planes, _, _ = BLOCKS[kind]
    return cls(64, planes, attn_layer=lambda channels, **_: attendo.layer(name, channels))


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("name", ["se", "eca", "cbam"])
@pytest.mark.parametrize("training", [False, True])
def test_a_block_equals_the_one_without_kernels(kind, name, training):
    network, x = block(kind, name).train(training), torch.randn(2, 64, 6, 6)
    ways = []
    for chosen in ("auto", "reference"):
        leaf = x.clone().requires_grad_(training)
        with kernels.use(chosen), torch.set_grad_enabled(training), Counting() as counts:
            out = network(leaf)
            gradients = torch.autograd.grad(out.sum(), (leaf, *network.parameters())) if training else ()
        assert bool(counts) is (chosen == "auto")
        ways.append([out, *gradients])
    for got, want in zip(*ways, strict=True):
        close(got, want, terms=10000)
    same(x, x.clone())


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("where", ["the layer", "the activation"])
@pytest.mark.parametrize("hook", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_a_hook_at_the_end_of_a_block_is_called(kind, where, hook):
    network, calls = block(kind), []
    act = getattr(network, BLOCKS[kind][2])
    act.inplace = "backward" not in hook  # PyTorch's own condition for a full backward hook
    module = network.se if where == "the layer" else act
    getattr(module, f"register_{hook}_hook")(lambda *_: calls.append(hook))
    network(torch.randn(2, 64, 5, 5, requires_grad=True)).sum().backward()
    assert calls == [hook]


@pytest.mark.parametrize("kind", BLOCKS)
def test_what_a_hook_kept_of_the_last_norm_is_not_overwritten(kind):
    network, kept = block(kind).eval(), []
    norm = getattr(network, BLOCKS[kind][3])
    norm.register_forward_hook(lambda module, inputs, output: kept.append((output, output.clone())))
    with torch.no_grad():
        network(torch.randn(2, 64, 5, 5))
    same(*kept[0])


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_leaves_its_input_alone(kind):
    network, x = block(kind).eval(), torch.randn(2, 64, 5, 5)
    before = x.clone()
    with torch.no_grad():
        network(x)
    same(x, before)
