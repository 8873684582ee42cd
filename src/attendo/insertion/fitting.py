"""A mechanism for each site: its settings there, the module itself, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from attendo._errors import InvalidArgument
from attendo._registry import did_you_mean
from attendo.insertion.dry_run import meta_copy
from attendo.insertion.inserted import Inserted, Replaced, Start
from attendo.insertion.selection import fits
from attendo.insertion.sites import Site, Sites
from attendo.layers import layer


def settings_at(found: Sites, settings: Mapping[str, Any], asked_by: str) -> list[dict[str, Any]]:
    """Return the settings of each site: a function is asked with the site, a mapping by the pattern of its path.

    Raises:
        InvalidArgument: a mapping that has not exactly one pattern for a site, or one that matches no site.
    """
    chosen: list[dict[str, Any]] = [{} for _ in found]
    for name, value in settings.items():
        unused = set(value) if isinstance(value, Mapping) else set()
        for site, own in zip(found, chosen, strict=True):
            if isinstance(value, Mapping):
                fitting = [pattern for pattern in value if fits(pattern, site.path)]
                if len(fitting) != 1:
                    raise InvalidArgument(
                        f"{asked_by}: {name}={value!r} has {len(fitting)} patterns for site {site.path!r}; a mapping "
                        f"has one for each site. {did_you_mean(site.path, value) if not fitting else 'Leave one.'}"
                    )
                unused -= set(fitting)
                own[name] = value[fitting[0]]
            else:
                own[name] = value(site) if callable(value) else value
        if unused:
            raise InvalidArgument(
                f"{asked_by}: {name}={value!r} names {' and '.join(map(repr, sorted(unused)))}, where no site is; each "
                f"pattern of a mapping matches one. The sites: {', '.join(found.paths)}."
            )
    return chosen


def fit(
    site: Site,
    attention: str,
    arguments: tuple[int, ...],
    settings: dict[str, Any],
    start: Start,
    asked_by: str,
    original: nn.Module | None = None,
) -> Inserted:
    """Build the mechanism of a site: on the CPU, as in the paper, in training mode.

    Args:
        site: the place.
        attention: name of the mechanism.
        arguments: its positional arguments.
        settings: its other arguments.
        start: see ``Inserted``.
        asked_by: the function that error messages name.
        original: the module it takes the place of, if it does.

    Raises:
        InvalidArgument: the mechanism does not fit the site.
    """
    try:
        mechanism = layer(attention, *arguments, **settings)
        neutral = start == "identity" and _is_neutral(mechanism, site)
    except InvalidArgument as error:
        raise InvalidArgument(
            f"{asked_by}: site {site.path!r}: {error} (A setting can be a function of the site as well, e.g. "
            f"reduction=lambda site: min(16, site.channels).)"
        ) from error
    if original is None:
        inserted = Inserted(mechanism, attention, arguments, settings, start)
    else:
        inserted = Replaced(original, mechanism, attention, arguments, settings, start)
    if neutral and inserted.alpha is not None:
        nn.init.ones_(inserted.alpha)
    return inserted


def _is_neutral(mechanism: nn.Module, site: Site) -> bool:
    """Whether a new mechanism returns its input, as GC does, whose last layer starts at 0.

    With alpha at 0 as well, both would wait for each other: neither would ever get a gradient. Alpha then starts at 1.
    """
    size = (1, site.channels, min(site.height, 8), min(site.width, 8))
    if 0 in size or any(parameter.is_meta for parameter in mechanism.parameters()):
        return False  # built to be filled from a file, or without numbers
    x = torch.linspace(-1, 1, math.prod(size), device="cpu").view(size)
    with torch.no_grad():
        neutral = torch.equal(mechanism.eval()(x), x)
    mechanism.train()
    return neutral


def costs(site: Site, inserted: Inserted, size: tuple[int, int]) -> Site:
    """Fill in what was built at a site and what it costs on a map of (height, width) = ``size``."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        meta_copy(inserted.mechanism).eval()(torch.zeros(1, inserted.arguments[0], *size, device="meta"))
    return replace(
        site,
        attention=inserted.name,
        settings=inserted.settings,
        parameters=sum(parameter.numel() for parameter in inserted.parameters()),
        macs=counter.get_total_flops() // 2,
    )


def settle(inserted: Inserted, model: nn.Module, path: str) -> None:
    """Give a mechanism the device, dtype and mode of the place it goes to.

    Device and dtype are those of the nearest parameters: the module's at ``path``, else its parent's, and so on.
    """
    near = path
    while True:
        parameters = model.get_submodule(near).parameters()
        like = next((p for p in parameters if p.is_floating_point()), None)
        if like is not None or not near:
            break
        near = near.rpartition(".")[0]
    if like is not None:
        inserted.to(like.device, like.dtype)
    inserted.train(model.get_submodule(path).training)
