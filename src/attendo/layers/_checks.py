"""The checks of arguments that several mechanisms share."""

from __future__ import annotations

from torch import Tensor

from attendo._errors import InvalidArgument


def check_map(x: Tensor, channels: int, asked_by: str) -> None:
    """Raise InvalidArgument unless x is (N, channels, H, W)."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise InvalidArgument(
            f"{asked_by}: a map of shape {tuple(x.shape)}; this layer was built for maps (N, {channels}, H, W). "
            f"Build it with the channels of the map."
        )


def check_channels(channels: int, asked_by: str) -> None:
    """Raise InvalidArgument unless ``channels`` is a positive integer."""
    if not isinstance(channels, int) or isinstance(channels, bool) or channels < 1:
        raise InvalidArgument(
            f"{asked_by}: channels={channels!r}; it must be a positive integer. Give the channels of the feature map."
        )


def check_odd(kernel_size: int, name: str, asked_by: str) -> None:
    """Raise InvalidArgument unless ``kernel_size`` is a positive odd integer, which alone keeps the map's size."""
    if not isinstance(kernel_size, int) or isinstance(kernel_size, bool) or kernel_size < 1 or kernel_size % 2 == 0:
        raise InvalidArgument(
            f"{asked_by}: {name}={kernel_size!r} would change the size of the map; it must be a positive odd integer. "
            f"Take 3, 5 or 7."
        )


def check_choice(value: object, name: str, choices: tuple[object, ...], asked_by: str) -> None:
    """Raise InvalidArgument unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise InvalidArgument(
            f"{asked_by}: {name}={value!r} is not one of its choices. Take {' or '.join(map(repr, choices))}."
        )


def hidden_width(channels: int, reduction: int, asked_by: str) -> int:
    """Return ``channels // reduction``, the width of a bottleneck, and refuse one of 0.

    A bottleneck of width 0 makes every gate a constant, whatever the input: a silent failure of popular code.

    Raises:
        InvalidArgument: ``reduction`` is no positive integer, or larger than ``channels``.
    """
    check_channels(channels, asked_by)
    if not isinstance(reduction, int) or isinstance(reduction, bool) or reduction < 1:
        raise InvalidArgument(
            f"{asked_by}: reduction={reduction!r}; it must be a positive integer. Take 16, as the papers do."
        )
    if channels < reduction:
        raise InvalidArgument(
            f"{asked_by}: {channels} channels with reduction {reduction} leave a hidden width of 0, and a gate that is "
            f"the same for every image; channels must be at least reduction. "
            f"Pass reduction={max(1, channels // 4)} or less."
        )
    return channels // reduction
