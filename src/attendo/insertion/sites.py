"""The places of a network where attention can go, as a table.

``where`` names them, everywhere in this package:

    "auto"               before every residual sum; after each block where there is none
    "stages", "last"     after the last block of each resolution; after the last of all
    "layer?.*.bn3"       a glob over module paths: ``*`` stays between two dots, ``**`` does not
    re.compile(...)      a regular expression that a whole path matches; as a string it begins with "re:"
    lambda site: ...     a function of a ``Site``, asked for every module that returns one feature map
    ["layer1.0.bn2"]     a list of paths or patterns; also how a module is named that is called "stages" or "last"
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Site:
    """One place.

    Args:
        path: of the module whose output the mechanism recalibrates, or which it replaces.
        kind: ``"residual"`` (the branch that a residual sum adds), ``"block"``, ``"stage"``, ``"module"`` if the caller
            named it; what a module is that ``replace`` took away (``"se"``, ``"convolution"``).
        module: name of the module's class.
        channels: channels of the map.
        height: of the map, in the dry run.
        width: of the map, in the dry run.
        attention: the mechanism that is, or would be, there; None if none was named.
        settings: the mechanism's settings there.
        parameters: what the mechanism costs there, its alpha included.
        macs: multiply-accumulates per image of its convolutions and matrix products; pooling, activations and the
            product with the map are not counted.
    """

    path: str
    kind: str
    module: str
    channels: int
    height: int
    width: int
    attention: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    macs: int | None = None


class Sites(list[Site]):
    """A list of sites that prints as a table."""

    @property
    def paths(self) -> list[str]:
        """The paths of the sites."""
        return [site.path for site in self]

    @property
    def parameters(self) -> int:
        """What the mechanisms of all sites cost together."""
        return sum(site.parameters or 0 for site in self)

    @property
    def macs(self) -> int:
        """What the mechanisms of all sites cost together, per image."""
        return sum(site.macs or 0 for site in self)

    def __str__(self) -> str:
        head = ["path", "kind", "module", "channels", "H x W", "attention", "parameters", "MACs"]
        rows = [
            [s.path, s.kind, s.module, str(s.channels), f"{s.height} x {s.width}", s.attention or ""]
            + ["" if number is None else f"{number:,}" for number in (s.parameters, s.macs)]
            for s in self
        ]
        if any(site.attention for site in self):
            rows.append([f"{len(self)} sites", "", "", "", "", "", f"{self.parameters:,}", f"{self.macs:,}"])
        else:
            head, rows = head[:5], [row[:5] for row in rows]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        words = {0, 1, 2, 5}  # the columns that are not numbers
        lines = (
            [
                cell.ljust(w) if i in words else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            ]
            for row in [head, *rows]
        )
        return "\n".join("  ".join(line).rstrip() for line in lines)


Where = str | re.Pattern[str] | Callable[[Site], bool] | Sequence[str]
