"""The named networks, as a table, and their registration in timm.

``timm.create_model("cbam_resnet50")`` works once attendo and timm are both imported, with everything timm's own ResNets
take: ``num_classes``, ``in_chans``, ``features_only``, ``output_stride``, ``drop_path_rate`` ...
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from attendo._errors import CheckpointError, InvalidArgument
from attendo.layers import Attention
from attendo.models.blocks import AttentionBasicBlock, AttentionBottleneck
from attendo.models.resnet import AttentionResNet, CifarResNet

__all__: list[str] = []  # timm appends the names that it registers

RESNETS: dict[int, tuple[type[nn.Module], tuple[int, ...]]] = {
    18: (AttentionBasicBlock, (2, 2, 2, 2)),
    34: (AttentionBasicBlock, (3, 4, 6, 3)),
    50: (AttentionBottleneck, (3, 4, 6, 3)),
    101: (AttentionBottleneck, (3, 4, 23, 3)),
    152: (AttentionBottleneck, (3, 8, 36, 3)),
}
CIFAR_RESNETS = (8, 20, 32, 44, 56, 110)

# The kernels of the released ECA checkpoints, one per stage; the paper's formula gives 3,5,5,5 and 5,5,5,7.
ECA_KERNELS = {18: (3, 5, 7, 7), 34: (3, 3, 5, 7), 50: (3, 5, 5, 7), 101: (3, 3, 5, 7), 152: (3, 3, 5, 7)}

# EPSANet's large networks are not in the official repository. Doubled widths, 32 groups and kernels whose squares sum
# to 108 give the published parameter counts exactly; (3, 3, 3, 9) does as well: which one the authors used is unknown.
LARGE = {"kernel_sizes": (3, 5, 5, 7), "groups": (32, 32, 32, 32)}


@dataclass(frozen=True)
class Network:
    """A network of the table: its class, blocks and the arguments that make it what it is called."""

    model: type[AttentionResNet]
    block: type[nn.Module]
    layers: tuple[int, ...]
    args: dict[str, Any] = field(default_factory=dict)


def _bases() -> dict[str, Network]:
    """Return the plain networks by name: those that take any attention."""
    bases = {f"resnet{depth}": Network(AttentionResNet, *shape) for depth, shape in RESNETS.items()}
    for depth in CIFAR_RESNETS:
        bases[f"resnet{depth}"] = Network(CifarResNet, AttentionBasicBlock, ((depth - 2) // 6,) * 3, {"stem": "cifar"})
    # the network of the default comparison: a quarter of resnet8's cost, seconds to train on two cores
    bases["resnet8_stride2"] = Network(CifarResNet, AttentionBasicBlock, (1, 1, 1), {"stem": "stride2"})
    return bases


def _named() -> dict[str, Network]:
    """Return the networks with attention by name."""
    named: dict[str, Network] = {}
    for depth, shape in RESNETS.items():
        for gate in ("se", "eca", "cbam", "bam"):
            imagenet: dict[str, Any] = {"attention": gate}
            cifar: dict[str, Any] = {"attention": gate, "stem": "cifar"}
            if gate == "eca":
                imagenet["attention_args"] = [{"kernel_size": size} for size in ECA_KERNELS[depth]]
            if gate == "cbam":
                cifar["attention_args"] = {"variant": "paper"}  # as the CIFAR networks of the field are built
            named[f"{gate}_resnet{depth}"] = Network(AttentionResNet, *shape, imagenet)
            named[f"{gate}_resnet{depth}_cifar"] = Network(AttentionResNet, *shape, cifar)
    for depth in (50, 101):
        psa = {"attention": "psa"}
        named[f"epsanet{depth}_small"] = Network(AttentionResNet, *RESNETS[depth], psa)
        named[f"epsanet{depth}_large"] = Network(
            AttentionResNet, *RESNETS[depth], {**psa, "attention_args": LARGE, "base_width": 128}
        )
    return named


# Arguments of timm's that say where weights come from, not what the network is.
WEIGHTS = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "checkpoint_path")
BASES = _bases()
NAMED = _named()


def _cfg(name: str) -> dict[str, Any]:
    side = 32 if name.endswith("_cifar") else 224
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, side, side),
        "pool_size": (side // 8, side // 8) if side == 32 else (7, 7),
        "crop_pct": 1.0 if side == 32 else 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv1",
        "classifier": "fc",
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs({name: _cfg(name) for name in NAMED})


def build(name: str, network: Network, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build a network of the table.

    Args:
        name: the variant; a plain name such as ``resnet50`` finds timm's pretrained weights.
        network: the row.
        pretrained: load timm's weights of the plain network; the attention starts fresh.
        kwargs: arguments of the network, over those of the row.

    Raises:
        InvalidArgument: pretrained weights are asked for with a stem that has none.
        CheckpointError: the weights lack an entry of the plain network.
    """
    args = {**network.args, **kwargs}
    if pretrained and args.get("stem", "imagenet") != "imagenet":
        raise InvalidArgument(
            f"model {name!r}: pretrained=True with stem={args['stem']!r}; the weights that exist are for the ImageNet "
            f"stem. Pass stem='imagenet' or pretrained=False."
        )
    if network.model is CifarResNet:
        if args["stem"] == "imagenet":
            raise InvalidArgument(
                f"model {name!r}: stem='imagenet'; this network is for small images. Take stem='stride2' or 'cifar'."
            )
        args.setdefault("pretrained_cfg", _cfg(f"{name}_cifar"))
        features = {"out_indices": (0, 1, 2, 3)}
    else:
        features = {}
    model: nn.Module = build_model_with_cfg(
        network.model,
        name,
        pretrained,
        block=network.block,
        layers=network.layers,
        feature_cfg=features,
        pretrained_strict=False,  # the attention has no entry; the filter below checks all others
        pretrained_filter_fn=_plain_weights,
        **args,
    )
    return remember(model, name, kwargs)


