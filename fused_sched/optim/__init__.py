"""The optimizers: torch.optim's names, one launch per step."""

from .adam import Adam, AdamW
from .base import FusedOptimizer
from .sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "FusedOptimizer"]
