"""GradScaler with fused=True: eager without a wait, captured by torch's own recipe, overflows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import fused_sched

from .capture import capture, new_graph
from .observe import no_sync

WIDE = torch.float64
"""Beside float32. The scaler's check on CUDA knows no bfloat16, see conftest.py, and ``unscale_``
refuses float16."""

SCALE = 2.0**10  # a power of two: scaling and unscaling are exact
OVERFLOWS = (0, 1, 4, 6)  # the first step among them
STEPS = 9

OPTIMIZERS = [
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    ("Adam", {"lr": 0.1}),
    ("AdamW", {"lr": 0.1, "weight_decay": 0.1, "amsgrad": True}),
]
over_optimizers = pytest.mark.parametrize(
    "name, kwargs", OPTIMIZERS, ids=[n for n, _ in OPTIMIZERS]
)
over_skips = pytest.mark.parametrize("advance_on_skip", [False, True], ids=["stands", "advances"])


class Scaled:
    """Two params under GradScaler; an infinite input makes a step overflow."""

    def __init__(
        self, name: str, kwargs: dict[str, Any], device: torch.device, **fuse: Any
    ) -> None:
        self.device = device
        self.weight = Parameter(torch.linspace(-1, 1, 700, device=device))
        self.wide = Parameter(torch.linspace(1, 2, 30, device=device, dtype=WIDE))
        self.input = torch.zeros((), device=device)
        self.opt = getattr(fused_sched.optim, name)([self.weight, self.wide], **kwargs, fused=True)
        self.sched = fused_sched.lr_scheduler.ExponentialLR(self.opt, gamma=0.75)
        fused_sched.fuse(self.opt, self.sched, interval=1, **fuse)
        self.scaler = torch.amp.GradScaler(device.type, init_scale=SCALE, growth_interval=10_000)

    def loss(self) -> Tensor:
        return _loss(self.weight, self.wide, self.input)

    def backward(self) -> None:
        self.scaler.scale(self.loss()).backward()

    def step(self) -> None:
        self.scaler.step(self.opt)
        self.scaler.update()

    def iteration(self, number: int) -> None:
        self.load(number)
        self.opt.zero_grad(set_to_none=True)
        self.backward()
        self.step()

    def load(self, number: int) -> None:
        self.input.fill_(float("inf") if number in OVERFLOWS else 1.0 + number)


def _loss(weight: Tensor, wide: Tensor, value: Tensor) -> Tensor:
    return (weight * value).sum() + (wide * value).sum()


class Expected:
    """Stock torch without a scaler, on the steps that do not overflow."""

    def __init__(self, name: str, kwargs: dict[str, Any], advance_on_skip: bool) -> None:
        self.weight = Parameter(torch.linspace(-1, 1, 700))
        self.wide = Parameter(torch.linspace(1, 2, 30, dtype=WIDE))
        params = [self.weight, self.wide]
        self.opt = getattr(torch.optim, name)(params, **kwargs, foreach=False)
        self.sched = torch.optim.lr_scheduler.ExponentialLR(self.opt, gamma=0.75)
        self.advance_on_skip = advance_on_skip
        self.scale = SCALE
        self.steps = 0
        self.opt._opt_called = True  # an overflow at the first step is no mistake here

    def iteration(self, number: int) -> None:
        overflow = number in OVERFLOWS
        if overflow:
            self.scale /= 2
        else:
            self.opt.zero_grad()
            _loss(self.weight, self.wide, torch.tensor(1.0 + number)).backward()
            self.opt.step()
            self.steps += 1
        if self.advance_on_skip or not overflow:
            self.sched.step()


def assert_same(ours: Scaled, expected: Expected, when: str) -> None:
    assert ours.scaler.get_scale() == expected.scale, when
    assert ours.opt.param_groups[0]["lr"] == pytest.approx(
        expected.opt.param_groups[0]["lr"], rel=1e-12
    ), when
    for name, tolerance in (("weight", 2e-6), ("wide", 1e-12)):
        mine, theirs = getattr(ours, name), getattr(expected, name)
        torch.testing.assert_close(
            mine.detach().cpu(),
            theirs.detach(),
            rtol=tolerance,
            atol=tolerance,
            msg=lambda text, name=name: f"{when}, {name}: {text}",
        )
    entry = ours.opt.state[ours.weight]
    if "step" in entry:
        assert float(entry["step"]) == expected.steps, when
    assert ours.sched.last_epoch == expected.sched.last_epoch, when


@over_skips
@over_optimizers
def test_eager_scaled_steps_equal_stock(name, kwargs, advance_on_skip, device):
    ours = Scaled(name, kwargs, device, advance_on_skip=advance_on_skip)
    expected = Expected(name, kwargs, advance_on_skip)
    for number in range(STEPS):
        ours.iteration(number)
        expected.iteration(number)
        assert_same(ours, expected, f"after step {number}")


@over_optimizers
def test_eager_scaled_steps_do_not_wait(name, kwargs, device):
    ours = Scaled(name, kwargs, device)
    expected = Expected(name, kwargs, False)
    ours.iteration(0)
    expected.iteration(0)
    with no_sync(device):
        for number in range(1, STEPS):
            ours.iteration(number)
    for number in range(1, STEPS):
        expected.iteration(number)
    assert_same(ours, expected, f"after {STEPS} steps")


@over_skips
@over_optimizers
def test_captured_scaler_equals_stock(name, kwargs, advance_on_skip, device):
    """torch's recipe: scaler.step and scaler.update inside the graph, found_inf on the device."""
    ours = Scaled(name, kwargs, device, advance_on_skip=advance_on_skip)
    expected = Expected(name, kwargs, advance_on_skip)
    for number in range(2):
        ours.iteration(number)
        expected.iteration(number)
    graph = new_graph(device)
    ours.opt.zero_grad(set_to_none=True)
    with capture(graph):
        ours.backward()
        ours.step()
    for number in range(2, STEPS):
        ours.load(number)
        graph.replay()
        expected.iteration(number)
        assert_same(ours, expected, f"after replay {number}")


@over_optimizers
def test_overflow_at_a_captured_first_step_leaves_everything(name, kwargs, device):
    ours = Scaled(name, kwargs, device)
    expected = Expected(name, kwargs, False)
    ours.opt.prepare()  # the kernels for a scaler that no step has met yet
    ours.backward()  # what cuBLAS and the scaler set up at first use
    ours.opt.zero_grad(set_to_none=True)
    graph = new_graph(device)
    with capture(graph):
        ours.backward()
        ours.step()
    for number in range(STEPS):
        ours.load(number)
        graph.replay()
        expected.iteration(number)
        assert_same(ours, expected, f"after replay {number}")


def test_unscaled_and_clipped_gradients_are_captured_too(device):
    """``scaler.unscale_`` first: then the step gets found_inf and no scale."""
    ours = Scaled("AdamW", {"lr": 0.1}, device)
    expected = Expected("AdamW", {"lr": 0.1}, False)

    def step() -> None:
        ours.scaler.unscale_(ours.opt)
        torch.nn.utils.clip_grad_norm_([ours.weight, ours.wide], 1e9, foreach=False)
        ours.step()

    for number in range(2):
        ours.load(number)
        ours.opt.zero_grad(set_to_none=True)
        ours.backward()
        step()
        expected.iteration(number)
    ours.opt.zero_grad(set_to_none=True)
    graph = new_graph(device)
    with capture(graph):
        ours.backward()
        step()
    for number in range(2, STEPS):
        ours.load(number)
        graph.replay()
        expected.iteration(number)
        assert_same(ours, expected, f"after replay {number}")
