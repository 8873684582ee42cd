"""A network being trained: loss, optimiser, schedule, and the record of its epochs."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from attendo._errors import TrainingError
from attendo.training.recipe import Recipe

CHECK_EVERY = 50  # steps between looks at the loss; each look waits for the device


class Classifier(LightningModule):
    """A network being trained.

    Args:
        model: (N, C, H, W) -> (N, classes).
        recipe: how.
        seed: decides what dropout and drop-path draw in each step.
        steps: optimiser steps of the whole training.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, seed: int, steps: int) -> None:
        super().__init__()
        self.model, self.recipe, self.seed, self.steps = model, recipe, seed, steps
        self.history: list[dict[str, float]] = []
        self.seconds = 0.0
        self._loss_sum, self._batches = torch.zeros(()), 0
        self._validation = torch.zeros(3, dtype=torch.float64)  # summed loss, right answers, images

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.model(x)

    def configure_optimizers(self) -> Any:
        """Return timm's optimiser and its cosine schedule, stepped per batch."""
        r = self.recipe
        optimizer = create_optimizer_v2(
            self.model, opt=r.optimizer, lr=r.lr, weight_decay=r.weight_decay, momentum=r.momentum
        )
        schedule = CosineLRScheduler(
            optimizer,
            t_initial=self.steps,
            warmup_t=round(r.warmup * self.steps),
            warmup_prefix=True,
            t_in_epochs=False,
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Set the learning rate of the next step."""
        scheduler.step_update(self.global_step)

    def on_train_epoch_start(self) -> None:
        """Start the clock and the running loss."""
        self._started = time.perf_counter()
        self._loss_sum, self._batches = torch.zeros((), device=self.device), 0

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Return the loss of one batch.

        Raises:
            TrainingError: the loss is no longer a finite number.
        """
        torch.manual_seed(self.seed * 1_000_003 + self.global_step)  # a resumed run draws what this one draws
        images, labels = batch
        images = images.contiguous(memory_format=torch.channels_last)
        loss = F.cross_entropy(self.model(images), labels, label_smoothing=self.recipe.label_smoothing)
        self._loss_sum += loss.detach()
        self._batches += 1
        if index % CHECK_EVERY == 0:
            self._check(self._loss_sum)
        return loss

    def _check(self, loss_sum: Tensor) -> None:
        if not torch.isfinite(loss_sum):
            raise TrainingError(
                f"training: the loss became {loss_sum.item()} in epoch {self.current_epoch}, step {self.global_step}, "
                f"with lr={self.recipe.lr}, precision={self.recipe.precision}; such a network cannot recover. "
                f"Lower --lr, or train in 32-true."
            )

    def on_validation_epoch_start(self) -> None:
        """Start counting."""
        self._validation = torch.zeros(3, dtype=torch.float64)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Count loss and right answers of one batch."""
        images, labels = batch
        images = images.contiguous(memory_format=torch.channels_last)
        logits = self.model(images).float()
        loss = F.cross_entropy(logits, labels, reduction="sum").item()
        right = (logits.argmax(1) == labels).sum().item()
        self._validation += torch.tensor([loss, right, len(labels)], dtype=torch.float64)

    def on_validation_epoch_end(self) -> None:
        """Write the epoch down."""
        if self.trainer.sanity_checking:
            return
        self._check(self._loss_sum)
        loss, right, count = self._validation.tolist()
        self.history.append(
            {
                "epoch": self.current_epoch,
                "train_loss": self._loss_sum.item() / self._batches,
                "validation_loss": loss / count,
                "validation_accuracy": right / count,
            }
        )
        self.seconds += time.perf_counter() - self._started

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the record with the weights."""
        checkpoint["attendo"] = {"history": self.history, "seconds": self.seconds}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the record up again."""
        self.history = list(checkpoint["attendo"]["history"])
        self.seconds = float(checkpoint["attendo"]["seconds"])
