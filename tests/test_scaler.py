"""GradScaler: who divides the gradients, and what stands still when they overflow."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.amp import GradScaler

import fused_sched
from tests.cases import ONE_OF_EACH, SHAPES, gradient
from tests.recording import record
from tests.training import (
    FEW,
    OURS,
    STEPS,
    case,
    check,
    named,
    pair,
    set_grads,
    stepped,
    three,
)

SCALE = 1024.0
MOMENTUM = case("SGD-momentum")


def scaled_grads(params: list[Tensor], step: int, scaler: Any, overflow: bool) -> None:
    """What ``scaler.scale(loss).backward()`` leaves behind."""
    for param in params:
        param.grad = scaler.scale(gradient(param, step))
    if overflow:
        params[0].grad.view(-1)[3] = float("inf")


def make(row: Any, module: Any, fused: bool = True) -> Any:
    params = three()
    opt = row.build(module, params, fused=fused)
    return opt, params, GradScaler("cpu", init_scale=SCALE, growth_interval=2)


def run(
    one: tuple[Any, list[Tensor], Any], overflows: set[int], steps: range = range(STEPS)
) -> None:
    opt, params, scaler = one
    for step in steps:
        scaled_grads(params, step, scaler, step in overflows)
        scaler.step(opt)
        scaler.update()


def counts(opt: Any) -> list[float]:
    return [float(entry["step"]) for entry in opt.state.values() if "step" in entry]


OVERFLOWS = {
    "never": set(),
    "first": {0},
    "first two": {0, 1},
    "in a row": {1, 2},
    "last": {STEPS - 1},
    "all": set(range(STEPS)),
}


@pytest.mark.parametrize("overflows", OVERFLOWS.values(), ids=OVERFLOWS.keys())
@pytest.mark.parametrize("row", **named(FEW))
def test_overflows_move_nothing(row, overflows, engine):
    """As torch without ``fused``, whose step is not even called: what SGD fused should do, too."""
    ours, theirs = make(row, OURS), make(row, torch.optim, fused=False)
    run(ours, overflows)
    run(theirs, overflows)
    check(ours[1], theirs[1])
    assert sum(counts(ours[0])) == sum(counts(theirs[0]))
    assert float(ours[2].get_scale()) == float(theirs[2].get_scale())
    for mine, other in zip(ours[1], theirs[1], strict=True):
        known = dict(theirs[0].state.get(other, {}))
        seen = {k: v for k, v in ours[0].state.get(mine, {}).items() if k in known}
        torch.testing.assert_close(seen, known, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("row", **named(FEW))
def test_gradients_end_as_stock_fused_torch_leaves_them(row, engine):
    """Divided after a step, untouched after an overflow."""
    for overflows in (set(), {0}):
        ours, theirs = make(row, OURS), make(row, torch.optim)
        run(ours, overflows, range(1))
        run(theirs, overflows, range(1))
        for mine, other in zip(ours[1], theirs[1], strict=True):
            torch.testing.assert_close(mine.grad, other.grad)


@pytest.mark.parametrize("row", **named(FEW))
def test_odd_gradients_are_divided_too(row, engine):
    """Strides other than the param's, params with gaps, complex ones."""
    values = torch.randn(31, 7, dtype=torch.complex64)
    params = [SHAPES[9].build(), SHAPES[11].build(), values.requires_grad_()]
    grads = [torch.randn_like(p.detach()).mT.contiguous().mT for p in params[:2]]
    grads.append(torch.randn_like(values.detach()))
    opt = row.build(OURS, params)
    reference = [p.detach().clone().requires_grad_() for p in params]
    stock = row.build(torch.optim, reference, foreach=False)
    opt.grad_scale, opt.found_inf = torch.tensor([SCALE]), torch.zeros(1)
    for param, other, grad in zip(params, reference, grads, strict=True):
        param.grad, other.grad = grad * SCALE, grad.clone()
    opt.step()
    stock.step()
    check([p.detach() for p in params], [p.detach() for p in reference])
    check([p.grad for p in params], [p.grad for p in reference])


