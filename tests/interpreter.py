"""The Triton kernels on CPU tensors, through Triton's interpreter, in a process of their own.

Triton decides when it is imported whether it interprets, and other tests import it to compile: so the kernels run in a
child process, and ``Interpreted`` looks like their ``Calls``. Some things are other in there than in the interpreter:

- It cuts a float32 off where it makes a bfloat16 of it; every device rounds it to nearest even, and so does this.
- It runs one program after the other. Programs that wait for one another take turns here, see ``Turns``.
- Memory that nothing was written to holds NaN, so that whoever reads it is seen.
- It prepares ``triton.language`` anew for every call of a function within a kernel: once in a launch is enough.
- It watches sums and products of integers for overflow, half its time: none overflows on small maps.
"""

from __future__ import annotations

import functools
import inspect
import os
import pickle
import random
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Interpreted:
    """``attendo.kernels.gpu.calls.Calls`` in a child process.

    Args:
        table: numbers of ``attendo.kernels.gpu.launch.Table`` to replace; ``tile``: elements of all tiles.
        wide: elements of a sample from which indices have 64 bits.
    """

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
            where = {"recalibrate": 5, "attention": 4}.get(name, len(args))  # the argument that says where to write
            out = args[where] if where < len(args) else None
            return result if out is None else out.copy_(result)

        return call

    def close(self) -> None:
        """End the child process."""
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


class Turns:
    """The programs of one launch, each a thread, of which one runs at a time; after atomic operations they take turns.

    Whose turn is next is drawn, the same every time. Some programs are drawn seldom: they hold what they have taken for
    long, while others go on as far as they are let. Where all only look at counters that nobody changes, it ends.

    Args:
        program: what each of them runs.
        count: how many there are.
    """

    def __init__(self, program: Callable[[], None], count: int) -> None:
        self.random, self.idle, self.error = random.Random(count), 0, None
        self.gates = {i: threading.Semaphore(0) for i in range(count)}
        self.threads = [threading.Thread(target=self._run, args=(i, program)) for i in range(count)]
        self.running = 0

    def run(self) -> None:
        """Run all to their end; raise what one of them raised."""
        for thread in self.threads:
            thread.start()
        self.gates[0].release()
        for thread in self.threads:
            thread.join()
        if self.error is not None:
            raise self.error

    def _run(self, i: int, program: Callable[[], None]) -> None:
        self.gates[i].acquire()
        try:
            if self.error is None:
                program()
        except Exception as error:  # noqa: BLE001 - raised again by run
            self.error = self.error or error
        del self.gates[i]
        if self.gates:
            self._pass_on()

    def _pass_on(self) -> None:
        self.running = self.random.choices([*self.gates], [2.0**-i for i in self.gates])[0]
        self.gates[self.running].release()

    def change(self, only_looked: bool) -> None:
        """Let another program go on, or the same."""
        self.idle = self.idle + 1 if only_looked else 0
        if self.idle > 5000:
            raise RuntimeError("deadlock: all programs wait")
        gate = self.gates[self.running]
        self._pass_on()
        gate.acquire()
        if self.error is not None:
            raise RuntimeError("another program failed")


def _let_programs_take_turns(interpreter: Any, name: str) -> None:
    """Run the programs of kernels of that name in turns; patch what Triton's interpreter does with them."""
    one_by_one, patch = interpreter.GridExecutor.__call__, interpreter._patch_lang
    atomic = interpreter.InterpreterBuilder.create_atomic_rmw
    turns: list[Turns] = []
    prepared: set[Any] = set()

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.fn not in prepared:
            prepared.add(self.fn)
            patch(self.fn)
        return self.rewrite()(*args, **kwargs)

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        prepared.clear()
        if self.fn.__name__ == name:
            program, (count,), self.grid = self.fn, self.grid, (1,)

            def together(**arguments: Any) -> None:
                turns.append(Turns(lambda: program(**arguments), count))
                try:
                    turns[0].run()
                finally:
                    turns.clear()

            self.fn = functools.wraps(program)(together)
            self.fn.__signature__ = inspect.signature(program)
        one_by_one(self, *args, **kwargs)

    def between_turns(self: Any, operation: Any, pointer: Any, value: Any, *others: Any) -> Any:
        found = atomic(self, operation, pointer, value, *others)
        if turns:
            turns[0].change(not value.data.any())
        return found

    interpreter.GridExecutor.__call__, interpreter.InterpretedFunction.__call__ = launch, call
    interpreter._patch_lang = lambda fn: patch(inspect.unwrap(fn))
    interpreter.InterpreterBuilder.create_atomic_rmw = between_turns


def _serve() -> None:
    import numpy as np
    import torch
    import triton.language as tl
    from triton.runtime import interpreter

    from attendo.kernels.gpu import launch
    from attendo.kernels.gpu.persistent import PersistentCalls

    convert = interpreter._convert_float

    def rounded(values: np.ndarray, source: Any, to: Any, mode: Any) -> np.ndarray:
        if source != tl.float32 or to != tl.bfloat16:
            return convert(values, source, to, mode)
        from_numpy = torch.from_numpy(np.ascontiguousarray(values).view(np.float32).copy())
        return from_numpy.bfloat16().view(torch.int16).numpy().view(np.uint16)

    interpreter._convert_float = rounded
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    _let_programs_take_turns(interpreter, "attention")
    torch.use_deterministic_algorithms(True)  # fills new memory
    np.seterr(all="ignore")
    torch.set_num_threads(1)
    replies, sys.stdout = sys.stdout.buffer, sys.stderr
    table, launch.WIDE = pickle.load(sys.stdin.buffer)
    if "tile" in table:
        tile = launch.Tile(table.pop("tile"), 4)
        table["tiles"] = dict.fromkeys(launch.TABLE.tiles, tile)
    launch.TABLE = launch.TABLE._replace(**table)
    calls = PersistentCalls()
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
