"""Training and evaluation: Lightning's loop with timm's optimisers and schedules, resumable to the bit."""

from attendo.training.engine import Trained, fit
from attendo.training.evaluation import Evaluation, evaluate, predict
from attendo.training.recipe import Recipe

__all__ = ["Evaluation", "Recipe", "Trained", "evaluate", "fit", "predict"]