@pytest.mark.parametrize("overflows", OVERFLOWS.values(), ids=OVERFLOWS.keys())
@pytest.mark.parametrize(**stepped(ONE_OF_EACH))
def test_a_step_with_found_inf_is_no_step(row, overflows, engine):
    """Of every class, also of those that torch has no ``fused`` for; meanwhile the lr moves."""
    opt, ours, reference, theirs = pair(row, three)
    opt.grad_scale = torch.tensor([SCALE])
    for step in range(STEPS):
        opt.found_inf = torch.tensor([float(step in overflows)])
        set_grads(theirs, step)
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = other.grad * SCALE
        for one in (opt, reference):
            one.param_groups[0]["lr"] = 0.1 / (1 + step)
        opt.step()
        if step not in overflows:
            reference.step()
    check(ours, theirs)


def test_no_momentum_is_shown_before_the_first_real_step(engine):
    """The buffer of an overflowed first step would be read as a real one by stock torch."""
    opt, params, _ = one = make(MOMENTUM, OURS)
    run(one, {0}, range(1))
    buffers = [entry.get("momentum_buffer") for entry in opt.state_dict()["state"].values()]
    assert not any(isinstance(buffer, Tensor) for buffer in buffers)
    theirs = [p.detach().clone().requires_grad_() for p in params]
    stock = MOMENTUM.build(torch.optim, theirs, foreach=False)
    stock.load_state_dict(opt.state_dict())
    for step in (1, 2):
        for param, other in zip(params, theirs, strict=True):
            param.grad, other.grad = gradient(param, step), gradient(other, step)
        opt.step()
        stock.step()
    check(params, theirs)


@pytest.mark.parametrize("overflow", [False, True])
@pytest.mark.parametrize("row", **named(FEW))
def test_unscaled_gradients_are_not_divided_again(row, overflow, engine):
    ours, theirs = make(row, OURS), make(row, torch.optim, fused=False)
    for opt, params, scaler in (ours, theirs):
        for step in range(3):
            scaled_grads(params, step, scaler, overflow and step == 1)
            scaler.unscale_(opt)
            torch.nn.utils.clip_grad_norm_(params, 1e4, error_if_nonfinite=False)
            scaler.step(opt)
            scaler.update()
    check(ours[1], theirs[1])


@pytest.mark.parametrize("row", **named(FEW))
def test_scaler_sees_the_option_of_torch(row, engine):
    fused, plain = row.build(OURS, three(), fused=True), row.build(OURS, three())
    assert fused._step_supports_amp_scaling is True
    assert not getattr(plain, "_step_supports_amp_scaling", False)
    assert list(inspect.signature(fused.step).parameters) == ["closure"]


@pytest.mark.parametrize("row", **named(FEW))
def test_without_fused_the_scaler_does_it_all(row, engine):
    ours, theirs = make(row, OURS, fused=False), make(row, torch.optim, fused=False)
    for one in (ours, theirs):
        run(one, {1, 3})
    check(ours[1], theirs[1])
    assert counts(ours[0]) == counts(theirs[0])


@pytest.mark.parametrize("row", **named(FEW))
def test_the_scalers_attributes_do_not_stay(row, engine):
    one = make(row, OURS)
    run(one, {1}, range(2))
    assert not {"grad_scale", "found_inf"} & set(vars(one[0]))


# -- schedules -----------------------------------------------------------------------------------


@pytest.mark.parametrize("overflows", OVERFLOWS.values(), ids=OVERFLOWS.keys())
@pytest.mark.parametrize("on_skip", [False, True])
def test_fused_schedules_stand_still_unless_told(on_skip, overflows, engine):
    opt, _, _ = one = make(MOMENTUM, OURS)
    schedule = fused_sched.lr_scheduler.ExponentialLR(opt, 0.5)
    fused_sched.fuse(opt, schedule, interval=1, advance_on_skip=on_skip)
    run(one, overflows)
    moves = STEPS if on_skip else STEPS - len(overflows)
    assert opt.param_groups[0]["lr"] == MOMENTUM.kwargs["lr"] * 0.5**moves
    assert schedule.last_epoch == moves
    assert schedule.get_last_lr() == [opt.param_groups[0]["lr"]]


@pytest.mark.parametrize("overflows", OVERFLOWS.values(), ids=OVERFLOWS.keys())
def test_the_params_see_the_schedule_that_stood_still(overflows, engine):
    """Against torch's loop that skips ``scheduler.step()`` with the optimizer's."""
    opt, ours, _ = one = make(MOMENTUM, OURS)
    fused_sched.fuse(opt, fused_sched.lr_scheduler.ExponentialLR(opt, 0.5), interval=1)
    run(one, overflows)
    theirs = three()
    stock = MOMENTUM.build(torch.optim, theirs, foreach=False)
    schedule = torch.optim.lr_scheduler.ExponentialLR(stock, 0.5)
    for step in sorted(set(range(STEPS)) - overflows):
        for param in theirs:
            param.grad = gradient(param, step)
        stock.step()
        schedule.step()
    check(ours, theirs)


