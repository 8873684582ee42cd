"""The attention mechanisms: one file each, found by looking into this folder.

A new mechanism is a file here whose class wears ``@register("its-name")``, and a row in ``tests/rows.py``.
"""

from __future__ import annotations

import importlib
import pkgutil
from inspect import signature
from typing import Any

from attendo._registry import did_you_mean
from attendo.layers._base import LAYERS, Attention, AttentionConv, Gate

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Attention", "AttentionConv", "Gate", "layer", "list_layers"]


def layer(name: str, channels: int, *args: Any, **settings: Any) -> Attention:
    """Build a mechanism by name.

    Args:
        name: one of ``list_layers()``.
        channels: channels of the feature map it will see.
        args: ``out_channels`` and ``stride`` of a mechanism that replaces a convolution (PSA, SK).
        settings: the mechanism's own, under the paper's words.

    Raises:
        UnknownName: no such mechanism.
        TypeError: a setting the mechanism does not have.
        InvalidArgument: a setting that cannot work.

    >>> layer("eca", 256)
    ECA(
      (conv): Conv1d(1, 1, kernel_size=(5,), stride=(1,), padding=(2,), bias=False)
    )
    """
    mechanism = LAYERS[name]
    known = list(signature(mechanism).parameters)[1:]  # without the channels
    for setting in settings:
        if setting not in known:
            raise TypeError(f"layer {name!r}: it has no setting {setting!r}. {did_you_mean(setting, known)}")
    return mechanism(channels, *args, **settings)


def list_layers() -> list[str]:
    """Return the names of all mechanisms, sorted."""
    return list(LAYERS)
