"""Fast versions of the primitives: ``cpu`` (native C++) and ``gpu`` (Triton), and which of them runs.

They compute what ``attendo.functional`` defines, which alone calls them. ``use("reference")`` turns them off;
``status()`` says what runs on each device, and why not.
"""

from __future__ import annotations

from attendo.kernels.selection import Status, status, use

__all__ = ["Status", "status", "use"]
