r"""How the published repositories name what our mechanisms hold, one row per dialect.

A row is total: under the dialect that a checkpoint speaks, every key is renamed by a rule or dropped by name, or the
checkpoint is refused. Rules are regular expressions that must match whole keys. The plain ResNet around the
mechanisms is the same in all of them (``SKELETON``).

A new source is a row here; its parity belongs into ``tests/test_conversion.py``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

Rules = tuple[tuple[str, str], ...]

NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
AFFINE = r"(weight|bias)"
BLOCK = r"(layer\d\.\d{1,4})\."

SKELETON: Rules = (
    (r"conv1\.weight", "conv1.weight"),
    (rf"conv1\.(\d+)\.{NORM}", r"conv1.\1.\2"),  # the deep stem of ResNet-D
    (rf"bn1\.{NORM}", r"bn1.\1"),
    (rf"{BLOCK}conv([123])\.weight", r"\1.conv\2.weight"),
    (rf"{BLOCK}bn([123])\.{NORM}", r"\1.bn\2.\3"),
    (rf"{BLOCK}(?:downsample|shortcut)\.(\d)\.{NORM}", r"\1.downsample.\2.\3"),
    (rf"(?:fc|linear|classifier)\.{AFFINE}", r"fc.\1"),
)

# What tools leave in a checkpoint and no network computes with.
LITTER = (r"(?:.*\.)?total_(?:ops|params)",)  # thop's counters, which ECA-Net's own script adds


@dataclass(frozen=True)
class Dialect:
    r"""The names of one mechanism in one family of repositories.

    Attributes:
        mechanism: its name in our registry.
        source: who publishes under these names.
        where: what stands before the mechanism's own keys in a network, whole; groups feed ``place``.
        place: our path of the mechanism.
        rules: the mechanism's own keys, in the order they are tried.
        around: keys of the network that this dialect names differently, whole.
        computed: own keys, under our names, from which settings are read and which the mechanism then computes itself.
        settings: what the shapes do not tell.
        note: what else someone who loads such a checkpoint should know.
    """

    mechanism: str
    source: str
    where: str
    place: str
    rules: Rules
    around: Rules = ()
    computed: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    def rename(self, key: str) -> tuple[str, str] | None:
        """Return our name of a network's key, split before the mechanism's own part, or None if there is none."""
        for pattern, replacement in (*self.around, *SKELETON):
            if (match := re.fullmatch(pattern, key)) is not None:
                return "", match.expand(replacement)
        head = re.match(self.where, key) if self.rules else None
        own = self.rename_own(key[head.end() :]) if head else None
        return None if head is None or own is None else (head.expand(self.place), own)

    def rename_whole(self, key: str) -> str | None:
        """Return our name of a network's key, or None if this dialect has none."""
        ours = self.rename(key)
        return None if ours is None else "".join(ours)

    def rename_own(self, key: str) -> str | None:
        """Return our name of one of the mechanism's own keys, or None."""
        for pattern, replacement in self.rules:
            if (match := re.fullmatch(pattern, key)) is not None:
                return match.expand(replacement)
        return None


def is_litter(key: str) -> bool:
    """Tell whether a tool left this entry, which no network computes with."""
    return any(re.fullmatch(pattern, key) for pattern in LITTER)


JONGCHAN = "Jongchan/attention-module"
IN_BLOCK = r"\1.se."

_JONGCHAN_CBAM: Rules = (
    (rf"ChannelGate\.mlp\.1\.{AFFINE}", r"channel.fc1.\1"),
    (rf"ChannelGate\.mlp\.3\.{AFFINE}", r"channel.fc2.\1"),
    (r"SpatialGate\.spatial\.conv\.weight", "spatial.conv.weight"),
    (rf"SpatialGate\.spatial\.bn\.{NORM}", r"spatial.norm.\1"),
)
_FC_PAIR: Rules = (
    (rf"fc\.0\.{AFFINE}", r"fc1.\1"),
    (rf"fc\.2\.{AFFINE}", r"fc2.\1"),
)
_SIMAM_REPOSITORY: Rules = ((rf"{BLOCK}bn([23])\.0\.{NORM}", r"\1.bn\2.\3"),)

