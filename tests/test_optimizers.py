"""Every optimizer's numbers against stock torch, and what may lie around an update."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import fused_sched
from fused_sched.engines import engine_for
from tests.cases import ERROR_RATIO, OF_TORCH, ONE_OF_EACH, OPTIMIZERS, SHAPES, gradient
from tests.training import (
    FEW,
    OURS,
    STEPS,
    case,
    check,
    launched,
    launched_in,
    named,
    pair,
    set_grads,
    stepped,
    stock,
    three,
    train,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def tensors(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [shape.build(dtype) for shape in SHAPES]


def double(values: Tensor) -> Tensor:
    return values.detach().to(torch.complex128 if values.is_complex() else torch.float64)


@pytest.fixture
def counted(monkeypatch, launch_engine, whole_steps):
    """The number of launches so far."""
    calls: list[Any] = []
    engine = engine_for(torch.device("cpu"))
    update = engine.update

    def counting(*args: Any) -> None:
        calls.append(args)
        update(*args)

    monkeypatch.setattr(engine, "update", counting)
    return calls


# -- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(**launched_in(DTYPES, OPTIMIZERS, ONE_OF_EACH))
def test_steps_equal_stock_torch(row, dtype, launch_engine):
    """Every option, dtype and shape: all shapes in one optimizer, each step one launch."""
    ours, theirs = tensors(dtype), tensors(dtype)
    train(row.build(OURS, ours), ours, range(2))
    train(stock(row, theirs), theirs, range(2))
    check(ours, theirs)


@pytest.mark.parametrize(**launched_in([torch.float32, torch.float64], OPTIMIZERS, ONE_OF_EACH))
def test_many_steps_equal_stock_torch(row, dtype, launch_engine):
    """Shrinking gradients: a running maximum is another than the last value."""

    def run(opt: Any, param: Tensor) -> Tensor:
        for step in range(8):
            param.grad = gradient(param, step) * 0.3**step
            opt.step()
        return param

    ours, theirs = SHAPES[9].build(dtype), SHAPES[9].build(dtype)
    check([run(row.build(OURS, [ours]), ours)], [run(stock(row, [theirs]), theirs)])


@pytest.mark.parametrize("dtype", **named(DTYPES[:3]))
@pytest.mark.parametrize(**launched(ONE_OF_EACH))
def test_error_is_at_most_twice_that_of_torch(row, dtype, launch_engine):
    """Against the same steps in float64, from the same start and the same rounded gradients."""

    def errors(module: Any, **options: Any) -> Tensor:
        params = [SHAPES[8].build(dtype)]
        exact = [double(params[0]).requires_grad_()]
        opts = row.build(module, params, **options), stock(row, exact)
        for step in range(STEPS):
            set_grads(params, step)
            exact[0].grad = double(params[0].grad)
            for opt in opts:
                opt.step()
        return (double(params[0]) - exact[0]).abs()

    ours, theirs = errors(OURS), errors(torch.optim, foreach=False)
    slack = torch.finfo(dtype).eps
    assert ours.max() <= ERROR_RATIO * theirs.max() + slack
    assert ours.mean() <= ERROR_RATIO * theirs.mean() + slack / 100
    assert ours.max() > 0  # there was something to compare


GROUPS = {
    "SGD-combo": [{"lr": 0.01}, {"momentum": 0.0}, {"weight_decay": 0.3, "maximize": False}, {}],
    "Adam-combo": [{"lr": 0.1}, {"amsgrad": False}, {"betas": (0.5, 0.6), "eps": 1e-3}, {}],
    "AdamW-weight_decay": [{"lr": 0.1}, {"maximize": True}, {"amsgrad": True}, {}],
}


@pytest.mark.parametrize("row", **named(FEW))
def test_dtypes_and_groups_share_one_launch(row, counted):
    """Four dtypes in each of four groups with options of their own."""

    def build(module: Any, **options: Any) -> tuple[Any, list[Tensor]]:
        groups = [
            {"params": [SHAPES[i].build(dtype) for dtype in DTYPES], **own}
            for i, own in zip((0, 7, 10, 16), GROUPS[row.id], strict=True)
        ]
        params = [param for group in groups for param in group["params"]]
        return row.build(module, groups, **options), params

    (opt, ours), (reference, theirs) = build(OURS), build(torch.optim, foreach=False)
    train(opt, ours)
    train(reference, theirs)
    check(ours, theirs)
    assert len(counted) == STEPS


@pytest.mark.parametrize("row", **named([row for row in OPTIMIZERS if row not in OF_TORCH]))
def test_eager_engine_evaluates_the_rule(row):
    ours, theirs = tensors(), tensors()
    with fused_sched.use_engine("eager"):
        train(row.build(OURS, ours), ours, range(2))
    train(stock(row, theirs), theirs, range(2))
    check(ours, theirs)


@pytest.mark.parametrize("row", **named(OF_TORCH))
def test_eager_engine_is_stock_torch(row):
    ours, theirs = tensors(), tensors()
    with fused_sched.use_engine("eager"):
        train(row.build(OURS, ours), ours, range(2))
    train(stock(row, theirs), theirs, range(2))
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)


# -- params and gradients of all kinds -----------------------------------------------------------


def both(row: Any, build: Callable[[], list[Tensor]], grads: Callable[..., Any]) -> None:
    """The same gradients into both; ``grads(params, step)`` sets them."""
    opt, ours, reference, theirs = pair(row, build)
    for step in range(STEPS):
        grads(ours, step)
        opt.step()
        grads(theirs, step)
        reference.step()
    check(ours, theirs)
    assert [state["step"] for state in opt.state.values() if "step" in state] == [
        state["step"] for state in reference.state.values() if "step" in state
    ]
    assert len(opt.state) == len(reference.state)


@pytest.mark.parametrize(**stepped(ONE_OF_EACH))
def test_missing_gradients_let_the_step_stand_still(row, engine):
    def grads(params: list[Tensor], step: int) -> None:
        set_grads(params, step)
        params[step % 3].grad = None

    both(row, three, grads)


@pytest.mark.parametrize(**stepped(ONE_OF_EACH))
def test_a_first_gradient_may_come_late(row, engine):
    """The state is made when the lr is another, and counts from that gradient on."""
    opt, ours, reference, theirs = pair(row, three)
    opt.prepare()
    for step in range(STEPS):
        for one, params in ((opt, ours), (reference, theirs)):
            one.param_groups[0]["lr"] = 0.1 / (1 + step)
            set_grads(params, step)
            for late in params[: max(0, 2 - step)]:
                late.grad = None
            one.step()
    check(ours, theirs)


@pytest.mark.parametrize("row", **named(FEW))
def test_gradients_may_all_be_missing(row, engine):
    def grads(params: list[Tensor], step: int) -> None:
        set_grads(params, step)
        for param in params if step in (0, 2) else ():
            param.grad = None

    both(row, three, grads)


@pytest.mark.parametrize("row", **named(FEW))
def test_frozen_params_stay_and_may_thaw(row, engine):
    def grads(params: list[Tensor], step: int) -> None:
        params[1].requires_grad_(step > 2)
        set_grads([p for p in params if p.requires_grad], step)

    both(row, three, grads)


@pytest.mark.parametrize("row", **named(FEW))
def test_empty_groups_and_tensors_step(row, engine):
    params = SHAPES[2].build(), SHAPES[3].build(), SHAPES[0].build()
    opt = row.build(OURS, [{"params": []}, {"params": params[:2]}, {"params": params[2:]}])
    train(opt, params)
    assert [opt.state[p].get("step", STEPS) for p in params] == [STEPS] * 3
    assert not row.build(OURS, [{"params": []}]).step()


def transposed(grad: Tensor) -> Tensor:
    """Equal values, strides in the other order."""
    return grad.mT.contiguous().mT if grad.dim() > 1 else grad


def spaced(grad: Tensor) -> Tensor:
    return torch.stack((grad, grad), -1)[..., 0]


def expanded(grad: Tensor) -> Tensor:
    return torch.full((), 0.5).expand(grad.shape)


def negated(grad: Tensor) -> Tensor:
    """A lazy negation: its memory holds the other sign."""
    lazy = torch.complex(torch.zeros_like(grad), -grad).conj().imag
    assert lazy.is_neg()
    return lazy


def shifted(grad: Tensor) -> Tensor:
    """Four bytes off a multiple of sixteen."""
    memory = torch.empty(grad.numel() + 1)[1:].view(grad.shape)
    return memory.copy_(grad)


@pytest.mark.parametrize("change", **named([transposed, spaced, expanded, negated, shifted]))
@pytest.mark.parametrize("row", **named(FEW))
def test_gradients_of_any_layout(row, change, launch_engine):
    def build() -> list[Tensor]:
        return [SHAPES[i].build() for i in (7, 9, 10, 11, 13, 14)]

    def grads(params: list[Tensor], step: int) -> None:
        for param in params:
            param.grad = change(gradient(param, step).contiguous()) if step % 2 else None
            if param.grad is None:
                param.grad = gradient(param, step)

    both(row, build, grads)


@pytest.mark.parametrize("row", **named(FEW))
def test_gradients_of_another_dtype(row, launch_engine):
    """bfloat16 params may have float32 gradients (``grad_dtype``), in one group with others."""
    exact = [SHAPES[i].build() for i in (7, 9)]
    params = [p.detach().bfloat16().requires_grad_() for p in exact]
    exact = [p.detach().float().requires_grad_() for p in params]
    for param in params:
        param.grad_dtype = torch.float32
    opt, reference = row.build(OURS, params), stock(row, exact)
    for step in range(STEPS):
        set_grads(exact, step)
        for param, other in zip(params, exact, strict=True):
            param.grad = other.grad.clone()
        opt.step()
        reference.step()
    for param, other in zip(params, exact, strict=True):
        torch.testing.assert_close(param.float(), other, rtol=4e-2, atol=4e-2)


def complex_params(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(31, 7, generator=generator, dtype=dtype)
    return [Parameter(values.clone()), Parameter(values.t().clone()), Parameter(values[:0].clone())]


@pytest.mark.parametrize("dtype", **named([torch.complex64, torch.complex128]))
@pytest.mark.parametrize(**stepped(ONE_OF_EACH))
def test_complex_params(row, dtype, engine):
    both(row, lambda: complex_params(dtype), set_grads)


@pytest.mark.parametrize("row", **named(FEW))
def test_lazily_conjugated_gradients(row, launch_engine):
    """As with the conjugation done, which stock torch's for-loop needs."""
    ours, theirs = complex_params(torch.complex64), complex_params(torch.complex64)
    opt, reference = row.build(OURS, ours), stock(row, theirs)
    for step in range(STEPS):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.conj(gradient(mine, step))
            other.grad = mine.grad.resolve_conj()
        opt.step()
        reference.step()
    check(ours, theirs)


