"""Real networks of several libraries, without weights, and a few as users write them: what attention is inserted into.

Each is small enough to train a step on one core: images of 64 x 64, or 96 x 96 where a network needs them.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block whose activation is one module used twice, as users write it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.conv1(x)))
        return self.act(x + self.bn2(self.conv2(y)))


class Residual(nn.Module):
    """A small residual network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(Block(32), Block(32))
        self.down = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.last = Block(64)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.down(self.blocks(self.stem(x))))
        return self.fc(x.mean((2, 3)))


class Inlined(nn.Module):
    """Residual sums written out in one forward, with functional activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 32, 3, 1, 1), nn.BatchNorm2d(32)
        self.conv3, self.bn3 = nn.Conv2d(32, 32, 3, 1, 1), nn.BatchNorm2d(32)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(x + self.bn2(self.conv2(x)))
        x = x + self.bn3(self.conv3(x))
        return self.fc(torch.relu(x).mean((2, 3)))


class Plain(nn.Module):
    """The network of many tutorials: no blocks, one pool used twice, functional activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 5, padding=2), nn.Conv2d(16, 32, 5, padding=2)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc = nn.Linear(32 * 16 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.conv1(x)))
        x = self.pool(torch.relu(self.conv2(x)))
        return self.fc(x.flatten(1))


