"""From what the caller wrote (``where``, ``what``) to modules, and the refusals on the way."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn

from attendo._errors import InvalidArgument
from attendo._registry import did_you_mean
from attendo.insertion import places
from attendo.insertion.dry_run import Call, Trace
from attendo.insertion.inserted import Inserted
from attendo.insertion.sites import Site, Sites, Where

# classes that hold a network in a form that attention cannot be put into any more, and what to do instead
WRAPPERS = {
    "DistributedDataParallel": "its gradients are averaged for the parameters it knew when it was built. Call it on "
    "model.module before wrapping",
    "FullyShardedDataParallel": "its parameters are cut into shards already. Call it on the plain network before",
    "FSDPModule": "its parameters are cut into shards already. Call it on the plain network before",
    "OptimizedModule": "the compiled code would not see the attention. Call it before torch.compile",
    "ScriptModule": "TorchScript froze its code. Call it on the Python network; torch.jit.trace works afterwards",
}
QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")


def check_network(model: nn.Module, asked_by: str) -> None:
    """Refuse what attention cannot be put into: wrapped, compiled, scripted and quantised networks.

    Raises:
        InvalidArgument: one of these.
    """
    if not isinstance(model, nn.Module):
        raise InvalidArgument(f"{asked_by}: got {type(model).__name__}; it works on an nn.Module. Pass the network.")
    for path, module in model.named_modules():
        place = f"{asked_by}: {path!r} is" if path else f"{asked_by}: the network is"
        names = {cls.__name__ for cls in type(module).__mro__}
        for wrapper, reason in WRAPPERS.items():
            if wrapper in names:
                raise InvalidArgument(f"{place} wrapped in {wrapper}; {reason}.")
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise InvalidArgument(f"{place} compiled in place; {WRAPPERS['OptimizedModule']}.")
        if type(module).__module__.startswith(QUANTISED):
            raise InvalidArgument(
                f"{place} quantised ({type(module).__name__}); attention computes with real numbers. Call it before "
                f"quantising."
            )


def select(traced: Trace, where: Where, asked_by: str) -> Sites:
    """Find the sites that ``where`` names.

    Raises:
        InvalidArgument: there is none, or one that cannot be a site.
    """
    if isinstance(where, str) and where in ("auto", "stages", "last"):
        found = places.auto(traced) if where == "auto" else places.stages(traced)
        found = found[-1:] if where == "last" else found
    elif callable(where):
        found = [(site.path, site.kind) for site in all_sites(traced) if where(site)]
    else:
        found = [(resolve(traced, path, asked_by), "module") for path in match(traced.model, where, asked_by)]
    if not found:
        raise InvalidArgument(
            f"{asked_by}: where={where!r} finds no place in {type(traced.model).__name__}; at least one is needed. "
            f"Name modules that return feature maps (N, C, H, W), with a glob such as where='**.conv2'."
        )
    return Sites(site_at(traced, path, kind) for path, kind in dict(found).items())


def all_sites(traced: Trace) -> Sites:
    """List every module that is called once and returns one feature map."""
    return Sites(site_at(traced, path, "module") for path in traced.calls if path and why_not(traced, path) is None)


def site_at(traced: Trace, path: str, kind: str) -> Site:
    """Describe the module at a path as a site."""
    call = traced.calls[path][0]
    _, channels, height, width = call.output.shape if call.output is not None else (0, 0, 0, 0)
    return Site(path, kind, type(call.module).__name__, channels, height, width)


def match(model: nn.Module, where: str | re.Pattern[str] | Sequence[str], asked_by: str) -> list[str]:
    """Return the paths that match a glob, a regular expression, or each of a list, in the order of the network.

    Raises:
        InvalidArgument: one of them matches nothing.
    """
    first = {id(module): path for path, module in model.named_modules()}
    # a module that the network holds twice answers to both names, and is known by the first
    known = {path: first[id(m)] for path, m in model.named_modules(remove_duplicate=False) if path}
    patterns = _patterns(where, asked_by)
    matched: set[str] = set()
    for pattern in patterns:
        hits = [path for name, path in known.items() if fits(pattern, name)]
        if not hits:
            text = pattern if isinstance(pattern, str) else pattern.pattern
            raise InvalidArgument(
                f"{asked_by}: {text!r} matches no module of {type(model).__name__}; it is a path, a glob in which * "
                f"stays between two dots and ** does not, or a regular expression after 're:'. {_suggest(text, known)}"
            )
        matched.update(hits)
    return [path for path in first.values() if path in matched]


def _patterns(where: str | re.Pattern[str] | Sequence[str], asked_by: str) -> list[str | re.Pattern[str]]:
    patterns: list[str | re.Pattern[str]] = [where] if isinstance(where, (str, re.Pattern)) else []
    if not patterns:  # a list of them, or nothing that can be looked for
        patterns = list(where) if isinstance(where, Iterable) else [where]
    for pattern in patterns:
        if not isinstance(pattern, (str, re.Pattern)):
            raise InvalidArgument(
                f"{asked_by}: where={where!r} has {pattern!r} in it, which names no modules; it is 'auto', 'stages', "
                f"'last', a path, a glob, a regular expression after 're:', a list of these, or a function of a site. "
                f"Take 'auto' for the places of the papers."
            )
        if isinstance(pattern, str) and pattern.startswith("re:"):
            try:
                re.compile(pattern[3:])
            except re.error as error:
                raise InvalidArgument(
                    f"{asked_by}: where={pattern!r} is no regular expression ({error}); one follows 're:'. Mend it, or "
                    f"take a glob such as 'layer?.*.bn2'."
                ) from error
    return patterns


def fits(pattern: str | re.Pattern[str], path: str) -> bool:
    """Whether a glob or a regular expression matches a whole path."""
    if isinstance(pattern, re.Pattern):
        return pattern.fullmatch(path) is not None
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], path) is not None
    tokens = re.split(r"(\*\*\.|\*\*|\*|\?)", pattern)
    meaning = {"**.": r"(.*\.)?", "**": ".*", "*": "[^.]*", "?": "[^.]"}
    return re.fullmatch("".join(meaning.get(token, re.escape(token)) for token in tokens), path) is not None


def why_not(traced: Trace, path: str) -> str | None:
    """Say why the module at a path cannot be a site, and the way out; None if it can."""
    calls = traced.calls.get(path, [])
    if not calls:
        return (
            "is not called in the dry run; a site is a module that is. Name the modules inside it, or pass "
            "example_inputs that reach it."
        )
    if len(calls) > 1:
        return (
            f"is called {len(calls)} times in one forward; a site is a module that belongs to one place. Name another, "
            f"such as the norm before a shared activation."
        )
    call = calls[0]
    if any(isinstance(frame.module, Inserted) for frame in call.line):
        return "belongs to attention that was inserted before; a site belongs to the network. Name the site itself."
    if call.output is None or len(call.output.shape) != 4:
        return (
            f"returns {call.returned}; attention needs one feature map (N, C, H, W). Name the module whose output is "
            f"the map{_maps_inside(traced, call)}."
        )
    if call.output.axis not in (1, None):
        return (
            f"returns {call.returned} with its channels last; attention needs them second, (N, C, H, W). Name a module "
            f"outside the part of the network that works channels-last."
        )
    return None


def resolve(traced: Trace, path: str, asked_by: str) -> str:
    """Return the path of the module to hang attention on, to recalibrate the output of the one at ``path``.

    It is the same module, except that a Sequential gives way to the module inside it that computed its output.

    Raises:
        InvalidArgument: the module cannot be a site.
    """
    reason = why_not(traced, path)
    if reason is not None:
        raise InvalidArgument(f"{asked_by}: {path!r} {reason}")
    call = traced.calls[path][0]
    if isinstance(call.module, nn.Sequential) and call.output is not None:
        inner = places.site_of(traced, call.output)
        return inner if inner is not None and inner.startswith(f"{path}.") else path
    return path


def _maps_inside(traced: Trace, call: Call) -> str:
    inside = (p for p in traced.calls if p.startswith(f"{call.path}.") and why_not(traced, p) is None)
    examples = [path for path, _ in zip(inside, range(3), strict=False)]
    return f", e.g. {' or '.join(map(repr, examples))}" if examples else ""


def _suggest(text: str, known: Iterable[str]) -> str:
    names = list(known)
    hint = did_you_mean(text, names)
    return hint if len(names) <= 20 or hint.startswith("Did you mean") else "See model.named_modules()."
