"""Numbers of a param that one step hands to the next: a made-up rule with two, on every engine."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import Parameter

import fused_sched
from fused_sched.optim import FusedOptimizer
from fused_sched.rules.reader import RuleError

ENGINES = ("eager", "native", "triton")


class Sum(FusedOptimizer):
    """Moves by all lrs so far, and by the lr of the step before."""

    recurrences = ("total", "before")

    def __init__(self, params: Any, lr: float = 0.5, start: float = 0.25):
        super().__init__(params, {"lr": lr, "start": start})

    def initial_state(self, name: str, group: Any) -> float:
        return group["start"] if name == "total" else 0.0

    @staticmethod
    def coefficients(lr, total, before, step):
        total = total + lr
        return total, before, total, lr

    @staticmethod
    def rule(p, g, c):
        total, before = c
        return (p - total * g - before,)


@pytest.fixture(autouse=True, params=ENGINES)
def engine(request):
    with fused_sched.use_engine(request.param):
        yield request.param


def make(count: int = 1, **options: Any) -> tuple[Any, list[Parameter]]:
    params = [Parameter(torch.zeros(5)) for _ in range(count)]
    return Sum(params, **options), params


def step(opt: Any, *params: Parameter) -> None:
    """With a gradient of 1 for these params alone."""
    opt.zero_grad()
    for param in params:
        param.grad = torch.ones_like(param)
    opt.step()


def state(opt: Any, param: Parameter) -> tuple[float, float, float]:
    entry = opt.state[param]
    return tuple(float(entry[name]) for name in ("step", "total", "before"))


def test_each_param_has_its_own_from_its_first_gradient_on():
    """lr is 1/2, 1/4, 1/8, ...; the second param misses the first and the third step."""
    opt, (often, seldom) = make(2)
    sched = fused_sched.lr_scheduler.ExponentialLR(opt, 0.5)
    fused_sched.fuse(opt, sched)
    for i in range(5):
        step(opt, often, *([seldom] if i in (1, 3, 4) else []))
        sched.step()
    total, before, at = 0.25, 0.0, 0.0
    for lr in (0.5, 0.25, 0.125, 0.0625, 0.03125):
        total += lr
        at -= total + before
        before = lr
    assert often.tolist() == [at] * 5
    assert state(opt, often) == (5, total, 0.03125)
    total, before, at = 0.25, 0.0, 0.0
    for lr in (0.25, 0.0625, 0.03125):
        total += lr
        at -= total + before
        before = lr
    assert seldom.tolist() == [at] * 5
    assert state(opt, seldom) == (3, total, 0.03125)


def test_groups_begin_with_their_own():
    params = [Parameter(torch.zeros(3)), Parameter(torch.zeros(3))]
    opt = Sum([{"params": params[:1]}, {"params": params[1:], "start": 8.0, "lr": 1.0}])
    step(opt, *params)
    assert [p[0].item() for p in params] == [-0.75, -9.0]


@pytest.mark.parametrize("skipped", [{0}, {1, 2}, {0, 3}], ids=str)
def test_a_skipped_step_leaves_them(skipped):
    opt, (param,) = make()
    other, (plain,) = make()
    opt.grad_scale = torch.ones(1)
    for i in range(4):
        opt.found_inf = torch.tensor([float(i in skipped)])
        step(opt, param)
        if i not in skipped:
            step(other, plain)
    assert torch.equal(param, plain)
    assert state(opt, param) == state(other, plain)


def test_what_is_written_counts():
    opt, (param,) = make()
    step(opt, param)
    opt.state[param]["total"].fill_(4.0)
    opt.state[param]["before"] = torch.tensor(2.0)
    before = param.detach().clone()
    step(opt, param)
    assert torch.equal(param, before - 4.5 - 2.0)
    assert state(opt, param) == (2, 4.5, 0.5)


def test_a_held_tensor_is_current_after_a_read():
    opt, (param,) = make()
    step(opt, param)
    held = opt.state[param]["total"]
    step(opt, param)
    step(opt, param)
    assert float(opt.state[param]["total"]) == 1.75
    assert float(held) == 1.75


def test_a_checkpoint_goes_on_with_them():
    whole, (param,) = make()
    for _ in range(5):
        step(whole, param)
    half, (first,) = make()
    for _ in range(3):
        step(half, first)
    saved = half.state_dict()
    rest, (second,) = make()
    step(rest, second)
    rest.load_state_dict(saved)
    second.data.copy_(first)
    for _ in range(2):
        step(rest, second)
    assert torch.equal(second, param)
    assert state(rest, second) == state(whole, param)


def test_a_param_that_joins_later_begins_anew():
    opt, (param,) = make()
    step(opt, param)
    late = Parameter(torch.zeros(2))
    opt.add_param_group({"params": [late]})
    step(opt, param, late)
    assert late.tolist() == [-0.75] * 2
    assert state(opt, param)[1] == 1.25


def test_a_state_that_lacks_one_says_which():
    opt, (param,) = make()
    step(opt, param)
    saved = copy.deepcopy(opt.state_dict())
    del saved["state"][0]["total"]
    other, _ = make()
    with pytest.raises(ValueError, match="no 'total'; nothing was loaded"):
        other.load_state_dict(saved)
    del opt.state[param]["before"]
    with pytest.raises(KeyError, match="before"):
        step(opt, param)


def test_coefficients_take_them_before_step():
    with pytest.raises(RuleError, match=r"takes the recurrences, in their order, right before"):

        class Wrong(Sum):
            recurrences = ("before", "total")


def test_coefficients_return_them_last():
    with pytest.raises(RuleError, match="carries 2 recurrences on"):

        class Wrong(Sum):
            @staticmethod
            def coefficients(lr, total, before, step):
                return total, before, lr


# -- of a group ----------------------------------------------------------------------------------


class Averaged(FusedOptimizer):
    """Moves by the mean of all lrs so far, and by the number of steps that a param has made."""

    states = {"steps": True}
    recurrences = ("own",)
    group_recurrences = ("count", "total")

    def __init__(self, params: Any, lr: float = 0.5):
        super().__init__(params, {"lr": lr, "count": 0, "total": 0.0})

    @staticmethod
    def coefficients(lr, own, count, total, step):
        count = count + 1.0
        total = total + lr
        return total / count, own + 1.0, count, total

    @staticmethod
    def rule(p, g, steps, c):
        (mean,) = c
        return p - mean * g, steps + 1.0


def numbers(opt: Any, group: int = 0) -> tuple[Any, Any]:
    return opt.param_groups[group]["count"], opt.param_groups[group]["total"]


def make_averaged(count: int = 2) -> tuple[Any, list[Parameter]]:
    params = [Parameter(torch.zeros(5)) for _ in range(count)]
    return Averaged(params), params


def test_a_groups_numbers_go_on_without_a_gradient():
    """lr is 1/2, 1/4, 1/8, ...; the second param misses the first and the third step."""
    opt, (often, seldom) = make_averaged()
    sched = fused_sched.lr_scheduler.ExponentialLR(opt, 0.5)
    fused_sched.fuse(opt, sched)
    total, at, second = 0.0, 0.0, 0.0
    for i in range(5):
        step(opt, often, *([seldom] if i in (1, 3, 4) else []))
        sched.step()
        total += 0.5 ** (i + 1)
        at -= total / (i + 1)
        if i in (1, 3, 4):
            second -= total / (i + 1)
    torch.testing.assert_close(often, torch.full((5,), at), rtol=1e-6, atol=0)
    torch.testing.assert_close(seldom, torch.full((5,), second), rtol=1e-6, atol=0)
    assert numbers(opt) == (5, total)
    assert type(numbers(opt)[0]) is int
    assert [float(opt.state[p]["own"]) for p in (often, seldom)] == [5.0, 3.0]
    assert opt.state_dict()["param_groups"][0]["total"] == total


def test_each_group_has_its_own():
    params = [Parameter(torch.zeros(3)), Parameter(torch.zeros(3))]
    opt = Averaged([{"params": params[:1]}, {"params": params[1:], "lr": 1.0, "count": 4}])
    step(opt, *params)
    step(opt, *params)
    assert numbers(opt) == (2, 1.0)
    assert numbers(opt, 1) == (6, 2.0)


def test_a_skipped_step_leaves_a_groups_numbers():
    opt, params = make_averaged()
    opt.grad_scale = torch.ones(1)
    for found in (1.0, 0.0, 1.0, 0.0):
        opt.found_inf = torch.tensor([found])
        step(opt, *params)
    assert numbers(opt) == (2, 1.0)


def test_what_is_written_into_a_group_counts():
    opt, params = make_averaged()
    step(opt, *params)
    opt.param_groups[0]["total"] = 4.0
    step(opt, *params)
    assert numbers(opt) == (2, 4.5)
    assert params[0].tolist() == [-0.5 - 2.25] * 5
    opt.param_groups[0].update(count=0, total=0.0)
    step(opt, *params)
    assert numbers(opt) == (1, 0.5)
    opt.param_groups[0] = {**opt.param_groups[0], "total": 1.0}  # as wrappers do
    step(opt, *params)
    assert numbers(opt) == (2, 1.5)


def test_a_checkpoint_has_a_groups_numbers():
    whole, params = make_averaged()
    for _ in range(5):
        step(whole, *params)
    half, first = make_averaged()
    for _ in range(3):
        step(half, *first)
    saved = copy.deepcopy(half.state_dict())
    rest, second = make_averaged()
    step(rest, *second)
    rest.load_state_dict(saved)
    for mine, other in zip(second, first, strict=True):
        mine.data.copy_(other)
    for _ in range(2):
        step(rest, *second)
    assert numbers(rest) == numbers(whole)
    assert torch.equal(second[1], params[1])


def test_a_param_that_joins_a_group_takes_its_numbers():
    opt, (early, late) = make_averaged()
    step(opt, early)
    step(opt, early)
    step(opt, early, late)
    assert late.tolist() == [-0.5] * 5
    assert numbers(opt) == (3, 1.5)
    opt.add_param_group({"params": [Parameter(torch.zeros(2))]})
    step(opt, early)
    assert numbers(opt) == (4, 2.0)
    assert numbers(opt, 1) == (1, 0.5)


def test_they_go_on_before_any_gradient():
    opt, params = make_averaged()
    step(opt)
    step(opt)
    step(opt, *params)
    assert numbers(opt) == (3, 1.5)
    assert params[0].tolist() == [-0.5] * 5
    assert float(opt.state[params[0]]["own"]) == 1.0


def test_a_copy_goes_on_from_there():
    opt, params = make_averaged()
    step(opt, *params)
    other = copy.deepcopy(opt)
    step(other, *other.param_groups[0]["params"])
    assert numbers(other) == (2, 1.0)
    assert numbers(opt) == (1, 0.5)


def test_a_group_must_have_them():
    class Lacking(Averaged):
        def __init__(self, params: Any):
            FusedOptimizer.__init__(self, params, {"lr": 0.5, "count": 0})

    with pytest.raises(KeyError, match="lacks 'total'"):
        Lacking([Parameter(torch.zeros(1))])


def test_a_group_is_not_divided_between_engines(engine):
    if engine == "eager":
        return  # it takes all params
    odd = Parameter(torch.zeros(3, dtype=torch.float64).to_sparse().to_dense())
    odd.grad = torch.ones(3, dtype=torch.float64)
    meta = Parameter(torch.zeros(3, device="meta"))
    meta.grad = torch.ones(3, device="meta")
    opt = Averaged([odd, meta])
    with pytest.raises(RuntimeError, match="carries count, total from step to step"):
        opt.step()