class UNet(nn.Module):
    """A U-Net as in its paper, two levels deep."""

    def __init__(self) -> None:
        super().__init__()
        self.inc, self.down1, self.down2 = self.double(3, 16), self.double(16, 32), self.double(32, 64)
        self.pool = nn.MaxPool2d(2)
        self.up1, self.up2 = nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)
        self.dec1, self.dec2 = self.double(64, 32), self.double(32, 16)
        self.outc = nn.Conv2d(16, 2, 1)

    @staticmethod
    def double(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        a = self.inc(x)
        b = self.down1(self.pool(a))
        c = self.down2(self.pool(b))
        b = self.dec1(torch.cat((self.up1(c), b), 1))
        a = self.dec2(torch.cat((self.up2(b), a), 1))
        return self.outc(a)


class DenseBlock(nn.ModuleDict):
    """A container whose forward runs through its children, as torchvision's and timm's dense blocks do."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.values():
            x = torch.cat((x, layer(x)), 1)
        return x


class Dense(nn.Module):
    """A small densely connected network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.dense1 = DenseBlock({"a": self.layer(16), "b": self.layer(32)})
        self.transition = nn.Conv2d(48, 32, 1, stride=2)
        self.dense2 = DenseBlock({"a": self.layer(32), "b": self.layer(48)})
        self.fc = nn.Linear(64, 10)

    @staticmethod
    def layer(inputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, 32, 1), nn.ReLU(), nn.Conv2d(32, 16, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.dense2(self.transition(self.dense1(self.stem(x))))
        return self.fc(x.mean((2, 3)))


@dataclass(frozen=True)
class Network:
    """A network, how many sites "auto" and "stages" find in it, and the side of its images.

    The numbers follow from the libraries' sources: residual blocks, blocks without a sum, resolutions.
    """

    name: str
    build: Callable[[], nn.Module]
    auto: int
    stages: int
    side: int = 64


def _torchvision(name: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision

        with warnings.catch_warnings():  # torchvision says that the default initialisation of its Inceptions is slow
            warnings.simplefilter("ignore", FutureWarning)
            return torchvision.models.get_model(name, weights=None, **settings)

    return build


def _timm(name: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, **settings)

    return build


def _yolo(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp())  # it writes its settings when it is imported
        os.environ.setdefault("YOLO_AUTOINSTALL", "false")
        tasks = pytest.importorskip(
            "ultralytics.nn.tasks", reason="Ultralytics is not installed: pip install ultralytics"
        )
        model: nn.Module = tasks.DetectionModel(f"{name}.yaml", verbose=False)
        return model

    return build


def _smp(name: str, encoder: str = "resnet18") -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        smp = pytest.importorskip(
            "segmentation_models_pytorch",
            reason="segmentation-models-pytorch is not installed: pip install segmentation-models-pytorch",
        )
        model: nn.Module = getattr(smp, name)(encoder, encoder_weights=None)
        return model

    return build


NETWORKS = [
    Network("torchvision resnet18", _torchvision("resnet18"), 8, 4),
    Network("torchvision resnext50_32x4d", _torchvision("resnext50_32x4d"), 16, 4),
    Network("torchvision wide_resnet50_2", _torchvision("wide_resnet50_2"), 16, 4),
    Network("torchvision regnet_y_400mf", _torchvision("regnet_y_400mf"), 16, 4),
    Network("torchvision mobilenet_v2", _torchvision("mobilenet_v2"), 17, 5),
    Network("torchvision mobilenet_v3_small", _torchvision("mobilenet_v3_small"), 11, 4),
    Network("torchvision efficientnet_b0", _torchvision("efficientnet_b0"), 16, 5),
    Network("torchvision convnext_tiny", _torchvision("convnext_tiny"), 18, 4),
    Network("torchvision densenet121", _torchvision("densenet121"), 58, 4),
    Network("torchvision vgg11_bn", _torchvision("vgg11_bn"), 5, 5),
    Network("torchvision googlenet", _torchvision("googlenet", init_weights=False), 9, 3),
    Network(
        "torchvision inception_v3", _torchvision("inception_v3", init_weights=False, aux_logits=False), 11, 3, side=128
    ),
    Network("torchvision squeezenet1_1", _torchvision("squeezenet1_1"), 8, 3),
    Network("torchvision shufflenet_v2_x0_5", _torchvision("shufflenet_v2_x0_5"), 16, 3),
    Network(
        "torchvision lraspp_mobilenet_v3_large", _torchvision("lraspp_mobilenet_v3_large", weights_backbone=None), 15, 4
    ),
    Network("timm resnet18d", _timm("resnet18d"), 8, 4),
    Network("timm res2net50_26w_4s", _timm("res2net50_26w_4s"), 16, 4),
    Network("timm efficientnet_b0", _timm("efficientnet_b0"), 16, 5),
    Network("timm mobilenetv3_small_100", _timm("mobilenetv3_small_100"), 11, 4),
    Network("timm regnetx_002", _timm("regnetx_002"), 13, 4),
    Network("timm convnext_atto", _timm("convnext_atto"), 12, 4),
    Network("timm repvgg_a0", _timm("repvgg_a0"), 22, 5),
    Network("timm ghostnet_100", _timm("ghostnet_100"), 16, 5),
    Network("timm hrnet_w18_small", _timm("hrnet_w18_small"), 23, 14),
    Network("timm dla34", _timm("dla34"), 12, 4),
    Network("timm cspresnet50", _timm("cspresnet50"), 13, 4),
    Network("timm ese_vovnet19b_dw", _timm("ese_vovnet19b_dw"), 6, 5),
    Network("timm nf_regnet_b0", _timm("nf_regnet_b0"), 16, 4),
    Network("timm densenet121", _timm("densenet121"), 58, 4),
    Network("timm features_only resnet18", _timm("resnet18", features_only=True), 8, 4),
    Network("ultralytics yolov8n", _yolo("yolov8n"), 11, 8),
    Network("ultralytics yolo11n", _yolo("yolo11n"), 14, 8),
    Network("smp Unet", _smp("Unet"), 13, 9),
    Network("smp Unet vgg11", _smp("Unet", "vgg11"), 11, 9),
    Network("smp FPN", _smp("FPN"), 9, 5),
    Network("smp DeepLabV3Plus", _smp("DeepLabV3Plus"), 11, 4),
    Network("own residual", Residual, 3, 2),
    Network("own inlined", Inlined, 2, 1),
    Network("own plain", Plain, 2, 2),
    Network("own dense", Dense, 4, 2),
    Network("own U-Net", UNet, 5, 5),
]


@cache
def _built(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = next(network for network in NETWORKS if network.name == name).build()
    for module in model.modules():  # fresh statistics would hide what reads them
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
            nn.init.uniform_(module.weight, 0.5, 1.0)  # timm starts the last norm of a block at 0
    for name, parameter in model.named_parameters():
        if name.endswith("gain"):  # as do its networks without norms
            nn.init.constant_(parameter, 0.5)
    return model


def network(name: str) -> nn.Module:
    """Build a network by its name in the list, or copy the one built before, in eval mode."""
    import copy

    return copy.deepcopy(_built(name)).eval()