def test_schedules_of_both_kinds_on_one_optimizer(engine):
    opt, _, _ = one = make(MOMENTUM, OURS)
    schedules = [
        fused_sched.lr_scheduler.ExponentialLR(opt, 0.5),
        fused_sched.lr_scheduler.MultiStepLR(opt, [1, 2, 3, 4, 5], 3.0),
    ]
    fused_sched.fuse(opt, schedules[0], interval=1)
    fused_sched.fuse(opt, schedules[1], interval=1, advance_on_skip=True)
    run(one, {0, 2})
    assert [s.last_epoch for s in schedules] == [STEPS - 2, STEPS]
    expected = MOMENTUM.kwargs["lr"] * 0.5 ** (STEPS - 2) * 3.0**STEPS
    assert opt.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-12)


def test_steps_without_a_scaler_may_follow(engine):
    """As after training in mixed precision, and with a step whose gradients are partly missing."""
    opt, params, _ = one = make(case("Adam-default"), OURS)
    schedule = fused_sched.lr_scheduler.ExponentialLR(opt, 0.5)
    fused_sched.fuse(opt, schedule, interval=1)
    run(one, {1}, range(3))
    for step in range(3, 5):
        for param in params:
            param.grad = gradient(param, step)
        params[step % 2].grad = None
        opt.step()
    assert counts(opt) == [3, 3, 4]
    assert schedule.last_epoch == 4
    run(one, {5}, range(5, 7))
    assert counts(opt) == [4, 4, 5]
    assert schedule.last_epoch == 5


def test_missing_gradients_at_an_overflow_are_not_counted(engine):
    opt, params, scaler = make(case("Adam-default"), OURS)
    for step in range(4):
        scaled_grads(params, step, scaler, overflow=step == 2)
        params[1].grad = None if step in (1, 2) else params[1].grad
        scaler.step(opt)
        scaler.update()
    assert [float(opt.state[p]["step"]) for p in params] == [3, 2, 3]


def test_params_may_enter_after_an_overflow(engine):
    """A new table, while only the device knows its steps."""
    opt, params, scaler = make(case("Adam-default"), OURS)
    params[1].requires_grad_(False)
    for step in range(4):
        for param in (params[0], params[2], *params[1 : 1 + (step > 1)]):
            param.grad = scaler.scale(gradient(param, step))
        if step == 1:
            params[0].grad.view(-1)[0] = float("nan")
        scaler.step(opt)
        scaler.update()
    assert [float(opt.state[p]["step"]) for p in params] == [3, 2, 3]


def test_without_a_scaler_non_finite_gradients_do_what_they_do_in_torch(engine):
    row = case("Adam-default")
    ours, theirs = three(), three()
    for params, opt in ((ours, row.build(OURS, ours)), (theirs, row.build(torch.optim, theirs))):
        for step in range(2):
            for param in params:
                param.grad = gradient(param, step)
            params[0].grad.view(-1)[:2] = torch.tensor([float("inf"), float("nan")])
            opt.step()
        assert params[0].isnan().sum() == 2
    check(ours, theirs)


# -- under capture -------------------------------------------------------------------------------


@pytest.mark.parametrize("cure", ["a step like it", "prepare()"])
@pytest.mark.parametrize("scale", [None, torch.ones(1)], ids=["unscaled before", "unscales"])
def test_a_scaler_that_no_step_has_seen_cannot_enter_a_capture(scale, cure):
    """A launch with one is another kernel of Triton's, which nothing loads under capture."""
    with fused_sched.use_engine("triton"):
        params = three()
        opt = case("Adam-default").build(OURS, params, fused=True)
        set_grads(params, 0)
        opt.step()
        opt.grad_scale, opt.found_inf = scale, torch.zeros(1)
        refusal = r"a step with this GradScaler is not loaded; call optimizer.prepare\(\)"
        with pytest.raises(RuntimeError, match=refusal):
            record(opt, params)
        (opt.prepare if cure == "prepare()" else opt.step)()
        before = [param.clone() for param in params]
        record(opt, params).replay()
        assert not all(map(torch.equal, params, before))
