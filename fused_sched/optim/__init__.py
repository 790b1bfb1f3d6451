"""The optimizers: torch.optim's names, one launch per step."""

from fused_sched.runtime.base import FusedOptimizer

from .adam import Adam, AdamW
from .sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "FusedOptimizer"]
