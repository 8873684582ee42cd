"""The Triton kernels on CPU tensors, through Triton's interpreter, in a process of their own.

Triton decides when it is imported whether it interprets, and other tests import it to compile: so the kernels run in a
child process, and ``Interpreted`` looks like their ``Calls``. One thing is put right in there: the interpreter cuts a
float32 off where it makes a bfloat16 of it, every device rounds it to nearest even.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any


class Interpreted:
    """``attendo.kernels.gpu.calls.Calls`` in a child process.

    Args:
        table: numbers of ``attendo.kernels.gpu.launch.Table`` to replace; ``tile``: elements of all tiles.
        wide: elements of a sample from which indices have 64 bits.
    """

    attention = None

    def __init__(self, table: dict[str, int] | None = None, wide: int = 2**31) -> None:
        self.table, self.wide = table or {}, wide
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        )
        self._send((self.table, self.wide))

    def _send(self, message: Any) -> None:
        pickle.dump(message, self.process.stdin)
        self.process.stdin.flush()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._send((name, args, kwargs))
            result, error = pickle.load(self.process.stdout)
            if error:
                raise RuntimeError(error)
            if name == "recalibrate" and len(args) == 6 and args[5] is not None:  # the last one: where to write
                return args[5].copy_(result)
            return result

        return call

    def close(self) -> None:
        """End the child process."""
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def _serve() -> None:
    import numpy as np
    import torch
    import triton.language as tl
    from triton.runtime import interpreter

    from attendo.kernels.gpu import launch
    from attendo.kernels.gpu.calls import Calls

    convert = interpreter._convert_float

    def rounded(values: np.ndarray, source: Any, to: Any, mode: Any) -> np.ndarray:
        if source != tl.float32 or to != tl.bfloat16:
            return convert(values, source, to, mode)
        from_numpy = torch.from_numpy(np.ascontiguousarray(values).view(np.float32).copy())
        return from_numpy.bfloat16().view(torch.int16).numpy().view(np.uint16)

    interpreter._convert_float = rounded
    np.seterr(all="ignore")
    torch.set_num_threads(1)
    replies, sys.stdout = sys.stdout.buffer, sys.stderr
    table, launch.WIDE = pickle.load(sys.stdin.buffer)
    if "tile" in table:
        tile = launch.Tile(table.pop("tile"), 4)
        table["tiles"] = dict.fromkeys(launch.TABLE.tiles, tile)
    launch.TABLE = launch.TABLE._replace(**table)
    calls = Calls()
    while True:
        try:
            name, args, kwargs = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            reply = getattr(calls, name)(*args, **kwargs), ""
        except Exception:  # noqa: BLE001 - told to the parent
            reply = None, traceback.format_exc()
        pickle.dump(reply, replies)
        replies.flush()


if __name__ == "__main__":
    _serve()
