"""The attention mechanisms: one file each, found by looking into this folder.

A new mechanism is a file here whose class wears ``@register("its-name")``, and a row in ``tests/rows.py``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from inspect import signature
from typing import Any

from attendo._errors import InvalidArgument, UnknownArgument
from attendo._registry import did_you_mean
from attendo.layers._base import LAYERS, Attention, AttentionConv, Gate

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Attention", "AttentionConv", "Gate", "check_settings", "layer", "list_layers"]


def layer(name: str, channels: int, *args: Any, **settings: Any) -> Attention:
    """Build a mechanism by name.

    Args:
        name: one of ``list_layers()``.
        channels: channels of the feature map it will see.
        args: ``out_channels`` and ``stride`` of a mechanism that replaces a convolution (PSA, SK).
        settings: the mechanism's own, under the paper's words.

    Raises:
        UnknownName: no such mechanism.
        UnknownArgument: a setting the mechanism does not have.
        InvalidArgument: a setting that cannot work, or the name and the channels in the wrong order.

    >>> layer("eca", 256)
    ECA(
      (conv): Conv1d(1, 1, kernel_size=(5,), stride=(1,), padding=(2,), bias=False)
    )
    """
    _check_order(name, channels)
    check_settings(name, settings, places=1 + len(args))
    return LAYERS[name](channels, *args, **settings)


def check_settings(name: str, settings: Mapping[str, Any], places: int | None = None) -> None:
    """Raise unless a mechanism has all these settings.

    Args:
        name: one of ``list_layers()``.
        settings: by name.
        places: arguments that it is given without a name; None, as in a network, is all that can be.

    Raises:
        UnknownName: no such mechanism.
        UnknownArgument: it does not have one of them.
    """
    parameters = list(signature(LAYERS[name]).parameters.values())
    named = parameters[places:] if places is not None else [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    known = [parameter.name for parameter in named]
    for setting, value in settings.items():
        if setting not in known:
            raise UnknownArgument(
                f"layer {name!r}: {setting}={value!r} was given, and it has no {setting!r}; a mechanism has the "
                f"settings of its paper. {did_you_mean(setting, known) if known else 'Leave it out.'}"
            )


def _check_order(name: object, channels: object) -> None:
    """Raise InvalidArgument if the first argument is no name; the two are easily swapped."""
    if not isinstance(name, str):
        meant = f"layer({channels!r}, {name!r})" if isinstance(channels, str) else "layer('se', 64)"
        raise InvalidArgument(
            f"layer: {name!r} was given as the name and {channels!r} as the channels; the name of the mechanism comes "
            f"first, then the channels of the feature map. Write {meant}."
        )


def list_layers() -> list[str]:
    """Return the names of all mechanisms, sorted."""
    return list(LAYERS)
