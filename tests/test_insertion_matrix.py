"""Every real network x every mechanism: inserted, nothing changed; trained, something did; removed, nothing is left.

The default run takes the networks in rotation: each with a few mechanisms, each mechanism with several networks. The
whole product takes many minutes and runs with ``pytest -m slow``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

import attendo
from attendo.insertion import Site, freeze_backbone, insert, remove, replace, sites
from attendo.layers import AttentionConv
from attendo.layers._base import LAYERS
from insertion_networks import NETWORKS, Network, network

EACH = 2  # mechanisms per network in the default run


def at_most(ratio: int, least: int = 1) -> Any:
    """A reduction that also fits narrow maps."""
    return lambda site: max(1, min(ratio, site.channels // least))


def frequencies(site: Site) -> str:
    """As many DCT frequencies as divide the channels."""
    return f"top{next(n for n in (16, 8, 4, 2, 1) if site.channels % n == 0)}"


# what a mechanism needs in order to fit any of these networks
SETTINGS: dict[str, dict[str, Any]] = {
    name: {"reduction": at_most(16)} for name in ("se", "static", "cbam", "cbam_channel", "scse", "bam")
} | {
    "gc": {"reduction": at_most(16, 2)},
    "fca": {"reduction": at_most(16), "frequencies": frequencies},
    "psa": {"kernel_sizes": (3, 5), "groups": (1, 1), "reduction": lambda site: max(1, site.channels // 4)},
    "sk": {"groups": 1, "min_width": 4},
}


def tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def forward(model: nn.Module, x: Tensor, train: bool) -> list[Tensor]:
    """Outputs in a mode, with the same dropout each time and the statistics of norms left as they were."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.train(train)
    torch.manual_seed(1)
    with torch.no_grad():
        out = [tensor.clone() for tensor in tensors(model(x))]
    for buffer, before in buffers:
        buffer.copy_(before)
    model.eval()
    return out


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) > 0 and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def step(model: nn.Module, x: Tensor) -> None:
    """One training step of the attention alone, whose rate makes it matter."""
    optimiser = torch.optim.SGD(freeze_backbone(model), lr=1.0)
    loss = sum((tensor.square().mean() for tensor in tensors(model(x))), torch.zeros(()))
    loss.backward()
    optimiser.param_groups[0]["lr"] = 0.1 / max(
        p.grad.abs().max().item() for p in model.parameters() if p.grad is not None
    )
    optimiser.step()
    model.eval()


def go_through(which: Network, attention: str) -> None:
    model = network(which.name)
    x = torch.randn(2, 3, which.side, which.side, generator=torch.Generator().manual_seed(0))
    size = (3, which.side, which.side)
    keys = list(model.state_dict())
    plain, plain_train = forward(model, x, False), forward(model, x, True)
    settings = SETTINGS.get(attention, {})
    if issubclass(LAYERS[attention], AttentionConv):
        done = replace(model, attention, what=some_convolutions(model), input_size=size, **settings)
    else:
        done = insert(model, attention, input_size=size, **settings)
        assert len(done) == which.auto
        assert same(forward(model, x, False), plain)
        assert same(forward(model, x, True), plain_train)
        assert [key for key in model.state_dict() if "attendo" not in key] == keys
    model.eval()
    step(model, x)
    assert not same(forward(model, x, False), plain)
    assert sorted(remove(model)) == sorted(done.paths)
    assert same(forward(model, x, False), plain)
    assert list(model.state_dict()) == keys


def some_convolutions(model: nn.Module) -> list[str]:
    """Three convolutions that PSA and SK can replace: wider than 1 x 1, keeping the size of the map."""
    fitting = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
        and module.kernel_size[0] > 1
        and module.padding == tuple(side // 2 for side in module.kernel_size)
        and module.dilation == (1, 1)
        and module.in_channels % 2 == module.out_channels % 2 == 0
    ]
    return fitting[:3]


@pytest.mark.parametrize(
    ("which", "attention"),
    [
        pytest.param(
            which,
            list(LAYERS)[(EACH * i + k) % len(LAYERS)],
            id=f"{which.name} {list(LAYERS)[(EACH * i + k) % len(LAYERS)]}",
        )
        for i, which in enumerate(NETWORKS)
        for k in range(EACH)
    ],
)
def test_attention_comes_trains_and_goes_without_a_trace(which, attention):
    go_through(which, attention)


@pytest.mark.slow
@pytest.mark.parametrize("which", NETWORKS, ids=lambda which: which.name)
def test_every_mechanism_comes_trains_and_goes_without_a_trace(which, request):
    if "slow" not in request.config.getoption("markexpr"):
        pytest.skip(f"all {len(NETWORKS)} x {len(LAYERS)} take many minutes; pytest -m slow runs them")
    for attention in LAYERS:
        go_through(which, attention)


@pytest.mark.parametrize("which", NETWORKS, ids=lambda which: which.name)
def test_the_places_are_where_the_papers_put_them(which):
    size = (3, which.side, which.side)
    assert len(sites(network(which.name), "auto", size)) == which.auto
    assert len(sites(network(which.name), "stages", size)) == which.stages
    assert len(sites(network(which.name), "last", size)) == 1


def test_the_matrix_has_25_networks_of_libraries_and_every_mechanism():
    libraries = [which.name.split()[0] for which in NETWORKS]
    assert sum(library != "own" for library in libraries) >= 25
    assert {"torchvision", "timm", "ultralytics", "smp"} < set(libraries)
    assert EACH * len(NETWORKS) >= 2 * len(LAYERS)
    assert set(attendo.list_layers()) == set(LAYERS)
