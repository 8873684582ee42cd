"""Running a model without leaving a trace in it: its input, one step, and a dry run that computes nothing."""

from __future__ import annotations

import copy
import dataclasses
import logging
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from attendo._errors import InvalidArgument
from attendo.profiling._format import by

T = TypeVar("T")

# what a forward pass raises when its input does not fit, whoever wrote it
FORWARD_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)
# what copying a model raises besides, when it holds something that cannot be copied
COPY_ERRORS = (copy.Error, pickle.PickleError)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a model lives, and so what its input must be."""

    device: torch.device
    dtype: torch.dtype
    channels_last: bool

    @property
    def memory_format(self) -> str:
        """``"channels_last"`` or ``"contiguous"``."""
        return "channels_last" if self.channels_last else "contiguous"

    def batch(self, input_size: tuple[int, ...], batch_size: int) -> Tensor:
        """Return a batch of normal noise, the same in every call; the global random state is not used."""
        if self.device.type == "meta":  # where nothing has a value
            return self.laid_out(torch.empty((batch_size, *input_size), device=self.device, dtype=self.dtype))
        generator = torch.Generator(self.device).manual_seed(0)
        x = torch.randn((batch_size, *input_size), generator=generator, device=self.device, dtype=self.dtype)
        return self.laid_out(x)

    def laid_out(self, x: Tensor) -> Tensor:
        """Return a batch in the model's memory format."""
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last and x.dim() == 4 else x


def place(model: nn.Module) -> Place:
    """Return device and dtype of the first floating tensor of the model, and the memory format of its convolutions.

    A model without tensors gets what torch would give it: the default device and dtype.
    """
    tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
    first = tensors[0] if tensors else torch.empty(0)
    # a 1x1 kernel is both contiguous and channels_last, and so says nothing
    kernels = [tensor for tensor in tensors if tensor.dim() == 4 and not tensor.is_contiguous()]
    channels_last = any(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    return Place(first.device, first.dtype, channels_last)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a tensor, or of nested lists, tuples, mappings and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))


def step(model: nn.Module, x: Tensor, training: bool) -> object:
    """Run forward, and with ``training`` backward from the sum of all outputs; return what a real step would hold.

    The gradients are returned, not accumulated: the model's own ``.grad`` are neither read nor written.

    Raises:
        InvalidArgument: ``training`` of a model without a trainable parameter, or whose output depends on none.
    """
    output = model(x)
    if not training:
        return output
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    outputs = [tensor for tensor in tensors_in(output) if tensor.requires_grad]
    if not weights or not outputs:
        raise InvalidArgument(
            f"{type(model).__name__}: training=True, but {'no output depends on' if weights else 'there is not'} a "
            f"parameter that requires a gradient; a backward pass needs one. Pass training=False."
        )
    loss = torch.stack([tensor.float().sum() for tensor in outputs]).sum()
    return torch.autograd.grad(loss, weights, allow_unused=True)


