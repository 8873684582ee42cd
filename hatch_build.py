"""Compile the native kernels while the package is built; without a compiler it is built without them, and says so."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

BUILD = Path("src/attendo/kernels/cpu/build.py")


class NativeKernels(BuildHookInterface[Any]):
    """Runs ``attendo.kernels.cpu.build`` by its path: attendo itself cannot be imported before torch is there."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and name the wheel after the platform if there is a library in it."""
        if self.target_name != "wheel":
            return
        spec = importlib.util.spec_from_file_location("attendo_build", Path(self.root) / BUILD)
        if spec is None or spec.loader is None:
            raise FileNotFoundError(f"{BUILD} is missing from the sources of attendo")
        build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(build)
        built = build.build_or_explain()
        if built is None:
            self.app.display_warning(f"attendo is installed without native kernels: {build.REASON.read_text().strip()}")
            build_data["artifacts"].append(f"/{build.REASON.relative_to(self.root)}")
            return
        build_data["artifacts"].append(f"/{built.relative_to(self.root)}")
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
