"""Insert attention at the sites of any network, see what it would cost first, and take it out again."""

from __future__ import annotations

from typing import Any

from torch import nn

from attendo._errors import InvalidArgument
from attendo.insertion.dry_run import FAILURES, Trace, copy_like, trace
from attendo.insertion.fitting import costs, fit, settings_at, settle
from attendo.insertion.inserted import Inserted, Start, attach, detach, forget, insertions
from attendo.insertion.selection import check_network, fits, select
from attendo.insertion.sites import Site, Sites, Where
from attendo.layers import AttentionConv
from attendo.layers._base import LAYERS


def sites(
    model: nn.Module,
    where: Where = "auto",
    input_size: tuple[int, ...] = (3, 224, 224),
    *,
    attention: str | None = None,
    start: Start = "identity",
    example_inputs: Any = None,
    **settings: Any,
) -> Sites:
    """List the places of a network where attention can go, and what a mechanism would cost there.

    The network is not touched: a copy of it runs once, without numbers.

    Args:
        model: any network.
        where: which places; see ``attendo.insertion.sites``.
        input_size: channels, height, width of the image of the dry run.
        attention: the mechanism whose cost to tell; None lists the places alone.
        start: see ``insert``; one with an identity start has one parameter more.
        example_inputs: what to call a network with that takes something else than one batch of images: a tensor, a
            tuple of positional or a dict of keyword arguments.
        settings: of the mechanism; see ``insert``.

    Raises:
        InvalidArgument: see ``insert``.
        UnknownName: no such mechanism.
    """
    check_network(model, "sites")
    if attention is not None:
        _check_mechanism(attention, start, "sites")
    found = select(trace(model, input_size, example_inputs, "sites"), where, "sites")
    if attention is None:
        return found
    return Sites(costs(s, i, (s.height, s.width)) for s, i in _fit_all(found, attention, start, settings, "sites"))


def insert(
    model: nn.Module,
    attention: str,
    where: Where = "auto",
    *,
    start: Start = "identity",
    input_size: tuple[int, ...] = (3, 224, 224),
    example_inputs: Any = None,
    **settings: Any,
) -> Sites:
    """Insert a mechanism into a network, in place, and return what was done.

    The names of all parameters stay as they are, and a checkpoint of the plain network loads as before. The new
    parameters are not in an optimiser that was built earlier; ``attention_parameters`` lists them. A call that fails
    leaves the network as it was: the whole insertion is tried on a copy first.

    Args:
        model: any network.
        attention: name of a mechanism.
        where: which places; see ``attendo.insertion.sites``.
        start: ``"identity"``: at first the network computes what it did, bit for bit, and learns how much attention it
            wants. ``"paper"``: the mechanism as published, for training from scratch.
        input_size: channels, height, width of the image of the dry run that finds the places.
        example_inputs: what to call a network with that takes something else than one batch of images: a tensor, a
            tuple of positional or a dict of keyword arguments.
        settings: of the mechanism. A function is called with each ``Site``; a mapping gives a value for each pattern of
            paths: ``kernel_size=lambda site: 1 if site.channels < 96 else 3``.

    Raises:
        InvalidArgument: ``where`` matches nothing, a module that returns no single map, one that is called twice, or
            one that has attention; a mechanism that does not fit a site or replaces convolutions; a wrapped, compiled,
            scripted or quantised network; a network that does not run on the inputs.
        UnknownName: no such mechanism.
        TypeError: a setting the mechanism does not have.
    """
    check_network(model, "insert")
    _check_mechanism(attention, start, "insert")
    traced = trace(model, input_size, example_inputs, "insert")
    found = select(traced, where, "insert")
    taken = {path: inserted.name for path, _, inserted in insertions(model, "insert")}
    for site in found:
        if site.path in taken:
            raise InvalidArgument(
                f"insert: site {site.path!r} has {taken[site.path]!r} already; a site takes one mechanism. "
                f"replace(model, {attention!r}, what=[{site.path!r}]) swaps it, remove(model) takes it out."
            )
    fitted = _fit_all(found, attention, start, settings, "insert")
    done = Sites(costs(site, inserted, (site.height, site.width)) for site, inserted in fitted)
    rehearse(traced, [(site.path, inserted) for site, inserted in fitted], "insert")
    for site, inserted in fitted:
        settle(inserted, model, site.path)
        attach(model, site.path, inserted)
    return done