@contextmanager
def borrowed(model: nn.Module, training: bool) -> Iterator[None]:
    """Put the model in train or eval mode; afterwards give modes, buffers and random state back as they were."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    devices = sorted({tensor.device.index or 0 for tensor in model.parameters() if tensor.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        try:
            model.train(training)
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            with torch.no_grad():
                for module, name, buffer, saved in buffers:
                    module._buffers[name] = buffer
                    if not torch.equal(buffer, saved):
                        buffer.copy_(saved)


@contextmanager
def _eager() -> Iterator[None]:
    """Run every layer as written: compiled code and fused transformer kernels would hide operators.

    A dry run that fails is repeated in earnest and explained there, so torch need not log why it failed.
    """
    log = logging.getLogger("torch._subclasses.fake_tensor")
    was_disabled = log.disabled
    log.disabled = True
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # importing dynamo takes longer than most dry runs; where nobody has, nothing is compiled
        with torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        log.disabled = was_disabled


def dry_run(
    model: nn.Module,
    input_size: tuple[int, ...],
    batch_size: int,
    training: bool,
    use: Callable[[nn.Module, Tensor], T],
) -> tuple[T, str]:
    """Call ``use(model, batch)`` on a copy of the model whose tensors have shapes but no values.

    Nothing is computed and no image is allocated, so that any size costs the same. A model whose forward needs values
    (boxes chosen by a threshold, a call into NumPy) runs in earnest instead, and gets everything back as it was.

    Returns:
        What ``use`` returned, and why it was a real run ("" if it was not).

    Raises:
        InvalidArgument: the model cannot take this input.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    where = place(model)
    with torch.set_grad_enabled(training), _eager():
        try:
            fake = FakeTensorMode(allow_non_fake_inputs=True)
            shadows = {
                id(tensor): fake.from_tensor(tensor)
                for module in model.modules()
                for tensor in tensors_in(vars(module))
            }
            # deepcopy asks this table first, so that it copies the structure and not one weight
            twin = copy.deepcopy(model, dict(shadows)).train(training)
            with torch.random.fork_rng(devices=[]), fake:
                x = torch.empty((batch_size, *input_size), device=where.device, dtype=where.dtype)
                return use(twin, where.laid_out(x)), ""
        except InvalidArgument:
            raise
        except (*FORWARD_ERRORS, *COPY_ERRORS) as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
        with borrowed(model, training):
            return explained(
                model, input_size, batch_size, lambda: use(model, where.batch(input_size, batch_size))
            ), reason


def explained(model: nn.Module, input_size: tuple[int, ...], batch_size: int, run: Callable[[], T]) -> T:
    """Return ``run()``; if the model fails in it, say for which size, in which layer, and the way out.

    Raises:
        InvalidArgument: the model cannot take this input.
    """
    try:
        return run()
    except InvalidArgument:
        raise
    except FORWARD_ERRORS as error:
        path, layer = _failed_in(error.__traceback__, model)
        where = f" in layer {path!r} ({type(layer).__name__})" if path else ""
        raise InvalidArgument(
            f"{type(model).__name__}: input_size={input_size} in a batch of {batch_size} stops its forward pass"
            f"{where}: {first_line(error)}; the size is that of one image as the model takes it, without the batch. "
            f"{_way_out(error, layer, input_size, batch_size)}"
        ) from error


def first_line(error: BaseException, limit: int = 200) -> str:
    """Return the first line of an error's message, without its full stop and at most ``limit`` characters long."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return line if len(line) <= limit else line[: limit - 3] + "..."


def _failed_in(trace: TracebackType | None, model: nn.Module) -> tuple[str, nn.Module]:
    """Return path and module of the innermost layer in whose code the error arose."""
    paths = {id(module): (path, module) for path, module in model.named_modules()}
    found = ("", model)
    while trace is not None:
        found = paths.get(id(trace.tb_frame.f_locals.get("self")), found)
        trace = trace.tb_next
    return found


def _way_out(error: BaseException, layer: nn.Module, input_size: tuple[int, ...], batch_size: int) -> str:
    """Return the sentence that says what to pass instead."""
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return "The device has too little memory: pass a smaller batch_size or input_size."
    if "more than 1 value per channel" in str(error):
        return f"Batch norm needs more to train on: pass batch_size={batch_size + 1} or more."
    if isinstance(error, TypeError) and "positional argument" in str(error):
        return "It must take one batch of images and nothing else: wrap it in an nn.Module whose forward does."
    if len(input_size) == 4:
        return f"Leave out the batch: pass input_size={input_size[1:]}."
    wanted = getattr(layer, "in_channels", None)
    if isinstance(wanted, int) and len(input_size) == 3 and wanted != input_size[0] and str(wanted) in str(error):
        return f"This layer takes {wanted} channels: if it is the first, pass input_size={(wanted, *input_size[1:])}."
    return f"Pass the (channels, height, width) that the model was built for, instead of {by(input_size)}."
