"""A small net with an optimizer and a scheduler: the same for stock torch and for ours."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import fused_sched
from tests.cases import PROMISE

from .capture import capture, new_graph, side_stream

STEPS = 1000 if torch.cuda.is_available() else 8
"""Replays of a test; the interpreter takes 50 ms for each."""

WARM_UP = 3
BATCHES = 7

Schedule = Callable[[ModuleType, Any], Any]


@dataclass(frozen=True)
class Pair:
    """An optimizer and a scheduler; ``schedule(module, optimizer)`` builds the latter."""

    id: str
    optimizer: str
    kwargs: dict[str, Any]
    schedule: Schedule


def one_cycle(module: ModuleType, opt: Any) -> Any:
    return module.OneCycleLR(opt, max_lr=0.02, total_steps=STEPS + 2 * WARM_UP)


def cosine(module: ModuleType, opt: Any) -> Any:
    return module.CosineAnnealingLR(opt, T_max=STEPS + 2 * WARM_UP, eta_min=1e-4)


def warmup_then_decay(step: int) -> float:
    return min(1.0, (step + 1) / 10) * 0.995**step


def lambdas(module: ModuleType, opt: Any) -> Any:
    return module.LambdaLR(opt, warmup_then_decay)


def warmup_then_cosine(module: ModuleType, opt: Any) -> Any:
    warmup = module.LinearLR(opt, start_factor=0.1, total_iters=7)
    return module.SequentialLR(opt, [warmup, module.CosineAnnealingLR(opt, T_max=STEPS)], [7])


def exponential(module: ModuleType, opt: Any) -> Any:
    return module.ExponentialLR(opt, gamma=0.999)


_NESTEROV = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}

ADAMW_ONE_CYCLE = Pair("AdamW-OneCycleLR", "AdamW", {"weight_decay": 0.05}, one_cycle)
SGD_COSINE = Pair("SGD-CosineAnnealingLR", "SGD", _NESTEROV, cosine)
ADAMW_COSINE = Pair("AdamW-CosineAnnealingLR", "AdamW", {"lr": 0.01}, cosine)
PAIRS = [
    ADAMW_ONE_CYCLE,
    SGD_COSINE,
    Pair("AdamW-LambdaLR", "AdamW", {"lr": 0.01}, lambdas),
    Pair("SGD-SequentialLR", "SGD", {"lr": 0.05, "momentum": 0.9}, warmup_then_cosine),
    Pair("Adam-ExponentialLR", "Adam", {"lr": 0.01, "amsgrad": True}, exponential),
]


def _net(device: torch.device, dtype: torch.dtype) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(12, 33), nn.Tanh(), nn.Linear(33, 5))
    return net.to(device, dtype)


def _batches(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(BATCHES, 16, 12, generator=generator, dtype=torch.float64)
    targets = torch.randn(BATCHES, 16, 5, generator=generator, dtype=torch.float64)
    return inputs.to(device, dtype), targets.to(device, dtype)


class Training:
    """The net, its data, and one library's pair. ``x`` and ``y`` are what a graph reads."""

    def __init__(
        self, pair: Pair, library: Any, device: torch.device, dtype: torch.dtype, **kwargs: Any
    ) -> None:
        optim, schedulers = (
            (fused_sched.optim, fused_sched.lr_scheduler)
            if library is fused_sched
            else (torch.optim, torch.optim.lr_scheduler)
        )
        self.device = device
        self.net = _net(device, dtype)
        self.inputs, self.targets = _batches(device, dtype)
        self.x, self.y = self.inputs[0].clone(), self.targets[0].clone()
        optimizer = getattr(optim, pair.optimizer)
        self.opt = optimizer(self.net.parameters(), **pair.kwargs | kwargs)
        with warnings.catch_warnings():  # SequentialLR steps its children before any step
            warnings.simplefilter("ignore", UserWarning)
            self.sched = pair.schedule(schedulers, self.opt)
        self.done = 0
        self.peaks: list[float] = []

    def load(self) -> None:
        """The next batch, into ``x`` and ``y``."""
        self.x.copy_(self.inputs[self.done % BATCHES])
        self.y.copy_(self.targets[self.done % BATCHES])
        self.done += 1

    def backward(self) -> None:
        mse_loss(self.net(self.x), self.y).backward()

    def iteration(self, scheduler_step: bool = True) -> None:
        """One eager iteration."""
        self.load()
        self.opt.zero_grad(set_to_none=True)
        self.backward()
        self.opt.step()
        if scheduler_step:
            self.sched.step()

    def warm_up(self, scheduler_step: bool = True) -> None:
        """PyTorch's recipe: a few eager iterations on a side stream."""
        with side_stream(self.device):
            for _ in range(WARM_UP):
                self.iteration(scheduler_step)

    def capture(self, scheduler_step: bool = False) -> Any:
        """A graph of forward, backward and ``opt.step()``, gradients in the graph's own memory."""
        graph = new_graph(self.device)
        self.opt.zero_grad(set_to_none=True)
        with capture(graph):
            self.backward()
            self.opt.step()
            if scheduler_step:
                self.sched.step()
        return graph

    def replay(self, graph: Any) -> None:
        self.load()
        graph.replay()

    # -- what came of it -------------------------------------------------------------------------

    def values(self) -> list[float]:
        """Every scheduled hyperparameter of every group, as a logger reads it."""
        groups = [group.copy() for group in self.opt.param_groups]  # one read of the device each
        return [
            float(value)
            for group in groups
            for value in (group["lr"], group.get("momentum", 0.0), *group.get("betas", ()))
        ]

    def params(self) -> Tensor:
        return torch.cat([p.detach().double().flatten() for p in self.net.parameters()])

    def steps(self) -> set[float]:
        """The step counts in ``opt.state``; empty for SGD."""
        state = self.opt.state
        return {float(state[p]["step"]) for p in state if "step" in state[p]}


def train_both(
    pair: Pair, device: torch.device, dtype: torch.dtype = torch.float64, **kwargs: Any
) -> tuple[Training, Training]:
    """(ours, stock)."""
    ours = Training(pair, fused_sched, device, dtype, **kwargs)
    return ours, Training(pair, torch, device, dtype, **kwargs)


def assert_same_values(ours: Training, stock: Training, when: object) -> None:
    """The promise: every scheduled value to 1e-12 of its peak (so far: that is stricter)."""
    mine, theirs = ours.values(), stock.values()
    stock.peaks = [max(p, abs(v)) for p, v in zip(stock.peaks or theirs, theirs, strict=True)]
    for number, (a, b, peak) in enumerate(zip(mine, theirs, stock.peaks, strict=True)):
        assert abs(a - b) <= PROMISE * peak, (
            f"{when}: value {number} is {a!r}, torch has {b!r}: off by {abs(a - b) / peak:.3g} of "
            f"the peak {peak!r}"
        )


# Per dtype: |ours - stock| / (1 + |stock|) of a param. After 1,000 steps of any pair stock torch's
# own forms (for-loop and fused, float64 and float32, on a CPU) differ by 4e-14 and 2e-6.
DRIFT = {torch.float64: 1e-12, torch.float32: 2e-5}


def assert_same_params(ours: Training, stock: Training, dtype: torch.dtype, when: object) -> None:
    mine, theirs = ours.params(), stock.params()
    worst = float(((mine - theirs).abs() / (1 + theirs.abs())).max())
    assert worst <= DRIFT[dtype], f"{when}: params differ by {worst:.3g}"
