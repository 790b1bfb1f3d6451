"""The schedules that are measured, built from torch's schedulers or ours by the same call."""

from types import ModuleType
from typing import Any

from benchmarks.providers import Schedule, cosine
from benchmarks.workload import LR, T_MAX


def warm_up_then_cosine(module: ModuleType, opt: Any) -> Any:
    """Training's commonest composite."""
    warm_up = module.LinearLR(opt, start_factor=0.1, total_iters=T_MAX // 10)
    rest = module.CosineAnnealingLR(opt, T_max=T_MAX)
    return module.SequentialLR(opt, [warm_up, rest], milestones=[T_MAX // 10])


def chained(module: ModuleType, opt: Any) -> Any:
    """Two factors."""
    warm_up = module.LinearLR(opt, start_factor=0.1, total_iters=T_MAX // 10)
    return module.ChainedScheduler([warm_up, module.ExponentialLR(opt, gamma=DECAY)])


def one_cycle(module: ModuleType, opt: Any) -> Any:
    """Cycles beta1 as well."""
    return module.OneCycleLR(opt, max_lr=LR, total_steps=T_MAX)


def restarts(module: ModuleType, opt: Any) -> Any:
    """Restarts at 100, 300, 700, ... steps."""
    return module.CosineAnnealingWarmRestarts(opt, T_0=100, T_mult=2)


def cyclic(module: ModuleType, opt: Any) -> Any:
    """Triangles; Adam has no momentum to cycle."""
    return module.CyclicLR(opt, base_lr=LR / 10, max_lr=LR, cycle_momentum=False)


def lambdas(module: ModuleType, opt: Any) -> Any:
    """A function of the user's; ours tabulates it 10,000 steps ahead, as is its default."""
    return module.LambdaLR(opt, lambda step: 1 / (1 + step) ** 0.5)


DECAY = 1 - 1e-7  # so slow that no measurement brings an lr to 0

SCHEDULES: dict[str, Schedule] = {
    "StepLR": lambda module, opt: module.StepLR(opt, step_size=1000, gamma=DECAY),
    "MultiStepLR": lambda module, opt: module.MultiStepLR(opt, [T_MAX // 2, T_MAX]),
    "ConstantLR": lambda module, opt: module.ConstantLR(opt, total_iters=T_MAX),
    "LinearLR": lambda module, opt: module.LinearLR(opt, total_iters=T_MAX),
    "ExponentialLR": lambda module, opt: module.ExponentialLR(opt, gamma=DECAY),
    "PolynomialLR": lambda module, opt: module.PolynomialLR(opt, total_iters=T_MAX, power=2),
    "CosineAnnealingLR": cosine,
    "CosineAnnealingWarmRestarts": restarts,
    "CyclicLR": cyclic,
    "OneCycleLR": one_cycle,
    "SequentialLR": warm_up_then_cosine,
    "ChainedScheduler": chained,
    "LambdaLR": lambdas,
    "ReduceLROnPlateau": lambda module, opt: module.ReduceLROnPlateau(opt, patience=T_MAX),
}

QUICK_SCHEDULES = ("CosineAnnealingLR", "OneCycleLR", "SequentialLR", "LambdaLR")

METRIC = {"ReduceLROnPlateau": (1.0,)}
"""What `step` is called with, where it needs anything; such a schedule is never in the launch."""
