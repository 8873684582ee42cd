"""Train a network so that it can be killed at any moment and still end with the same numbers."""

from __future__ import annotations

import logging
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch import nn

from attendo._errors import DataError, TrainingError
from attendo.training.classifier import Classifier
from attendo.training.loading import plain_loader, training_loader
from attendo.training.recipe import Recipe

if TYPE_CHECKING:
    from attendo.data import Images

Progress = Callable[[int, int], None]  # steps done, steps in all


@dataclass(frozen=True)
class Trained:
    """What training left: one record per epoch, and the seconds spent in epochs (validation included)."""

    history: tuple[dict[str, float], ...]
    seconds: float


class _Batches(LightningDataModule):
    """The batches of one run. The first epoch after a resume is told to the sampler here.

    Lightning tells a sampler its epoch only from the second epoch of a process on.
    """

    def __init__(self, images: Images, recipe: Recipe, seed: int, workers: int) -> None:
        super().__init__()
        self.images, self.recipe, self.seed, self.workers = images, recipe, seed, workers

    def train_dataloader(self) -> Any:
        progress: Any = self.trainer.fit_loop.epoch_progress if self.trainer else None
        return training_loader(
            self.images.train,
            self.images.transform(training=True),
            batch_size=self.recipe.batch_size,
            seed=self.seed,
            epoch=progress.current.processed if progress else 0,
            workers=self.workers,
        )

    def val_dataloader(self) -> Any:
        return plain_loader(
            self.images.validation,
            self.images.transform(training=False),
            batch_size=2 * self.recipe.batch_size,
            workers=self.workers,
        )


class _Keeper(Callback):
    """Writes the state after every epoch, whole or not at all, and tells the caller how far training is."""

    def __init__(self, path: Path, steps: int, progress: Progress | None) -> None:
        self.path, self.steps, self.progress = path, steps, progress

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        trainer.save_checkpoint(temporary)
        temporary.replace(self.path)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.progress:
            self.progress(trainer.global_step, self.steps)


def fit(
    model: nn.Module,
    images: Images,
    recipe: Recipe,
    *,
    seed: int,
    directory: Path,
    workers: int = 0,
    progress: Progress | None = None,
) -> Trained:
    """Train a network in place, or take up where a killed run left off.

    After every epoch the state is written to ``last.ckpt`` in ``directory``; a run that finds it there goes on from it
    and ends with the same weights, bit for bit on the same machine, as one that was never disturbed.

    Args:
        model: (N, 3, H, W) -> (N, classes); trained in place, left on the CPU in evaluation mode.
        images: what to train and validate on.
        recipe: how.
        seed: decides the order of the images, their augmentation and what dropout draws.
        directory: where the state of training is kept.
        workers: processes that read and transform images.
        progress: called with (steps done, steps in all) after every step.

    Raises:
        DataError: fewer training images than one batch.
        TrainingError: the loss is no longer finite, or the state on disk cannot be read.
    """
    per_epoch = len(images.train) // recipe.batch_size
    if per_epoch == 0:
        raise DataError(
            f"data {images.name!r}: {len(images.train)} training images do not fill one batch of {recipe.batch_size}; "
            f"incomplete batches are dropped. Pass a smaller --batch-size or a larger --limit."
        )
    steps = per_epoch * recipe.epochs
    directory.mkdir(parents=True, exist_ok=True)
    model.to(
        memory_format=torch.channels_last
    )  # the faster layout of convolutions: 1.4 times on resnet8, CPU, one thread, November 2026
    module = Classifier(model.train(), recipe, seed, steps)
    last = directory / "last.ckpt"
    with _quiet(), _deterministic():
        trainer = Trainer(
            max_epochs=recipe.epochs,
            accelerator="auto",
            devices=1,
            precision=recipe.precision,  # type: ignore[arg-type]
            callbacks=[_Keeper(last, steps, progress)],
            enable_checkpointing=False,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=directory,
        )
        try:
            trainer.fit(
                module,
                datamodule=_Batches(images, recipe, seed, workers),
                ckpt_path=str(last) if last.exists() else None,
                weights_only=True,
            )
        except (pickle.UnpicklingError, EOFError, KeyError) as error:
            raise TrainingError(
                f"training: the state in {last} cannot be read ({error}); it is damaged or of another program. "
                f"Delete the file to train again from the start."
            ) from error
    if trainer.interrupted:
        raise KeyboardInterrupt
    model.cpu().to(memory_format=torch.contiguous_format).eval()
    return Trained(tuple(module.history), module.seconds)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning from chatting about devices, workers and its services."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning_utilities")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings(
                "ignore", message=".*The number of training batches .* is smaller than the logging.*"
            )
            warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")  # Lightning calls torch's old name
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _deterministic() -> Iterator[None]:
    """On a GPU, choose algorithms that repeat. On a CPU torch repeats anyway, and would only fill memory twice."""
    if not torch.cuda.is_available():
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
