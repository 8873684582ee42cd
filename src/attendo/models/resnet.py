"""ResNet with any mechanism at the place its paper gives it: timm's ResNet, with attention attached.

Papers: He et al., "Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385, and those of the
        mechanisms (see their files in ``attendo.layers``).
Code:   timm's ResNet is the network (stride in the 3x3 convolution, as the official SE-, ECA-, CBAM- and EPSANet code).

Deviations: SENet's own Caffe networks stride in the first 1x1 convolution; the other official networks do not. The
official CBAM, BAM and EPSANet code ends in a fixed 7x7 pool, ours in a global one: equal at 224 x 224.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from timm.layers import create_classifier
from timm.models._manipulate import checkpoint_seq
from timm.models.resnet import Bottleneck, ResNet, make_blocks
from torch import Tensor, nn

from attendo._errors import InvalidArgument
from attendo.layers import Attention, layer
from attendo.layers._base import LAYERS
from attendo.layers._checks import check_choice
from attendo.layers.cbam_spatial import SpatialGate
from attendo.models.spec import NONE, parse_attention

STRIDES = {"stride2": 2, "cifar": 1}  # of the 3x3 convolution that is the whole stem
STEMS = ("imagenet", *STRIDES)
Settings = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None


class AttentionResNet(ResNet):
    """timm's ResNet with a mechanism in every block (or between stages, where its paper puts it).

    The plain network is built and initialised first, so that with one seed it starts the same whatever the attention.

    Args:
        block: timm's ``BasicBlock`` or ``Bottleneck``.
        layers: blocks per stage.
        attention: a name of ``list_layers()``, with settings after a colon if wanted, or ``"none"``.
        attention_args: the mechanism's settings; a sequence gives each stage its own.
        stem: ``"imagenet"`` (7x7 convolution of stride 2 and max-pool: a quarter of the size), ``"stride2"`` (3x3 of
            stride 2: half) or ``"cifar"`` (3x3 of stride 1: the full size).
        resnet_args: timm's ResNet arguments.

    Shape:
        (N, in_chans, H, W) -> (N, num_classes)

    Raises:
        UnknownName: no such mechanism.
        InvalidArgument: settings that cannot work at this network's widths, or an unknown stem.
    """

    narrow: dict[str, dict[str, Any]] = {}  # settings of mechanisms whose own do not fit narrow networks

    def __init__(
        self,
        block: type[nn.Module],
        layers: Sequence[int],
        *,
        attention: str | None = None,
        attention_args: Settings = None,
        stem: str = "imagenet",
        **resnet_args: Any,
    ) -> None:
        check_choice(stem, "stem", STEMS, "ResNet")
        name, settings = parse_attention(attention)
        if not settings and attention_args is None:
            attention_args = self.narrow.get(name)
        self._build(block, tuple(layers), stem, resnet_args)
        attach(self, attention, attention_args)

    def _build(self, block: type[nn.Module], layers: tuple[int, ...], stem: str, resnet_args: dict[str, Any]) -> None:
        """Build the plain network."""
        super().__init__(block, layers, **resnet_args)
        if stem != "imagenet":
            old = self.get_submodule("conv1")
            if not isinstance(old, nn.Conv2d):
                raise InvalidArgument(
                    f"stem={stem!r} replaces a single 7x7 convolution; this network has a deep stem. Leave stem out."
                )
            stride = STRIDES[stem]
            self.conv1 = nn.Conv2d(old.in_channels, old.out_channels, 3, stride, 1, bias=False).to(old.weight)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.maxpool = nn.Identity()
            for feature in self.feature_info:
                feature["reduction"] = max(stride, feature["reduction"] * stride // 4)


class CifarResNet(AttentionResNet):
    """The three-stage ResNets of the ResNet paper's CIFAR-10 section: 6n + 2 layers, widths 16, 32, 64.

    Projection shortcuts (option B) where the width changes; the arguments are those of ``AttentionResNet``. Without
    settings, PSA, GC and SK take those of ``narrow``: the papers' groups do not divide 16 channels, or leave one unit.
    """

    widths = (16, 32, 64)
    narrow = {"psa": {"groups": (1, 2, 4, 4), "reduction": 4}, "gc": {"reduction": 4}, "sk": {"groups": 16}}

    def _build(self, block: type[nn.Module], layers: tuple[int, ...], stem: str, resnet_args: dict[str, Any]) -> None:
        nn.Module.__init__(self)
        args: dict[str, Any] = {
            "num_classes": 1000,
            "in_chans": 3,
            "global_pool": "avg",
            "drop_rate": 0.0,
            "drop_path_rate": 0.0,
        }
        args |= {"zero_init_last": True}
        unknown = set(resnet_args) - set(args)
        if unknown:
            raise TypeError(f"CifarResNet got unexpected arguments {sorted(unknown)}; it takes {sorted(args)}")
        args |= resnet_args
        self.num_classes, self.in_chans, self.drop_rate = args["num_classes"], args["in_chans"], args["drop_rate"]
        self.grad_checkpointing = False
        first, stride = self.widths[0], STRIDES[stem]
        self.conv1 = nn.Conv2d(self.in_chans, first, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity()
        stages, features = make_blocks(
            (block,) * len(self.widths),
            self.widths,
            layers,
            first,
            cardinality=1,
            base_width=64,
            act_layer=nn.ReLU,
            norm_layer=nn.BatchNorm2d,
            aa_layer=None,
            drop_path_rate=args["drop_path_rate"],
        )
        for name, stage in stages:
            self.add_module(name, stage)
        self.feature_info = [{"num_chs": first, "reduction": stride, "module": "act1"}]
        self.feature_info += [{**feature, "reduction": feature["reduction"] * stride // 4} for feature in features]
        self.num_features = self.head_hidden_size = self.widths[-1]
        self.global_pool, self.fc = create_classifier(
            self.num_features, self.num_classes, pool_type=args["global_pool"]
        )
        self.init_weights(zero_init_last=args["zero_init_last"])

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map: (N, in_chans, H, W) -> (N, 64, H', W'), a quarter of what the stem leaves."""
        x = self.act1(self.bn1(self.conv1(x)))
        stages = [self.layer1, self.layer2, self.layer3]
        if self.grad_checkpointing:
            return checkpoint_seq(stages, x, flatten=True)
        for stage in stages:
            x = stage(x)
        return x


