"""The networks: any ResNet with any mechanism, and the published ones by name."""

from __future__ import annotations

from typing import Any

import timm
from torch import nn

from attendo._errors import InvalidArgument, UnknownName
from attendo._registry import did_you_mean
from attendo.models.families import FAMILIES
from attendo.models.resnet import AttentionResNet, CifarResNet, Settings, attach
from attendo.models.spec import NONE, format_attention, parse_attention
from attendo.models.zoo import BASES, NAMED, build, remember

__all__ = [
    "BASES",
    "FAMILIES",
    "NAMED",
    "AttentionResNet",
    "CifarResNet",
    "attach",
    "create_model",
    "format_attention",
    "list_models",
    "parse_attention",
]


def create_model(
    name: str,
    *,
    attention: str | None = None,
    attention_args: Settings = None,
    pretrained: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Build a network by name, with attention if wanted.

    Args:
        name: a plain ResNet (``resnet18`` to ``resnet152``; ``resnet8`` to ``resnet110`` with CIFAR widths), one of
            ``list_models()``, or any network of timm's.
        attention: a name of ``list_layers()``, with settings after a colon if wanted, or ``"none"``.
        attention_args: the mechanism's settings; a sequence gives each stage its own.
        pretrained: load timm's weights of the plain network; the attention starts fresh.
        kwargs: what timm's networks take: ``num_classes``, ``in_chans``, ``features_only`` ...; ours also ``stem``,
            ``"imagenet"``, ``"stride2"`` or ``"cifar"``.

    Raises:
        UnknownName: no such network or mechanism.
        InvalidArgument: arguments that contradict each other or cannot work at this network's widths.

    >>> model = create_model("resnet50", attention="triplet", stem="cifar", num_classes=10)
    >>> sum(p.numel() for p in model.parameters())
    23525642
    """
    if name in BASES:
        return build(name, BASES[name], pretrained, attention=attention, attention_args=attention_args, **kwargs)
    plain = parse_attention(attention)[0] == NONE
    if name in NAMED:
        if not plain or attention_args is not None:
            raise InvalidArgument(
                f"model {name!r}: attention={attention!r} and attention_args={attention_args!r} were asked for; this "
                f"network has its own. Take a plain one ({', '.join(BASES)}) with the attention you want."
            )
        return build(name, NAMED[name], pretrained, **kwargs)
    if not timm.is_model(name.split(".")[0]):
        raise UnknownName(f"model {name!r}: not known. {did_you_mean(name, [*BASES, *NAMED, *timm.list_models()])}")
    if not plain:
        raise InvalidArgument(
            f"model {name!r}: attention={attention!r} is built into {', '.join(BASES)} only. Take one of these, or "
            f"attendo.insertion.insert(model, ...), which puts attention into any network."
        )
    return remember(timm.create_model(name, pretrained=pretrained, **kwargs), name, kwargs)


def list_models() -> list[str]:
    """Return the names of the networks with attention that attendo registers in timm, sorted."""
    return sorted([*NAMED, *FAMILIES])
