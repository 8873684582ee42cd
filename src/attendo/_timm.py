"""Registers our networks in timm as soon as both are imported, without importing timm for those who do not use it.

timm takes seconds to import; the layers do not need it. So ``import attendo`` waits: if timm is there already our
networks are registered at once, otherwise right after timm's own import, whoever asks for it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def register_models() -> None:
    """Import ``attendo.models`` now if timm is imported, else right after it."""
    if "timm" in sys.modules:
        importlib.import_module("attendo.models")
    elif not any(isinstance(finder, _AfterTimm) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTimm())


class _AfterTimm(MetaPathFinder):
    """Finds timm as usual, and has its loader import ``attendo.models`` when timm is complete."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "timm":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("timm")
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_then_register(module: ModuleType) -> None:
            load(module)
            importlib.import_module("attendo.models")

        spec.loader.exec_module = load_then_register  # type: ignore[method-assign]
        return spec
