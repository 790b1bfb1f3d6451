"""The loops of the textbooks, with the imports swapped: the same training as stock torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fused_sched
from tests.cases import SCHEDULERS, Build, make, plain_step
from tests.twins import assert_same

# A SequentialLR starts its children before any optimizer step.
pytestmark = [
    pytest.mark.usefixtures("short_runs"),
    pytest.mark.filterwarnings("ignore:Detected call of:UserWarning"),
]

BATCHES, EPOCHS = 3, 3


@dataclass(frozen=True)
class Library:
    optim: ModuleType
    lr_scheduler: ModuleType


STOCK = Library(torch.optim, torch.optim.lr_scheduler)
OURS = Library(fused_sched.optim, fused_sched.lr_scheduler)

MakeOptimizer = Callable[[Library, Any], Any]

OPTIMIZERS: dict[str, MakeOptimizer] = {
    "SGD": lambda lib, params: lib.optim.SGD(params, lr=0.05, momentum=0.9),
    "Adam": lambda lib, params: lib.optim.Adam(params, lr=0.05),
}


@dataclass
class Training:
    """A small net on data that are the same every time, and the lr after each step."""

    make_optimizer: MakeOptimizer
    build: Build
    lib: Library
    rates: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
        self.batches = [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(BATCHES)]
        self.validation = torch.randn(8, 4), torch.randn(8, 1)
        self.opt = self.make_optimizer(self.lib, self.net.parameters())
        self.scheduler = self.build(self.lib.lr_scheduler, self.opt)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.mse_loss(self.net(x), y)

    def train_batch(self, x: Tensor, y: Tensor) -> None:
        self.opt.zero_grad()
        self.loss(x, y).backward()
        self.opt.step()

    def note(self) -> None:
        self.rates.append(self.scheduler.get_last_lr()[0])
        self.rates.append(self.opt.param_groups[0]["lr"])

    @torch.no_grad()
    def validate(self) -> Tensor:
        return self.loss(*self.validation)


def per_batch(training: Training) -> None:
    for _ in range(EPOCHS):
        for x, y in training.batches:
            training.train_batch(x, y)
            training.scheduler.step()
            training.note()


def per_epoch(training: Training) -> None:
    for _ in range(EPOCHS):
        for x, y in training.batches:
            training.train_batch(x, y)
        training.scheduler.step()
        training.note()


def on_validation(metric: Callable[[Tensor], Any]) -> Callable[[Training], None]:
    def loop(training: Training) -> None:
        for _ in range(EPOCHS + 3):
            for x, y in training.batches:
                training.train_batch(x, y)
            training.scheduler.step(metric(training.validate()))
            training.note()

    return loop


def assert_same_training(ours: Training, stock: Training) -> None:
    assert_same(ours.rates, stock.rates)
    assert_same(ours.scheduler.state_dict(), stock.scheduler.state_dict())
    torch.testing.assert_close(list(ours.net.parameters()), list(stock.net.parameters()))


ONE_OF_EACH = list({c.name: c for c in reversed(SCHEDULERS) if c.advance is plain_step}.values())

optimizers = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
schedulers = pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.id)


@optimizers
@schedulers
@pytest.mark.parametrize("loop", [per_batch, per_epoch])
def test_textbook_loop_with_swapped_imports(engine, loop, case, optimizer):
    stock, ours = (Training(optimizer, case.build, lib) for lib in (STOCK, OURS))
    for training in (stock, ours):
        loop(training)
    assert_same_training(ours, stock)


@optimizers
@schedulers
@pytest.mark.parametrize("loop", [per_batch, per_epoch])
def test_textbook_loop_with_one_line_more(engine, loop, case, optimizer):
    stock, ours = (Training(optimizer, case.build, lib) for lib in (STOCK, OURS))
    fused_sched.fuse(ours.opt, ours.scheduler)
    for training in (stock, ours):
        loop(training)
    assert_same_training(ours, stock)


METRICS = {"float": float, "tensor": lambda loss: loss, "one-element": lambda loss: loss.view(1)}


@optimizers
@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_plateau_fed_with_a_validation_loss(engine, metric, optimizer):
    build = make("ReduceLROnPlateau", factor=0.5, patience=0, threshold=0.3)
    stock, ours = (Training(optimizer, build, lib) for lib in (STOCK, OURS))
    for training in (stock, ours):
        on_validation(metric)(training)
    assert len(set(stock.rates)) > 1
    assert_same_training(ours, stock)
