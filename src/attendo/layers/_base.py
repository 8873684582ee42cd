"""What every mechanism is: the two contracts, and the registry."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from attendo._registry import Registry
from attendo.functional import attend, recalibrate
from attendo.functional.route import symbolic
from attendo.kernels.gates import GateWeights
from attendo.layers._bare import batch_norm, fresh
from attendo.layers._checks import check_map
from attendo.layers._repeat import Memory


class Attention(nn.Module):
    """A mechanism of any kind.

    ``placement`` is where the paper puts it in a residual network:

        "block"   after the last norm of every residual branch, before the sum (SE, ECA, CBAM ...)
        "conv"    after the second convolution of every block, before its norm (SimAM)
        "stage"   after stages 1 to 3, outside the blocks (BAM)
        "replace" instead of the strided 3x3 convolution of every block (PSA, SK)
    """

    placement: ClassVar[Literal["block", "conv", "stage", "replace"]] = "block"

    def gates(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the gates of feature map x (N, C, H, W), each broadcastable to what it multiplies."""
        raise NotImplementedError


class Gate(Attention):
    """A mechanism that multiplies its input by gates: ``forward(x) = recalibrate(x, gates(x))``.

    Subclasses write ``gates``. One that combines its gates otherwise overrides ``forward`` as well, in one line. One
    whose gates come of the few steps that ``GateWeights`` knows may name their tensors in ``weights``: inference then
    takes a single call of a kernel.
    """

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "weights" not in cls.__dict__:  # not inherited: a parent's weights describe the parent's gates
            cls.weights = Gate.weights  # type: ignore[method-assign]

    def __init__(self) -> None:
        super().__init__()
        self._memory = Memory()

    def weights(self) -> GateWeights | None:
        """Return the tensors that decide the gates now, or None if these are not all there is to it."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        """Recalibrate x: (N, C, H, W) -> the same shape."""
        if _has_any_global_hook():  # which wants to see the modules that ``gates`` calls
            return recalibrate(x, self.gates(x))
        return self.recalibrate(x)

    def recalibrate(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        relu: bool = False,
        inplace: bool = False,
        norm: nn.Module | None = None,
        blend: Tensor | None = None,
    ) -> Tensor:
        """Multiply x by its gates, as ``forward`` does, for a block that has more to do in the same pass.

        Hooks of this module are not called.

        Args:
            x: feature map, (N, C, H, W).
            residual: as of ``attendo.functional.recalibrate``, as are the next two.
            relu: see there.
            inplace: see there.
            norm: what x goes through before all this.
            blend: as of ``attendo.functional.recalibrate``.
        """
        out = self.one_call(x, residual, relu, inplace, norm, blend)
        if out is None and norm is not None:
            x, inplace = norm(x), fresh(norm)
            out = self.one_call(x, residual, relu, inplace, None, blend)
        return recalibrate(x, self.gates(x), residual, relu, inplace, blend) if out is None else out

    def one_call(
        self,
        x: Tensor,
        residual: Tensor | None,
        relu: bool,
        inplace: bool,
        norm: nn.Module | None = None,
        blend: Tensor | None = None,
    ) -> Tensor | None:
        """Do what ``recalibrate`` does where a single call of a kernel can; else None, and nothing has happened."""
        if not torch.compiler.is_compiling() and (repeat := self._memory.repeat) is not None:
            out = repeat(self, x, residual, relu, inplace, (norm, blend))
            if out is not None:
                return out
        weights = None if "gates" in self.__dict__ else self.weights()
        if weights is None:
            return None
        if weights.fc1 is not None and not symbolic(x):
            check_map(x, weights.fc1.shape[1], type(self).__name__)
        before = None if norm is None else batch_norm(norm)
        if norm is not None and before is None:
            return None
        out = attend(x, weights, residual, relu, inplace, before, blend)
        if out is not None:
            self._memory.learn(self, (norm, blend), x, weights, before)
        return out


class AttentionConv(Attention):
    """A mechanism that replaces a convolution: built from ``(in_channels, out_channels, stride)``.

    ``gates`` returns one tensor (N, branches, channels, 1, 1): the weight of each branch.
    """

    placement = "replace"


LAYERS: Registry[type[Attention]] = Registry("layer")
register = LAYERS.register
