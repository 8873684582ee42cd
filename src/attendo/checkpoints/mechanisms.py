"""Names under which single mechanisms are published, beside those inside the networks of ``dialects``."""

from __future__ import annotations

from typing import Any

from attendo.checkpoints.dialects import AFFINE, JONGCHAN, NORM, Dialect


def _alone(mechanism: str, source: str, *rules: tuple[str, str], **settings: Any) -> Dialect:
    return Dialect(mechanism, source, r"(?!)", "", rules, settings=settings)


MODULES: tuple[Dialect, ...] = (
    _alone(
        "se",
        "fully connected layers in a Sequential",
        (rf"fc_layers\.0\.{AFFINE}", r"fc1.\1"),
        (rf"fc_layers\.2\.{AFFINE}", r"fc2.\1"),
    ),
    _alone("cbam_channel", "two 1x1 convolutions", (rf"fc([12])\.{AFFINE}", r"fc\1.\2")),
    _alone(
        "cbam_channel",
        "layers in a Sequential",
        (rf"(?:fc|fc_layers)\.0\.{AFFINE}", r"fc1.\1"),
        (rf"(?:fc|fc_layers)\.2\.{AFFINE}", r"fc2.\1"),
    ),
    _alone("cbam_channel", JONGCHAN, (rf"mlp\.1\.{AFFINE}", r"fc1.\1"), (rf"mlp\.3\.{AFFINE}", r"fc2.\1")),
    _alone("cbam_spatial", "luuuyi/CBAM.PyTorch", (r"conv1\.weight", "conv.weight"), max_first=False),
    _alone(
        "cbam_spatial",
        JONGCHAN,
        (r"spatial\.conv\.weight", "conv.weight"),
        (rf"spatial\.bn\.{NORM}", r"norm.\1"),
        max_first=True,
    ),
    _alone(
        "cbam_spatial",
        "timm",
        (r"conv\.conv\.weight", "conv.weight"),
        (rf"conv\.bn\.{NORM}", r"norm.\1"),
        max_first=False,
    ),
    _alone(
        "cbam",
        "a CBAM of channel_attention_block and spatial_attention_block",
        (rf"channel_attention_block\.fc_layers\.0\.{AFFINE}", r"channel.fc1.\1"),
        (rf"channel_attention_block\.fc_layers\.2\.{AFFINE}", r"channel.fc2.\1"),
        (r"channel_attention_block\.conv\.weight", "channel.conv.weight"),
        (r"spatial_attention_block\.conv\.weight", "spatial.conv.weight"),
        max_first=True,
    ),
    _alone(
        "bam",
        "osmr/pytorchcv",
        (rf"ch_att\.init_fc\.fc\.{AFFINE}", r"channel.0.\1"),
        (rf"ch_att\.init_fc\.bn\.{NORM}", r"channel.1.\1"),
        (rf"ch_att\.final_fc\.{AFFINE}", r"channel.3.\1"),
        (rf"sp_att\.init_conv\.conv\.{AFFINE}", r"spatial.0.\1"),
        (rf"sp_att\.init_conv\.bn\.{NORM}", r"spatial.1.\1"),
        (rf"sp_att\.dil_convs\.conv1\.conv\.{AFFINE}", r"spatial.3.\1"),
        (rf"sp_att\.dil_convs\.conv1\.bn\.{NORM}", r"spatial.4.\1"),
        (rf"sp_att\.dil_convs\.conv2\.conv\.{AFFINE}", r"spatial.6.\1"),
        (rf"sp_att\.dil_convs\.conv2\.bn\.{NORM}", r"spatial.7.\1"),
        (rf"sp_att\.final_conv\.{AFFINE}", r"spatial.9.\1"),
    ),
    _alone(
        "coord",
        "houqb/CoordAttention",
        (rf"conv1\.{AFFINE}", r"conv1.\1"),
        (rf"bn1\.{NORM}", r"bn1.\1"),
        (rf"(?:conv_h|conv2)\.{AFFINE}", r"conv_h.\1"),  # conv2 and conv3 in its MobileNetV2
        (rf"(?:conv_w|conv3)\.{AFFINE}", r"conv_w.\1"),
    ),
    _alone(
        "gc",
        "timm: GlobalContext",
        (rf"conv_attn\.{AFFINE}", r"conv.\1"),
        (rf"mlp_(add|scale)\.fc1\.{AFFINE}", r"\1.0.\2"),
        (rf"mlp_(add|scale)\.norm\.{AFFINE}", r"\1.1.\2"),
        (rf"mlp_(add|scale)\.fc2\.{AFFINE}", r"\1.3.\2"),
    ),
    _alone("ge", "timm: GatherExcite", (rf"mlp\.fc1\.{AFFINE}", r"mlp.0.\1"), (rf"mlp\.fc2\.{AFFINE}", r"mlp.2.\1")),
    _alone(
        "scse",
        "qubvel/segmentation_models.pytorch",
        (rf"cSE\.1\.{AFFINE}", r"channel.fc1.\1"),
        (rf"cSE\.3\.{AFFINE}", r"channel.fc2.\1"),
        (rf"sSE\.0\.{AFFINE}", r"spatial.\1"),
    ),
    _alone(
        "sk",
        "timm: SelectiveKernel",
        (r"paths\.(\d)\.conv\.weight", r"branches.\1.0.weight"),
        (rf"paths\.(\d)\.bn\.{NORM}", r"branches.\1.1.\2"),
        (r"attn\.fc_reduce\.weight", "squeeze.0.weight"),
        (rf"attn\.bn\.{NORM}", r"squeeze.1.\1"),
        (r"attn\.fc_select\.weight", "select.weight"),
    ),
)
