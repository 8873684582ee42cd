"""How a mechanism hangs in a network: a child module of its site, called by a forward hook.

Design: the hook is a plain function of this file, and everything it needs it finds from the site it is called with. So
no key of the network moves, and deepcopy, pickle, EMA copies and compilers need no special care. Hooks sit under a name
instead of torch's running number: numbers start at 0 in every process, and the first hook that someone registers on an
unpickled network would take the place of ours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from attendo._errors import InvalidArgument
from attendo.functional.definition import blended
from attendo.layers import Attention, AttentionConv
from attendo.layers._bare import fresh, watched
from attendo.layers._base import Gate

Start = Literal["identity", "paper"]
NAME = "attendo"
_FAR = "attendo_at"
_log = logging.getLogger("attendo")


class Inserted(nn.Module):
    """A mechanism at a site: ``x + alpha * (mechanism(x) - x)``, or ``mechanism(x)`` where it began as published.

    alpha starts at 0, where the output is x bit for bit, since x + 0 * d = x for every finite d; at 1 it is the
    mechanism's. In the first step alpha alone gets a gradient other than 0, in the second the mechanism does. (GC
    starts by returning x itself, and therefore with alpha at 1; see ``fitting``.) alpha has one entry and not none
    because FSDP refuses scalars. A mechanism that is not finite breaks the identity: a float16 map beyond half of that
    format's range can overflow in one that enlarges it (BAM, scSE, GC).

    Args:
        mechanism: what recalibrates the map.
        name: its name in the registry.
        arguments: channels, or (in_channels, out_channels, stride) of one that replaces a convolution.
        settings: the settings it was built with.
        start: ``"identity"`` gives it an alpha, ``"paper"`` none.

    Shape:
        (N, C, H, W) -> (N, C, H, W)
    """

    def __init__(
        self, mechanism: Attention, name: str, arguments: tuple[int, ...], settings: dict[str, Any], start: Start
    ) -> None:
        super().__init__()
        self.mechanism = mechanism
        self.name, self.arguments, self.settings, self.start = name, arguments, settings, start
        self.alpha = nn.Parameter(torch.zeros(1)) if start == "identity" else None

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        """Blend: (N, C, H, W) -> the same shape and dtype, also where autocast computes the mechanism in another.

        Args:
            x: feature map.
            inplace: x is not needed any more; see ``attendo.functional.recalibrate``.
        """
        mechanism = self.mechanism
        if type(mechanism).forward is Gate.forward and not watched(mechanism):
            return cast(Gate, mechanism).recalibrate(x, inplace=inplace, blend=self.alpha).type_as(x)
        recalibrated = mechanism(x)
        if self.alpha is None:
            return recalibrated if isinstance(mechanism, AttentionConv) else recalibrated.type_as(x)
        return blended(x, recalibrated, self.alpha)

    def extra_repr(self) -> str:
        """Name what was inserted."""
        return f"{self.name!r}, start={self.start!r}"


class Replaced(Inserted):
    """A mechanism in the place of another module, which it keeps, unregistered, for ``remove``.

    Args:
        original: the module whose place it takes.
        mechanism: see ``Inserted``, as are the others.
        name: see there.
        arguments: see there.
        settings: see there.
        start: see there.
    """

    def __init__(
        self,
        original: nn.Module,
        mechanism: Attention,
        name: str,
        arguments: tuple[int, ...],
        settings: dict[str, Any],
        start: Start,
    ) -> None:
        super().__init__(mechanism, name, arguments, settings, start)
        self.hidden = (original,)  # in a tuple, a module is not registered: no parameters, no keys

    @property
    def original(self) -> nn.Module:
        """The module that stood here before."""
        return self.hidden[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Replaced:
        self.original._apply(fn, recurse)  # .to(), .half(), .cuda() reach it too
        return cast(Replaced, super()._apply(fn, recurse))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Give the entries of a checkpoint of the old network to the module they belong to."""
        old = {prefix + key for key in self.original.state_dict()}
        if old and old <= state_dict.keys():
            self.original.load_state_dict({key.removeprefix(prefix): state_dict[key] for key in old})
            state_dict = {key: value for key, value in state_dict.items() if key not in old}
        super()._load_from_state_dict(state_dict, prefix, *args)


def _recalibrate_output(site: nn.Module, args: Any, output: Tensor) -> Tensor:
    return _recalibrated(site, getattr(site, NAME), output)


def _recalibrate_output_from_afar(site: nn.Module, args: Any, output: Tensor) -> Tensor:
    return _recalibrated(site, cast(Inserted, site.get_submodule(getattr(site, _FAR))), output)


def _recalibrated(site: nn.Module, inserted: Inserted, output: Tensor) -> Tensor:
    unseen = fresh(site, ours=1) and not watched(inserted)
    return cast(Tensor, inserted(output, inplace=True) if unseen else inserted(output))