@pytest.mark.parametrize("row", **named(FEW))
def test_params_may_move(row, engine):
    """``.data`` replaced: before the first step, between steps, by other strides."""

    def grads(params: list[Tensor], step: int) -> None:
        if step in (0, 3):
            params[0].data = params[0].data.clone()
        if step == 2:
            params[1].data = params[1].data.t().contiguous().t()
        set_grads(params, step)

    both(row, three, grads)


@pytest.mark.parametrize("row", **named(FEW))
def test_params_may_change_their_dtype(row, engine):
    params = [SHAPES[7].build(torch.float64)]
    opt = row.build(OURS, params)
    params[0].data = params[0].data.float()
    exact = [params[0].detach().clone().requires_grad_()]
    reference = stock(row, exact)
    train(opt, params)
    train(reference, exact)
    check(params, exact)


@pytest.mark.parametrize("row", **named(FEW))
def test_params_may_be_replaced_in_their_group(row, engine):
    params = three()
    opt = row.build(OURS, params[:1])
    train(opt, params[:1], range(2))
    opt.param_groups[0]["params"] = params[1:]
    other = [p.detach().clone().requires_grad_() for p in params[1:]]
    before = params[0].clone()
    train(opt, params[1:])
    train(stock(row, other), other)
    check(params[1:], other)
    assert torch.equal(before, params[0])