def remove(model: nn.Module, where: str | list[str] | None = None) -> list[str]:
    """Take inserted attention out, put replaced modules back, and return where; the old network is back, bit for bit.

    Args:
        model: a network with attention that ``insert``, ``replace`` or ``load_attention`` put there.
        where: a path or pattern of sites, or a list of them; None takes all.

    Raises:
        InvalidArgument: there is no such attention.
    """
    present = [path for path, _, _ in insertions(model, "remove")]
    patterns = ["**"] if where is None else [where] if isinstance(where, str) else list(where)
    chosen = [path for path in present if any(fits(pattern, path) for pattern in patterns)]
    idle = [pattern for pattern in patterns if not any(fits(pattern, path) for path in present)]
    if idle:
        raise InvalidArgument(
            f"remove: {idle[0]!r} matches no site with attention; only what attendo inserted can be removed. "
            f"{'It is at: ' + ', '.join(present) if present else 'This network has none'}."
        )
    for path in reversed(chosen):
        detach(model, path)
    forget(model)
    return chosen


def rehearse(traced: Trace, planned: list[tuple[str, Inserted]], asked_by: str) -> None:
    """Do everything on the copy and run it once.

    Raises:
        InvalidArgument: the copy fails, runs a mechanism never or more than once, or returns other shapes.
    """
    runs: dict[int, int] = {}
    twins = [copy_like(inserted, traced) for _, inserted in planned]
    for (path, _), twin in zip(planned, twins, strict=True):
        settle(twin, traced.model, path)
        attach(traced.model, path, twin.eval())
        twin.register_forward_hook(lambda module, *_: runs.update({id(module): runs.get(id(module), 0) + 1}))
    name = planned[0][1].name
    try:
        shapes = traced.run()
    except FAILURES as error:
        raise InvalidArgument(
            f"{asked_by}: with {name!r} at {len(planned)} sites the network fails in the dry run "
            f"({type(error).__name__}: {error}). Choose other sites, or other settings."
        ) from error
    for (path, _), twin in zip(planned, twins, strict=True):
        if runs.get(id(twin), 0) != 1:
            raise InvalidArgument(
                f"{asked_by}: {name!r} at {path!r} would run {runs.get(id(twin), 0)} times in one forward; once is "
                f"right, but the forward of that module goes through its children. Name a module inside it."
            )
    if shapes != traced.output_shapes:
        raise InvalidArgument(
            f"{asked_by}: with {name!r} the network returns shapes {shapes}, without it {traced.output_shapes}; "
            f"attention keeps shapes. Choose other sites."
        )


def _check_mechanism(attention: str, start: str, asked_by: str) -> None:
    if issubclass(LAYERS[attention], AttentionConv):
        raise InvalidArgument(
            f"{asked_by}: {attention!r} replaces a convolution and cannot be inserted after one. Call "
            f"replace(model, {attention!r}), which takes the widest convolution of every residual block, or name "
            f"convolutions with what=."
        )
    if start not in ("identity", "paper"):
        raise InvalidArgument(f"{asked_by}: start={start!r} is not one of its choices. Take 'identity' or 'paper'.")


def _fit_all(
    found: Sites, attention: str, start: Start, settings: dict[str, Any], asked_by: str
) -> list[tuple[Site, Inserted]]:
    chosen = settings_at(found, settings, asked_by)
    return [(s, fit(s, attention, (s.channels,), own, start, asked_by)) for s, own in zip(found, chosen, strict=True)]
