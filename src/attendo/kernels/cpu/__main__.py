"""``python -m attendo.kernels.cpu``: compile the native library in its place, once a compiler is there."""

from __future__ import annotations

import logging
import sys

from attendo.kernels.cpu.build import build_or_explain

logging.basicConfig(format="%(message)s", level=logging.INFO)
built = build_or_explain()
if built is not None:
    logging.getLogger("attendo").info("compiled %s", built)
sys.exit(built is None)