# -- options that change on the way --------------------------------------------------------------


def edits(name: str, *values: Any) -> Callable[[Any, int], None]:
    def edit(opt: Any, step: int) -> None:
        opt.param_groups[0][name] = values[step % len(values)]

    edit.__name__ = name
    return edit


SGD_EDITS = [
    edits("lr", 0.1, 0.0, 0.5),
    edits("momentum", 0.9, 0.0, 0.5),
    edits("momentum", 0.0, 0.0, 0.5),
    edits("dampening", 0.5, 0.0),
    edits("weight_decay", 0.0, 0.1),
    edits("nesterov", False, True),
    edits("maximize", False, True),
]
ADAM_EDITS = [
    edits("lr", 0.1, 0.0, 0.5),
    edits("betas", (0.9, 0.99), (0.5, 0.6), (0.0, 0.9)),
    edits("eps", 1e-8, 1e-2),
    edits("weight_decay", 0.0, 0.1),
    edits("decoupled_weight_decay", False, True),
    edits("maximize", False, True),
    edits("amsgrad", True, False),
]
EDITS = [
    *(("SGD-momentum", edit) for edit in SGD_EDITS),
    *(("SGD-plain", edit) for edit in SGD_EDITS[:2]),
    *(("Adam-weight_decay", edit) for edit in ADAM_EDITS),
]


