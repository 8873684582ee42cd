"""A pretrained CIFAR-10 ResNet-20, fine-tuned with and without inserted attention: same steps, images and order.

    python benchmarks/insertion_resnet20.py --weights resnet20-12fca82f.th --data cifar10/

The weights are Yerlan Idelbayev's (https://github.com/akamaster/pytorch_resnet_cifar10), trained on CIFAR-10 with
ImageNet's normalisation. The data are parquet files with columns img and label, train-*.parquet and test-*.parquet.

The comparison is small on purpose (200 steps, one seed, a few minutes on two cores): it shows that insertion costs no
accuracy and that training goes on from there, not that attention helps. A difference smaller than the spread over seeds
is none.
"""

from __future__ import annotations

import argparse
import copy
import io
import statistics
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from attendo.insertion import attention_parameters, insert

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Shortcut(nn.Module):
    """Option A of He et al.: every second pixel, new channels filled with zeros."""

    def forward(self, x: Tensor) -> Tensor:
        """Halve the sides and double the channels: (N, C, H, W) -> (N, 2C, H/2, W/2)."""
        channels = x.shape[1]
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, channels // 2, channels // 2))


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = Shortcut() if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


class ResNet20(nn.Module):
    """The CIFAR ResNet of He et al., 20 layers deep; its names are those of the published weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1), Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, 32, 32) -> logits (N, 10)."""
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def load_network(weights: Path) -> ResNet20:
    """Build the network with published weights, which were saved from a DataParallel wrapper."""
    state = torch.load(weights, weights_only=True, map_location="cpu")["state_dict"]
    model = ResNet20()
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return model.eval().to(memory_format=torch.channels_last)


def load_images(folder: Path, split: str, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Read a split: images (N, 3, 32, 32) in uint8, labels (N,)."""
    (path,) = folder.glob(f"{split}-*.parquet")
    table = pq.read_table(path, columns=["img", "label"]).slice(0, limit)
    arrays = [np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in table["img"].to_pylist()]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2), torch.tensor(table["label"].to_pylist())


def normalise(images: Tensor) -> Tensor:
    """Make what the network was trained on: (N, 3, 32, 32) uint8 -> float32, channels_last (a third less time here)."""
    scaled = (images.float() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    return scaled.to(memory_format=torch.channels_last)


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Return the predicted classes (N,)."""
    return torch.cat([model.eval()(normalise(batch)).argmax(1) for batch in images.split(500)])


def fine_tune(model: nn.Module, data: tuple[Tensor, Tensor], args: argparse.Namespace, seed: int) -> None:
    """SGD with a cosine schedule; order and augmentation depend on the seed alone."""
    images, labels = data
    generator = torch.Generator().manual_seed(seed)
    attention = attention_parameters(model)
    backbone = [p for p in model.parameters() if not any(p is a for a in attention)]
    groups = [{"params": backbone, "lr": args.lr}] + (
        [{"params": attention, "lr": args.attention_lr}] if attention else []
    )
    optimiser = torch.optim.SGD(groups, momentum=0.9, weight_decay=1e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, args.steps)
    model.train()
    for _ in range(args.steps):
        chosen = torch.randint(len(images), (args.batch,), generator=generator)
        batch = F.pad(normalise(images[chosen]), (4, 4, 4, 4))
        top, left = torch.randint(9, (2,), generator=generator).tolist()
        batch = batch[:, :, top : top + 32, left : left + 32]
        flip = torch.rand(len(batch), generator=generator) < 0.5
        batch = torch.where(flip[:, None, None, None], batch.flip(3), batch)
        loss = F.cross_entropy(model(batch), labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--attention", nargs="*", default=["se", "cbam"])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--attention-lr", type=float, default=0.01)
    parser.add_argument("--train-images", type=int, default=20_000)
    parser.add_argument("--test-images", type=int, default=5_000)
    args = parser.parse_args()

    begin = time.perf_counter()
    plain = load_network(args.weights)
    images, labels = load_images(args.data, "train", args.train_images)
    test_images, test_labels = load_images(args.data, "test", args.test_images)
    accuracy = lambda predicted: 100 * (predicted == test_labels).float().mean().item()  # noqa: E731
    base = predict(plain, test_images)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {len(test_labels)} test images")
    print(
        f"{args.steps} steps of {args.batch} images, {args.seeds} seeds, lr {args.lr} (attention {args.attention_lr})"
    )
    print(f"as published, before any step: {accuracy(base):.2f} %\n")
    print(
        f"{'attention':<10}{'parameters':>12}{'inserted':>20}{'fine-tuned, per seed (%)':>34}{'mean':>8}{'- none':>8}"
    )
    none: list[float] = []
    for name in [None, *args.attention]:
        results, same, added = [], "", 0
        for seed in range(args.seeds):
            model = copy.deepcopy(plain)
            if name is not None:
                torch.manual_seed(seed)
                added = insert(model, name, input_size=(3, 32, 32), **settings(name)).parameters
                if seed == 0:
                    differ = int((predict(model, test_images) != base).sum())
                    same = "same predictions" if differ == 0 else f"{differ} DIFFER"
            fine_tune(model, (images, labels), args, seed)
            results.append(accuracy(predict(model, test_images)))
        none = none or results
        gain = statistics.mean(a - b for a, b in zip(results, none, strict=True))
        each = " ".join(f"{result:.2f}" for result in results)
        print(
            f"{name or 'none':<10}{added:>12,}{same:>20}{each:>34}{statistics.mean(results):>8.2f}{gain:>+8.2f}",
            flush=True,
        )
    print(
        f"\n{time.perf_counter() - begin:.0f} s. 0.2 points are {len(test_labels) // 500} images; a difference below "
        f"the spread over seeds (raise --seeds to see it) is none."
    )


def settings(attention: str) -> dict[str, object]:
    """What a mechanism needs on maps of 16 to 64 channels."""
    narrow = {"se", "static", "cbam", "cbam_channel", "scse", "bam", "fca"}
    return {"reduction": 4} if attention in narrow else {"reduction": 8} if attention == "gc" else {}


if __name__ == "__main__":
    main()
