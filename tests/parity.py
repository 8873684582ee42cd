"""The recorded outputs of official code, and which of our modules each must equal.

A source's state dict is loaded by position: same order, same number of values, reshaped where the source uses 1x1
convolutions for our fully connected layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import attendo


@dataclass(frozen=True)
class Parity:
    """A recorded fixture and its counterpart here. ``gate`` says that the source returns the gate, not the product."""

    fixture: str
    build: Callable[[], nn.Module]
    gate: bool = False


def _layer(name: str, *args: int, **settings: object) -> Callable[[], nn.Module]:
    return lambda: attendo.layer(name, *args, **settings)


class _PerBranch(nn.Module):
    """SK's selection as xmu stores it: one layer per branch, where we have one for all branches."""

    def __init__(self, select: nn.Linear, branches: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(select.in_features, select.out_features // branches) for _ in range(branches)
        )

    def forward(self, z_NC: Tensor) -> Tensor:
        return torch.cat([layer(z_NC) for layer in self.layers], 1)


def _xmu_sk(channels: int, **settings: object) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        layer = attendo.layer("sk", channels, groups=1, dilated=False, bias=True, squeeze_norm=False, **settings)
        layer.select = _PerBranch(layer.select, len(layer.branches))
        return layer

    return build


PAPER_NO_BIAS = {"variant": "paper", "max_first": True}

MODULES = [
    Parity("seed000_channel_attention", _layer("cbam_channel", 64, variant="paper"), gate=True),
    Parity("seed000_spatial_attention", _layer("cbam_spatial", 64, variant="paper"), gate=True),
    Parity("seed001_cbam_conv_k5", _layer("cbam", 64, channel="eca", spatial_kernel=5, **PAPER_NO_BIAS)),
    Parity("seed001_cbam_fc_k7", _layer("cbam", 64, **PAPER_NO_BIAS)),
    Parity("seed001_channel_conv", _layer("cbam_channel", 64, channel="eca")),
    Parity("seed001_channel_fc_r16", _layer("cbam_channel", 64, variant="paper")),
    Parity("seed001_ecablock", _layer("eca", 64)),
    Parity("seed001_ecablock_c512", _layer("eca", 512)),
    Parity("seed001_seblock_avg_r16", _layer("se", 64, bias=False)),
    Parity("seed001_seblock_max_r4", _layer("se", 64, bias=False, reduction=4, pool="max")),
    Parity("seed001_spatial_k3", _layer("cbam_spatial", 64, spatial_kernel=3, **PAPER_NO_BIAS)),
    Parity("seed001_spatial_k7", _layer("cbam_spatial", 64, **PAPER_NO_BIAS)),
    Parity("seed003_se_block", _layer("se", 64), gate=True),
    Parity("seed004_psa_s1", _layer("psa", 64, 64, 1)),
    Parity("seed004_se_weight", _layer("se", 64), gate=True),
    Parity("eca_layer_c64_k3", _layer("eca", 64, kernel_size=3)),
    Parity("epsanet_psa_64_64_s2", _layer("psa", 64, 64, 2)),
    Parity("epsanet_psa_64_128", _layer("psa", 64, 128)),
    Parity("jongchan_cbam_c64", _layer("cbam", 64)),
    Parity("jongchan_cbam_spatial_gate", _layer("cbam_spatial", 64)),
    Parity("moskomule_selayer_c64_r16", _layer("se", 64, bias=False)),
    Parity("timm_cbam_c64_bias", _layer("cbam", 64, max_first=False)),
    Parity("timm_eca_c64", _layer("eca", 64)),
    Parity("timm_se_c64", _layer("se", 64, reduction=8)),
    Parity("torchvision_se_64_16", _layer("se", 64, reduction=4)),
    Parity("jongchan_bam_c64", _layer("bam", 64)),
    Parity("osmr_bamblock_c64", _layer("bam", 64)),
    Parity("scse_smp_c64", _layer("scse", 64)),
    Parity("simam_lambda1e-4", _layer("simam", 64)),
    Parity("coordatt_c64_r32", _layer("coord", 64)),
    Parity("triplet_attention", _layer("triplet", 64)),
    Parity("timm_gc_c64", _layer("gc", 64, fusion="scale", reduction=8, eps=1e-6)),
    Parity("timm_sk_c64_nosplit", _layer("sk", 64, groups=1, dilated=False, min_width=8)),
    Parity("xmu_sk_c64", _xmu_sk(64, kernel_sizes=(1, 3, 5, 7), reduction=8)),
    Parity("fca_c64_14_top16", _layer("fca", 64, dct_size=14)),
    Parity("timm_ge_patched_c64", _layer("ge", 64, mlp=True)),
]


def load_by_position(module: nn.Module, source: dict[str, Tensor]) -> None:
    """Copy a source's state dict into ours, entry by entry; fixed buffers (DCT filters) stay as we computed them."""
    ours = module.state_dict()
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    fixed = {name for name, _ in module.named_buffers() if not name.endswith(statistics)}
    assert len(ours) == len(source), f"{len(ours)} entries here, {len(source)} there: {list(ours)} / {list(source)}"
    module.load_state_dict(
        {
            name: ours[name] if name in fixed else value.reshape(ours[name].shape)
            for name, value in zip(ours, source.values(), strict=True)
        }
    )
