"""Where and with what a comparison was run: beside every number stands its making."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import torch

from attendo.kernels import status
from attendo.kernels.allocator import allocator
from attendo.profiling.profiles import cpu_name

PACKAGES = ("attendo", "torch", "torchvision", "timm", "lightning", "numpy", "scipy", "scikit-learn")


def environment() -> dict[str, Any]:
    """Return device, threads, versions and date as plain values."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
        "threads": torch.get_num_threads(),
        "kernels": status()[0].kernel,
        "allocator": "tuned" if allocator() else "default",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in PACKAGES},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
