"""GoogLeNet, which timm does not have: torchvision's, with the arguments and the classifier that timm's networks have.

Paper: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, https://arxiv.org/abs/1409.4842
Code:  torchvision's, without the two auxiliary classifiers.
"""

from __future__ import annotations

from torch import nn
from torchvision.models import GoogLeNet


class TimmGoogLeNet(GoogLeNet):
    """torchvision's GoogLeNet with timm's ``in_chans``, ``num_classes`` and ``reset_classifier``."""

    num_features = 1024

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.2) -> None:
        super().__init__(num_classes=num_classes, aux_logits=False, init_weights=False, dropout=drop_rate)
        self.num_classes, self.in_chans = num_classes, in_chans
        if in_chans != 3:
            old = self.conv1.conv
            self.conv1.conv = nn.Conv2d(in_chans, old.out_channels, 7, stride=2, padding=3, bias=False)
        self.fc: nn.Module
        if num_classes == 0:
            self.fc = nn.Identity()

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a fresh one; 0 classes leave the 1024 features."""
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()


def googlenet(num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.2) -> TimmGoogLeNet:
    """Build the network; ImageNet's size of image is 224."""
    return TimmGoogLeNet(num_classes, in_chans, drop_rate)
