"""Which kernel a tensor gets, and why not.

A kernel runs where it can compute exactly what the definition says; everywhere else (another device or dtype, strided
views, tensors that something watches or transforms) the definition itself does. ``refusal`` gives the reason in words.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._device import DeviceContext

from attendo._errors import UnknownName
from attendo.kernels.cpu import library
from attendo.kernels.cpu.calls import Calls
from attendo.kernels.cpu.packing import DTYPES

if TYPE_CHECKING:
    from attendo.kernels.gpu.calls import Calls as GPUCalls

PRIMITIVES = ("channel_stats", "spatial_stats", "recalibrate", "attention", "grouped_conv")
REFERENCE, AUTO, PERSISTENT = "reference", "auto", "persistent"
_chosen = AUTO
_CALLS = {name: Calls(table) for name in library.SETS if (table := library.table(name)) is not None}  # best first
_BEST = next(iter(_CALLS), REFERENCE)
_MISSING = "" if _CALLS else library.missing()
_GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_OLDEST = (8, 0)  # compute capability: bfloat16, and maxima that keep NaN


class use:  # noqa: N801 - called like the function it mostly is
    """Choose the kernels of this process, from now on or for the length of a ``with`` block.

    Args:
        name: ``"auto"`` (the best there is), ``"reference"`` (none: plain PyTorch), ``"persistent"`` (as "auto", and on
            an NVIDIA GPU a whole attention in one launch, which nobody has measured), or an instruction set of the CPU
            kernels: ``"avx512"``, ``"avx2"``, ``"plain"``, which concerns the CPU alone.

    Raises:
        UnknownName: no such choice, or one that this machine cannot run.
    """

    def __init__(self, name: str) -> None:
        global _chosen
        choices = (AUTO, REFERENCE, PERSISTENT, *_CALLS)
        if name not in choices:
            because = f" ({_MISSING})" if _MISSING else ""
            raise UnknownName(f"kernels.use: no kernels {name!r} here{because}. Choose from {', '.join(choices)}.")
        self._before, _chosen = _chosen, name

    def __enter__(self) -> None:
        """Nothing more: the choice holds already."""

    def __exit__(self, *_: object) -> None:
        global _chosen
        _chosen = self._before


class Status(NamedTuple):
    """What runs one primitive on one device."""

    primitive: str
    device: str
    kernel: str
    why: str

    def __str__(self) -> str:
        return f"{self.primitive:<14} {self.device:<5} {self.kernel:<10} {self.why}".rstrip()


def status() -> list[Status]:
    """Return what runs each primitive on each kind of device, and why it is not something faster."""
    if _chosen == REFERENCE:
        kernel, why = REFERENCE, 'turned off by kernels.use("reference")'
    else:
        kernel, why = (_chosen if _chosen in _CALLS else _BEST), _MISSING
    cpu = [Status(primitive, "cpu", kernel, why) for primitive in PRIMITIVES]
    return [*cpu, *(_gpu_status(primitive, why if _chosen == REFERENCE else "") for primitive in PRIMITIVES)]


def _gpu_status(primitive: str, off: str) -> Status:
    why = off or ("" if torch.cuda.is_available() else "no GPU here") or no_gpu_kernels(torch.cuda.current_device())
    if not why and primitive == "attention" and not _persistent():
        why = 'its primitives run one after the other; one launch is not measured yet: use("persistent") turns it on'
        if torch.version.hip is not None:
            why = "its primitives run one after the other: on AMD a barrier does not wait for other threads' stores"
    elif not why and primitive == "grouped_conv":
        why = "cuDNN's own convolutions run"
    return Status(primitive, "cuda", REFERENCE if why else "triton", why)


def chosen() -> str:
    """Return the choice of ``use``."""
    return _chosen


def find(x: Tensor) -> Calls | GPUCalls:
    """Return the kernels for the device of x; ``refusal`` has said that there are some."""
    if x.is_cuda:
        return _persistent_calls() if _persistent() else _gpu_calls()
    return _CALLS[_chosen if _chosen in _CALLS else _BEST]


def _persistent() -> bool:
    # programs tell one another what is stored; Triton's barrier on gfx942, read in its assembly, lets stores pass it
    return _chosen == PERSISTENT and torch.version.hip is None


@functools.cache
def _gpu_calls() -> GPUCalls:
    from attendo.kernels.gpu.calls import Calls as Kernels  # imports Triton

    return Kernels()


@functools.cache
def _persistent_calls() -> GPUCalls:
    from attendo.kernels.gpu.persistent import PersistentCalls

    return PersistentCalls()


def no_gpu_kernels(index: int) -> str:
    """Say why the CUDA or ROCm device of that index has no Triton kernels; empty if it has."""
    return _why_no_gpu_kernels(index)


# torch.compiler.assume_constant_result says the same, and imports the whole compiler
no_gpu_kernels._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _why_no_gpu_kernels(index: int) -> str:
    if torch.version.hip is None and (found := torch.cuda.get_device_capability(index)) < _OLDEST:
        return f"a GPU of compute capability {found[0]}.{found[1]}; the kernels need {_OLDEST[0]}.{_OLDEST[1]}"
    try:
        _gpu_calls()
        _start_triton()
    except ImportError as error:
        return f"no Triton: {error}"
    except Exception as error:  # noqa: BLE001 - whatever Triton and the compiler it calls have to say
        return f"Triton does not start: {error}"
    return ""


def _start_triton() -> None:
    """Have Triton build what launches kernels: it needs a C compiler, Python's headers and the GPU's driver."""
    import triton  # type: ignore[import-untyped]

    triton.runtime.driver.active.get_current_device()


def refusal(x: Tensor, *others: Tensor | None) -> str | None:
    """Say why no kernel takes these tensors, or None if one does.

    Args:
        x: the feature map (N, C, H, W).
        others: maps that must be laid out like x, such as the shortcut.
    """
    if _chosen == REFERENCE:
        return 'turned off by kernels.use("reference")'
    if x.device.type != "cpu" or x.dtype not in DTYPES:
        if x.device.type != "cuda" or x.dtype not in _GPU_DTYPES:
            return f"there is none for {x.dtype} on {x.device.type}"
        # Here is the place to refuse what torch.compile's own code does faster: not measured yet, nothing is refused.
        if why := no_gpu_kernels(x.device.index):
            return why
    elif _MISSING:
        return _MISSING
    if x.ndim != 4 or x.numel() == 0:
        return f"it takes maps (N, C, H, W) with something in them, not {tuple(x.shape)}"
    last = not x.is_contiguous()
    if last and not x.is_contiguous(memory_format=torch.channels_last):
        return f"it takes contiguous or channels_last maps, not strides {x.stride()}"
    for other in others:
        if other is None:
            continue
        if other.shape != x.shape or other.dtype != x.dtype or other.device != x.device:
            return "a map beside x has another shape, dtype or device"
        if not other.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format):
            return "a map beside x has another memory format"
    return None


def watched(*tensors: Tensor | None) -> str | None:
    """Say what would not see, or not understand, a call past PyTorch's dispatcher; None if there is nothing."""
    for tensor in tensors:
        if tensor is not None and type(tensor) is not Tensor and type(tensor) is not nn.Parameter:
            return f"{type(tensor).__name__} is a tensor subclass"
    if _dispatch_modes() or (_function_mode() and not _only_a_default_device()):
        return "a mode watches every operation"
    if _transforms() is not None or forward_ad._current_level >= 0:
        return "a function transform is at work"
    if _trace() is not None:
        return "torch.jit traces"
    return None


