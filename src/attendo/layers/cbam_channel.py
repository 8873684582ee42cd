"""CBAM's channel half: a gate per channel from the mean and the maximum of every channel.

Paper, code and deviations: see ``cbam.py``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from attendo.functional import channel_stats
from attendo.kernels.gates import GateWeights
from attendo.layers._bare import bare_kernel, bare_tensors
from attendo.layers._base import Gate, register
from attendo.layers._checks import check_channels, check_choice, check_odd, hidden_width
from attendo.layers.eca import adaptive_kernel_size


@register("cbam_channel")
class ChannelGate(Gate):
    """CBAM's channel half: s = sigmoid(f(mean(x)) + f(max(x))), f shared by both.

    Args:
        channels: channels of the feature map.
        reduction: ratio of the MLP's bottleneck.
        channel: f is ``"mlp"`` (the paper) or ``"eca"``, a 1-D convolution over channels with ECA's adaptive kernel.
        kernel_size: of that 1-D convolution; None takes the adaptive formula.
        gate: ``"sigmoid"``, or ``"softmax"`` over the channels.
        variant: ``"official"`` or ``"paper"``; decides ``bias`` unless it is given.
        bias: whether the MLP has biases.

    Shape:
        (N, C, H, W) -> (N, C, H, W)

    Raises:
        InvalidArgument: ``channels < reduction``, or a choice that does not exist.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        channel: Literal["mlp", "eca"] = "mlp",
        kernel_size: int | None = None,
        gate: Literal["sigmoid", "softmax"] = "sigmoid",
        variant: Literal["official", "paper"] = "official",
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        check_choice(channel, "channel", ("mlp", "eca"), "CBAM")
        check_choice(gate, "gate", ("sigmoid", "softmax"), "CBAM")
        check_choice(variant, "variant", ("official", "paper"), "CBAM")
        self.channel, self.gate = channel, gate
        if channel == "mlp":
            hidden = hidden_width(channels, reduction, "CBAM")
            bias = variant == "official" if bias is None else bias
            self.fc1 = nn.Linear(channels, hidden, bias=bias)
            self.fc2 = nn.Linear(hidden, channels, bias=bias)
        else:
            check_channels(channels, "CBAM")
            kernel_size = adaptive_kernel_size(channels) if kernel_size is None else kernel_size
            check_odd(kernel_size, "kernel_size", "CBAM")
            self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def excite(self, z_NC: Tensor) -> Tensor:
        """Apply the shared f to one statistic: (N, C) -> (N, C)."""
        if self.channel == "mlp":
            return self.fc2(torch.relu(self.fc1(z_NC)))
        return self.conv(z_NC[:, None])[:, 0]

    def gates(self, x: Tensor) -> tuple[Tensor]:
        """Return one gate (N, C, 1, 1)."""
        mean_NC, max_NC = channel_stats(x)
        logits_NC = self.excite(mean_NC) + self.excite(max_NC)
        s_NC = torch.sigmoid(logits_NC) if self.gate == "sigmoid" else torch.softmax(logits_NC, 1)
        return (s_NC[:, :, None, None],)

    def weights(self) -> GateWeights | None:
        """Name the tensors above."""
        if self.gate != "sigmoid":
            return None
        modules = self._modules
        if self.channel == "eca":
            conv = bare_kernel(modules["conv"])
            return None if conv is None else GateWeights(conv=conv, mean=True, maximum=True)
        first, second = bare_tensors(modules["fc1"]), bare_tensors(modules["fc2"])
        if first is None or second is None:
            return None
        return GateWeights(*first, *second, mean=True, maximum=True)
