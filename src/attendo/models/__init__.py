"""The networks: any ResNet with any mechanism, and the published ones by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import Any

import timm
from timm.models.resnet import ResNet
from torch import nn

from attendo._errors import CheckpointError, InvalidArgument, UnknownArgument, UnknownName
from attendo._registry import did_you_mean
from attendo.models.families import FAMILIES
from attendo.models.hub import hub_or_cache
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

OWN = ("stem", "features_only", "out_indices")  # what networks take that is in no signature


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
        UnknownArgument: an argument that the network does not have.
        InvalidArgument: arguments that contradict each other or cannot work at this network's widths.
        CheckpointError: ``pretrained``, and the weights are neither here nor within reach.

    >>> model = create_model("resnet50", attention="triplet", stem="cifar", num_classes=10)
    >>> sum(p.numel() for p in model.parameters())
    23525642
    """
    plain = parse_attention(attention)[0] == NONE
    if name in NAMED:
        if not plain or attention_args is not None:
            raise InvalidArgument(
                f"model {name!r}: attention={attention!r} and attention_args={attention_args!r} were asked for; this "
                f"network has its own. Take a plain one ({', '.join(BASES)}) with the attention you want."
            )
    elif name not in BASES:
        if not timm.is_model(name.split(".")[0]):
            raise UnknownName(f"model {name!r}: not known. {did_you_mean(name, [*BASES, *NAMED, *timm.list_models()])}")
        if not plain:
            raise InvalidArgument(
                f"model {name!r}: attention={attention!r} is built into {', '.join(BASES)} only. Take one of these, or "
                f"attendo.insertion.insert(model, ...), which puts attention into any network."
            )
    with _arguments_in_words(name, kwargs), _weights_in_words(name) if pretrained else nullcontext():
        if name in BASES:
            return build(name, BASES[name], pretrained, attention=attention, attention_args=attention_args, **kwargs)
        if name in NAMED:
            return build(name, NAMED[name], pretrained, **kwargs)
        return remember(timm.create_model(name, pretrained=pretrained, **kwargs), name, kwargs)


@contextmanager
def _arguments_in_words(name: str, given: dict[str, Any]) -> Iterator[None]:
    """Turn the TypeError of a network's class into the error that says which argument was probably meant.

    Only the class knows what it takes, and it may be anyone's; what most take is known from timm's ResNet.
    """
    try:
        yield
    except TypeError as error:
        found = re.search(r"unexpected (?:keyword )?arguments? \[?'(\w+)'", str(error))
        if found is None or found[1] not in given:
            raise
        wrong, known = found[1], {*signature(create_model).parameters, *signature(ResNet).parameters, *OWN}
        hint = "" if wrong in known else did_you_mean(wrong, known)
        raise UnknownArgument(
            f"model {name!r}: {wrong}={given[wrong]!r} was given, and it has no {wrong!r}; a network takes the "
            f"arguments of its class. {hint if hint.startswith('Did') else 'Leave it out.'}"
        ) from error


@contextmanager
def _weights_in_words(name: str) -> Iterator[None]:
    """Let timm fetch weights, from its cache alone while the Hub is out of reach."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    with hub_or_cache() as why:
        try:
            yield
        except LocalEntryNotFoundError as error:
            raise CheckpointError(
                f"model {name!r}: pretrained=True, but timm's weights are not in the cache ({constants.HF_HUB_CACHE}) "
                f"and the Hugging Face Hub cannot be reached ({why or error}); the first use needs the network. "
                f"Connect, or build it without and give a file to attendo.load_weights."
            ) from error


def list_models() -> list[str]:
    """Return the names of the networks with attention that attendo registers in timm, sorted."""
    return sorted([*NAMED, *FAMILIES])