@pytest.mark.parametrize("id, edit", EDITS, ids=lambda value: getattr(value, "__name__", value))
def test_group_edits_take_effect_at_the_next_step(id, edit, engine):
    opt, ours, reference, theirs = pair(case(id), three)
    for step in range(STEPS + 1):
        for one, params in ((opt, ours), (reference, theirs)):
            edit(one, step)
            set_grads(params, step)
            one.step()
    check(ours, theirs)


@pytest.mark.parametrize("row", **named(FEW))
def test_add_param_group_mid_run(row, engine):
    opt, ours, reference, theirs = pair(row, three)
    for step in range(STEPS):
        for one, params in ((opt, ours), (reference, theirs)):
            if step == 2:
                params.append(SHAPES[9].build())
                one.add_param_group({"params": params[-1], "lr": 0.3})
                one.param_groups[-1]["weight_decay"] = 0.5
            set_grads(params, step)
            one.step()
    check(ours, theirs)
    assert [group["lr"] for group in opt.param_groups] == [g["lr"] for g in reference.param_groups]


# -- closures, hooks -----------------------------------------------------------------------------


@pytest.mark.parametrize("row", **named(FEW))
def test_closure_runs_once_with_grad(row, engine):
    params = three()
    opt = row.build(OURS, params)
    calls = []

    def closure() -> Tensor:
        opt.zero_grad()
        calls.append(torch.is_grad_enabled())
        loss = params[0].square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        expected = params[0].square().sum()
        assert torch.equal(opt.step(closure), expected)
        assert not torch.is_grad_enabled()
    assert torch.equal(opt.step(closure=closure), params[0].square().sum()) is False
    assert calls == [True, True]
    assert opt.step() is None


def test_failing_closure_changes_nothing(engine):
    params = three()
    opt = OURS.Adam(params)
    set_grads(params, 0)
    before = copy.deepcopy(opt.state_dict()), [p.clone() for p in params]

    def closure() -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        opt.step(closure)
    assert opt.state_dict() == before[0]
    assert all(map(torch.equal, params, before[1]))


@pytest.mark.parametrize("row", **named(FEW))
@pytest.mark.parametrize("stock_exists", [False, True])
def test_hooks_fire_once(row, stock_exists, engine):
    if stock_exists:
        stock(row, three())
    fired: list[str] = []
    params = three()
    opt = row.build(OURS, params)
    handles = [
        opt.register_step_pre_hook(lambda *_: fired.append("pre")),
        opt.register_step_post_hook(lambda *_: fired.append("post")),
        register_optimizer_step_pre_hook(lambda *_: fired.append("all pre")),
        register_optimizer_step_post_hook(lambda *_: fired.append("all post")),
    ]
    train(opt, params, range(1))
    for handle in handles:
        handle.remove()
    train(opt, params, range(1))
    assert fired == ["all pre", "pre", "post", "all post"]


def test_scheduler_of_torch_moves_a_step(engine):
    opt, ours, reference, theirs = pair(case("SGD-momentum"), three)
    for one, params in ((opt, ours), (reference, theirs)):
        scheduler = torch.optim.lr_scheduler.StepLR(one, 2, 0.1)
        for step in range(STEPS):
            set_grads(params, step)
            one.step()
            scheduler.step()
    check(ours, theirs)
    assert opt.param_groups[0]["lr"] == reference.param_groups[0]["lr"]


# -- lr as a tensor ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
@pytest.mark.parametrize("row", **named(FEW))
def test_lr_tensor_is_read_each_step(row, shape, engine):
    rates = torch.full(shape, 0.5), torch.full(shape, 0.5)
    opt, ours, reference, theirs = *pair(row, three)[:2], None, three()
    opt = row.build(OURS, ours, lr=rates[0])
    reference = stock(row, theirs, lr=rates[1])
    for step in range(STEPS):
        for one, params, rate in ((opt, ours, rates[0]), (reference, theirs, rates[1])):
            rate.fill_(0.5 / (1 + step))
            set_grads(params, step)
            one.step()
    check(ours, theirs)
    assert opt.param_groups[0]["lr"] is rates[0]


