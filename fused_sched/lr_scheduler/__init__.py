"""The schedulers: torch.optim.lr_scheduler's names (and SWALR), evaluated on the device."""

from fused_sched.stock import LRScheduler

from .composite import ChainedScheduler, SequentialLR
from .constant import ConstantLR
from .cosine_annealing import CosineAnnealingLR
from .cyclic import CyclicLR
from .exponential import ExponentialLR
from .lambda_lr import LambdaLR, MultiplicativeLR
from .linear import LinearLR
from .multi_step import MultiStepLR
from .one_cycle import OneCycleLR
from .polynomial import PolynomialLR
from .reduce_on_plateau import ReduceLROnPlateau
from .step import StepLR
from .swa import SWALR
from .warm_restarts import CosineAnnealingWarmRestarts

__all__ = [
    "SWALR",
    "ChainedScheduler",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "MultiplicativeLR",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
]
