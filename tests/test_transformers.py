"""The schedules of ``transformers.get_scheduler``: known, exact, without a horizon."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch.nn import Parameter

import fused_sched
from fused_sched.schedules.known_lambdas import pieces_of
from fused_sched.tables import layout
from tests.cases import PROMISE
from tests.training import named

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers", reason="the framework is not installed")

WARM_UP, TOTAL = 5, 50


class Case:
    """One call of get_scheduler."""

    def __init__(self, name: str, warm_up: int = WARM_UP, total: int = TOTAL, **specific: Any):
        self.name, self.warm_up, self.total, self.specific = name, warm_up, total, specific
        words = [name, f"{warm_up}-{total}", *(f"{k}={v}" for k, v in specific.items())]
        self.id = " ".join(words)

    def build(self, opt: Any) -> Any:
        return transformers.get_scheduler(
            self.name,
            opt,
            num_warmup_steps=self.warm_up,
            num_training_steps=self.total,
            scheduler_specific_kwargs=self.specific,
        )


SHAPES = ("linear", "cosine", "1-sqrt")
CASES = [
    *(
        Case(name, *steps)
        for name in ("constant", "constant_with_warmup", "linear", "cosine", "inverse_sqrt")
        for steps in ((0, TOTAL), (WARM_UP, TOTAL), (WARM_UP, WARM_UP))
    ),
    *(Case("cosine_with_restarts", num_cycles=cycles) for cycles in (1, 2, 3)),
    *(Case("polynomial", power=p, lr_end=end) for p in (1.0, 2.0, 0.5) for end in (1e-7, 1e-3)),
    Case("cosine_with_min_lr", min_lr_rate=0.1),
    *(
        Case("cosine_warmup_with_min_lr", min_lr_rate=0.1, warmup_lr_rate=rate)
        for rate in (None, 0.2)
    ),
    *(
        Case(
            "warmup_stable_decay",
            num_decay_steps=20,
            warmup_type=up,
            decay_type=down,
            min_lr_ratio=0.1,
        )
        for up in SHAPES
        for down in SHAPES
    ),
]


def optimizer(optim: Any) -> Any:
    groups = [{"params": [Parameter(torch.ones(1))], "lr": lr} for lr in (0.1, 0.3)]
    return optim.SGD(groups, lr=0.1)


def rates(opt: Any) -> list[float]:
    return [group["lr"] for group in opt.param_groups]


def test_every_name_that_moves_by_itself_is_a_case():
    names = {kind.value for kind in transformers.SchedulerType}
    assert names - {case.name for case in CASES} <= {"reduce_lr_on_plateau", "greedy"}


@pytest.mark.parametrize("case", **named(CASES))
def test_fused_schedule_is_exact(case, launch_engine):
    ours, stock = optimizer(fused_sched.optim), optimizer(torch.optim)
    scheduler, reference = case.build(ours), case.build(stock)
    fused_sched.fuse(ours, scheduler, interval=1)
    assert not scheduler._tabulated()
    ours.found_inf = torch.zeros(1)  # a scaler is at work: lr is read from the device
    for step in range(TOTAL + 12 if launch_engine == "native" else 12):
        for opt in (ours, stock):
            for group in opt.param_groups:
                group["params"][0].grad = torch.ones(1)
            opt.step()
        reference.step()
        assert rates(ours) == pytest.approx(rates(stock), rel=0, abs=0.3 * PROMISE), step


@pytest.mark.parametrize("case", **named(CASES))
def test_values_far_beyond_any_horizon(case):
    with fused_sched.use_engine("native"):
        opt = optimizer(fused_sched.optim)
        scheduler = case.build(opt)
        fused_sched.fuse(opt, scheduler, interval=1)
        (device_state,) = opt._ledger.mirror.host.device_states.values()
        program = device_state.buffer.programs[0]
        for epoch in (TOTAL, 10_001, 1_000_000):
            device_state.engine.advance(
                device_state.buffer, program, epoch - int(program.ops[1, layout.EPOCH])
            )
            factor = scheduler.lr_lambdas[0](epoch)
            expected = [base * factor for base in scheduler.base_lrs]
            assert device_state.buffer.record[0, 0].tolist() == pytest.approx(
                expected, rel=0, abs=1e-13
            )


def test_unknown_callables_and_arguments_are_tabulated():
    assert pieces_of(lambda epoch: 1.0) is None
    opt = optimizer(fused_sched.optim)
    known = Case("linear").build(opt).lr_lambdas[0]
    assert pieces_of(known) is not None
    known.keywords["another_argument"] = 3
    assert pieces_of(known) is None


def test_callables_that_differ_between_groups_are_tabulated():
    opt = optimizer(fused_sched.optim)
    calls = [
        Case(name).build(optimizer(torch.optim)).lr_lambdas[0] for name in ("linear", "cosine")
    ]
    scheduler = fused_sched.lr_scheduler.LambdaLR(opt, calls)
    assert scheduler._tabulated()
    fused_sched.fuse(opt, scheduler, interval=1)
    for group in opt.param_groups:
        group["params"][0].grad = torch.ones(1)
    opt.step()
    expected = [base * call(1) for base, call in zip((0.1, 0.3), calls)]
    assert rates(opt) == pytest.approx(expected, rel=PROMISE)
