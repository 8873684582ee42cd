"""Options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass

from cyclopts import Parameter

from attendo.training.recipe import Recipe


@Parameter(name="*")
@dataclass(frozen=True)
class RecipeOptions:
    """How networks are trained."""

    epochs: int = Recipe.epochs
    "Passes over the training images."
    batch_size: int = Recipe.batch_size
    "Images per step."
    optimizer: str = Recipe.optimizer
    "A name of timm's optimisers: adamw, sgd (with Nesterov momentum) ..."
    lr: float = Recipe.lr
    "Learning rate after warm-up."
    weight_decay: float = Recipe.weight_decay
    "Weight decay of all weights but biases and norms."
    label_smoothing: float = Recipe.label_smoothing
    "Share of the target spread over all classes."
    precision: str = Recipe.precision
    "32-true, bf16-mixed, 16-mixed, 64-true, bf16-true or 16-true."

    def recipe(self) -> Recipe:
        """Return the recipe, checked."""
        return Recipe(
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            lr=self.lr,
            weight_decay=self.weight_decay,
            label_smoothing=self.label_smoothing,
            precision=self.precision,
        )