PLAIN = Dialect("none", "torchvision, timm, kuangliu/pytorch-cifar: a plain ResNet", r"(?!)", "", ())

NETWORKS: tuple[Dialect, ...] = (
    Dialect(
        "se",
        "timm, torchvision, attendo: SE of fc1 and fc2",
        rf"{BLOCK}se\.",
        IN_BLOCK,
        ((rf"fc([12])\.{AFFINE}", r"fc\1.\2"),),
    ),
    Dialect("se", "moskomule/senet.pytorch", rf"{BLOCK}se\.", IN_BLOCK, _FC_PAIR),
    Dialect(
        "se",
        "the SE-ResNet with CIFAR stem of the blogs",
        rf"{BLOCK}SE\.",
        IN_BLOCK,
        ((rf"conv([12])\.{AFFINE}", r"fc\1.\2"),),
    ),
    Dialect("se", "ZjjConan/SimAM: its SE", rf"{BLOCK}bn[23]\.1\.", IN_BLOCK, _FC_PAIR, _SIMAM_REPOSITORY),
    Dialect("eca", "BangguWu/ECANet", rf"{BLOCK}eca\.", IN_BLOCK, ((r"conv\.weight", "conv.weight"),)),
    Dialect("eca", "timm, attendo: ECA", rf"{BLOCK}se\.", IN_BLOCK, ((r"conv\.weight", "conv.weight"),)),
    Dialect("cbam", JONGCHAN, rf"{BLOCK}cbam\.", IN_BLOCK, _JONGCHAN_CBAM, settings={"max_first": True}),
    Dialect(
        "cbam",
        "ZjjConan/SimAM: its CBAM",
        rf"{BLOCK}bn[23]\.1\.",
        IN_BLOCK,
        _JONGCHAN_CBAM,
        _SIMAM_REPOSITORY,
        settings={"max_first": True},
    ),
    Dialect(
        "cbam",
        "luuuyi/CBAM.PyTorch and the CBAM-ResNet with CIFAR stem of the blogs",
        BLOCK,
        IN_BLOCK,
        (
            (rf"(?:ca|channel)\.fc([12])\.{AFFINE}", r"channel.fc\1.\2"),
            (rf"(?:ca|channel)\.fc\.0\.{AFFINE}", r"channel.fc1.\1"),
            (rf"(?:ca|channel)\.fc\.2\.{AFFINE}", r"channel.fc2.\1"),
            (r"(?:sa|spatial)\.conv1?\.weight", "spatial.conv.weight"),
        ),
        settings={"max_first": False},
    ),
    Dialect(
        "cbam",
        "timm: CbamModule",
        rf"{BLOCK}se\.",
        IN_BLOCK,
        (
            (rf"channel\.fc([12])\.{AFFINE}", r"channel.fc\1.\2"),
            (r"spatial\.conv\.conv\.weight", "spatial.conv.weight"),
            (rf"spatial\.conv\.bn\.{NORM}", r"spatial.norm.\1"),
        ),
        settings={"max_first": False},
    ),
    Dialect(
        "cbam",
        "attendo: CBAM",
        rf"{BLOCK}se\.",
        IN_BLOCK,
        (
            (rf"channel\.fc([12])\.{AFFINE}", r"channel.fc\1.\2"),
            (r"channel\.conv\.weight", r"channel.conv.weight"),
            (r"spatial\.conv\.weight", "spatial.conv.weight"),
            (rf"spatial\.norm\.{NORM}", r"spatial.norm.\1"),
        ),
        note="an attendo network saved without its description: the defaults are taken where shapes do not tell",
    ),
    Dialect(
        "cbam_channel",
        f"{JONGCHAN}: CBAM without its spatial gate",
        rf"{BLOCK}(?:cbam|bn[23]\.1)\.",
        IN_BLOCK,
        (
            (rf"ChannelGate\.mlp\.1\.{AFFINE}", r"fc1.\1"),
            (rf"ChannelGate\.mlp\.3\.{AFFINE}", r"fc2.\1"),
        ),
        _SIMAM_REPOSITORY,
    ),
    Dialect(
        "bam",
        JONGCHAN,
        r"bam([123])\.",
        r"layer\1.attention.",
        (
            (rf"channel_att\.gate_c\.gate_c_fc_0\.{AFFINE}", r"channel.0.\1"),
            (rf"channel_att\.gate_c\.gate_c_bn_1\.{NORM}", r"channel.1.\1"),
            (rf"channel_att\.gate_c\.gate_c_fc_final\.{AFFINE}", r"channel.3.\1"),
            (rf"spatial_att\.gate_s\.gate_s_conv_reduce0\.{AFFINE}", r"spatial.0.\1"),
            (rf"spatial_att\.gate_s\.gate_s_bn_reduce0\.{NORM}", r"spatial.1.\1"),
            (rf"spatial_att\.gate_s\.gate_s_conv_di_0\.{AFFINE}", r"spatial.3.\1"),
            (rf"spatial_att\.gate_s\.gate_s_bn_di_0\.{NORM}", r"spatial.4.\1"),
            (rf"spatial_att\.gate_s\.gate_s_conv_di_1\.{AFFINE}", r"spatial.6.\1"),
            (rf"spatial_att\.gate_s\.gate_s_bn_di_1\.{NORM}", r"spatial.7.\1"),
            (rf"spatial_att\.gate_s\.gate_s_conv_final\.{AFFINE}", r"spatial.9.\1"),
        ),
    ),
    Dialect(
        "bam",
        "attendo: BAM",
        r"(layer[123])\.attention\.",
        r"\1.attention.",
        ((rf"(channel|spatial)\.(\d)\.{NORM}", r"\1.\2.\3"),),
    ),
    Dialect(
        "psa",
        "murufeng/EPSANet and its Paddle port",
        rf"{BLOCK}conv2\.",
        r"\1.conv2.",
        (
            (r"conv_1\.weight", "spc.branches.0.weight"),
            (r"conv_2\.weight", "spc.branches.1.weight"),
            (r"conv_3\.weight", "spc.branches.2.weight"),
            (r"conv_4\.weight", "spc.branches.3.weight"),
            (rf"se\.fc([12])\.{AFFINE}", r"se.fc\1.\2"),
        ),
    ),
    Dialect(
        "psa",
        "attendo: PSA",
        rf"{BLOCK}(conv[12])\.",
        r"\1.\2.",
        (
            (r"spc\.branches\.(\d+)\.weight", r"spc.branches.\1.weight"),
            (rf"se\.fc([12])\.{AFFINE}", r"se.fc\1.\2"),
        ),
    ),
    Dialect(
        "simam",
        "ZjjConan/SimAM, attendo: SimAM",
        rf"{BLOCK}conv2\.",
        r"\1.conv2.",
        ((r"0\.weight", "0.weight"),),
        note="lambda is not in the weights: the code's default 1e-4 is taken; its ImageNet runs used 0.1",
    ),
    Dialect(
        "triplet",
        "landskape-ai/triplet-attention, under its three sets of names",
        rf"{BLOCK}(?:triplet_attention|pcam|se)\.",
        IN_BLOCK,
        (
            (r"(?:ChannelGateH\.spatial|cw\.conv)\.conv\.weight", "cw.conv.weight"),
            (r"(?:ChannelGateW\.spatial|hc\.conv)\.conv\.weight", "hc.conv.weight"),
            (r"(?:SpatialGate\.spatial|hw\.conv)\.conv\.weight", "hw.conv.weight"),
            (rf"(?:ChannelGateH\.spatial|cw\.conv)\.bn\.{NORM}", r"cw.norm.\1"),
            (rf"(?:ChannelGateW\.spatial|hc\.conv)\.bn\.{NORM}", r"hc.norm.\1"),
            (rf"(?:SpatialGate\.spatial|hw\.conv)\.bn\.{NORM}", r"hw.norm.\1"),
        ),
    ),
    Dialect(
        "triplet",
        "attendo: triplet attention",
        rf"{BLOCK}se\.",
        IN_BLOCK,
        ((rf"(cw|hc|hw)\.(conv|norm)\.{NORM}", r"\1.\2.\3"),),
    ),
    Dialect(
        "fca",
        "cfzd/FcaNet",
        rf"{BLOCK}att\.",
        IN_BLOCK,
        ((r"dct_layer\.weight", "dct"), *_FC_PAIR),
        computed=("dct",),
    ),
)