def _only_a_default_device() -> bool:
    """Whether no other function mode is on than that of ``torch.set_default_device``, which minds constructors only."""
    count, mode = torch._C._len_torch_function_stack(), torch._C._get_function_stack_at
    return all(type(mode(i)) is DeviceContext for i in range(count))


_dispatch_modes, _function_mode = torch._C._len_torch_dispatch_stack, torch._C._is_torch_function_mode_enabled
_transforms, _trace = torch._C._functorch.peek_interpreter_stack, torch._C._get_tracing_state


def lazy(tensor: Tensor) -> bool:
    """Whether the numbers of a tensor are not those in its memory: a pending negation, or zeros without memory."""
    return tensor.is_neg() or tensor._is_zerotensor()


def straight(x: Tensor, residual: Tensor | None, weights: Iterable[Tensor | None]) -> bool:
    """Whether a call in inference on the CPU may go straight into a kernel: the common case of the checks above.

    One flat function: between the convolutions of a network Python's own objects are cold in the caches, and every
    further call and attribute costs there five times what it costs in a loop.
    """
    if torch.is_grad_enabled() or _chosen is not AUTO or torch.compiler.is_compiling() or watched() is not None:
        return False
    if type(x) is not Tensor or not x.is_cpu or x.ndim != 4 or x.numel() == 0 or lazy(x):
        return False
    dtype = x.dtype
    if not _CALLS or dtype not in DTYPES:
        return False
    kind = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    if not x.is_contiguous(memory_format=kind):
        return False
    if residual is not None and not (
        type(residual) is Tensor
        and residual.dtype is dtype
        and residual.is_same_size(x)
        and residual.is_contiguous(memory_format=kind)
        and residual.is_cpu
        and not lazy(residual)
    ):
        return False
    for weight in weights:
        if weight is not None and (
            weight.dtype is not dtype
            or not (type(weight) is nn.Parameter or type(weight) is Tensor)
            or not weight.is_cpu
        ):
            return False
    return True
