"""The published networks again, written here from their papers and repositories under the repositories' names.

A second implementation to test the converters against: modules are registered in the order and under the names of
the official code, and each mechanism's arithmetic is written out the official way (pools, concatenations,
permutations), not ours. Functions are named after the repositories.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RESNETS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class Flat(nn.Flatten):
    """A module without parameters, which takes an index of a Sequential."""


class SELayer(nn.Module):  # moskomule/senet.pytorch, ZjjConan/SimAM
    def __init__(self, c: int, r: int = 16) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(c, c // r, bias=False), nn.ReLU(), nn.Linear(c // r, c, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1)).sigmoid()[:, :, None, None]


class SEBlock(nn.Module):  # the SE-ResNet of the blogs: 1x1 convolutions with biases
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(c, c // 16, 1), nn.Conv2d(c // 16, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv2(F.relu(self.conv1(F.avg_pool2d(x, x.shape[2:])))))


class ECALayer(nn.Module):  # BangguWu/ECANet
    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, k, padding=(k - 1) // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(x, 1)
        return x * self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1).sigmoid()


class BasicConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class ChannelGate(nn.Module):  # Jongchan/attention-module
    def __init__(self, c: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Flat(), nn.Linear(c, c // 16), nn.ReLU(), nn.Linear(c // 16, c))

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        return x * torch.sigmoid(self.mlp(F.avg_pool2d(x, size)) + self.mlp(F.max_pool2d(x, size)))[:, :, None, None]


class SpatialGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spatial = BasicConv()

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.spatial(torch.cat((x.max(1)[0].unsqueeze(1), x.mean(1).unsqueeze(1)), 1)))


class CBAM(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.ChannelGate, self.SpatialGate = ChannelGate(c), SpatialGate()

    def forward(self, x: Tensor) -> Tensor:
        return self.SpatialGate(self.ChannelGate(x))


class ChannelAttention(nn.Module):  # luuuyi/CBAM.PyTorch (fc.0, fc.2) and the blogs (fc1, fc2)
    def __init__(self, c: int, sequential: bool) -> None:
        super().__init__()
        fc1, fc2 = nn.Conv2d(c, c // 16, 1, bias=False), nn.Conv2d(c // 16, c, 1, bias=False)
        if sequential:
            self.fc = nn.Sequential(fc1, nn.ReLU(), fc2)
        else:
            self.fc1, self.fc2 = fc1, fc2
        self.f = [fc1, fc2]

    def forward(self, x: Tensor) -> Tensor:
        pools = F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)
        return torch.sigmoid(sum(self.f[1](F.relu(self.f[0](pool))) for pool in pools))


class SpatialAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv1(torch.cat((x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]), 1)))


class BAM(nn.Module):  # Jongchan/attention-module
    def __init__(self, c: int) -> None:
        super().__init__()
        h = c // 16

        def gate(prefix: str, layers: dict[str, nn.Module]) -> nn.Module:
            holder = nn.Module()
            sequence = nn.Sequential()
            for name, layer in layers.items():
                sequence.add_module(f"{prefix}_{name}", layer)
            holder.add_module(prefix, sequence)
            return holder

        self.channel_att = gate(
            "gate_c",
            {
                "flatten": Flat(),
                "fc_0": nn.Linear(c, h),
                "bn_1": nn.BatchNorm1d(h),
                "relu_1": nn.ReLU(),
                "fc_final": nn.Linear(h, c),
            },
        )
        layers: dict[str, nn.Module] = {"conv_reduce0": nn.Conv2d(c, h, 1), "bn_reduce0": nn.BatchNorm2d(h)}
        layers["relu_reduce0"] = nn.ReLU()
        for i in range(2):
            layers |= {f"conv_di_{i}": nn.Conv2d(h, h, 3, padding=4, dilation=4), f"bn_di_{i}": nn.BatchNorm2d(h)}
            layers[f"relu_di_{i}"] = nn.ReLU()
        self.spatial_att = gate("gate_s", {**layers, "conv_final": nn.Conv2d(h, 1, 1)})

    def forward(self, x: Tensor) -> Tensor:
        channel = self.channel_att.gate_c(F.avg_pool2d(x, x.shape[2:]))[:, :, None, None]
        return x * (1 + torch.sigmoid(channel * self.spatial_att.gate_s(x)))


class PSAModule(nn.Module):  # murufeng/EPSANet
    def __init__(self, c: int, stride: int, kernels: tuple[int, ...], groups: tuple[int, ...]) -> None:
        super().__init__()
        for i, (k, g) in enumerate(zip(kernels, groups, strict=True), 1):
            self.add_module(f"conv_{i}", nn.Conv2d(c, c // 4, k, stride, k // 2, groups=g, bias=False))
        self.se = nn.Module()
        self.se.fc1, self.se.fc2 = nn.Conv2d(c // 4, c // 64, 1), nn.Conv2d(c // 64, c // 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.get_submodule(f"conv_{i}")(x) for i in (1, 2, 3, 4)]
        gates = [self.se.fc2(F.relu(self.se.fc1(F.adaptive_avg_pool2d(m, 1)))).sigmoid() for m in maps]
        weights = torch.stack(gates, 1).softmax(1)
        return torch.cat([maps[i] * weights[:, i] for i in (3, 2, 1, 0)], 1)


class SimAM(nn.Module):  # ZjjConan/SimAM
    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[2] * x.shape[3] - 1
        d = (x - x.mean((2, 3), keepdim=True)).pow(2)
        return x * torch.sigmoid(d / (4 * (d.sum((2, 3), keepdim=True) / n + 1e-4)) + 0.5)


class TripletAttention(nn.Module):  # landskape-ai/triplet-attention
    def __init__(self, names: tuple[str, str, str], inner: str) -> None:
        super().__init__()
        self.order = names
        for name in names:
            gate = nn.Module()
            gate.add_module(inner, BasicConv())
            self.add_module(name, gate)
        self.inner = inner

    def gate(self, name: str, x: Tensor) -> Tensor:
        pooled = torch.cat((x.max(1)[0].unsqueeze(1), x.mean(1).unsqueeze(1)), 1)
        return x * torch.sigmoid(self.get_submodule(f"{name}.{self.inner}")(pooled))

    def forward(self, x: Tensor) -> Tensor:
        cw, hc, hw = self.order
        one = self.gate(cw, x.permute(0, 2, 1, 3)).permute(0, 2, 1, 3)
        two = self.gate(hc, x.permute(0, 3, 2, 1)).permute(0, 3, 2, 1)
        return (one + two + self.gate(hw, x)) / 3


class Block(nn.Module):
    """A residual block; ``style.gate`` gives (name, module) pairs for a width and a stage, to follow the last norm."""

    def __init__(self, inputs: int, planes: int, stride: int, stage: int, style: Style) -> None:
        super().__init__()
        self.style, wide = style, style.expansion == 4
        width = planes * style.width
        outputs = planes * style.expansion
        middle = style.middle(width, stride, stage) if style.middle else None
        if wide:
            self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = middle or nn.Conv2d(width, width, 3, stride, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(outputs)
        else:
            self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, outputs, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(outputs)
        if style.after_conv:
            self.conv2 = nn.Sequential(self.conv2, style.after_conv())
        self.gates: list[str] = []
        if style.in_norm:
            last = "bn3" if wide else "bn2"
            setattr(self, last, nn.Sequential(self.get_submodule(last), style.in_norm(outputs)))
        if style.gate and style.gate_first:
            self.add_gates(outputs, stage)
        self.joined = stride != 1 or inputs != outputs
        if self.joined:
            shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            self.add_module(style.shortcut, shortcut)
        if style.gate and not style.gate_first:
            self.add_gates(outputs, stage)

    def add_gates(self, width: int, stage: int) -> None:
        for name, module in self.style.gate(width, stage):
            self.add_module(name, module)
            self.gates.append(name)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.style.expansion == 4:
            out = self.bn3(self.conv3(F.relu(out)))
        for name in self.gates:
            gated = self.get_submodule(name)(out)
            out = gated * out if self.style.returns_gate else gated
        return F.relu(out + (self.get_submodule(self.style.shortcut)(x) if self.joined else x))


class Style:
    """What one repository does: names, order of registration, stem, and where its mechanism goes."""

    expansion: int = 1

    def __init__(self, **ways: Any) -> None:
        self.gate: Callable[[int, int], list[tuple[str, nn.Module]]] | None = None
        self.gate_first, self.returns_gate = True, False
        self.middle: Callable[[int, int, int], nn.Module] | None = None
        self.after_conv = self.in_norm = self.between = None
        self.shortcut, self.head, self.stem, self.width = "downsample", "fc", "imagenet", 1
        vars(self).update(ways)


class OfficialResNet(nn.Module):
    def __init__(self, layers: tuple[int, ...], bottleneck: bool, classes: int, style: Style) -> None:
        super().__init__()
        self.style = style
        style.expansion = 4 if bottleneck else 1
        first = 64 if len(layers) == 4 else 16
        small = style.stem == "cifar" or len(layers) == 3
        self.small = small
        self.conv1 = nn.Conv2d(3, first, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        if style.between:
            for i in (1, 2, 3):
                self.add_module(f"bam{i}", style.between(64 * 2 ** (i - 1) * style.expansion))
        inputs, self.stages = first, len(layers)
        for i, count in enumerate(layers):
            blocks = []
            for j in range(count):
                blocks.append(Block(inputs, first * 2**i, 2 if i and not j else 1, i, style))
                inputs = first * 2**i * style.expansion
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.add_module(style.head, nn.Linear(inputs, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        if not self.small:
            x = F.max_pool2d(x, 3, 2, 1)
        for i in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{i}")(x)
            if self.style.between and i < 4:
                x = self.get_submodule(f"bam{i}")(x)
        return self.get_submodule(self.style.head)(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _resnet(depth: int, classes: int, style: Style) -> OfficialResNet:
    if depth in RESNETS:
        return OfficialResNet(RESNETS[depth], depth >= 50, classes, style)
    return OfficialResNet(((depth - 2) // 6,) * 3, False, classes, style)


def jongchan_cbam(depth: int, classes: int = 1000, stem: str = "imagenet") -> nn.Module:
    return _resnet(depth, classes, Style(gate=lambda c, _: [("cbam", CBAM(c))], gate_first=False, stem=stem))


def jongchan_bam(depth: int, classes: int = 1000) -> nn.Module:
    return _resnet(depth, classes, Style(between=BAM))


def moskomule_se(depth: int, classes: int = 1000) -> nn.Module:
    return _resnet(depth, classes, Style(gate=lambda c, _: [("se", SELayer(c))]))


def eca(depth: int, kernels: tuple[int, ...], classes: int = 1000) -> nn.Module:
    return _resnet(depth, classes, Style(gate=lambda c, i: [("eca", ECALayer(c, kernels[i]))]))


def epsanet(
    depth: int, kernels: tuple[int, ...] = (3, 5, 7, 9), groups: tuple[int, ...] = (1, 4, 8, 16), width: int = 1
) -> nn.Module:
    middle = lambda c, stride, _: PSAModule(c, stride, kernels, groups)  # noqa: E731
    return _resnet(depth, 1000, Style(middle=middle, width=width))


def blog_cbam(depth: int, classes: int = 1000) -> nn.Module:
    def gate(c: int, _: int) -> list[tuple[str, nn.Module]]:
        return [("channel", ChannelAttention(c, sequential=False)), ("spatial", SpatialAttention())]

    style = Style(gate=gate, returns_gate=True, shortcut="shortcut", head="linear", stem="cifar")
    return _resnet(depth, classes, style)


def luuuyi_cbam(depth: int, classes: int = 1000) -> nn.Module:
    def gate(c: int, _: int) -> list[tuple[str, nn.Module]]:
        return [("ca", ChannelAttention(c, sequential=True)), ("sa", SpatialAttention())]

    return _resnet(depth, classes, Style(gate=gate, returns_gate=True))


def blog_se(depth: int, classes: int = 1000) -> nn.Module:
    style = Style(gate=lambda c, _: [("SE", SEBlock(c))], shortcut="shortcut", head="linear", stem="cifar")
    return _resnet(depth, classes, style)


def simam_repository(depth: int, attention: str, classes: int = 1000) -> nn.Module:
    if attention == "simam":
        return _resnet(depth, classes, Style(after_conv=SimAM))
    return _resnet(depth, classes, Style(in_norm={"se": SELayer, "cbam": CBAM}[attention]))


def triplet(depth: int, slot: str = "triplet_attention", models: bool = True, classes: int = 1000) -> nn.Module:
    names = ("ChannelGateH", "ChannelGateW", "SpatialGate") if models else ("cw", "hc", "hw")
    inner = "spatial" if models else "conv"
    gate = lambda c, _: [(slot, TripletAttention(names, inner))]  # noqa: E731
    return _resnet(depth, classes, Style(gate=gate, gate_first=False))
