"""Networks of other families with attention inserted where their authors or the field put it.

    eca_mobilenetv2    ECA-Net's own: after the projection norm of every block, kernel 1 below 96 channels, else 3
    se_googlenet       SE after every Inception block, as SENet's SE-Inception
    se_inception_v3    the same on Inception-v3
    cbam_densenet121   CBAM after every dense block
    cbam_vgg16         CBAM after every stage, before its pooling

They are timm's and torchvision's networks, whose parameters keep their names: a checkpoint of the plain network loads.
``pretrained=True`` loads timm's weights of the plain network; the attention starts as its paper says.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import timm
from timm.models import generate_default_cfgs, register_model
from timm.models._features import FeatureGetterNet
from torch import nn

from attendo._errors import InvalidArgument
from attendo.insertion import insert
from attendo.insertion.sites import Site, Where
from attendo.models.googlenet import googlenet

__all__: list[str] = []  # timm appends the names that it registers


def _kernel_size(site: Site) -> int:
    return 1 if site.channels < 96 else 3


@dataclass(frozen=True)
class Family:
    """A plain network, and the attention that goes into it."""

    base: str
    attention: str
    where: Where
    settings: dict[str, Any] = field(default_factory=dict)
    image_size: int = 224


FAMILIES = {
    "eca_mobilenetv2": Family(
        "mobilenetv2_100", "eca", ["blocks.0.0.bn2", "blocks.*.*.bn3"], {"kernel_size": _kernel_size}
    ),
    "se_googlenet": Family("googlenet", "se", "auto"),
    "se_inception_v3": Family("inception_v3", "se", "auto", image_size=299),
    "cbam_densenet121": Family("densenet121", "cbam", "stages"),
    "cbam_vgg16": Family("vgg16", "cbam", "stages"),
}


def build_family(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build a network of ``FAMILIES``.

    Args:
        name: its name.
        pretrained: load timm's weights of the plain network.
        kwargs: what timm's network takes; ``features_only`` with ``out_indices`` too.

    Raises:
        InvalidArgument: ``features_only`` or ``pretrained`` where the plain network has none.
    """
    family = FAMILIES[name]
    features_only, out_indices = kwargs.pop("features_only", False), kwargs.pop("out_indices", None)
    for timms in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):  # timm passes these to every entry point
        if kwargs.get(timms) is None or family.base == "googlenet":
            kwargs.pop(timms, None)
    if family.base == "googlenet":
        if pretrained or features_only:
            raise InvalidArgument(
                f"model {name!r}: torchvision's GoogLeNet offers neither timm's features_only nor its pretrained "
                f"weights. Leave them out, and load weights with attendo.load_weights."
            )
        model: nn.Module = googlenet(**kwargs)
    else:
        model = timm.create_model(family.base, pretrained=pretrained, **kwargs)
    size = (kwargs.get("in_chans", 3), family.image_size, family.image_size)
    insert(model, family.attention, family.where, start="paper", input_size=size, **family.settings)
    if not features_only:
        return model
    count = len(model.feature_info)  # type: ignore[arg-type]
    return FeatureGetterNet(model, out_indices=out_indices or tuple(range(count)))


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_family(name, pretrained, **kwargs)

    create.__name__ = create.__qualname__ = name
    create.__module__ = __name__
    create.__doc__ = f"{FAMILIES[name].base} with {FAMILIES[name].attention}."
    return create


default_cfgs = generate_default_cfgs(
    {name: {"url": "", "input_size": (3, f.image_size, f.image_size)} for name, f in FAMILIES.items()}
)

for _name in FAMILIES:
    setattr(sys.modules[__name__], _name, register_model(_entrypoint(_name)))
