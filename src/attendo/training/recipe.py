"""How a network is trained: one recipe for every cell of a comparison, so that only the attention differs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from attendo._errors import InvalidArgument, UnknownName
from attendo._registry import did_you_mean
from attendo.layers._checks import check_choice

# Lightning's, without its old names for these, and without transformer-engine, which knows no convolutions.
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true", "bf16-true", "16-true")


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Args:
        epochs: passes over the training images.
        batch_size: images per step; an incomplete last batch is dropped.
        optimizer: a name of timm's optimisers: "adamw", "sgd" (with Nesterov momentum) ...
        lr: learning rate after warm-up, falling to 0 along a cosine.
        weight_decay: of all weights but biases and norms.
        momentum: of SGD and its like.
        warmup: share of all steps over which the learning rate rises from 0.
        label_smoothing: share of the target spread over all classes.
        precision: one of ``PRECISIONS``: of weights and arithmetic ("true"), or of the arithmetic alone ("mixed").

    Raises:
        UnknownName: an optimiser that timm does not have.
        InvalidArgument: a value that nothing can be trained with.
    """

    epochs: int = 6
    batch_size: int = 32
    optimizer: str = "adamw"
    lr: float = 0.005
    weight_decay: float = 0.02
    momentum: float = 0.9
    warmup: float = 0.1
    label_smoothing: float = 0.0
    precision: str = "32-true"

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch_size", 2)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < low:
                raise InvalidArgument(f"recipe: {name}={value!r}; it must be an integer of at least {low}.")
        for name, low, high in (("lr", 0, 100), ("weight_decay", 0, 10), ("momentum", 0, 1), ("warmup", 0, 1)):
            if not low <= getattr(self, name) <= high:
                raise InvalidArgument(f"recipe: {name}={getattr(self, name)!r}; it must be from {low} to {high}.")
        check_choice(self.precision, "precision", PRECISIONS, "recipe")
        from timm.optim import list_optimizers

        if self.optimizer not in list_optimizers():
            raise UnknownName(
                f"optimizer {self.optimizer!r}: not known. {did_you_mean(self.optimizer, list_optimizers())}"
            )
        if not 0 <= self.label_smoothing < 1:
            raise InvalidArgument(f"recipe: label_smoothing={self.label_smoothing!r}; it must be from 0 to below 1.")

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values."""
        return asdict(self)
