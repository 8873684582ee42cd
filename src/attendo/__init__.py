"""attendo: attention for convolutional networks."""

from __future__ import annotations

import importlib
from typing import Any

from attendo._errors import AttendoError
from attendo._timm import register_models
from attendo.layers import layer, list_layers

__version__ = "0.1.0"
__all__ = [
    "AttendoError",
    "create_model",
    "from_pretrained",
    "layer",
    "list_layers",
    "list_models",
    "load",
    "load_weights",
    "push_to_hub",
    "save",
    "tune_allocator",
]

_LAZY = {  # most of these import timm, which takes seconds
    "create_model": "attendo.models",
    "from_pretrained": "attendo.checkpoints",
    "list_models": "attendo.models",
    "load": "attendo.checkpoints",
    "load_weights": "attendo.checkpoints",
    "push_to_hub": "attendo.checkpoints",
    "save": "attendo.checkpoints",
    "tune_allocator": "attendo.kernels.allocator",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'attendo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


register_models()