def home_of(model: nn.Module, path: str, replaces: bool = False) -> str:
    """Return the path under which the mechanism of a site is, or would be, registered.

    It takes the place of the site if it ``replaces`` it, else it is a child of its site. The forward of a Sequential
    runs through its children, so that a new child would become part of it: there it lodges with the last leaf inside.
    """
    site = model.get_submodule(path)
    if replaces:
        return path
    if not isinstance(site, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        return f"{path}.{NAME}"
    leaf = list(_leaves(site))[-1]
    return f"{path}.{leaf}.{NAME}_up{leaf.count('.') + 1}"


def _leaves(module: nn.Module) -> Iterator[str]:
    for name, child in module._modules.items():
        if child is not None and not isinstance(child, Inserted):
            below = [f"{name}.{leaf}" for leaf in _leaves(child)]
            yield from below or [name]


def attach(model: nn.Module, path: str, inserted: Inserted) -> None:
    """Put a mechanism at a site, instead of one that is there; a ``Replaced`` takes the place of the module itself."""
    site = model.get_submodule(path)
    if is_site(site):
        detach(model, path)
    home = home_of(model, path, isinstance(inserted, Replaced))
    parent, _, name = home.rpartition(".")
    model.get_submodule(parent)._modules[name] = inserted
    if home == f"{path}.{NAME}":
        _set_hook(site._forward_hooks, _recalibrate_output)
    elif home != path:
        setattr(site, _FAR, home.removeprefix(f"{path}."))
        _set_hook(site._forward_hooks, _recalibrate_output_from_afar)
    if NAME not in _names(model._load_state_dict_post_hooks):
        _set_hook(model._load_state_dict_post_hooks, _let_attention_be_absent)


def detach(model: nn.Module, path: str) -> None:
    """Undo ``attach``."""
    site = model.get_submodule(path)
    parent, _, leaf = path.rpartition(".")
    if isinstance(site, Replaced):
        model.get_submodule(parent)._modules[leaf] = site.original.train(site.training)
        return
    where, _, name = site.__dict__.pop(_FAR, NAME).rpartition(".")
    del site.get_submodule(where)._modules[name]
    _names(site._forward_hooks).pop(NAME)


def forget(model: nn.Module) -> None:
    """Take the loading hook off every module below which no attention is left."""
    for module in model.modules():
        hooks = _names(module._load_state_dict_post_hooks)
        if NAME in hooks and not any(isinstance(m, Inserted) for m in module.modules()):
            hooks.pop(NAME)


def insertions(model: nn.Module, asked_by: str) -> Iterator[tuple[str, str, Inserted]]:
    """Yield (path of the site, path of the module, module) of all that was inserted, in the order of the network.

    Raises:
        InvalidArgument: a mechanism that nothing calls any more, because a tool swapped the module it hung on.
    """
    found: dict[str, tuple[str, str, Inserted]] = {}
    for path, module in model.named_modules():
        if is_site(module):
            home = f"{path}.{getattr(module, _FAR, NAME)}".removeprefix(".")
            found[home] = (path, home, cast(Inserted, model.get_submodule(home)))
        if isinstance(module, Replaced):
            found[path] = (path, path, module)
    for path, module in model.named_modules():
        if isinstance(module, Inserted):
            if path not in found:
                raise InvalidArgument(
                    f"{asked_by}: nothing calls the attention at {path!r} any more: a tool put another module in the "
                    f"place of the one that called it, as conversion to SyncBatchNorm and the fusing of norms into "
                    f"convolutions do. Convert first and insert afterwards; save_attention before the conversion and "
                    f"load_attention after it carry trained attention over."
                )
            yield found[path]


def is_site(module: nn.Module) -> bool:
    """Whether an inserted mechanism recalibrates the output of this module."""
    return NAME in _names(module._forward_hooks)


def _names(hooks: Any) -> dict[Any, Any]:
    """The same hooks, for the type checker: ours has a name where torch's have numbers."""
    return cast(dict[Any, Any], hooks)


def _set_hook(hooks: Any, hook: Callable[..., Any]) -> None:
    hooks[NAME] = hook
    hooks.move_to_end(NAME, last=False)  # before those of the user, who wants to see what the network sees


def _let_attention_be_absent(model: nn.Module, incompatible_keys: Any) -> None:
    """Let a checkpoint of the plain network load with strict=True: either all of the attention is in it, or none."""
    missing: list[str] = incompatible_keys.missing_keys
    states = [(path, m.state_dict()) for path, m in model.named_modules() if isinstance(m, Inserted)]
    # BatchNorm itself lets this one be absent, and does not list it
    ours = [f"{path}.{key}" for path, state in states for key in state if not key.endswith("num_batches_tracked")]
    absent = [key for key in missing if any(key == own or key.endswith(f".{own}") for own in ours)]
    if ours and len(absent) == len(ours):
        missing[:] = [key for key in missing if key not in absent]
        _log.info("the checkpoint holds no attention: the %d tensors of the inserted one stay as they are", len(ours))