def remember(model: nn.Module, name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Note on a network how ``create_model`` built it, so that its weight file can say so; return the network.

    Args:
        model: the network; its attribute ``attendo`` becomes ``{"name": ..., "arguments": {...}}``.
        name: its name.
        arguments: those it was built with, without the ones that only say where weights come from.
    """
    kept = {key: value for key, value in arguments.items() if key not in WEIGHTS and value is not None}
    model.attendo = {"name": name, "arguments": copy.deepcopy(kept)}  # type: ignore[assignment]
    return model


def _plain_weights(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Fit a plain network's weights to one with attention: every entry must find its place, and the reverse."""
    wanted = model.state_dict()
    added = tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, Attention))
    fitted = {}
    for key, value in state.items():
        followed = key.replace(".conv2.", ".conv2.0.")  # a mechanism that follows the convolution wraps it
        if not key.startswith(added):  # else a mechanism replaces this convolution
            fitted[followed if followed in wanted else key] = value
    missing = [key for key in wanted if key not in fitted and not key.startswith(added)]
    unexpected = [key for key in fitted if key not in wanted and not key.startswith("fc.")]
    if missing or unexpected:
        raise CheckpointError(
            f"pretrained weights: {len(missing)} entries of the network are missing {missing[:1]} and "
            f"{len(unexpected)} have no place in it {unexpected[:1]}; they are for another network. "
            f"Pass pretrained=False."
        )
    return fitted


def _entrypoint(name: str, network: Network) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build(name, network, pretrained, **kwargs)

    create.__name__ = create.__qualname__ = name
    create.__module__ = __name__
    create.__doc__ = f"{name}: {network.model.__name__} with {network.args}."
    return create


for _name, _network in NAMED.items():
    setattr(sys.modules[__name__], _name, register_model(_entrypoint(_name, _network)))
