"""The memory that a step needs at its worst moment, beyond the network itself.

On a CUDA device the caching allocator knows: the rise of ``max_memory_allocated`` over what was allocated before, which
includes the workspaces of the kernels. Elsewhere no allocator tells, and the tensors are followed instead: each storage
counts from the operator that makes it until the last tensor that uses it is gone, in a dry run that computes nothing.

Scratch space inside one operator is not seen there. The CPU allocator's own peak was 1 to 3 % higher in training steps
of ResNets at 224, the same in a forward of 8 images, and 6 % (ResNet-50) to 51 % (ResNet-18) higher in a forward of
one image, where oneDNN's reordered weights weigh most (AMD EPYC, torch 2.15, November 2026).

Counted in both: the batch, activations, what backward keeps, and the gradients. Not counted: parameters and buffers
(see ``counts``), optimiser state, and torch itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from attendo.profiling._checks import Size, check_model, check_positive, check_size, uncompiled
from attendo.profiling._format import by, megabytes, plain
from attendo.profiling._run import borrowed, dry_run, explained, place, step, tensors_in


@dataclass(frozen=True)
class PeakMemory:
    """The largest sum of bytes alive at one moment of a step.

    Attributes:
        peak_bytes: batch, activations, what backward keeps, gradients; not parameters, buffers, optimiser state.
        training: whether the step was forward and backward, or forward without gradients.
        batch_size: images in the batch.
        input_size: of one image.
        device: where the model is.
        how: ``"CUDA allocator"``, ``"live tensors, dry run"``, or ``"live tensors, real run: "`` and the reason for it.
    """

    peak_bytes: int
    training: bool
    batch_size: int
    input_size: tuple[int, ...]
    device: str
    how: str

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as JSON can hold them."""
        return dict(plain(self))

    def __str__(self) -> str:
        kind = "forward and backward" if self.training else "forward"
        return (
            f"{megabytes(self.peak_bytes)} at the peak of a {kind} of {self.batch_size} x ({by(self.input_size)}) on "
            f"{self.device}, parameters and buffers not included ({self.how})"
        )


class _LiveStorage(TorchDispatchMode):
    """Follows the storages that operators make, until each is gone."""

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        # the model's own tensors are there before and after
        self._own = {
            tensor.untyped_storage()._cdata for module in model.modules() for tensor in tensors_in(vars(module))
        }
        self._alive: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}

    def see(self, tensor: Tensor) -> None:
        """Count a tensor's storage, unless it is known, until it is gone."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._own:
            return
        known = self._alive.get(key)
        if known is None:
            self._alive[key] = (size, weakref.ref(storage, lambda _: self._gone(key)))
            self.now += size
        elif known[0] != size:  # resized in place
            self._alive[key] = (size, known[1])
            self.now += size - known[0]
        self.peak = max(self.peak, self.now)

    def _gone(self, key: int) -> None:
        self.now -= self._alive.pop(key)[0]

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tensors_in(output):
            self.see(tensor)
        return output


def peak_memory(
    model: nn.Module, input_size: Size = (3, 224, 224), batch_size: int = 1, training: bool = False
) -> PeakMemory:
    """Measure the memory that one step needs beyond the network; the network is left as it was.

    On CUDA this resets the device's own record of its peak.

    Args:
        model: any network that takes one batch of images.
        input_size: of one image, without the batch: (channels, height, width).
        batch_size: images in the batch.
        training: forward and backward in train mode, instead of forward in eval mode without gradients.

    Raises:
        InvalidArgument: not an nn.Module, a size that is not positive or that the model cannot take, or ``training`` of
            a model without trainable parameters.
    """
    check_model(model, "peak_memory")
    size, batch_size = check_size(input_size, "peak_memory"), check_positive(batch_size, "batch_size", "peak_memory")
    where = place(model)
    if where.device.type == "cuda":
        peak, how = _allocated(model, size, batch_size, training), "CUDA allocator"
    else:
        peak, reason = dry_run(
            uncompiled(model), size, batch_size, training, lambda twin, x: _followed(twin, x, training)
        )
        how = f"live tensors, real run: {reason}" if reason else "live tensors, dry run"
    return PeakMemory(peak, training, batch_size, size, str(where.device), how)


def _followed(model: nn.Module, x: Tensor, training: bool) -> int:
    with _LiveStorage(model) as live:
        live.see(x)
        step(model, x, training)
    return live.peak


def _allocated(model: nn.Module, input_size: tuple[int, ...], batch_size: int, training: bool) -> int:
    where = place(model)

    def rise() -> int:
        torch.cuda.synchronize(where.device)
        before = torch.cuda.memory_allocated(where.device)
        torch.cuda.reset_peak_memory_stats(where.device)
        step(model, where.batch(input_size, batch_size), training)
        torch.cuda.synchronize(where.device)
        return torch.cuda.max_memory_allocated(where.device) - before

    with borrowed(model, training), torch.set_grad_enabled(training):
        # the libraries allocate their lasting workspaces in the first step
        explained(model, input_size, batch_size, rise)
        return rise()
