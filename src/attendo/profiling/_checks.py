"""The checks of what is to be measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from torch.nn.parameter import is_lazy

from attendo._errors import InvalidArgument

Size = Sequence[int]


def check_model(model: object, asked_by: str) -> nn.Module:
    """Return the model, without the wrapper of ``torch.compile``, if it is one that can run.

    Raises:
        InvalidArgument: it is no nn.Module, or a lazy one whose parameters have no shape yet.
    """
    if not isinstance(model, nn.Module):
        raise InvalidArgument(
            f"{asked_by}: the model is {type(model).__name__}, which has no layers; it must be an nn.Module. "
            f"Pass the network itself, not its name, class or state dict."
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise InvalidArgument(
                f"{asked_by}: {name!r} of {type(model).__name__} has no shape before the first forward pass; every "
                f"parameter must have one. Run one batch through the model first."
            )
    return model


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the module that ``torch.compile`` wraps, or the model itself."""
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else model


def check_size(input_size: object, asked_by: str) -> tuple[int, ...]:
    """Return ``input_size`` as a tuple, or raise InvalidArgument unless it is one or more positive integers."""
    if (
        not isinstance(input_size, Sequence)
        or isinstance(input_size, str)
        or not input_size
        or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in input_size)
    ):
        raise InvalidArgument(
            f"{asked_by}: input_size={input_size!r}; it must be the positive integers of one image, without the "
            f"batch. Pass (channels, height, width), such as (3, 224, 224)."
        )
    return tuple(input_size)


def check_positive(value: object, name: str, asked_by: str) -> int:
    """Return ``value``, or raise InvalidArgument unless it is a positive integer."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidArgument(f"{asked_by}: {name}={value!r}; it must be a positive integer. Pass 1 or more.")
    return value


def check_models(models: object, asked_by: str) -> dict[str, nn.Module]:
    """Return networks by name, or raise InvalidArgument unless there is at least one and each can run."""
    if not isinstance(models, Mapping) or not models:
        raise InvalidArgument(
            f"{asked_by}: models={models!r:.80}; it must be at least one network, by name. Pass {{'resnet50': model}}."
        )
    return {str(name): check_model(model, f"{asked_by}: {name}") for name, model in models.items()}