def attach(model: ResNet, attention: str | None, attention_args: Settings = None) -> None:
    """Put a mechanism into every block of a timm ResNet, or between its stages, where its paper puts it.

    Args:
        model: a network of timm's ResNet family; changed in place.
        attention: as in ``AttentionResNet``.
        attention_args: as in ``AttentionResNet``.
    """
    name, settings = parse_attention(attention)
    if name == NONE:
        return
    stages = [stage for stage_name, stage in model.named_children() if stage_name.startswith("layer")]
    per_stage = _per_stage(name, settings, attention_args, len(stages))
    plan = [
        change
        for stage, args in zip(stages, per_stage, strict=True)
        for change in _plan(name, stage, args, last=stage is stages[-1])
    ]
    for holder, slot, module in plan:  # nothing can fail any more
        setattr(holder, slot, module)


def _plan(
    name: str, stage: nn.Sequential, args: Mapping[str, Any], last: bool
) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Yield what to put where in one stage: (holder, slot, module)."""
    placement = LAYERS[name].placement
    if placement == "stage":
        if not last:
            yield stage, "attention", _new(name, stage, _width(stage[-1]), **args)
        return
    for block in stage:
        if placement == "block":
            yield block, "se", _new(name, block, _width(block), **args)
        elif placement == "conv":
            conv: Any = block.get_submodule("conv2")
            yield block, "conv2", nn.Sequential(conv, _new(name, block, conv.out_channels, **args))
        else:
            slot = "conv2" if isinstance(block, Bottleneck) else "conv1"
            yield block, slot, _instead_of(block.get_submodule(slot), name, args)


def _new(name: str, place: nn.Module, *channels: int, **settings: Any) -> Attention:
    """Build a mechanism, initialised and placed as the network around it."""
    mechanism = layer(name, *channels, **settings)
    for module in mechanism.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, SpatialGate) and isinstance(module.norm, nn.BatchNorm2d):
            nn.init.zeros_(module.norm.weight)  # the official CBAM ResNet starts with every spatial gate at 0.5
    weight = next(place.parameters())
    return mechanism.to(weight.device, weight.dtype)


def _instead_of(conv: Any, name: str, settings: Mapping[str, Any]) -> Attention:
    if conv.dilation != (1, 1):
        raise InvalidArgument(
            f"attention {name!r} replaces 3x3 convolutions, and this network dilates them by {conv.dilation[0]}; it "
            f"has no dilated form. Build the network with output_stride=32, or choose another mechanism."
        )
    return _new(name, conv, conv.in_channels, conv.out_channels, conv.stride[0], **settings)


def _width(block: nn.Module) -> int:
    """Channels that a residual block ends with."""
    norm = block.get_submodule("bn3" if isinstance(block, Bottleneck) else "bn2")
    return int(norm.num_features)  # type: ignore[arg-type]


def _per_stage(name: str, settings: dict[str, Any], args: Settings, stages: int) -> list[dict[str, Any]]:
    """Return one dict of settings per stage."""
    if args is None or isinstance(args, Mapping):
        return [{**settings, **(args or {})} for _ in range(stages)]
    if len(args) != stages:
        raise InvalidArgument(
            f"attention {name!r}: {len(args)} sets of attention_args for {stages} stages; there must be one per stage, "
            f"or one mapping for all. Pass {stages}."
        )
    return [{**settings, **stage} for stage in args]