@pytest.mark.parametrize("fused", [False, True], ids=["explicit", "fused"])
def test_lr_tensor_is_written_by_schedules(fused, engine):
    rate = torch.tensor(0.5, dtype=torch.float64)
    params, expected = three(), 0.5
    opt = OURS.SGD(params, lr=rate)
    scheduler = fused_sched.lr_scheduler.ExponentialLR(opt, 0.5)
    if fused:
        fused_sched.fuse(opt, scheduler)
    for step in range(3):
        set_grads(params, step)
        opt.step()
        scheduler.step()
        expected *= 0.5
        assert float(rate) == expected
        assert [float(lr) for lr in scheduler.get_last_lr()] == [expected]
    assert opt.param_groups[0]["lr"] is rate
    assert scheduler.last_epoch == 3


def test_lr_tensor_may_give_way_to_a_float_and_back(engine):
    opt, ours, reference, theirs = pair(case("SGD-plain"), three)
    for step, lr in enumerate([0.5, torch.tensor(0.1), 0.2, torch.tensor([0.3])]):
        for one, params in ((opt, ours), (reference, theirs)):
            one.param_groups[0]["lr"] = lr
            set_grads(params, step)
            one.step()
    check(ours, theirs)


def test_lr_tensor_may_be_shared_by_groups(launch_engine):
    rate = torch.tensor(0.5, dtype=torch.float64)
    params = three()
    opt = OURS.SGD([{"params": params[:1]}, {"params": params[1:]}], lr=rate)
    fused_sched.fuse(opt, fused_sched.lr_scheduler.ExponentialLR(opt, 0.5), interval=1)
    train(opt, params, range(2))
    assert float(rate) == 0.125  # once per step, not once per group


# -- what is refused -----------------------------------------------------------------------------


def sparse(param: Tensor) -> Tensor:
    return torch.ones_like(param).to_sparse()


def refusal(opt: Any) -> str:
    with pytest.raises(RuntimeError) as error:
        opt.step()
    return str(error.value)


@pytest.mark.parametrize("row", **named(FEW))
def test_sparse_gradients_that_torch_refuses_change_nothing(row, engine):
    """Adam's, and with weight decay SGD's. torch's own loop has moved the params before."""
    params, theirs = ([SHAPES[7].build(), SHAPES[9].build()] for _ in range(2))
    opt, reference = row.build(OURS, params), stock(row, theirs)
    scheduler = fused_sched.lr_scheduler.ExponentialLR(opt, 0.5)
    fused_sched.fuse(opt, scheduler, interval=1)
    for one, mine in ((opt, params), (reference, theirs)):
        train(one, mine, range(1))
        set_grads(mine, 1)
        mine[1].grad = sparse(mine[1])
    before = copy.deepcopy(opt.state_dict()), [p.clone() for p in params]
    reference.param_groups[0]["lr"] *= 0.5  # as the schedule did
    assert refusal(opt) == refusal(reference)
    assert scheduler.last_epoch == 1
    if engine == "eager":
        assert all(map(torch.equal, params, theirs))
    else:
        assert str(opt.state_dict()) == str(before[0])
        assert all(map(torch.equal, params, before[1]))
    train(opt, params, range(1, 2))
    assert scheduler.last_epoch == 2


# -- uses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", **named(FEW))
def test_it_solves_a_small_problem(row, engine):
    weight = Parameter(torch.zeros(3))
    opt = row.build(OURS, [weight], lr=0.1, weight_decay=0.0, maximize=False)
    target = torch.tensor([1.0, -2.0, 0.5])
    start = (weight - target).square().sum().item()
    for _ in range(40):
        opt.zero_grad()
        (weight - target).square().sum().backward()
        opt.step()
    assert (weight - target).square().sum() < 0.1 * start


def test_it_is_what_torch_takes_it_for(engine):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt = OURS.AdamW(three(), lr=0.5)
    assert isinstance(opt, torch.optim.AdamW)
    assert repr(opt) == repr(torch.optim.AdamW(three(), lr=0.5))
    assert opt.defaults == torch.optim.AdamW(three(), lr=0.5).defaults
